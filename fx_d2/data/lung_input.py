"""What a classifier of the lungs is shown of a radiograph, made from its lung mask.

The one place that knows: the mapper prepares training, evaluation and prediction with it, the
multi-stage pipeline its crops. Only arrays go in and out, so it needs no record, no config and no
network. Grey values are prepared after their normalisation: that of the whole radiograph holds for
its lungs too, whatever is left of it.

==============  ==================================================================================
``none``        the whole image
``mask``        the image with ``fill`` outside the lungs
``crop``        the box around the lungs, with what lies between them
``mask+crop``   that box, with ``fill`` outside the lungs
``background``  the image with ``fill`` in the lungs: a test, what is left should tell no disease
``frame``       the image with ``fill`` in the whole box: not even the lungs' outline is left
==============  ==================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from .errors import DataError, did_you_mean

Box = tuple[int, int, int, int]  # x0, y0, x1, y1 in pixels, the end exclusive

LUNG_MODES = ("none", "mask", "crop", "mask+crop", "background", "frame")
# Those whose image is no longer the frame of the original.
CROPPING_MODES = ("crop", "mask+crop")
# Of what a mask is named in the records of a source, all lungs or one of a side.
LUNG_CLASSES = ("Lungs", "Left Lung", "Right Lung")
LUNG_CLASSES_TEXT = f"{LUNG_CLASSES[0]!r}, or {LUNG_CLASSES[1]!r} and {LUNG_CLASSES[2]!r}"


class LungMaskError(DataError):
    """A lung mask that no image can be prepared with: empty, or of another size."""


def lung_classes(classes: Collection[str]) -> tuple[str, ...]:
    """Those of ``classes`` that together are the lungs; () where one of a pair is missing."""
    both, *pair = LUNG_CLASSES
    if both in classes:
        return (both,)
    return tuple(pair) if all(side in classes for side in pair) else ()


@dataclass(frozen=True)
class LungCrop:
    """What is shown, and where in the original it lies.

    Args:
        image: (H, W), as large as ``box``, of the original's type.
        box: in the original; the whole of it where nothing was cut.
        mode: one of ``LUNG_MODES``.
    """

    image: npt.NDArray[np.generic]
    box: Box
    mode: str

    def points_in_original(self, points: npt.ArrayLike, size: tuple[int, int]) -> np.ndarray:
        """Points of the shown image, resized to ``size``, in pixels of the original.

        Args:
            points: (N, 2) continuous (x, y).
            size: (height, width) the image was resized to, such as the network's input.
        """
        x0, y0, x1, y1 = self.box
        scale = np.array([(x1 - x0) / size[1], (y1 - y0) / size[0]])
        return np.asarray(points, dtype=np.float64) * scale + [x0, y0]

    def map_in_original(
        self, values: npt.NDArray[np.generic], height: int, width: int, *, outside: float = 0.0
    ) -> npt.NDArray[np.float32]:
        """A map of the shown image, of any resolution, as a map of the original.

        Args:
            values: (h, w), such as a heat map.
            height: of the original.
            width: of the original.
            outside: value where nothing was shown.

        Returns:
            float32 (height, width).
        """
        x0, y0, x1, y1 = self.box
        if not (x1 <= width and y1 <= height):
            raise ValueError(
                f"box {self.box} leaves an original of {height} x {width} (height x width)"
            )
        result = np.full((height, width), outside, dtype=np.float32)
        side = (x1 - x0, y1 - y0)
        shrinks = values.shape[0] > side[1] and values.shape[1] > side[0]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        content = np.ascontiguousarray(values).astype(np.float32)
        result[y0:y1, x0:x1] = cv2.resize(content, side, interpolation=how)
        return result


def prepare_lungs(
    image: npt.NDArray[np.generic],
    mask: npt.NDArray[np.generic] | None,
    mode: str,
    margin: float = 0.05,
    fill: float = 0.0,
    *,
    min_side_px: int = 16,
) -> LungCrop:
    """What a classifier is shown of ``image``.

    Args:
        image: (H, W), grey values after normalisation; never changed in place.
        mask: (H, W) of both lungs, foreground where not 0; ``none`` needs no mask.
        mode: one of ``LUNG_MODES``.
        margin: by how much the box around the lungs grows on every side, as a share of its own
            width and height.
        fill: grey value of what is not shown; 0 is black, as a collimated border is.
        min_side_px: a box with a shorter side grows to this, so that a few wrong pixels are not
            blown up to a picture.

    Raises:
        LungMaskError: the mask is empty, missing or of another size than the image.
        ValueError: an unknown mode, or a setting outside of its range.
    """
    check_settings(mode, margin, fill, min_side_px)
    if image.ndim != 2 or not image.size:
        raise ValueError(f"image is {image.shape}; expected grey values (height, width)")
    height, width = image.shape
    whole = (0, 0, width, height)
    if mode == "none":
        return LungCrop(image, whole, mode)
    lungs = checked_mask(mask, (height, width))
    if not lungs.any():
        raise LungMaskError(
            "the lung mask is empty",
            expected="some lung",
            fix="look at the image: no lungs were found in it",
        )
    if mode == "mask":
        return LungCrop(_filled(image, ~lungs, fill), whole, mode)
    if mode == "background":
        return LungCrop(_filled(image, lungs, fill), whole, mode)
    x0, y0, x1, y1 = box = lung_crop_box(lungs, margin, min_side_px)
    if mode == "frame":
        inside = np.zeros_like(lungs)
        inside[y0:y1, x0:x1] = True
        return LungCrop(_filled(image, inside, fill), whole, mode)
    shown = image if mode == "crop" else _filled(image, ~lungs, fill)
    return LungCrop(shown[y0:y1, x0:x1], box, mode)


def lung_crop_box(lungs: npt.NDArray[np.bool_], margin: float = 0.05, min_side_px: int = 16) -> Box:
    """The box around a mask (H, W) with some foreground, grown as :func:`prepare_lungs` says."""
    rows, columns = np.flatnonzero(lungs.any(axis=1)), np.flatnonzero(lungs.any(axis=0))
    sides = []
    for found, limit in ((columns, lungs.shape[1]), (rows, lungs.shape[0])):
        low, high = int(found[0]), int(found[-1]) + 1
        more = margin * (high - low)
        sides.append(_grown(low - more, high + more, min(min_side_px, limit), limit))
    (x0, x1), (y0, y1) = sides
    return x0, y0, x1, y1


def check_settings(mode: str, margin: float, fill: float, min_side_px: int) -> None:
    """Raise ``ValueError`` for settings that no image can be prepared with."""
    if mode not in LUNG_MODES:
        near = did_you_mean(str(mode), LUNG_MODES)
        raise ValueError(f"lung mode {mode!r}; allowed: {', '.join(LUNG_MODES)}.{near}")
    if not 0 <= margin <= 1:
        raise ValueError(f"lung margin {margin!r}; expected a share of the box, from 0 to 1")
    if not 0 <= fill <= 1:
        raise ValueError(f"lung fill {fill!r}; expected a grey value from 0 to 1")
    if min_side_px < 1:
        raise ValueError(f"lung min_side_px {min_side_px!r}; expected at least 1")


def checked_mask(
    mask: npt.NDArray[np.generic] | None, size: tuple[int, int]
) -> npt.NDArray[np.bool_]:
    """A mask as bool (H, W).

    Args:
        mask: foreground where not 0.
        size: (height, width) it must have.

    Raises:
        LungMaskError: there is none, or it has another size; the message has both.
    """
    if mask is None:
        raise LungMaskError("no lung mask", fix="make masks with a lung segmentor first")
    if mask.shape != size:
        raise LungMaskError(
            f"lung mask is {' x '.join(map(str, mask.shape))}",
            expected=f"{size[0]} x {size[1]}, the image's size",
            fix="use the mask of this image, resized to it",
        )
    return mask != 0


def _filled(
    image: npt.NDArray[np.generic], where: npt.NDArray[np.bool_], fill: float
) -> npt.NDArray[np.generic]:
    result = image.copy()
    result[where] = fill
    return result


def _grown(low: float, high: float, least: int, limit: int) -> tuple[int, int]:
    """Whole pixels around ``[low, high)``, at least ``least`` of them, within ``[0, limit)``."""
    first, last = max(0, math.floor(low)), min(limit, math.ceil(high))
    if last - first < least:
        first = max(0, min((first + last - least) // 2, limit - least))
        last = first + least
    return first, last
