from __future__ import annotations

import pytest

from fx_d2.data.catalog import configure, load_records
from fx_d2.data.errors import DataError
from fx_d2.data.masks import load_mask

CLASSES = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")


@pytest.fixture
def tree(tmp_path, put_png):
    root = tmp_path / "COVID-19_Radiography_Dataset"
    for name in CLASSES:
        put_png(root / f"{name}/images/{name}-1.png", (299, 299), mode="RGB")
        put_png(root / f"{name}/masks/{name}-1.png", (256, 256), (40, 50, 90, 200), mode="RGB")
    (root / "Normal.metadata.xlsx").write_bytes(b"PK")
    return root


@pytest.mark.parametrize("nested", [False, True])
def test_one_class_each_and_masks_of_another_size(tree, read_source, nested):
    records, _ = read_source("covid_radiography", tree.parent if nested else tree, "all")
    assert [r["image_id"] for r in records] == [f"{name}-1" for name in CLASSES]
    for i, record in enumerate(records):
        assert record["labels"].tolist() == [float(i == j) for j in range(4)]
        mask = load_mask(record["masks"]["Lungs"], 299, 299, resize=True)
        assert mask.shape == (299, 299) and mask[150, 70] and not mask[150, 150]


def test_mask_names_may_differ_in_case(tree, read_source):
    masks = tree / "Normal/masks"
    (masks / "Normal-1.png").rename(masks / "NORMAL-1.PNG")
    records, _ = read_source("covid_radiography", tree, "all")
    assert records[2]["masks"]["Lungs"].endswith("NORMAL-1.PNG")


def test_missing_mask_and_missing_class(tree, put_png, read_source):
    put_png(tree / "COVID/images/COVID-2.png", (299, 299))
    with pytest.raises(DataError, match=r"COVID-2\.png: no lung mask"):
        read_source("covid_radiography", tree, "all")
    records, report = read_source("covid_radiography", tree, "all", on_error="skip")
    assert len(records) == 4 and report.skipped == {"image without a mask": 1}
    (tree / "Viral Pneumonia").rename(tree / "Viral_Pneumonia")
    with pytest.raises(DataError, match=r"Viral Pneumonia.*not found"):
        read_source("covid_radiography", tree, "all", on_error="skip")


def test_published_counts_per_class(tree, read_source):
    _, report = read_source("covid_radiography", tree, "all", counts=True)
    assert any("all/COVID: found 1, expected 3616" in note for note in report.notes)
    assert any("all/images: found 4, expected 21165" in note for note in report.notes)


def test_three_classes_are_cut_as_four(tree, put_png, read_source):
    """A film is in the same split for both rows, though one of them leaves a class out."""
    for name in CLASSES:
        for number in range(2, 12):
            put_png(tree / f"{name}/images/{name}-{number}.png", (299, 299))
            put_png(tree / f"{name}/masks/{name}-{number}.png", (256, 256), mode="RGB")
    records, report = read_source("covid_radiography_3", tree, "all")
    assert len(records) == 33 and len(report.left_out["all"]) == 11
    assert {r["labels"].argmax() for r in records} == {0, 1, 2}
    configure({"covid_radiography": str(tree), "covid_radiography_3": str(tree)})
    try:
        for split in ("train", "val", "test"):
            four = {r["image_id"] for r in load_records("covid_radiography", split)}
            three = {r["image_id"] for r in load_records("covid_radiography_3", split)}
            assert three == {name for name in four if not name.startswith("Lung_Opacity")}
    finally:
        configure()
