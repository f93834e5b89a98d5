#!/usr/bin/env python3
"""Train a config on a few images of its source, several draws of each, and score on the test split.

    python tools/few_shot.py --config-file configs/finetune/jsrt.yaml --images 24 12 6 3 \
      --draws 3 --out output/few_shot_jsrt MODEL.WEIGHTS output/pretrained/model_final.safetensors

The images of one draw are nested, patient by patient; each set is written as a split file. A call
that was interrupted is continued by the same call; what is finished is not repeated. The table
(mean and standard deviation over the draws) is in DIR/few_shot.md, .csv and .json.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import fx_d2  # noqa: F401 - quiets what Detectron2's imports warn about
from fx_d2.command_line import Parser, WrongUse, check_output, tool, whole
from fx_d2.engine.checks import check_config
from fx_d2.engine.few_shot import METRICS, run_all, runs_of, write_tables
from fx_d2.engine.setup import ConfigError, load_config
from fx_d2.engine.step import NonFiniteLoss


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="what to train; one source")
    add("--images", type=whole(1), nargs="+", default=[24, 12, 6, 3], metavar="N")
    add("--draws", type=whole(1), default=3, metavar="K", help="draws of each number of images")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of all runs")
    add("--metrics", nargs="+", default=list(METRICS), metavar="M", help="columns of the table")
    add(
        "--score-at",
        type=float,
        nargs="+",
        default=[],
        metavar="SHARE",
        help="score after these shares of the iterations too, such as 0.25",
    )
    add("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    # Overrides after --images or --metrics would be taken for their values.
    known, rest = parser.parse_known_args(divided(arguments))
    if rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    return known


def divided(arguments: Sequence[str] | None) -> list[str]:
    """``--`` in front of the first override, a word in capitals with a dot."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    first = next((i for i, w in enumerate(words) if _is_key(w)), len(words))
    return words if "--" in words else [*words[:first], "--", *words[first:]]


def _is_key(word: str) -> bool:
    head, dot, _ = word.partition(".")
    return word == "SEED" or bool(dot and head.isalpha() and head.isupper())


def log_to(file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s: %(message)s"))
    for name in ("fx_d2", "detectron2", "fvcore"):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(logging.INFO)


@tool("few_shot", resumable=True)
def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    check_output(args.out, folder=True)
    try:
        cfg = load_config(args.config_file, args.opts)
        check_config(cfg, train=True)
        log_to(args.out / "log.txt")
        runs = runs_of(args.images, args.draws)
        found = run_all(
            cfg, runs, args.out, lambda line: print(line, flush=True), score_at=args.score_at
        )
        print(write_tables(found, cfg, args.out, args.metrics))
    except (ConfigError, NonFiniteLoss) as exc:
        raise WrongUse(str(exc)) from exc
    print(f"in {args.out}: few_shot.md, few_shot.csv, few_shot.json; the log is log.txt")
    return 0


if __name__ == "__main__":
    sys.exit(main())
