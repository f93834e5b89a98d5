from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.box_fusion import weighted_boxes_fusion


def test_three_readers_who_agree_become_one_mean_box():
    fused = weighted_boxes_fusion(
        [[[10, 10, 50, 50]], [[12, 10, 52, 50]], [[14, 13, 54, 53]]], iou_threshold=0.5
    )
    np.testing.assert_allclose(fused.boxes, [[12, 11, 52, 51]])
    assert fused.n_readers.tolist() == [3]
    assert fused.scores.tolist() == [1.0]


def test_a_lone_box_is_kept_with_its_reader_count_and_a_lower_score():
    fused = weighted_boxes_fusion(
        [[[10, 10, 50, 50]], [[10, 10, 50, 50], [200, 200, 240, 260]], []], iou_threshold=0.5
    )
    np.testing.assert_allclose(fused.boxes, [[10, 10, 50, 50], [200, 200, 240, 260]])
    assert fused.n_readers.tolist() == [2, 1]
    np.testing.assert_allclose(fused.scores, [2 / 3, 1 / 3])


def test_two_boxes_of_one_reader_count_as_one_reader():
    fused = weighted_boxes_fusion([[[0, 0, 10, 10], [0, 0, 10, 11]], [], []], iou_threshold=0.5)
    assert fused.n_readers.tolist() == [1]
    np.testing.assert_allclose(fused.boxes, [[0, 0, 10, 10.5]])


def test_higher_scores_pull_the_box():
    fused = weighted_boxes_fusion(
        [[[0, 0, 10, 10]], [[0, 0, 14, 10]]], [[0.75], [0.25]], iou_threshold=0.5
    )
    np.testing.assert_allclose(fused.boxes, [[0, 0, 11, 10]])


def test_overlap_at_the_threshold_does_not_join():
    boxes = [[[0, 0, 10, 10]], [[0, 0, 5, 10]]]  # overlap exactly one half
    assert len(weighted_boxes_fusion(boxes, iou_threshold=0.5).boxes) == 2
    assert len(weighted_boxes_fusion(boxes, iou_threshold=0.49).boxes) == 1


def test_nothing_gives_nothing():
    for boxes in ([], [[], [], []]):
        fused = weighted_boxes_fusion(boxes)
        assert fused.boxes.shape == (0, 4)
        assert fused.n_readers.shape == fused.scores.shape == (0,)


@pytest.mark.parametrize(
    ("boxes", "scores", "message"),
    [
        ([[[5, 5, 5, 9]]], None, "x1 > x0"),
        ([[[9, 5, 5, 9]]], None, "x1 > x0"),
        ([[[0, 0, 5, 9]]], [[0.0]], "above 0"),
        ([[[0, 0, 5, 9]]], [[0.5, 0.5]], "scores for"),
    ],
)
def test_wrong_input_is_refused(boxes, scores, message):
    with pytest.raises(ValueError, match=message):
        weighted_boxes_fusion(boxes, scores)


def _case(rng, equal_scores):
    """Three readers who outline some of up to six lesions, with jitter; boxes in 0..1."""
    lesions = []
    for _ in range(rng.integers(1, 7)):
        x0, y0 = rng.uniform(0.05, 0.7, 2)
        lesions.append([x0, y0, x0 + rng.uniform(0.05, 0.25), y0 + rng.uniform(0.05, 0.25)])
    readers, scores = [], []
    for _ in range(3):
        drawn = [np.array(b) + rng.normal(0, 0.015, 4) for b in lesions if rng.random() < 0.8]
        drawn = [b for b in drawn if b[2] > b[0] + 0.01 and b[3] > b[1] + 0.01]
        readers.append(np.clip(np.array(drawn).reshape(-1, 4), 0, 1))
        scores.append(np.ones(len(drawn)) if equal_scores else rng.uniform(0.1, 1, len(drawn)))
    return readers, scores


@pytest.mark.parametrize("threshold", [0.4, 0.55, 0.7])
def test_equals_the_reference_implementation(threshold):
    reference = pytest.importorskip("ensemble_boxes").weighted_boxes_fusion
    rng = np.random.default_rng(int(threshold * 100))
    compared = 0
    for _ in range(150):
        readers, scores = _case(rng, equal_scores=False)
        ours = weighted_boxes_fusion(readers, scores, iou_threshold=threshold)
        theirs, means, _ = reference(
            [r.tolist() for r in readers],
            [s.tolist() for s in scores],
            [[0] * len(s) for s in scores],
            iou_thr=threshold,
        )
        if not len(theirs):
            assert not len(ours.boxes)
            continue
        compared += len(theirs)
        assert len(ours.boxes) == len(theirs)
        order, other = np.lexsort(ours.boxes.T.round(5)), np.lexsort(theirs.T.round(5))
        np.testing.assert_allclose(ours.boxes[order], theirs[other], atol=1e-5)
        np.testing.assert_allclose(ours.scores[order], means[other], atol=1e-5)
    assert compared > 300


def test_equals_the_reference_on_equal_scores():
    """Ties are taken in another order there, so only boxes that are not chained are compared."""
    reference = pytest.importorskip("ensemble_boxes").weighted_boxes_fusion
    rng = np.random.default_rng(5)
    for _ in range(100):
        corner = rng.permutation(9)[:4]
        readers = []
        for _ in range(3):
            boxes = [
                [x / 3 + 0.02, y / 3 + 0.02, x / 3 + 0.3, y / 3 + 0.3]
                for x, y in (divmod(int(c), 3) for c in corner)
                if rng.random() < 0.8
            ]
            readers.append(
                np.array(boxes).reshape(-1, 4) + rng.uniform(-0.01, 0.01, (len(boxes), 4))
            )
        ours = weighted_boxes_fusion(readers, iou_threshold=0.5)
        theirs, means, _ = reference(
            [r.tolist() for r in readers],
            [[1.0] * len(r) for r in readers],
            [[0] * len(r) for r in readers],
            iou_thr=0.5,
        )
        if len(theirs):
            order, other = np.lexsort(ours.boxes.T.round(5)), np.lexsort(theirs.T.round(5))
            np.testing.assert_allclose(ours.boxes[order], theirs[other], atol=1e-5)
            np.testing.assert_allclose(ours.scores[order], means[other], atol=1e-5)
