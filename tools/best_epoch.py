#!/usr/bin/env python3
"""Recommend the epoch of a pre-training whose weights transfer best to a small target.

    python tools/best_epoch.py --run output/doll_pretrain --config-file configs/doll/jsrt.yaml \
      --images 12 --draws 2 --out output/doll_best_epoch SOLVER.MAX_ITER 200

The run was trained with SOLVER.FX.KEEP_EPOCHS True. Each of its epochs is fine-tuned on the same
few images and scored on the validation split. A call that was interrupted is continued by the same
call. The table is in DIR/best_epoch.md and .json.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import fx_d2  # noqa: F401 - quiets what Detectron2's imports warn about
from few_shot import divided, log_to
from fx_d2.command_line import Parser, WrongUse, check_output, tool, whole
from fx_d2.engine.best_epoch import (
    SCRATCH,
    epochs_in,
    probe,
    recommended,
    scored,
    write_tables,
)
from fx_d2.engine.checks import check_config
from fx_d2.engine.few_shot import runs_of
from fx_d2.engine.setup import ConfigError, load_config
from fx_d2.engine.step import NonFiniteLoss


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--run", type=Path, required=True, metavar="DIR", help="output folder of the pre-training")
    add("--config-file", required=True, metavar="FILE", help="the probe: what to fine-tune")
    add("--images", type=whole(1), default=12, metavar="N", help="images of the probe")
    add("--draws", type=whole(1), default=2, metavar="K", help="draws of so many images")
    add("--scratch", action="store_true", help="random weights beside the epochs")
    add(
        "--metric", default="*/seg/mIoU", metavar="M", help="what is compared (default %(default)s)"
    )
    add("--out", type=Path, required=True, metavar="DIR", help="folder of all runs")
    add("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    known, rest = parser.parse_known_args(divided(arguments))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return known


@tool("best_epoch", resumable=True)
def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    check_output(args.out, folder=True)
    try:
        cfg = load_config(args.config_file, args.opts)
        check_config(cfg, train=True)
        files = epochs_in(args.run)
        log_to(args.out / "log.txt")
        starts = {SCRATCH: Path(), **files} if args.scratch else files
        runs = runs_of([args.images], args.draws)
        found = probe(cfg, starts, runs, args.out, lambda line: print(line, flush=True))
        epochs = scored(found, args.metric)
        print(write_tables(epochs, files, args.metric, args.out))
    except (ConfigError, NonFiniteLoss) as exc:
        raise WrongUse(str(exc)) from exc
    best = recommended(epochs).number
    print(f"recommended: epoch {best}, MODEL.WEIGHTS {files[best]}")
    print(f"in {args.out}: best_epoch.md, best_epoch.json; the log is log.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
