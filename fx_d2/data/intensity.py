"""The one normalisation of grey values, the same for training, evaluation and prediction.

Why percentiles are the default: the sources mix 8-bit exports that somebody already windowed,
12-bit detector values that fill a fifth of their range, and 16-bit files scaled by their own
maximum. Dividing by the depth would show a model the same lung at 0.05 in one source and at 0.5 in
another; minimum and maximum are set by a burned-in marker or a dead pixel. The 0.5th and 99.5th
percentile ignore markers (well under 0.5 % of a film) and leave an 8-bit export nearly as it is.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from fx_d2.data.formats.contract import VOI_POLICIES, LoadedImage

MODES = ("percentile", "depth", "minmax")
# Percentiles come from a regular grid of about this many pixels: exact to 0.2 % of rank, and far
# below decoding time.
_SAMPLE_PIXELS = 1 << 18
_TILES = (8, 8)


@dataclass(frozen=True)
class IntensityConfig:
    """How grey values become [0, 1].

    Args:
        mode: ``percentile`` stretches between two percentiles, ``minmax`` between the extremes,
            ``depth`` divides by the largest value the file's depth allows.
        low, high: percentiles, 0 <= low < high <= 100.
        clahe: clip limit of a contrast-limited adaptive histogram equalisation over 8 x 8 tiles, on
            256 grey levels; 0 is none.
        gamma: exponent applied at the end; 1 changes nothing.
        voi: what :func:`fx_d2.data.images.read_image` does with a DICOM VOI LUT or window:
            ``auto`` or ``ignore``.
    """

    mode: str = "percentile"
    low: float = 0.5
    high: float = 99.5
    clahe: float = 0.0
    gamma: float = 1.0
    voi: str = "auto"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; allowed: {', '.join(MODES)}")
        if self.voi not in VOI_POLICIES:
            raise ValueError(f"voi is {self.voi!r}; allowed: {', '.join(VOI_POLICIES)}")
        if not 0 <= self.low < self.high <= 100:
            raise ValueError(f"low {self.low}, high {self.high}; allowed: 0 <= low < high <= 100")
        if not (math.isfinite(self.clahe) and self.clahe >= 0):
            raise ValueError(f"clahe is {self.clahe}; allowed: 0 (none) or a positive number")
        if not (math.isfinite(self.gamma) and self.gamma > 0):
            raise ValueError(f"gamma is {self.gamma}; allowed: a positive number")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint or a JSON file."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> IntensityConfig:
        """The inverse of :meth:`to_dict`; an unknown key is an error, a missing one its default."""
        unknown = sorted(set(values) - {f.name for f in fields(cls)})
        if unknown:
            raise ValueError(
                f"unknown intensity settings {unknown}; allowed: {[f.name for f in fields(cls)]}"
            )
        return cls(**values)


DEFAULT_INTENSITY = IntensityConfig()


def normalise(
    loaded: LoadedImage, config: IntensityConfig = DEFAULT_INTENSITY
) -> npt.NDArray[np.float32]:
    """Grey values in [0, 1], float32 (H, W); ``loaded`` is not changed.

    An image without contrast between the chosen limits falls back to its extremes, and a constant
    one to its value over its depth, so that nothing is ever divided by zero.

    Raises:
        ValueError: ``config`` ignores VOI windows, but the image was read with one applied.
    """
    if config.voi == "ignore" and loaded.facts.voi != "none":
        raise ValueError(
            f"the image was read with its VOI {loaded.facts.voi} applied, "
            "the config says voi='ignore'"
        )
    low, high = _limits(loaded, config)
    scaled = loaded.pixels - np.float32(low)
    scaled /= np.float32(high - low)
    np.clip(scaled, 0.0, 1.0, out=scaled)
    if config.clahe:
        scaled = _equalised(scaled, config.clahe)
    if config.gamma != 1:
        np.power(scaled, np.float32(config.gamma), out=scaled)
    return scaled


def _equalised(grey: npt.NDArray[np.float32], clip_limit: float) -> npt.NDArray[np.float32]:
    # With more than 256 levels a tile of a small image has less than one pixel per level, and the
    # limit would mean something else at every size.
    levels = np.rint(grey * np.float32(255)).astype(np.uint8)
    equalised = cv2.createCLAHE(clipLimit=clip_limit, tileGridSize=_TILES).apply(levels)
    return equalised.astype(np.float32) / np.float32(255)


def _limits(loaded: LoadedImage, config: IntensityConfig) -> tuple[float, float]:
    whole = (0.0, loaded.facts.max_value)
    if config.mode == "depth":
        return whole
    if config.mode == "percentile":
        low, high = np.percentile(_sample(loaded.pixels), [config.low, config.high])
        if _apart(low, high):
            return float(low), float(high)
    low, high = loaded.pixels.min(), loaded.pixels.max()
    return (float(low), float(high)) if _apart(low, high) else whole


def _apart(low: float, high: float) -> bool:
    # Closer than float32 can tell at this size, the division would only amplify rounding.
    return bool(high - low > 1e-6 * max(abs(low), abs(high)))


def _sample(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """A regular grid over the image: the same pixels every time, every region in proportion."""
    step = max(1, math.ceil(math.sqrt(pixels.size / _SAMPLE_PIXELS)))
    return pixels[step // 2 :: step, step // 2 :: step] if min(pixels.shape) > step else pixels
