"""The images a model fails on, as sheets: from weights and a dataset to pictures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from tqdm import tqdm

from fx_d2.data.build import EvalLoader, build_eval_loader, source_of
from fx_d2.data.draw import Picture, contact_sheet
from fx_d2.data.draw_mistakes import draw_mistake
from fx_d2.data.draw_predictions import Look
from fx_d2.data.mapper import FxMapper
from fx_d2.evaluation import build_evaluator, evaluator_options
from fx_d2.evaluation.per_image import Mistake, Row, read_per_image, worst_images

from .checkpoint import config_of, load_weights, read_description
from .checks import check_config, check_loaded, evaluated_tasks
from .setup import ConfigError, config_errors, hint
from .step import precision_of
from .trainer import FxTrainer
from .weights import CheckpointError, resolve


class WorstImages:
    """Finds and draws the images of a dataset that a model is most wrong about.

    Args:
        cfg: of the model; its ``DATASETS.TEST`` does not matter.
        weights: a file, or the output folder of a run.
        dataset: registered name.

    Raises:
        ConfigError, CheckpointError: a setting, the dataset or the weights cannot be used.
    """

    def __init__(self, cfg: CfgNode, weights: str, dataset: str) -> None:
        self.weights, self.dataset = resolve(weights), dataset
        given = cfg
        cfg = cfg.clone()
        cfg.defrost()
        cfg.DATASETS.TEST = (dataset,)
        cfg.MODEL.FX.TRUNK.PRETRAINED = ""  # all weights are in the checkpoint
        cfg.MODEL.FX.SEG.SOFT_MASKS = False
        cfg.TEST.FX.BOOTSTRAP, cfg.TEST.FX.HD95 = 0, False  # say nothing about single images
        cfg.freeze()
        check_config(cfg, train=False)
        self.cfg, self.source = cfg, source_of(dataset)
        with config_errors():
            self.model: nn.Module = FxTrainer.build_model(cfg).eval()
        self.tasks = evaluated_tasks(cfg, dataset, self.model)
        check_loaded(cfg, self.model, load_weights(self.model, self.weights))
        self.read_from: dict[str, Path] = {}  # by task, the folder of the results that were used
        self._metrics = _metrics_of_same_setting(self.weights, given)
        self._folders = dict.fromkeys((self.weights.parent, Path(cfg.OUTPUT_DIR)))
        self._loader = build_eval_loader(cfg, dataset, self.tasks)
        records = self._loader.records
        self._places = {record["image_id"]: place for place, record in enumerate(records)}

    def chosen(self, task: str | None = None, cls: str | None = None) -> dict[str, str | None]:
        """``{task: class or None for all}`` of what is asked for.

        Raises:
            ConfigError: there is no such task or class here; the message has near names.
        """
        if task is not None and task not in self.tasks:
            raise ConfigError(
                f"task {task!r} of {self.dataset} cannot be evaluated with this model and "
                f"DATASETS.TASKS; possible: {', '.join(self.tasks)}"
            )
        tasks = self.tasks if task is None else (task,)
        if cls is None:
            return dict.fromkeys(tasks)
        having = [t for t in tasks if t != "loc" and cls in self.source.classes(t)]
        if not having:
            named = (name for t in tasks if t != "loc" for name in self.source.classes(t))
            known = list(dict.fromkeys(named))
            if not known:
                raise ConfigError("boxes are counted over all classes; leave the class out")
            problem = f"{self.source.key} has no class {cls!r} of {' or '.join(tasks)}"
            raise ConfigError(hint(problem, cls, known) + f" It has {', '.join(known)}")
        return dict.fromkeys(having, cls)

    def mistakes(
        self, chosen: Mapping[str, str | None], num: int
    ) -> list[tuple[str, str, list[Mistake]]]:
        """(task, class or "", the worst images first) of everything chosen."""
        return [
            (task, name, found)
            for task, rows in self._rows(tuple(chosen)).items()
            for name, found in worst_images(rows, task, num).items()
            if chosen[task] in (None, name)
        ]

    def _rows(self, tasks: Sequence[str]) -> dict[str, list[Row]]:
        """The figures of all images: those of an evaluation that was written, else of a new one."""
        found: dict[str, list[Row]] = {}
        for task in tasks:
            for folder in self._folders:
                rows = read_per_image(
                    folder,
                    self.dataset,
                    task,
                    metrics=self._metrics,
                    image_ids=self._places,
                )
                if rows is not None:
                    found[task], self.read_from[task] = rows, folder
                    break
        missing = [task for task in tasks if task not in found]
        if missing:
            found |= self._evaluated(missing)
        return {task: found[task] for task in tasks}

    def _evaluated(self, tasks: Sequence[str]) -> dict[str, list[Row]]:
        options = evaluator_options(self.cfg, self.dataset)
        records = self._loader.records
        evaluator = build_evaluator(self.dataset, tasks, records=records, options=options)
        for batch, outputs in self._outputs(self._loader, tasks, "evaluating"):
            evaluator.process(batch, outputs)
        results = evaluator.evaluate()
        return {task: results.per_image[f"{self.dataset}_{task}"].rows() for task in tasks}

    def sheet(self, task: str, cls: str, found: Sequence[Mistake], *, size_px: int) -> Picture:
        """A row per image: the film, its truth, the prediction; of ``cls`` three films in a row.

        Args:
            task: what is shown.
            cls: class of labels or masks; "" shows all.
            found: in the order of the rows, at least one.
            size_px: longer side of a film.
        """
        records = [self._loader.records[self._places[m.image_id]] for m in found]
        outputs: Iterable[Mapping[str, Any]] = repeat({}, len(records))
        if task != "cls":  # whose probability is in the text already
            mapper = FxMapper(self.cfg, False, targets=False)
            loader = EvalLoader(records, mapper, (task,), batch_size=self.cfg.SOLVER.IMS_PER_BATCH)
            batches = self._outputs(loader, (task,), f"drawing {cls or task}")
            outputs = (output for _, batch in batches for output in batch)
        head = f"{self.source.key}/{task}"
        classes = {spec.name: spec.classes for spec in getattr(self.model, "specs", ())}
        own = classes.get(head, self.source.classes(task))
        look = Look({head: own}, self.cfg.TEST.FX.SCORE_THRESHOLD, size_px)
        rows: list[Picture] = []
        for record, mistake, output in zip(records, found, outputs, strict=True):
            rows += draw_mistake(record, self.source, task, cls, output, look, text=mistake.text)
        return contact_sheet(rows, columns=3)

    def _outputs(
        self, loader: EvalLoader, tasks: Sequence[str], what: str
    ) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
        """Batches with what the heads of these tasks say."""
        ask = getattr(self.model, "asking", nullcontext)
        heads = [(self.source.key, task) for task in tasks]
        for batch in tqdm(loader, desc=what, unit="batch", delay=2):
            with torch.inference_mode(), precision_of(self.cfg), ask(heads):
                outputs = self.model(batch)
            yield batch, outputs


def _metrics_of_same_setting(weights: Path, cfg: CfgNode) -> dict[str, Any]:
    """The metrics beside the weights; none where they were measured with other settings."""
    try:
        description = read_description(weights)
        then = config_of(description)
    except (CheckpointError, KeyError):
        return {}
    same = then.INPUT == cfg.INPUT and then.MODEL.FX == cfg.MODEL.FX and then.TEST.FX == cfg.TEST.FX
    metrics = description.get("metrics")
    return metrics if same and isinstance(metrics, dict) else {}
