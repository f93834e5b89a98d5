"""A second look at the same place: other grey levels, the same geometry.

What two networks see in the two views can be compared place by place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import PadTransform, Transform, TransformList

from .transforms import AugmentConfig, is_grey

_NO_GEOMETRY: dict[str, Any] = {
    "crop_scale": (1.0, 1.0),
    "crop_ratio": (1.0, 1.0),
    "flip": 0.0,
    "rotate_deg": 0.0,
    "shift": 0.0,
    "scale": 0.0,
    "shear_deg": 0.0,
    "scale_apart": False,
    "border": "zero",
    "geometry_prob": 0.0,
}


class SecondView:
    """Makes the second view of an image whose first view is there.

    Args:
        grey: augmentations of grey levels; they draw from the global generators.
    """

    def __init__(self, grey: Sequence[T.Augmentation]) -> None:
        self._grey = T.AugmentationList(list(grey))

    @classmethod
    def from_config(cls, cfg: Any) -> SecondView | None:
        """By ``TEACHER.VIEW``; None, at no cost, where ``TEACHER.VIEWS`` is 1."""
        if cfg.TEACHER.VIEWS not in (1, 2):
            raise ValueError(f"TEACHER.VIEWS is {cfg.TEACHER.VIEWS}; allowed: 1, 2")
        if cfg.TEACHER.VIEWS == 1:
            return None
        values: dict[str, Any] = {key.lower(): value for key, value in cfg.TEACHER.VIEW.items()}
        return cls(AugmentConfig(**_NO_GEOMETRY, **values).grey())

    def __call__(self, image: np.ndarray, applied: TransformList) -> np.ndarray:
        """The second view.

        Args:
            image: float32 (H, W), before any augmentation.
            applied: what made the first view of it.

        Returns:
            float32 of the first view's size.
        """
        moves = [t for t in applied.transforms if not is_grey(t)]
        # As in the first view padding comes last: noise or brightness must not reach it.
        pads: list[Transform] = [t for t in moves if isinstance(t, PadTransform)]
        for move in moves:
            if move not in pads:
                image = move.apply_image(image)
        given = T.AugInput(image)
        self._grey(given)
        for pad in pads:
            given.image = pad.apply_image(given.image)
        return given.image
