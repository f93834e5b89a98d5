#!/usr/bin/env python3
"""Find out whether a classifier needs the lungs, or can tell the classes without them.

    python tools/shortcut_test.py --weights output/hybrid/classifier \\
        --dataset covid_radiography_3_test --out output/shortcut
    python tools/run_study.py --study configs/studies/hybrid_shortcut.yaml --out output/parts
    python tools/shortcut_test.py --trained output/parts/*/seed1 \\
        --dataset covid_radiography_3_test --out output/shortcut

--weights shows one model the whole images, the lungs, all but the lungs, and all but the box around
them. --trained compares models that were trained on each of these, every one on its own kind of
input. Both together make one report: OUT/shortcut.md for people, OUT/shortcut.json for programs. It
says in words when the figure without lungs is high. Overrides such as INPUT.FX.LUNGS.SOURCE MASKS
or DATASETS.ON_ERROR skip follow as KEY VALUE.

Exit code: 0 done, whatever was found; 1 something could not be read; 2 wrong use.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.command_line import Parser, WrongUse, check_output, tool
from fx_d2.engine.checkpoint import CheckpointError
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.shortcut import SHOWN, Row, evaluate_parts
from fx_d2.engine.shortcut_report import ONE_EACH, ONE_MODEL, page, write_report


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.5 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an AUC above 0.5 and up to 1")
    return value


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--weights", metavar="W", help="a model: a .safetensors file, or a run's folder")
    add("--trained", nargs="+", default=[], metavar="W", help="models trained on each kind")
    add("--dataset", required=True, metavar="NAME", help="such as covid_radiography_3_test")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    add("--high", type=_share, default=0.75, metavar="AUC", help="high from here on (default 0.75)")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the configs")
    return parser


def _readings(args: argparse.Namespace, options: Sequence[str]) -> dict[str, list[Row]]:
    readings: dict[str, list[Row]] = {}
    if args.weights:
        found = evaluate_parts(args.weights, args.dataset, options=options)
        readings[ONE_MODEL] = [_told(row) for row in found]
    for weights in args.trained:
        found = evaluate_parts(weights, args.dataset, modes=("own",), options=options)
        readings.setdefault(ONE_EACH, []).extend(_told(row) for row in found)
    return readings


def _told(row: Row) -> Row:
    print(f"{row.weights}, {SHOWN[row.shown]}: AUC {row.auc[0]:.3f}", file=sys.stderr)
    return row


@tool("shortcut_test")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if not (args.weights or args.trained):
        raise WrongUse("name a model with --weights, or models trained on each kind with --trained")
    check_output(args.out, folder=True)
    try:
        readings = _readings(args, args.opts)
    except (CheckpointError, ConfigError) as exc:
        raise WrongUse(str(exc)) from exc
    written = write_report(readings, args.dataset, args.high, args.out)
    print(page(readings, args.dataset, args.high))
    print("written:", *written)
    return 0


if __name__ == "__main__":
    sys.exit(main())
