from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.errors import DataError, ReadReport
from fx_d2.data.masks import load_mask

UIDS = [f"1.2.826.0.1.3680043.{i}" for i in range(6)]
HEADER = "\ufeffSOPInstanceUID,StudyInstanceUID,filename,EncodedPixels,Report\n"
POSITIVE = f'{UIDS[0]},1.2,P00012_1,240500 8 1014 12,"Small right\napical ""pneumothorax"", yes."\n'
NEGATIVE = f'{UIDS[1]},1.3,P00013_1,-1,"No pneumothorax, none."\n'
BLANK = f"{UIDS[2]},1.4,P00013_2,,unclear\n"


def files(rows, folder="dataset", n=3, header=HEADER):
    return {
        "Pneumothorax_reports.csv": header + "".join(rows),
        **{f"{folder}/{uid}": b"DICM" for uid in UIDS[:n]},
        f"{folder}/.DS_Store": b"",
    }


@pytest.mark.parametrize("folder", ["dataset", "dataset1/dataset", "chest_radiographs"])
def test_positive_negative_and_unknown(tree, read, folder):
    root = tree(files((POSITIVE, NEGATIVE, BLANK), folder))
    positive, negative, unknown = read("candid_ptx", "all", root)
    assert positive["image_id"] == UIDS[0]
    assert positive["file_name"] == str(root / folder / UIDS[0])
    assert [r["patient_id"] for r in (positive, negative, unknown)] == [
        "P00012",
        "P00013",
        "P00013",
    ]
    mask = load_mask(positive["masks"]["Pneumothorax"], 1024, 1024)
    # 240500 = 234 columns and 884 rows; the second run starts 1014 pixels after the first ends.
    wanted = np.zeros((1024, 1024), dtype=bool)
    wanted[884:892, 234] = wanted[882:894, 235] = True
    np.testing.assert_array_equal(mask, wanted)
    assert positive["annotations"][0]["bbox"] == [234, 882, 236, 894]
    assert negative["labels"].tolist() == [0] and negative["annotations"] == []
    assert not load_mask(negative["masks"]["Pneumothorax"], 1024, 1024).any()
    assert np.isnan(unknown["labels"]).all()
    assert "annotations" not in unknown and "masks" not in unknown


def test_repeated_images(tree, read):
    """Equal rows are one outline, different outlines are two; contradictions are left out."""
    second = POSITIVE.replace("240500 8 1014 12", "5 3")
    rows = (POSITIVE, POSITIVE, second, NEGATIVE, NEGATIVE)
    report = ReadReport(published_counts=False)
    positive, negative = read("candid_ptx", "all", tree(files(rows, n=2)), report=report)
    assert [a["bbox"] for a in positive["annotations"]] == [[234, 882, 236, 894], [0, 5, 1, 8]]
    assert negative["labels"].tolist() == [0]
    assert report.notes == []
    rows = (POSITIVE, POSITIVE.replace("240500 8 1014 12", "-1"), NEGATIVE)
    (negative,) = read("candid_ptx", "all", tree(files(rows, n=2)), report=report)
    assert "both negative and outlined, left out: found 1" in report.notes[0]


def test_two_patients_and_files_without_row(tree, read):
    report = ReadReport(published_counts=False)
    rows = (POSITIVE, POSITIVE.replace("P00012", "P00099"), NEGATIVE)
    (record,) = read("candid_ptx", "all", tree(files(rows, n=4)), report=report)
    assert record["image_id"] == UIDS[1]
    assert "under two patients, left out: found 1" in report.notes[0]
    assert "without a report row: found 2" in report.notes[1]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (POSITIVE.replace("240500", "1048570"), r"row 2 .*leave the 1024 x 1024 frame"),
        (POSITIVE.replace("240500 8", "P00012_1"), r"row 2 .*run lengths contain|row 2 .*numbers"),
        (POSITIVE.replace(UIDS[0], "../etc"), "row 2 .*not an image's id"),
        (POSITIVE.replace(UIDS[0], UIDS[5]), f"row 2 .*image '{UIDS[5]}' is not below"),
        (POSITIVE[:60], "row 2: broken quotes"),
    ],
)
def test_bad_rows_are_named(tree, read, row, message):
    with pytest.raises(DataError, match=rf"Pneumothorax_reports\.csv, {message}"):
        read("candid_ptx", "all", tree(files((row,), n=1)))


def test_bad_tables(tree, read):
    with pytest.raises(DataError, match="no column 'EncodedPixels'"):
        read("candid_ptx", "all", tree(files((POSITIVE,), header=HEADER.replace("EncodedP", "P"))))
    with pytest.raises(DataError, match="not utf-8"):
        read(
            "candid_ptx", "all", tree({"Pneumothorax_reports.csv": HEADER.encode() + b"\xe9,,,,\n"})
        )
    with pytest.raises(DataError, match="the table of reports not found"):
        read("candid_ptx", "all", tree({}) / "dataset")
