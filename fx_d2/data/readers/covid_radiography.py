"""COVID-19 Radiography Database: one folder per class, each with images and masks of both lungs.

Masks have 256 x 256 pixels and images 299 x 299; the row's ``resize_masks`` says that they are to
be scaled. A row may ask for some of the classes: the images of the others still count when the
part is cut into splits, so that all rows of this folder are cut alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..errors import DataError
from ..record import Record
from ..vocabulary import COVID_RADIOGRAPHY_4
from .base import ReadRequest, counted, files_in, find_file, warn_counts


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of the one published part, ``all``, class by class."""
    yield from counted(request, _records(request))


def _records(request: ReadRequest) -> Iterator[Record]:
    classes = request.source.cls_classes
    folder = request.source.folder
    others = [name for name in COVID_RADIOGRAPHY_4 if name not in classes]
    request.report.left_out[request.part] = _images_of(request, others)
    for index, name in enumerate(classes):
        images = find_file(
            request.root,
            f"{name}/images",
            f"{folder}/{name}/images",
            what=f"the image folder of {name}",
        )
        mask_folder = find_file(images.parent, "masks", what=f"the mask folder of {name}")
        masks = {stem.lower(): path for stem, path in files_in(mask_folder, (".png",)).items()}
        found = files_in(images, (".png",))
        warn_counts(request, **{name: len(found)})
        labels = np.zeros(len(classes), dtype=np.float32)
        labels[index] = 1
        for stem, path in found.items():
            mask = masks.get(stem.lower())  # some lists write NORMAL-1 for Normal-1
            if mask is None:
                error = DataError(
                    "no lung mask",
                    file=path,
                    expected=f"{stem}.png in {mask_folder}",
                    fix="complete the download",
                )
                request.report.bad("image without a mask", error)
                continue
            yield {
                "file_name": path,
                "image_id": stem,
                "source": request.source.key,
                "patient_id": None,
                "view": None,
                "labels": labels.copy(),
                "masks": {"Lungs": mask},
            }


def _images_of(request: ReadRequest, names: Sequence[str]) -> set[str]:
    """Ids of the images of classes that the row leaves out; a folder may be missing."""
    found: set[str] = set()
    for name in names:
        for home in (request.root, request.root / request.source.folder):
            images = home / name / "images"
            if images.is_dir():
                found |= set(files_in(images, (".png",)))
    return found
