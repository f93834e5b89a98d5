"""Boxes and instance masks: equal to pycocotools, figures by hand, finding-free images count."""

from __future__ import annotations

import builtins
import contextlib
import io
import sys
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from toy_evaluation import (
    SIZE,
    SOURCE,
    annotation,
    instances,
    random_boxes,
    random_world,
    record,
    run,
    truth_of,
)

from fx_d2.evaluation import DetectionEvaluator
from fx_d2.evaluation.coco_ap import IOU_THRESHOLDS, backend_name
from fx_d2.evaluation.lesion_matching import FROC_RATES, Hits, box_iou, match

KEY = "toy_eval/loc"
BOX, FAR = [10, 10, 30, 30], [50, 40, 60, 50]


def _evaluate(notes: list[list[dict]], said: list, *, changes: dict | None = None, **options):
    records = [record(i, annotations=n) for i, n in enumerate(notes)]
    evaluator = DetectionEvaluator(truth_of(records, **(changes or {})), **options)
    return run(evaluator, records, "instances", said)


def _by_pycocotools(
    records: list[dict], outputs: list[dict], kind: str, thresholds: Any = None
) -> np.ndarray:
    """COCO's twelve summary numbers as anybody would compute them."""
    notes, found = [], []
    for i, (r, o) in enumerate(zip(records, outputs, strict=True), start=1):
        for n in r["annotations"]:
            x0, y0, x1, y1 = n["bbox"]
            rle = {**n["segmentation"], "counts": n["segmentation"]["counts"].decode()}
            notes.append(
                {
                    "id": len(notes) + 1,
                    "image_id": i,
                    "category_id": n["category_id"] + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": n.get("iscrowd", 0),
                    "segmentation": rle,
                }
            )
        said = o["instances"][SOURCE.key]
        for j in range(len(said)):
            x0, y0, x1, y1 = said.pred_boxes.tensor[j].tolist()
            entry = {
                "image_id": i,
                "category_id": int(said.pred_classes[j]) + 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": float(said.scores[j]),
            }
            if kind == "segm":
                from pycocotools import mask as coco_mask

                pixels = np.asfortranarray(said.pred_masks[j].numpy().astype(np.uint8))
                entry["segmentation"] = coco_mask.encode(pixels)
            found.append(entry)
    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = {
            "images": [
                {"id": i + 1, "height": SIZE[0], "width": SIZE[1]} for i in range(len(records))
            ],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
            "annotations": notes,
        }
        gt.createIndex()
        coco = COCOeval(gt, gt.loadRes(found), kind)
        if thresholds is not None:
            coco.params.iouThrs = np.array(thresholds)
        coco.evaluate()
        coco.accumulate()
        coco.summarize()
    return coco.stats


