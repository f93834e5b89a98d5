from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fx_d2.data.errors import DataError
from fx_d2.data.images import image_size
from fx_d2.data.masks import load_mask
from fx_d2.data.vocabulary import COVID19_SEG_12

HEADER = (
    "#,Taxonomy,Class,Template Name,File Folder,Filename,Image,Tag,Mask,Resolution,Top,Left,"
    "Width,Height,Points,Text Annotation,Minimal Top,Minimal Left,Minimal Width,Minimal Height,"
    "Attributes"
)
SIZE = (30, 40)  # height, width


def row(name, title, mask="", top=0, left=0, width=SIZE[1], height=SIZE[0], size="40x30"):
    cells = ["1", "", f"COVID-19 {title}", title, "", name, "images/x.jpg", "tags/x.png"]
    cells += [mask, size, top, left, width, height, "", "undefined", top, left, width, height, ""]
    return ",".join(map(str, cells))


ROWS = [
    row("a.jpeg", "Left Lung", "masks/l.png", 4, 24, 10, 20),
    row("a.jpeg", "Right Lung", "masks/r.png", 4, 3, 10, 20),
    row("a.jpeg", "Consolidation", "masks/c1.png", 5, 5, 4, 3),
    row("a.jpeg", "Consolidation", "masks/c2.png", 15, 26, 4, 3),
    row("a.jpeg", "Monitoring Probes"),
    row("b-day0-PA.png", "Left Lung", "masks/l.png", 4, 24, 10, 20),
    row("b-day7.png", "Left Lung", "masks/l.png", 4, 24, 10, 20),
]


@pytest.fixture
def tree(tmp_path, put_png):
    root = tmp_path / "covid19_seg"
    for name in ("a.jpeg", "b-day0-PA.png", "b-day7.png"):
        put_png(root / "images" / name, SIZE)
    for name, (height, width) in {"l": (20, 10), "r": (20, 10), "c1": (3, 4), "c2": (3, 4)}.items():
        (root / "masks").mkdir(exist_ok=True)
        crop = np.zeros((height, width, 4), np.uint8)
        crop[..., 3] = 255  # opaque everywhere, also where there is nothing
        crop[1:, 1:, :3] = (0, 40, 255)
        Image.fromarray(crop).save(root / f"masks/{name}.png")
    write(root, ROWS)
    return root


def write(root, rows):
    (root / "structure.csv").write_text("\n".join([HEADER, *rows]) + "\n")


def test_crops_unions_and_what_absence_means(tree, read_source):
    records, _ = read_source("covid19_seg", tree, "all")
    assert [r["image_id"] for r in records] == ["a", "b-day0-PA", "b-day7"]
    first = records[0]
    assert (first["height"], first["width"]) == SIZE
    masks = {name: load_mask(ref, *SIZE) for name, ref in first["masks"].items()}
    assert masks["Left Lung"][5:24, 25:34].all() and masks["Left Lung"].sum() == 19 * 9
    assert masks["Consolidation"].sum() == 2 * 2 * 3  # two rows, one mask
    assert masks["Consolidation"][6, 6] and masks["Consolidation"][16, 27]
    assert not masks["Pneumothorax"].any()  # a finding that is not listed: looked for, not there
    assert "Monitoring Probes" not in masks  # a row without a mask: there, but not outlined
    assert "Cardiomediastinum" not in masks and "Airways" not in masks  # organs are never absent
    assert set(masks) == set(COVID19_SEG_12) - {
        "Monitoring Probes",
        "Cardiomediastinum",
        "Airways",
    }


def test_images_of_one_series_share_a_patient(tree, read_source):
    records, _ = read_source("covid19_seg", tree, "all")
    assert [r["patient_id"] for r in records] == [None, "b", "b"]
    assert [r["view"] for r in records] == [None, "PA", None]


