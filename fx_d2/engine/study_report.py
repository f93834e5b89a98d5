"""What the runs of a study came to: mean and deviation over seeds, as Markdown, CSV and JSON.

Only finished runs count, and an arm of several runs per seed only where all of them are finished.
Every figure is read from what a run wrote.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from tabulate import tabulate

from fx_d2.data.atomic import write_atomically
from fx_d2.data.errors import DataError
from fx_d2.data.source import TASKS

from .few_shot import TRAINED_SHARE
from .forgetting import NAME as FORGETTING
from .forgetting_config import main_metrics
from .study import FULL, UNTRAINED, Study
from .study_budget import heads_of
from .study_folder import DONE, result_of, seconds_of, state_of
from .study_plan import FINAL, Job
from .weights import read_description

FORMAT = "fx_d2 study 1"
STUDENT, TEACHER = "student", "teacher"
_TRANSFERS = ("average_forgetting", "backward_transfer", "forward_transfer")
_HEAD, _TASK, _FEW = "head", "task", "few-shot"
_STEPS, _HOURS = "steps", "hours"


@dataclass(frozen=True)
class Scored:
    """A seed of an arm.

    Args:
        arm, seed: which.
        scores: ``{student or teacher: {source/task/metric: figure}}``; one that could not be
            computed is left out.
        without: figures that student or teacher do not have.
        transfers: ``{student or teacher: {average_forgetting, ...: figure}}``.
        steps, hours: of all runs together; hours are of the clock, evaluations included.
    """

    arm: str
    seed: int
    scores: Mapping[str, Mapping[str, float]]
    without: tuple[str, ...]
    transfers: Mapping[str, Mapping[str, float]]
    steps: int
    hours: float


@dataclass(frozen=True)
class Row:
    """A figure of an arm over its seeds (few-shot: over seeds and draws).

    Args:
        kind: ``head``, ``task`` (mean over heads that have a figure everywhere), ``forgetting``,
            ``cost`` or ``few-shot``.
        arm: name.
        model: student or teacher.
        figure: such as ``rsna/loc/AP40``.
        values: in the order of the seeds.
        then, images: of few-shot rows.
    """

    kind: str
    arm: str
    model: str
    figure: str
    values: tuple[float, ...]
    then: str = ""
    images: int = 0

    @property
    def mean(self) -> float:
        """Over the values."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Of the sample; None of a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Report:
    """All figures, and what is missing.

    Args:
        study: whose.
        metrics: ``{task: metrics}``, those of the columns.
        seeds: ``{arm: finished ones}``.
        scored: one per finished seed and arm.
        rows: see :class:`Row`.
        left_out: ``{figure: runs that do not have it}``; no mean over heads has them.
        missing: ``{run: state}`` of what is not finished.
    """

    study: Study
    metrics: Mapping[str, tuple[str, ...]]
    seeds: Mapping[str, tuple[int, ...]]
    scored: Sequence[Scored]
    rows: Sequence[Row]
    left_out: Mapping[str, Sequence[str]]
    missing: Mapping[str, str]


def gather(study: Study, jobs: Sequence[Job]) -> Report:
    """Read what the finished runs wrote.

    Args:
        study: the plan's.
        jobs: all runs of the plan.
    """
    metrics = _metrics_of(study, jobs[0])
    states = {job: state_of(job) for job in jobs}
    scored: list[Scored] = []
    for seed in study.seeds:
        for arm in study.arms:
            runs = [j for j in jobs if (j.arm, j.seed, j.then) == (arm.name, seed, None)]
            if runs and all(states[job] == DONE for job in runs):
                scored.append(_scored(study, arm.name, seed, runs))
    left_out: dict[str, list[str]] = {}
    for run in scored:
        for figure in run.without:
            left_out.setdefault(figure, []).append(f"{run.arm} seed {run.seed}")
    rows = [row for arm in study.arms for row in _rows(arm.name, scored, metrics, left_out)]
    later = [job for job in jobs if job.then is not None and states[job] == DONE]
    rows += _few_shot_rows(later)
    seeds = {a.name: tuple(s.seed for s in scored if s.arm == a.name) for a in study.arms}
    missing = {job.name: state for job, state in states.items() if state != DONE}
    return Report(study, metrics, seeds, scored, rows, left_out, missing)


