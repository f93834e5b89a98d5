"""Mask references: what a record holds in place of pixels, and how they are decoded.

A record of CheXmask or SIIM would be a hundred times larger with its masks decoded, and reading
18,000 rows would take minutes; so records keep the vendor's own run lengths, polygons or file names
and :func:`load_mask` turns any of them into a boolean array when an image is used. Run lengths are
checked against the frame when they are read (:func:`check_runs`), because a run that ends beyond
the frame means that the wrong convention was assumed.

A reference is one of

* ``str``: a mask file, foreground where the value is above 0; ``list[str]``: the union of several
  files;
* COCO RLE: ``{"size": [h, w], "counts": bytes | str | list[int]}``;
* ``{"size": [h, w], "runs": str | bytes, "convention": name}``: run lengths as the vendor wrote
  them, or packed by :func:`pack_runs` (18,000 CheXmask rows are a gigabyte of text);
* ``{"size": [h, w], "polygons": [[x0, y0, x1, y1, ...], ...]}``: the union of filled rings;
* ``{"size": [h, w], "file": str, "left": int, "top": int}``: a crop placed in the frame;
* ``{"size": [h, w], "union": [reference, ...]}``: several of the above.

``size`` may be absent where the source does not state it: the image's size is used.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .errors import DataError, shown

MaskRef = Any  # one of the forms above; validate_mask_ref says which
CONVENTIONS = ("relative_columns", "absolute_rows_1")


_MAX_PIXELS = 1 << 28
_MANY_EDGES = 1 << 14  # from here on a list of Python integers costs more than a scan
_FAR_PX = 1 << 20  # no image is that large, and OpenCV's fixed point overflows far beyond


def parse_runs(
    text: str | bytes, *, file: str | None = None, row: int | str | None = None
) -> np.ndarray:
    """``"start length start length ..."`` as an (N, 2) int64 array, else a :class:`DataError`."""
    if isinstance(text, bytes):
        deltas = np.frombuffer(zlib.decompress(text), dtype="<i4").reshape(2, -1)
        return np.cumsum(deltas.T, axis=0, dtype=np.int64)
    fields = text.split()
    fix = "restore this row from the original file"
    try:
        numbers = np.array(fields, dtype=np.int64)
    except (ValueError, OverflowError) as exc:
        raise DataError(
            f"run lengths contain {shown(text)[:60]!r}",
            file=file,
            row=row,
            expected="integers",
            fix=fix,
        ) from exc
    if numbers.size == 0 or numbers.size % 2:
        raise DataError(
            f"{numbers.size} numbers in the run lengths",
            file=file,
            row=row,
            expected="pairs",
            fix=fix,
        )
    return numbers.reshape(-1, 2)


def pack_runs(text: str) -> bytes:
    """Run lengths that passed :func:`check_runs`, at a few percent of their size as text."""
    deltas = np.diff(parse_runs(text), axis=0, prepend=0)
    return zlib.compress(np.ascontiguousarray(deltas.T, dtype="<i4").tobytes(), 1)


def absolute_runs(
    runs: np.ndarray,
    convention: str,
    size: tuple[int, int],
    *,
    file: str | None = None,
    row: int | str | None = None,
) -> np.ndarray:
    """Runs as 0-based (start, end) along the convention's scan order, checked against the frame.

    Args:
        runs: (N, 2) pairs as written.
        convention: ``relative_columns``: each start is the gap since the previous run's end,
            scanning down the columns (SIIM-ACR, CANDID-PTX); ``absolute_rows_1``: 1-based absolute
            starts along the rows (CheXmask).
        size: (height, width) of the frame.
        file: named in an error.
        row: named in an error.
    """
    if convention not in CONVENTIONS:
        raise ValueError(f"run-length convention {convention!r} is not one of {CONVENTIONS}")
    starts, lengths = runs[:, 0], runs[:, 1]
    limit = int(size[0]) * int(size[1])
    ok = bool(
        (starts >= 0).all()
        and (lengths > 0).all()
        and (starts <= limit).all()
        and (lengths <= limit).all()
    )
    if ok and convention == "relative_columns":
        ends = np.cumsum(starts + lengths)
        begins = ends - lengths
    elif ok:
        begins = starts - 1
        ends = begins + lengths
        ok = bool((begins >= 0).all() and (begins[1:] >= ends[:-1]).all())
    if not ok or int(ends[-1]) > limit or int(ends.max()) > limit:
        raise DataError(
            f"run lengths leave the {size[0]} x {size[1]} frame or overlap",
            file=file,
            row=row,
            expected=f"{convention} runs within {limit} pixels",
            fix="check that the image size and the run-length convention belong to this file",
        )
    return np.stack([begins, ends], axis=1)


def check_runs(
    text: str,
    convention: str,
    size: tuple[int, int],
    *,
    file: str | None = None,
    row: int | str | None = None,
) -> tuple[float, float, float, float]:
    """Validate run lengths without decoding them; their box (x0, y0, x1, y1), end exclusive."""
    begin_end = absolute_runs(
        parse_runs(text, file=file, row=row), convention, size, file=file, row=row
    )
    line = size[0] if convention == "relative_columns" else size[1]  # pixels per scan line
    first, last = begin_end[:, 0], begin_end[:, 1] - 1
    major = (int((first // line).min()), int((last // line).max()) + 1)
    if (
        first // line != last // line
    ).any():  # a run wraps into the next line: it touches both borders
        minor = (0, line)
    else:
        minor = (int((first % line).min()), int((last % line).max()) + 1)
    if convention == "relative_columns":
        return (major[0], minor[0], major[1], minor[1])
    return (minor[0], major[0], minor[1], major[1])


def runs_to_coco(text: str, size: tuple[int, int], **where: Any) -> dict[str, Any]:
    """Relative column-major runs as a compressed COCO RLE, which adds the closing gap."""
    begin_end = absolute_runs(parse_runs(text, **where), "relative_columns", size, **where)
    edges = np.concatenate([[0], begin_end.ravel(), [size[0] * size[1]]])
    counts = np.diff(edges).tolist()
    return coco_mask.frPyObjects({"size": list(size), "counts": counts}, size[0], size[1])


def instance_reference(segmentation: Any) -> MaskRef:
    """A mask reference from COCO's ``segmentation``, whose plain list of rings is not one."""
    if (
        isinstance(segmentation, list)
        and segmentation
        and not isinstance(segmentation[0], (str, dict))
    ):
        return {"polygons": segmentation}
    return segmentation


