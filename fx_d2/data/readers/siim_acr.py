"""SIIM-ACR Pneumothorax, stage 1 (a tree of DICOM folders) and stage 2 (plain files).

Files and rows are joined by name over the whole tree. In the official download some files have no
row and some rows no file; both are left out and counted.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from ..errors import DataError
from ..record import Record
from .base import ReadRequest, bad_cell, counted, find_file, index_by_stem, line_of, read_table
from .run_masks import frame_of, outlines

_TABLES = ("stage_2_train.csv", "train-rle.csv", "stage_1_train.csv")
_IMAGE_ID = re.compile(r"\d+(\.\d+)+|ID_[0-9a-f]+")
_HOMES = ("", "siim", "pneumothorax", "siim-acr-pneumothorax-segmentation")

OPTIONS = ("table",)


def read(request: ReadRequest) -> Iterator[Record]:
    """Records of the one part ``train``: every labelled image, whichever stage it came with.

    Options:
        table: name of the label table; default the first of stage 2's and stage 1's that is there.
    """
    return counted(request, _records(request))


def _records(request: ReadRequest) -> Iterator[Record]:
    names = [request.option("table")] if request.option("table") else _TABLES
    candidates = [f"{home}/{name}" if home else name for name in names for home in _HOMES]
    table = find_file(request.root, *candidates, what="the label table")
    frame = read_table(table, required=("ImageId", "EncodedPixels"))
    rows: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for index, (name, runs) in enumerate(
        zip(frame["ImageId"], frame["EncodedPixels"], strict=True)
    ):
        if not _IMAGE_ID.fullmatch(name):
            # Without its name nobody knows which image lacks an outline: the table is in doubt.
            expected = "an id like 1.2.276.0.72, or ID_0123abcd"
            raise bad_cell(table, index, "ImageId", name, expected)
        rows[name].append((index, runs))
    files = index_by_stem(request.root, (".dcm",))
    frame_size = frame_of(request.source.image_size, request.source.key)
    used = without_file = 0
    for name, found in rows.items():
        if name not in files:
            without_file += 1
            continue
        used += 1
        index, first = found[0]
        line = f"row {line_of(index)} (ImageId {name})"
        try:
            texts = list(dict.fromkeys(runs for _, runs in found))  # a row may stand twice
            if "-1" in texts and len(texts) > 1:
                raise bad_cell(table, line, "EncodedPixels", texts, "either -1 or run lengths")
            if "" in texts:
                raise bad_cell(table, line, "EncodedPixels", first, "-1 or run lengths")
            texts = [] if texts == ["-1"] else texts
            facts = outlines(texts, frame_size, file=table, row=line)
        except DataError as error:
            request.report.bad("bad row", error)
            continue
        yield {
            "file_name": files[name],
            "image_id": name,
            "source": request.source.key,
            "patient_id": None,
            "view": None,
            **facts,
        }
    if not used:
        raise DataError(
            f"none of the {len(rows)} labelled images is below the folder",
            file=request.root,
            expected="dicom-images-train/<study>/<series>/<ImageId>.dcm or stage_2_images/*.dcm",
            fix="unpack the images beside the label table",
        )
    unlabelled = [path for stem, path in files.items() if stem not in rows]
    unlabelled = [path for path in unlabelled if "stage_2_images" not in path]  # the test part
    for what, count in (
        ("SIIM-ACR label rows without a file", without_file),
        ("SIIM-ACR files without a label row", len(unlabelled)),
    ):
        request.report.soft(what, found=count, expected=0, file=str(table))
