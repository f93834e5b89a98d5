"""From a record to what a model gets: image, boxes and masks, on one another."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks
from mapper_settings import plain, position

from fx_d2.data import masks as masks_module
from fx_d2.data.errors import DataError
from fx_d2.data.mapper import FxMapper
from fx_d2.data.masks import encode_mask, load_mask
from fx_d2.data.sources import SOURCES


def test_the_dict_a_model_gets(toy, fx_cfg):
    record = toy.records[1]
    result = FxMapper(fx_cfg, True)(record, "cls", position())
    assert result["image"].shape == (3, 64, 64) and result["image"].dtype == torch.float32
    assert result["image"].min() >= 0 and result["image"].max() <= 1
    assert torch.equal(result["image"][0], result["image"][2])
    assert (result["height"], result["width"]) == (record["height"], record["width"])
    assert {k: result[k] for k in ("image_id", "file_name", "source", "task", "content_size")} == {
        "image_id": record["image_id"],
        "file_name": record["file_name"],
        "source": "toy_chest",
        "task": "cls",
        "content_size": (64, 64),
    }
    assert "instances" not in result and "sem_masks" not in result


def test_classification_decodes_no_mask(toy, fx_cfg, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("a mask was decoded")

    monkeypatch.setattr(masks_module, "_decode", forbidden)
    mapper = FxMapper(fx_cfg, True)
    mapper(toy.records[1], "cls", position())
    with pytest.raises(AssertionError, match="decoded"):
        mapper(toy.records[1], "seg", position())


def test_one_channel(toy, fx_cfg):
    fx_cfg.INPUT.FX.CHANNELS = 1
    assert FxMapper(fx_cfg, True)(toy.records[0], "cls", position())["image"].shape[0] == 1
    fx_cfg.INPUT.FX.CHANNELS = 2
    with pytest.raises(ValueError, match="CHANNELS"):
        FxMapper(fx_cfg, True)


def test_sixteen_bits_do_not_saturate(tmp_path, toy, fx_cfg):
    ramp = np.linspace(0, 65535, 300 * 300).reshape(300, 300)
    path = tmp_path / "deep.png"
    assert cv2.imwrite(str(path), ramp.astype(np.uint16))
    fx_cfg.INPUT.FX.SIZE = 300
    record = {**toy.records[0], "file_name": str(path), "height": 300, "width": 300}
    image = FxMapper(plain(fx_cfg), True)(record, "cls", position())["image"][0].numpy()
    assert len(np.unique(image)) > 60_000
    assert (image >= 1).mean() < 0.01 and (image <= 0).mean() < 0.01
    assert abs(image.mean() - 0.5) < 0.01


def test_training_and_evaluation_see_the_same_grey_values(toy, fx_cfg):
    seen = []
    for change in (
        {},
        {"MODE": "depth"},
        {"LOW": 20.0},
        {"HIGH": 60.0},
        {"GAMMA": 2.0},
        {"CLAHE": 2.0},
    ):
        cfg = plain(fx_cfg.clone())
        for key, value in change.items():
            cfg.INPUT.FX.INTENSITY[key] = value
        trained, evaluated = (
            FxMapper(cfg, is_train)(toy.records[3], "cls", position())["image"]
            for is_train in (True, False)
        )
        assert torch.equal(trained, evaluated), change
        seen.append(trained)
    for number, image in enumerate(seen):  # each setting of the config counts
        assert not any(torch.equal(image, other) for other in seen[:number])


def test_boxes_and_masks_of_a_resized_image(toy, fx_cfg):
    record = toy.records[1]
    result = FxMapper(plain(fx_cfg), True)(record, "loc", position())
    scale = np.array([64 / record["width"], 64 / record["height"]] * 2)
    want = np.array(record["annotations"][0]["bbox"]) * scale
    np.testing.assert_allclose(result["instances"].gt_boxes.tensor[0].numpy(), want, rtol=1e-5)
    assert isinstance(result["instances"].gt_masks, BitMasks)
    found = result["instances"].gt_masks.get_bounding_boxes().tensor[0].numpy()
    assert np.abs(found - want).max() < 1.0
    assert result["instances"].gt_classes.tolist() == [1]
    assert result["instances"].image_size == (64, 64)


def test_everything_moves_with_the_image(toy, augmented_cfg):
    """A mask, its box and a bright patch painted in the image stay on one another."""
    mapper = FxMapper(augmented_cfg, True)
    for task in ("LOC", "SEG"):  # grey changes would only blur the comparison
        augmented_cfg.INPUT.FX.AUG[task].GREY_PROB = 0.0
    h = w = 200
    mask = cv2.ellipse(np.zeros((h, w), np.uint8), (120, 90), (30, 18), 20, 0, 360, 1, -1).astype(
        bool
    )
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = [float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]
    path = toy.folder / "patch.png"
    assert cv2.imwrite(str(path), mask.astype(np.uint8) * 255)
    note = {"bbox": box, "bbox_mode": 0, "category_id": 0, "segmentation": encode_mask(mask)}
    record = {
        **toy.records[0],
        **{"file_name": str(path), "height": h, "width": w, "annotations": [note]},
        "masks": {"Heart": encode_mask(mask)},
    }
    augmented_cfg.INPUT.FX.INTENSITY.MODE = "depth"
    mapper = FxMapper(augmented_cfg, True)
    seen = set()
    for number in range(25):
        result = mapper(record, ("loc", "seg"), position(number))
        bright = result["image"][0].numpy() > 0.5
        moved = result["sem_masks"][2].bool().numpy()
        assert (bright ^ moved).sum() <= 0.12 * bright.sum() + 2
        if bright.sum() < 20:
            continue
        assert len(result["instances"]) == 1
        assert torch.equal(result["instances"].gt_masks.tensor[0], torch.from_numpy(moved))
        rows, columns = np.flatnonzero(moved.any(1)), np.flatnonzero(moved.any(0))
        tight = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        found = result["instances"].gt_boxes.tensor[0].numpy()
        assert np.abs(found - tight).max() <= 1.01
        seen.add(tuple(found.round()))
    assert len(seen) > 15  # the draws differ


@pytest.mark.parametrize("resize", ["square", "keep"])
def test_boxes_end_at_the_border_and_go_when_they_are_outside(toy, fx_cfg, monkeypatch, resize):
    monkeypatch.setitem(SOURCES, "toy_chest", replace(toy.source, instance_masks=False))
    fx_cfg.INPUT.FX.RESIZE = resize
    record = dict(toy.records[1])
    h, w = record["height"], record["width"]
    boxes = [[0.0, 0.0, float(w), float(h)], [0.0, 0.0, 4.0, 4.0]]
    record["annotations"] = [{"bbox": b, "bbox_mode": 0, "category_id": 0} for b in boxes]
    mapper = FxMapper(plain(fx_cfg, CROP_SCALE=(0.3, 0.5), SHIFT=0.1, SCALE=0.3), True)
    counts = []
    for number in range(20):
        result = mapper(record, "loc", position(number))
        rows, columns = result["content_size"]
        found = result["instances"].gt_boxes.tensor
        assert (found >= 0).all()
        assert (found[:, 2] <= columns).all() and (found[:, 3] <= rows).all()
        assert (found[:, 2:] - found[:, :2] >= 1).all()
        counts.append(len(found))
    assert set(counts) == {1, 2}  # the corner is cropped away now and then


def test_segmentation_may_be_any_reference(toy, fx_cfg):
    record = dict(toy.records[1])
    h, w = record["height"], record["width"]
    ring = [20.0, 20.0, 50.0, 20.0, 50.0, 40.0, 20.0, 40.0]
    filled = load_mask({"polygons": [ring]}, h, w)
    forms = [
        [ring],
        {"size": [h, w], "polygons": [ring]},
        encode_mask(filled),
        {"union": [encode_mask(filled)]},
    ]
    note = {"bbox": [20.0, 20.0, 51.0, 41.0], "bbox_mode": 0, "category_id": 0}
    record["annotations"] = [{**note, "segmentation": form} for form in forms]
    masks = FxMapper(plain(fx_cfg), True)(record, "loc", position())["instances"].gt_masks.tensor
    assert masks[0].sum() > 100
    for other in masks[1:]:
        assert torch.equal(masks[0], other)


def test_images_without_findings_are_kept_and_unknown_is_not_empty(toy, fx_cfg):
    mapper = FxMapper(fx_cfg, True)
    empty = mapper(toy.records[0], "loc", position())
    assert len(empty["instances"]) == 0 and empty["instances"].gt_boxes.tensor.shape == (0, 4)
    assert empty["instances"].gt_masks.tensor.shape == (0, 64, 64)
    assert empty["instances"].gt_classes.dtype == torch.int64
    assert "annotations" not in toy.records[3]
    assert "instances" not in mapper(toy.records[3], "loc", position())


def test_masks_not_annotated_are_marked(toy, fx_cfg):
    mapper = FxMapper(fx_cfg, True)
    result = mapper(toy.records[0], "seg", position())
    assert result["sem_masks"].dtype == torch.uint8 and result["sem_masks"].shape == (3, 64, 64)
    assert result["sem_known"].tolist() == [True, True, False]
    assert not result["sem_masks"][2].any()
    record = {k: v for k, v in toy.records[0].items() if k != "masks"}
    assert not mapper(record, "seg", position())["sem_known"].any()
    record["masks"] = {"Heart": encode_mask(np.zeros((record["height"], record["width"]), bool))}
    result = mapper(record, "seg", position())
    assert result["sem_known"].tolist() == [False, False, True] and not result["sem_masks"].any()


def test_a_flip_swaps_left_and_right(toy, fx_cfg):
    record = {**toy.records[1], "labels": np.array([1, 0, np.nan], np.float32)}
    straight = FxMapper(plain(fx_cfg), True)(record, ("cls", "loc", "seg"), position())
    flipped = FxMapper(plain(fx_cfg, FLIP=1.0), True)(record, ("cls", "loc", "seg"), position())
    assert torch.equal(flipped["image"], straight["image"].flip(-1))
    assert straight["labels"][:2].tolist() == [1, 0] and flipped["labels"][:2].tolist() == [0, 1]
    assert torch.isnan(flipped["labels"][2])
    # "Left Nodule" (1) has become "Right Nodule" (2), at the mirrored place
    assert straight["instances"].gt_classes.tolist() == [1]
    assert flipped["instances"].gt_classes.tolist() == [2]
    mirrored = 64 - straight["instances"].gt_boxes.tensor[:, [2, 1, 0, 3]]
    mirrored[:, [1, 3]] = straight["instances"].gt_boxes.tensor[:, [1, 3]]
    torch.testing.assert_close(flipped["instances"].gt_boxes.tensor, mirrored)
    # the left lung's channel still holds the lung that lies on the image's right
    for result in (straight, flipped):
        columns = torch.arange(64.0)
        left, right = (m.sum(0) @ columns / m.sum() for m in result["sem_masks"][:2].float())
        assert left > 32 > right
    assert torch.equal(flipped["sem_masks"][0], straight["sem_masks"][1].flip(-1))


def test_a_flip_carries_what_is_known(toy, fx_cfg):
    record = {**toy.records[1]}
    record["masks"] = {"Left Lung": record["masks"]["Left Lung"]}
    result = FxMapper(plain(fx_cfg, FLIP=1.0), True)(record, "seg", position())
    assert result["sem_known"].tolist() == [False, True, False]
    assert result["sem_masks"][1].any() and not result["sem_masks"][0].any()


def test_check_finds_a_flip_without_counterpart(fx_cfg):
    lonely = replace(SOURCES["montgomery"], seg_classes=("Left Lung",))
    mapper = FxMapper(plain(fx_cfg, FLIP=0.5), True)
    with pytest.raises(ValueError, match="FLIP"):
        mapper.check(lonely, "seg")
    FxMapper(plain(fx_cfg), True).check(lonely, "seg")


def test_another_size_than_the_index_states(toy, fx_cfg):
    record = {**toy.records[0], "height": 512, "width": 512}
    with pytest.raises(DataError) as caught:
        FxMapper(fx_cfg, True)(record, "cls", position())
    line = str(caught.value)
    assert record["file_name"] in line and "512 x 512" in line and "toy0" in line
    assert "\n" not in line
    unknown = {k: v for k, v in record.items() if k not in ("height", "width")}
    result = FxMapper(fx_cfg, True)(unknown, "cls", position())
    assert (result["height"], result["width"]) == (
        toy.records[0]["height"],
        toy.records[0]["width"],
    )


def test_a_mask_that_does_not_fit_names_the_image(toy, fx_cfg):
    record = {**toy.records[0], "masks": {"Heart": {"size": [5, 5], "counts": [25]}}}
    with pytest.raises(DataError) as caught:
        FxMapper(fx_cfg, True)(record, "seg", position())
    assert record["file_name"] in str(caught.value) and "toy0" in str(caught.value)


def test_keep_pads_and_says_where_the_image_ends(toy, fx_cfg):
    record = toy.records[1]
    fx_cfg.INPUT.FX.RESIZE = "keep"
    result = FxMapper(plain(fx_cfg), True)(record, ("loc", "seg"), position())
    h, w = result["content_size"]
    assert result["image"].shape == (3, 64, 64) and max(h, w) == 64
    assert abs(h / w - record["height"] / record["width"]) < 0.03
    assert not result["image"][:, h:].any() and not result["image"][:, :, w:].any()
    assert not result["sem_masks"][:, h:].any() and not result["sem_masks"][:, :, w:].any()
    scale = np.array([w / record["width"], h / record["height"]] * 2)
    want = np.array(record["annotations"][0]["bbox"]) * scale
    np.testing.assert_allclose(result["instances"].gt_boxes.tensor[0].numpy(), want, rtol=1e-5)


def test_padding_stays_black_whatever_the_augmentation(toy, augmented_cfg):
    augmented_cfg.INPUT.FX.RESIZE = "keep"
    for task in ("CLS", "LOC", "SEG"):
        augmented_cfg.INPUT.FX.AUG[task].GREY_PROB = 1.0
    mapper = FxMapper(augmented_cfg, True)
    padded = 0
    for number in range(20):
        result = mapper(toy.records[1], ("loc", "seg"), position(number))
        h, w = result["content_size"]
        for plane in (result["image"], result["sem_masks"]):
            assert not plane[:, h:].any() and not plane[:, :, w:].any()
        padded += min(h, w) < 64
    assert padded > 10


def test_evaluation_makes_targets_only_when_asked(toy, fx_cfg):
    tasks = ("cls", "loc", "seg")
    without = FxMapper(fx_cfg, False, targets=False)(toy.records[1], tasks, position())
    assert "labels" in without and "instances" not in without and "sem_masks" not in without
    assert without["task"] == tasks
    assert "instances" in FxMapper(fx_cfg, False)(toy.records[1], tasks, position())


def test_boxes_thinner_than_the_limit_go(toy, fx_cfg):
    record = {**toy.records[1]}
    h, w = record["height"], record["width"]
    speck = np.zeros((h, w), bool)
    speck[5, 5] = True
    note = {"bbox": [5.0, 5.0, 5.5, 30.0], "bbox_mode": 0, "category_id": 0}
    record["annotations"] = [{**note, "segmentation": encode_mask(speck)}, *record["annotations"]]
    result = FxMapper(plain(fx_cfg), True)(record, "loc", position())["instances"]
    assert len(result) == 1 and result.gt_classes.tolist() == [1]
