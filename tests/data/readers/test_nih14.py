from __future__ import annotations

import pytest

from fx_d2.data.errors import DataError, ReadReport
from fx_d2.data.sources import get_source

# The commas within brackets split the real header into 11 fields, which is what a row has.
HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = (
    "00000001_000.png,Cardiomegaly|Emphysema,0,1,58,M,PA,2894,2729,0.143,0.143",
    "00000001_001.png,No Finding,1,1,58,M,PA,2894,2729,0.143,0.143",
    "00000002_000.png,Pleural_Thickening,0,2,414,F,AP,2894,2729,0.143,0.143",
    "00000003_000.png,Infiltration|Mass,0,3,74,F,PA,2894,2729,0.143,0.143",
)
BOXES = (
    "00000003_000.png,Infiltrate,100.5,200.5,300.25,400.75",
    "00000003_000.png,Mass,0,0,1024.5,1024",
)
BOX_HEADERS = (
    "Image Index,Finding Label,Bbox [x,y,w,h],,,",
    "Image Index,Finding Label,Bbox [x,y,w,h]",
)
NAMES = [row.split(",")[0] for row in ROWS]


def kaggle(rows=ROWS, header=HEADER, boxes=BOXES, box_header=BOX_HEADERS[0], tail="", **more):
    return {
        "Data_Entry_2017.csv": "\n".join([header + tail, *(row + tail for row in rows)]) + "\n",
        "BBox_List_2017.csv": "\n".join([box_header, *boxes]) + "\n",
        "train_val_list.txt": "\n".join(NAMES[:2]),  # no newline after the last name
        "test_list.txt": "\n".join(NAMES[2:]),
        **{f"images_{i + 1:03d}/images/{name}": b"" for i, name in enumerate(NAMES)},
        **more,
    }


def positives(record):
    classes = get_source("nih14").cls_classes
    return {c for c, value in zip(classes, record["labels"], strict=True) if value == 1}


@pytest.mark.parametrize("tail", ["", ","])
@pytest.mark.parametrize("box_header", BOX_HEADERS)
def test_kaggle_tree(tree, read, tail, box_header):
    root = tree(kaggle(tail=tail, box_header=box_header))
    train = read("nih14", "train_val", root)
    assert [r["image_id"] for r in train] == ["00000001_000", "00000001_001"]
    assert [positives(r) for r in train] == [{"Cardiomegaly", "Emphysema"}, set()]
    assert train[1]["labels"].tolist() == [0.0] * 14
    assert train[0]["patient_id"] == "00000001" and train[0]["view"] == "PA"
    assert all("annotations" not in r for r in train)
    test = read("nih14", "test", root)
    assert positives(test[0]) == {"Pleural_Thickening"}
    assert "annotations" not in test[0], "without a row in the box list boxes are not annotated"
    first, second = test[1]["annotations"]
    names = get_source("nih14").thing_classes
    assert names[first["category_id"]] == "Infiltration"
    assert first["bbox"] == [100.5, 200.5, 400.75, 601.25]
    assert second["bbox"] == [0, 0, 1024, 1024], "half a pixel beyond the border is cut off"


@pytest.mark.parametrize("folder", ["images", "images/images"])
def test_flat_trees_with_the_newer_table(tree, read, folder):
    files = {k: v for k, v in kaggle().items() if not k.startswith(("images_", "Data_Entry"))}
    files["Data_Entry_2017_v2020.csv"] = kaggle()["Data_Entry_2017.csv"]
    root = tree(files | {f"{folder}/{name}": b"" for name in NAMES})
    assert read("nih14", "train_val", root)[0]["file_name"] == str(root / folder / NAMES[0])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[0].replace("Emphysema", "Emphysima"), r"row 2: column 'Finding Labels' holds"),
        (ROWS[0].replace("Emphysema", "No Finding"), r"row 2: column 'Finding Labels' holds"),
        (ROWS[0].replace(",0,1,58", ",0,7,58"), r"row 2: column 'Patient ID' holds '7'"),
        (ROWS[0].replace("M,PA", "PA,M"), r"row 2: column 'View Position' holds 'M'"),
        (ROWS[0].replace("_000", "_007"), r"train_val_list\.txt, row 1: .*not in Data_Entry"),
        (ROWS[0][:30], r"Data_Entry_2017\.csv, row 3: 11 cells|row 2: "),
    ],
)
def test_bad_rows_are_named(tree, read, rows, message):
    root = tree(kaggle(rows=(rows, *ROWS[1:])))
    with pytest.raises(DataError, match=message):
        read("nih14", "train_val", root)


def test_an_image_with_two_label_rows_is_not_guessed(tree, read):
    again = ROWS[0].replace("Cardiomegaly|Emphysema", "Hernia")
    root = tree(kaggle(rows=(*ROWS, again)))
    with pytest.raises(DataError, match=r"row 6: column 'Image Index' .*every image in one row"):
        read("nih14", "train_val", root)
    report = ReadReport(on_error="skip", published_counts=False)
    left = read("nih14", "train_val", root, report=report)
    assert [r["image_id"] for r in left] == ["00000001_001"]
    assert report.skipped["row with a bad Image Index"] == 1


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ("00000003_000.png,Mass,1,2,3", r"BBox_List_2017\.csv, row 2: row reads"),
        ("00000003_000.png,Mass,1,2,wide,4", r"row 2: column 'w' holds 'wide'"),
        ("00000003_000.png,Mass,1,2,0,4", "row 2: box .* has no area"),
        ("00000003_000.png,Mass,1000,2,30,4", "row 2: box .* leaves the image"),
        ("00000003_000.png,Nodules,1,2,30,4", "row 2: .*'Nodules'"),
        ("Mass,00000003_000.png,1,2,30,4", "row 2: row reads"),
        ("00000003_000.png,Mass,nan,2,30,4", "row 2: column 'x' holds 'nan'"),
    ],
)
def test_bad_boxes_are_named_or_counted(tree, read, box, message):
    root = tree(kaggle(boxes=(box, BOXES[0])))
    with pytest.raises(DataError, match=message):
        read("nih14", "test", root)
    report = ReadReport(on_error="skip", published_counts=False)
    if "reads" in message:  # whose box it was is not known, so no image's boxes can be trusted
        with pytest.raises(DataError, match=message):
            read("nih14", "test", root, report=report)
        return
    assert all("annotations" not in r for r in read("nih14", "test", root, report=report))
    assert report.skipped == {"bad box row": 1}


def test_box_list_needs_its_header(tree, read):
    root = tree(kaggle(box_header=BOXES[0]))
    with pytest.raises(DataError, match=r"BBox_List_2017\.csv, row 1: header reads"):
        read("nih14", "test", root)


def test_missing_images_and_lists(tree, read):
    files = kaggle()
    del files["images_001/images/00000001_000.png"]
    root = tree(files)
    with pytest.raises(DataError, match=r"row 2: image '00000001_000\.png' is not below"):
        read("nih14", "train_val", root)
    report = ReadReport(on_error="skip", published_counts=False)
    assert len(read("nih14", "train_val", root, report=report)) == 1
    assert report.skipped == {"image without a file": 1}
    (root / "test_list.txt").unlink()
    with pytest.raises(DataError, match=r"test_list\.txt: the official list"):
        read("nih14", "test", root)


def test_a_box_outside_the_test_part_is_noted(tree, read):
    report = ReadReport(published_counts=False)
    box = BOXES[1].replace("00000003", "00000001")
    read("nih14", "train_val", tree(kaggle(boxes=(box,))), report=report)
    assert report.notes == ["boxes outside NIH's test part: found 1, expected 0"]
