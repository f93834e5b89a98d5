"""A model of a few hundred thousand parameters, and batches for its heads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from fx_d2 import add_fx_config
from fx_d2.data.sources import get_source

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside that are no tests

SIDE = 64
BASE = "configs/Base-FX.yaml"


def make_tiny(cfg: CfgNode) -> CfgNode:
    """The same layout with few and narrow layers."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.FX.SIZE = SIDE
    cfg.MODEL.FX.TRUNK.NAME, cfg.MODEL.FX.TRUNK.PRETRAINED = "swin_t", ""
    cfg.MODEL.FX.TRUNK.DROP_PATH = 0.0
    tiny = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    cfg.MODEL.FX.TRUNK.KWARGS.update(tiny)
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32, 16
    cfg.MODEL.FX.SEG.CHANNELS, cfg.MODEL.FX.CLS.LOCAL.DIM = 16, 16
    return cfg


@pytest.fixture
def tiny_cfg(pytestconfig: pytest.Config) -> Callable[..., CfgNode]:
    """Base-FX.yaml, tiny, with heads for the named sources and any further options."""

    def build(*sources: str, **options: Any) -> CfgNode:
        cfg = get_cfg()
        add_fx_config(cfg)
        cfg.merge_from_file(str(pytestconfig.rootpath / BASE))
        make_tiny(cfg)
        cfg.MODEL.FX.SOURCES = sources
        cfg.MODEL.FX.SEG.DROPOUT = 0.0
        cfg.merge_from_list([x for k, v in options.items() for x in (k.replace("__", "."), v)])
        return cfg

    return build


@pytest.fixture
def tiny_model(tiny_cfg: Callable[..., CfgNode]) -> Callable[..., torch.nn.Module]:
    """The model of :func:`tiny_cfg`, the same weights every time."""

    def build(*sources: str, **options: Any) -> torch.nn.Module:
        torch.manual_seed(0)
        return build_model(tiny_cfg(*sources, **options))

    return build


def make_item(source: str, task: str, number: int = 0, side: int = SIDE) -> dict[str, Any]:
    """One image with targets as the mapper gives them, in an original of 120 x 90 pixels."""
    row = get_source(source)
    rng = torch.Generator().manual_seed(number)
    item: dict[str, Any] = {
        "image": torch.rand(3, side, side, generator=rng),
        "image_id": f"image{number}",
        "source": source,
        "task": task,
        "height": 120,
        "width": 90,
        "content_size": (side, side),
    }
    if task == "cls":
        labels = torch.zeros(len(row.cls_classes))
        labels[number % len(labels)] = 1.0
        item["labels"] = labels
    elif task == "loc":
        found = Instances((side, side))
        found.gt_boxes = Boxes(torch.tensor([[8.0, 10.0, 30.0, 28.0], [40.0, 40.0, 60.0, 58.0]]))
        found.gt_classes = torch.tensor([0, len(row.thing_classes) - 1])
        if row.instance_masks:
            masks = torch.zeros(2, side, side, dtype=torch.bool)
            masks[0, 10:28, 8:30] = masks[1, 40:58, 40:60] = True
            found.gt_masks = BitMasks(masks)
        item["instances"] = found
    else:
        masks = torch.zeros(len(row.seg_classes), side, side, dtype=torch.uint8)
        masks[:, 10:28, 8:30] = 1
        item["sem_masks"], item["sem_known"] = masks, torch.ones(len(masks), dtype=torch.bool)
    return item


@pytest.fixture
def item() -> Callable[..., dict[str, Any]]:
    return make_item


@pytest.fixture(autouse=True)
def storage() -> Iterator[EventStorage]:
    """Detectron2's heads write their statistics into one; a trainer opens it."""
    with EventStorage() as opened:
        yield opened
