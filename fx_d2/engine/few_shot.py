"""Few-shot protocol: train on n images, over several draws, and score on another split.

The images of a draw are ranked once, patient by patient, and n of them are the first n: of one
draw, the smaller sets lie in the larger ones. Every run keeps its own folder, so that a call goes
on where an earlier one stopped.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from tabulate import tabulate

from fx_d2.data.atomic import write_atomically
from fx_d2.data.build import configure_reading, load_datasets, source_of, tasks_of
from fx_d2.data.catalog import patient_of
from fx_d2.data.draws import draw_key
from fx_d2.data.record import Record
from fx_d2.data.splits import write_split_file

from .setup import ConfigError, config_errors
from .trainer import FxTrainer

_logger = logging.getLogger(__name__)

FORMAT = "fx_d2 few shot 1"
METRICS = ("*/cls/AUC", "*/loc/AP40", "*/seg/Dice", "trained_share")
# Of the values of the model, how many the mode of tuning trains.
TRAINED_SHARE = "trained_share"
_SETTINGS, _FIGURES = "settings.json", "figures.json"


@dataclass(frozen=True)
class Pool:
    """What can be drawn from, and what is scored on.

    Args:
        source: key.
        patients: {image id: patient} of the annotated training images.
        test: image ids of the split that is scored.
        scored: its name.
    """

    source: str
    patients: Mapping[str, str]
    test: tuple[str, ...]
    scored: str = "test"


@dataclass(frozen=True)
class Run:
    """One training: the first ``images`` of draw ``draw``."""

    images: int
    draw: int

    @property
    def name(self) -> str:
        """Of its folder and its split file."""
        return f"n{self.images:04d}_draw{self.draw}"


def runs_of(images: Sequence[int], draws: int) -> list[Run]:
    """Largest sets first, all draws of a size one after the other."""
    return [Run(n, d) for n in sorted(set(images), reverse=True) for d in range(1, draws + 1)]


def read_pool(cfg: CfgNode, scored: str = "test") -> Pool:
    """The annotated images of ``DATASETS.TRAIN``, which is of one source, and a split to score.

    Args:
        cfg: names the images to train on.
        scored: the split; ``val`` where something is chosen by its scores.
    """
    keys = {source_of(name).key for name in cfg.DATASETS.TRAIN}
    if len(keys) != 1:
        raise ConfigError(f"DATASETS.TRAIN is of {sorted(keys)}; few-shot is for one source")
    (key,) = keys
    with config_errors():
        configure_reading(cfg)
        tasks = tasks_of(cfg, source_of(cfg.DATASETS.TRAIN[0]))
        source_of(f"{key}_{scored}")
    records = load_datasets(cfg.DATASETS.TRAIN)
    patients = {r["image_id"]: patient_of(r) for r in records if _annotated(r, tasks)}
    test = load_datasets([f"{key}_{scored}"])
    both = sorted(set(patients.values()) & {patient_of(r) for r in test})
    if both:
        raise ConfigError(
            f"{len(both)} patients of DATASETS.TRAIN are in the {scored} split, such as {both[0]!r}"
        )
    return Pool(key, patients, tuple(r["image_id"] for r in test), scored)


def _annotated(record: Record, tasks: Sequence[str]) -> bool:
    there = {
        "cls": not np.isnan(np.asarray(record.get("labels", [np.nan]))).all(),
        "loc": "annotations" in record,
        "seg": bool(record.get("masks")),
    }
    return any(there[task] for task in tasks)


def drawn(pool: Pool, run: Run, seed: int) -> list[str]:
    """The image ids of a run: patients in the order of their keys, with all their images.

    Only the last patient may be cut, so that there are exactly as many images as asked for.
    """
    if run.images > len(pool.patients):
        raise ConfigError(f"{run.images} images of {len(pool.patients)} that {pool.source} has")
    where = (seed, "few_shot", pool.source, run.draw)
    ranked = sorted(
        pool.patients, key=lambda i: (draw_key(*where, pool.patients[i]), pool.patients[i], i)
    )
    return ranked[: run.images]


def run_config(cfg: CfgNode, pool: Pool, run: Run, out: Path) -> CfgNode:
    """The config of a run: scored at the end only, so that nothing is chosen within it."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATASETS.SPLIT_FILES[pool.source] = str(out / "splits" / f"{run.name}.json")
    cfg.DATASETS.TRAIN = (f"{pool.source}_train",)
    cfg.DATASETS.TEST = (f"{pool.source}_{pool.scored}",)
    cfg.TEST.EVAL_PERIOD, cfg.TEST.EXPECTED_RESULTS = 0, []
    cfg.SOLVER.FX.BEST_METRIC = ()
    cfg.SEED += run.draw  # the deviation over draws is that of the start weights too
    cfg.OUTPUT_DIR = str(out / "runs" / run.name)
    cfg.freeze()
    return cfg


