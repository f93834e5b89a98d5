"""From pixels of the network's input back to pixels of the original image.

The input is the original resized to ``content_size`` and padded at the right and bottom. Masks are
made one at a time: hundreds of them at 3000 x 2500 pixels would not fit in memory together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Instances
from detectron2.structures.masks import ROIMasks
from torch import Tensor
from torch.nn import functional as F


def original_instances(found: Instances, height: int, width: int) -> Instances:
    """Detections in pixels of the original.

    Args:
        found: detections in the input, ``image_size`` being the content without padding; with
            ``pred_masks`` (R, 1, m, m) where the head has masks.
        height: of the original.
        width: of the original.

    Returns:
        The detections whose box is not empty. ``pred_masks`` stays a small map per box
        (:class:`ROIMasks`); :func:`instance_masks` pastes it.
    """
    fields = dict(found.get_fields())
    boxes = fields["pred_boxes"].clone()
    content_height, content_width = found.image_size
    boxes.scale(width / content_width, height / content_height)
    boxes.clip((height, width))
    fields["pred_boxes"] = boxes
    if "pred_masks" in fields:
        fields["pred_masks"] = ROIMasks(fields["pred_masks"][:, 0])
    return Instances((height, width), **fields)[boxes.nonempty()]


def instance_masks(found: Instances, threshold: float = 0.5) -> Iterator[Tensor]:
    """Bool (height, width) for each detection of :func:`original_instances`, one after the other.

    ``torch.stack(list(instance_masks(found[:10])))`` gives those of the best ten at once.
    """
    masks = found.pred_masks.tensor
    for i in range(len(found)):
        one = slice(i, i + 1)
        yield paste_masks_in_image(
            masks[one], found.pred_boxes[one], found.image_size, threshold=threshold
        )[0]


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
