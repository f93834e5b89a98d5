"""Does the runs of a study: each in a process of its own, some at a time, none twice."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fx_d2.data.atomic import write_atomically
from fx_d2.data.cache_build import build_cache
from fx_d2.data.catalog import ROOT_VARIABLE, load_records, source_root
from fx_d2.data.sources import get_source
from fx_d2.phantom.world import WorldError, make_world

from .setup import ConfigError
from .study import Study
from .study_budget import without_idle_patterns
from .study_folder import DONE, LOG, last_line, locked, note, result_of, seconds_of, state_of
from .study_plan import (
    CONFIG_FILE,
    Job,
    as_file,
    cache_of,
    datasets_below,
    sources_of,
    world_of,
)
from .tool_calls import Process, end_tools, start_tool, terminated_like_interrupted
from .weights import CheckpointFiles

_POLL_S = 0.5


def make_data(study: Study, jobs: Sequence[Job], out: Path, workers: int) -> None:
    """The world of a study and the cache of its images, as far as they are not there."""
    if study.world is None:
        return
    facts, keys = study.world, sources_of(study, jobs)

    def shown(patients: Iterable[Any], family: str, total: int) -> Iterable[Any]:
        return tqdm(patients, f"world: {family}", total, unit=" patients")

    try:
        make_world(
            world_of(out),
            patients=facts.patients,
            seed=facts.seed,
            sources=keys,
            size_px=facts.size,
            workers=workers,
            progress=shown,
        )
    except WorldError as exc:
        raise ConfigError(f"{study.file}: world: {exc}") from exc
    if facts.cache:
        voi = {str(job.cfg.INPUT.FX.INTENSITY.VOI) for job in jobs}
        if len(voi) > 1:
            raise ConfigError(f"{study.file}: one cache cannot serve INTENSITY.VOI {sorted(voi)}")
        with datasets_below(world_of(out)):
            _cache(keys, out, facts.cache, voi.pop() if voi else "auto", workers)


def _cache(keys: Sequence[str], out: Path, size_px: int, voi: str, workers: int) -> None:
    files: dict[str, dict[str, None]] = {}
    roots: dict[str, Path] = {}
    for key in keys:
        source = get_source(key)
        roots[source.folder] = source_root(key)
        for split in source.splits:
            found = (record["file_name"] for record in load_records(key, split))
            files.setdefault(source.folder, {}).update(dict.fromkeys(found))
    for folder, names in files.items():
        report = build_cache(
            names,
            cache_of(out) / folder,
            size_px,
            voi=voi,
            root=roots[folder],
            workers=workers if workers > 1 else 0,
        )
        if report.failed:
            raise report.failed[0]


@dataclass
class _Running:
    job: Job
    process: Process
    slot: int
    began: float
    before: float  # seconds of earlier attempts


@dataclass
class Outcome:
    """What became of the runs.

    Args:
        done: finished now or before.
        failed: {run: last line of its log}.
        skipped: those that waited for a failed one.
    """

    done: list[Job] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: list[Job] = field(default_factory=list)


class Runner:
    """Runs jobs, at most so many at once.

    Args:
        out: folder of the study.
        tools: folder of ``train_net.py`` and ``few_shot.py``.
        world: where the datasets lie; None is where the environment says.
        at_once: processes.
        finished: called after every run that succeeds.
    """

    def __init__(
        self,
        out: Path,
        tools: Path,
        world: Path | None,
        at_once: int,
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        self._out, self._tools, self._world = out, tools, world
        self._at_once, self._finished = at_once, finished
        self._running: list[_Running] = []
        self._devices = _devices()

    def run(self, jobs: Sequence[Job]) -> Outcome:
        """Do what is not done; what an interrupt leaves is resumed by the next call."""
        outcome = Outcome()
        waiting = [job for job in jobs if state_of(job) != DONE]
        outcome.done = [job for job in jobs if job not in waiting]
        with locked(self._out) as lock, terminated_like_interrupted():
            bar = _Bar(waiting, len(jobs))
            try:
                while waiting or self._running:
                    self._start(waiting, outcome, bar, lock)
                    self._collect(outcome, bar)
                    bar.show(self._running)
                    time.sleep(_POLL_S)
            finally:
                self._stop()
                bar.close()
        return outcome

    def _start(self, waiting: list[Job], outcome: Outcome, bar: _Bar, lock: int) -> None:
        """Start what may start: the first ones whose forerunners are finished."""
        for job in list(waiting):
            if any(other.name in outcome.failed for other in job.after):
                waiting.remove(job)
                outcome.skipped.append(job)
                bar.skip(job)
        while len(self._running) < self._at_once:
            ready = [j for j in waiting if all(state_of(other) == DONE for other in j.after)]
            if not ready:
                if waiting and not self._running:  # left over by --only
                    outcome.skipped += waiting
                    waiting.clear()
                return
            job = ready[0]
            waiting.remove(job)
            try:
                self._running.append(self._begin(job, lock))
            except ConfigError as exc:
                self._fail(job, str(exc), outcome, bar)
            else:
                bar.tell(f"started: {job.name}")

    def _begin(self, job: Job, lock: int) -> _Running:
        used = {running.slot for running in self._running}
        slot = next(i for i in range(self._at_once) if i not in used)
        before = seconds_of(job)
        body = without_idle_patterns(job.body, job.cfg) if job.head else job.body
        write_atomically(job.folder / CONFIG_FILE, as_file(body))
        note(job, before, done=False)
        log = job.folder / LOG
        process = start_tool(self._words(job), log, self._environment(slot), lock)
        return _Running(job, process, slot, time.monotonic(), before)

    def _words(self, job: Job) -> list[str]:
        config = ["--config-file", str(job.folder / CONFIG_FILE)]
        if job.then is None:
            # An ensemble is loaded from its members' weights; --resume would look for its own.
            how = "--eval-only" if job.ensemble else "--resume"
            tool = [sys.executable, str(self._tools / "train_net.py"), *config, how]
            return [*tool, "SEED", str(job.seed), "OUTPUT_DIR", str(job.folder)]
        images = [str(n) for n in job.images]
        metrics = [f"*/{text.replace('=', '/')}" for text in job.cfg.FORGETTING.METRICS]
        tool = [sys.executable, str(self._tools / "few_shot.py"), *config]
        tool += ["--images", *images, "--draws", str(job.then.draws), "--metrics", *metrics]
        if job.then.score_at:
            tool += ["--score-at", *map(str, job.then.score_at)]
        return [*tool, "--out", str(job.folder), "SEED", str(job.seed)]

    def _environment(self, slot: int) -> Mapping[str, str]:
        own = dict(os.environ)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
        own.setdefault("OMP_NUM_THREADS", str(max(1, cores // self._at_once)))
        own.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        if self._world is not None:
            own[ROOT_VARIABLE] = str(self._world)
        if len(self._devices) > 1:
            own["CUDA_VISIBLE_DEVICES"] = self._devices[slot % len(self._devices)]
        return own

    def _collect(self, outcome: Outcome, bar: _Bar) -> None:
        for running in list(self._running):
            code = running.process.poll()
            if code is None:
                continue
            job = running.job
            self._running.remove(running)
            good = code == 0 and result_of(job).is_file()
            note(job, self._seconds(running), done=good)
            if good:
                _drop_resume_points(job)
                outcome.done.append(job)
                bar.finish(job)
                self._finished()
                continue
            said = last_line(job.folder / LOG)
            # A run out of memory is killed without a word: its last line is about something else.
            why = said if code > 0 else f"ended by signal {-code} after: {said}"
            self._fail(job, why if code else f"left no {result_of(job).name}", outcome, bar)

    @staticmethod
    def _fail(job: Job, why: str, outcome: Outcome, bar: _Bar) -> None:
        outcome.failed[job.name] = why
        bar.skip(job)
        bar.tell(f"FAILED: {job.name}: {why}")

    def _stop(self) -> None:
        """End what still runs."""
        try:
            end_tools([running.process for running in self._running])
        finally:
            for running in self._running:
                note(running.job, self._seconds(running), done=False)
            self._running.clear()

    @staticmethod
    def _seconds(running: _Running) -> float:
        return running.before + time.monotonic() - running.began


class _Bar:
    """Steps over all runs, by what the running ones write; the rest of the time follows from it."""

    def __init__(self, waiting: Sequence[Job], runs: int) -> None:
        self._left, self._runs = len(waiting), runs
        self._total = sum(job.steps or 1 for job in waiting)
        self._done = 0
        self._bar = tqdm(
            total=self._total,
            unit=" steps",
            disable=not waiting,
            mininterval=1.0 if sys.stderr.isatty() else 60.0,
            smoothing=0.05,
        )

    def tell(self, line: str) -> None:
        self._bar.write(line, file=sys.stderr)

    def skip(self, job: Job) -> None:
        self._left -= 1
        self._total -= job.steps or 1
        self._bar.total = self._total

    def finish(self, job: Job) -> None:
        self._left -= 1
        self._done += job.steps or 1
        self.tell(f"finished: {job.name}; {self._left} of {self._runs} runs left")

    def show(self, running: Sequence[_Running]) -> None:
        now = self._done + sum(min(_steps_so_far(r.job), r.job.steps or 1) for r in running)
        self._bar.set_description(f"{self._left} runs left", refresh=False)
        self._bar.update(max(0, now - self._bar.n))

    def close(self) -> None:
        self._bar.close()


def _steps_so_far(job: Job) -> int:
    """By the last line of the metrics of a training, or the finished runs of a few-shot one."""
    if job.then is not None:
        done = sum(1 for _ in (job.folder / "runs").glob("*/figures.json"))
        return done * int(job.cfg.SOLVER.MAX_ITER)
    with suppress(ValueError, KeyError, TypeError):
        return int(json.loads(last_line(job.folder / "metrics.json"))["iteration"]) + 1
    return 0


def _drop_resume_points(job: Job) -> None:
    """A finished run is not resumed, and a study has many: the numbered checkpoints go."""
    for file in job.folder.glob("model_[0-9]*.safetensors"):
        CheckpointFiles(file).remove()


def _devices() -> list[str]:
    """The GPUs there are, as CUDA_VISIBLE_DEVICES names them."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return [name for name in shown.split(",") if name]
    return [str(i) for i in range(torch.cuda.device_count())]
