#!/usr/bin/env python3
"""DoLL from classifiers to adapted segmentation, stage by stage.

    python tools/run_doll.py --chain configs/doll/chain_phantom.yaml --out output/doll --list
    python tools/run_doll.py --chain configs/doll/chain_phantom.yaml --out output/doll --jobs 2
    python tools/run_doll.py --chain FILE --out DIR --until explain
    python tools/run_doll.py --chain FILE --from output/doll --out DIR   # a chain of targets alone

classify -> explain -> pretrain -> choose -> adapt, after a synthetic world where the file asks for
one. Each training, and each other tool, is a process of its own. A call that was interrupted is
continued by the same call: finished stages and trainings are not repeated, others are resumed. The
summary is DIR/summary.md and .json, renewed after every training. Exit code: 0 done, 1 a stage
failed, 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tabulate import tabulate

import fx_d2
from fx_d2.benchmark.report import machine
from fx_d2.command_line import Parser, WrongUse, check_output, tool, whole
from fx_d2.data.errors import did_you_mean
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.study_folder import locked
from fx_d2.engine.study_plan import datasets_below
from fx_d2.engine.tool_calls import terminated_like_interrupted
from fx_d2.pipelines.doll.chain import Chain, read_chain
from fx_d2.pipelines.doll.chain_report import NAME, write_summary
from fx_d2.pipelines.doll.chain_stages import ChainRun
from fx_d2.pipelines.doll.chain_targets import AdaptRun
from fx_d2.report.stages import Stage, duration, run_stages, seconds_of, states_of

STATE = "stages.json"


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description=(__doc__ or "").split("\n", 1)[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--chain", required=True, metavar="FILE", help="YAML, see docs/systems/doll.md")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of everything")
    add(
        "--from",
        dest="start",
        type=Path,
        metavar="DIR",
        help="folder of another chain, whose pre-trained networks are adapted",
    )
    add("--jobs", type=whole(1), default=1, metavar="N", help="processes at once (default 1)")
    add("--until", default="", metavar="STAGE", help="stop after this stage")
    add("--list", action="store_true", help="show the stages and what is done; run nothing")
    return parser.parse_args(arguments)


def chosen(stages: Sequence[Stage], until: str) -> list[Stage]:
    """The stages up to one."""
    names = [stage.name for stage in stages]
    if until and until not in names:
        raise WrongUse(
            f"--until {until!r} is no stage of this chain.{did_you_mean(until, names)} "
            f"Stages: {', '.join(names)}"
        )
    return list(stages[: names.index(until) + 1] if until else stages)


def _listed(stages: Sequence[Stage], state_file: Path) -> str:
    states, spent = states_of(stages, state_file), seconds_of(state_file)
    rows = [
        [s.name, states[s.name], duration(spent[s.name]) if s.name in spent else "-", s.words]
        for s in stages
    ]
    return tabulate(rows, ["stage", "state", "took", "what"], disable_numparse=True)


def _about(args: argparse.Namespace) -> dict[str, str]:
    words = ["tools/run_doll.py", "--chain", args.chain]
    words += ["--from", args.start] if args.start else []
    words += ["--out", args.out, "--jobs", args.jobs]
    return {
        "chain": f"`{args.chain}`, fx_d2 {fx_d2.__version__}",
        "command": f"`{' '.join(map(str, words))}`",
        "machine": f"{machine()}, {args.jobs} at once, "
        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'shared out')}",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }


def made_of(
    chain: Chain, args: argparse.Namespace, finished: Callable[[], Any]
) -> ChainRun | AdaptRun:
    """The whole chain, or its end with the networks of another one."""
    tools = Path(__file__).resolve().parent
    if chain.pretrain is not None:
        if args.start is not None:
            raise WrongUse(f"--from has no use: {args.chain} pre-trains networks of its own")
        return ChainRun(chain, args.out, tools, args.jobs, finished)
    if args.start is None:
        raise WrongUse(
            f"{args.chain} has targets and no pre-training; name the folder of a chain that has "
            "it: --from DIR"
        )
    if not args.start.is_dir():
        raise WrongUse(f"--from {args.start} is no folder")
    return AdaptRun(chain, args.start, args.out, tools, args.jobs, finished)


def run(args: argparse.Namespace) -> int:
    chain = read_chain(args.chain)
    check_output(args.out, folder=True)
    state_file = args.out.expanduser().absolute() / STATE

    def report() -> str:
        with datasets_below(made.world):
            return write_summary(made, _about(args), seconds_of(state_file))

    made = made_of(chain, args, report)
    with terminated_like_interrupted(), datasets_below(made.world):
        stages = made.stages()
        todo = chosen(stages, args.until)
        if args.list:
            print(_listed(stages, state_file))
            return 0
        with locked(made.out):  # another call at work there is told before anything is noted
            pass
        run_stages(todo, state_file, lambda line: print(line, flush=True))
    print(report())
    print(f"in {args.out}: {NAME}.md, {NAME}.json")
    return 0


@tool("run_doll", resumable=True)
def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    logging.getLogger("fx_d2").setLevel(logging.WARNING)
    try:
        return run(args)
    except ConfigError as exc:
        raise WrongUse(str(exc)) from exc


if __name__ == "__main__":
    sys.exit(main())
