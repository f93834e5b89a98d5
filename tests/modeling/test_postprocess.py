from __future__ import annotations

import numpy as np
import pytest
import torch
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.layers import paste_masks_in_image
from detectron2.structures import Boxes, Instances

from fx_d2.modeling.postprocess import BoxMasks, original_instances, original_masks


def detections(boxes, size=(32, 64), masks=True):
    found = Instances(size)
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.linspace(0.9, 0.1, len(found.pred_boxes))
    found.pred_classes = torch.arange(len(found.pred_boxes))
    if masks:
        found.pred_masks = torch.ones(len(found.pred_boxes), 1, 28, 28)
    return found


def test_boxes_are_scaled_from_the_content_to_the_original():
    found = original_instances(detections([[0, 0, 64, 32], [16, 8, 32, 16]]), 320, 128)
    assert found.image_size == (320, 128)
    assert found.pred_boxes.tensor.tolist() == [[0, 0, 128, 320], [32, 80, 64, 160]]
    assert found.scores.tolist() == pytest.approx([0.9, 0.1])


def test_empty_boxes_are_dropped_with_their_masks_and_the_input_is_kept():
    given = detections([[5, 5, 5, 9], [16, 8, 32, 16]])
    found = original_instances(given, 64, 128)
    assert len(found) == len(found.pred_masks) == 1 and found.pred_classes.tolist() == [1]
    assert given.pred_boxes.tensor[1].tolist() == [16, 8, 32, 16]


def test_a_mask_covers_its_box_in_the_original():
    found = original_instances(detections([[16, 8, 32, 16], [0, 0, 8, 8]]), 320, 640)
    mask = found.pred_masks[0]
    assert mask.shape == (320, 640) and mask.dtype == torch.bool
    expected = torch.zeros(320, 640, dtype=torch.bool)
    expected[80:160, 160:320] = True
    # Within a cell of the 28 x 28 map at each side, where ones fade to the outside.
    assert (mask & ~expected).sum() == 0 and (mask & expected).sum() > 0.97 * expected.sum()


def test_box_masks_behave_as_detectron2s_tensor():
    torch.manual_seed(0)
    maps, boxes = (
        torch.rand(3, 14, 14),
        torch.tensor([[2.0, 3, 20, 30], [5, 5, 9, 9], [0, 0, 40, 39]]),
    )
    lazy = BoxMasks(maps, boxes, (40, 50))
    plain = paste_masks_in_image(maps, boxes, (40, 50))
    assert lazy.shape == plain.shape == (3, 40, 50) and len(lazy) == 3
    assert torch.equal(lazy.tensor(), plain) and np.array_equal(np.asarray(lazy), plain.numpy())
    assert torch.equal(lazy[-1], plain[-1])
    assert [torch.equal(a, b) for a, b in zip(lazy, plain, strict=True)] == [True] * 3
    for keep in (slice(1, 3), torch.tensor([True, False, True]), torch.tensor([2, 0])):
        assert torch.equal(lazy[keep].tensor(), plain[keep])
    with pytest.raises(IndexError):
        lazy[3]
    none = lazy[:0]
    assert none.tensor().shape == (0, 40, 50) and none.tensor().dtype == torch.bool
    assert torch.equal(
        BoxMasks(maps, boxes, (40, 50), 0.9).tensor(),
        paste_masks_in_image(maps, boxes, (40, 50), 0.9),
    )


def test_hundred_masks_of_a_large_image_take_little_until_asked_for():
    boxes = torch.tensor([[0.0, 0.0, 64.0, 32.0]]).repeat(100, 1)
    found = original_instances(detections(boxes.tolist()), 3000, 2500).to("cpu")[:90]
    assert found.pred_masks.shape == (90, 3000, 2500)
    assert found.pred_masks.maps.numel() == 90 * 28 * 28
    assert found.pred_masks[89].float().mean() > 0.9


def test_detectron2s_exporter_takes_them():
    found = original_instances(detections([[16, 8, 32, 16]]), 64, 128)
    (row,) = instances_to_coco_json(found, "image")
    assert row["bbox"] == [32, 16, 32, 16] and row["segmentation"]["size"] == [64, 128]


def test_dense_masks_undo_padding_and_stretching():
    probabilities = torch.zeros(2, 64, 64)
    probabilities[0, 16:32, 8:24] = 1.0  # content is 32 x 64: lower half, columns 1/8 to 3/8
    probabilities[:, 32:] = 1.0  # padding
    masks = original_masks(probabilities, ("a", "b"), (32, 64), 320, 128)
    expected = torch.zeros(320, 128, dtype=torch.bool)
    expected[160:320, 16:48] = True
    assert masks["a"].shape == (320, 128) and masks["a"].dtype == torch.bool
    assert (masks["a"] ^ expected).float().mean() < 0.02
    assert not masks["b"].any()


def test_soft_masks_and_the_threshold():
    probabilities = torch.full((1, 8, 8), 0.3)
    soft = original_masks(probabilities, ("a",), (8, 8), 20, 10, soft=True)["a"]
    assert soft.dtype == torch.float16 and soft.float().mean().item() == pytest.approx(
        0.3, abs=1e-3
    )
    assert not original_masks(probabilities, ("a",), (8, 8), 20, 10)["a"].any()
    assert original_masks(probabilities, ("a",), (8, 8), 20, 10, threshold=0.2)["a"].all()
