from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.errors import DataError, DataWarning, ReadReport

CLASSES = (
    "No Finding,Enlarged Cardiomediastinum,Cardiomegaly,Lung Opacity,Lung Lesion,Edema,"
    "Consolidation,Pneumonia,Atelectasis,Pneumothorax,Pleural Effusion,Pleural Other,Fracture,"
    "Support Devices"
)
HEADER = f"Path,Sex,Age,Frontal/Lateral,AP/PA,{CLASSES}\n"
SMALL = "CheXpert-v1.0-small"
ROWS = (
    f"{SMALL}/train/patient00001/study1/view1_frontal.jpg,Female,61,Frontal,AP,"
    ",,1.0,1.0,,-1.0,,,,0.0,,,,1.0\n"
    f"{SMALL}/train/patient00001/study1/view2_lateral.jpg,Female,61,Lateral,,"
    ",,1.0,1.0,,-1.0,,,,0.0,,,,1.0\n"
    f"{SMALL}/train/patient00002/study3/view1_frontal.jpg,Unknown,0,Frontal,PA,"
    "1.0,,,,,,,,,,,,,\n"
)
nan = np.nan
FIRST = [nan, nan, 1, 1, nan, -1, nan, nan, nan, 0, nan, nan, nan, 1]


def small(rows=ROWS, header=HEADER, **files):
    return {
        f"{SMALL}/train.csv": header + rows,
        f"{SMALL}/train/patient00001/study1/view1_frontal.jpg": b"",
        **files,
    }


def test_small_release(tree, read):
    root = tree(small())
    records = read("chexpert", "train", root)
    assert [r["image_id"] for r in records] == [
        "patient00001/study1/view1_frontal",
        "patient00001/study1/view2_lateral",
        "patient00002/study3/view1_frontal",
    ]
    assert records[0]["file_name"] == str(
        root / SMALL / "train/patient00001/study1/view1_frontal.jpg"
    )
    np.testing.assert_array_equal(records[0]["labels"], np.float32(FIRST))
    assert [r["patient_id"] for r in records] == ["patient00001"] * 2 + ["patient00002"]
    assert [r["view"] for r in records] == ["AP", "LL", "PA"]
    assert (records[2]["age"], records[2]["sex"]) == (0, "Unknown")
    assert "annotations" not in records[0] and "masks" not in records[0]


def test_the_folder_itself_may_be_the_root(tree, read):
    root = tree(small())
    assert len(read("chexpert", "train", root / SMALL)) == 3


def test_columns_are_found_by_name_in_any_order(tree, read):
    names = CLASSES.split(",")[::-1]
    row = "x/train/patient00001/study1/view1_frontal.jpg," + ",".join(
        "1.0" if n == "Edema" else "" for n in names
    )
    root = tree(small(rows=row + "\n", header="Path," + ",".join(names) + "\n"))
    (record,) = read("chexpert", "train", root)
    assert np.flatnonzero(record["labels"] == 1).tolist() == [5]
    assert np.isnan(record["labels"]).sum() == 13


def test_full_release_in_batch_folders(tree, read):
    """The images of a batch may lie in a folder named like the zip, with or without train/."""
    batches = {
        "CheXpert-v1.0 batch 1 (validate & csv)/train.csv": HEADER
        + ROWS.replace("CheXpert-v1.0-small", "CheXpert-v1.0"),
        "CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.jpg": b"",
        "CheXpert-v1.0 batch 3 (train 2)/train/patient00002/study3/view1_frontal.jpg": b"",
    }
    root = tree(batches)
    files = [r["file_name"] for r in read("chexpert", "train", root)]
    assert files[0] == str(root / list(batches)[1])
    assert files[2] == str(root / list(batches)[2])


def test_a_patient_in_no_batch_is_named(tree, read):
    root = tree(
        {
            "train.csv": HEADER + ROWS,
            "CheXpert-v1.0 batch 2 (train 1)/patient00001/study1/view1_frontal.jpg": b"",
            "CheXpert-v1.0 batch 3 (train 2)/patient00009/study1/view1_frontal.jpg": b"",
        }
    )
    with pytest.raises(DataError, match=r"train\.csv, row 4: .*patient00002"):
        read("chexpert", "train", root)


