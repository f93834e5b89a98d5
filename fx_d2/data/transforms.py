"""Augmentations of grey float images in [0, 1], built from the config.

Detectron2's own augmentations are used where they do the right thing on float32 images. Ours exist
for four reasons: Detectron2 shrinks float images without averaging (a 2,500-pixel radiograph
becomes noise at 224), it has no crop by area, no shift-and-scale that keeps the frame, and its
photometric ones know colour, not exposure.

Order: crop, resize, flip, rotate, shift and scale, grey levels, pad. The crop comes first because
it only selects pixels; everything that interpolates works on the small image.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import (
    CropTransform,
    HFlipTransform,
    NoOpTransform,
    PadTransform,
    Transform,
    TransformList,
)

RESIZE_MODES = ("square", "keep")
BORDERS = {"zero": cv2.BORDER_CONSTANT, "nearest": cv2.BORDER_REPLICATE}
_SIDE = re.compile(r"(?<![a-zA-Z])(left|right)(?![a-zA-Z])", re.IGNORECASE)
_RIB = re.compile(r"([RL])(\d+)")
_OTHER_SIDE = {"left": "right", "right": "left", "L": "R", "R": "L"}


def mirrored(name: str) -> str | None:
    """The class that ``name`` becomes in a mirror image, or None when it has no side.

    ``"Left Lung"`` gives ``"Right Lung"``, ``"R3"`` gives ``"L3"``.
    """
    rib = _RIB.fullmatch(name)
    if rib:
        return _OTHER_SIDE[rib[1]] + rib[2]

    def swap(match: re.Match[str]) -> str:
        word = match[0]
        other = _OTHER_SIDE[word.lower()]
        return other.upper() if word.isupper() else other.title() if word[0].isupper() else other

    result = _SIDE.sub(swap, name)
    return None if result == name else result


def mirror_order(names: Sequence[str]) -> np.ndarray:
    """int64 (C,): channel ``c`` of a mirrored image is channel ``order[c]`` of the original.

    A class with a side must have its counterpart in the list, else a flip would move it into a
    class that does not exist.
    """
    position = {name: i for i, name in enumerate(names)}
    order = np.arange(len(names), dtype=np.int64)
    for i, name in enumerate(names):
        other = mirrored(name)
        if other is None:
            continue
        if other not in position:
            raise ValueError(
                f"class {name!r} has a side, but {other!r} is not among {tuple(names)}: "
                "set INPUT.FX.AUG.<TASK>.FLIP to 0 for this source or add the class"
            )
        order[i] = position[other]
    return order


def is_mirrored(transforms: TransformList) -> bool:
    """Whether the horizontal flips in ``transforms`` leave a mirror image."""
    return sum(isinstance(t, HFlipTransform) for t in transforms.transforms) % 2 == 1


def keeps_boxes_tight(transforms: TransformList) -> bool:
    """Whether a tight box is still tight after ``transforms``: not after a crop or rotation."""
    exact = (FxResizeTransform, HFlipTransform, NoOpTransform, PadTransform)
    return all(isinstance(t, exact) or is_grey(t) for t in transforms.transforms)


def is_grey(transform: Transform) -> bool:
    """Whether ``transform`` changes grey levels only and moves nothing."""
    return isinstance(transform, (T.ColorTransform, T.BlendTransform))


class FxResizeTransform(Transform):
    """Resize that averages when it shrinks, for float32 images and 0/1 masks.

    Args:
        h, w: size before.
        new_h, new_w: size after.
    """

    def __init__(self, h: int, w: int, new_h: int, new_w: int) -> None:
        super().__init__()
        self.h, self.w, self.new_h, self.new_w = h, w, new_h, new_w

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W) or (H, W, C) -> the new size, same dtype."""
        self._check(img)
        if img.shape[:2] == (self.new_h, self.new_w):
            return img
        # OpenCV averages over areas only if no axis grows: each axis gets the method it needs.
        img = np.ascontiguousarray(img)
        rows = cv2.INTER_AREA if self.new_h <= self.h else cv2.INTER_LINEAR
        columns = cv2.INTER_AREA if self.new_w <= self.w else cv2.INTER_LINEAR
        if rows == columns:
            return cv2.resize(img, (self.new_w, self.new_h), interpolation=rows)
        half = cv2.resize(img, (self.new_w, self.h), interpolation=columns)
        return cv2.resize(half, (self.new_w, self.new_h), interpolation=rows)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points scaled."""
        scale = np.array([self.new_w / self.w, self.new_h / self.h])
        return np.asarray(coords, dtype=np.float64) * scale

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """A uint8 or bool 0/1 mask (H, W): a new pixel belongs to it when half of its area does."""
        soft = self.apply_image(segmentation.astype(np.uint8) * np.uint8(255))  # a byte is fast
        return (soft >= 128).astype(segmentation.dtype)

    def inverse(self) -> Transform:
        """The resize back."""
        return FxResizeTransform(self.new_h, self.new_w, self.h, self.w)

    def _check(self, img: np.ndarray) -> None:
        if img.shape[:2] != (self.h, self.w):
            raise ValueError(
                f"image is {img.shape[:2]}, this resize was made for {(self.h, self.w)}"
            )


class FxAffineTransform(Transform):
    """An affine map within the frame.

    Args:
        matrix: float (2, 3), maps continuous (x, y) coordinates.
        border: what becomes of uncovered pixels: 0, the value of a collimated border ("zero"), or
            what is at the edge ("nearest").
    """

    def __init__(self, matrix: np.ndarray, border: str = "zero") -> None:
        super().__init__()
        if border not in BORDERS:
            raise ValueError(f"INPUT.FX.AUG BORDER is {border!r}; allowed: {tuple(BORDERS)}")
        self._border = BORDERS[border]
        self.matrix = np.asarray(matrix, dtype=np.float64)
        # OpenCV counts from pixel centres, coordinates from pixel corners.
        self._centres = self.matrix.copy()
        self._centres[:, 2] += self.matrix[:, :2] @ [0.5, 0.5] - 0.5

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        """(H, W) float32 -> (H, W)."""
        size = (img.shape[1], img.shape[0])
        return cv2.warpAffine(
            img, self._centres, size, flags=cv2.INTER_LINEAR, borderMode=self._border
        )

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """(N, 2) points mapped."""
        return np.asarray(coords, dtype=np.float64) @ self.matrix[:, :2].T + self.matrix[:, 2]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        """A 0/1 mask (H, W) -> (H, W)."""
        return (self.apply_image(segmentation.astype(np.float32)) >= 0.5).astype(segmentation.dtype)


class Resize(T.Augmentation):
    """To ``size`` x ``size`` (``square``), or the longest edge to ``size`` (``keep``)."""

    def __init__(self, size: int, mode: str) -> None:
        super().__init__()
        if mode not in RESIZE_MODES:
            raise ValueError(f"INPUT.FX.RESIZE is {mode!r}; allowed: {RESIZE_MODES}")
        self.size, self.mode = size, mode

    def get_transform(self, image: np.ndarray) -> Transform:
        """The resize for this image's size."""
        h, w = image.shape[:2]
        if self.mode == "square":
            return FxResizeTransform(h, w, self.size, self.size)
        scale = self.size / max(h, w)
        new = [min(self.size, max(1, round(side * scale))) for side in (h, w)]
        return FxResizeTransform(h, w, *new)


