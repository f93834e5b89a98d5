"""What is drawn is where it belongs, and the legend says what cannot be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ImageDraw

from fx_d2.data import draw
from fx_d2.data.draw import (
    Scene,
    colour_of,
    contact_sheet,
    display,
    draw_record,
    draw_scene,
    scene_of_record,
    scene_of_sample,
)

GREY = np.full((100, 100), 0.5, dtype=np.float32)
TOP = 22  # the title's row is below this at size 200


def texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Everything that is written from now on."""
    written: list[str] = []
    original = ImageDraw.ImageDraw.text

    def note(self: Any, xy: Any, text: str, *args: Any, **kwargs: Any) -> None:
        written.append(text)
        original(self, xy, text, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", note)
    return written


def coloured(picture: np.ndarray) -> np.ndarray:
    """Pixels that are not grey."""
    return np.ptp(picture.astype(int), axis=2) > 25


def test_a_picture_without_annotations_stays_grey() -> None:
    picture = draw_scene(Scene(GREY), size_px=200)
    assert picture.shape == (200, 200, 3) and picture.dtype == np.uint8
    assert not coloured(picture).any()
    assert abs(int(picture[100, 100, 0]) - 128) <= 1


def test_a_box_is_drawn_on_its_border_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    written = texts(monkeypatch)
    scene = Scene(GREY, boxes=[("Nodule", (40.0, 50.0, 80.0, 90.0), " x3")])
    picture = draw_scene(scene, ["Nodule"], size_px=200)[:, :200]
    seen = coloured(picture)
    assert seen[102:178, 80].mean() > 0.9 and seen[180, 82:158].mean() > 0.9
    assert not seen[110:170, 90:150].any()
    assert "Nodule x3" in written and "Nodule" in written


def test_a_mask_is_painted_where_it_is_and_stays_transparent() -> None:
    ramp = np.tile(np.linspace(0, 1, 100, dtype=np.float32), (100, 1))
    mask = np.zeros((100, 100), dtype=bool)
    mask[20:40, 10:90] = True
    picture = draw_scene(Scene(ramp, masks={"Lung": mask}), size_px=200)[:, :200]
    seen = coloured(picture)
    assert seen[44:76, 24:176].all()
    assert not seen[90:, :].any() and not seen[:36].any()
    assert picture[60, 170].sum() > picture[60, 30].sum() + 100  # the image shows through


def test_the_first_of_two_overlapping_masks_is_still_to_be_seen() -> None:
    big, small = np.zeros((2, 100, 100), dtype=bool)
    big[10:90, 10:90] = True
    small[40:60, 40:60] = True
    picture = draw_scene(Scene(GREY, masks={"Small": small, "Big": big}), size_px=100)[:, :100]
    assert np.abs(picture[50, 50].astype(int) - picture[25, 25]).max() > 15


def test_labels_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    written = texts(monkeypatch)
    labels = {"Mass": 1.0, "Edema": -1.0, "Hernia": 0.0, "Nodule": float("nan"), "Soft": 0.7}
    draw_scene(Scene(GREY, labels=labels))
    assert "+ Mass" in written and "? Edema (uncertain)" in written and "~ Soft 0.70" in written
    assert "1 not annotated" in written
    assert not any("Hernia" in text for text in written)


def test_nothing_known_is_not_nothing_found(monkeypatch: pytest.MonkeyPatch) -> None:
    written = texts(monkeypatch)
    draw_scene(Scene(GREY, labels={"Mass": float("nan")}))
    assert "all not annotated" in written and "all negative" not in written
    draw_scene(Scene(GREY, labels={"Mass": 0.0}))
    assert "all negative" in written


def test_names_of_boxes_do_not_cover_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[tuple[float, ...]] = []
    original = ImageDraw.ImageDraw.rectangle

    def note(self: Any, xy: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("width") is None:
            places.append(tuple(xy))
        original(self, xy, *args, **kwargs)

    monkeypatch.setattr(ImageDraw.ImageDraw, "rectangle", note)
    boxes = [("A long name", (30.0, 40.0 + i, 60.0, 80.0), "") for i in range(4)]
    draw_scene(Scene(GREY, boxes=boxes), size_px=400)
    assert len(places) == 4
    for i, a in enumerate(places):
        assert not any(draw._meet(a, b) for b in places[:i])


def test_colours_of_classes_differ() -> None:
    colours = np.array([colour_of(i) for i in range(20)])
    apart = np.abs(colours[:, None] - colours[None]).sum(axis=2)
    assert apart[~np.eye(20, dtype=bool)].min() > 30
    assert apart[:8, :8][~np.eye(8, dtype=bool)].min() > 90


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_image_can_be_displayed(value: float) -> None:
    shown = display(np.full((10, 10), value, dtype=np.float32))
    assert np.isfinite(shown).all() and 0 <= shown.min() <= shown.max() <= 1


def test_a_record_is_drawn_with_everything_it_has(toy: Any, monkeypatch: Any) -> None:
    written = texts(monkeypatch)
    record = next(r for r in toy.records if r.get("annotations"))
    scene = scene_of_record(record, toy.source)
    assert set(scene.masks) == {"Left Lung", "Right Lung"}
    assert len(scene.boxes) == len(scene.outlines) == 1
    picture = draw_record(record, toy.source, size_px=300)
    assert max(picture.shape[:2]) >= 300 and coloured(picture).any()
    assert any(record["image_id"] in text for text in written)
    bare = next(r for r in toy.records if "annotations" not in r)
    assert "boxes: not annotated" in scene_of_record(bare, toy.source).notes


def test_a_mapped_sample_is_drawn_as_the_model_sees_it(toy: Any, fx_cfg: Any) -> None:
    from fx_d2.data.mapper import FxMapper

    mapper = FxMapper(fx_cfg, is_train=False)
    record = next(r for r in toy.records if r.get("annotations"))
    sample = mapper(record, ("loc", "seg"), (0,))
    scene = scene_of_sample(sample, toy.source)
    assert scene.image.shape == tuple(sample["image"].shape[1:])
    assert set(scene.masks) == {"Left Lung", "Right Lung"}  # the heart is not annotated
    (name, box, _), (outline_name, mask) = scene.boxes[0], scene.outlines[0]
    assert name == outline_name == toy.source.thing_classes[record["annotations"][0]["category_id"]]
    columns = np.flatnonzero(mask.any(0))
    assert abs(columns[0] - box[0]) <= 1.5 and abs(columns[-1] + 1 - box[2]) <= 1.5
    assert coloured(draw_scene(scene, size_px=200)).any()


def test_a_sheet_holds_all_pictures_in_order() -> None:
    pictures = [np.full((20 + i, 30, 3), 40 * (i + 1), dtype=np.uint8) for i in range(5)]
    sheet = contact_sheet(pictures, columns=2, gap_px=4)
    assert sheet.shape == (4 + 25 + 27 + 28, 2 * 34 + 4, 3)
    assert (sheet[4:24, 4:34] == 40).all() and (sheet[4:25, 38:68] == 80).all()
    assert (sheet[-28 : -28 + 24, 4:34] == 200).all()
    with pytest.raises(ValueError, match="no picture"):
        contact_sheet([])


def test_pictures_are_written_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fx_d2.data import atomic

    target = tmp_path / "deep" / "a.txt"
    atomic.write_atomically(target, "old")
    monkeypatch.setattr(atomic.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        atomic.write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [p.name for p in target.parent.iterdir()] == ["a.txt"]
