"""Which files of a folder are radiographs, and names for what is made of them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .tree import walk_files

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".dcm", ".dicom", ".mha", ".img")
_DICOM_MARK = (128, b"DICM")
_NO_IMAGES = ("dicomdir",)  # a table of contents, with the mark of an image
_MAX_NAME_BYTES = 160  # a file system takes 255, and suffixes are added


@dataclass(frozen=True)
class ImageFile:
    """A file, and what is made of it is to be called.

    Args:
        path: as given, or below the folder given.
        name: relative path without a suffix, unique among the files found together.
    """

    path: Path
    name: str


def find_images(given: Sequence[str | os.PathLike[str]]) -> list[ImageFile]:
    """The files among ``given`` and the images in its folders, each once, folders sorted.

    Below a folder counts what has the suffix of an image (gzipped too), or the mark of DICOM
    whatever it is called. A file named by itself always counts.

    Raises:
        FileNotFoundError: one of ``given`` is not there.
    """
    found: list[ImageFile] = []
    seen: set[str] = set()
    taken: Counter[str] = Counter()
    for item in map(Path, given):
        if not item.exists():
            raise FileNotFoundError(str(item))
        base = item if item.is_dir() else item.parent
        for path in _images_below(item) if item.is_dir() else [item]:
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                found.append(ImageFile(path, _free_name(path.relative_to(base), taken)))
    return found


def _images_below(folder: Path) -> Iterator[Path]:
    for parent, names in walk_files(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and (_stem(name) != name or _is_dicom(path)):
                yield path


def _stem(name: str) -> str:
    """``name`` without the suffix of an image; one like ``.103`` belongs to a DICOM's UID."""
    plain = name[:-3] if name.lower().endswith(".gz") else name
    stem, suffix = os.path.splitext(plain)
    return stem if suffix.lower() in IMAGE_SUFFIXES else name


def _is_dicom(path: Path) -> bool:
    if path.name.lower() in _NO_IMAGES:
        return False
    place, mark = _DICOM_MARK
    try:
        with path.open("rb") as file:
            return file.read(place + len(mark))[place:] == mark
    except OSError:
        return False


def _free_name(path: Path, taken: Counter[str]) -> str:
    """A name that none of the others has, on file systems without upper case too."""
    stem = _stem(path.name)
    suffix = path.name[len(stem) :].replace(".", "_")
    stem = stem.encode("utf-8", "surrogateescape")[:_MAX_NAME_BYTES].decode("utf-8", "replace")
    first = path.with_name(stem).as_posix()
    name = first
    if name.casefold() in taken:
        name = f"{first}{suffix}"
    while name.casefold() in taken:
        taken[first.casefold()] += 1
        name = f"{first}_{taken[first.casefold()]}"
    taken[name.casefold()] = 1
    return name