class PadToSquare(T.Augmentation):
    """Zeros at the right and the bottom up to ``size``: where Detectron2's ImageList pads too."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def get_transform(self, image: np.ndarray) -> Transform:
        """The padding for this image's size."""
        h, w = image.shape[:2]
        if (h, w) == (self.size, self.size):
            return NoOpTransform()
        return PadTransform(0, 0, self.size - w, self.size - h, orig_w=w, orig_h=h)


class RandomAreaCrop(T.Augmentation):
    """A crop of a random share of the area and a random aspect, as the paper's classifiers have.

    Boxes that the input has stay inside; for them the crop grows where it has to.

    Args:
        scale: (low, high) share of the area.
        ratio: (low, high) width / height, drawn log-uniformly.
    """

    def __init__(self, scale: Sequence[float], ratio: Sequence[float]) -> None:
        super().__init__()
        self.scale, self.ratio = tuple(scale), tuple(ratio)

    def get_transform(self, image: np.ndarray, boxes: np.ndarray | None = None) -> Transform:
        """Ten attempts, then the whole image; ``boxes`` are XYXY (N, 4), or None."""
        h, w = image.shape[:2]
        left, top, right, bottom = _around(boxes, w, h)
        for _ in range(10):
            area = self._rand_range(*self.scale) * h * w
            aspect = math.exp(self._rand_range(math.log(self.ratio[0]), math.log(self.ratio[1])))
            crop_w, crop_h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            crop_w, crop_h = max(crop_w, right - left), max(crop_h, bottom - top)
            if 0 < crop_w <= w and 0 < crop_h <= h:
                x0 = np.random.randint(max(0, right - crop_w), min(left, w - crop_w) + 1)
                y0 = np.random.randint(max(0, bottom - crop_h), min(top, h - crop_h) + 1)
                return CropTransform(int(x0), int(y0), crop_w, crop_h, w, h)
        return NoOpTransform()


