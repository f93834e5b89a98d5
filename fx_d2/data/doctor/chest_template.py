"""What a frontal chest radiograph looks like at 32 x 32, and how a thumbnail is compared with it.

The template is drawn from anatomy, not learned: two dark lungs, a bright mediastinum that the heart
continues, a bright abdomen, and air in the corners above the shoulders. It recognises a whole
source stored sideways, which a comparison of the source's images with each other cannot.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from .facts import THUMB_PX

_BLOCK = 4096  # thumbnails compared at a time: bounds memory

Image = npt.NDArray[np.float64]

# How a picture lies that np.rot90 sets upright in k quarter turns (anticlockwise).
TURNS = ("upright", "turned clockwise", "upside down", "turned anticlockwise")


def _blob(
    x: float, y: float, width: float, height: float, power: float = 2, tilt: float = 0
) -> Image:
    """A soft ellipse (``power`` 2) or a flatter one; all in shares of the picture."""
    rows, columns = np.mgrid[0:THUMB_PX, 0:THUMB_PX] / (THUMB_PX - 1.0)
    cosine, sine = np.cos(tilt), np.sin(tilt)
    u = ((columns - x) * cosine + (rows - y) * sine) / width
    v = (-(columns - x) * sine + (rows - y) * cosine) / height
    return np.exp(-(np.abs(u) ** power + np.abs(v) ** power))


def normalised(image: npt.NDArray[np.generic]) -> Image:
    """Zero mean and unit length, so that the inner product of two is their correlation."""
    centred = image.astype(np.float64) - image.mean(dtype=np.float64)
    length = float(np.sqrt((centred * centred).sum()))
    return centred / length if length > 0 else centred


@lru_cache(maxsize=1)
def chest_template() -> Image:
    """The frontal chest, symmetric, normalised."""
    picture = np.full((THUMB_PX, THUMB_PX), 0.72)
    for side in (-1, 1):
        picture -= 0.54 * _blob(0.5 + 0.215 * side, 0.45, 0.15, 0.32, 3, -0.12 * side)  # lung
        picture -= 0.50 * _blob(0.5 + 0.5 * side, 0.0, 0.17, 0.17)  # air above the shoulder
        picture -= 0.45 * _blob(0.5 + 0.5 * side, 0.6, 0.05, 0.5)  # air beside the chest
    picture += 0.18 * _blob(0.5, 0.45, 0.07, 0.60)  # spine and mediastinum
    picture += 0.22 * _blob(0.5, 0.66, 0.20, 0.14)  # heart, both sides of the middle
    picture += 0.15 * _blob(0.5, 0.97, 0.50, 0.14)  # abdomen
    return normalised(picture)


@lru_cache(maxsize=1)
def heart_template() -> Image:
    """What is brighter on the picture's right than on its left: the heart."""
    return normalised(_blob(0.60, 0.66, 0.12, 0.14) - _blob(0.40, 0.66, 0.12, 0.14))


def turn_scores(thumbs: npt.NDArray[np.generic], template: Image) -> npt.NDArray[np.float64]:
    """Correlation with ``template`` of each thumbnail (N, S, S), turned 0 to 3 times: (N, 4).

    A mirror image scores as its original when the template is symmetric, so these four stand for
    all eight ways to lay down a picture.
    """
    # Turning the template back is the same as turning every thumbnail.
    turned = np.stack([np.rot90(template, -k).ravel() for k in range(4)], axis=1)
    return _correlations(thumbs, turned)


def _correlations(
    thumbs: npt.NDArray[np.generic], patterns: npt.NDArray[np.float64], *, mirror: bool = False
) -> npt.NDArray[np.float64]:
    """Correlation of (N, S, S) thumbnails, or of their left-right differences, with (S * S, K)."""
    out = np.empty((len(thumbs), patterns.shape[1]))
    for start in range(0, len(thumbs), _BLOCK):
        values = thumbs[start : start + _BLOCK].astype(np.float64)
        if mirror:
            values -= values[:, :, ::-1].copy()
        flat = values.reshape(len(values), THUMB_PX * THUMB_PX)
        flat -= flat.mean(axis=1, keepdims=True)
        flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-9)
        out[start : start + _BLOCK] = flat @ patterns
    return out


def heart_side(thumbs: npt.NDArray[np.generic]) -> npt.NDArray[np.float64]:
    """Correlation of the left-right difference with the heart's; positive: it lies right."""
    return _correlations(thumbs, heart_template().reshape(-1, 1), mirror=True)[:, 0]
