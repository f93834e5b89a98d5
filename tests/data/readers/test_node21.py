from __future__ import annotations

import pytest

from fx_d2.data.errors import DataError, ReadReport

ROWS = (
    ",height,img_name,label,width,x,y\n"
    "0,63,n0001.mha,1,58,402,517\n"
    "1,20,n0001.mha,1,30,10,11\n"
    "2,0,c0001.mha,0,0,0,0\n"
)
OTHER_ORDER = "img_name,x,y,width,height,label\nn0001.mha,402,517,58,63,1\nc0001.mha,0,0,0,0,0\n"
PROCESSED = "cxr_images/proccessed_data/"
ORIGINAL = "cxr_images/original_data/"


def files(rows=ROWS, prefix=PROCESSED):
    names = ("n0001", "c0001")
    return {f"{prefix}metadata.csv": rows, **{f"{prefix}images/{n}.mha": b"" for n in names}}


@pytest.mark.parametrize(
    "prefix", [PROCESSED, "proccessed_data/", "cxr_images/processed_data/", ORIGINAL, ""]
)
def test_one_row_per_box(tree, read, prefix):
    root = tree(files(prefix=prefix))
    nodule, clean = read("node21", "all", root)
    assert nodule["image_id"] == "n0001" and clean["image_id"] == "c0001"
    assert nodule["file_name"] == str(root / prefix / "images/n0001.mha")
    assert [a["bbox"] for a in nodule["annotations"]] == [[402, 517, 460, 580], [10, 11, 40, 31]]
    assert (nodule["labels"].tolist(), clean["labels"].tolist()) == ([1], [0])
    assert clean["annotations"] == []
    assert nodule["patient_id"] is None


def test_column_order_does_not_matter(tree, read):
    nodule, _ = read("node21", "all", tree(files(OTHER_ORDER)))
    assert nodule["annotations"][0]["bbox"] == [402, 517, 460, 580]


def test_versions_are_not_mixed(tree, read):
    root = tree(files() | files(OTHER_ORDER.replace("402", "804"), prefix=ORIGINAL))
    assert read("node21", "all", root)[0]["annotations"][0]["bbox"][0] == 402
    original = read("node21", "all", root, version="original")[0]
    assert original["annotations"][0]["bbox"][0] == 804
    assert original["file_name"] == str(root / ORIGINAL / "images/n0001.mha")
    with pytest.raises(ValueError, match="allowed"):
        read("node21", "all", root, version="both")


def test_origin_of_an_image_where_the_mapping_is_there(tree, read):
    mapping = (
        "orig_dataset,orig_img_id,node21_img_id\nchestxray14,00012345_003.png,n0001\n"
        "jsrt,JPCNN001,c0001\n"
    )
    root = tree(files() | {f"{ORIGINAL}filenames_orig_and_new.csv": mapping})
    nodule, clean = read("node21", "all", root)
    assert (nodule["origin"], nodule["patient_id"]) == ("chestxray14", "nih14:00012345")
    assert (clean["origin"], clean["patient_id"]) == ("jsrt", None)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n0001.mha,1,58", "n0001.mha,2,58", "row 2: column 'label' holds '2'"),
        ("n0001.mha,1,58", "n0001.mha,0,58", "row 2: column 'label' holds '0'"),
        ("n0001.mha,1,58", "1,n0001.mha,58", "row 2: column 'img_name' holds '1'"),
        ("58,402", "-58,402", "row 2: box .*no area"),
        ("58,402", "58,left", "row 2: column 'x' holds 'left'"),
        ("c0001.mha,0,0", "c0001.mha,0,7", "row 4: column 'width' holds '7'"),
        ("c0001.mha", "../../c0001.mha", "row 4: column 'img_name'"),
        ("n0001.mha,1,30", "n0002.mha,1,30", "row 3: image 'n0002.mha' is not below"),
        ("label", "labels", "row 1: no column 'label'"),
    ],
)
def test_bad_rows_are_named_or_counted(tree, read, old, new, message):
    assert old in ROWS
    root = tree(files(ROWS.replace(old, new, 1)))
    with pytest.raises(DataError, match=message):
        read("node21", "all", root)
    report = ReadReport(on_error="skip", published_counts=False)
    if "img_name" in message or "no column" in message:  # no image's boxes can be trusted
        with pytest.raises(DataError, match=message):
            read("node21", "all", root, report=report)
    else:
        read("node21", "all", root, report=report)
        assert sum(report.skipped.values()) == 1


def test_columns_under_wrong_names_are_refused_even_when_skipping(tree, read):
    rows = ROWS.replace(",height,", "height,,", 1) + "3,0,c0002.mha,0,0,0,0\n"
    report = ReadReport(on_error="skip", published_counts=False)
    with pytest.raises(DataError, match="row 4: most rows with label 0 have a box"):
        read("node21", "all", tree(files(rows)), report=report)


def test_a_row_that_stands_twice_is_one_box(tree, read):
    root = tree(files(ROWS + "3,20,n0001.mha,1,30,10,11\n"))
    assert len(read("node21", "all", root)[0]["annotations"]) == 2


def test_files_without_a_row_are_noted(tree, read):
    report = ReadReport(published_counts=False)
    read("node21", "all", tree(files() | {f"{PROCESSED}images/c0009.mha": b""}), report=report)
    assert len(report.notes) == 1 and "found 1" in report.notes[0]


def test_nothing_there(tree, read):
    with pytest.raises(DataError, match=r"no metadata\.csv"):
        read("node21", "all", tree({"readme": ""}))
