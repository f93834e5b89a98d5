"""The record contract: Detectron2's dataset dict plus what partial supervision needs.

=================  ===============================================================================
key                meaning
=================  ===============================================================================
``file_name``      path of the image
``image_id``       string, unique within a source
``height, width``  pixels of the stored image where the index or the format states them; else
                   absent, and the mapper fills them in (Detectron2 does the same)
``source``         key of the row in ``SOURCES``
``patient_id``     string or None
``view``           ``"PA"``, ``"AP"``, ``"LL"`` ... or None
``labels``         float32 (C,) over the source's ``cls_classes``: 1 positive, 0 negative, NaN not
                   annotated, -1 uncertain. Absent where the source has no image labels
``annotations``    absent: boxes not annotated here. ``[]``: annotated, nothing found. Else
                   COCO-style dicts; ``segmentation`` is any mask reference of ``masks.py``
``masks``          absent: not annotated. Else ``{class: mask reference}`` over ``seg_classes``; a
                   class not in it is not annotated, an empty mask is a true negative
``ignore_masks``   absent: masks are annotated everywhere. Else ``{class: mask reference}`` of the
                   pixels of which ``masks`` says nothing; a class not in it has none. A source
                   whose masks have such pixels gives every record the key, ``{}`` where need be
=================  ===============================================================================

Further keys a reader may add: ``study_id``, ``age``, ``sex``, ``body_part`` and, per annotation,
``n_readers``. An image with pasted lesions has ``synthetic`` (True), and ``pasted``: their boxes,
XYXY, of any class. Not annotated is never negative: it contributes no gradient and no metric.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from .errors import DataError
from .source import Source

Record = dict[str, Any]
UNCERTAIN = -1.0
XYXY_ABS = 0  # values of detectron2.structures.BoxMode; an IntEnum, so plain integers compare equal
XYWH_ABS = 1
_REQUIRED = ("file_name", "image_id", "source", "patient_id", "view")


def _fail(record: Record, problem: str, expected: str | None = None) -> None:
    raise DataError(
        problem,
        file=record.get("file_name"),
        row=f"image_id {record.get('image_id')!r}",
        expected=expected,
        fix="correct the reader of this source (the record contract is in fx_d2/data/record.py)",
    )


def validate_record(record: Record, source: Source) -> None:
    """Raise :class:`DataError` unless ``record`` keeps the contract for ``source``."""
    for key in _REQUIRED:
        if key not in record:
            _fail(record, f"record has no {key!r}", f"the keys {_REQUIRED}")
    if record["source"] != source.key:
        _fail(record, f"source {record['source']!r}", repr(source.key))
    for key in ("file_name", "image_id"):
        if not isinstance(record[key], str) or not record[key]:
            _fail(record, f"{key} is {record[key]!r}", "a non-empty string")
    for key in ("patient_id", "view"):
        if record[key] is not None and not isinstance(record[key], str):
            _fail(record, f"{key} is {record[key]!r}", "a string or None")
    size = (record.get("height"), record.get("width"))
    if (size[0] is None) != (size[1] is None):
        _fail(record, f"height, width = {size}", "both or neither")
    if size[0] is not None and size[1] is not None and (size[0] <= 0 or size[1] <= 0):
        _fail(record, f"height, width = {size}", "positive pixels")
    _validate_labels(record, source)
    _validate_annotations(record, source)
    _validate_masks(record, source)


def _validate_labels(record: Record, source: Source) -> None:
    if "labels" not in record:
        return
    labels = record["labels"]
    wanted = (len(source.cls_classes),)
    if not isinstance(labels, np.ndarray) or labels.dtype != np.float32 or labels.shape != wanted:
        _fail(record, f"labels are {labels!r}", f"a float32 array of shape {wanted}")
    known = labels[~np.isnan(labels)]
    if not np.isin(known, (0.0, 1.0, UNCERTAIN)).all():
        _fail(record, f"labels hold {sorted(set(known.tolist()))}", "0, 1, -1 (uncertain) or NaN")
    if source.cls_kind == "multiclass" and known.size and (known == 1).sum() != 1:
        _fail(
            record, f"{int((known == 1).sum())} positive labels", "exactly one (multiclass source)"
        )


def _validate_annotations(record: Record, source: Source) -> None:
    for number, annotation in enumerate(record.get("annotations", ())):
        box = np.asarray(annotation.get("bbox", ()), dtype=float)
        if box.shape != (4,) or not np.isfinite(box).all():
            _fail(record, f"bbox of annotation {number} is {annotation.get('bbox')!r}", "4 numbers")
        if annotation.get("bbox_mode") not in (XYXY_ABS, XYWH_ABS):
            _fail(record, f"bbox_mode is {annotation.get('bbox_mode')!r}", "XYXY_ABS or XYWH_ABS")
        x0, y0, x1, y1 = box_xyxy(annotation)
        if not (x1 > x0 and y1 > y0):
            _fail(record, f"box {number} is degenerate: {box.tolist()}", "x1 > x0 and y1 > y0")
        if x0 < -1 or y0 < -1:
            _fail(record, f"box {number} leaves the image: {box.tolist()}", "coordinates from 0")
        if record.get("height") and (x1 > record["width"] + 1 or y1 > record["height"] + 1):
            _fail(
                record,
                f"box {number} leaves the image: {[x0, y0, x1, y1]}",
                f"within {record['width']} x {record['height']} (width x height)",
            )
        category = annotation.get("category_id")
        if not isinstance(category, int) or not 0 <= category < len(source.thing_classes):
            _fail(record, f"category_id is {category!r}", f"0..{len(source.thing_classes) - 1}")
        if source.instance_masks and "segmentation" not in annotation:
            _fail(record, f"annotation {number} has no segmentation", "RLE or polygons")


def _validate_masks(record: Record, source: Source) -> None:
    for name in record.get("masks", ()):
        if name not in source.seg_classes:
            _fail(record, f"mask of class {name!r}", f"one of {source.seg_classes}")
    for name in record.get("ignore_masks", ()):
        if name not in record.get("masks", ()):
            _fail(record, f"ignored pixels of class {name!r}", "a class that has a mask here")


def box_xyxy(annotation: dict[str, Any]) -> tuple[float, float, float, float]:
    """The box of a COCO-style annotation as (x0, y0, x1, y1)."""
    a, b, c, d = (float(x) for x in annotation["bbox"])
    return (a, b, c, d) if annotation["bbox_mode"] == XYXY_ABS else (a, b, a + c, b + d)


class PackedRecords(Sequence[Record]):
    """A sequence of records in one byte buffer, which loader workers share instead of copying.

    A list of 377,110 dicts takes about a gigabyte, and every worker that touches it copies it,
    reference counts being written. Records are therefore serialised while they are read and
    unpacked one at a time. (The pickles are made and read by this process tree only; they never
    come from a file.)
    """

    def __init__(self, records: Iterable[Record]) -> None:
        buffer = bytearray()
        ends: list[int] = []
        for record in records:
            buffer += pickle.dumps(record, protocol=pickle.HIGHEST_PROTOCOL)
            ends.append(len(buffer))
        self._bytes = np.frombuffer(buffer, dtype=np.uint8)  # no copy: at the peak it would count
        self._ends = np.asarray(ends, dtype=np.int64)

    @classmethod
    def _of(cls, data: np.ndarray, ends: np.ndarray) -> PackedRecords:
        packed = cls.__new__(cls)
        packed._bytes, packed._ends = data, ends
        return packed

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index):  # type: ignore[override]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start = 0 if index == 0 else int(self._ends[index - 1])
        # Safe: these bytes were pickled by this very object, never read from a file.
        return pickle.loads(memoryview(self._bytes[start : int(self._ends[index])]))  # noqa: S301

    def __iter__(self) -> Iterator[Record]:
        return (self[i] for i in range(len(self)))

    def select(self, indices: Sequence[int]) -> PackedRecords:
        """The records at ``indices`` as a new sequence, without unpacking them."""
        starts = np.concatenate([[0], self._ends[:-1]]) if len(self) else self._ends
        chunks = [self._bytes[int(starts[i]) : int(self._ends[i])] for i in indices]
        data = np.concatenate(chunks) if chunks else np.empty(0, dtype=np.uint8)
        return self._of(data, np.cumsum([len(c) for c in chunks], dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Memory the records take, in bytes."""
        return self._bytes.nbytes + self._ends.nbytes
