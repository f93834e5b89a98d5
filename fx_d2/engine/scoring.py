"""Evaluation of a model on the datasets of a config."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

from detectron2.config import CfgNode
from detectron2.evaluation import inference_on_dataset
from detectron2.utils import comm
from torch import nn

from fx_d2.data.build import build_eval_loader, source_of
from fx_d2.data.errors import DataError
from fx_d2.evaluation import Results, build_evaluator, evaluator_options, merge_results, prefixed
from fx_d2.modeling.meta_arch.ensemble import Ensemble
from fx_d2.modeling.meta_arch.student_teacher import StudentTeacher, evaluated_models

from .checks import evaluated_tasks
from .step import precision_of
from .stuck import beat

_logger = logging.getLogger(__name__)


def score(cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Results:
    """Evaluate the datasets of ``DATASETS.TEST`` with the heads of their sources.

    Args:
        cfg: of the run.
        model: with the weights to evaluate; may be wrapped.
        evaluators: one per dataset, in place of those of the package.

    Returns:
        ``{"<source>/<task>": {metric: figure}}`` in the main process, empty elsewhere; where
        ``TEACHER.EVALUATE`` asks for the teacher, its keys begin with ``teacher/``.
    """
    results, plain = Results(), unwrapped(model)
    for who in evaluated_models(plain, cfg.TEACHER.EVALUATE):
        with plain.answering(who) if isinstance(plain, StudentTeacher) else nullcontext():
            found = _scores_of_one(cfg, model, evaluators)
        results.add(prefixed(found, f"{who}/") if who == "teacher" else found)
    if isinstance(plain, Ensemble):
        for notes in results.notes.values():
            notes["ensemble"] = {"of": "mean probability", "members": plain.origin}
    return results


def _scores_of_one(cfg: CfgNode, model: nn.Module, evaluators: Any) -> Results:
    by_dataset: dict[str, Results] = {}
    for number, name in enumerate(cfg.DATASETS.TEST):
        source = source_of(name)
        tasks = evaluated_tasks(cfg, name, unwrapped(model))
        loader = build_eval_loader(cfg, name, tasks)
        evaluator = (
            evaluators[number]
            if evaluators
            else build_evaluator(
                name, tasks, records=loader.records, options=evaluator_options(cfg, name)
            )
        )
        heads = [(source.key, task) for task in tasks]
        plain = unwrapped(model)
        beats = plain.register_forward_pre_hook(lambda *_: beat())
        try:
            with _asking(model, heads), precision_of(cfg):
                by_dataset[name] = inference_on_dataset(plain, loader, evaluator)
        finally:
            beats.remove()
        if loader.skipped:
            _logger.warning("%s: %d images left out", name, len(loader.skipped))
            if comm.is_main_process() and not any(by_dataset[name].values()):
                raise DataError(
                    f"nothing of {name} could be evaluated; {loader.skipped[-1]}",
                    fix="run tools/doctor.py on this source",
                )
    return merge_results(by_dataset) if comm.is_main_process() else Results()


def _asking(model: nn.Module, heads: list[tuple[str, str]]) -> AbstractContextManager[Any]:
    """Only the heads with a truth are run, where the model can be asked."""
    asking = getattr(unwrapped(model), "asking", None)
    return nullcontext() if asking is None else asking(heads)


def unwrapped(model: nn.Module) -> nn.Module:
    """The model within a wrapper for distributed training."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        return cast(nn.Module, model.module)
    return model
