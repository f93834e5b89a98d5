"""Pictures as PNG files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from .atomic import write_atomically
from .draw import Picture

GreyPicture = npt.NDArray[np.uint8]  # (H, W)


def save_png(path: Path, picture: Picture | GreyPicture) -> None:
    """Write an RGB or a grey picture; its folder is made where it is missing."""
    ordered = picture[..., ::-1] if picture.ndim == 3 else picture
    ok, data = cv2.imencode(".png", np.ascontiguousarray(ordered))
    if not ok:
        raise OSError(f"{path}: a picture of {picture.shape} cannot be encoded as PNG")
    write_atomically(path, data.tobytes())


def file_name(text: str) -> str:
    """``text`` with nothing that a file system could object to."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)[-120:]
