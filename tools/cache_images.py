#!/usr/bin/env python3
"""Decode the images of a source once and keep them small, for fast training.

    python tools/cache_images.py --source vindr_cxr --out cache --size 512 --workers 4
    python tools/train_net.py ... INPUT.FX.CACHE cache

A killed run continues where it stopped; a second run renews only the images whose files changed.
Sources that lie in one folder share a cache. Exit code: 0 done, 1 some images could not be read
(they are listed), 2 wrong use.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.command_line import (
    Parser,
    WrongUse,
    check_output,
    existing_root,
    named_source,
    tool,
    whole,
)
from fx_d2.data.cache_build import build_cache
from fx_d2.data.catalog import configure, load_records, source_root

_SHOWN = 10
_MAX_PX = 65_500  # longer sides are no radiograph, and no format the cache reads has them


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    size, workers = whole(1, _MAX_PX), whole(0)
    add("--source", required=True, metavar="S", help="source, for example vindr_cxr")
    add("--split", nargs="+", metavar="SPLIT", help="splits; default: all of the source")
    add("--root", type=Path, metavar="DIR", help="datasets root; default: $DETECTRON2_DATASETS")
    add("--out", type=Path, required=True, metavar="DIR", help="where the caches are kept")
    add("--size", type=size, required=True, metavar="PX", help="scale the chosen side down to PX")
    add("--side", choices=("short", "long"), default="short", help="which side; default: short")
    add("--voi", choices=("auto", "ignore"), default="auto", help="as INPUT.FX.INTENSITY.VOI")
    add("--workers", type=workers, default=1, metavar="N", help="processes that decode; default: 1")
    return parser


def _file_names(key: str, splits: Sequence[str]) -> list[str]:
    names: dict[str, None] = {}
    for split in splits:
        for record in load_records(key, split):
            names[record["file_name"]] = None
    return list(names)


@tool("cache_images", resumable=True)
def main(arguments: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(arguments)
    source = named_source(args.source)
    splits = args.split or list(source.splits)
    for split in splits:
        if split not in source.splits:
            raise WrongUse(f"{source.key} has no split {split!r}; it has {list(source.splits)}")
    if args.root is not None:
        configure({source.key: str(existing_root(args.root) / source.folder)})
    folder = args.out / source.folder
    check_output(folder, folder=True)
    report = build_cache(
        _file_names(source.key, splits),
        folder,
        args.size,
        side=args.side,
        voi=args.voi,
        root=source_root(source.key),
        workers=args.workers,
    )
    print(f"{folder}: {report.summary()}")
    for error in report.failed[:_SHOWN]:
        print(error, file=sys.stderr)
    if len(report.failed) > _SHOWN:
        print(f"... and {len(report.failed) - _SHOWN} more", file=sys.stderr)
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
