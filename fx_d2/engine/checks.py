"""What can be known to be wrong before anything is built or trained, each said in one line."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import (
    BACKBONE_REGISTRY,
    META_ARCH_REGISTRY,
    ROI_HEADS_REGISTRY,
    SEM_SEG_HEADS_REGISTRY,
)
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.roi_heads import ROI_BOX_HEAD_REGISTRY, ROI_MASK_HEAD_REGISTRY
from torch import nn

from fx_d2.data.build import source_of, tasks_of
from fx_d2.data.formats.contract import VOI_POLICIES
from fx_d2.data.intensity import MODES
from fx_d2.data.label_policy import UNCERTAIN_POLICIES, UNKNOWN_POLICIES, Rule
from fx_d2.data.sources import get_source
from fx_d2.evaluation import evaluator_options
from fx_d2.evaluation.coco_ap import BACKENDS
from fx_d2.modeling.heads import CLASSIFIER_REGISTRY
from fx_d2.modeling.meta_arch.student_teacher import PREFIX as TEACHER
from fx_d2.modeling.meta_arch.student_teacher import evaluated_models

from .metric_patterns import check_metric_patterns, result_keys
from .setup import ConfigError, config_errors, hint, load_config
from .weights import CheckpointError

_REGISTRIES = {
    "MODEL.META_ARCHITECTURE": META_ARCH_REGISTRY,
    "MODEL.BACKBONE.NAME": BACKBONE_REGISTRY,
    "MODEL.PROPOSAL_GENERATOR.NAME": PROPOSAL_GENERATOR_REGISTRY,
    "MODEL.ANCHOR_GENERATOR.NAME": ANCHOR_GENERATOR_REGISTRY,
    "MODEL.ROI_HEADS.NAME": ROI_HEADS_REGISTRY,
    "MODEL.ROI_BOX_HEAD.NAME": ROI_BOX_HEAD_REGISTRY,
    "MODEL.ROI_MASK_HEAD.NAME": ROI_MASK_HEAD_REGISTRY,
    "MODEL.SEM_SEG_HEAD.NAME": SEM_SEG_HEADS_REGISTRY,
    "MODEL.FX.CLS.NAME": CLASSIFIER_REGISTRY,
}
# Settings whose own error, where they are used, does not say which key it was.
_NORMS = ("", "GN", "LN", "BN", "SyncBN", "FrozenBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
_CHOICES: dict[str, tuple[str, ...]] = {
    "MODEL.FX.SEG.NORM": _NORMS,
    "MODEL.FPN.NORM": _NORMS,
    "SOLVER.LR_SCHEDULER_NAME": (
        "WarmupCosineLR",
        "WarmupMultiStepLR",
        "WarmupStepWithFixedGammaLR",
    ),
    "INPUT.FX.INTENSITY.MODE": tuple(MODES),
    "INPUT.FX.INTENSITY.VOI": tuple(VOI_POLICIES),
    "INPUT.FX.UNCERTAIN": UNCERTAIN_POLICIES,
    "INPUT.FX.UNKNOWN": UNKNOWN_POLICIES,
    "DATALOADER.FX.LAST_BATCH": ("fill", "drop", "keep"),
    "DATALOADER.FX.START_METHOD": ("", "fork", "spawn", "forkserver"),
    "DATASETS.ON_ERROR": ("raise", "skip"),
    "TEST.FX.COCO_BACKEND": tuple(BACKENDS),
}
# (smallest, largest), both allowed.
_RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(
        (
            "SOLVER.IMS_PER_BATCH",
            "SOLVER.MAX_ITER",
            "SOLVER.CHECKPOINT_PERIOD",
            "SOLVER.FX.LOG_PERIOD",
            "INPUT.FX.SIZE",
            "DATALOADER.FX.PREFETCH",
            "MODEL.FX.CLS.LOCAL.DIM",
        ),
        (1, math.inf),
    ),
    **dict.fromkeys(
        (
            "SOLVER.BASE_LR",
            "SOLVER.WEIGHT_DECAY",
            "SOLVER.WARMUP_ITERS",
            "SOLVER.FX.KEEP_LAST",
            "SOLVER.FX.CLIP_NORM",
            "SOLVER.FX.STUCK_AFTER_S",
            "TEST.EVAL_PERIOD",
            "TEST.FX.BOOTSTRAP",
            "DATALOADER.NUM_WORKERS",
            "MODEL.FX.CLS.PROJECTOR",
            "MODEL.FX.SEG.CHANNELS",
        ),
        (0, math.inf),
    ),
    **dict.fromkeys(
        (
            "MODEL.FX.CLS.DROPOUT",
            "MODEL.FX.SEG.DROPOUT",
            "MODEL.FX.SEG.THRESHOLD",
            "TEST.FX.THRESHOLD",
            "TEST.FX.SCORE_THRESHOLD",
            "TEST.FX.MATCH_IOU",
        ),
        (0, 1),
    ),
}


def checked_config(args: argparse.Namespace) -> CfgNode:
    """The config of the command line of ``tools/train_net.py``, if what it asks for can be done."""
    cfg = load_config(args.config_file, args.opts)
    check_config(cfg, train=not args.eval_only)
    if cfg.MODEL.FX.ENSEMBLE and not args.eval_only:
        raise ConfigError(
            "MODEL.FX.ENSEMBLE is evaluated, not trained: add --eval-only, or leave it empty and "
            "train its members one by one"
        )
    if args.eval_only and not (args.resume or cfg.MODEL.WEIGHTS or cfg.MODEL.FX.ENSEMBLE):
        raise ConfigError(
            "--eval-only needs weights: name MODEL.WEIGHTS, or --resume for those in OUTPUT_DIR"
        )
    return cfg


def check_config(cfg: CfgNode, *, train: bool) -> None:
    """Raise for a setting that no run could use, or a dataset or task that does not exist.

    Args:
        cfg: any.
        train: whether ``DATASETS.TRAIN`` matters.
    """
    _check_names(cfg)
    _check_numbers(cfg)
    _check_prevalence(cfg)
    if not cfg.OUTPUT_DIR:
        raise ConfigError("OUTPUT_DIR is empty; name a folder")
    _check_device(str(cfg.MODEL.DEVICE))
    _check_datasets(cfg, train)


def _check_names(cfg: CfgNode) -> None:
    for key, registry in _REGISTRIES.items():
        name = _at(cfg, key)
        if name and name not in registry:
            known = sorted(entry for entry, _ in registry)
            raise ConfigError(
                hint(f"{key} is {name!r}", name, known) + f" Registered: {', '.join(known)}"
            )
    for key, allowed in _CHOICES.items():
        if _at(cfg, key) not in allowed:
            names = ", ".join(map(repr, allowed))
            raise ConfigError(f"{key} is {_at(cfg, key)!r}; allowed: {names}")


def _check_numbers(cfg: CfgNode) -> None:
    for key, (low, high) in _RANGES.items():
        value = _at(cfg, key)
        if not (isinstance(value, (int, float)) and low <= value <= high and value < math.inf):
            span = f"{low} or more" if high == math.inf else f"{low} to {high}"
            raise ConfigError(f"{key} is {value}; allowed: {span}")


def _at(cfg: CfgNode, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


def _check_prevalence(cfg: CfgNode) -> None:
    for key, what, largest in (("PREVALENCE", "shares", 1), ("LABELLED", "numbers", math.inf)):
        for source, values in cfg.MODEL.FX.CLS[key].items():
            with config_errors():
                classes = get_source(source).cls_classes
            good = isinstance(values, (list, tuple)) and len(values) == len(classes)
            # NaN is allowed: the share of a class that is never annotated.
            good = good and all(
                isinstance(v, (int, float)) and not (v < 0 or v > largest) for v in values
            )
            if not good:
                span = f"{what} from 0 to 1" if largest == 1 else f"{what} of 0 or more"
                raise ConfigError(
                    f"MODEL.FX.CLS.{key}.{source} is {values}; expected {len(classes)} {span}, "
                    f"of {', '.join(classes)}; or leave it out: training counts them"
                )


def _check_device(name: str) -> None:
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise ConfigError(f"MODEL.DEVICE is {name!r}; expected cpu, cuda or cuda:<number>") from exc
    found = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= found:
        raise ConfigError(f"MODEL.DEVICE is {name!r}; this machine has {found} GPUs")


def _check_datasets(cfg: CfgNode, train: bool) -> None:
    """Settings of the evaluation too: at the end of a training it would be too late."""
    with config_errors():
        for key in ("TRAIN", "TEST") if train else ("TEST",):
            for name in cfg.DATASETS[key]:
                tasks_of(cfg, source_of(name))
        for name in cfg.DATASETS.TEST:
            evaluator_options(cfg, name)
        fx = cfg.INPUT.FX
        Rule.parse(fx.UNCERTAIN, fx.UNCERTAIN_BY, UNCERTAIN_POLICIES)
        Rule.parse(fx.UNKNOWN, fx.UNKNOWN_BY, UNKNOWN_POLICIES)
    empty = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[empty]:
        raise ConfigError(f"DATASETS.{empty} is empty: name one or more datasets")


def check_heads(cfg: CfgNode, model: nn.Module, *, train: bool = True) -> None:
    """Raise when a dataset has no head, or results are asked for that no evaluation gives.

    Args:
        cfg: names the datasets.
        model: with its heads.
        train: whether ``DATASETS.TRAIN`` matters.
    """
    specs = getattr(model, "specs", None)
    if train and specs is not None:
        for name in cfg.DATASETS.TRAIN:
            _check_trained(cfg, name, specs)
    tasks = {name: evaluated_tasks(cfg, name, model) for name in cfg.DATASETS.TEST}
    answers = evaluated_models(model, cfg.TEACHER.EVALUATE)
    keys = result_keys(tasks, answers)
    _check_expected(cfg.TEST.EXPECTED_RESULTS, list(keys))
    if train:
        check_metric_patterns(cfg, keys)


def _check_trained(cfg: CfgNode, name: str, specs: Iterable[Any]) -> None:
    source = source_of(name)
    there = {spec.task for spec in specs if spec.source == source.key}
    missing = [task for task in tasks_of(cfg, source) if task not in there]
    if missing:
        raise ConfigError(
            f"DATASETS.TRAIN names {name!r}, but the model has no head {source.key}/{missing[0]}; "
            f"it has {_names(specs)}. Add it to MODEL.FX.SOURCES, or leave that empty"
        )


def evaluated_tasks(cfg: CfgNode, name: str, model: nn.Module) -> tuple[str, ...]:
    """The tasks of a dataset that the model has heads for; none is an error."""
    source = source_of(name)
    specs = getattr(model, "specs", None)
    tasks = tasks_of(cfg, source)
    if specs is not None:
        there = {(spec.source, spec.task) for spec in specs}
        tasks = tuple(task for task in tasks if (source.key, task) in there)
    if not tasks:
        raise ConfigError(
            f"DATASETS.TEST names {name!r}, but the model has no head for {source.key}; it has "
            + _names(specs or ())
        )
    return tasks


def _names(specs: Iterable[Any]) -> str:
    return ", ".join(spec.name for spec in specs)


def _check_expected(rows: Iterable[Any], known: Sequence[str]) -> None:
    for row in rows:
        good = isinstance(row, (list, tuple)) and len(row) == 4
        good = good and all(isinstance(v, str) for v in row[:2])
        good = good and all(isinstance(v, (int, float)) for v in row[2:])
        if not good:
            raise ConfigError(
                f"TEST.EXPECTED_RESULTS has {row}; write ['source/task', metric, value, tolerance]"
            )
        if row[0] not in known:
            problem = f"TEST.EXPECTED_RESULTS has {row[0]!r}, which is not evaluated"
            raise ConfigError(
                hint(problem, row[0], known) + f" Evaluated: {', '.join(known) or 'nothing'}"
            )


def check_loaded(cfg: CfgNode, model: nn.Module, report: Any) -> None:
    """Raise when a part that an evaluation uses did not come from the weights file.

    Its initial values would give figures that look like a bad model's.

    Args:
        cfg: names the datasets.
        model: as it was built.
        report: of :func:`fx_d2.engine.checkpoint.load_weights`; None when nothing was loaded.
    """
    if report is None:
        raise ConfigError(
            f"no weights to evaluate: {cfg.OUTPUT_DIR} has no checkpoint and MODEL.WEIGHTS is empty"
        )
    used = {
        f"heads.{task}.{source_of(name).key}"
        for name in cfg.DATASETS.TEST
        for task in evaluated_tasks(cfg, name, model)
    }
    missing = [*report.new, *(n for n, *_ in report.mismatched)]
    missing += [n for n, _ in report.other_classes]
    parts = [".".join(name.removeprefix(TEACHER).split(".")[:3]) for name in missing]
    needed = [
        name
        for name, part in zip(missing, parts, strict=True)
        if part in used or not part.startswith("heads.")
    ]
    if needed:
        why = next((line.strip() for line in report.summary().splitlines()[1:]), "")
        raise CheckpointError(
            f"{len(needed)} tensors that this evaluation needs are not in it, first {needed[0]} "
            f"({why[:90]})",
            file=report.path,
            fix="evaluate with the config of that run (its .json holds it)",
        )