def empty_mask() -> dict[str, Any]:
    """The reference of a true negative: looked for and not there, whatever the image's size."""
    return {"polygons": []}


def encode_mask(mask: np.ndarray) -> dict[str, Any]:
    """A boolean (H, W) array as a compressed COCO RLE.

    Equal to pycocotools', which scans the whole frame: an evaluation encodes a hundred small masks
    per image, so only the columns with foreground are looked at.
    """
    mask = mask.astype(bool, copy=False)
    height, width = mask.shape
    columns = np.flatnonzero(mask.any(axis=0))
    if not len(columns):
        return coco_mask.encode(np.zeros((height, width), dtype=np.uint8, order="F"))
    first, last = int(columns[0]), int(columns[-1]) + 1
    inner = mask[:, first:last].T.ravel()
    edges = np.flatnonzero(np.diff(inner, prepend=False, append=False))
    if len(edges) > _MANY_EDGES:
        return coco_mask.encode(np.asfortranarray(mask.view(np.uint8)))
    bounds = np.concatenate([[0], edges + first * height, [height * width]])
    counts = np.diff(bounds).tolist()
    if not counts[-1]:  # foreground up to the last pixel: pycocotools writes no closing gap
        counts.pop()
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def _decode_runs(ref: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    convention = ref["convention"]
    flat = np.zeros(size[0] * size[1], dtype=bool)
    for begin, end in absolute_runs(parse_runs(ref["runs"]), convention, size):
        flat[begin:end] = True
    if convention == "relative_columns":
        return np.ascontiguousarray(flat.reshape(size[1], size[0]).T)
    return flat.reshape(size)


def _decode_polygons(rings: Iterable[Iterable[float]], size: tuple[int, int]) -> np.ndarray:
    """Pixels whose centre lies in a ring or on it: annotators click on the last pixel inside."""
    canvas = np.zeros(size, dtype=np.uint8)
    shift = 4  # sub-pixel bits of OpenCV's fixed point
    for ring in rings:
        points = np.asarray(list(ring), dtype=np.float64)
        if points.size % 2 or not (np.abs(points) <= _FAR_PX).all():
            raise DataError(
                f"polygon with {points.size} coordinates up to {np.abs(points).max(initial=0):g}",
                expected="pairs of finite coordinates near the image",
                fix="check the annotation file",
            )
        points = points.reshape(-1, 2)
        cv2.fillPoly(canvas, [np.round(points * (1 << shift)).astype(np.int32)], 1, shift=shift)
    return canvas.astype(bool)


def _decode_crop(ref: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    from .images import read_mask_image

    crop = read_mask_image(ref["file"])
    left, top = int(ref["left"]), int(ref["top"])
    if left < 0 or top < 0 or left + crop.shape[1] > size[1] or top + crop.shape[0] > size[0]:
        raise DataError(
            f"crop of {crop.shape[0]} x {crop.shape[1]} at left {left}, top {top} leaves the image",
            file=ref["file"],
            expected=f"within {size[0]} x {size[1]}",
            fix="check the index row of this mask",
        )
    canvas = np.zeros(size, dtype=bool)
    canvas[top : top + crop.shape[0], left : left + crop.shape[1]] = crop
    return canvas


def _coco_counts(text: str | bytes) -> np.ndarray:
    """The run lengths of a compressed COCO RLE.

    pycocotools writes out of bounds on a damaged string, which ends the process; so strings from
    files never reach it. Numbers are groups of five bits, lowest first, with a bit that says "more
    follows"; from the fourth on they are differences to the number two before.
    """
    raw = text.encode("ascii", "replace") if isinstance(text, str) else text
    digits = np.frombuffer(raw, dtype=np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(digits & 32 == 0)
    begins = np.concatenate([[0], ends[:-1] + 1]) if ends.size else ends
    lengths = ends + 1 - begins
    whole = ends.size and ends[-1] == len(digits) - 1 and int(lengths.max()) <= 7
    if digits.size and (not whole or int(digits.min()) < 0 or int(digits.max()) > 63):
        raise _coco_error("COCO run lengths are damaged", "the text that pycocotools writes")
    place = np.arange(len(digits)) - np.repeat(begins, lengths)
    numbers = np.zeros(len(ends), dtype=np.int64)
    np.add.at(numbers, np.repeat(np.arange(len(ends)), lengths), (digits & 31) << 5 * place)
    negative = digits[ends] & 16 != 0
    numbers[negative] -= np.int64(1) << 5 * lengths[negative]
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers


def _coco_error(problem: str, expected: str) -> DataError:
    return DataError(problem, expected=expected, fix="check the annotation file")


def _decode_coco(ref: dict[str, Any], size: tuple[int, int]) -> np.ndarray:
    counts = ref["counts"]
    try:
        counts = (
            np.asarray(counts, dtype=np.int64) if isinstance(counts, list) else _coco_counts(counts)
        )
    except (ValueError, TypeError, OverflowError) as exc:
        if isinstance(exc, DataError):
            raise
        raise _coco_error("COCO run lengths are no integers", "a list of integers") from exc
    limit = size[0] * size[1]
    fits = counts.ndim == 1 and ((counts >= 0) & (counts <= limit)).all()
    if not fits or int(counts.sum()) != limit:
        raise _coco_error(
            f"COCO run lengths sum to {int(counts.sum())}", f"{limit} for {size[0]} x {size[1]}"
        )
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(size[1], size[0]).T)


def _decode_file(path: str) -> np.ndarray:
    from .images import read_mask_image

    return read_mask_image(path)


def _decode(ref: MaskRef, size: tuple[int, int]) -> np.ndarray:
    if isinstance(ref, str):
        return _decode_file(ref)
    if isinstance(ref, list):
        return _union(ref, size)
    size = _frame(ref, size)
    for key, decode in _DECODERS.items():
        if key in ref:
            return decode(ref, size)
    raise TypeError(f"mask reference with keys {sorted(ref)} is none of the forms in {__name__}")


def _frame(ref: dict[str, Any], size: tuple[int, int]) -> tuple[int, int]:
    """The reference's own size, else the image's; an untrusted one must not fill the memory."""
    height, width = ref.get("size", size)
    if not (height > 0 and width > 0 and height * width <= _MAX_PIXELS):
        raise DataError(
            f"mask of {height} x {width}",
            expected=f"1 to {_MAX_PIXELS} pixels",
            fix="check the size that the index states for this image",
        )
    return int(height), int(width)


def _union(refs: Iterable[MaskRef], size: tuple[int, int]) -> np.ndarray:
    total: np.ndarray | None = None
    for ref in refs:
        mask = _decode(ref, size)
        if total is not None and total.shape != mask.shape:
            raise DataError(
                f"masks of one class differ in size: {total.shape} and {mask.shape}",
                file=ref if isinstance(ref, str) else None,
                fix="run tools/doctor.py on this source",
            )
        total = mask if total is None else total | mask
    return np.zeros(size, dtype=bool) if total is None else total


_DECODERS = {
    "runs": _decode_runs,
    "counts": _decode_coco,
    "polygons": lambda ref, size: _decode_polygons(ref["polygons"], size),
    "file": _decode_crop,
    "union": lambda ref, size: _union(ref["union"], size),
}


def load_mask(ref: MaskRef, height: int, width: int, *, resize: bool = False) -> np.ndarray:
    """Decode a mask reference to a boolean (height, width) array.

    Args:
        ref: a reference in one of the forms above.
        height: of the image.
        width: of the image.
        resize: whether a mask of another size is scaled to the image (nearest neighbour); else it
            is an error.
    """
    mask = _decode(ref, (height, width))
    if mask.shape == (height, width):
        return mask
    if not resize:
        raise DataError(
            f"mask is {mask.shape[0]} x {mask.shape[1]}",
            file=ref if isinstance(ref, str) else None,
            expected=f"{height} x {width}, the image's size",
            fix="use image and mask of the same release, or set resize_masks in the source's row",
        )
    resized = cv2.resize(
        mask.astype(np.uint8), (width, height), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return resized.astype(bool)
