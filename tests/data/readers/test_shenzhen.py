from __future__ import annotations

import pytest

from fx_d2.data.errors import DataError, ReadReport


def files(prefix=""):
    return {
        f"{prefix}CXR_png/CHNCXR_0001_0.png": b"",
        f"{prefix}CXR_png/CHNCXR_0327_1.png": b"",
        f"{prefix}CXR_png/._CHNCXR_0327_1.png": b"left by macOS",
        f"{prefix}CXR_png/Thumbs.db": b"",
        f"{prefix}ClinicalReadings/CHNCXR_0001_0.txt": "male 45yrs\nnormal\n",
        f"{prefix}ClinicalReadings/CHNCXR_0327_1.txt": "\nFemale,8 month\n\nPTB, right upper\n",
        "mask/mask/CHNCXR_0327_1_mask.png": b"",
    }


@pytest.mark.parametrize("prefix", ["", "ChinaSet_AllFiles/"])
def test_reads(tree, read, prefix):
    root = tree(files(prefix))
    normal, tb = read("shenzhen", "all", root)
    assert (normal["image_id"], normal["labels"].tolist()) == ("CHNCXR_0001_0", [0.0])
    assert (tb["image_id"], tb["labels"].tolist()) == ("CHNCXR_0327_1", [1.0])
    assert (normal["sex"], normal["age"]) == ("Male", 45)
    assert (tb["sex"], tb["age"]) == ("Female", 0)
    assert "masks" not in normal, "an image without a mask file is not annotated"
    assert tb["masks"] == {"Lungs": str(root / "mask/mask/CHNCXR_0327_1_mask.png")}
    assert normal["patient_id"] is None


def test_readings_are_optional_and_may_be_garbage(tree, read):
    content = files()
    content["ClinicalReadings/CHNCXR_0001_0.txt"] = b"\xff\xfe\x00 nothing"
    del content["ClinicalReadings/CHNCXR_0327_1.txt"]
    assert all("age" not in r for r in read("shenzhen", "all", tree(content)))


def test_an_odd_name_is_named_or_counted(tree, read):
    root = tree(files() | {"CXR_png/CHNCXR_0002_2.png": b""})
    with pytest.raises(DataError, match=r"CHNCXR_0002_2\.png.*tells no label"):
        read("shenzhen", "all", root)
    report = ReadReport(on_error="skip", published_counts=False)
    assert len(read("shenzhen", "all", root, report=report)) == 2
    assert report.skipped == {"image with an odd name": 1}


def test_empty_and_absent_folders(tree, read):
    with pytest.raises(DataError, match="image folder not found"):
        read("shenzhen", "all", tree({"readme": ""}))
    (tree({}) / "CXR_png").mkdir()
    with pytest.raises(DataError, match="no PNG file"):
        read("shenzhen", "all", tree({}))
