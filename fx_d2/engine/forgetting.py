"""Scores every head at chosen moments of a run, and keeps them as a table and a picture."""

from __future__ import annotations

import csv
import io
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from fx_d2.data.atomic import write_atomically
from fx_d2.data.build import source_of
from fx_d2.data.errors import DataError
from fx_d2.evaluation.forgetting import Forgetting, ScoreRow, measure
from fx_d2.evaluation.forgetting_map import draw_map
from fx_d2.modeling.meta_arch.student_teacher import ANSWERS, StudentTeacher

from .forgetting_config import check_forgetting, main_metrics
from .scoring import unwrapped
from .setup import ConfigError

_logger = logging.getLogger(__name__)

FORMAT = "fx_d2 forgetting 1"
START = -1  # iteration of the row before training
NAME = "forgetting"


@dataclass(frozen=True)
class Moment:
    """When scores were taken.

    Args:
        iteration: the last one before; -1 before training.
        cycle, slot: from 0; -1 without a cycle.
        trained: ``source/task`` of the slot; ``""`` where many were trained.
    """

    iteration: int
    cycle: int = -1
    slot: int = -1
    trained: str = ""

    @property
    def title(self) -> str:
        """For a row: ``c1 s03 rsna/loc``, counted from 1 as people do."""
        if self.iteration == START:
            return "before training"
        if self.cycle < 0:
            return f"iteration {self.iteration + 1}"
        if not self.trained:
            return f"cycle {self.cycle + 1}"
        return f"c{self.cycle + 1} s{self.slot + 1:02d} {self.trained}"


Scores = dict[str, float | None]


@dataclass(frozen=True)
class Row:
    """One moment: ``scores`` of every head, for the student and, if there is one, the teacher."""

    moment: Moment
    scores: dict[str, Scores]


class ForgettingTable:
    """The rows of a run, on disk as JSON, CSV and PNG; every write replaces whole files.

    Args:
        folder: of the run.
        heads: columns.
        metrics: {task: the figure of its heads}.
    """

    def __init__(
        self, folder: str | Path, heads: Sequence[str], metrics: Mapping[str, str]
    ) -> None:
        self._folder, self.heads, self.metrics = Path(folder), tuple(heads), dict(metrics)
        self.rows: list[Row] = []

    def load(self, before: int) -> None:
        """Take over the rows of an interrupted run.

        Args:
            before: first iteration that is trained now; its row and later ones come again.
        """
        path = self._folder / f"{NAME}.json"
        if before == 0 or not path.is_file():
            return
        try:
            found = json.loads(path.read_text("utf-8"))
            if found["format"] != FORMAT:
                raise ValueError(f"format {found['format']!r}")
            rows = [Row(Moment(**row["moment"]), dict(row["scores"])) for row in found["rows"]]
            same = found["metrics"] == self.metrics
        except (OSError, ValueError, KeyError, TypeError) as exc:
            raise DataError(
                f"the scores of this run cannot be read ({' '.join(str(exc).split())[:80]})",
                file=path,
                fix="move the file away: the table then begins here",
            ) from exc
        if not same:
            raise ConfigError(
                f"FORGETTING.METRICS is {self.metrics}, but {path} holds {found['metrics']}; "
                "resume with the same figures, or move the file away"
            )
        self.rows = [row for row in rows if row.moment.iteration < before]

    def add(self, row: Row) -> None:
        """Append a row; one of the same moment is replaced."""
        self.rows = [r for r in self.rows if r.moment.iteration != row.moment.iteration] + [row]
        self.rows.sort(key=lambda r: r.moment.iteration)

    def whose(self) -> list[str]:
        """Student, teacher or both."""
        return list(dict.fromkeys(who for row in self.rows for who in row.scores))

    def scored(self, who: str) -> list[ScoreRow]:
        """The rows after training began, of one of them."""
        return [_plain(row, who) for row in self.rows if row.moment.iteration != START]

    def forgetting(self, who: str) -> Forgetting:
        """What the last row says against earlier ones."""
        start = [row for row in self.rows if row.moment.iteration == START]
        before = start[0].scores.get(who, {}) if start else None
        return measure(self.heads, self.scored(who), before)

    def write(self) -> None:
        """Write all three files."""
        measured = {who: self.forgetting(who) for who in self.whose()}
        content = {
            "format": FORMAT,
            "heads": list(self.heads),
            "metrics": self.metrics,
            "summary": {
                who: {**found.means(), "by_head": asdict(found)} for who, found in measured.items()
            },
            "rows": [asdict(row) for row in self.rows],
        }
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
        rows = {who: [_plain(row, who) for row in self.rows] for who in self.whose()}
        titles = [row.moment.title for row in self.rows]
        picture = draw_map(self.heads, rows, titles, self.metrics)
        write_atomically(self._folder / f"{NAME}.csv", self._csv())
        write_atomically(self._folder / f"{NAME}.png", picture)
        # Last: it is what a resumed run reads.
        write_atomically(self._folder / f"{NAME}.json", text)

    def _csv(self) -> str:
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["iteration", "cycle", "slot", "trained", "model", *self.heads])
        for row in self.rows:
            for who, scores in row.scores.items():
                cells = ["" if (v := scores.get(h)) is None else f"{v:.6f}" for h in self.heads]
                moment = row.moment
                place = [moment.iteration, moment.cycle, moment.slot, moment.trained]
                writer.writerow([*place, who, *cells])
        return text.getvalue()


