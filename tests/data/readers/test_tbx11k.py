from __future__ import annotations

import copy

import pytest

from fx_d2.data.errors import DataError, ReadReport

CATEGORIES = [
    {"id": 1, "name": "ActiveTuberculosis", "supercategory": "Tuberculosis"},
    {"id": 2, "name": "ObsoletePulmonaryTuberculosis", "supercategory": "Tuberculosis"},
    {"id": 3, "name": "PulmonaryTuberculosis", "supercategory": "Tuberculosis"},
]


def image(number, name, size=512):
    return {"id": number, "file_name": name, "width": size, "height": size, "license": 1}


def box(number, image_id, category, xywh):
    return {
        "id": number, "image_id": image_id, "category_id": category, "iscrowd": 0, "area": 1,
        "bbox": xywh, "width": 512, "height": 512,
    }  # fmt: skip


LIST = {
    "categories": CATEGORIES,
    "images": [
        image(1, "tb/tb0005.png"),
        image(2, "tb/tb1199.png"),
        image(601, "health/h0001.png"),
        image(602, "sick/s0001.png"),
    ],
    "annotations": [
        box(1, 1, 1, [381.83, 126.87, 40.24, 44.57]),
        box(2, 1, 2, [500.0, 500.0, 12.5, 12.5]),
    ],
}


def files(body=None, part="TBX11K_train", prefix=""):
    body = LIST if body is None else body
    names = [i["file_name"] for i in LIST["images"]]
    return {
        f"{prefix}annotations/json/{part}.json": body,
        f"{prefix}annotations/xml/tb0005.xml": "<annotation/>",
        **{f"{prefix}imgs/{name}": b"" for name in names},
    }


@pytest.mark.parametrize("prefix", ["", "TBX11K/"])
def test_every_listed_image_is_kept(tree, read, prefix):
    root = tree(files(prefix=prefix))
    tb, unboxed, healthy, sick = read("tbx11k", "TBX11K_train", root)
    assert tb["image_id"] == "tb/tb0005"
    assert tb["file_name"] == str(root / prefix / "imgs/tb/tb0005.png")
    assert (tb["height"], tb["width"]) == (512, 512)
    assert [r["labels"].tolist() for r in (tb, unboxed, healthy, sick)] == [[1], [1], [0], [0]]
    first, second = tb["annotations"]
    assert first["bbox"] == pytest.approx([381.83, 126.87, 422.07, 171.44])
    assert (first["category_id"], second["category_id"]) == (0, 1)
    assert second["bbox"] == [500, 500, 512, 512], "half a pixel beyond the border is cut off"
    assert healthy["annotations"] == sick["annotations"] == []
    assert "annotations" not in unboxed, "tuberculosis without a box is not a negative"


def changed(path, value):
    body = copy.deepcopy(LIST)
    *keys, last = path
    target = body
    for key in keys:
        target = target[key]
    target[last] = value
    return body


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("annotations", 0, "category_id"), 3, "annotation 1: category_id 3"),
        (("annotations", 0, "category_id"), [1], r"category_id is \[1\]"),
        (("annotations", 0, "image_id"), 99, "annotation 1: image_id 99"),
        (("annotations", 0, "bbox"), [1, 2, 3], r"annotation 1: bbox \[1, 2, 3\]"),
        (("annotations", 0, "bbox"), [1, 2, None, 4], "annotation 1: column 'bbox'"),
        (("annotations", 0, "bbox"), [381, 126, 422, 171], "annotation 1: box .*leaves the image"),
        (("annotations", 0, "bbox"), [10, 10, 0, 5], "annotation 1: box .*no area"),
        (("images", 2, "file_name"), "../../etc/passwd", "file name '../../etc/passwd'"),
        (("images", 2, "file_name"), None, "file name None"),
        (("images", 2, "file_name"), "health/h0009.png", "'health/h0009.png' is not below"),
        (("images", 2, "width"), "512", "height, width = "),
        (("images", 2, "id"), {}, "id is {}"),
        (("images",), {}, "no list 'images'"),
        (("annotations", 0), "text", "no list 'annotations'"),
    ],
)
def test_bad_entries_are_named(tree, read, path, value, message):
    with pytest.raises(DataError, match=message) as caught:
        read("tbx11k", "TBX11K_train", tree(files(changed(path, value))))
    assert caught.value.file.endswith("TBX11K_train.json")


