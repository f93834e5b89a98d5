"""Pictures of a mix: some images with their truth, and the correlations before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from ..draw import Picture, Scene, contact_sheet, display, draw_scene
from ..images import read_image
from ..masks import load_mask
from ..picture_files import save_png
from ..record import Record
from .audit import Audit

_CELL_PX = 18
_SIZE_PX = 360


def draw_examples(
    folder: Path, rows: Sequence[dict[str, Any]], records: Sequence[Record], *, per_arm: int = 4
) -> Picture | None:
    """Base, result and result with its truth in one row each; None without images."""
    pictures = []
    for arm in ("cutmix", "mixup"):
        for row in [r for r in rows if r["arm"] == arm][:per_arm]:
            base = read_image(records[row["base"]]["file_name"]).pixels
            mixed = display(read_image(folder / row["file"]).pixels)
            pictures.append(_drawn(Scene(display(base), title=f"{arm}: base")))
            pictures.append(_drawn(Scene(mixed, title=row["image_id"])))
            pictures.append(_drawn(_with_truth(mixed, row)))
    return contact_sheet(pictures, columns=3) if pictures else None


def _with_truth(image: np.ndarray, row: dict[str, Any]) -> Scene:
    """Boxes of what was pasted, and the masks where the base leaves no lesion unknown."""
    scene = Scene(image, title="pasted" + (", base not annotated" if row["boxes"] is None else ""))
    for entry in row["pasted"]:
        x0, y0, x1, y1 = entry["box"]
        scene.boxes.append((entry["class"], (x0, y0, x1, y1), ""))
    for entry in row["boxes"] or ():
        if "mask" in entry:
            mask = load_mask(entry["mask"], row["height"], row["width"])
            scene.outlines.append((entry["class"], mask))
    return scene


def _drawn(scene: Scene) -> Picture:
    return draw_scene(scene, size_px=_SIZE_PX, legend=False)


def draw_correlations(found: Audit) -> Picture:
    """|phi| before, after and their difference, one colour scale from 0 to the largest."""
    matrices = [np.abs(found.before), np.abs(found.after)]
    matrices.append(np.abs(matrices[1] - matrices[0]))
    top = max(float(m.max()) for m in matrices) or 1.0
    names = found.body["correlation"]["classes"]
    blocks = []
    for title, matrix in zip(("before", "after", "difference"), matrices, strict=True):
        grey = np.rint(matrix / top * 255).astype(np.uint8)
        colours = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_VIRIDIS), cv2.COLOR_BGR2RGB)
        side = _CELL_PX * len(names)
        block = cv2.resize(colours, (side, side), interpolation=cv2.INTER_NEAREST)
        head = np.full((24, side, 3), 20, dtype=np.uint8)
        text = f"{title}, largest {matrix.max():.2f}"
        cv2.putText(head, text, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255, 255, 255), 1)
        blocks.append(np.concatenate([head, block]))
    return contact_sheet([_names(names), *blocks], columns=4)


def _names(names: Sequence[str]) -> Picture:
    """The classes beside the rows."""
    column = np.full((24 + _CELL_PX * len(names), 230, 3), 20, dtype=np.uint8)
    for i, name in enumerate(names):
        place = (4, 24 + _CELL_PX * i + 13)
        cv2.putText(column, name, place, cv2.FONT_HERSHEY_SIMPLEX, 0.42, (230, 230, 230), 1)
    return column


def write_pictures(
    folder: Path, found: Audit, rows: Sequence[dict[str, Any]], records: Sequence[Record]
) -> None:
    """Write ``examples.png`` and ``correlations.png`` into ``<folder>/audit``."""
    sheet = draw_examples(folder, rows, records)
    if sheet is not None:
        save_png(folder / "audit" / "examples.png", sheet)
    save_png(folder / "audit" / "correlations.png", draw_correlations(found))