def _metrics_of(study: Study, job: Job) -> dict[str, tuple[str, ...]]:
    """By task: what the study names, else the main one of every task."""
    if not study.metrics:
        return {task: (name,) for task, name in main_metrics(job.cfg.FORGETTING.METRICS).items()}
    pairs = [text.split("/", 1) for text in study.metrics]
    return {task: tuple(name for of, name in pairs if of == task) for task in TASKS}


def _scored(study: Study, arm: str, seed: int, runs: Sequence[Job]) -> Scored:
    scores: dict[str, dict[str, float]] = {}
    wanted: list[str] = []
    transfers: dict[str, dict[str, float]] = {}
    for job in runs:
        metrics = _metrics_of(study, job)
        found = _json(result_of(job))["results"]
        own = [(f"{s}/{task}", name) for s, task in heads_of(job.cfg) for name in metrics[task]]
        wanted += ["/".join(pair) for pair in own]
        for who, prefix in ((STUDENT, ""), (TEACHER, f"{TEACHER}/")):
            for head, name in own:
                value = found.get(f"{prefix}{head}", {}).get(name)
                if value is not None:
                    scores.setdefault(who, {})[f"{head}/{name}"] = float(value)
        table = job.folder / f"{FORGETTING}.json"
        for who, about in (_json(table)["summary"] if table.is_file() else {}).items():
            known = {name: about[name] for name in _TRANSFERS if about.get(name) is not None}
            transfers.setdefault(who, {}).update(known)
    trained = [job for job in runs if not job.ensemble]
    steps = sum(int(read_description(job.folder / FINAL)["iteration"]) + 1 for job in trained)
    hours = sum(seconds_of(job) for job in runs) / 3600
    without = tuple(w for w in wanted if not scores or any(w not in f for f in scores.values()))
    return Scored(arm, seed, scores, without, transfers, steps, hours)


