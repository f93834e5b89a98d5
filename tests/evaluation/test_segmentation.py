"""Dense masks: figures by hand, conventions for empty masks, boundary distances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_evaluation import SIZE, box_mask, record, run, truth_of

from fx_d2.data.masks import encode_mask
from fx_d2.evaluation import SegmentationEvaluator
from fx_d2.evaluation.segmentation import hd95

EMPTY = np.zeros(SIZE, dtype=bool)
KEY = "toy_eval/seg"


def _evaluate(truths: list[dict], said: list[dict], **options):
    records = [
        record(i, masks={k: encode_mask(v) for k, v in masks.items()})
        for i, masks in enumerate(truths)
    ]
    evaluator = SegmentationEvaluator(truth_of(records), **options)
    return run(evaluator, records, "masks", said)


def test_figures_by_hand() -> None:
    square = box_mask([0, 0, 10, 10])  # 100 pixels
    half = box_mask([0, 0, 10, 5])  # 50 of them
    large = box_mask([0, 0, 20, 20])  # 400
    truths = [
        {"Lung": square, "Heart": EMPTY},
        {"Lung": large, "Heart": EMPTY},
        {"Lung": EMPTY, "Heart": square},
        {"Lung": EMPTY},  # the heart is not annotated here: whatever is said counts nowhere
    ]
    said = [
        {"Lung": half, "Heart": EMPTY},  # Dice 100 / 150
        {"Lung": large, "Heart": square},  # Dice 1; a false mark of 100
        {"Lung": EMPTY, "Heart": EMPTY},  # empty and empty; missed
        {"Lung": half, "Heart": large},  # a false mark of 50
    ]
    results = _evaluate(truths, said)
    figures = results[KEY]
    assert figures["Dice-Lung"] == pytest.approx((2 / 3 + 1 + 1 + 0) / 4)
    assert figures["IoU-Lung"] == pytest.approx((1 / 2 + 1 + 1 + 0) / 4)
    assert figures["Dice_positive-Lung"] == pytest.approx((2 / 3 + 1) / 2)
    assert figures["IoU_positive-Lung"] == pytest.approx(3 / 4)
    assert figures["Dice_pooled-Lung"] == pytest.approx(2 * 450 / (500 + 500))
    assert figures["IoU_pooled-Lung"] == pytest.approx(450 / 550)
    assert figures["empty_predictor-Lung"] == 0.5
    assert figures["Dice-Heart"] == pytest.approx(1 / 3)
    assert figures["Dice_positive-Heart"] == 0
    assert figures["empty_predictor-Heart"] == pytest.approx(2 / 3)
    assert figures["Dice"] == pytest.approx((figures["Dice-Lung"] + figures["Dice-Heart"]) / 2)
    counts = results.notes[KEY]["images_with_and_without_truth"]
    assert counts == {"Lung": [2, 2], "Heart": [1, 2]}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6))
def test_properties_of_overlap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = [rng.random(SIZE) < rng.choice([0, 0.01, 0.5]) for _ in range(6)]
    truths = [{"Lung": m} for m in masks[:3]]
    said = [{"Lung": m, "Heart": EMPTY} for m in masks[3:]]
    figures = _evaluate(truths, said)[KEY]
    swapped = _evaluate(
        [{"Lung": s["Lung"]} for s in said], [{**t, "Heart": EMPTY} for t in truths]
    )
    assert figures["Dice"] == pytest.approx(swapped[KEY]["Dice"])
    assert 0 <= figures["IoU"] <= figures["Dice"] <= 1
    perfect = _evaluate(truths, [{**t, "Heart": EMPTY} for t in truths])[KEY]
    assert all(v == 1 for k, v in perfect.items() if k.startswith(("Dice", "IoU")))
    nothing = _evaluate(truths, [{"Lung": EMPTY, "Heart": EMPTY}] * 3)[KEY]
    assert nothing["Dice"] == nothing["IoU"] == nothing["empty_predictor"]
    assert nothing.get("Dice_positive", 0) == 0


def test_a_class_without_truth_or_never_annotated_is_named() -> None:
    results = _evaluate([{"Lung": EMPTY}], [{"Lung": EMPTY, "Heart": EMPTY}])
    assert results[KEY]["Dice"] == results[KEY]["empty_predictor"] == 1
    assert not [k for k in results[KEY] if "positive" in k or "pooled" in k or "Heart" in k]
    assert results.notes[KEY]["left_out"] == {
        "no truth, positive and pooled figures": ["Lung"],
        "never annotated": ["Heart"],
    }
    assert _evaluate([], [])[KEY] == {}


def test_pixels_that_a_record_ignores_are_neither_right_nor_wrong() -> None:
    true, ignored = box_mask([0, 0, 10, 10]), box_mask([10, 0, 20, 10])
    both = true | ignored
    marked = record(
        0, masks={"Lung": encode_mask(true)}, ignore_masks={"Lung": encode_mask(ignored)}
    )
    for said in (true, both):
        evaluator = SegmentationEvaluator(truth_of([marked]))
        assert run(evaluator, [marked], "masks", [{"Lung": said, "Heart": EMPTY}])[KEY]["IoU"] == 1
    plain = _evaluate([{"Lung": true}], [{"Lung": both, "Heart": EMPTY}])
    assert plain[KEY]["IoU"] == 0.5


def test_records_without_masks_are_passed_over_without_a_prediction() -> None:
    records = [record(0)]
    evaluator = SegmentationEvaluator(truth_of(records))
    evaluator.process(records, [{}])
    assert evaluator.evaluate()[KEY] == {}


def test_probabilities_tensors_and_booleans_are_the_same() -> None:
    square = box_mask([5, 5, 20, 25])
    kinds = [square, torch.from_numpy(square), square * np.float32(0.5), square.astype(np.uint8)]
    kinds.append(torch.from_numpy(square) * 0.5)
    for said in kinds:
        figures = _evaluate([{"Lung": square}], [{"Lung": said, "Heart": EMPTY}])[KEY]
        assert figures["Dice"] == 1
    low = {"Lung": square * 0.4, "Heart": EMPTY}
    assert _evaluate([{"Lung": square}], [low])[KEY]["Dice"] == 0
    assert _evaluate([{"Lung": square}], [low], threshold=0.4)[KEY]["Dice"] == 1


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'Lung'.*image0.*\(3, 3\).*\(60, 80\)"):
        _evaluate([{"Lung": EMPTY}], [{"Lung": np.zeros((3, 3), bool), "Heart": EMPTY}])


def test_hd95_of_shifted_squares_and_points() -> None:
    square, moved = box_mask([10, 10, 20, 20]), box_mask([14, 10, 24, 20])
    assert hd95(square, square) == 0
    assert hd95(square, moved) == 4
    point, other = box_mask([0, 0, 1, 1]), box_mask([3, 4, 4, 5])
    assert hd95(point, other) == 5
    with pytest.raises(ValueError, match="foreground"):
        hd95(point, EMPTY)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_hd95_equals_distances_between_all_outline_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    low = rng.integers(1, 40, (2, 2))
    a, b = (box_mask([*at, *(at + rng.integers(1, 20, 2))]) for at in low)

    def outline(mask: np.ndarray) -> np.ndarray:
        inner = np.pad(mask, 1)
        whole = inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        return np.argwhere(mask & ~whole)

    far = np.linalg.norm(outline(a)[:, None] - outline(b)[None], axis=2)
    expected = max(np.percentile(far.min(axis=1), 95), np.percentile(far.min(axis=0), 95))
    assert hd95(a, b) == pytest.approx(expected)
    assert hd95(a, b) == hd95(b, a)


def test_hd95_counts_misses_apart() -> None:
    square, moved = box_mask([10, 10, 20, 20]), box_mask([14, 10, 24, 20])
    truths = [{"Lung": square}, {"Lung": square}, {"Lung": EMPTY}]
    said = [{"Lung": m, "Heart": EMPTY} for m in (moved, EMPTY, EMPTY)]
    figures = _evaluate(truths, said, hd95=True)[KEY]
    assert figures["HD95"] == 4 and figures["HD95_undefined"] == 0.5
    missed = _evaluate(truths[:1], said[1:2], hd95=True)[KEY]
    assert "HD95" not in missed and missed["HD95_undefined"] == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 1), st.floats(0, 1))
def test_iou_is_dice_by_two_less_dice_in_every_image(seed: int, first: float, second: float):
    """The document of the hybrid network has IoU above Dice in all of its 15 rows."""
    rng = np.random.default_rng(seed)
    truths = [{"Lung": rng.random(SIZE) < first, "Heart": EMPTY} for _ in range(3)]
    said = [{"Lung": rng.random(SIZE) < second, "Heart": EMPTY} for _ in range(3)]
    rows = _evaluate(truths, said).per_image["toy_eval_test_seg"].rows()
    assert len(rows) == 6
    for row in rows:
        dice, iou = float(row["dice"]), float(row["iou"])
        assert iou == pytest.approx(dice / (2 - dice), abs=1e-6) and iou <= dice


def test_cross_entropy_is_that_of_torch():
    rng = np.random.default_rng(4)
    truths = [{"Lung": rng.random(SIZE) < 0.3, "Heart": EMPTY} for _ in range(2)]
    given_p = [
        {name: torch.from_numpy(rng.uniform(0.01, 0.99, SIZE)).half() for name in ("Lung", "Heart")}
        for _ in range(2)
    ]
    figures = _evaluate(truths, given_p, bce=True)[KEY]
    wanted = {
        name: np.mean(
            [
                float(
                    torch.nn.functional.binary_cross_entropy(
                        p[name].double(), torch.from_numpy(t[name]).double()
                    )
                )
                for p, t in zip(given_p, truths, strict=True)
            ]
        )
        for name in ("Lung", "Heart")
    }
    for name, value in wanted.items():
        assert figures[f"BCE-{name}"] == pytest.approx(value, rel=1e-4)
    assert figures["BCE"] == pytest.approx(np.mean(list(wanted.values())), rel=1e-4)
    # What float16 rounds to 0 and 1 costs much where it is wrong, and not everything.
    sure = [{name: torch.ones(SIZE).half() for name in ("Lung", "Heart")}] * 2
    assert _evaluate(truths, sure, bce=True)[KEY]["BCE-Heart"] == pytest.approx(12 * np.log(2))
    assert "BCE" not in _evaluate(truths, truths)[KEY]
    with pytest.raises(ValueError, match="SOFT_MASKS"):
        _evaluate(truths, truths, bce=True)


def test_miou_by_hand() -> None:
    lung, heart = box_mask([0, 0, 20, 20]), box_mask([10, 10, 30, 30])  # 400 each, 100 shared
    half, small = box_mask([0, 0, 20, 10]), box_mask([0, 0, 10, 10])
    truths = [{"Lung": lung, "Heart": heart}, {"Lung": small}]
    said = [{"Lung": half, "Heart": heart}, {"Lung": small, "Heart": heart}]
    results = _evaluate(truths, said)
    figures = results[KEY]
    # Pooled over the split: (200 + 100) / (400 + 100), where the mean over images is 0.75.
    assert figures["IoU_pooled-Lung"] == pytest.approx(0.6)
    assert figures["IoU-Lung"] == 0.75
    assert figures["IoU_pooled-Heart"] == 1
    assert figures["mIoU"] == pytest.approx((0.6 + 1) / 2) == figures["IoU_pooled"]
    # Background of the first image alone: in the second the heart is not annotated. Of 4800 pixels
    # 700 belong to a structure, and of these 600 are said: half and heart do not overlap.
    assert figures["IoU_pooled-background"] == pytest.approx((4800 - 700) / (4800 - 600))
    wanted = (0.6 + 1 + 4100 / 4200) / 3
    assert figures["mIoU_with_background"] == pytest.approx(wanted)
    assert "the 1 images" in results.notes[KEY]["background"]
    # Channels are not a partition: a pixel of two classes is background of neither.
    perfect = _evaluate(truths[:1], truths[:1])[KEY]
    assert perfect["mIoU"] == perfect["mIoU_with_background"] == 1


def test_without_a_class_that_has_truth_there_is_no_miou() -> None:
    figures = _evaluate([{"Lung": EMPTY, "Heart": EMPTY}], [{"Lung": EMPTY, "Heart": EMPTY}])[KEY]
    assert not [name for name in figures if "mIoU" in name or "background" in name]
    known_in_part = _evaluate([{"Lung": ~EMPTY}], [{"Lung": ~EMPTY, "Heart": EMPTY}])[KEY]
    assert known_in_part["mIoU"] == 1 and "mIoU_with_background" not in known_in_part


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_iou_of_an_image_follows_from_its_dice(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth, said = (rng.random(SIZE) < rng.choice([0.0, 0.02, 0.5]) for _ in range(2))
    results = _evaluate([{"Lung": truth}], [{"Lung": said, "Heart": EMPTY}])
    figures = results[KEY]
    dice = figures["Dice"]
    assert figures["IoU"] == pytest.approx(dice / (2 - dice))
    if truth.any():  # of one image pooled is not pooled
        assert figures["mIoU"] == pytest.approx(dice / (2 - dice))
