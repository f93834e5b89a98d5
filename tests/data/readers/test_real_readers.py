"""A few real files in their own layout; skipped where they are absent."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fx_d2.data.images import image_size, read_image
from fx_d2.data.masks import load_mask
from fx_d2.data.sources import get_source

REAL = Path(
    os.environ.get("FX_D2_REAL_SAMPLES") or Path(__file__).parents[3].parent / "shared" / "real"
)
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not REAL.is_dir(), reason=f"no real samples in {REAL}"),
]


def positives(record):
    classes = get_source(record["source"]).cls_classes
    return {c for c, value in zip(classes, record["labels"], strict=True) if value == 1}


def test_nih14(tmp_path, read):
    """The sample has no official lists, so one is written that names its four images."""
    for name in ("BBox_List_2017.csv", "Data_Entry_2017_v2020.csv"):
        shutil.copy(REAL / "nih14" / name, tmp_path)
    names = sorted(os.listdir(REAL / "nih14" / "images"))
    (tmp_path / "test_list.txt").write_text("\n".join(names))
    shutil.copytree(REAL / "nih14" / "images", tmp_path / "images")
    records = {r["image_id"]: r for r in read("nih14", "test", tmp_path)}
    assert len(records) == 4
    assert positives(records["00004296_000"]) == {"Atelectasis", "Fibrosis", "Nodule"}
    assert positives(records["00015649_000"]) == {
        "Effusion",
        "Mass",
        "Nodule",
        "Pleural_Thickening",
    }
    (mass,) = records["00015649_000"]["annotations"]
    assert mass["bbox"] == pytest.approx([641.49, 299.073, 726.011, 373.841], abs=1e-3)
    things = get_source("nih14").thing_classes
    for record in records.values():
        assert image_size(record["file_name"]) == (1024, 1024)
        for annotation in record["annotations"]:
            assert things[annotation["category_id"]] in positives(record)


def test_tbx11k(read):
    tb, two, healthy = read("tbx11k", "TBX11K_train", REAL / "tbx11k" / "TBX11K")
    assert [r["image_id"] for r in (tb, two, healthy)] == ["tb/tb0005", "tb/tb0007", "health/h0001"]
    assert [r["labels"].tolist() for r in (tb, two, healthy)] == [[1], [1], [0]]
    assert [a["category_id"] for a in tb["annotations"]] == [0]
    assert [a["category_id"] for a in two["annotations"]] == [1, 1]
    assert healthy["annotations"] == []
    assert tb["annotations"][0]["bbox"] == pytest.approx([381.83, 126.87, 422.07, 171.44], abs=0.01)
    for record in (tb, two, healthy):
        assert image_size(record["file_name"]) == (record["height"], record["width"])


def test_chestx_det(tmp_path, read):
    """The real annotations without pixels: boxes are those of their polygons."""
    body = json.loads((REAL / "chestx_det" / "ChestX_Det_test_first120.json").read_text())
    (tmp_path / "ChestX_Det_test.json").write_text(json.dumps(body))
    (tmp_path / "test").mkdir()
    for entry in body:
        (tmp_path / "test" / entry["file_name"]).touch()
    records = read("chestx_det", "test", tmp_path)
    assert len(records) == 120
    same = total = 0
    for record, entry in zip(records, body, strict=True):
        assert positives(record) == set(entry["syms"])
        assert len(record["annotations"]) == len(entry["boxes"])
        for annotation in record["annotations"]:
            ring = np.reshape(annotation["segmentation"][0], (-1, 2))
            corners = [*ring.min(axis=0), *ring.max(axis=0)]
            total += 1
            same += annotation["bbox"] == corners
    assert total > 300 and same / total > 0.95
    busiest = max(records, key=lambda r: len(r["annotations"]))
    for name in positives(busiest):
        assert load_mask(busiest["masks"][name], 1024, 1024).any()


def test_siim_acr(tmp_path, read):
    """One real DICOM without pneumothorax, in the tree of stage 1."""
    (source,) = (p for p in (REAL / "siim_acr").glob("1.2*.dcm"))
    folder = tmp_path / "dicom-images-train" / "1.2.3" / "1.2.4"
    folder.mkdir(parents=True)
    shutil.copy(source, folder)
    (tmp_path / "train-rle.csv").write_text(f"ImageId, EncodedPixels\n{source.stem}, -1\n")
    (record,) = read("siim_acr", "train", tmp_path)
    assert record["labels"].tolist() == [0] and record["annotations"] == []
    loaded = read_image(record["file_name"])
    assert loaded.pixels.shape == (record["height"], record["width"]) == (1024, 1024)
