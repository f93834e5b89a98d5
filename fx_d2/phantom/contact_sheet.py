"""Many pictures on one sheet, with captions, for documents and for looking."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_CAPTION_PX = 22
_GAP_PX = 4


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    columns: int = 4,
    cell_px: int = 320,
) -> np.ndarray:
    """Arrange images in a grid.

    Args:
        images: Grey (H, W) or colour (H, W, 3); float in [0, 1] or uint8. Sizes may differ.
        captions: One line per image, drawn under it.
        columns: Images per row.
        cell_px: Side of the square that every image is fitted into, aspect kept.

    Returns:
        uint8 (H, W) if all images are grey, else (H, W, 3).
    """
    if not images:
        raise ValueError("contact_sheet needs at least one image")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"{len(images)} images but {len(captions)} captions")
    if columns < 1 or cell_px < 8:
        raise ValueError(f"columns {columns} and cell_px {cell_px} must be at least 1 and 8")
    colour = any(np.asarray(image).ndim == 3 for image in images)
    foot = _CAPTION_PX if captions is not None else 0
    rows = -(-len(images) // columns)
    step_y, step_x = cell_px + foot + _GAP_PX, cell_px + _GAP_PX
    sheet = np.full((rows * step_y + _GAP_PX, columns * step_x + _GAP_PX, 3), 24, np.uint8)
    for k, image in enumerate(images):
        top = _GAP_PX + (k // columns) * step_y
        left = _GAP_PX + (k % columns) * step_x
        cell = _fit(_to_colour(np.asarray(image)), cell_px)
        y = top + (cell_px - cell.shape[0]) // 2
        x = left + (cell_px - cell.shape[1]) // 2
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
        if captions is not None:
            _caption(sheet, captions[k], left, top + cell_px + 15, cell_px)
    return sheet if colour else np.ascontiguousarray(sheet[:, :, 0])


def _to_colour(image: np.ndarray) -> np.ndarray:
    """Any accepted image as uint8 (H, W, 3)."""
    if image.dtype == bool:
        image = image.astype(np.float32)
    if image.dtype != np.uint8:
        image = (np.clip(image, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)
    return np.repeat(image[:, :, None], 3, axis=2) if image.ndim == 2 else image[:, :, :3]


def _fit(image: np.ndarray, side: int) -> np.ndarray:
    """Scale so that the longer side is ``side`` pixels."""
    height, width = image.shape[:2]
    factor = side / max(height, width)
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    how = cv2.INTER_AREA if factor < 1.0 else cv2.INTER_LINEAR
    return cv2.resize(image, size, interpolation=how)


def _caption(sheet: np.ndarray, text: str, x: int, y: int, width: int) -> None:
    """One line, shrunk until it fits."""
    scale = 0.42
    (length, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    if length > width - 4:
        scale *= (width - 4) / length
    cv2.putText(
        sheet, text, (x + 2, y), cv2.FONT_HERSHEY_SIMPLEX, scale, (230, 230, 230), 1, cv2.LINE_AA
    )
