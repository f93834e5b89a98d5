from __future__ import annotations

import copy

import numpy as np
import pytest

from fx_d2.data.errors import DataError, ReadReport
from fx_d2.data.masks import load_mask
from fx_d2.data.sources import get_source

RING = [[233, 666], [258, 666], [258, 693], [233, 693]]
LIST = [
    {
        "file_name": "36204.png",
        "syms": ["Nodule", "Nodule", "Cardiomegaly"],
        "boxes": [[233, 666, 258, 693], [10, 10, 20, 20], [387, 497, 752, 734]],
        "polygons": [RING, [[10, 10], [20, 10], [20, 20]], [[387, 497], [752, 497], [600, 734]]],
    },
    {"file_name": "36205.png", "syms": [], "boxes": [], "polygons": []},
]


def files(body=None, folder="train"):
    return {
        "ChestX_Det_train.json": LIST if body is None else body,
        f"{folder}/36204.png": b"",
        f"{folder}/36205.png": b"",
    }


@pytest.mark.parametrize("folder", ["train", "train_data", "train_data/train"])
def test_boxes_polygons_labels_and_masks(tree, read, folder):
    root = tree(files(folder=folder))
    found, normal = read("chestx_det", "train", root)
    assert found["image_id"] == "36204"
    assert found["file_name"] == str(root / folder / "36204.png")
    classes = get_source("chestx_det").cls_classes
    assert {classes[i] for i in np.flatnonzero(found["labels"])} == {"Nodule", "Cardiomegaly"}
    first = found["annotations"][0]
    assert classes[first["category_id"]] == "Nodule"
    assert first["bbox"] == [233, 666, 258, 693]
    assert first["segmentation"] == [[233, 666, 258, 666, 258, 693, 233, 693]]
    assert set(found["masks"]) == set(classes), "every class was looked for"
    nodules = load_mask(found["masks"]["Nodule"], 1024, 1024)
    assert nodules[680, 245] and nodules[12, 18] and not nodules[500, 500]
    assert nodules[666:694, 233:259].all(), "corners are inclusive"
    assert not load_mask(found["masks"]["Mass"], 1024, 1024).any()
    assert normal["labels"].tolist() == [0] * 13 and normal["annotations"] == []
    assert not load_mask(normal["masks"]["Nodule"], 1024, 1024).any()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("syms", ["Nodule"], "do not belong together"),
        ("syms", "Nodule", "do not belong together"),
        ("syms", ["Nodule", "Nodule", "Heart"], "class 'Heart'"),
        ("syms", ["Nodule", "Nodule", {}], "class {}"),
        ("boxes", [[1, 2, 3], [0, 0, 9, 9], [0, 0, 9, 9]], r"box \[1, 2, 3\]"),
        ("boxes", [[258, 693, 233, 666], [0, 0, 9, 9], [0, 0, 9, 9]], "no area"),
        ("boxes", [[900, 900, 1030, 1030], [0, 0, 9, 9], [0, 0, 9, 9]], "leaves the image"),
        ("boxes", [["a", 6, 8, 9], [0, 0, 9, 9], [0, 0, 9, 9]], "column 'boxes' holds 'a'"),
        ("polygons", [[[1, 1], [1, 1], [2, 2]], RING, RING], "polygon"),
        ("polygons", [[[1, 1, 5], [1, 2], [2, 2]], RING, RING], "polygon"),
        ("polygons", [[[1, 1], [1, 2], [2, 9999]], RING, RING], "polygon reaches from 1.0 to 9999"),
        (
            "polygons",
            [[[1, 1], [1, None], [2, 2]], RING, RING],
            "column 'polygons' holds 'None'|None",
        ),
        ("file_name", "36299.png", r"image '36299\.png' is not below"),
        ("file_name", "../36204.png", r"file name '\.\./36204\.png'"),
        ("polygons", None, "ChestX-Det10"),
    ],
)
def test_bad_entries_are_named_or_counted(tree, read, key, value, message):
    body = copy.deepcopy(LIST)
    body[0][key] = value
    root = tree(files(body))
    with pytest.raises(DataError, match=rf"ChestX_Det_train\.json, entry 0 .*{message}"):
        read("chestx_det", "train", root)
    report = ReadReport(on_error="skip", published_counts=False)
    assert [r["image_id"] for r in read("chestx_det", "train", root, report=report)] == ["36205"]


@pytest.mark.parametrize("content", ["{}", "[1]", "[{}", "", b"\xff"])
def test_what_is_not_the_list_is_refused(tree, read, content):
    with pytest.raises(DataError, match=r"ChestX_Det_train\.json"):
        read("chestx_det", "train", tree(files(content)))
