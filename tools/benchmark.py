#!/usr/bin/env python3
"""Measure what fx_d2 does with the machine it runs on.

    python tools/benchmark.py data --root output/world    # images/s per source, direct and cached
    python tools/benchmark.py model                       # steps, memory, prediction, evaluation
    python tools/benchmark.py explain                     # images/s of Integrated Gradients
    python tools/benchmark.py mix --root output/world     # what pasting lesions costs

Figures are medians of several alternating rounds; the ratio of two columns of one run says more
than a column does on a busy machine.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import torch

from fx_d2.benchmark.data import as_table, measure_reading
from fx_d2.benchmark.explain import ExplainPlan, measure_explain
from fx_d2.benchmark.lesion_mix import MixPlan, about_mix, measure_mix
from fx_d2.benchmark.model import (
    CLOCKS,
    SECTIONS,
    Plan,
    about,
    default_sections,
    run_sections,
)
from fx_d2.benchmark.report import about_line, machine, write_report
from fx_d2.benchmark.setting import Setting
from fx_d2.command_line import Parser, WrongUse, check_output, existing_root, tool, whole
from fx_d2.data.atomic import write_atomically
from fx_d2.engine.setup import ConfigError

_CONFIGS = Path(__file__).resolve().parents[1] / "configs"
_CONFIG = "foundation_x/swin_t_11src_x.yaml"
_MIX_CONFIG = "fpsm/cxr_lt_dadam.yaml"
_QUICK_CONFIG = "quick_schedules/foundation_x_instant_test.yaml"
# What --quick stands for where an option is not given, and what stands there without it.
_SIZES = {
    "config_file": (str(_CONFIGS / _QUICK_CONFIG), str(_CONFIGS / _CONFIG)),
    "size": (64, 224),
    "batch": (2, 4),
    "repeats": (2, 5),
    "images": (20, 2000),
    "detections": (200, 40_000),
    "original": (128, 2048),
    "matmul": (256, 2048),
    "steps": (3, 50),
    "points": (8, 32),
}


def _add_root(command: argparse.ArgumentParser) -> None:
    command.add_argument("--root", type=Path, help="datasets root; default: $DETECTRON2_DATASETS")


def _add_sizes(command: argparse.ArgumentParser, **sizes: str) -> None:
    """Options that --quick has other defaults for."""
    for name, what in sizes.items():
        quick, usual = _SIZES[name]
        told = f"{what} (default {usual}, with --quick {quick})"
        command.add_argument(f"--{name}", type=whole(1), metavar="N", help=told)


def _add_model_of(command: argparse.ArgumentParser) -> None:
    command.add_argument("--config-file", metavar="FILE", help=f"default configs/{_CONFIG}")
    command.add_argument("--threads", type=whole(0), default=0, metavar="N", help="0 leaves them")
    command.add_argument("--seed", type=whole(0), default=0, metavar="N", help="default 0")


def _add_clock(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="cpu: processor time, for a CPU that others use too (default wall)",
    )


def _add_output(command: argparse.ArgumentParser) -> None:
    """Where the figures go, and the overrides, which stand last."""
    command.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there too")
    command.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    command.add_argument("--quiet", action="store_true", help="no progress bar")
    command.add_argument(
        "--opts",
        nargs=argparse.REMAINDER,
        default=[],
        metavar="KEY VALUE",
        help="overrides of the config; stands last",
    )


def _add_data(commands: argparse._SubParsersAction) -> None:
    positive = whole(1)
    data = commands.add_parser("data", help="images/s and peak memory, direct and cached")
    _add_root(data)
    data.add_argument("--source", nargs="+", metavar="S", help="default: all that are there")
    data.add_argument("--num", type=positive, default=24, help="images per source (default 24)")
    data.add_argument("--size", type=positive, default=512, help="network size in px (default 512)")
    data.add_argument("--rounds", type=positive, default=3, help="alternating rounds (default 3)")
    data.add_argument("--no-large", action="store_true", help="leave the 2,500-px DICOM out")
    data.add_argument("--markdown", type=Path, metavar="FILE", help="write the table there too")
    data.add_argument("--quiet", action="store_true", help="no progress bar")
    data.set_defaults(run=_data)


def _add_model(commands: argparse._SubParsersAction) -> None:
    model = commands.add_parser("model", help="training step, memory, prediction, evaluation")
    _add_model_of(model)
    _add_sizes(
        model,
        size="side of the images in px",
        batch="images of a training step",
        repeats="timed rounds",
        images="images of the evaluation",
        detections="detections of the evaluation",
        original="side in px of the image that predictions are mapped back to",
        matmul="side of the matrices whose product stands for the machine's peak",
    )
    model.add_argument(
        "--only",
        nargs="+",
        choices=list(SECTIONS),
        metavar="SECTION",
        help=f"of {', '.join(SECTIONS)}; by default all, throughput on a GPU only",
    )
    model.add_argument("--weights", default="", metavar="W", help="predict with this checkpoint")
    model.add_argument("--compile", action="store_true", help="throughput: a compiled trunk too")
    model.add_argument(
        "--quick", action="store_true", help="does it run? a tiny model in seconds, without memory"
    )
    _add_clock(model)
    _add_output(model)
    model.set_defaults(run=_model)


def _add_explain(commands: argparse._SubParsersAction) -> None:
    explain = commands.add_parser("explain", help="Integrated Gradients, batched and one by one")
    _add_model_of(explain)
    _add_sizes(
        explain,
        size="side of the images in px",
        batch="images",
        repeats="timed rounds",
        steps="steps of the path",
        points="points of the path in a forward pass",
    )
    explain.add_argument("--classes", type=whole(1), default=2, metavar="N", help="default 2")
    explain.add_argument("--quick", action="store_true", help="does it run? a tiny model")
    _add_clock(explain)
    _add_output(explain)
    explain.set_defaults(run=_explain)


def _add_mix(commands: argparse._SubParsersAction) -> None:
    positive = whole(1)
    mix = commands.add_parser("mix", help="the mapper with pasted lesions, and the written form")
    _add_root(mix)
    mix.add_argument(
        "--config-file",
        default=str(_CONFIGS / _MIX_CONFIG),
        metavar="FILE",
        help=f"default configs/{_MIX_CONFIG}",
    )
    mix.add_argument("--num", type=positive, default=100, help="base images (default 100)")
    mix.add_argument("--size", type=positive, default=512, help="network size in px (default 512)")
    mix.add_argument("--rounds", type=positive, default=7, help="in turns (default 7)")
    mix.add_argument("--workers", type=positive, default=1, help="that write (default 1)")
    _add_clock(mix)
    _add_output(mix)
    mix.set_defaults(run=_mix)


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Arguments of the command line."""
    parser = Parser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    _add_data(commands)
    _add_model(commands)
    _add_explain(commands)
    _add_mix(commands)
    return parser.parse_args(argv)