def test_bad_entries_are_counted_where_that_is_allowed(tree, read):
    report = ReadReport(on_error="skip", published_counts=False)
    root = tree(files(changed(("images", 2, "file_name"), "health/h0009.png")))
    assert len(read("tbx11k", "TBX11K_train", root, report=report)) == 3
    assert report.skipped == {"bad image entry": 1}


@pytest.mark.parametrize("content", ["[]", "{", '{"images"', b"\xff\xfe{}", "[" * 100_000])
def test_what_is_not_the_list_is_refused(tree, read, content):
    with pytest.raises(DataError, match=r"TBX11K_train\.json"):
        read("tbx11k", "TBX11K_train", tree(files(content)))


HEADER = "fname,image_height,image_width,source,bbox,target,tb_type,image_type\n"
SIMPLE = (
    "h0001.png,512,512,train,none,no_tb,none,healthy\n"
    "s0001.png,512,512,train,none,no_tb,none,sick_but_no_tb\n"
    "tb0005.png,512,512,train,\"{'xmin': 381.5, 'ymin': 126.5, 'width': 40.0, 'height': 44.5}\","
    "tb,active_tb,tb\n"
    "tb0005.png,512,512,train,\"{'xmin': 1.0, 'ymin': 2.0, 'width': 3.0, 'height': 4.0}\","
    "tb,latent_tb,tb\n"
    "tb0007.png,512,512,val,\"{'xmin': 1.0, 'ymin': 2.0, 'width': 3.0, 'height': 4.0}\","
    "tb,latent_tb,tb\n"
)


def simplified(rows=SIMPLE, prefix="tbx11k-simplified/"):
    names = ("h0001", "s0001", "tb0005", "tb0007")
    return {f"{prefix}data.csv": HEADER + rows, **{f"{prefix}images/{n}.png": b"" for n in names}}


@pytest.mark.parametrize("prefix", ["", "tbx11k-simplified/"])
def test_simplified_copy_has_the_same_ids(tree, read, prefix):
    root = tree(simplified(prefix=prefix))
    healthy, sick, tb = read("tbx11k", "TBX11K_train", root)
    assert [r["image_id"] for r in (healthy, sick, tb)] == [
        "health/h0001",
        "sick/s0001",
        "tb/tb0005",
    ]
    assert healthy["annotations"] == [] and healthy["labels"].tolist() == [0]
    assert [a["category_id"] for a in tb["annotations"]] == [0, 1]
    assert tb["annotations"][1]["bbox"] == [1, 2, 4, 6]
    assert [r["image_id"] for r in read("tbx11k", "TBX11K_val", root)] == ["tb/tb0007"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{'xmin': 381.5", "__import__('os') or {'xmin': 381.5", "row 4: column 'bbox'"),
        ("'width': 40.0", "'width': wide", "row 4: column 'bbox'"),
        ("active_tb", "uncertain", "row 4: column 'tb_type' holds 'uncertain'"),
        ("no_tb,none,healthy", "tb,none,healthy", "row 2: column 'target' holds 'tb'"),
        ("none,healthy", "none,fine", "row 2: column 'image_type' holds 'fine'"),
        ("512,512,train,none", "x,512,train,none", "row 2: column 'image_height' holds 'x'"),
        ("train,none,no_tb", "training,none,no_tb", "row 2: column 'source'"),
        ("h0001", "h0009", "row 2: image 'h0009.png' is not below"),
    ],
)
def test_bad_rows_of_the_simplified_copy(tree, read, old, new, message):
    with pytest.raises(DataError, match=message):
        read("tbx11k", "TBX11K_train", tree(simplified(SIMPLE.replace(old, new, 1))))


def test_nothing_there(tree, read):
    with pytest.raises(DataError, match="neither annotations/json"):
        read("tbx11k", "TBX11K_train", tree({"readme": ""}))
