"""From a dataset's name to what evaluates it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from fx_d2.data.build import source_of
from fx_d2.data.record import Record
from fx_d2.data.source import TASKS, Source
from fx_d2.data.sources import get_source

from .classification import ClassificationEvaluator
from .detection import DetectionEvaluator
from .operating_point import FIXED, POLICIES, tail_groups, thresholds_of_results
from .results import Results, format_table, write_results
from .segmentation import SegmentationEvaluator
from .truth import TaskEvaluator, Truth

_logger = logging.getLogger(__name__)

EVALUATORS: dict[str, type[TaskEvaluator]] = {
    evaluator.task: evaluator
    for evaluator in (ClassificationEvaluator, DetectionEvaluator, SegmentationEvaluator)
}


class FxEvaluator(DatasetEvaluator):
    """Feeds one output of the model to the evaluators of several tasks of a dataset.

    Args:
        evaluators: of one dataset, one per task.
        output_folder: where ``results.json`` and ``results.md`` are written by the main process;
            None writes nothing.
    """

    def __init__(self, evaluators: Sequence[TaskEvaluator], output_folder: str | None = None):
        self.evaluators, self.output_folder = tuple(evaluators), output_folder

    def reset(self) -> None:
        """Forget everything processed."""
        for evaluator in self.evaluators:
            evaluator.reset()

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Hand a batch to every evaluator; those it has no truth for pass it over."""
        for evaluator in self.evaluators:
            evaluator.process(inputs, outputs)

    def evaluate(self) -> Results:
        """``{"<source>/<task>": {metric: figure}}`` on the main process, empty on the others."""
        results = Results()
        for evaluator in self.evaluators:
            results.add(evaluator.evaluate())
        if comm.is_main_process():
            _logger.info("results:\n%s", format_table(results))
            if self.output_folder:
                write_results(results, self.output_folder)
        return results


def evaluator_options(cfg: Any, dataset_name: str) -> dict[str, dict[str, Any]]:
    """What ``TEST.FX`` says about the evaluators of a dataset, as ``build_evaluator`` takes it.

    Where ``MODEL.FX.LOC.AGNOSTIC`` keeps the classes of a source apart, they are scored apart.
    """
    source, fx = source_of(dataset_name), cfg.TEST.FX
    group_by = {}
    for text in fx.GROUP_BY:
        name, separator, key = (part.strip() for part in text.partition("="))
        if not (separator and key):
            raise ValueError(f"TEST.FX.GROUP_BY has {text!r}; write 'source=key'")
        group_by[get_source(name).key] = key
    return {
        "cls": {
            **_threshold_options(cfg, dataset_name),
            **_group_options(cfg, source),
            "n_bootstrap": fx.BOOTSTRAP,
            "group_by": group_by.get(source.key),
            "seed": max(int(cfg.SEED), 0),
        },
        "loc": {
            "class_agnostic": source.loc_agnostic and cfg.MODEL.FX.LOC.AGNOSTIC,
            "score_threshold": fx.SCORE_THRESHOLD,
            "match_iou": fx.MATCH_IOU,
            "backend": fx.COCO_BACKEND,
        },
        "seg": {"hd95": fx.HD95, "bce": cfg.MODEL.FX.SEG.SOFT_MASKS},
    }


def _threshold_options(cfg: Any, dataset_name: str) -> dict[str, Any]:
    """From which probability a class is called positive."""
    fx, source = cfg.TEST.FX, source_of(dataset_name)
    policy = fx.THRESHOLD_POLICY
    if policy not in POLICIES:
        raise ValueError(f"TEST.FX.THRESHOLD_POLICY is {policy!r}; allowed: {', '.join(POLICIES)}")
    if not source.cls_classes or source.cls_kind == "multiclass":
        return {}
    if fx.THRESHOLD_FROM:
        values, note = thresholds_of_results(fx.THRESHOLD_FROM, source.key, source.cls_classes)
        return {"threshold": values, "threshold_note": note}
    if policy != FIXED and dataset_name.endswith("_test"):
        raise ValueError(
            f"TEST.FX.THRESHOLD_POLICY {policy!r} would choose on {dataset_name}; choose on "
            "validation data, then name its results.json in TEST.FX.THRESHOLD_FROM"
        )
    return {"threshold": fx.THRESHOLD, "policy": policy}


def _group_options(cfg: Any, source: Source) -> dict[str, Any]:
    """Classes by how rare they are in training, where ``TEST.FX.TAIL`` asks for that."""
    bounds, shares = tuple(cfg.TEST.FX.TAIL), cfg.MODEL.FX.CLS.PREVALENCE.get(source.key)
    if not bounds or source.cls_kind != "multilabel":
        return {}
    if len(bounds) != 2 or not 0 < bounds[0] <= bounds[1] < 1:
        raise ValueError(
            f"TEST.FX.TAIL is {bounds}; expected two shares of images, such as (0.01, 0.1), or ()"
        )
    if shares is None:  # not counted: no training data is named
        return {}
    return {
        "groups": tail_groups(source.cls_classes, shares, bounds),
        "groups_note": f"share of positives in training: tail below {bounds[0]:g}, head from "
        f"{bounds[1]:g} on",
    }


def build_evaluator(
    dataset_name: str,
    tasks: Sequence[str] | None = None,
    *,
    records: Sequence[Record] | None = None,
    output_folder: str | None = None,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> FxEvaluator:
    """The evaluator of a registered dataset.

    Args:
        dataset_name: ``<source>_<split>``.
        tasks: what to evaluate; default the tasks that the dataset's metadata names.
        records: of the dataset where they are in memory already (``EvalLoader.records``).
        output_folder: where results are written; None writes nothing.
        options: task -> arguments of its evaluator, ``{"cls": {"group_by": "study_id"}}``; those of
            a config by :func:`evaluator_options`.
    """
    truth = Truth(dataset_name, records)
    chosen = tuple(MetadataCatalog.get(dataset_name).tasks if tasks is None else tasks)
    options = options or {}
    unknown = (set(chosen) | set(options)) - set(EVALUATORS)
    if unknown:
        raise ValueError(f"no evaluator for {sorted(unknown)}; tasks are {tuple(EVALUATORS)}")
    not_annotated = set(chosen) - set(truth.source.all_tasks())
    if not_annotated:
        raise ValueError(
            f"{dataset_name} is not annotated for {sorted(not_annotated)}, only for "
            f"{truth.source.all_tasks()}"
        )
    ordered = [task for task in TASKS if task in chosen]
    evaluators = [EVALUATORS[task](truth, **options.get(task, {})) for task in ordered]
    return FxEvaluator(evaluators, output_folder)
