from __future__ import annotations

import pytest

from fx_d2.data.errors import DataError
from fx_d2.data.masks import load_mask


@pytest.fixture
def tree(tmp_path, put_png):
    root = tmp_path / "MontgomerySet"
    for stem, suffix in (("MCUCXR_0001_0", "png"), ("MCUCXR_0399_1", "gif")):
        put_png(root / f"CXR_png/{stem}.png")
        put_png(root / f"ManualMask/leftMask/{stem}.{suffix}", box=(14, 4, 20, 16))
        put_png(root / f"ManualMask/rightMask/{stem}.{suffix}", box=(3, 4, 9, 16))
    (root / "CXR_png/._MCUCXR_0001_0.png").write_bytes(b"\0\5\x16\7")
    (root / "CXR_png/Thumbs.db").write_bytes(b"x")
    readings = root / "ClinicalReadings"
    readings.mkdir()
    (readings / "MCUCXR_0001_0.txt").write_bytes(
        b"Patient's Sex: F\r\n\r\nPatient's Age: 025Y\r\nnormal\r\n"
    )
    (readings / "MCUCXR_0399_1.txt").write_bytes(b"sex unknown, opacit\xe9s\n")
    return root


@pytest.mark.parametrize("nested", [False, True])
def test_reads_labels_and_sides(tree, read_source, nested):
    records, _ = read_source("montgomery", tree.parent if nested else tree, "all")
    assert [r["image_id"] for r in records] == ["MCUCXR_0001_0", "MCUCXR_0399_1"]
    assert [r["labels"].tolist() for r in records] == [[0.0], [1.0]]
    assert (records[0]["sex"], records[0]["age"]) == ("F", 25)
    assert "sex" not in records[1] and "age" not in records[1]
    for record in records:
        left, right = (load_mask(record["masks"][f"{s} Lung"], 20, 24) for s in ("Left", "Right"))
        assert left[:, 14:20].any() and not left[:, :12].any()  # the patient's left: right side
        assert right[:, 3:9].any() and not right[:, 12:].any()


def test_missing_mask_is_named_or_skipped(tree, read_source):
    (tree / "ManualMask/rightMask/MCUCXR_0399_1.gif").unlink()
    with pytest.raises(DataError, match=r"MCUCXR_0399_1\.png: no mask of Right Lung"):
        read_source("montgomery", tree, "all")
    records, report = read_source("montgomery", tree, "all", on_error="skip")
    assert [r["image_id"] for r in records] == ["MCUCXR_0001_0"]
    assert report.skipped == {"image without a mask": 1}


def test_foreign_file_name(tree, put_png, read_source):
    put_png(tree / "CXR_png/MCUCXR_0002.png")
    with pytest.raises(DataError, match="not a file name of this dataset"):
        read_source("montgomery", tree, "all")


@pytest.mark.parametrize("folder", ["CXR_png", "ManualMask/leftMask"])
def test_missing_folder(tree, read_source, folder):
    (tree / folder).rename(tree / "elsewhere")
    with pytest.raises(DataError, match=folder):
        read_source("montgomery", tree, "all")


def test_counts_are_compared(tree, read_source):
    _, report = read_source("montgomery", tree, "all", counts=True)
    assert any("found 2, expected 138" in note for note in report.notes)
