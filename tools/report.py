#!/usr/bin/env python3
"""One page on a run of tools/train_net.py: results, curves, forgetting, predictions beside truth.

    python tools/report.py output/run
    python tools/report.py output/run --out page.html --films 12 --floor cls=0.75 loc=0.2
    python tools/report.py output/run --films 0 --pictures docs/images

The run may have a cycle or none, and may still go on. Films are those of DATASETS.TEST of its
config, below $DETECTRON2_DATASETS; the page shows patients then: keep it where the films are.

Exit code: 0 done, 1 something could not be read, 2 wrong use.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.command_line import Parser, WrongUse, check_output, tool, whole
from fx_d2.data.source import TASKS
from fx_d2.engine.setup import ConfigError
from fx_d2.report.of_run import CONFIG, DEFAULT_FILMS, report_of, write_page, write_pictures


def _floor(text: str) -> tuple[str, float]:
    task, _, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if task not in TASKS or not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r}: write task=figure from 0 to 1, cls=0.75")
    return task, value


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN_DIR", help="OUTPUT_DIR of a run")
    add("--out", type=Path, metavar="FILE", help="default: RUN_DIR/report.html")
    films = f"predicted films on the page; 0 is none (default {DEFAULT_FILMS})"
    add("--films", type=whole(0, 100), default=DEFAULT_FILMS, metavar="N", help=films)
    add(
        "--floor",
        type=_floor,
        nargs="+",
        default=[],
        metavar="TASK=X",
        help="what the mean of a task has to reach",
    )
    add(
        "--pictures",
        type=Path,
        metavar="DIR",
        help="also write the pictures there, as report_*.png",
    )
    return parser


@tool("report")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if not (args.run / CONFIG).is_file():
        raise WrongUse(f"{args.run} is no folder of a run: it has no {CONFIG}")
    out = args.out or args.run / "report.html"
    check_output(out)
    if args.pictures:
        check_output(args.pictures, folder=True)
    try:
        report = report_of(args.run, floors=dict(args.floor), films=args.films)
    except ConfigError as exc:
        raise WrongUse(str(exc)) from exc
    write_page(report, out)
    print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, {len(report.examples)} films")
    for note in report.notes:
        print(f"  {note}")
    if args.pictures:
        for path in write_pictures(report, args.pictures, "report_"):
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