def _data(args: argparse.Namespace) -> int:
    if args.markdown:
        check_output(args.markdown)
    cv2.setNumThreads(1)  # images/s per core, as a loader worker has it
    rows = measure_reading(
        args.root,
        args.source or (),
        num=args.num,
        size_px=args.size,
        rounds=args.rounds,
        large=not args.no_large,
        quiet=args.quiet,
    )
    if not rows:
        return 1  # nothing to measure, as was said
    if args.markdown:
        write_atomically(args.markdown, as_table(rows, args.size, "github") + "\n")
    print(machine())
    print(as_table(rows, args.size, "simple"))
    return 0


def _setting(args: argparse.Namespace) -> Setting:
    """The model of the command line; options that are not given get their defaults."""
    for name, (quick, usual) in _SIZES.items():
        if getattr(args, name, usual) is None:
            setattr(args, name, quick if args.quick else usual)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if args.clock == "cpu" and device != "cpu":
        raise WrongUse("--clock cpu does not see what a GPU does; leave it out here")
    return Setting(
        config_file=args.config_file,
        overrides=tuple(args.opts),
        size_px=args.size,
        batch=args.batch,
        seed=args.seed,
        device=device,
        threads=args.threads,
    )


def _plan(args: argparse.Namespace) -> Plan:
    setting = _setting(args)
    return Plan(
        setting=setting,
        repeats=args.repeats,
        clock=args.clock,
        weights=args.weights,
        original_px=args.original,
        images=args.images,
        detections=args.detections,
        matmul_side=args.matmul,
        compiled=args.compile,
        quiet=args.quiet,
    )


def _model(args: argparse.Namespace) -> int:
    for file in filter(None, (args.markdown, args.json)):
        check_output(file)
    plan = _plan(args)
    names = args.only or [
        name
        for name in default_sections(plan.setting.device)
        if not (args.quick and name == "memory")  # a process per variant takes its time to start
    ]
    try:
        tables = run_sections(plan, list(dict.fromkeys(names)))
    except ConfigError as exc:
        raise WrongUse(str(exc)) from exc
    facts = about(plan)
    print(about_line(facts))
    for table in tables.values():
        print(f"\n{table.text()}")
    write_report(facts, tables, markdown=args.markdown, json_file=args.json)
    return 0


def _explain(args: argparse.Namespace) -> int:
    for file in filter(None, (args.markdown, args.json)):
        check_output(file)
    setting = _setting(args)
    if setting.threads:
        torch.set_num_threads(setting.threads)
    plan = ExplainPlan(setting, args.steps, args.classes, args.points, args.repeats)
    try:
        table = measure_explain(plan, clock=CLOCKS[args.clock], quiet=args.quiet)
    except ConfigError as exc:
        raise WrongUse(str(exc)) from exc
    facts = about(Plan(setting=setting, repeats=args.repeats, clock=args.clock))
    print(f"{about_line(facts)}\n\n{table.text()}")
    write_report(facts, {"explain": table}, markdown=args.markdown, json_file=args.json)
    return 0


def _mix(args: argparse.Namespace) -> int:
    for file in filter(None, (args.markdown, args.json)):
        check_output(file)
    cv2.setNumThreads(1)  # as a loader worker has it
    plan = MixPlan(
        config_file=args.config_file,
        root=existing_root(args.root).resolve() if args.root else None,
        size_px=args.size,
        num=args.num,
        rounds=args.rounds,
        workers=args.workers,
        overrides=tuple(args.opts),
    )
    try:
        tables = measure_mix(plan, clock=CLOCKS[args.clock], quiet=args.quiet)
    except ConfigError as exc:
        raise WrongUse(str(exc)) from exc
    facts = about_mix(plan, args.clock)
    print(about_line(facts))
    for table in tables.values():
        print(f"\n{table.text()}")
    write_report(facts, tables, markdown=args.markdown, json_file=args.json)
    return 0


@tool("benchmark")
def main(argv: Sequence[str] | None = None) -> int:
    """Run a benchmark; exit code 1 where data is missing or bad."""
    args = parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
