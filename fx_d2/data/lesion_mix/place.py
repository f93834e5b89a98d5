"""One paste: where it goes, which pixels it takes, and with which grey levels.

A pixel is changed exactly where its weight is above 0, and the stated box is the tight one around
those pixels; so box and mask are exact by construction, not by tolerance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from ..record import Record
from ..transforms import FxResizeTransform
from .bank import GREY, Patch
from .lungs import USUAL, Box, lung_box
from .settings import MixSettings

# Contrast of a patch is changed by this factor at most when it is matched to its surround.
_MAX_GAIN = 1.5
_WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
_EMPTY_SPREAD = 1e-3
_FEWEST_AROUND = 8  # pixels of a surround that say something about it

IntBox = tuple[int, int, int, int]


class DoesNotFit(Exception):
    """A patch has no place on this image; its text says why."""


@dataclass(frozen=True)
class Paste:
    """The draws of one paste.

    Args:
        patch: its number in the bank.
        zoom: factor of its size.
        dx, dy: shift, as shares of the lung box (or the frame).
        weight: of its pixels, 1 is opaque.
    """

    patch: int
    zoom: float
    dx: float
    dy: float
    weight: float


def placed_by(grey: npt.NDArray[np.float32], record: Record, settings: MixSettings) -> Box:
    """The box that places on this image are relative to.

    Args:
        grey: (H, W) in [0, 1].
        record: of the image.
        settings: placement.

    Raises:
        DoesNotFit: the lungs are not seen, and a usual place is not good enough.
    """
    if settings.placement == "frame":
        return _WHOLE
    found = lung_box(grey, record)
    if found is None and settings.no_lungs == "skip":
        raise DoesNotFit("the lungs are not seen")
    return found or USUAL


def target_box(patch: Patch, paste: Paste, size: tuple[int, int], lungs: Box) -> IntBox:
    """Where the patch's box lies in an image: (x0, y0, x1, y1) in whole pixels, end exclusive.

    Args:
        patch: whose size and place are kept relative to the lungs.
        paste: the draws.
        size: (height, width) of the image.
        lungs: of the image, as :func:`placed_by` gives them.

    Raises:
        DoesNotFit: the image is smaller than the patch, or the patch would be less than a pixel.
    """
    height, width = size
    theirs, ours = patch.lungs, lungs
    from_px, to_px = _extent(theirs, patch.frame), _extent(ours, size)
    # One factor both ways: a nodule stays round on a chest of another shape.
    factor = paste.zoom * float(np.sqrt((to_px[0] / from_px[0]) * (to_px[1] / from_px[1])))
    w = round((patch.box[2] - patch.box[0]) * factor)
    h = round((patch.box[3] - patch.box[1]) * factor)
    if w < 1 or h < 1:
        raise DoesNotFit("smaller than a pixel there")
    if w > width or h > height:
        raise DoesNotFit(f"the base is smaller than the patch ({w} x {h} px in {width} x {height})")
    u = ((patch.box[0] + patch.box[2]) / 2 / patch.frame[1] - theirs[0]) / (theirs[2] - theirs[0])
    v = ((patch.box[1] + patch.box[3]) / 2 / patch.frame[0] - theirs[1]) / (theirs[3] - theirs[1])
    cx = (ours[0] + (u + paste.dx) * (ours[2] - ours[0])) * width
    cy = (ours[1] + (v + paste.dy) * (ours[3] - ours[1])) * height
    x0 = min(max(round(cx - w / 2), 0), width - w)
    y0 = min(max(round(cy - h / 2), 0), height - h)
    return (x0, y0, x0 + w, y0 + h)


def _extent(box: Box, size: tuple[int, int]) -> tuple[float, float]:
    return ((box[2] - box[0]) * size[1], (box[3] - box[1]) * size[0])


@dataclass(frozen=True)
class Resized:
    """A patch at the size it is pasted with.

    Args:
        grey: (h, w) of the crop, in [0, 1].
        mask: (h, w) bool of the lesion in the crop, or None.
        inner: the box within the crop.
    """

    grey: npt.NDArray[np.float32]
    mask: npt.NDArray[np.bool_] | None
    inner: IntBox


def resized(
    patch: Patch,
    grey: npt.NDArray[np.uint16],
    mask: npt.NDArray[np.bool_] | None,
    box: IntBox,
) -> Resized:
    """What the bank holds, scaled so that its box becomes ``box``; margins in whole pixels."""
    w, h = box[2] - box[0], box[3] - box[1]
    old = (patch.box[2] - patch.box[0], patch.box[3] - patch.box[1])
    margins = (
        round((patch.box[0] - patch.crop[0]) * w / old[0]),
        round((patch.box[1] - patch.crop[1]) * h / old[1]),
        round((patch.crop[2] - patch.box[2]) * w / old[0]),
        round((patch.crop[3] - patch.box[3]) * h / old[1]),
    )
    shape = (h + margins[1] + margins[3], w + margins[0] + margins[2])
    change = FxResizeTransform(*patch.crop_shape, *shape)
    inner = (margins[0], margins[1], margins[0] + w, margins[1] + h)
    new_mask = None
    if mask is not None:
        new_mask = change.apply_segmentation(mask)
        kept = np.zeros_like(new_mask)
        inside = _slices(inner)
        kept[inside] = new_mask[inside]
        new_mask = kept
        if not new_mask.any():
            raise DoesNotFit("smaller than a pixel there")
    # As integers up to here: a patch is stored larger than it is mostly pasted.
    small = np.multiply(change.apply_image(grey), np.float32(1 / GREY), dtype=np.float32)
    return Resized(small, new_mask, inner)


def weights(piece: Resized, settings: MixSettings) -> npt.NDArray[np.float32]:
    """(h, w) of the box: 0 outside what is pasted, 1 inside, between them along its edge."""
    mask = piece.mask if settings.shape == "mask" else None
    w, h = piece.inner[2] - piece.inner[0], piece.inner[3] - piece.inner[1]
    feather = settings.feather * min(w, h)
    # The outermost pixel has distance 1 and keeps a weight, so that the mask is what is pasted.
    if mask is None:
        if feather < 1:
            return np.ones((h, w), dtype=np.float32)
        rows, columns = (_to_the_end(n) / np.float32(feather + 1) for n in (h, w))
        return np.minimum(np.minimum(rows, 1)[:, None], columns)
    shape = mask[_slices(piece.inner)].astype(np.uint8)
    if feather < 1:
        return shape.astype(np.float32)
    # Within a frame of zeros: the border of the box is an edge too.
    framed = cv2.copyMakeBorder(shape, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    distance = cv2.distanceTransform(framed, cv2.DIST_L2, 3)[1:-1, 1:-1]
    return np.asarray(np.minimum(distance / (feather + 1), 1), dtype=np.float32) * shape


def _to_the_end(n: int) -> npt.NDArray[np.float32]:
    """(n,) whole pixels to the nearer end, 1 at both."""
    forth = np.arange(1, n + 1, dtype=np.float32)
    return np.minimum(forth, forth[::-1])


@dataclass(frozen=True)
class Window:
    """Where a crop meets an image; margins may stick out of it.

    Args:
        image: rows and columns of the image.
        crop: the same pixels in the crop.
    """

    image: tuple[slice, slice]
    crop: tuple[slice, slice]


def window(piece: Resized, box: IntBox, size: tuple[int, int]) -> Window:
    """The common pixels of a crop whose box lies at ``box`` and an image of ``size``."""
    left, top = box[0] - piece.inner[0], box[1] - piece.inner[1]
    height, width = piece.grey.shape
    x0, y0 = max(left, 0), max(top, 0)
    x1, y1 = min(left + width, size[1]), min(top + height, size[0])
    return Window(
        image=(slice(y0, y1), slice(x0, x1)),
        crop=(slice(y0 - top, y1 - top), slice(x0 - left, x1 - left)),
    )


def matching(
    grey: npt.NDArray[np.float32],
    around: npt.NDArray[np.uint8],
    base: npt.NDArray[np.float32],
    limits: tuple[float, float],
) -> tuple[float, float]:
    """Factor and summand that give a patch the mean and spread its surround has in the base.

    Args:
        grey: (h, w) of the patch, in [0, 1].
        around: 1 where its surround is, else 0.
        base: (h, w) of the place it goes to, grey values of the image.
        limits: those that stand for 0 and 1.
    """
    low, high = limits
    if cv2.countNonZero(around) < _FEWEST_AROUND:
        return high - low, low
    theirs, their_spread = (float(v[0, 0]) for v in cv2.meanStdDev(grey, mask=around))
    ours, our_spread = (float(v[0, 0]) for v in cv2.meanStdDev(base, mask=around))
    gain = 1.0
    if their_spread > _EMPTY_SPREAD:
        ratio = our_spread / (high - low) / their_spread
        gain = float(np.clip(ratio, 1 / _MAX_GAIN, _MAX_GAIN))
    factor = gain * (high - low)
    return factor, ours - factor * theirs


def tight_box(mask: npt.NDArray[np.bool_], left: int, top: int) -> IntBox:
    """The box of ``mask``, which lies at (left, top)."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return (
        left + int(columns[0]),
        top + int(rows[0]),
        left + int(columns[-1]) + 1,
        top + int(rows[-1]) + 1,
    )


def meets(box: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether ``box`` shares a pixel with one of ``others``."""
    return any(box[0] < o[2] and o[0] < box[2] and box[1] < o[3] and o[1] < box[3] for o in others)


def _slices(box: IntBox) -> tuple[slice, slice]:
    return np.s_[box[1] : box[3], box[0] : box[2]]
