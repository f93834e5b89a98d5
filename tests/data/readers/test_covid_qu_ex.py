from __future__ import annotations

import shutil

import pytest

from fx_d2.data.errors import DataError

LUNG, INFECTION = "Lung Segmentation Data", "Infection Segmentation Data"
STEMS = {"COVID-19": "covid", "Non-COVID": "non_COVID ", "Normal": "Normal "}


@pytest.fixture
def tree(tmp_path, put_png):
    """Two images per class and split in the lung part; the first of them in the infection part."""
    root = tmp_path / "covid-qu-ex"
    for s, split in enumerate(("Train", "Val", "Test")):
        for name, stem in STEMS.items():
            for i in (1, 2):
                file = f"{stem}({10 * s + i}).png"
                base = root / LUNG / LUNG / split / name
                put_png(base / "images" / file, (256, 256))
                put_png(base / "lung masks" / file, (256, 256), (20, 20, 90, 200))
                if i == 1:
                    base = root / INFECTION / INFECTION / split / name
                    box = (30, 60, 60, 90) if name == "COVID-19" else None
                    put_png(base / "images" / file, (256, 256))
                    put_png(base / "lung masks" / file, (256, 256), (20, 20, 90, 200))
                    put_png(base / "infection masks" / file, (256, 256), box)
    return root


def test_image_in_both_parts_is_one_record_with_both_masks(tree, read_source):
    records, _ = read_source("covid_qu_ex", tree, "Train")
    by_id = {r["image_id"]: r for r in records}
    assert len(by_id) == len(records) == 6
    both, lungs = by_id["Train/COVID-19/covid(1)"], by_id["Train/COVID-19/covid(2)"]
    assert list(both["masks"]) == ["Lungs", "COVID-19 Infection"]
    assert list(lungs["masks"]) == ["Lungs"]  # not annotated, not negative
    assert both["labels"].tolist() == [1, 0, 0]
    assert by_id["Train/Normal/Normal (2)"]["labels"].tolist() == [0, 0, 1]
    assert LUNG in both["file_name"] and INFECTION in both["masks"]["COVID-19 Infection"]


def test_without_covid_the_infection_mask_is_an_empty_truth(tree, read_source):
    from fx_d2.data.masks import load_mask

    records, _ = read_source("covid_qu_ex", tree, "Val")
    masks = {r["image_id"]: r["masks"].get("COVID-19 Infection") for r in records}
    assert not load_mask(masks["Val/Normal/Normal (11)"], 256, 256).any()
    assert load_mask(masks["Val/COVID-19/covid(11)"], 256, 256).sum() == 900


def test_one_level_less(tree, read_source):
    for name in (LUNG, INFECTION):
        for split in ("Train", "Val", "Test"):
            shutil.move(tree / name / name / split, tree / name / split)
    assert len(read_source("covid_qu_ex", tree, "Test")[0]) == 6


def test_an_image_stays_in_the_split_of_the_lung_part(tree, read_source):
    old = tree / INFECTION / INFECTION / "Train/COVID-19"
    new = tree / INFECTION / INFECTION / "Test/COVID-19"
    for folder in ("images", "lung masks", "infection masks"):
        (old / folder / "covid(1).png").rename(new / folder / "covid(1).png")
    train, report = read_source("covid_qu_ex", tree, "Train")
    test, _ = read_source("covid_qu_ex", tree, "Test")
    both = {r["image_id"]: r for r in train}["Train/COVID-19/covid(1)"]
    assert "/Test/" in both["masks"]["COVID-19 Infection"]
    assert not [r for r in test if r["image_id"].endswith("covid(1)")]
    assert any("another split: found 1" in note for note in report.notes)


def test_infection_part_alone_and_an_image_only_there(tree, put_png, read_source):
    base = tree / INFECTION / INFECTION / "Train/COVID-19"
    for folder in ("images", "lung masks", "infection masks"):
        put_png(base / folder / "covid(77).png", (256, 256))
    assert len(read_source("covid_qu_ex", tree, "Train")[0]) == 7
    shutil.rmtree(tree / LUNG)
    records, _ = read_source("covid_qu_ex", tree, "Train")
    assert len(records) == 4 and all(len(r["masks"]) == 2 for r in records)


def test_missing_mask_missing_folder_nothing_there(tree, read_source):
    (tree / LUNG / LUNG / "Train/Normal/lung masks/Normal (2).png").unlink()
    with pytest.raises(DataError, match=r"Normal \(2\)\.png: no mask of Lungs"):
        read_source("covid_qu_ex", tree, "Train")
    records, report = read_source("covid_qu_ex", tree, "Train", on_error="skip")
    assert len(records) == 5 and report.skipped == {"image without a mask": 1}
    shutil.rmtree(tree / INFECTION / INFECTION / "Val/Normal/infection masks")
    with pytest.raises(DataError, match="infection masks"):
        read_source("covid_qu_ex", tree, "Val")
    shutil.rmtree(tree / LUNG)
    shutil.rmtree(tree / INFECTION)
    with pytest.raises(DataError, match="the lung part not found"):
        read_source("covid_qu_ex", tree, "Train")
