"""Every source: written in its vendor's layout, read back, and compared with the truth."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from fx_d2.data.builtin import load_records, read_part
from fx_d2.data.errors import ReadReport
from fx_d2.data.images import image_size, read_image
from fx_d2.data.masks import load_mask
from fx_d2.data.record import Record, box_xyxy, validate_record
from fx_d2.data.source import Source
from fx_d2.data.sources import SOURCES, get_source
from fx_d2.phantom.world import read_truth

PARTS = [
    (key, part)
    for key, source in SOURCES.items()
    for part in dict.fromkeys(p.name for p in source.splits.values())
]
# CheXmask: images whose masks are of low quality are left out, and counted.
EXPECTED_NOTES = {"chexmask_vindr": ("left out",)}
_cache: dict[tuple[Path, str, str], list[Record]] = {}


def records_of(world: Path, key: str, part: str) -> list[Record]:
    if (world, key, part) not in _cache:
        source = get_source(key)
        report = ReadReport(published_counts=False)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = list(read_part(key, part, root=world / source.folder, report=report))
        allowed = EXPECTED_NOTES.get(key, ())
        unexpected = [n for n in report.notes if not any(text in n for text in allowed)]
        assert not unexpected and not report.skipped
        _cache[world, key, part] = found
    return _cache[world, key, part]


def truth_of(world: Path, key: str, part: str) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in read_truth(world, key) if row["part"] == part}


def pairs(world: Path, key: str, part: str) -> list[tuple[Record, dict[str, Any]]]:
    truth = truth_of(world, key, part)
    return [(record, truth[record["image_id"]]) for record in records_of(world, key, part)]


@pytest.mark.parametrize(("key", "part"), PARTS)
def test_the_same_images(phantom_world: Path, key: str, part: str) -> None:
    records = records_of(phantom_world, key, part)
    truth = truth_of(phantom_world, key, part)
    ids = [record["image_id"] for record in records]
    assert truth and len(ids) == len(set(ids))
    assert set(ids) == set(truth)
    for record, row in pairs(phantom_world, key, part):
        validate_record(record, get_source(key))
        assert record["patient_id"] == row["patient_id"]
        assert record["view"] == row["view"]
        assert Path(record["file_name"]).samefile(phantom_world / row["file"])


@pytest.mark.parametrize(("key", "part"), PARTS)
def test_labels_are_exact(phantom_world: Path, key: str, part: str) -> None:
    source = get_source(key)
    for record, row in pairs(phantom_world, key, part):
        if row["labels"] is None:
            assert "labels" not in record
            continue
        wanted = [row["labels"][name] for name in source.cls_classes]
        wanted = np.array([np.nan if v is None else v for v in wanted], dtype=np.float32)
        np.testing.assert_array_equal(record["labels"], wanted, err_msg=row["image_id"])


def assert_boxes(record: Record, row: dict[str, Any], source: Source) -> None:
    """One to one, same category, every corner within a pixel."""
    left = [
        (source.thing_classes[a["category_id"]], np.array(box_xyxy(a)))
        for a in record["annotations"]
    ]
    assert len(left) == len(row["boxes"]), row["image_id"]
    for box in row["boxes"]:
        distance = [
            np.abs(found - box["xyxy"]).max() if name == box["category"] else np.inf
            for name, found in left
        ]
        nearest = int(np.argmin(distance))
        assert distance[nearest] <= 1.0, (row["image_id"], box, left)
        del left[nearest]


@pytest.mark.parametrize(("key", "part"), PARTS)
def test_boxes_within_a_pixel(phantom_world: Path, key: str, part: str) -> None:
    source = get_source(key)
    for record, row in pairs(phantom_world, key, part):
        if row["boxes"] is None:
            assert "annotations" not in record, row["image_id"]
        else:
            assert_boxes(record, row, source)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


def assert_mask(mask: np.ndarray, wanted: np.ndarray, what: str) -> None:
    if wanted.any():
        assert dice(mask, wanted) > 0.99, what
    else:
        assert not mask.any(), what


@pytest.mark.parametrize(("key", "part"), [p for p in PARTS if "seg" in SOURCES[p[0]].all_tasks()])
def test_masks(phantom_world: Path, key: str, part: str) -> None:
    source = get_source(key)
    for record, row in pairs(phantom_world, key, part):
        if row["masks"] is None:
            assert "masks" not in record
            continue
        assert set(record["masks"]) == set(row["masks"]), row["image_id"]
        size = row["height"], row["width"]
        for name, reference in record["masks"].items():
            mask = load_mask(reference, *size, resize=source.resize_masks)
            wanted = coco_mask.decode(row["masks"][name]).astype(bool)
            assert mask.shape == wanted.shape == size
            assert_mask(mask, wanted, f"{row['image_id']} {name}")


@pytest.mark.parametrize("key", [k for k, s in SOURCES.items() if s.all_tasks() != ("cls",)])
def test_there_is_something_to_compare(phantom_world: Path, key: str) -> None:
    """Boxes of every source with boxes; for masks, empty and other ones where both can occur."""
    source, rows = get_source(key), read_truth(phantom_world, key)
    if "loc" in source.all_tasks():
        assert any(row["boxes"] for row in rows)
    if "seg" in source.all_tasks():
        areas = [
            coco_mask.area(rle) > 0 for row in rows if row["masks"] for rle in row["masks"].values()
        ]
        assert any(areas)
        if key in ("siim_acr", "candid_ptx", "chestx_det", "covid19_seg", "vindr_ribcxr"):
            assert not all(areas)


@pytest.mark.parametrize(("key", "part"), [p for p in PARTS if SOURCES[p[0]].instance_masks])
def test_instance_masks_fill_their_boxes(phantom_world: Path, key: str, part: str) -> None:
    for record, row in pairs(phantom_world, key, part):
        for annotation in record.get("annotations", ()):
            reference = annotation["segmentation"]
            if isinstance(reference, list):
                reference = {"polygons": reference}
            mask = load_mask(reference, row["height"], row["width"])
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert np.abs(np.array(box_xyxy(annotation)) - box).max() <= 1.0, row["image_id"]


@pytest.mark.parametrize(("key", "part"), PARTS)
def test_depth_orientation_and_polarity(phantom_world: Path, key: str, part: str) -> None:
    source = get_source(key)
    if source.key in ("vindr_local", "vindr_global", "chexmask_vindr", "cxr_lt"):
        pytest.skip("same files as another source")
    for record, row in pairs(phantom_world, key, part):
        loaded = read_image(record["file_name"])
        size = row["height"], row["width"]
        assert loaded.pixels.shape == size == image_size(record["file_name"])
        assert (record.get("height", size[0]), record.get("width", size[1])) == size
        assert source.image_size in (None, size)
        assert loaded.facts.bits == row["bits"], row["image_id"]
        shown = cv2.resize(loaded.pixels, (32, 32), interpolation=cv2.INTER_AREA)
        thumb = np.array(row["thumb"], dtype=np.float64)
        correlation = np.corrcoef(shown.ravel(), thumb.ravel())[0, 1]
        assert correlation > 0.98, (row["image_id"], correlation)
        if loaded.facts.voi == "none":  # else the window stretches the levels
            level = shown / loaded.facts.max_value * 255.0
            assert np.abs(level - thumb).mean() < 2.0, row["image_id"]


def test_forms_of_files_that_occur(phantom_world: Path) -> None:
    """The traps the real sets hold are in the world, so that the tests above mean something."""
    facts = []
    for key, part in PARTS:
        if key not in ("vindr_local", "vindr_global", "chexmask_vindr", "cxr_lt"):
            records = records_of(phantom_world, key, part)
            facts += [read_image(record["file_name"]).facts for record in records]
    assert {f.format for f in facts} >= {"png", "jpeg", "dicom", "mha", "jsrt"}
    assert {f.bits for f in facts} >= {8, 12, 14, 16}
    assert {"MONOCHROME1", "MONOCHROME2"} <= {f.photometric for f in facts}
    assert {"RGB", "RGBA", "L"} <= {f.mode for f in facts}
    syntaxes = {f.transfer_syntax for f in facts}
    jpeg_baseline, jpeg_2000 = "1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.90"
    assert {jpeg_baseline, jpeg_2000, "1.2.840.10008.1.2", "1.2.840.10008.1.2.1"} <= syntaxes
    assert {"none", "window"} <= {f.voi for f in facts}


@pytest.mark.parametrize("key", list(SOURCES))
def test_splits_are_populated_and_disjoint(phantom_world: Path, key: str) -> None:
    source = get_source(key)
    seen: dict[str, str] = {}
    for split in source.splits:
        records = load_records(key, split, root=phantom_world / source.folder)
        assert len(records)
        if split in ("all", "trainval"):
            continue
        for record in records:
            who = record["patient_id"] or record["image_id"]
            assert seen.setdefault(who, split) == split


def test_siim_reads_the_table_of_stage_one_too(phantom_world: Path) -> None:
    """Its header and its values begin with a blank."""
    folder = phantom_world / get_source("siim_acr").folder
    truth = truth_of(phantom_world, "siim_acr", "train")
    report = ReadReport(published_counts=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the images of the second stage have no row in it
        options = {"table": "train-rle.csv"}
        found = list(read_part("siim_acr", "train", root=folder, report=report, options=options))
    assert 0 < len(found) < len(truth)
    for record in found:
        assert_boxes(record, truth[record["image_id"]], get_source("siim_acr"))
