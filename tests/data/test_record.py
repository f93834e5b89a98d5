from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest

from fx_d2.data.errors import DataError
from fx_d2.data.record import XYWH_ABS, XYXY_ABS, PackedRecords, box_xyxy, validate_record
from fx_d2.data.sources import get_source

SOURCE = get_source("chestx_det")
SQUARE = [[10.0, 10.0, 20.0, 10.0, 20.0, 20.0]]


def box(**change):
    return {
        "bbox": [10.0, 10.0, 20.0, 20.0], "bbox_mode": XYXY_ABS, "category_id": 3, "iscrowd": 0,
        "segmentation": SQUARE,
    } | change  # fmt: skip


def record(**change):
    return {
        "file_name": "x.png", "image_id": "1", "source": "chestx_det", "patient_id": None,
        "view": None, "height": 100, "width": 80, "labels": np.zeros(13, dtype=np.float32),
        "annotations": [box()], "masks": {"Mass": {"polygons": SQUARE}},
    } | change  # fmt: skip


def without(*names):
    return {k: v for k, v in record().items() if k not in names}


@pytest.mark.parametrize(
    "good",
    [
        record(),
        record(annotations=[], masks={}),
        without("labels", "annotations", "masks", "height", "width"),
        record(labels=np.float32([1, 0, -1, np.nan] + [0] * 9), patient_id="p1", view="PA"),
        record(annotations=[box(bbox=[70, 90, 10, 10], bbox_mode=XYWH_ABS)]),
        record(annotations=[box(bbox=[0, 0, 81, 101])]),
    ],
)
def test_good_records(good):
    validate_record(good, SOURCE)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (without("patient_id"), "no 'patient_id'"),
        (record(source="rsna"), "source 'rsna'"),
        (record(image_id=7), "image_id is 7"),
        (record(file_name=""), "file_name is ''"),
        (record(view=3), "view is 3"),
        (without("height"), "both or neither"),
        (record(height=0), "positive pixels"),
        (record(labels=np.zeros(12, dtype=np.float32)), r"shape \(13,\)"),
        (record(labels=np.zeros(13)), "float32"),
        (record(labels=[0.0] * 13), "float32"),
        (record(labels=np.full(13, 0.5, dtype=np.float32)), "0, 1, -1"),
        (record(labels=np.full(13, 2, dtype=np.float32)), "0, 1, -1"),
        (record(annotations=[box(bbox=[1, 2, 3])]), "4 numbers"),
        (record(annotations=[box(bbox=[1, 2, np.nan, 9])]), "4 numbers"),
        (record(annotations=[box(bbox_mode=None)]), "bbox_mode is None"),
        (record(annotations=[box(bbox=[10, 10, 10, 20])]), "degenerate"),
        (record(annotations=[box(bbox=[10, 10, 90, 20])]), "leaves the image"),
        (record(annotations=[box(bbox=[-9, 10, 20, 20])]), "leaves the image"),
        (record(annotations=[box(category_id=13)]), "category_id is 13"),
        (record(annotations=[box(category_id=True + 0.5)]), "category_id is 1.5"),
        (record(annotations=[{k: v for k, v in box().items() if k != "segmentation"}]), "no segm"),
        (record(masks={"Heart": {"polygons": []}}), "mask of class 'Heart'"),
    ],
)
def test_bad_records(bad, message):
    with pytest.raises(DataError, match=message) as caught:
        validate_record(bad, SOURCE)
    assert "reader" in str(caught.value), "the message says what to correct"


def test_one_class_only_of_a_multiclass_source():
    rsna = get_source("rsna")
    good = record(source="rsna", labels=np.float32([0, 1, 0]), annotations=[box(category_id=0)])
    del good["masks"]
    validate_record(good, rsna)
    validate_record(good | {"labels": np.full(3, np.nan, dtype=np.float32)}, rsna)
    for labels in ([0, 0, 0], [1, 1, 0]):
        with pytest.raises(DataError, match="exactly one"):
            validate_record(good | {"labels": np.float32(labels)}, rsna)


def test_instance_masks_are_asked_of_sources_that_have_them():
    plain = replace(SOURCE, key="chestx_det", instance_masks=False)
    boxes_only = record(annotations=[{k: v for k, v in box().items() if k != "segmentation"}])
    validate_record(boxes_only, plain)
    with pytest.raises(DataError, match="no segmentation"):
        validate_record(boxes_only, SOURCE)


def test_box_xyxy():
    assert box_xyxy(box()) == (10, 10, 20, 20)
    assert box_xyxy(box(bbox=[10, 20, 5, 6], bbox_mode=XYWH_ABS)) == (10, 20, 15, 26)


def test_packed_records_behave_like_a_list():
    records = [record(image_id=str(i), labels=np.full(13, i % 2, np.float32)) for i in range(7)]
    packed = PackedRecords(iter(records))
    assert len(packed) == 7
    assert [r["image_id"] for r in packed] == [str(i) for i in range(7)]
    assert packed[-1]["image_id"] == "6"
    assert [r["image_id"] for r in packed[2:4]] == ["2", "3"]
    np.testing.assert_array_equal(packed[3]["labels"], records[3]["labels"])
    assert packed[0] is not packed[0], "a caller may change what it gets"
    packed[0]["labels"][:] = 9
    assert packed[0]["labels"].max() == 0
    with pytest.raises(IndexError):
        packed[7]


def test_selection_and_transport_of_packed_records():
    packed = PackedRecords(record(image_id=str(i)) for i in range(9))
    chosen = packed.select([8, 0, 3])
    assert [r["image_id"] for r in chosen] == ["8", "0", "3"]
    assert [r["image_id"] for r in pickle.loads(pickle.dumps(chosen))] == ["8", "0", "3"]  # noqa: S301
    assert len(packed.select([])) == 0
    assert 0 < chosen.nbytes < packed.nbytes
    assert len(PackedRecords([])) == 0 and list(PackedRecords([])) == []
