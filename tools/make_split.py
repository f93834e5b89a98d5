#!/usr/bin/env python3
"""Write the splits of a source to a file, so that a paper can say which images it used.

    python tools/make_split.py --source rsna --out splits/rsna.json
    python tools/make_split.py --source rsna --root datasets --on-error skip --out rsna.json
    python tools/make_split.py --source covid19_seg --folds 5 --out splits/covid19_seg.json

``DATASETS.SPLIT_FILES`` in a config, or ``load_records(..., split_file=...)``, reads it back.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.command_line import Parser, check_output, existing_root, named_source, tool, whole
from fx_d2.data.catalog import fold_ids, make_report, source_root, split_ids
from fx_d2.data.sources import SOURCES
from fx_d2.data.splits import write_split_file


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--source", required=True, metavar="S", help="one of: " + ", ".join(SOURCES))
    add("--root", type=Path, metavar="DIR", help="datasets root; default: $DETECTRON2_DATASETS")
    add("--out", type=Path, required=True, metavar="FILE", help="file to write (JSON)")
    add(
        "--folds",
        type=whole(2),
        metavar="K",
        help="K files for cross-validation with a train and a test split, FILE with _fold1 and so "
        "on before its suffix, instead of the splits of the source",
    )
    add(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="stop at the first bad record, or leave bad records out and count them",
    )
    return parser.parse_args(arguments)


@tool("make_split")
def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    source = named_source(args.source)
    check_output(args.out)
    if args.root is None:
        root = source_root(source.key)
    else:
        root = existing_root(args.root) / source.folder
    report = make_report(source.key, root, args.on_error)
    if args.folds is None:
        files = {args.out: split_ids(source.key, root=root, report=report)}
    else:
        folds = fold_ids(source.key, args.folds, root=root, report=report)
        files = {
            args.out.with_name(f"{args.out.stem}_fold{number}{args.out.suffix}"): splits
            for number, splits in enumerate(folds, 1)
        }
    for file, splits in files.items():
        write_split_file(file, source.key, splits)
        for name, ids in splits.items():
            print(f"{source.key} {name}: {len(ids)} images")
        print(f"wrote {file}")
    if report.skipped:
        print(report.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main())
