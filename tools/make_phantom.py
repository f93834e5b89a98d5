"""Write a synthetic world: every source in its vendor's layout, with the truth of each image.

    python tools/make_phantom.py --out datasets/phantom --patients 8 --seed 1 --size 256

The same seed, patients and size give the same bytes, whatever sources and workers are chosen. An
interrupted run is completed by calling it again; --force replaces what is there.

Sizes. Images of sources whose size varies (CheXpert, MIMIC-CXR-JPG, VinDr-CXR, Shenzhen,
Montgomery, VinDr-RibCXR, MURA, covid19_seg) get about --size pixels along their shorter side.
Where the provider fixes the frame (1024 for NIH, RSNA, SIIM-ACR, CANDID-PTX, ChestX-Det and NODE21,
2048 for JSRT, 512 for TBX11K, 299 and 256 for the COVID-19 sets) the frame stays, because run
lengths and boxes refer to it, and --size is the detail it is drawn with before it is enlarged.
Without --size everything is native: some 7 seconds and 36 MB per patient over all sources.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fx_d2.command_line import Parser, WrongUse, named_source, tool, whole
from fx_d2.phantom.world import FULL_PATIENTS, WorldError, make_world, read_mark
from fx_d2.phantom.writers import writers_of

_MAX_PATIENTS = 1_000_000
_MAX_PX = 4096  # beyond any detector that is modelled


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="new or empty folder, or a world")
    parser.add_argument(
        "--patients",
        type=whole(1, _MAX_PATIENTS),
        required=True,
        help=f"per source; from {FULL_PATIENTS} on every split has images",
    )
    parser.add_argument("--seed", type=whole(0), required=True, help="same seed, same bytes")
    parser.add_argument(
        "--sources", default=None, help="keys, comma-separated; all by default. Sources that share "
        "files (VinDr-CXR and CheXmask, MIMIC-CXR and CXR-LT) come together",
    )  # fmt: skip
    parser.add_argument(
        "--size", type=whole(1, _MAX_PX), default=None, metavar="PX", help="see above"
    )
    parser.add_argument("--workers", type=whole(1), default=1, help="processes (default 1)")
    parser.add_argument(
        "--force", action="store_true", help="replace a world of other parameters, rewrite sources"
    )
    return parser.parse_args(argv)


class Bar:
    """One bar over the patients of all families; not shown before there is something to do."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._bar: tqdm | None = None

    def __call__(self, patients: Iterable[Any], family: str, total: int) -> Iterator[Any]:
        if self._bar is None:
            self._bar = tqdm(total=self._total, unit=" patients", file=sys.stderr)
        self._bar.set_description(family)
        for patient in patients:
            yield patient
            self._bar.update()

    def close(self) -> None:
        """End the line of the bar."""
        if self._bar is not None:
            self._bar.close()


def megabytes(root: Path) -> float:
    return sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 1e6


def run(args: argparse.Namespace) -> int:
    sources = None
    if args.sources is not None:
        sources = [key.strip() for key in args.sources.split(",") if key.strip()]
        if not sources:
            raise WrongUse("--sources names no source")
        for key in sources:
            named_source(key)
    began = time.monotonic()
    bar = Bar(args.patients * len(writers_of(sources)))
    try:
        written = make_world(
            args.out,
            patients=args.patients,
            seed=args.seed,
            sources=sources,
            size_px=args.size,
            workers=args.workers,
            force=args.force,
            progress=bar,
        )
    finally:
        bar.close()
    mark = read_mark(args.out) or {}
    seconds = time.monotonic() - began
    print(f"wrote {', '.join(written) or 'nothing: all of it was there'} in {seconds:.1f} s")
    print(f"the world holds {len(mark.get('sources', ()))} sources in {megabytes(args.out):.0f} MB")
    if args.patients < FULL_PATIENTS:
        print(f"with fewer than {FULL_PATIENTS} patients some validation splits are empty")
    print(f"use it:  export DETECTRON2_DATASETS={shlex.quote(str(args.out.resolve()))}")
    return 0


@tool("make_phantom", resumable=True)
def main(argv: Sequence[str] | None = None) -> int:
    args = parse(argv)
    try:
        return run(args)
    except WorldError as exc:
        raise WrongUse(str(exc)) from exc


if __name__ == "__main__":
    sys.exit(main())