class ScoreOnTheWay(HookBase):
    """Scores the model before given iterations; each result is a file in the folder of the run.

    Nothing is chosen by them. Before a step, not after one: a run that is resumed there comes by
    again.

    Args:
        cfg: of the run.
        shares: of ``SOLVER.MAX_ITER``, between 0 and 1.
    """

    def __init__(self, cfg: CfgNode, shares: Sequence[float]) -> None:
        self._cfg = cfg
        self._files = {
            round(share * cfg.SOLVER.MAX_ITER): Path(cfg.OUTPUT_DIR) / f"figures_{share:.0%}.json"
            for share in shares
        }

    def before_step(self) -> None:
        """Score, where this is such a step."""
        trainer: Any = self.trainer
        file = self._files.get(trainer.iter)
        if file is not None:
            figures = flatten_results_dict(trainer.scores(self._cfg, trainer.model))
            body = {name: float(value) for name, value in figures.items()}
            write_atomically(file, json.dumps({"iteration": trainer.iter, "figures": body}) + "\n")

    def figures(self) -> dict[str, float]:
        """All of them, as ``<metric>@25%``."""
        found: dict[str, float] = {}
        for file in self._files.values():
            share = file.stem.partition("_")[2]
            figures = json.loads(file.read_text("utf-8"))["figures"]
            found |= {f"{name}@{share}": value for name, value in figures.items()}
        return found


def check_shares(cfg: CfgNode, shares: Sequence[float]) -> None:
    """Raise unless every share is of a whole percent and of some iteration within the run."""
    for share in shares:
        within = 0 < share < 1 and round(share * cfg.SOLVER.MAX_ITER) > 0
        if not (within and abs(share * 100 - round(share * 100)) < 1e-9):
            raise ConfigError(
                f"a score at {share:g} of SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER}; write whole "
                "percents between 0 and 1, such as 0.25, of one iteration or more"
            )


def train_one(
    cfg: CfgNode, pool: Pool, run: Run, out: Path, score_at: Sequence[float] = ()
) -> dict[str, float]:
    """The figures of a run: those on disk, or of a training that is begun or continued.

    Args:
        cfg: of the call, the same for all runs.
        pool: to draw from.
        run: which one.
        out: folder of all runs.
        score_at: shares of the iterations to score at too.
    """
    images = drawn(pool, run, cfg.SEED)
    own = run_config(cfg, pool, run, out)
    folder = Path(own.OUTPUT_DIR)
    mark = _fingerprint(cfg, images, pool.test, score_at)
    if _checked(folder / _SETTINGS, mark) and (folder / _FIGURES).is_file():
        return json.loads((folder / _FIGURES).read_text("utf-8"))["figures"]
    splits = {"train": images, pool.scored: pool.test}
    write_split_file(own.DATASETS.SPLIT_FILES[pool.source], pool.source, splits)
    patients = len({pool.patients[i] for i in images})
    about = {"format": FORMAT, "fingerprint": mark, "images": run.images, "draw": run.draw}
    write_atomically(folder / _SETTINGS, json.dumps({**about, "patients": patients}) + "\n")
    with config_errors():
        trainer = FxTrainer(own)
    trainer.resume_or_load(resume=True)
    on_the_way = ScoreOnTheWay(own, score_at)
    trainer.register_hooks([on_the_way])
    figures = flatten_results_dict(trainer.train())
    figures = {name: float(value) for name, value in figures.items()} | on_the_way.figures()
    sizes = [(p.numel(), p.requires_grad) for p in trainer.model.parameters()]
    figures[TRAINED_SHARE] = sum(n for n, t in sizes if t) / sum(n for n, _ in sizes)
    write_atomically(folder / _FIGURES, json.dumps({**about, "figures": figures}, indent=1) + "\n")
    return figures


