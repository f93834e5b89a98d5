"""PNG, JPEG and GIF files whose bytes depend on their pixels only."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

_PNG_LEVEL = 2  # zlib level: half the time of the default for a tenth more bytes


def quantise(pixels: np.ndarray, bits: int = 8) -> np.ndarray:
    """Float (H, W) in [0, 1] as uint8 or uint16 over the full range of ``bits``."""
    levels = np.rint(pixels * np.float32(2**bits - 1))
    return levels.astype(np.uint8 if bits <= 8 else np.uint16)


def _stored(pixels: np.ndarray, mode: str) -> Image.Image:
    grey = Image.fromarray(quantise(pixels, 16 if mode == "I;16" else 8))
    return grey if mode in ("L", "I;16") else grey.convert(mode)


def write_png(path: Path, pixels: np.ndarray, mode: str = "L") -> None:
    """Write float (H, W) in [0, 1] as ``L``, ``I;16``, ``RGB`` or ``RGBA`` (opaque)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _stored(pixels, mode).save(path, format="PNG", compress_level=_PNG_LEVEL)


def write_jpeg(path: Path, pixels: np.ndarray, mode: str = "L", quality: int = 92) -> None:
    """Write float (H, W) in [0, 1] as an 8-bit JPEG, ``L`` or ``RGB``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _stored(pixels, mode).save(path, format="JPEG", quality=quality)


def write_mask(path: Path, mask: np.ndarray, mode: str = "L") -> None:
    """Write bool (H, W) as 0 / 255; the extension decides between PNG and GIF."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    if mode != "L":
        image = image.convert(mode)
    if path.suffix.lower() == ".gif":
        image.save(path, format="GIF")
    else:
        image.save(path, format="PNG", compress_level=_PNG_LEVEL)
