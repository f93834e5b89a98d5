"""Write the splits of a source to a file, so that a paper can say which images it used.

Usage:
    python tools/make_split.py --source rsna --out splits/rsna.json
    python tools/make_split.py --source rsna --root /data/rsna --on-error skip --out rsna.json

``DATASETS.SPLIT_FILES`` in a config, or ``load_records(..., split_file=...)``, reads it back.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from fx_d2.data.catalog import make_report, source_root, split_ids
from fx_d2.data.errors import DataError
from fx_d2.data.sources import SOURCES, get_source
from fx_d2.data.splits import write_split_file


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--source", required=True, help="one of: " + ", ".join(SOURCES))
    parser.add_argument("--root", type=Path, help="its folder, if not below $DETECTRON2_DATASETS")
    parser.add_argument("--out", type=Path, required=True, help="file to write (JSON)")
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="stop at the first bad record, or leave bad records out and count them",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    args = parse_args(arguments)
    try:
        source = get_source(args.source)
    except KeyError as error:
        print(error.args[0], file=sys.stderr)
        return 2
    root = source_root(source.key) if args.root is None else args.root
    report = make_report(source.key, root, args.on_error)
    try:
        splits = split_ids(source.key, root=root, report=report)
        write_split_file(args.out, source.key, splits)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, ids in splits.items():
        print(f"{source.key} {name}: {len(ids)} images")
    if report.skipped:
        print(report.summary())
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
