#!/usr/bin/env python3
"""Take the teacher (or the student) out of a checkpoint, as weights of a plain FoundationX.

    python tools/export_weights.py run --out teacher.safetensors
    python tools/export_weights.py run/model_best.safetensors --part student --out s.safetensors

The new file has its .json beside it: tools/predict.py, --eval-only and MODEL.WEIGHTS take it like
any other. Nothing is overwritten. Exit code: 0 done, 1 the checkpoint is not as it should be, 2
wrong use.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.command_line import Parser, check_output, tool
from fx_d2.engine.export import export_plain
from fx_d2.modeling.meta_arch.student_teacher import ANSWERS


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("weights", metavar="W", help="a .safetensors file, or a run's folder")
    add("--part", choices=ANSWERS[::-1], default="teacher", help="which model (default: teacher)")
    add("--out", type=Path, required=True, metavar="FILE", help="NAME.safetensors, not there yet")
    return parser


@tool("export_weights")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    check_output(args.out)
    print(f"the {args.part} is in {export_plain(args.weights, args.out, args.part)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