def _json(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise DataError(
            f"cannot be read ({' '.join(str(exc).split())[:80]})",
            file=file,
            fix="remove the folder of this run and call the study again",
        ) from exc
    return found


def _rows(
    arm: str,
    scored: Sequence[Scored],
    metrics: Mapping[str, Sequence[str]],
    left_out: Collection[str],
) -> Iterator[Row]:
    mine = [run for run in scored if run.arm == arm]
    for who in dict.fromkeys(who for run in mine for who in run.scores):
        having = [run.scores[who] for run in mine if who in run.scores]
        for name in (f"{task}/{metric}" for task in TASKS for metric in metrics[task]):
            means = [m for f in having if (m := _mean_of(f, name, left_out)) is not None]
            if means:
                yield Row(_TASK, arm, who, name, tuple(means))
        for figure in dict.fromkeys(figure for scores in having for figure in scores):
            values = tuple(scores[figure] for scores in having if figure in scores)
            yield Row(_HEAD, arm, who, figure, values)
    for who in dict.fromkeys(who for run in mine for who in run.transfers):
        for name in _TRANSFERS:
            values = tuple(r.transfers[who][name] for r in mine if name in r.transfers.get(who, ()))
            if values:
                yield Row("forgetting", arm, who, name, values)
    if mine:
        yield Row("cost", arm, "", _STEPS, tuple(float(run.steps) for run in mine))
        yield Row("cost", arm, "", _HOURS, tuple(run.hours for run in mine))


def _mean_of(scores: Mapping[str, float], name: str, left_out: Collection[str]) -> float | None:
    """Over the same heads in every run: else an arm would gain by a head that it cannot score."""
    values = [v for f, v in scores.items() if f.partition("/")[2] == name and f not in left_out]
    return statistics.fmean(values) if values else None


def _few_shot_rows(jobs: Sequence[Job]) -> list[Row]:
    values: dict[tuple[str, str, str, int], list[float]] = {}
    for job in jobs:
        assert job.then is not None
        metrics = main_metrics(job.cfg.FORGETTING.METRICS)
        for run in _json(result_of(job))["runs"]:
            wanted = {TRAINED_SHARE} | {
                f"{prefix}{source}/{task}/{metrics[task]}"
                for source, task in heads_of(job.cfg)
                for prefix in ("", f"{TEACHER}/")
            }
            # At the end, and with "@25%" behind it on the way there.
            for figure in (f for f in run["figures"] if f.partition("@")[0] in wanted):
                where = (job.arm, job.then.name, figure, int(run["images"]))
                values.setdefault(where, []).append(float(run["figures"][figure]))
    rows = []
    for (arm, then, figure, images), found in values.items():
        who = TEACHER if figure.startswith(f"{TEACHER}/") else STUDENT
        plain = figure.removeprefix(f"{TEACHER}/")
        rows.append(Row(_FEW, arm, who, plain, tuple(found), then, images))
    return rows


def write_report(report: Report, out: Path, about: Mapping[str, str]) -> str:
    """Write ``study.md``, ``study.csv`` and ``study.json``; the Markdown is returned.

    Args:
        report: from :func:`gather`.
        out: folder of the study.
        about: what else stands at the top, such as command and machine.
    """
    now = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    about = {**about, "date": now}
    text = markdown(report, about)
    body = {
        "format": FORMAT,
        "title": report.study.title,
        "about": about,
        "metrics": {task: list(names) for task, names in report.metrics.items()},
        "seeds": {arm: list(seeds) for arm, seeds in report.seeds.items()},
        "runs": [vars(run) for run in report.scored],
        "figures": [
            {**vars(r), "n": len(r.values), "mean": r.mean, "std": r.std} for r in report.rows
        ],
        "left_out": {figure: list(runs) for figure, runs in report.left_out.items()},
        "missing": dict(report.missing),
    }
    write_atomically(out / "study.json", json.dumps(body, indent=1, allow_nan=False) + "\n")
    write_atomically(out / "study.csv", _csv(report.rows))
    write_atomically(out / "study.md", text)
    return text


def _csv(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["kind", "arm", "model", "then", "images", "figure", "n", "mean", "std", "values"]
    )
    for r in rows:
        std = "" if r.std is None else r.std
        values = " ".join(str(v) for v in r.values)
        place = [r.kind, r.arm, r.model, r.then, r.images or "", r.figure]
        writer.writerow([*place, len(r.values), r.mean, std, values])
    return text.getvalue()


def markdown(report: Report, about: Mapping[str, str]) -> str:
    """The report as tables for a page."""
    parts = [f"## {report.study.title}"]
    parts.append("\n".join(f"- {name}: {value}" for name, value in about.items()))
    arms = _arms_table(report)
    if arms:
        parts += [
            "Mean ± standard deviation over the seeds (no deviation of a single one). A task's "
            "figure is the mean over its heads; hours are of the clock, evaluations included.",
            arms,
        ]
    if report.left_out:
        names = ", ".join(f"{name} ({_few(runs)})" for name, runs in report.left_out.items())
        parts.append(f"Left out of every mean, since a run has no figure of it: {names}.")
    heads = _heads_table(report)
    if heads:
        parts += ["### Every head", heads]
    for then in dict.fromkeys(row.then for row in report.rows if row.kind == _FEW):
        parts += [f"### {then}", _few_shot_table(report, then)]
    said = [f"- {arm.name}: {arm.about}" for arm in report.study.arms if arm.about]
    if said:
        parts += ["### Arms", "\n".join(said)]
    if report.missing:
        lines = [f"- {name}: {state}" for name, state in report.missing.items()]
        parts += ["### Not finished", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _arms_table(report: Report) -> str:
    by = {(r.arm, r.model, r.figure): r for r in report.rows if r.kind not in (_HEAD, _FEW)}
    figures = [f"{task}/{name}" for task, names in report.metrics.items() for name in names]
    shown = [f for f in (*figures, *_TRANSFERS) if any(key[2] == f for key in by)]
    body = []
    for arm, who, seeds in _columns(report):
        cells = [_cell(by.get((arm, who, figure)), len(seeds)) for figure in shown]
        cost = [by.get((arm, "", name)) for name in (_STEPS, _HOURS)]
        cells += [_cell(cost[0], len(seeds), _as_whole), _cell(cost[1], len(seeds), _as_hours)]
        body.append([arm, who, len(seeds), *cells])
    titles = [name.replace("_", " ").replace("/", " ") for name in shown]
    return _table(body, ["arm", "model", "seeds", *titles, _STEPS, _HOURS])


def _heads_table(report: Report) -> str:
    rows = [row for row in report.rows if row.kind == _HEAD]
    by = {(r.arm, r.model, r.figure): r for r in rows}
    columns = _columns(report)
    body = [
        [figure, *(_cell(by.get((arm, who, figure)), len(seeds)) for arm, who, seeds in columns)]
        for figure in dict.fromkeys(row.figure for row in rows)
    ]
    return _table(body, ["head", *(_title(arm, who, len(seeds)) for arm, who, seeds in columns)])


def _few_shot_table(report: Report, then: str) -> str:
    rows = [row for row in report.rows if (row.kind, row.then) == (_FEW, then)]
    by = {(r.arm, r.model, r.figure, r.images): r for r in rows}
    columns = list(dict.fromkeys((r.arm, r.model) for r in rows))
    most = {c: max(len(r.values) for r in rows if (r.arm, r.model) == c) for c in columns}
    step = next(t for arm in report.study.arms for t in arm.then if t.name == then)
    sizes = sorted({row.images for row in rows}, reverse=True)
    body = []
    for figure in dict.fromkeys(row.figure for row in rows):
        for n in sizes:
            label = f"{n} (all)" if FULL in step.images and n == sizes[0] else str(n)
            shown = _as_percent if figure == TRAINED_SHARE else _as_figure
            cells = [_cell(by.get((*c, figure, n)), most[c], shown) for c in columns]
            body.append(
                [figure.replace("_", " ") if shown is _as_percent else figure, label, *cells]
            )
    titles = [_title(arm, who, most[arm, who]) for arm, who in columns]
    return _table(body, ["figure", "images", *titles])


def _columns(report: Report) -> list[tuple[str, str, tuple[int, ...]]]:
    """(arm, student or teacher, seeds) of every arm that has figures."""
    having = {(r.arm, r.model) for r in report.rows if r.kind in (_HEAD, "forgetting")}
    return [
        (arm.name, who, report.seeds[arm.name])
        for arm in report.study.arms
        if arm.kind != UNTRAINED
        for who in (STUDENT, TEACHER)
        if (arm.name, who) in having
    ]


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return ", ".join(names[:2]) + more


def _title(arm: str, who: str, n: int) -> str:
    return f"{arm}{', teacher' if who == TEACHER else ''} (n={n})"


def _as_figure(value: float) -> str:
    return f"{value:.3f}"


def _as_percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _as_whole(value: float) -> str:
    return f"{value:,.0f}"


def _as_hours(value: float) -> str:
    return f"{value:.2f}"


def _cell(row: Row | None, n: int, shown: Callable[[float], str] = _as_figure) -> str:
    """``mean ± std``; with its own n where that is less than the column's."""
    if row is None:
        return "-"
    text = shown(row.mean)
    if row.std is not None and not (shown in (_as_whole, _as_percent) and row.std == 0):
        text += f" ± {shown(row.std)}"
    return text if len(row.values) == n else f"{text} (n={len(row.values)})"


def _table(body: Sequence[Sequence[Any]], headers: Sequence[str]) -> str:
    if not body:
        return ""
    return tabulate(body, headers, tablefmt="github", disable_numparse=True)
