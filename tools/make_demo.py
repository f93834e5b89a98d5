#!/usr/bin/env python3
"""Make a small world of eleven sources, pretrain on it by lock-release, and write a page about it.

    python tools/make_demo.py --out output/demo
    python tools/make_demo.py --out output/demo_short --minutes 5
    python tools/make_demo.py --out output/demo --pictures docs/images
    python tools/make_demo.py --out D --patients 40 SOLVER.BASE_LR 0.0002

Twelve minutes on two cores with the default config; the page is DIR/index.html. What is finished is
not repeated: an interrupted call is continued by the same call. Words at the end change the config.

Exit code: 0 done, 1 something failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.command_line import Parser, WrongUse, check_output, tool, whole
from fx_d2.engine.setup import ConfigError
from fx_d2.phantom.world import FULL_PATIENTS
from make_phantom import Bar

ROOT = Path(__file__).resolve().parents[1]
_CONFIG = ROOT / "configs/demo/foundation_x.yaml"


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of everything")
    add("--config-file", default=str(_CONFIG), metavar="FILE", help=f"default: {_CONFIG.name}")
    minutes = "how long it may take on two idle cores (default 12); scales the steps of a phase"
    add("--minutes", type=whole(3, 600), default=12, metavar="M", help=minutes)
    add(
        "--patients",
        type=whole(FULL_PATIENTS, 100_000),
        default=150,
        metavar="N",
        help="per source",
    )
    add("--size", type=whole(64, 4096), default=192, metavar="PX", help="detail of the films")
    add("--seed", type=whole(0), default=1, metavar="S", help="of the world")
    cores = min(4, os.cpu_count() or 1)
    add("--workers", type=whole(1), default=cores, metavar="N", help=f"processes (default {cores})")
    add("--films", type=whole(0, 100), default=10, metavar="N", help="on the page (default 10)")
    add("--pictures", type=Path, metavar="DIR", help="also write its pictures there, demo_*.png")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    return parser


@tool("make_demo", resumable=True)
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    check_output(args.out, folder=True)
    if args.pictures:
        check_output(args.pictures, folder=True)
    # Here, not above: the processes that draw films import this file too.
    from fx_d2.report.demo import PAGE, Choices, Demo, verdict

    choices = Choices(
        out=args.out,
        config_file=args.config_file,
        overrides=tuple(args.opts),
        patients=args.patients,
        size_px=args.size,
        seed=args.seed,
        minutes=args.minutes,
        workers=args.workers,
        films=args.films,
    )
    trainer = Path(__file__).with_name("train_net.py")
    try:
        bar = Bar if sys.stderr.isatty() else None  # a log is told in lines
        demo = Demo(choices, trainer, bar, lambda line: print(line, flush=True))
        report = demo.go(args.pictures)
    except ConfigError as exc:
        raise WrongUse(str(exc)) from exc
    for line in verdict(report):
        print(line)
    print(f"look at {args.out / PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
