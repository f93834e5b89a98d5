"""The patch bank: lesions cut out of other sources, read back one at a time.

A bank folder holds

* ``bank.json``: what it was made of and how, and what was left out;
* ``part-00000.jsonl``, ``part-00000.bin`` ...: one line per patch, and its pixels (uint16, the
  grey values of the normalised image times 65535) followed by its mask, a bit per pixel.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DataError, shown
from .lungs import Box

BANK_NAME = "bank.json"
FORMAT = "fx_d2 lesion bank 1"
GREY = 65535
_REBUILD = "delete it and build it again with tools/make_lesion_mix.py"
_MAX_SIDE = 4096


@dataclass(frozen=True)
class Patch:
    """One lesion.

    Args:
        source, image_id, patient: where it comes from.
        name: its class there.
        label: the base source's label it stands for.
        frame: (height, width) of the image at the bank's size.
        box: (x0, y0, x1, y1) in that frame, whole pixels, end exclusive.
        crop: likewise, the box and its margin: what is stored.
        lungs: the lungs' box, shares of the frame.
        has_mask: whether the lesion's pixels are known.
        part, offset: where its pixels are.
    """

    source: str
    image_id: str
    patient: str
    name: str
    label: str
    frame: tuple[int, int]
    box: tuple[int, int, int, int]
    crop: tuple[int, int, int, int]
    lungs: Box
    has_mask: bool
    part: int
    offset: int

    @property
    def key(self) -> str:
        """Names the patch across banks."""
        return f"{self.source}/{self.image_id}/{self.name}/{'-'.join(map(str, self.box))}"

    @property
    def crop_shape(self) -> tuple[int, int]:
        """(height, width) of what is stored."""
        return (self.crop[3] - self.crop[1], self.crop[2] - self.crop[0])

    @property
    def stored_bytes(self) -> int:
        """Bytes of its pixels and mask."""
        n = self.crop_shape[0] * self.crop_shape[1]
        return 2 * n + ((n + 7) // 8 if self.has_mask else 0)

    def to_row(self) -> dict[str, Any]:
        """As a line of the bank."""
        row = {k: v for k, v in vars(self).items() if k != "part"}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in row.items()}


def part_name(number: int, suffix: str) -> str:
    """File name of a part of the bank."""
    return f"part-{number:05d}.{suffix}"


class PatchBank:
    """The patches of a bank folder; a copy in another process opens the files anew.

    Args:
        folder: of the bank.
        patches: those to use, in order; their place is a patch's number.
        header: content of ``bank.json``.
    """

    def __init__(self, folder: Path, patches: Sequence[Patch], header: dict[str, Any]) -> None:
        self.folder, self.header = folder, header
        self.patches = tuple(patches)
        self.by_label: dict[str, list[int]] = {}
        for number, patch in enumerate(self.patches):
            self.by_label.setdefault(patch.label, []).append(number)
        self._files: dict[int, np.ndarray] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_files": {}}

    def __len__(self) -> int:
        return len(self.patches)

    @classmethod
    def open(cls, folder: Path, labels: Sequence[str]) -> PatchBank:
        """Read the index of a bank; its labels have to be of ``labels``."""
        path = Path(folder) / BANK_NAME
        try:
            header = json.loads(path.read_text(encoding="utf-8"))
        except OSError as exc:
            raise DataError(
                f"no lesion bank ({exc.strerror})",
                file=path,
                expected="a folder that tools/make_lesion_mix.py made",
                fix="name its --out, or make one",
            ) from exc
        except (ValueError, RecursionError) as exc:
            raise DataError(f"not JSON ({exc})", file=path, fix=_REBUILD) from exc
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise DataError("not a lesion bank", file=path, expected=FORMAT, fix=_REBUILD)
        patches: list[Patch] = []
        n_parts = header.get("parts")
        if not isinstance(n_parts, int) or not 0 <= n_parts <= 1_000_000:
            raise DataError(f"parts is {shown(n_parts)}", file=path, fix=_REBUILD)
        for number in range(n_parts):
            patches += _read_part(Path(folder), number, labels)
        if len(patches) != header.get("patches"):
            raise DataError(
                f"{len(patches)} patches", file=path, expected=f"{header.get('patches')}",
                fix=_REBUILD,
            )  # fmt: skip
        return cls(Path(folder), patches, header)

    def load(self, number: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.bool_] | None]:
        """Grey values from 0 to ``GREY`` (H, W) of the crop, and its mask or None."""
        patch = self.patches[number]
        height, width = patch.crop_shape
        if patch.part not in self._files:
            path = self.folder / part_name(patch.part, "bin")
            try:
                self._files[patch.part] = np.memmap(path, dtype=np.uint8, mode="r")
            except (OSError, ValueError) as exc:
                raise DataError(f"cannot be opened: {exc}", file=path, fix=_REBUILD) from exc
        data = self._files[patch.part][patch.offset : patch.offset + patch.stored_bytes]
        if len(data) != patch.stored_bytes:
            path = self.folder / part_name(patch.part, "bin")
            raise DataError(f"patch {patch.key} is cut off", file=path, fix=_REBUILD)
        n = height * width
        grey = np.frombuffer(data[: 2 * n].tobytes(), dtype="<u2").reshape(height, width)
        mask = None
        if patch.has_mask:
            mask = np.unpackbits(data[2 * n :], count=n).reshape(height, width).view(bool)
        return grey.astype(np.uint16, copy=False), mask


def _read_part(folder: Path, number: int, labels: Sequence[str]) -> list[Patch]:
    path = folder / part_name(number, "jsonl")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as exc:
        raise DataError(f"cannot be read ({exc.strerror})", file=path, fix=_REBUILD) from exc
    found = []
    for line, text in enumerate(lines, start=1):
        try:
            found.append(_patch(json.loads(text), number, labels))
        except (ValueError, KeyError, TypeError, RecursionError) as exc:
            raise DataError(
                f"not a patch ({type(exc).__name__}: {exc})", file=path, row=line, fix=_REBUILD
            ) from exc
    return found


def _patch(row: dict[str, Any], part: int, labels: Sequence[str]) -> Patch:
    texts = {k: str(row[k]) for k in ("source", "image_id", "patient", "name", "label")}
    if texts["label"] not in labels:
        raise ValueError(f"label {texts['label']!r}, which the base source does not have")
    height, width = (int(v) for v in row["frame"])
    box, crop = (tuple(int(v) for v in row[k]) for k in ("box", "crop"))
    inside = (
        0 <= crop[0] <= box[0] < box[2] <= crop[2] <= width <= _MAX_SIDE
        and 0 <= crop[1] <= box[1] < box[3] <= crop[3] <= height <= _MAX_SIDE
    )
    lungs = tuple(float(v) for v in row["lungs"])
    if not inside or len(lungs) != 4 or not (lungs[2] > lungs[0] and lungs[3] > lungs[1]):
        raise ValueError("boxes that do not lie within each other")
    if int(row["offset"]) < 0:
        raise ValueError(f"offset {row['offset']}")
    return Patch(
        **texts,
        frame=(height, width),
        box=box,  # type: ignore[arg-type]
        crop=crop,  # type: ignore[arg-type]
        lungs=lungs,  # type: ignore[arg-type]
        has_mask=bool(row["has_mask"]),
        part=part,
        offset=int(row["offset"]),
    )


@lru_cache(maxsize=4)
def shared_bank(folder: Path, labels: tuple[str, ...]) -> PatchBank:
    """The bank of ``folder``, opened once in each process."""
    return PatchBank.open(folder, labels)
