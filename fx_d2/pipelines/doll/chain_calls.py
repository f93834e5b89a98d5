"""How a chain works: its trainings, and the other tools, each in a process of its own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from fx_d2.data.errors import DataError
from fx_d2.engine.study_folder import check_folders, last_line, locked
from fx_d2.engine.study_plan import Job
from fx_d2.engine.study_runs import Runner
from fx_d2.engine.tool_calls import call_tool


@dataclass(frozen=True)
class Calls:
    """Calls tools for a chain.

    Args:
        out: folder of everything.
        tools: folder of the tools.
        world: where the datasets lie; None is where the environment says.
        at_once: trainings, or processes of one tool.
        finished: called after every training that succeeds.
    """

    out: Path
    tools: Path
    world: Path | None
    at_once: int
    finished: Callable[[], None]

    def train(self, jobs: Sequence[Job]) -> None:
        """Do what is not done of them; one that fails is an error when all others are done."""
        check_folders(jobs)
        runner = Runner(self.out, self.tools, self.world, self.at_once, self.finished)
        for name, line in runner.run(jobs).failed.items():
            raise DataError(
                f"{name} failed: {line}", fix=f"see its log in {self.out}, then call again"
            )

    def tool(self, words: Sequence[object], what: str) -> None:
        """A tool that is no training; it goes on by itself where it was interrupted."""
        tool, *rest = (str(word) for word in words)
        log = self.out / "logs" / f"{tool.removesuffix('.py')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        command = [sys.executable, str(self.tools / tool), *rest]
        bar = tqdm(desc=what, bar_format="{desc} [{elapsed}]", disable=not sys.stderr.isatty())

        def show() -> None:
            bar.set_description_str(f"{what}: {last_line(log)[:100]}")

        with bar, locked(self.out) as lock:
            code = call_tool(command, log, environment, lock, show)
        if code:
            raise DataError(f"{tool} ended with {code}: {last_line(log)}", file=log)