def _fingerprint(
    cfg: CfgNode, train: Sequence[str], test: Sequence[str], score_at: Sequence[float] = ()
) -> str:
    """Of everything that decides about a run but the place it is written to."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = ""
    on_the_way = [list(score_at)] if score_at else []
    body = json.dumps([cfg.dump(), list(train), sorted(test), *on_the_way])
    return hashlib.sha256(body.encode()).hexdigest()


def _checked(file: Path, mark: str) -> bool:
    """Whether a run of these settings was begun; a run of others is not overwritten."""
    if not file.is_file():
        return False
    try:
        there = json.loads(file.read_text("utf-8")).get("fingerprint")
    except (ValueError, AttributeError, OSError):
        there = None
    if there != mark:
        raise ConfigError(
            f"{file.parent} is a run of other settings or images; name another --out, or remove it"
        )
    return True


def run_all(
    cfg: CfgNode,
    runs: Sequence[Run],
    out: Path,
    tell: Callable[[str], None],
    *,
    score_at: Sequence[float] = (),
    scored: str = "test",
) -> dict[Run, dict[str, float]]:
    """Train every run and give ``{run: figures}``.

    Args:
        cfg: of the call.
        runs: which.
        out: folder of all.
        tell: hears of each.
        score_at: shares of the iterations after which a run is scored too, ``<metric>@25%``.
        scored: the split; see :func:`read_pool`.
    """
    check_shares(cfg, score_at)
    pool = read_pool(cfg, scored)
    for run in runs:  # before the first training, not after the last
        drawn(pool, run, cfg.SEED)
        own = _fingerprint(cfg, drawn(pool, run, cfg.SEED), pool.test, score_at)
        _checked(out / "runs" / run.name / _SETTINGS, own)
    found = {}
    try:
        for number, run in enumerate(runs, 1):
            tell(f"[{number}/{len(runs)}] {run.images} images, draw {run.draw}")
            found[run] = train_one(cfg, pool, run, out, score_at)
    finally:
        configure_reading(cfg)
    return found


@dataclass(frozen=True)
class Row:
    """A metric for a number of images: mean and standard deviation (None of one draw)."""

    images: int
    metric: str
    draws: int
    mean: float
    std: float | None


def rows_of(found: Mapping[Run, Mapping[str, float]]) -> list[Row]:
    """One row per number of images and metric; a metric missing from a draw counts fewer draws."""
    values: dict[tuple[int, str], list[float]] = {}
    for run, figures in found.items():
        for metric, value in figures.items():
            values.setdefault((run.images, metric), []).append(value)
    return [
        Row(n, metric, len(v), statistics.fmean(v), statistics.stdev(v) if len(v) > 1 else None)
        for (n, metric), v in values.items()
    ]


def write_tables(
    found: Mapping[Run, Mapping[str, float]], cfg: CfgNode, out: Path, metrics: Sequence[str]
) -> str:
    """Write ``few_shot.md``, ``.csv`` and ``.json``; the Markdown is returned.

    Args:
        found: from :func:`run_all`.
        cfg: of the call, stored.
        out: folder.
        metrics: patterns of those in the Markdown table; the other files have all.
    """
    rows = rows_of(found)
    chosen = _chosen(rows, metrics)
    table = markdown(rows, chosen)
    runs = [
        {"images": r.images, "draw": r.draw, "folder": f"runs/{r.name}", "figures": dict(f)}
        for r, f in found.items()
    ]
    body = {
        "format": FORMAT,
        "config": cfg.dump(),
        "table": [vars(row) for row in rows],
        "runs": runs,
    }
    write_atomically(out / "few_shot.json", json.dumps(body, indent=1) + "\n")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["images", "metric", "draws", "mean", "std", *_draw_names(found)])
    for row in rows:
        per_draw = [
            found.get(Run(row.images, d), {}).get(row.metric, "") for d in _draw_numbers(found)
        ]
        std = "" if row.std is None else row.std
        writer.writerow([row.images, row.metric, row.draws, row.mean, std, *per_draw])
    write_atomically(out / "few_shot.csv", text.getvalue())
    write_atomically(out / "few_shot.md", table + "\n")
    return table


def _chosen(rows: Sequence[Row], patterns: Sequence[str]) -> list[str]:
    names = list(dict.fromkeys(row.metric for row in rows))
    chosen = [n for n in names if any(fnmatchcase(n.partition("@")[0], p) for p in patterns)]
    if not chosen:
        shown = [n for n in names if "-" not in n]
        raise ConfigError(f"--metrics {' '.join(patterns)}: none of {', '.join(shown)}")
    return chosen


def markdown(rows: Sequence[Row], metrics: Sequence[str]) -> str:
    """A line per number of images, a column per metric, ``mean ± std`` of the draws."""
    by_cell = {(row.images, row.metric): row for row in rows}
    sizes = sorted({row.images for row in rows}, reverse=True)
    body = [[n, *(_cell(by_cell.get((n, metric))) for metric in metrics)] for n in sizes]
    return tabulate(body, ["images", *metrics], tablefmt="github", disable_numparse=True)


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    return f"{row.mean:.4f}" + ("" if row.std is None else f" ± {row.std:.4f}")


def _draw_numbers(found: Mapping[Run, Any]) -> list[int]:
    return sorted({run.draw for run in found})


def _draw_names(found: Mapping[Run, Any]) -> Iterator[str]:
    return (f"draw{d}" for d in _draw_numbers(found))