def _around(boxes: np.ndarray | None, w: int, h: int) -> tuple[int, int, int, int]:
    """The whole pixels around all boxes: (left, top, right, bottom), or what limits no crop."""
    if boxes is None or not len(boxes):
        return w, h, 0, 0
    left, top = np.floor(boxes[:, :2].min(axis=0).clip(0, [w - 1, h - 1])).astype(int).tolist()
    right, bottom = np.ceil(boxes[:, 2:].max(axis=0).clip(1, [w, h])).astype(int).tolist()
    return left, top, right, bottom


class RandomShiftScale(T.Augmentation):
    """Shift by up to ``shift`` of the frame and zoom by up to ``1 +- scale`` about its centre.

    Args:
        shift: share of the frame.
        scale: share.
        apart: whether width and height are zoomed each by a factor of their own.
        border: see :class:`FxAffineTransform`.
    """

    def __init__(
        self, shift: float, scale: float, *, apart: bool = False, border: str = "zero"
    ) -> None:
        super().__init__()
        self.shift, self.scale, self.apart, self.border = shift, scale, apart, border

    def get_transform(self, image: np.ndarray) -> Transform:
        """One draw of zoom and shift."""
        h, w = image.shape[:2]
        zoom = float(self._rand_range(1 - self.scale, 1 + self.scale))
        dx, dy = self._rand_range(-self.shift, self.shift, size=2) * (w, h)
        tall = float(self._rand_range(1 - self.scale, 1 + self.scale)) if self.apart else zoom
        move = (w / 2 * (1 - zoom) + dx, h / 2 * (1 - tall) + dy)
        matrix = np.array([[zoom, 0, move[0]], [0, tall, move[1]]])
        return FxAffineTransform(matrix, self.border)


class RandomTurnShear(T.Augmentation):
    """Rotate and shear about the centre; with zeros around, rotations are Detectron2's."""

    def __init__(self, rotate_deg: float, shear_deg: float, border: str) -> None:
        super().__init__()
        self.rotate_deg, self.shear_deg, self.border = rotate_deg, shear_deg, border

    def get_transform(self, image: np.ndarray) -> Transform:
        """One draw of both angles."""
        h, w = image.shape[:2]
        turn = math.radians(self._rand_range(-self.rotate_deg, self.rotate_deg))
        shear = math.tan(math.radians(self._rand_range(-self.shear_deg, self.shear_deg)))
        cos, sin = math.cos(turn), math.sin(turn)
        linear = np.array([[cos, sin], [-sin, cos]]) @ [[1, shear], [0, 1]]
        centre = np.array([w / 2, h / 2])
        return FxAffineTransform(np.c_[linear, centre - linear @ centre], self.border)


class RandomGamma(T.Augmentation):
    """Exponent drawn log-uniformly from [1 / (1 + strength), 1 + strength]: another exposure."""

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.limit = math.log1p(strength)

    def get_transform(self, image: np.ndarray) -> Transform:
        """One draw of the exponent."""
        gamma = math.exp(self._rand_range(-self.limit, self.limit))
        return T.ColorTransform(lambda img: np.clip(img, 0, 1) ** np.float32(gamma))


