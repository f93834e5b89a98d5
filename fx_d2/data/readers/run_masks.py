"""Pneumothorax outlines as SIIM-ACR and CANDID-PTX write them: relative runs down the columns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..masks import check_runs, empty_mask, runs_to_coco
from ..record import XYXY_ABS


def outlines(
    runs: Sequence[str], size: tuple[int, int], *, file: Path, row: int | str
) -> dict[str, Any]:
    """Label, annotations and mask of an image with the given run lengths; none is a true negative.

    Args:
        runs: one text per outline. Outlines may overlap; the mask is their union.
        size: (height, width) of the frame they were drawn in.
        file: named in errors.
        row: named in errors.
    """
    annotations, masks = [], []
    for text in runs:
        where: dict[str, Any] = {"file": str(file), "row": row}
        x0, y0, x1, y1 = check_runs(text, "relative_columns", size, **where)
        mask = runs_to_coco(text, size, **where)
        masks.append(mask)
        annotations.append(
            {
                "bbox": [float(x0), float(y0), float(x1), float(y1)],
                "bbox_mode": XYXY_ABS,
                "category_id": 0,
                "iscrowd": 0,
                "segmentation": mask,
            }
        )
    union: Any = empty_mask()
    if masks:
        union = masks[0] if len(masks) == 1 else {"size": list(size), "union": masks}
    return {
        "height": size[0],
        "width": size[1],
        "labels": np.array([float(bool(masks))], dtype=np.float32),
        "annotations": annotations,
        "masks": {"Pneumothorax": union},
    }


def frame_of(size: tuple[int, int] | None, key: str) -> tuple[int, int]:
    """The frame of the runs, which the source's row states."""
    if size is None:
        raise DataError(
            f"source {key!r} states no image_size, but its run lengths need one",
            fix="set image_size in the source's row",
        )
    return size
