from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.errors import DataError, ReadReport
from fx_d2.data.sources import get_source
from fx_d2.data.vocabulary import VINDR_GLOBAL_6, VINDR_LOCAL_22

A, B, C = ("0" * 31 + x for x in "abc")
COLUMNS = [*VINDR_LOCAL_22, *VINDR_GLOBAL_6]


def labels_csv(rows, columns=COLUMNS, train=True):
    """``rows``: (image, reader, positive labels)."""
    lines = [",".join(["image_id", *(["rad_id"] if train else []), *columns])]
    for image, reader, positive in rows:
        start = [image, reader] if train else [image]
        lines.append(",".join([*start, *("1" if c in positive else "0" for c in columns)]))
    return "\n".join(lines) + "\n"


TRAIN = labels_csv(
    [
        (A, "R1", {"Cardiomegaly", "Pleural effusion"}),
        (A, "R2", {"Cardiomegaly"}),
        (A, "R3", {"Other diseases"}),
        (B, "R8", {"No finding"}),
        (B, "R9", {"No finding"}),
        (B, "R10", {"No finding"}),
    ]
)
BOXES = (
    "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n"
    f"{A},R1,Cardiomegaly,800,1200,1700,1600\n"
    f"{A},R2,Cardiomegaly,810,1200,1710,1600\n"
    f"{A},R1,Pleural effusion,100.5,200.5,300.5,400.5\n"
    f"{A},R3,Rib fracture,1,1,9,9\n"
    f"{B},R8,No finding,,,,\n{B},R9,No finding,,,,\n{B},R10,No finding,,,,\n"
)
SINGULAR = [c.replace("Other diseases", "Other disease") for c in COLUMNS]
TEST = labels_csv([(C, "", {"Tuberculosis", "Other disease"})], SINGULAR, train=False)
TEST_BOXES = (
    "image_id,class_name,x_min,y_min,x_max,y_max\n"
    f"{C},Nodule/Mass,10,20,30,40\n{C},Nodule/Mass,11,20,31,40\n{C},ILD,1,2,3.5,4\n"
)


def physionet(prefix="", **change):
    files = {
        "image_labels_train.csv": TRAIN,
        "annotations_train.csv": BOXES,
        "image_labels_test.csv": TEST,
        "annotations_test.csv": TEST_BOXES,
    } | change
    return {
        **{f"{prefix}annotations/{name}": text for name, text in files.items()},
        **{f"{prefix}train/{name}.dicom": b"" for name in (A, B)},
        f"{prefix}train/index.html": b"left by wget",
        f"{prefix}test/{C}.dicom": b"",
    }


def named(key, record):
    classes = get_source(key).cls_classes
    return {c for c, value in zip(classes, record["labels"], strict=True) if value == 1}


@pytest.mark.parametrize("prefix", ["", "1.0.0/", "physionet.org/files/vindr-cxr/1.0.0/"])
def test_labels_of_the_three_rows(tree, read, prefix):
    root = tree(physionet(prefix))
    first, second = read("vindr_cxr", "train", root)
    assert first["file_name"] == str(root / prefix / f"train/{A}.dicom")
    assert named("vindr_cxr", first) == {"Pleural effusion", "Other diseases"}, "any of 3 readers"
    assert named("vindr_cxr", second) == {"No finding"}
    assert "annotations" not in first
    first, _ = read("vindr_global", "train", root)
    assert named("vindr_global", first) == {"Other diseases"}
    first, _ = read("vindr_local", "train", root)
    assert named("vindr_local", first) == {"Cardiomegaly", "Pleural effusion"}
    (test,) = read("vindr_cxr", "test", root)
    assert named("vindr_cxr", test) == {"Tuberculosis", "Other diseases"}, "singular spelling"