def _plain(row: Row, who: str) -> ScoreRow:
    trained = (row.moment.trained,) if row.moment.trained else ()
    return ScoreRow(trained, row.scores.get(who, {}))


class ForgettingHook(HookBase):
    """Fills a :class:`ForgettingTable` after every slot, every cycle, or every n iterations.

    Stands after the checkpoint: scoring takes long and may fail. A run that ends within it is
    scored when it is resumed, so that no row is missing, and none comes twice.

    Args:
        cfg: with ``FORGETTING``.
    """

    def __init__(self, cfg: CfgNode) -> None:
        node = cfg.FORGETTING
        check_forgetting(cfg)
        self._after, self._period, self._at_start = node.AFTER, int(node.PERIOD), node.AT_START
        self._metrics = main_metrics(node.METRICS)
        self._cfg = self._scoring = cfg
        self._table: ForgettingTable | None = None
        self._resumed: Moment | None = None

    def state_dict(self) -> dict[str, Any]:
        """The moment to score after this checkpoint, if there is one."""
        due = None if self._table is None else self._moment()
        return {"due": None if due is None else asdict(due)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what the interrupted run was about to score."""
        due = state_dict["due"]
        self._resumed = None if due is None else Moment(**due)

    def before_train(self) -> None:
        """Take over earlier rows, and score what is missing."""
        trainer: Any = self.trainer
        model = unwrapped(trainer.model)
        heads = [spec.name for spec in getattr(model, "specs", ())]
        self._scoring = _scoring_config(self._cfg, model)
        self._table = ForgettingTable(self._cfg.OUTPUT_DIR, heads, self._metrics)
        wanted: Moment | None = None
        if comm.is_main_process():
            self._table.load(before=trainer.start_iter)
            there = {row.moment.iteration for row in self._table.rows}
            if trainer.start_iter == 0:
                wanted = Moment(START) if self._at_start else None
            elif self._resumed is not None and self._resumed.iteration == trainer.start_iter - 1:
                wanted = None if self._resumed.iteration in there else self._resumed
        wanted = comm.all_gather(wanted)[0]  # the others have no file to look at
        if wanted is not None:
            self._score(wanted)

    def after_step(self) -> None:
        """Score when it is time."""
        moment = self._moment()
        if moment is not None:
            self._score(moment)

    def is_due(self) -> bool:
        """Whether heads are scored after the current iteration."""
        return self._moment() is not None

    def _moment(self) -> Moment | None:
        """What to score after the current iteration."""
        trainer: Any = self.trainer
        at, phase = trainer.iter, getattr(trainer, "phase", None)
        is_end = at + 1 == trainer.max_iter
        if self._after == "iterations":
            return Moment(at) if is_end or (at + 1) % self._period == 0 else None
        assert phase is not None  # without a cycle the config was refused
        ends = phase.ends_slot if self._after == "slot" else phase.ends_cycle
        if not (is_end or (ends and phase.last == at)):
            return None
        trained = f"{phase.phase.source}/{phase.phase.task}" if self._after == "slot" else ""
        return Moment(at, phase.cycle_index, phase.slot_index, trained)

    def _score(self, moment: Moment) -> None:
        trainer: Any = self.trainer
        assert self._table is not None
        _logger.info("scoring every head: %s", moment.title)
        with _quiet("fx_d2.evaluation", "detectron2.evaluation"):
            results = trainer.scores(self._scoring, trainer.model)
        if not comm.is_main_process():
            return
        scores: dict[str, Scores] = {}
        for who in _whose(unwrapped(trainer.model)):
            prefix = "teacher/" if who == "teacher" else ""
            scores[who] = {
                head: results.get(prefix + head, {}).get(self._metrics[head.rpartition("/")[2]])
                for head in self._table.heads
            }
        self._table.add(Row(moment, scores))
        self._table.write()
        for who in scores:
            for name, value in self._table.forgetting(who).means().items():
                if value is not None:
                    key = f"{name}/{who}"
                    trainer.storage.put_scalar(key, value, smoothing_hint=False)
                    _logger.info("%s: %.4f", key, value)


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Only errors of these loggers: tables of every head after every slot would fill the log."""
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _whose(model: nn.Module) -> tuple[str, ...]:
    return ANSWERS if isinstance(model, StudentTeacher) else ("student",)


def _scoring_config(cfg: CfgNode, model: nn.Module) -> CfgNode:
    """The config of an evaluation of every head on validation data, student and teacher."""
    sources = list(dict.fromkeys(spec.source for spec in getattr(model, "specs", ())))
    names = list(cfg.FORGETTING.DATASETS) or [f"{source}_val" for source in sources]
    for name in names:
        if name not in DatasetCatalog.list():
            raise ConfigError(f"FORGETTING.DATASETS: no dataset {name!r} is registered")
        if name.endswith("_test"):
            raise ConfigError(
                f"FORGETTING.DATASETS has {name!r}: scores taken during training are chosen by, so "
                "they are of validation data; test once at the end with --eval-only"
            )
    owners = [source_of(name).key for name in names]
    twice = sorted({key for key in owners if owners.count(key) > 1})
    if twice:
        raise ConfigError(f"FORGETTING.DATASETS has several datasets of {', '.join(twice)}")
    scoring = cfg.clone()
    scoring.defrost()
    scoring.DATASETS.TEST = tuple(names)
    scoring.TEACHER.EVALUATE = "both"
    scoring.TEST.FX.BOOTSTRAP = 0  # intervals are not kept, and take most of the time
    scoring.freeze()
    return scoring
