#!/usr/bin/env python3
"""Run a study: several trainings that are compared, over some seeds, with one report.

    python tools/run_study.py --study configs/studies/foundation_x_phantom.yaml --out output/study
    python tools/run_study.py --study FILE --out DIR --list            # what it would do
    python tools/run_study.py --study FILE --out DIR --seeds 1 --only joint lock_release --jobs 2

A call that was interrupted is continued by the same call: finished runs are not repeated, others
are resumed. The report is DIR/study.md, .csv and .json, renewed after every run. Exit code: 0 done,
1 a run failed (the others were done), 2 wrong use, 130 interrupted.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

import fx_d2
from fx_d2.benchmark.report import machine
from fx_d2.command_line import FAILED, Parser, WrongUse, check_output, tool, whole
from fx_d2.data.errors import DataError
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.study import Study, read_study
from fx_d2.engine.study_folder import DONE, check_folders, state_of
from fx_d2.engine.study_plan import Job, datasets_below, plan, world_of
from fx_d2.engine.study_prepare import prepare_data
from fx_d2.engine.study_report import gather, write_report
from fx_d2.engine.study_runs import Outcome, Runner, make_data


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description=(__doc__ or "").split("\n", 1)[0],
        epilog=(__doc__ or "").partition("\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--study", required=True, metavar="FILE", help="YAML, see docs/studies.md")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of world, runs and report")
    add("--jobs", type=whole(1), default=1, metavar="N", help="runs at once (default 1)")
    add("--seeds", type=whole(0), nargs="+", metavar="S", help="in place of those of the study")
    add("--only", nargs="+", metavar="ARM", help="these arms")
    add("--list", action="store_true", help="show the runs and what is done of them; run nothing")
    return parser.parse_args(arguments)


def _shown(jobs: Sequence[Job]) -> str:
    rows = [
        [job.name, "?" if job.steps is None else f"{job.steps:,}", state_of(job), job.folder]
        for job in jobs
    ]
    align = ("left", "right", "left", "left")
    return tabulate(
        rows, ["run", "steps", "state", "folder"], disable_numparse=True, colalign=align
    )


def _listed(study: Study, out: Path, world: Path | None) -> list[Job]:
    """The runs, with their steps where the data are there already."""
    try:
        with datasets_below(world):
            return plan(study, out)
    except DataError as exc:
        why = "the world is not made yet" if world else str(exc)
        print(f"run_study: steps are not known: {why}", file=sys.stderr)
        return plan(study, out, count=False)


def _about(args: argparse.Namespace) -> dict[str, str]:
    words = ["tools/run_study.py", "--study", args.study, "--out", args.out, "--jobs", args.jobs]
    words += ["--seeds", *args.seeds] if args.seeds else []
    return {
        "study": f"`{args.study}`, fx_d2 {fx_d2.__version__}",
        "command": f"`{' '.join(map(str, words))}`",
        "machine": f"{machine()}, {args.jobs} at once, "
        f"OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'shared out')}",
    }


def run(args: argparse.Namespace) -> int:
    study = read_study(args.study)
    study = study.with_seeds(args.seeds) if args.seeds else study
    arms = [study.arm(name).name for name in args.only or [arm.name for arm in study.arms]]
    check_output(args.out, folder=True)
    out = args.out.expanduser().absolute()
    world = world_of(out) if study.world is not None else None
    if args.list:
        print(_shown([job for job in _listed(study, out, world) if job.arm in arms]))
        return 0
    sketch = plan(study, out, count=False)  # what is wrong with it shows before data are made
    make_data(study, sketch, out, args.jobs)
    prepare_data(study, out, Path(__file__).resolve().parent)
    with datasets_below(world):
        jobs = plan(study, out)
    mine = [job for job in jobs if job.arm in arms]
    check_folders(mine)

    def report() -> str:
        return write_report(gather(study, jobs), out, _about(args))

    outcome = Runner(out, Path(__file__).resolve().parent, world, args.jobs, report).run(mine)
    print(report())
    return _told(outcome, mine, out)


def _told(outcome: Outcome, jobs: Sequence[Job], out: Path) -> int:
    print(
        f"{len(outcome.done)} of {len(jobs)} runs done; in {out}: study.md, study.csv, study.json"
    )
    for name, line in outcome.failed.items():
        print(f"run_study: {name} failed: {line}", file=sys.stderr)
    for job in outcome.skipped:
        needed = ", ".join(other.name for other in job.after if state_of(other) != DONE)
        print(f"run_study: {job.name} waits for {needed}", file=sys.stderr)
    return FAILED if outcome.failed or outcome.skipped else 0


@tool("run_study", resumable=True)
def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    logging.getLogger("fx_d2").setLevel(logging.WARNING)
    try:
        return run(args)
    except ConfigError as exc:
        raise WrongUse(str(exc)) from exc


if __name__ == "__main__":
    sys.exit(main())