def test_boxes_of_three_readers_are_fused(tree, read):
    first, second = read("vindr_local", "train", tree(physionet()))
    names = get_source("vindr_local").thing_classes
    found = {names[a["category_id"]]: a for a in first["annotations"]}
    assert set(found) == {"Cardiomegaly", "Pleural effusion"}, "rib fractures are no box class"
    np.testing.assert_allclose(found["Cardiomegaly"]["bbox"], [805, 1200, 1705, 1600])
    assert found["Cardiomegaly"]["n_readers"] == 2
    assert found["Pleural effusion"]["n_readers"] == 1
    assert second["annotations"] == []


def test_consensus_boxes_of_the_test_part_are_not_fused(tree, read):
    (record,) = read("vindr_local", "test", tree(physionet()))
    assert [a["bbox"] for a in record["annotations"]] == [
        [1, 2, 3.5, 4], [10, 20, 30, 40], [11, 20, 31, 40]
    ]  # fmt: skip
    assert all("n_readers" not in a for a in record["annotations"])


def test_vote_of_two_readers(tree, read):
    first, _ = read("vindr_local", "train", tree(physionet()), min_readers=2)
    assert named("vindr_local", first) == {"Cardiomegaly"}
    assert [a["n_readers"] for a in first["annotations"]] == [2]


def test_fusion_does_not_depend_on_row_order(tree, read):
    boxes = [f"{A},R{r},ILD,{x},{y},{x + 90},{y + 80}" for r, x, y in
             ((1, 10, 10), (2, 30, 15), (3, 20, 40), (3, 45, 10), (1, 60, 60))]  # fmt: skip
    header = BOXES.split("\n")[0]
    results = []
    for rows in (boxes, boxes[::-1], boxes[2:] + boxes[:2]):
        root = tree(physionet() | {"annotations/annotations_train.csv": "\n".join([header, *rows])})
        results.append(read("vindr_local", "train", root)[0]["annotations"])
    assert results[0] == results[1] == results[2]


def test_image_missing_from_the_box_table_is_not_annotated(tree, read):
    root = tree(physionet(**{"annotations_train.csv": BOXES.split(f"{B},R8")[0]}))
    assert "annotations" not in read("vindr_local", "train", root)[1]


KAGGLE = (
    "image_id,class_name,class_id,rad_id,x_min,y_min,x_max,y_max\n"
    f"{A},Cardiomegaly,3,R1,800,1200,1700,1600\n"
    f"{A},Pleural effusion,10,R2,100,200,300,400\n"
    f"{A},Other lesion,9,R2,1,2,30,40\n"
    f"{B},No finding,14,R8,,,,\n{B},No finding,14,R9,,,,\n{B},No finding,14,R10,,,,\n"
)


def kaggle(text=KAGGLE):
    return {
        "train.csv": text,
        f"train/{A}.dicom": b"",
        f"train/{B}.dicom": b"",
        "test/x.dicom": b"",
    }


