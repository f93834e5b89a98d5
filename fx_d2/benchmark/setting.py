"""What a run of the model benchmark is about, and batches made in memory for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from fx_d2.data.draws import rng_for
from fx_d2.data.source import TASKS
from fx_d2.engine.setup import ConfigError, config_errors, load_config
from fx_d2.modeling.heads.spec import HeadSpec, head_specs

# Every repetition does the same work: weights stay, nothing is clipped (Detectron2's own step does
# not clip either), and the same regions are sampled. Published weights would change no time.
_STEADY = (
    "SOLVER.BASE_LR",
    "0.0",
    "SOLVER.FX.CLIP_NORM",
    "0.0",
    "SOLVER.FX.CLIP_NORM_BY",
    "[]",
    "SOLVER.FX.PRECISION",
    "fp32",
    "MODEL.FX.TRUNK.PRETRAINED",
    "",
)
_BOXES_PER_IMAGE = 3


@dataclass(frozen=True)
class Setting:
    """Everything that decides what is measured; picklable, so that a process can start from it.

    Attributes:
        config_file: of the model.
        overrides: KEY VALUE KEY VALUE ...
        size_px: side of the square images.
        batch: images of a training step.
        seed: of weights, images and targets.
        device: "cpu" or "cuda".
        threads: of torch on the CPU; 0 leaves them.
    """

    config_file: str
    overrides: tuple[str, ...] = ()
    size_px: int = 224
    batch: int = 4
    seed: int = 0
    device: str = "cpu"
    threads: int = 0

    def having(self, *overrides: str) -> Setting:
        """The same with further overrides, which win."""
        return replace(self, overrides=(*self.overrides, *overrides))

    def cfg(self) -> CfgNode:
        """The config; its learning rate is 0."""
        fixed = ("INPUT.FX.SIZE", str(self.size_px), "MODEL.DEVICE", self.device)
        return load_config(self.config_file, (*_STEADY, *fixed, *self.overrides))

    def model(self, cfg: CfgNode | None = None) -> nn.Module:
        """A new model, the same weights every time."""
        torch.manual_seed(self.seed)
        with config_errors():
            return build_model(cfg or self.cfg())


def first_spec(cfg: CfgNode, task: str) -> HeadSpec:
    """The head a task is measured on: the first of the config, one with masks where boxes may be.

    Raises:
        ConfigError: the config has no head of this task.
    """
    with config_errors():
        specs = [spec for spec in head_specs(cfg) if spec.task == task]
    if not specs:
        raise ConfigError(f"the config has no source with a {task} head; see DATASETS.TRAIN")
    return next((spec for spec in specs if spec.instance_masks), specs[0])


def tasks_of(cfg: CfgNode) -> list[str]:
    """The tasks that the config has heads for."""
    with config_errors():
        found = {spec.task for spec in head_specs(cfg)}
    return [task for task in TASKS if task in found]


def make_batch(spec: HeadSpec, cfg: CfgNode, setting: Setting) -> list[dict[str, Any]]:
    """Images and targets of one head, as the mapper gives them, on the device.

    Args:
        spec: the head.
        cfg: its ``MODEL.PIXEL_MEAN`` has one value per channel.
        setting: size, number of images, seed.
    """
    return [
        _item(spec, len(cfg.MODEL.PIXEL_MEAN), setting, number) for number in range(setting.batch)
    ]


def _item(spec: HeadSpec, channels: int, setting: Setting, number: int) -> dict[str, Any]:
    rng = rng_for(setting.seed, "benchmark", spec.name, number)
    side, device = setting.size_px, torch.device(setting.device)
    item: dict[str, Any] = {
        "image": _image(rng, side).expand(channels, -1, -1).contiguous().to(device),
        "image_id": f"synthetic{number}",
        "file_name": "",
        "source": spec.source,
        "task": spec.task,
        "height": side,
        "width": side,
        "content_size": (side, side),
    }
    count = len(spec.classes)
    if spec.task == "cls":
        labels = rng.random(count) < 0.3
        if spec.kind == "multiclass":
            labels = np.arange(count) == rng.integers(count)
        item["labels"] = torch.from_numpy(labels).float().to(device)
    elif spec.task == "loc":
        item["instances"] = _instances(rng, spec, side).to(device)
    else:
        masks = torch.stack([_ellipse(box, side) for box in _boxes(rng, side, count)])
        item["sem_masks"] = masks.to(torch.uint8).to(device)
        item["sem_known"] = torch.ones(count, dtype=torch.bool, device=device)
    return item


def _image(rng: np.random.Generator, side: int) -> Tensor:
    """(1, side, side): smooth, as radiographs are, with noise."""
    coarse = torch.from_numpy(rng.random((1, 1, 8, 8), dtype=np.float32))
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=False)[0]
    noise = torch.from_numpy(rng.standard_normal((1, side, side), dtype=np.float32))
    return (0.8 * smooth + 0.1 + 0.02 * noise).clamp(0, 1)


def _boxes(rng: np.random.Generator, side: int, count: int) -> np.ndarray:
    """(count, 4) XYXY within the image, sides from an eighth to a half of it."""
    extent = rng.uniform(side / 8, side / 2, (count, 2))
    corner = rng.uniform(0, side - extent)
    return np.concatenate([corner, corner + extent], axis=1).astype(np.float32)


def _ellipse(box: Sequence[float], side: int) -> Tensor:
    """Bool (side, side): what fills a box."""
    x0, y0, x1, y1 = map(float, box)
    at = torch.arange(side) + 0.5
    across = ((at - (x0 + x1) / 2) / ((x1 - x0) / 2)) ** 2
    down = ((at - (y0 + y1) / 2) / ((y1 - y0) / 2)) ** 2
    return down[:, None] + across[None, :] <= 1


def _instances(rng: np.random.Generator, spec: HeadSpec, side: int) -> Instances:
    boxes = _boxes(rng, side, _BOXES_PER_IMAGE)
    found = Instances((side, side))
    found.gt_boxes = Boxes(torch.from_numpy(boxes))
    found.gt_classes = torch.from_numpy(rng.integers(len(spec.classes), size=len(boxes)))
    if spec.instance_masks:
        found.gt_masks = BitMasks(torch.stack([_ellipse(box, side) for box in boxes]))
    return found