def test_test_part_of_chexlocalize_has_no_view_column(tree, read):
    row = "CheXpert-v1.0/test/patient64741/study1/view1_{}.jpg," + ",".join(["0.0"] * 13) + ",1.0\n"
    root = tree(
        {
            "CheXpert/test_labels.csv": f"Path,{CLASSES}\n"
            + row.format("frontal")
            + row.format("lateral"),
            "CheXpert/test/patient64741/study1/view1_frontal.jpg": b"",
        }
    )
    records = read("chexpert", "test", root)
    assert [r["view"] for r in records] == [None, "LL"]
    assert records[0]["labels"].tolist() == [0.0] * 13 + [1.0]
    assert [r["view"] for r in read("chexpert", "test", root, views=("AP", "PA"))] == [None]


def test_views_option_keeps_frontal_images(tree, read):
    root = tree(small())
    assert [r["view"] for r in read("chexpert", "train", root, views=("AP", "PA"))] == ["AP", "PA"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            ",1.0,1.0,,-1.0,",
            ",1.0,2.0,,-1.0,",
            r"train\.csv, row 2: column 'Lung Opacity' holds '2",
        ),
        ("patient00002/study3", "study3", r"train\.csv, row 4: column 'Path' holds"),
        ("Unknown,0,", "Unknown,old,", r"train\.csv, row 4: column 'Age' holds 'old'"),
        ("Frontal,AP,", "AP,Frontal,", r"train\.csv, row 2: column 'AP/PA' holds 'Frontal'"),
        (",1.0\nChe", "\nChe", r"train\.csv, row 2: 18 cells; expected 19"),
    ],
)
def test_bad_cells_are_named_with_file_and_row(tree, read, old, new, message):
    assert old in ROWS
    root = tree(small(rows=ROWS.replace(old, new, 1)))
    with pytest.raises(DataError, match=message):
        read("chexpert", "train", root)


def test_bad_rows_are_counted_where_that_is_allowed(tree, read):
    root = tree(
        small(rows=ROWS.replace("Unknown,0,", "Unknown,old,").replace("1.0,1.0", "9,1.0", 1))
    )
    report = ReadReport(on_error="skip", published_counts=False)
    records = read("chexpert", "train", root, report=report)
    assert [r["image_id"] for r in records] == ["patient00001/study1/view2_lateral"]
    assert sum(report.skipped.values()) == 2
    assert report.skipped["row with a bad label"] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROWS, r"train\.csv, row 1: no column 'Path'"),
        (HEADER.replace("Edema", "Oedema") + ROWS, r"no column 'Edema' \(is it 'Oedema'"),
        ((HEADER + ROWS).encode() + b"\xff\xfe,,,\n", r"train\.csv, row 5: not utf-8"),
        ("", "not a table"),
        ((HEADER + ROWS)[:-40], r"train\.csv, row 4: "),
        ("\0" * 4000, r"train\.csv"),
    ],
)
def test_broken_tables(tree, read, content, message):
    root = tree(small() | {f"{SMALL}/train.csv": content})
    with pytest.raises(DataError, match=message):
        read("chexpert", "train", root)


def test_nothing_there(tree, read):
    root = tree({"readme.txt": "x"})
    with pytest.raises(DataError, match=r"no label table .*train\.csv.*datasets/README\.md"):
        read("chexpert", "train", root)
    with pytest.raises(DataError, match="comes with CheXlocalize"):
        read("chexpert", "test", root)
    tree({"train.csv": HEADER + ROWS})
    with pytest.raises(DataError, match="no image folder"):
        read("chexpert", "train", root)


def test_published_counts_are_compared_softly(tree):
    from fx_d2.data.catalog import read_part

    root = tree(small())
    with pytest.warns(DataWarning, match="found 3, expected 223414"):
        assert len(list(read_part("chexpert", "train", root=root))) == 3
