"""A lung segmentor and a classifier made by hand, for tests that know what has to come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from fx_d2.data.images import read_image
from fx_d2.engine.setup import load_config
from fx_d2.modeling.heads.spec import HeadSpec
from fx_d2.pipelines.committee_members import Member
from fx_d2.pipelines.lung_classifier import LungClassifier
from fx_d2.pipelines.lung_masks import MaskRecipe
from fx_d2.pipelines.mask_ensemble import Cleaning

ROOT = Path(__file__).resolve().parents[2]
QUICK = str(ROOT / "configs/quick_schedules/foundation_x_instant_test.yaml")


class BrightTrunk(nn.Module):
    """The mean of 8 x 8 pixels, in one channel: a map of how bright a place is."""

    size_divisibility = 8

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AvgPool2d(8)

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(images[:, :1])


class BrightClassifier(nn.Module):
    """Its first class grows with the brightest place, its second falls; multilabel."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = BrightTrunk()

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def label_logits(self, batch: list[dict[str, Any]], _source: str) -> Tensor:
        places = self.trunk(torch.stack([item["image"] for item in batch]))
        score = 8 * places.flatten(1).amax(1) - 4
        return torch.stack([score, -score], dim=1)


def bright_config(*overrides: str) -> CfgNode:
    fixed = ("MODEL.DEVICE", "cpu", "INPUT.FX.SIZE", "64", "INPUT.FX.INTENSITY.MODE", "depth")
    return load_config(QUICK, [*fixed, *overrides])


def bright_classifier(*overrides: str) -> LungClassifier:
    spec = HeadSpec("nih14", "cls", ("Mass", "No Finding"))
    member = Member(
        name="bright",
        module=BrightClassifier(),
        spec=spec,
        places=(0, 1),
        layer="trunk.pool",
        weight=np.ones(2),
        checksum="0" * 64,
        origin={"weights_sha256": "0" * 64},
        inputs=None,  # type: ignore[arg-type]
    )
    return LungClassifier(member, bright_config(*overrides))


@dataclass
class PaintedLungs:
    """Calls lung what a file beside the film says, ``<film>.lungs``; the same for every model."""

    names: tuple[str, ...] = ("painted",)
    recipe: MaskRecipe = field(default_factory=lambda: MaskRecipe(cleaning=Cleaning(dilate=0.0)))

    def probabilities(self, image: Any) -> np.ndarray:
        loaded = read_image(image)
        height, width = loaded.pixels.shape
        mask = cv2.imread(f"{image.__fspath__()}.lungs", cv2.IMREAD_UNCHANGED)
        if mask is None:
            mask = np.zeros((height, width), dtype=np.uint8)
            rows = slice(height // 5, height * 4 // 5)
            mask[rows, width // 6 : width * 5 // 12] = 255
            mask[rows, width * 7 // 12 : width * 5 // 6] = 255
        return np.repeat((mask > 0).astype(np.float32)[None], len(self.names), axis=0)

    def origin(self) -> list[dict[str, Any]]:
        return [{"name": n, "source": "none", "weights_sha256": "0" * 64} for n in self.names]
