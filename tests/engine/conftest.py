"""A small source on disk and a small registered model, to run the real loop on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from fx_d2.config import add_fx_config
from fx_d2.data.builtin import register_source
from fx_d2.data.masks import encode_mask
from fx_d2.data.source import Source, official
from fx_d2.data.sources import SOURCES
from fx_d2.modeling.heads.spec import HeadSpec, head_specs

sys.path.insert(0, str(Path(__file__).parent))  # makes ``runs`` importable

SIDE = 32
KEY = "toy_engine"


def _read(request: Any) -> Iterator[dict[str, Any]]:
    """Bright lower half: class "Low"; every third image has no known labels."""
    for file in sorted(request.root.glob(f"{request.part}_*.png")):
        number = int(file.stem.rpartition("_")[2])
        low = np.zeros((SIDE, SIDE), dtype=bool)
        low[SIDE // 2 :] = number % 2
        labels = [number % 2, np.nan] if number % 3 else [np.nan, np.nan]
        yield {
            "file_name": str(file),
            "image_id": file.stem,
            "height": SIDE,
            "width": SIDE,
            "source": KEY,
            "patient_id": file.stem,
            "view": "PA",
            "labels": np.array(labels, dtype=np.float32),
            "masks": {"Low": encode_mask(low)},
        }


ROW = Source(
    key=KEY,
    title="Toy",
    folder=KEY,
    reader=_read,
    splits=official(train="train", val="val"),
    tasks=("cls", "seg"),
    cls_classes=("Low", "Other"),
    seg_classes=("Low",),
    licence="none",
    homepage="none",
    citation="none",
    access="open",
)


class ToyChest(nn.Module):
    """Dropout in its trunk, so that a step depends on random state; heads as FoundationX has."""

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        self.specs: list[HeadSpec] = head_specs(cfg)
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.3)
        )
        self.heads = nn.ModuleDict({"cls": nn.ModuleDict(), "seg": nn.ModuleDict()})
        for spec in self.specs:
            size = len(spec.classes)
            head = nn.Linear(8 * 2, size) if spec.task == "cls" else nn.Conv2d(8, size, 1)
            self.heads[spec.task][spec.source] = head
        self.broken: float | None = None  # makes the loss not finite

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        """As FoundationX."""
        device = next(self.parameters()).device
        features = self.trunk(torch.stack([item["image"] for item in batch]).to(device))
        halves = features.unflatten(2, (2, -1)).mean((3, 4)).flatten(1)
        if not self.training:
            return [self._predict(*rows) for rows in zip(features, halves, strict=True)]
        source, task = batch[0]["source"], batch[0]["task"]
        if task == "cls":
            logits, target = self.heads["cls"][source](halves), [i["labels"] for i in batch]
        else:
            logits, target = self.heads["seg"][source](features), [i["sem_masks"] for i in batch]
        target = torch.stack(target).to(device).float()
        known = ~target.isnan()
        values = nn.functional.binary_cross_entropy_with_logits(
            logits.float(), target.nan_to_num(), reduction="none"
        )
        loss = (values * known).sum() / known.sum().clamp(min=1)
        return {f"loss_{task}_bce": loss if self.broken is None else loss * self.broken}

    def _predict(self, features: torch.Tensor, halves: torch.Tensor) -> dict[str, Any]:
        labels, masks = {}, {}
        for spec in self.specs:
            head = self.heads[spec.task][spec.source]
            if spec.task == "cls":
                found = head(halves).sigmoid().tolist()
                labels[spec.source] = dict(zip(spec.classes, found, strict=True))
            else:
                found = head(features[None])[0] > 0
                masks[spec.source] = dict(zip(spec.classes, found, strict=True))
        return {"labels": labels, "instances": {}, "masks": masks}


if "ToyChest" not in META_ARCH_REGISTRY:
    META_ARCH_REGISTRY.register(ToyChest)


@pytest.fixture
def toy_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of 12 training and 8 validation images, registered while the test runs."""
    folder = tmp_path / "datasets" / KEY
    folder.mkdir(parents=True)
    rng = np.random.default_rng(3)
    for part, count in (("train", 12), ("val", 8)):
        for number in range(count):
            image = rng.integers(0, 120, (SIDE, SIDE), dtype=np.uint8)
            image[SIDE // 2 :] += np.uint8(100 * (number % 2))
            assert cv2.imwrite(str(folder / f"{part}_{number:02d}.png"), image)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder.parent))
    register_source(ROW)
    yield folder
    for split in ROW.splits:
        DatasetCatalog.remove(f"{KEY}_{split}")
        MetadataCatalog.remove(f"{KEY}_{split}")
    del SOURCES[KEY]


@pytest.fixture
def toy_cfg(toy_source: Path, tmp_path: Path) -> Callable[..., CfgNode]:
    """A config that trains ToyChest on the toy source; further options as ``SOLVER__BASE_LR=1``."""

    def build(name: str = "run", **options: Any) -> CfgNode:
        cfg = get_cfg()
        add_fx_config(cfg)
        cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "ToyChest"
        cfg.INPUT.FX.SIZE, cfg.DATALOADER.NUM_WORKERS = SIDE, 0
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (f"{KEY}_train",), (f"{KEY}_val",)
        cfg.DATASETS.TASKS = ("cls", "seg")
        cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR = 4, 12, 0.01
        cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD = 3, 5
        cfg.SOLVER.LR_SCHEDULER_NAME = "WarmupCosineLR"
        cfg.SOLVER.FX.LOG_PERIOD = 1
        cfg.OUTPUT_DIR, cfg.SEED = str(tmp_path / name), 3
        cfg.merge_from_list([x for k, v in options.items() for x in (k.replace("__", "."), v)])
        return cfg

    return build
