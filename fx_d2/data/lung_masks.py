"""The lung mask of a record, from its source or from a folder, and its image prepared with it.

Masks of a record are its source's own; where a source has none, or to train on what a deployed
pipeline will see, a folder holds those that a lung segmentor made. A record whose mask is missing
or empty is a :class:`~fx_d2.data.errors.DataError`, which ``DATASETS.ON_ERROR`` answers: it stops
the run, or the image is left out and counted. It is never shown whole among images of lungs: who
has no mask would then be told by the picture.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import DataError
from .lung_input import (
    CROPPING_MODES,
    LUNG_CLASSES,
    LUNG_CLASSES_TEXT,
    LungCrop,
    LungMaskError,
    check_settings,
    checked_mask,
    lung_classes,
    prepare_lungs,
)
from .masks import load_mask
from .record import Record
from .transforms import FxResizeTransform

# A record may bring its mask: a reference (masks.py) or an array of the image's size. It wins.
LUNGS_KEY = "lungs"
OF_RECORD = "record"


def lungs_of(
    record: Record, size: tuple[int, int], *, resize: bool = False
) -> npt.NDArray[np.bool_] | None:
    """Both lungs as the source of a record has them, bool (height, width); None where it has not.

    Args:
        record: with ``masks``.
        size: (height, width) of its image.
        resize: whether masks of the source may have another size.
    """
    masks = record.get("masks") or {}
    names = lung_classes(masks)
    if not names:
        return None
    return np.logical_or.reduce([load_mask(masks[name], *size, resize=resize) for name in names])


class LungInput:
    """Prepares the image of a record for a classifier of the lungs.

    Args:
        mode: one of :data:`~fx_d2.data.lung_input.LUNG_MODES`.
        source: ``record``, or the folder of masks ``<image_id>.png`` (or
            ``<source>/<image_id>.png``, or named as the image file), as large as their images.
        margin, fill, min_side_px: see :func:`~fx_d2.data.lung_input.prepare_lungs`.
    """

    def __init__(
        self,
        mode: str,
        *,
        source: str = OF_RECORD,
        margin: float = 0.05,
        fill: float = 0.0,
        min_side_px: int = 16,
    ) -> None:
        check_settings(mode, margin, fill, min_side_px)
        self.mode, self.margin, self.fill, self.min_side_px = mode, margin, fill, min_side_px
        self.folder = None if source == OF_RECORD else Path(source).expanduser()

    @classmethod
    def from_config(cls, cfg: Any) -> LungInput | None:
        """By ``INPUT.FX.LUNGS``; None, at no cost, where images are shown whole.

        Raises:
            ValueError: a setting is wrong, or does not go with the others.
        """
        node = cfg.INPUT.FX.LUNGS
        result = cls(
            node.MODE,
            source=node.SOURCE,
            margin=node.MARGIN,
            fill=node.FILL,
            min_side_px=node.MIN_SIDE_PX,
        )
        if node.MODE == "none":
            return None
        result.check(cfg.DATASETS.TASKS)
        if cfg.INPUT.FX.LESION_MIX.PROB:
            raise ValueError(
                "INPUT.FX.LUNGS.MODE and INPUT.FX.LESION_MIX.PROB exclude each other: pasted "
                "lesions need not lie in the lungs; write the mixed set and its masks first"
            )
        if result.folder is not None and not result.folder.is_dir():
            raise ValueError(
                f"INPUT.FX.LUNGS.SOURCE {node.SOURCE!r} is no folder; name the folder of lung "
                f"masks, or {OF_RECORD!r} for those of the source"
            )
        return result

    def __call__(
        self,
        grey: npt.NDArray[np.float32],
        record: Record,
        size: tuple[int, int],
        *,
        resize: bool = False,
    ) -> LungCrop:
        """What is shown of ``grey``.

        Args:
            grey: (h, w) after normalisation; of a cache smaller than the original.
            record: whose image it is.
            size: (height, width) of the original, which masks have.
            resize: whether masks of the source may have another size.
        """
        try:
            lungs = self.mask(record, size, resize=resize)
            if lungs.shape != grey.shape:
                small = FxResizeTransform(*size, *grey.shape)
                lungs = small.apply_segmentation(lungs.astype(np.uint8)).astype(bool)
            return prepare_lungs(
                grey, lungs, self.mode, self.margin, self.fill, min_side_px=self.min_side_px
            )
        except DataError as exc:
            if exc.file is not None:
                raise
            raise LungMaskError(
                exc.problem,
                file=record["file_name"],
                row=f"image_id {record['image_id']!r}",
                expected=exc.expected,
                fix=exc.fix,
            ) from exc

    def check(self, tasks: Sequence[str]) -> None:
        """Raise ``ValueError`` where the targets of ``tasks`` do not go with what is shown."""
        if self.mode in CROPPING_MODES and set(tasks) - {"cls"}:
            raise ValueError(
                f"INPUT.FX.LUNGS.MODE {self.mode!r} cuts the image, which boxes and masks do not "
                f"follow; tasks are {tuple(tasks)}, set DATASETS.TASKS to ('cls',)"
            )

    def shown(
        self,
        grey: npt.NDArray[np.float32],
        record: Record,
        size: tuple[int, int],
        *,
        resize: bool = False,
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """The image alone, and ``shown_box``: where in the original it lies (arguments as above).

        The box is in pixels of the original, and not in whole ones where ``grey`` is of a cache.
        """
        crop = self(grey, record, size, resize=resize)
        scale = (size[1] / grey.shape[1], size[0] / grey.shape[0])
        box = tuple(float(edge * scale[i % 2]) for i, edge in enumerate(crop.box))
        return np.ascontiguousarray(crop.image, dtype=np.float32), {"shown_box": box}

    def mask(
        self, record: Record, size: tuple[int, int], *, resize: bool = False
    ) -> npt.NDArray[np.bool_]:
        """The mask (height, width) of both lungs of a record."""
        own = record.get(LUNGS_KEY)
        if isinstance(own, np.ndarray):
            return checked_mask(own, size)
        if own is not None:
            return load_mask(own, *size, resize=resize)
        if self.folder is not None:
            return load_mask(str(self._file(record, self.folder)), *size)
        found = lungs_of(record, size, resize=resize)
        if found is None:
            some = any(name in record.get("masks", {}) for name in LUNG_CLASSES)
            raise LungMaskError(
                f"no mask of {'both lungs' if some else 'the lungs'}",
                expected=LUNG_CLASSES_TEXT,
                fix="name a folder of masks in INPUT.FX.LUNGS.SOURCE",
            )
        return found

    def _file(self, record: Record, folder: Path) -> Path:
        """The mask of a record in a folder; ids come from files, and must not lead out of it."""
        image_id = str(record["image_id"])
        stem = os.path.splitext(os.path.basename(record["file_name"]))[0]
        for name in (f"{record['source']}/{image_id}", image_id, stem):
            path = folder / f"{name}.png"
            if ".." not in Path(name).parts and not Path(name).is_absolute() and path.is_file():
                return path
        raise LungMaskError(
            "no lung mask",
            expected=f"{image_id}.png in {folder}",
            fix="make the missing masks, or DATASETS.ON_ERROR skip leaves such images out and "
            "counts them",
        )