class RandomNoise(T.Augmentation):
    """Normal noise of a standard deviation drawn from [0, ``sigma``] (the grey range being 1)."""

    def __init__(self, sigma: float) -> None:
        super().__init__()
        self.sigma = sigma

    def get_transform(self, image: np.ndarray) -> Transform:
        """One draw of the deviation and of the stream the noise comes from."""
        sigma = np.float32(self._rand_range(0, self.sigma))
        stream = np.random.randint(2**31)

        def add(img: np.ndarray) -> np.ndarray:
            noise = np.random.default_rng(stream).standard_normal(img.shape, dtype=np.float32)
            return img + sigma * noise

        return T.ColorTransform(add)


class RandomBlur(T.Augmentation):
    """Gaussian blur of a deviation drawn from [0, ``sigma_px``] pixels of the resized image."""

    def __init__(self, sigma_px: float) -> None:
        super().__init__()
        self.sigma_px = sigma_px

    def get_transform(self, image: np.ndarray) -> Transform:
        """One draw of the deviation."""
        sigma = float(self._rand_range(0, self.sigma_px))
        if sigma < 0.1:  # narrower than a pixel's own footprint
            return NoOpTransform()
        return T.ColorTransform(lambda img: cv2.GaussianBlur(img, (0, 0), sigma))


@dataclass(frozen=True)
class AugmentConfig:
    """The augmentations of one task: the keys of ``INPUT.FX.AUG.<TASK>`` in fx_d2/config/."""

    crop_scale: Sequence[float]
    crop_ratio: Sequence[float]
    flip: float
    rotate_deg: float
    shift: float
    scale: float
    shear_deg: float
    scale_apart: bool
    border: str
    geometry_prob: float
    brightness: float
    contrast: float
    gamma: float
    noise: float
    blur_px: float
    grey_prob: float

    @classmethod
    def from_node(cls, node: Any) -> AugmentConfig:
        """From a config node; every key must be known."""
        values: dict[str, Any] = {key.lower(): value for key, value in node.items()}
        return cls(**values)

    def crop(self) -> list[T.Augmentation]:
        """The crop, if any."""
        if tuple(self.crop_scale) == (1.0, 1.0):
            return []
        return [RandomAreaCrop(self.crop_scale, self.crop_ratio)]

    def geometry(self) -> list[T.Augmentation]:
        """Flip, rotation, shift and scale."""
        found: list[T.Augmentation] = []
        if self.flip:
            found.append(T.RandomFlip(self.flip))
        moves: list[T.Augmentation] = []
        if self.shear_deg or (self.rotate_deg and self.border != "zero"):
            moves.append(RandomTurnShear(self.rotate_deg, self.shear_deg, self.border))
        elif self.rotate_deg:
            moves.append(T.RandomRotation([-self.rotate_deg, self.rotate_deg], expand=False))
        if self.shift or self.scale:
            moves.append(
                RandomShiftScale(self.shift, self.scale, apart=self.scale_apart, border=self.border)
            )
        return found + [T.RandomApply(move, self.geometry_prob) for move in moves]

    def grey(self) -> list[T.Augmentation]:
        """Exposure, contrast, brightness, sharpness and noise, each with ``grey_prob``."""
        makers: list[tuple[float, Callable[[float], T.Augmentation]]] = [
            (self.gamma, RandomGamma),
            (self.contrast, lambda x: T.RandomContrast(1 - x, 1 + x)),
            (self.brightness, lambda x: T.RandomBrightness(1 - x, 1 + x)),
            (self.blur_px, RandomBlur),
            (self.noise, RandomNoise),
        ]
        return [T.RandomApply(make(x), self.grey_prob) for x, make in makers if x]


def build_augmentations(cfg: Any, task: str, is_train: bool) -> list[T.Augmentation]:
    """The augmentations of ``task`` in the order of the module's docstring.

    At evaluation only the resize and the padding are left, the same for all tasks.
    """
    size, mode = int(cfg.INPUT.FX.SIZE), cfg.INPUT.FX.RESIZE
    resize: list[T.Augmentation] = [Resize(size, mode)]
    pad: list[T.Augmentation] = [PadToSquare(size)] if mode == "keep" else []
    if not is_train:
        return resize + pad
    config = AugmentConfig.from_node(cfg.INPUT.FX.AUG[task.upper()])
    return config.crop() + resize + config.geometry() + config.grey() + pad
