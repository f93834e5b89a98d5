"""Shares of positive labels, and when losses weigh by them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn
from tqdm import tqdm

from fx_d2.data.build import configure_reading, load_datasets, source_of
from fx_d2.data.draws import rng_for
from fx_d2.data.mapper import FxMapper
from fx_d2.data.sources import get_source
from fx_d2.modeling.heads.classifier import MultiSourceClassifier
from fx_d2.modeling.heads.spec import HeadSpec, specs_of
from fx_d2.modeling.losses import NEED_PREVALENCE

_logger = logging.getLogger(__name__)


def with_prevalence(cfg: CfgNode, *, train: bool = True) -> CfgNode:
    """``cfg`` with ``MODEL.FX.CLS.PREVALENCE`` and ``LABELLED`` of every source that needs them.

    What is given stays. The others are counted over the training records, so that the config in a
    checkpoint holds them and neither loss nor evaluation needs the data.

    Args:
        cfg: of the run.
        train: whether losses need them; else only the groups of ``TEST.FX.TAIL`` do.
    """
    lacking = [spec for spec in specs_of(cfg, "cls") if _needs(cfg, spec, train)]
    if not lacking:
        return cfg
    configure_reading(cfg)
    mapper = FxMapper(cfg, True)
    shares, numbers = {}, {}
    for spec in lacking:
        names = [name for name in cfg.DATASETS.TRAIN if source_of(name).key == spec.source]
        if names:
            shares[spec.source], numbers[spec.source] = _counted(names, spec.source, mapper)
            _logger.info("MODEL.FX.CLS.PREVALENCE.%s: %s", spec.source, shares[spec.source])
    cfg = cfg.clone()
    cfg.defrost()
    node = cfg.MODEL.FX.CLS
    node.PREVALENCE.update({k: v for k, v in shares.items() if k not in node.PREVALENCE})
    node.LABELLED.update({k: v for k, v in numbers.items() if k not in node.LABELLED})
    cfg.freeze()
    return cfg


def _needs(cfg: CfgNode, spec: HeadSpec, train: bool) -> bool:
    node = cfg.MODEL.FX.CLS
    loss = node.MULTICLASS_LOSS if spec.kind == "multiclass" else node.LOSS
    loss = loss if train else ""
    if loss == "ldam" and node.LDAM.REWEIGH_FROM < 1 and spec.source not in node.LABELLED:
        return True
    grouped = bool(cfg.TEST.FX.TAIL) and spec.kind == "multilabel"
    return (grouped or loss in NEED_PREVALENCE) and spec.source not in node.PREVALENCE


def _counted(names: Sequence[str], source: str, mapper: FxMapper) -> tuple[list[float], list[int]]:
    """Per class the mean target of the records that have one, NaN without any; and their number."""
    classes = get_source(source).cls_classes
    total, count = np.zeros(len(classes)), np.zeros(len(classes))
    records = load_datasets(names)
    for index, record in enumerate(tqdm(records, desc=f"prevalence of {source}", delay=2)):
        if "labels" in record:
            rng = rng_for(mapper.seed, "prevalence", source, index)
            # Targets, not labels: what the policies make of uncertain and unknown ones counts.
            targets = mapper.label_policy.targets(record["labels"], source, classes, rng)
            total += np.nan_to_num(targets)
            count += ~np.isnan(targets)
    with np.errstate(invalid="ignore"):
        return [round(float(share), 6) for share in total / count], [int(n) for n in count]


class Reweighting(HookBase):
    """Turns the weights of the ``ldam`` loss on, late in a run (``LDAM.REWEIGH_FROM``).

    Args:
        heads: those of image labels.
        start_iter: the first iteration with weights.
    """

    def __init__(self, heads: MultiSourceClassifier, start_iter: int) -> None:
        self.heads, self.start_iter = heads, start_iter

    def before_step(self) -> None:
        """By the iteration alone, so that a resumed run does the same."""
        self.heads.reweighted = self.trainer.iter >= self.start_iter


def reweighting(cfg: CfgNode, model: nn.Module) -> Reweighting | None:
    """The hook of a run with ``ldam``; None where there is nothing to turn on."""
    node = cfg.MODEL.FX.CLS
    heads = getattr(model, "heads", {})
    if "ldam" not in (node.LOSS, node.MULTICLASS_LOSS) or "cls" not in heads:
        return None
    return Reweighting(heads["cls"], round(node.LDAM.REWEIGH_FROM * cfg.SOLVER.MAX_ITER))
