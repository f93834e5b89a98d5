from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.errors import DataError, ReadReport
from fx_d2.data.readers import plain
from fx_d2.data.readers.base import ReadRequest
from fx_d2.data.record import validate_record
from fx_d2.data.source import Source, carved

SOURCE = Source(
    key="own", title="Own", folder="own", reader="plain", splits=carved("all"),
    tasks=("cls", "loc", "seg"), cls_classes=("Nodule", "Edema"), thing_classes=("Nodule",),
    seg_classes=("Heart", "Lungs"), licence="x", homepage="x", citation="x", access="x",
)  # fmt: skip
TABLE = "Edema,image,patient,view,split,Nodule\n-1,a.png,p1,PA,train,1\n,sub/b.png,,,test,0\n"
COCO = {
    "images": [{"id": 7, "file_name": "a.png", "height": 50, "width": 40}],
    "categories": [{"id": 3, "name": "Nodule"}],
    "annotations": [{"id": 1, "image_id": 7, "category_id": 3, "bbox": [1, 2, 39.5, 4]}],
}


def files(table=TABLE, coco=COCO):
    return {
        "labels.csv": table, "boxes.json": coco, "images/a.png": b"", "images/sub/b.png": b"",
        "masks/Heart/a.png": b"",
    }  # fmt: skip


def read(root, part="all", report=None, source=SOURCE, **options):
    report = report or ReadReport()
    records = list(plain.read(ReadRequest(root, part, source, report, options)))
    for record in records:
        validate_record(record, source)
    return records


def test_labels_boxes_and_masks(tree):
    root = tree(files())
    first, second = read(root)
    assert (first["image_id"], first["patient_id"], first["view"]) == ("a", "p1", "PA")
    assert first["labels"].tolist() == [1, -1]
    assert first["annotations"][0]["bbox"] == [1, 2, 40, 6]
    assert first["masks"] == {"Heart": str(root / "masks/Heart/a.png")}
    assert (first["height"], first["width"]) == (50, 40)
    assert second["image_id"] == "sub/b" and second["patient_id"] is None
    assert second["labels"][0] == 0 and np.isnan(second["labels"][1])
    assert "annotations" not in second and "masks" not in second


def test_parts_of_its_own(tree):
    root = tree(files())
    assert [r["image_id"] for r in read(root, "test")] == ["sub/b"]
    root = tree(files(TABLE.replace("split", "fold")))
    with pytest.raises(DataError, match="no column 'split'"):
        read(root, "test")


def test_a_column_of_class_names(tree):
    root = tree(files("image,finding\na.png,Edema\nsub/b.png,\n"))
    first, second = read(root, label_column="finding")
    assert first["labels"].tolist() == [0, 1] and np.isnan(second["labels"]).all()
    root = tree(files("image,finding\na.png,Oedema\n"))
    with pytest.raises(DataError, match="row 2: column 'finding' holds 'Oedema'"):
        read(root, label_column="finding")


def coco(**change):
    return COCO | {"annotations": [COCO["annotations"][0] | change]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": TABLE.replace("-1,a", "yes,a")}, r"labels\.csv, row 2: column 'Edema'"),
        ({"table": TABLE.replace("Nodule", "nodule")}, r"no column 'Nodule' \(is it 'nodule'"),
        ({"table": TABLE.replace("a.png", "../a.png")}, "row 2: file name"),
        ({"table": TABLE.replace("a.png", "z.png")}, r"row 2: image 'z\.png' is not below"),
        ({"coco": coco(bbox=[1, 2, 60, 4])}, r"boxes\.json, annotation 1: box .*leaves"),
        ({"coco": coco(bbox="1 2 3 4")}, "annotation 1: bbox '1 2 3 4'"),
        ({"coco": coco(category_id=[3])}, r"annotation 1: category_id \[3\]"),
        ({"coco": coco(image_id=8)}, "annotation 1: image_id 8"),
        ({"coco": {"images": []}}, "not a COCO file"),
        ({"coco": "{"}, "not JSON"),
    ],
)
def test_bad_input_is_named(tree, change, message):
    with pytest.raises(DataError, match=message):
        read(tree(files(**change)))


def test_an_image_with_a_bad_box_is_left_out_and_counted(tree):
    report = ReadReport(on_error="skip")
    records = read(tree(files(coco=coco(bbox=[1, 2, 60, 4]))), report=report)
    assert [r["image_id"] for r in records] == ["sub/b"]
    assert report.skipped == {"bad annotation": 1}
