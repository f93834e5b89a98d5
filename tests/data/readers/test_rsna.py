from __future__ import annotations

import pytest

from fx_d2.data.errors import DataError, ReadReport

A, B, C = (f"aaaaaaaa-0000-4000-8000-00000000000{i}" for i in (1, 2, 3))
LABELS = (
    "patientId,x,y,width,height,Target\n"
    f"{A},264.0,152.0,213.0,379.0,1\n{A},562.0,152.0,462.5,453.0,1\n{B},,,,,0\n{C},,,,,0\n"
)
CLASSES = (
    f"patientId,class\n{B},No Lung Opacity / Not Normal\n{A},Lung Opacity\n{A},Lung Opacity\n"
    f"{C},Normal\n"
)


def files(labels=LABELS, classes=CLASSES):
    return {
        "stage_2_train_labels.csv": labels,
        "stage_2_detailed_class_info.csv": classes,
        **{f"stage_2_train_images/{name}.dcm": b"" for name in (A, B, C)},
        "stage_2_test_images/x.dcm": b"",
    }


def test_repeated_rows_become_one_image(tree, read):
    root = tree(files())
    opaque, other, normal = read("rsna", "stage_2_train", root)
    assert [r["image_id"] for r in (opaque, other, normal)] == [A, B, C]
    assert opaque["file_name"] == str(root / f"stage_2_train_images/{A}.dcm")
    assert opaque["labels"].tolist() == [0, 0, 1]
    assert other["labels"].tolist() == [0, 1, 0]
    assert normal["labels"].tolist() == [1, 0, 0]
    assert [a["bbox"] for a in opaque["annotations"]] == [
        [264, 152, 477, 531],
        [562, 152, 1024, 605],
    ]
    assert other["annotations"] == normal["annotations"] == []
    assert opaque["patient_id"] == A


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("264.0,152.0,213.0", "213.0,152.0,964.0", "row 2: box .*leaves the image"),
        ("379.0,1", ",1", "row 2: column 'height' holds ''"),
        ("379.0,1", "379.0,2", "row 2: column 'Target' holds '2'"),
        (f"{B},,,,,0", f"{B},1,2,3,4,0", "row 4: column 'x' holds '1'.*blank"),
        (f"{B},,,,,0", f"{B},,,,,1", "row 4: column 'x' holds ''"),
        (f"{B},,,,,0", f"{B},,,,", "row 4: 5 cells"),
        (f"{B},,", "bbbb,,", "row 4: column 'patientId' holds 'bbbb'"),
        (f"{B},,", "bbbb-1,,", r"row 4: image 'bbbb-1\.dcm' is not below"),
        ("Target", "target", r"row 1: no column 'Target' \(is it 'target'"),
    ],
)
def test_bad_box_rows(tree, read, old, new, message):
    assert old in LABELS
    with pytest.raises(DataError, match=rf"labels\.csv, {message}"):
        read("rsna", "stage_2_train", tree(files(LABELS.replace(old, new, 1))))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" / ", "/", "class_info.csv, row 2: column 'class' holds 'No Lung Opacity/Not Normal'"),
        (f"{A},Lung Opacity", f"{A},Normal", "row 4: column 'class'.*as in an earlier row"),
        (f"{C},Normal\n", "", f"row 5: image '{C}' has no class"),
        (f"{C},Normal", f"Normal,{C}", "row 5: column 'class'"),
    ],
)
def test_bad_class_rows(tree, read, old, new, message):
    assert old in CLASSES
    root = tree(files(classes=CLASSES.replace(old, new, 1)))
    with pytest.raises(DataError, match=message):
        read("rsna", "stage_2_train", root)
    report = ReadReport(on_error="skip", published_counts=False)
    assert len(read("rsna", "stage_2_train", root, report=report)) == 2


def test_boxes_and_class_that_do_not_fit_are_noted(tree, read):
    report = ReadReport(published_counts=False)
    classes = CLASSES.replace(f"{C},Normal", f"{C},Lung Opacity")
    assert len(read("rsna", "stage_2_train", tree(files(classes=classes)), report=report)) == 3
    assert len(report.notes) == 1 and "found 1, expected 0" in report.notes[0]