def test_unknown_class_is_told_and_nothing_is_claimed_for_its_image(tree, read_source):
    write(tree, [*ROWS, row("b-day7.png", "Catheter", "masks/c1.png", 1, 1, 4, 3)])
    records, report = read_source("covid19_seg", tree, "all")
    assert any("Catheter" in note for note in report.notes)
    assert set(records[2]["masks"]) == {"Left Lung"}
    assert "Pneumothorax" in records[1]["masks"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("a.jpeg", "Consolidation", "masks/c1.png", 5, 37, 4, 3), "row 4.*crop of 4 x 3"),
        (row("a.jpeg", "Consolidation", "masks/c1.png", -1, 7, 4, 3), "row 4.*'Top'"),
        (row("a.jpeg", "Consolidation", "masks/c1.png", 1.5, 7, 4, 3), "row 4"),
        (row("a.jpeg", "Consolidation", "masks/c1.png", 5, 5, 0, 3), "row 4"),
        (row("a.jpeg", "Consolidation", "masks/gone.png", 5, 5, 4, 3), "row 4.*gone"),
        (row("a.jpeg", "Consolidation", "masks/../../x", 5, 5, 4, 3), "row 4.*x"),
        (row("a.jpeg", "Consolidation", "masks/c1.png", 5, 5, 4, 3, "30x40"), "row 4.*Resolution"),
        (row("a.jpeg", "Consolidation", "masks/c1.png", 5, 5, 4, 3, "40,30"), "row 4"),
    ],
)
def test_bad_rows_drop_their_image(tree, read_source, bad, message):
    write(tree, [*ROWS[:2], bad, *ROWS[3:]])
    with pytest.raises(DataError, match=message) as error:
        read_source("covid19_seg", tree, "all")
    assert "structure.csv" in str(error.value)
    if bad.count(",") != ROWS[0].count(","):
        return  # a row with a cell too many is an error of the whole table
    records, report = read_source("covid19_seg", tree, "all", on_error="skip")
    # Without its bad row the image would claim that there is less consolidation than there is.
    assert [r["image_id"] for r in records] == ["b-day0-PA", "b-day7"]
    assert report.skipped == {"image with a bad row": 1}


def test_missing_image_and_missing_table(tree, read_source):
    (tree / "images/a.jpeg").unlink()
    with pytest.raises(DataError, match=r"row 2.*a\.jpeg"):
        read_source("covid19_seg", tree, "all")
    (tree / "structure.csv").unlink()
    with pytest.raises(DataError, match=r"structure\.csv"):
        read_source("covid19_seg", tree, "all", on_error="skip")


# -- the real sample ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    beside = Path(__file__).resolve().parents[3].parent / "shared/real"
    root = Path(os.environ.get("FX_D2_REAL_SAMPLES", beside)) / "covid19_seg"
    if not (root / "structure.csv").is_file():
        pytest.skip("the real sample is not there")
    return root


def centre(mask):
    """(x, y) of the centre of gravity as shares of the image."""
    ys, xs = np.nonzero(mask)
    return xs.mean() / mask.shape[1], ys.mean() / mask.shape[0]


@pytest.mark.real
def test_real_images(real, read_source):
    records, report = read_source("covid19_seg", real, "all", counts=True)
    assert len(records) == 60
    assert report.notes == ["covid19_seg all/images: found 60, expected 100"]
    n_classes = np.zeros(len(COVID19_SEG_12), int)
    for record in records:
        size = (record["height"], record["width"])
        assert image_size(record["file_name"]) == size
        masks = {name: load_mask(ref, *size) for name, ref in record["masks"].items()}
        assert all(mask.shape == size for mask in masks.values())
        n_classes += [bool(name in masks and masks[name].any()) for name in COVID19_SEG_12]
        left, heart = masks["Left Lung"], masks["Cardiomediastinum"]
        assert 0.02 < left.mean() < 0.5 and 0.02 < heart.mean() < 0.5
        if "Right Lung" not in masks:  # one image has no row for it
            assert record["image_id"] == "acute-respiratory-distress-syndrome-ards-1"
            continue
        right = masks["Right Lung"]
        assert centre(left)[0] > 0.5 > centre(right)[0] > 0.1  # the patient's left: right side
        assert (left & right).sum() < 0.01 * (left | right).sum()
        lungs = left | right
        opacity = masks.get("Ground Glass Opacities", np.zeros(size, bool))
        if opacity.mean() > 1e-4:  # one image has a stray click of 9 pixels
            assert (opacity & lungs).sum() > 0.5 * opacity.sum()
    assert n_classes.tolist() == [60, 59, 60, 59, 57, 22, 1, 7, 5, 5, 7, 10]
