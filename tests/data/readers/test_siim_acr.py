from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.errors import DataError, ReadReport
from fx_d2.data.masks import load_mask

UID = "1.2.276.0.7230010.3.1.4.0000000.1.1517870000.00000"
# One run of 3 pixels down column 2 from row 5; then one of 2 pixels in column 3 from row 5.
RUNS = f"{2 * 1024 + 5} 3 {1024 - 3} 2"
STAGE_1 = f"ImageId, EncodedPixels\n{UID}1, -1\n{UID}2, {RUNS}\n{UID}2, 0 1\n"
TREE = "dicom-images-train/{0}.9/{0}.8/{0}.dcm"


def files(table=STAGE_1, name="train-rle.csv", ids=(1, 2)):
    return {name: table, **{TREE.format(f"{UID}{i}"): b"" for i in ids}}


def expected(extra=False):
    mask = np.zeros((1024, 1024), dtype=bool)
    mask[5:8, 2] = mask[5:7, 3] = True
    mask[0, 0] = extra
    return mask


@pytest.mark.parametrize("clean", [False, True])
def test_runs_of_stage_1_with_and_without_blanks(tree, read, clean):
    table = STAGE_1.replace(", ", ",") if clean else STAGE_1
    root = tree(files(table))
    negative, positive = read("siim_acr", "train", root)
    assert negative["image_id"] == f"{UID}1"
    assert negative["file_name"] == str(root / TREE.format(f"{UID}1"))
    assert negative["labels"].tolist() == [0] and negative["annotations"] == []
    assert not load_mask(negative["masks"]["Pneumothorax"], 1024, 1024).any()
    assert positive["labels"].tolist() == [1]
    first, second = positive["annotations"]
    assert first["bbox"] == [2, 5, 4, 8] and second["bbox"] == [0, 0, 1, 1]
    np.testing.assert_array_equal(load_mask(first["segmentation"], 1024, 1024), expected())
    union = load_mask(positive["masks"]["Pneumothorax"], 1024, 1024)
    np.testing.assert_array_equal(union, expected(extra=True))


def test_stage_2_table_is_preferred_and_stage_2_images_are_the_test_part(tree, read):
    report = ReadReport(published_counts=False)
    root = tree(
        files()
        | {
            "stage_2_train.csv": f"ImageId,EncodedPixels\n{UID}2,-1\n",
            "stage_2_images/ID_000000001.dcm": b"",
        }
    )
    assert [r["image_id"] for r in read("siim_acr", "train", root, report=report)] == [f"{UID}2"]
    assert any("files without a label row: found 1," in note for note in report.notes)
    assert len(read("siim_acr", "train", root, table="train-rle.csv")) == 2


def test_rows_without_file_and_files_without_row_are_counted(tree, read):
    report = ReadReport(published_counts=False)
    root = tree(files(ids=(1, 7)))
    assert [r["image_id"] for r in read("siim_acr", "train", root, report=report)] == [f"{UID}1"]
    assert any("rows without a file: found 1," in note for note in report.notes)
    assert any("files without a label row: found 1," in note for note in report.notes)


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("1048570 7", "leave the 1024 x 1024 frame"),
        ("0 1048577", "leave the 1024 x 1024 frame"),
        ("99999999999999999999 1", "run lengths"),
        ("9223372036854775807 9223372036854775807", "leave the"),
        ("5", "1 numbers in the run lengths"),
        ("5 2 x 3", "run lengths contain"),
        ("-1 3", "leave the"),
        ("5 0", "leave the"),
        ("", "'EncodedPixels' holds ''"),
        ("NaN", "run lengths contain"),
    ],
)
def test_bad_runs_are_named_or_counted(tree, read, runs, message):
    root = tree(files(STAGE_1.replace(RUNS, runs)))
    with pytest.raises(DataError, match=rf"train-rle\.csv, row 3 \(ImageId .*\): .*{message}"):
        read("siim_acr", "train", root)
    report = ReadReport(on_error="skip", published_counts=False)
    assert [r["image_id"] for r in read("siim_acr", "train", root, report=report)] == [f"{UID}1"]


def test_negative_and_positive_rows_of_one_image_contradict(tree, read):
    table = STAGE_1.replace(f"{UID}1, -1", f"{UID}2, -1")
    with pytest.raises(DataError, match="row 2 .*either -1 or run lengths"):
        read("siim_acr", "train", tree(files(table)))


def test_missing_pieces(tree, read):
    with pytest.raises(DataError, match="no column 'ImageId'"):
        read("siim_acr", "train", tree(files(STAGE_1.split("\n", 1)[1])))
    with pytest.raises(DataError, match="no column 'ImageId'"):
        read("siim_acr", "train", tree(files("Image,EncodedPixels\n1,-1\n")))
    root = tree(files(ids=()))
    for path in root.rglob("*.dcm"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 2 labelled images"):
        read("siim_acr", "train", root)
