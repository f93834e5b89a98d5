"""COVID-QU-Ex: a part with lung masks and, for some of its images, one with infection masks.

An image that is in both parts is one record with both masks, in the split of the lung part, so that
no image is in two splits whatever the infection part says. Without COVID-19 the infection masks are
black, which is a true negative; an image of the lung part alone has no infection mask, which is not
annotated.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DataError
from ..record import Record
from .base import ReadRequest, counted, files_in, find_file

_LUNGS, _INFECTION = "Lung Segmentation Data", "Infection Segmentation Data"
_SPLITS = ("Train", "Val", "Test")
Found = dict[tuple[str, str], dict[str, str]]  # (class, stem in lower case) -> kind -> path


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of part ``Train``, ``Val`` or ``Test``; ids read ``Train/COVID-19/covid_1``."""
    yield from counted(request, _records(request))


def _base(request: ReadRequest, name: str) -> Path | None:
    """The folder with Train, Val and Test; the archive doubles its name, some unpack one less."""
    for candidate in (f"{name}/{name}", name):
        if (request.root / candidate / "Train").is_dir():
            return request.root / candidate
    return None


def _index(base: Path, split: str, request: ReadRequest, *, infection: bool) -> Found:
    found: Found = {}
    kinds = {"image": "images", "Lungs": "lung masks"}
    if infection:
        kinds["COVID-19 Infection"] = "infection masks"
    for name in request.source.cls_classes:
        for kind, folder in kinds.items():
            path = find_file(base, f"{split}/{name}/{folder}", what=f"{folder} of {split}/{name}")
            for stem, file in files_in(path, (".png",)).items():
                found.setdefault((name, stem.lower()), {})[kind] = file
    return found


def _whole(found: Found, wanted: tuple[str, ...], request: ReadRequest) -> Found:
    """The images that have every mask; the others are reported."""
    whole: Found = {}
    for key, files in found.items():
        lacking = [kind for kind in wanted if kind not in files]
        if "image" in lacking:
            continue  # a mask too many harms nothing; the doctor lists it
        if lacking:
            error = DataError(
                f"no mask of {' and '.join(lacking)}",
                file=files["image"],
                expected="a mask of the same name beside images",
                fix="complete the download",
            )
            request.report.bad("image without a mask", error)
            continue
        whole[key] = files
    return whole


def _records(request: ReadRequest) -> Iterator[Record]:
    lungs, infection = _base(request, _LUNGS), _base(request, _INFECTION)
    if lungs is None and infection is None:
        find_file(request.root, f"{_LUNGS}/{_LUNGS}/Train", what="the lung part")
    chosen: Found = {}
    in_lungs: set[tuple[str, str]] = set()
    if lungs is not None:
        own = _index(lungs, request.part, request, infection=False)
        chosen = _whole(own, ("image", "Lungs"), request)
        in_lungs |= own.keys()  # also those that lack a mask: left out is left out
        for split in _SPLITS:
            if split != request.part and infection is not None:
                in_lungs |= _index(lungs, split, request, infection=False).keys()
    if infection is not None:
        kinds = ("image", "Lungs", "COVID-19 Infection")
        moved = 0
        for split in _SPLITS:
            part = _index(infection, split, request, infection=True)
            known = {k: v for k, v in part.items() if k in chosen or split == request.part}
            for key, files in _whole(known, kinds, request).items():
                if key in chosen:
                    moved += split != request.part
                    chosen[key]["COVID-19 Infection"] = files["COVID-19 Infection"]
                elif key not in in_lungs:
                    chosen[key] = files
        request.report.soft(
            f"covid_qu_ex {request.part}: images that the infection part has in another split",
            found=moved,
            expected=0,
        )
    for (name, _), files in sorted(chosen.items()):
        yield _record(request, name, files)


def _record(request: ReadRequest, name: str, files: dict[str, str]) -> Record:
    labels = np.zeros(len(request.source.cls_classes), dtype=np.float32)
    labels[request.source.cls_classes.index(name)] = 1
    return {
        "file_name": files["image"],
        "image_id": f"{request.part}/{name}/{Path(files['image']).stem}",
        "source": request.source.key,
        "patient_id": None,
        "view": None,
        "labels": labels,
        "masks": {kind: files[kind] for kind in request.source.seg_classes if kind in files},
    }
