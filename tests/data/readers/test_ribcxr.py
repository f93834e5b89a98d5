from __future__ import annotations

import json

import pytest

from fx_d2.data.errors import DataError
from fx_d2.data.masks import load_mask
from fx_d2.data.vocabulary import RIBS_20

SIZE = (288, 230)  # height, width


def ring(x0, y0, x1, y1):
    corners = ((x0, y0), (x1, y0), (x1, y1), (x0, y1))
    return [{"x": float(x), "y": float(y)} for x, y in corners]


def body(part, n=2):
    names = {str(i): f"data/{part}/img/VinDr_RibCXR_{part}_{i:03d}.png" for i in range(n)}
    ribs = {
        rib: {key: ring(10, 5 + 10 * j, 60, 12 + 10 * j) for key in names}
        for j, rib in enumerate(RIBS_20)
    }
    if n > 1:
        ribs["L10"]["1"] = "None"
    return {"img": names, **ribs}


@pytest.fixture
def tree(tmp_path, put_png):
    root = tmp_path / "vindr-ribcxr"
    for part in ("train", "val"):
        for i in range(2):
            put_png(root / f"data/{part}/img/VinDr_RibCXR_{part}_{i:03d}.png", SIZE, mode="RGB")
        path = root / f"data/{part}/Vindr_RibCXR_{part}_mask.json"
        path.write_text(json.dumps(body(part)))
    return root


def annotations(tree, part="train"):
    return tree / f"data/{part}/Vindr_RibCXR_{part}_mask.json"


def test_twenty_ribs_and_a_missing_one_is_a_true_negative(tree, read_source):
    records, _ = read_source("vindr_ribcxr", tree, "train")
    assert [r["image_id"] for r in records] == [f"VinDr_RibCXR_train_00{i}" for i in (0, 1)]
    first, second = records
    assert (first["height"], first["width"]) == SIZE
    assert tuple(first["masks"]) == RIBS_20
    mask = load_mask(first["masks"]["R2"], *SIZE)
    assert mask[16, 10] and mask[21, 59] and not mask[13, 30]
    assert not load_mask(second["masks"]["L10"], *SIZE).any()
    assert load_mask(first["masks"]["L10"], *SIZE).any()


def test_other_copies_differ_in_case_and_folders(tree, read_source):
    (tree / "Annotations/val").mkdir(parents=True)
    annotations(tree, "val").rename(tree / "Annotations/val/VinDr_RibCXR_val_mask.json")
    (tree / "data").rename(tree / "Data")
    records, _ = read_source("vindr_ribcxr", tree, "val")
    assert len(records) == 2 and "/Data/val/img/" in records[0]["file_name"]


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "None"),
        ("none", "'none'"),
        ([], r"\[\]"),
        (ring(1, 1, 5, 5)[:2], "'x': 1.0"),
        ([{"x": 1, "y": 2}, {"x": 3}, {"x": 4, "y": 9}], "'x': 3"),
        ([{"x": "a", "y": 2}] * 3, "'a'"),
        ([[1, 2], [3, 4], [5, 6]], r"\[1, 2\]"),
        (ring(1, 1, 1e300, 5), "1e\\+300"),
        (ring(1, 1, 5, 400), "400"),
        (ring(-50, 1, 5, 5), "-50"),
        ({"x": 1}, "'x'"),
        (7, "7"),
    ],
)
def test_bad_ribs(tree, read_source, value, what):
    broken = body("train")
    broken["R3"]["1"] = value
    annotations(tree).write_text(json.dumps(broken))
    with pytest.raises(DataError, match=f"img '1'.*rib R3.*{what}") as error:
        read_source("vindr_ribcxr", tree, "train")
    assert "Vindr_RibCXR_train_mask.json" in str(error.value)
    records, report = read_source("vindr_ribcxr", tree, "train", on_error="skip")
    assert len(records) == 1 and report.skipped == {"bad image entry": 1}


def test_rib_without_an_entry_for_an_image(tree, read_source):
    broken = body("train")
    del broken["R3"]["1"]
    annotations(tree).write_text(json.dumps(broken))
    with pytest.raises(DataError, match="img '1'.*rib R3"):
        read_source("vindr_ribcxr", tree, "train")


@pytest.mark.parametrize("key", ["img", "R1", "L10"])
@pytest.mark.parametrize("value", [None, [], "None", 3])
def test_columns_must_be_objects(tree, read_source, key, value):
    broken = body("train")
    broken[key] = value
    annotations(tree).write_text(json.dumps(broken))
    with pytest.raises(DataError, match=f"'{key}' is"):
        read_source("vindr_ribcxr", tree, "train", on_error="skip")


@pytest.mark.parametrize("name", ["data/train/img/gone.png", "../../x.png", 5, None, "", "a\0.png"])
def test_bad_image_names(tree, read_source, name):
    broken = body("train")
    broken["img"]["0"] = name
    annotations(tree).write_text(json.dumps(broken))
    with pytest.raises(DataError, match="img '0'"):
        read_source("vindr_ribcxr", tree, "train")
    records, _ = read_source("vindr_ribcxr", tree, "train", on_error="skip")
    assert [r["image_id"] for r in records] == ["VinDr_RibCXR_train_001"]


def test_missing_annotations(tree, read_source):
    annotations(tree).unlink()
    with pytest.raises(DataError, match="the rib annotations not found"):
        read_source("vindr_ribcxr", tree, "train")
