"""From pixels of the network's input back to pixels of the original image.

The input is the original resized to ``content_size`` and padded at the right and bottom. Masks are
made one at a time: hundreds of them at 3000 x 2500 pixels would not fit in memory together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances
from torch import Tensor
from torch.nn import functional as F


class BoxMasks:
    """Masks of boxes, pasted into the image only when one is asked for.

    Behaves as a bool tensor (R, height, width) where Detectron2 and its evaluators look at
    ``pred_masks``: length, shape, iteration, ``masks[3]`` a mask, ``masks[keep]`` fewer of them.

    Args:
        maps: (R, m, m) probabilities within each box.
        boxes: (R, 4) XYXY in pixels of the image.
        size: (height, width) of the image.
        threshold: probability from which a pixel belongs to the mask.
    """

    def __init__(
        self, maps: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5
    ) -> None:
        self.maps, self.boxes, self.size, self.threshold = maps, boxes, size, threshold

    @property
    def shape(self) -> tuple[int, int, int]:
        """(R, height, width)."""
        return (len(self.maps), *self.size)

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, item: int | slice | Tensor) -> Any:
        if isinstance(item, int):
            # Not a slice from -1 to 0, and an IndexError past the end, which ends an iteration.
            item = range(len(self))[item]
            one = slice(item, item + 1)
            return paste_masks_in_image(
                self.maps[one].float(), self.boxes[one], self.size, self.threshold
            )[0]
        return BoxMasks(self.maps[item], self.boxes[item], self.size, self.threshold)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[i] for i in range(len(self)))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.tensor().cpu().numpy().astype(dtype or bool)

    def tensor(self) -> Tensor:
        """All at once: bool (R, height, width), R x height x width bytes."""
        if not len(self):
            return torch.zeros(self.shape, dtype=torch.bool, device=self.maps.device)
        return torch.stack(list(self))

    def to(self, *args: Any, **kwargs: Any) -> BoxMasks:
        """As of a tensor."""
        maps, boxes = self.maps.to(*args, **kwargs), self.boxes.to(*args, **kwargs)
        return BoxMasks(maps, boxes, self.size, self.threshold)

    def __repr__(self) -> str:
        return f"BoxMasks(shape={self.shape})"


def original_instances(
    found: Instances, height: int, width: int, *, threshold: float = 0.5
) -> Instances:
    """Detections in pixels of the original.

    Args:
        found: detections in the input, ``image_size`` being the content without padding; with
            ``pred_masks`` (R, 1, m, m) where the head has masks.
        height: of the original.
        width: of the original.
        threshold: probability from which a pixel belongs to a mask.

    Returns:
        The detections whose box is not empty, ``pred_masks`` as :class:`BoxMasks`.
    """
    fields = dict(found.get_fields())
    boxes = fields["pred_boxes"].clone()
    content_height, content_width = found.image_size
    boxes.scale(width / content_width, height / content_height)
    boxes.clip((height, width))
    fields["pred_boxes"] = boxes
    if "pred_masks" in fields:
        maps = fields["pred_masks"][:, 0]
        fields["pred_masks"] = BoxMasks(maps, boxes.tensor, (height, width), threshold)
    return Instances((height, width), **fields)[boxes.nonempty()]


def original_masks(
    probabilities: Tensor,
    classes: Sequence[str],
    content_size: tuple[int, int],
    height: int,
    width: int,
    *,
    threshold: float = 0.5,
    soft: bool = False,
) -> dict[str, Tensor]:
    """Dense masks in pixels of the original.

    Args:
        probabilities: (C, H, W) in the input.
        classes: names of the channels.
        content_size: (h, w) of the image within (H, W).
        height: of the original.
        width: of the original.
        threshold: from which a pixel belongs to the mask.
        soft: give probabilities (float16) in place of masks (bool).

    Returns:
        {class: (height, width)}.
    """
    content = probabilities[:, : content_size[0], : content_size[1]]
    masks = {}
    for name, channel in zip(classes, content, strict=True):
        resized = F.interpolate(
            channel[None, None], size=(height, width), mode="bilinear", align_corners=False
        )[0, 0]
        masks[name] = resized.to(torch.float16) if soft else resized >= threshold
    return masks