def test_kaggle_labels_are_known_only_where_boxes_tell_them(tree, read):
    root = tree(kaggle())
    first, second = read("vindr_cxr", "train", root)
    classes = get_source("vindr_cxr").cls_classes
    known = {c: float(v) for c, v in zip(classes, first["labels"], strict=True) if v == v}
    assert known == {"Pleural effusion": 1.0, "No finding": 0.0}
    assert second["labels"][classes.index("No finding")] == 1
    first, second = read("vindr_local", "train", root)
    classes = get_source("vindr_local").cls_classes
    unknown = {c for c, v in zip(classes, first["labels"], strict=True) if np.isnan(v)}
    assert unknown == {
        "Clavicle fracture", "Edema", "Emphysema", "Enlarged PA", "Lung cavity", "Lung cyst",
        "Mediastinal shift", "Rib fracture", "Other lesion",
    }  # fmt: skip
    assert len(first["annotations"]) == 3 and second["annotations"] == []
    with pytest.raises(DataError, match="no labels for part 'test'.*PhysioNet"):
        read("vindr_local", "test", root)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("Cardiomegaly,3", "Cardiomegaly,4", r"train\.csv, row 2: column 'class_id' holds '4'"),
        ("Cardiomegaly,3", "3,Cardiomegaly", r"row 2: column 'class_name' holds '3'"),
        ("800,1200,1700", "1700,1200,800", "row 2: box .*no area"),
        (f"{A},Card", "abc,Card", "row 2: column 'image_id' holds 'abc'"),
        ("14,R8,,,,", "14,R8,5,5,9,9", "row 5: column 'x_min'.*blank for No finding"),
        ("1,2,30,40", "1,2,,", "row 4: column 'x_max' holds ''"),
    ],
)
def test_bad_rows_of_kaggle(tree, read, old, new, message):
    assert old in KAGGLE
    root = tree(kaggle(KAGGLE.replace(old, new, 1)))
    with pytest.raises(DataError, match=message):
        read("vindr_local", "train", root)
    report = ReadReport(on_error="skip", published_counts=False)
    if "image_id" in message:  # no image's boxes can be trusted
        with pytest.raises(DataError, match=message):
            read("vindr_local", "train", root, report=report)
        return
    records = read("vindr_local", "train", root, report=report)
    assert sum(report.skipped.values()) == 1 and len(records) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_labels_train.csv": TRAIN.replace("Edema,", "Oedema,")},
            "row 1: no column 'Edema'",
        ),
        ({"image_labels_train.csv": TRAIN.replace(",1,0", ",yes,0", 1)}, "row 2: column .*'yes'"),
        ({"image_labels_train.csv": TRAIN.replace("rad_id", "reader")}, "no column 'rad_id'"),
        ({"annotations_train.csv": BOXES.replace("Rib fracture", "Rib")}, "row 5: .*'Rib'"),
        ({"annotations_train.csv": BOXES.encode() + b"\xe9"}, "row 9: not utf-8"),
    ],
)
def test_bad_tables_of_physionet(tree, read, change, message):
    with pytest.raises(DataError, match=message):
        read("vindr_local", "train", tree(physionet(**change)))


def test_rows_that_stand_twice(tree, read):
    """A repeated vote is one vote and a repeated box one box; two different votes contradict."""
    again = TRAIN + TRAIN.splitlines()[2] + "\n"
    boxes = BOXES + BOXES.splitlines()[1] + "\n"
    change = {"image_labels_train.csv": again, "annotations_train.csv": boxes}
    root = tree(physionet(**change))
    first = read("vindr_local", "train", root, min_readers=2)[0]
    np.testing.assert_allclose(first["annotations"][0]["bbox"], [805, 1200, 1705, 1600])
    other = TRAIN + TRAIN.splitlines()[1].replace(",R1,", ",R2,") + "\n"
    root = tree(physionet(**{"image_labels_train.csv": other}))
    with pytest.raises(DataError, match="row 8: .*this reader's earlier row"):
        read("vindr_local", "train", root)
    report = ReadReport(on_error="skip", published_counts=False)
    records = read("vindr_local", "train", root, report=report)
    assert [r["image_id"] for r in records] == [B]


def test_missing_files(tree, read):
    files = physionet()
    del files[f"train/{A}.dicom"]
    root = tree(files)
    with pytest.raises(DataError, match=r"image_labels_train\.csv, row 2: image .*not below"):
        read("vindr_cxr", "train", root)
    report = ReadReport(on_error="skip", published_counts=False)
    assert [r["image_id"] for r in read("vindr_cxr", "train", root, report=report)] == [B]


def test_an_unusual_number_of_readers_is_noted(tree, read):
    text = "".join(line for line in TRAIN.splitlines(keepends=True) if ",R3," not in line)
    report = ReadReport(published_counts=False)
    read("vindr_cxr", "train", tree(physionet(**{"image_labels_train.csv": text})), report=report)
    assert any("number of readers" in note and "found 1" in note for note in report.notes)
