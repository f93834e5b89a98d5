"""Shares of positive labels, for the loss that weighs classes by them."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from detectron2.config import CfgNode
from tqdm import tqdm

from fx_d2.data.build import configure_reading, load_datasets, source_of
from fx_d2.data.draws import rng_for
from fx_d2.data.mapper import FxMapper
from fx_d2.data.sources import get_source
from fx_d2.modeling.heads.spec import HeadSpec, specs_of

_logger = logging.getLogger(__name__)

CLASS_WEIGHTED = "class_weighted"


def with_prevalence(cfg: CfgNode) -> CfgNode:
    """``cfg`` with ``MODEL.FX.CLS.PREVALENCE`` of every source whose loss needs it.

    Shares that are given stay. The others are counted over the training records, so that the config
    in a checkpoint holds them and the loss can be built without the data.
    """
    node = cfg.MODEL.FX.CLS
    if CLASS_WEIGHTED not in (node.LOSS, node.MULTICLASS_LOSS):
        return cfg
    lacking = [spec for spec in specs_of(cfg, "cls") if _needs(cfg, spec)]
    if not lacking:
        return cfg
    configure_reading(cfg)
    mapper = FxMapper(cfg, True)
    found = {}
    for spec in lacking:
        names = [name for name in cfg.DATASETS.TRAIN if source_of(name).key == spec.source]
        if names:
            found[spec.source] = _shares(names, spec.source, mapper)
            _logger.info("MODEL.FX.CLS.PREVALENCE.%s: %s", spec.source, found[spec.source])
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.FX.CLS.PREVALENCE.update(found)
    cfg.freeze()
    return cfg


def _needs(cfg: CfgNode, spec: HeadSpec) -> bool:
    node = cfg.MODEL.FX.CLS
    loss = node.MULTICLASS_LOSS if spec.kind == "multiclass" else node.LOSS
    return loss == CLASS_WEIGHTED and spec.source not in node.PREVALENCE


def _shares(names: Sequence[str], source: str, mapper: FxMapper) -> list[float]:
    """Mean target per class over the records that have one; NaN for a class without any."""
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
        return [round(float(share), 6) for share in total / count]
