#!/usr/bin/env python3
"""Decode the images of a source once and keep them small, for fast training.

    python tools/cache_images.py --source vindr_cxr --out cache --size 512 --workers 4
    python tools/train_net.py ... INPUT.FX.CACHE cache

A killed run continues where it stopped; a second run renews only the images whose files changed.
Sources that lie in one folder share a cache. Exit code: 0 done, 1 some images could not be read
(they are listed), 2 wrong use.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.data.cache_build import build_cache
from fx_d2.data.catalog import configure, load_records, source_root
from fx_d2.data.errors import DataError
from fx_d2.data.sources import get_source

_SHOWN = 10


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--source", required=True, metavar="S", help="source, for example vindr_cxr")
    add("--split", nargs="+", metavar="SPLIT", help="splits; default: all of the source")
    add("--root", type=Path, metavar="DIR", help="datasets root; default: $DETECTRON2_DATASETS")
    add("--out", type=Path, required=True, metavar="DIR", help="where the caches are kept")
    add("--size", type=int, required=True, metavar="PX", help="scale the chosen side down to PX")
    add("--side", choices=("short", "long"), default="short", help="which side; default: short")
    add("--voi", choices=("auto", "ignore"), default="auto", help="as INPUT.FX.INTENSITY.VOI")
    add("--workers", type=int, default=1, metavar="N", help="processes that decode; default: 1")
    return parser


def _file_names(key: str, splits: Sequence[str]) -> list[str]:
    names: dict[str, None] = {}
    for split in splits:
        for record in load_records(key, split):
            names[record["file_name"]] = None
    return list(names)


def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    try:
        source = get_source(args.source)
        splits = args.split or list(source.splits)
        if args.root is not None:
            configure({source.key: str(args.root / source.folder)})
        report = build_cache(
            _file_names(source.key, splits),
            args.out / source.folder,
            args.size,
            side=args.side,
            voi=args.voi,
            root=source_root(source.key),
            workers=args.workers,
        )
    except DataError as exc:
        print(exc, file=sys.stderr)
        return 1
    except (KeyError, ValueError) as exc:
        print(exc.args[0], file=sys.stderr)
        return 2
    print(f"{args.out / source.folder}: {report.summary()}")
    for error in report.failed[:_SHOWN]:
        print(error, file=sys.stderr)
    if len(report.failed) > _SHOWN:
        print(f"... and {len(report.failed) - _SHOWN} more", file=sys.stderr)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