@pytest.mark.parametrize("backend", ["faster-coco-eval", "pycocotools"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_coco_figures_equal_pycocotools(backend: str, seed: int) -> None:
    if backend == "faster-coco-eval":
        pytest.importorskip("faster_coco_eval")
    records, outputs = random_world(np.random.default_rng(seed), 25)
    records[3]["annotations"] = [annotation(BOX, 0, iscrowd=1), annotation(FAR, 1)]
    evaluator = DetectionEvaluator(truth_of(records), backend=backend)
    evaluator.process(records, outputs)
    figures = evaluator.evaluate()[KEY]
    for prefix, kind in (("", "bbox"), ("mask_", "segm")):
        stats = _by_pycocotools(records, outputs, kind)
        assert figures[f"{prefix}AP"] == pytest.approx(stats[0], abs=1e-9)
        assert figures[f"{prefix}AP50"] == pytest.approx(stats[1], abs=1e-9)
        assert figures[f"{prefix}AP75"] == pytest.approx(stats[2], abs=1e-9)
        assert 0 < figures[f"{prefix}AP"] < 1
        for name, thresholds in (("AP40", [0.4]), ("AP40to75", IOU_THRESHOLDS[:8])):
            stats = _by_pycocotools(records, outputs, kind, thresholds)
            assert figures[prefix + name] == pytest.approx(stats[0], abs=1e-9)


def test_thresholds_are_forty_to_ninety_five_in_steps_of_five() -> None:
    # Rounding differs between ways to write 0.6, and overlaps of exactly 0.6 exist: COCO's way.
    np.testing.assert_allclose(IOU_THRESHOLDS, [0.40 + 0.05 * i for i in range(12)], atol=1e-12)
    np.testing.assert_array_equal(IOU_THRESHOLDS[2:], COCOeval(iouType="bbox").params.iouThrs)


def test_backends_agree_on_every_figure() -> None:
    pytest.importorskip("faster_coco_eval")
    records, outputs = random_world(np.random.default_rng(5), 40)
    figures = []
    for backend in ("faster-coco-eval", "pycocotools"):
        evaluator = DetectionEvaluator(truth_of(records), backend=backend)
        evaluator.process(records, outputs)
        figures.append(evaluator.evaluate()[KEY])
    assert figures[0].keys() == figures[1].keys() and len(figures[0]) > 30
    for name, value in figures[0].items():
        assert value == pytest.approx(figures[1][name], abs=1e-12), name


def test_pycocotools_of_the_process_stays_what_it_was() -> None:
    pytest.importorskip("faster_coco_eval")
    _evaluate([[annotation(BOX)]], [instances([BOX], [0.9])])
    assert sys.modules["pycocotools.cocoeval"].COCOeval is COCOeval
    assert COCOeval.__module__ == "pycocotools.cocoeval"


def test_without_faster_coco_eval_pycocotools_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name.startswith("faster_coco_eval"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert backend_name() == "pycocotools"
    results = _evaluate([[annotation(BOX)]], [instances([BOX], [0.9])])
    assert results[KEY]["AP"] == pytest.approx(1)
    assert results.notes[KEY]["backend"] == "pycocotools"
    with pytest.raises(ValueError, match="detectron"):
        backend_name("detectron")


def test_perfect_and_thresholds() -> None:
    # Cut at 45 % of its height the box overlaps by exactly 0.45.
    part = [10, 10, 30, 19]
    figures = _evaluate([[annotation(BOX)]], [instances([part], [0.9])])[KEY]
    assert (figures["AP40"], figures["AP50"], figures["AP"]) == pytest.approx((1, 0, 0))
    assert figures["AP40to75"] == pytest.approx(2 / 8)  # found at 0.40 and at 0.45
    assert figures["RSNA"] == pytest.approx(2 / 8)
    assert figures["mAP40_pascal"] == figures["CPM"] == 1
    barely = _evaluate([[annotation(BOX)]], [instances([[10, 10, 30, 18.1]], [0.9])])[KEY]
    assert barely["AP40"] == pytest.approx(1)  # an overlap of 0.405
    assert barely["AP40to75"] == pytest.approx(1 / 8)
    perfect = _evaluate([[annotation(BOX), annotation(FAR)]], [instances([BOX, FAR], [0.9, 0.8])])
    names = ("AP", "AP40", "AP50", "AP75", "mask_AP", "mask_AP40", "RSNA", "CPM", "mAP40_pascal")
    assert [perfect[KEY][n] for n in names] == pytest.approx([1] * len(names))


def test_finding_free_images_count() -> None:
    notes = [[annotation(BOX)], [], []]
    clean = [instances([BOX], [0.8]), instances([], []), instances([], [])]
    marked = [clean[0], instances([FAR, BOX], [0.9, 0.85]), clean[2]]
    before, after = _evaluate(notes, clean)[KEY], _evaluate(notes, marked)[KEY]
    assert (before["AP50"], before["RSNA"], before["CPM"]) == pytest.approx((1, 1, 1))
    assert (before["FP_per_finding_free"], before["finding_free_flagged"]) == (0, 0)
    assert after["AP50"] == pytest.approx(1 / 3, abs=1e-6)  # two false ones rank before it
    assert after["mAP40_pascal"] == pytest.approx(1 / 3)
    assert after["RSNA"] == pytest.approx(1 / 2)  # the marked image counts and scores 0
    assert (after["FP_per_finding_free"], after["finding_free_flagged"]) == (1, 0.5)
    # Two false positives on three images: found at 1 per image and above, not at 1/2 and below.
    assert after["sensitivity_at_1"] == 1
    assert after["CPM"] == pytest.approx(4 / 7)
    higher = _evaluate(notes, marked, score_threshold=0.88)[KEY]
    assert higher["FP_per_finding_free"] == 0.5
    assert _evaluate(notes, marked).notes[KEY]["finding_free_images"] == 2


def test_froc_by_hand() -> None:
    # By falling score: hit, false, false, hit (tied with a false one), false; 4 lesions, 4 images.
    hits = Hits(
        np.array([0.9, 0.8, 0.7, 0.5, 0.5, 0.1]),
        np.array([True, False, False, True, False, False]),
        n_lesions=4,
        n_images=4,
    )
    rates = dict(zip(FROC_RATES, hits.sensitivities(), strict=True))
    # One false positive is 0.25 per image; the tied pair comes together, at 3 / 4 per image.
    assert rates == {0.125: 0.25, 0.25: 0.25, 0.5: 0.25, 1.0: 0.5, 2.0: 0.5, 4.0: 0.5, 8.0: 0.5}
    # Precision 1 up to recall 1/4, 2/5 from there to 1/2.
    assert hits.pascal_ap() == pytest.approx(0.25 * 1 + 0.25 * 0.4)


def test_a_lesion_is_found_once() -> None:
    overlap = np.array([[0.5, 0.45], [0.9, 0.0], [0.8, 0.6]])
    # 1 takes the first lesion; 2 the second, which is free; 0 finds none left.
    np.testing.assert_array_equal(match(overlap, np.array([0.1, 0.9, 0.5]), 0.4), [0, 1, 1])
    np.testing.assert_array_equal(match(overlap, np.array([0.9, 0.5, 0.1]), 0.4), [1, 0, 1])
    assert not match(np.empty((2, 0)), np.array([0.5, 0.2]), 0.4).any()


def test_overlap_equals_coco(rng: np.random.Generator) -> None:
    from pycocotools import mask as coco_mask

    first, second = random_boxes(rng, 12), random_boxes(rng, 9)

    def xywh(boxes: np.ndarray) -> np.ndarray:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)

    expected = coco_mask.iou(xywh(first), xywh(second), [0] * 9)
    np.testing.assert_allclose(box_iou(first, second), expected, atol=1e-12)
    assert not box_iou(np.zeros((1, 4)), np.zeros((1, 4))).any()


@pytest.mark.parametrize("masks", [True, False])
def test_no_predictions_at_all(masks: bool) -> None:
    nothing = [instances([], [], masks=masks)] * 2
    figures = _evaluate([[annotation(BOX)], []], nothing)[KEY]
    for name in ("AP", "AP40", "RSNA", "CPM", "mAP40_pascal", "FP_per_finding_free"):
        assert figures[name] == 0
    assert ("mask_AP" in figures) == masks


def test_without_truth_figures_are_absent_and_classes_named() -> None:
    results = _evaluate([[], []], [instances([BOX], [0.9]), instances([], [])])
    assert results[KEY] == {"RSNA": 0, "FP_per_finding_free": 0.5, "finding_free_flagged": 0.5}
    assert results.notes[KEY]["left_out"] == {"no truth": ["Nodule", "Mass"]}
    assert _evaluate([], [])[KEY] == {}
    # One class without truth: the mean is that of the other, whatever is predicted for it.
    said = [instances([BOX, FAR], [0.5, 0.9], [0, 1])]
    one = _evaluate([[annotation(BOX, 0)]], said)
    assert one[KEY]["AP"] == one[KEY]["AP-Nodule"] == pytest.approx(1)
    assert one.notes[KEY]["left_out"] == {"no truth": ["Mass"]}


def test_images_whose_boxes_are_not_annotated_count_nowhere() -> None:
    records = [record(0, annotations=[annotation(BOX)]), record(1)]
    evaluator = DetectionEvaluator(truth_of(records))
    said = [instances([BOX], [0.5]), instances([FAR], [0.9])]
    results = run(evaluator, records, "instances", said)
    assert results[KEY]["AP"] == pytest.approx(1) and "FP_per_finding_free" not in results[KEY]
    assert results.notes[KEY]["images"] == 1


def test_class_agnostic_makes_all_classes_one() -> None:
    notes, said = [[annotation(BOX, 1)]], [instances([BOX], [0.9], [0])]
    assert _evaluate(notes, said)[KEY]["AP"] == 0
    for options in ({"class_agnostic": True}, {"changes": {"loc_agnostic": True}}):
        agnostic = _evaluate(notes, said, **options)
        assert agnostic[KEY]["AP"] == agnostic[KEY]["AP-any"] == pytest.approx(1)
        assert agnostic[KEY]["RSNA"] == agnostic[KEY]["CPM"] == pytest.approx(1)


def test_a_box_of_another_class_is_no_hit() -> None:
    figures = _evaluate([[annotation(BOX, 1)]], [instances([BOX], [0.9], [0])])[KEY]
    assert figures["RSNA"] == figures["CPM"] == figures["mAP40_pascal"] == 0


def test_polygons_and_missing_masks() -> None:
    ring = [[10.0, 10.0, 29.0, 10.0, 29.0, 29.0, 10.0, 29.0]]
    note = {**annotation(BOX), "segmentation": ring}
    assert _evaluate([[note]], [instances([BOX], [0.9])])[KEY]["mask_AP"] == pytest.approx(1)
    results = _evaluate([[note]], [instances([BOX], [0.9], masks=False)])
    assert "mask_AP" not in results[KEY] and results[KEY]["AP"] == pytest.approx(1)
    assert results.notes[KEY]["left_out"]["the model gives no instance masks"] == ["mask_AP"]
    boxes_only = _evaluate([[note]], [instances([BOX], [0.9])], changes={"instance_masks": False})
    assert "mask_AP" not in boxes_only[KEY]
    assert "the model gives no instance masks" not in boxes_only.notes[KEY]["left_out"]


def test_xywh_truth_and_the_best_detections_only() -> None:
    note = {**annotation(BOX), "bbox": [10.0, 10.0, 20.0, 20.0], "bbox_mode": 1}
    said = instances([FAR] * 4 + [BOX], [0.1, 0.2, 0.3, 0.4, 0.9])
    assert _evaluate([[note]], [said], max_detections=1)[KEY]["AP"] == pytest.approx(1)
    kept = _evaluate([[]], [said], max_detections=2, score_threshold=0.0)[KEY]
    assert kept["FP_per_finding_free"] == 2


def test_predictions_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"image0.*classes \[2\].*0\.\.1"):
        _evaluate([[]], [instances([BOX], [0.9], [2])])
    with pytest.raises(ValueError, match="image0.*finite"):
        _evaluate([[]], [instances([BOX], [float("nan")])])
    wrong = instances([BOX], [0.9])
    wrong.remove("pred_masks")
    wrong.pred_masks = torch.zeros(1, 7, 7)
    with pytest.raises(ValueError, match=r"\(7, 7\).*\(60, 80\)"):
        _evaluate([[]], [wrong])
