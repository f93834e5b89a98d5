"""Figures of single images: what they are, how they are written and read, which are the worst."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.evaluation.testing import flatten_results_dict
from toy_evaluation import SOURCE, annotation, box_mask, instances, random_world, record, truth_of

from fx_d2.data import atomic
from fx_d2.data.masks import encode_mask
from fx_d2.data.source import TASKS
from fx_d2.evaluation import EVALUATORS, FxEvaluator, Results, merge_results, write_results
from fx_d2.evaluation.per_image import Mistake, read_per_image, worst_images

DATASET = "toy_eval_test"


def evaluated(
    records: list[dict], outputs: list[dict], tasks: tuple[str, ...] = TASKS, **options: Any
) -> Results:
    truth = truth_of(records)
    more: dict[str, dict] = {"cls": {"n_bootstrap": 0}, **options}
    evaluator = FxEvaluator([EVALUATORS[task](truth, **more.get(task, {})) for task in tasks])
    evaluator.reset()
    for given, output in reversed(list(zip(records, outputs, strict=True))):
        evaluator.process([given], [output])
    return evaluator.evaluate()


def of(kind: str, values: list[Any]) -> list[dict]:
    return [{kind: {SOURCE.key: value}} for value in values]


def table(results: Results, task: str) -> list[tuple]:
    return [tuple(row.values()) for row in results.per_image[f"{DATASET}_{task}"].rows()]


def test_masks_are_scored_where_they_are_annotated() -> None:
    big, small = box_mask((0, 0, 20, 10)), box_mask((0, 0, 10, 10))
    none = np.zeros_like(big)
    records = [
        record(0, masks={"Lung": encode_mask(big), "Heart": encode_mask(none)}),
        record(1),
        record(2, masks={"Heart": encode_mask(none)}),
    ]
    said = [{"Lung": small, "Heart": none}, *[{"Lung": big, "Heart": big}] * 2]
    results = evaluated(records, of("masks", said), ("seg",))
    assert table(results, "seg") == [
        ("image0", "Lung", pytest.approx(2 / 3), 0.5, 200, 100),
        ("image0", "Heart", 1.0, 1.0, 0, 0),
        ("image2", "Heart", 0.0, 0.0, 0, 200),
    ]


def test_labels_that_are_unknown_have_no_line() -> None:
    labels = [np.array(v, np.float32) for v in ([1, np.nan, 0], [-1, np.nan, np.nan], [-1, 0, 1])]
    records = [record(i, labels=v) for i, v in enumerate(labels)]
    said = [dict(zip(SOURCE.cls_classes, (0.25, 0.5, 0.75), strict=True))] * 3
    results = evaluated(records, of("labels", said), ("cls",))
    assert table(results, "cls") == [
        ("image0", "Edema", 1, 0.25),
        ("image0", "Mass", 0, 0.75),
        ("image2", "Nodule", 0, 0.5),
        ("image2", "Mass", 1, 0.75),
    ]


def test_boxes_count_from_the_threshold_on_and_match_their_own_class() -> None:
    a, b, far = (0, 0, 20, 20), (40, 20, 60, 40), (60, 0, 70, 10)
    records = [
        record(0, annotations=[annotation(a), annotation(b, 1)]),
        record(1, annotations=[]),
        record(2),
        record(3, annotations=[annotation(a, iscrowd=1), annotation(b)]),
        record(4, annotations=[annotation(a)]),
    ]
    said = [
        instances([a, b, b, far], [0.9, 0.8, 0.49, 0.7], [0, 0, 1, 1]),
        instances([a], [0.3]),
        instances([a], [0.9]),
        instances([a, b, b], [0.6, 0.5, 0.9]),
        instances([], []),
    ]
    results = evaluated(records, of("instances", said), ("loc",))
    assert table(results, "loc") == [
        ("image0", 2, 3, 1, 0.9),
        ("image1", 0, 0, 0, 0.3),
        ("image3", 1, 3, 1, 0.9),
        ("image4", 1, 0, 0, 0.0),
    ]
    strict = evaluated(records, of("instances", said), ("loc",), loc={"score_threshold": 0.95})
    assert [line[2] for line in table(strict, "loc")] == [0, 0, 0, 0]
    agnostic = evaluated(records, of("instances", said), ("loc",), loc={"class_agnostic": True})
    assert table(agnostic, "loc")[0] == ("image0", 2, 3, 2, 0.9)


@pytest.fixture
def written(rng: np.random.Generator, tmp_path: Path) -> tuple[list[dict], Results, Path]:
    records, outputs = random_world(rng, 9)
    results = evaluated(records, outputs)
    write_results(results, tmp_path)
    return records, results, tmp_path


def read(records: list[dict], results: Results, folder: Path, task: str = "seg") -> Any:
    metrics = flatten_results_dict(results)
    ids = [r["image_id"] for r in records]
    return read_per_image(folder, DATASET, task, metrics=metrics, image_ids=ids)


def test_files_agree_with_the_figures(written) -> None:
    records, results, folder = written
    names = sorted(p.name for p in (folder / "per_image").iterdir())
    assert names == [f"{DATASET}_{task}.csv" for task in ("cls", "loc", "seg")]
    rows = list(csv.DictReader((folder / "per_image" / f"{DATASET}_seg.csv").open()))
    assert list(rows[0]) == ["image_id", "class", "dice", "iou", "true_px", "predicted_px"]
    order = [r["image_id"] for r in records]
    assert [r["image_id"] for r in rows] == sorted((r["image_id"] for r in rows), key=order.index)
    for name in SOURCE.seg_classes:
        dice = [float(r["dice"]) for r in rows if r["class"] == name]
        assert np.mean(dice) == pytest.approx(results["toy_eval/seg"][f"Dice-{name}"], abs=1e-5)
    labels = list(csv.DictReader((folder / "per_image" / f"{DATASET}_cls.csv").open()))
    known = sum(int(((r["labels"] == 0) | (r["labels"] == 1)).sum()) for r in records)
    assert len(labels) == known
    for task in TASKS:
        again = read(records, results, folder, task)
        assert len(again) == len(table(results, task))
        for mine, other in zip(again, results.per_image[f"{DATASET}_{task}"].rows(), strict=True):
            assert mine == {
                k: v if isinstance(v, str) else pytest.approx(v, rel=1e-5) for k, v in other.items()
            }


def test_results_of_two_datasets_keep_their_tables(written) -> None:
    _, results, folder = written
    merged = merge_results({"a": results, "b": {"other/cls": {"AUC": 0.5}}})
    assert merged.per_image == results.per_image
    write_results(merged, folder / "without", per_image=False)
    assert sorted(p.name for p in (folder / "without").iterdir()) == ["results.json", "results.md"]


def test_what_is_not_of_these_weights_and_images_is_not_read(written) -> None:
    records, results, folder = written
    assert read(records, results, folder)
    assert read(records[:-1], results, folder) is None
    assert read([*records, record(99)], results, folder) is None
    assert read([*records[:-1], record(99)], results, folder) is None
    others = Results({k: {m: v + 1e-9 for m, v in f.items()} for k, f in results.items()})
    assert read(records, others, folder) is None
    assert read(records, Results(), folder) is None
    assert read(records, results, folder / "elsewhere") is None
    file = folder / "per_image" / f"{DATASET}_seg.csv"
    whole = file.read_text()
    file.write_text(whole.replace("image1", "image2", 1))
    assert read(records, results, folder) is None
    file.write_text(whole)
    write_results(results, folder, per_image=False)  # a later evaluation that left them out
    assert read(records, results, folder) is None
    (folder / "results.json").write_text(json.dumps([1]))
    assert read(records, results, folder) is None


def test_names_from_files_are_quoted_and_an_interrupted_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strange = record(0, labels=np.array([1, 0, 0], np.float32))
    strange["image_id"] = 'a,"b"\udcff'
    said = of("labels", [dict.fromkeys(SOURCE.cls_classes, 0.5)])
    results = evaluated([strange], said, ("cls",))
    write_results(results, tmp_path)
    file = tmp_path / "per_image" / f"{DATASET}_cls.csv"
    assert {row["image_id"] for row in csv.DictReader(file.open())} == {'a,"b"\\udcff'}
    before = file.read_bytes()

    def full(*places: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_results(evaluated([strange], said, ("cls",)), tmp_path)
    assert os.listdir(file.parent) == [file.name] and file.read_bytes() == before


def test_the_worst_come_first() -> None:
    masks = [
        {"image_id": i, "class": c, "dice": d, "iou": d, "true_px": t, "predicted_px": p}
        for i, c, d, t, p in (
            ("a", "Lung", 0.9, 10, 10),
            ("b", "Lung", 0.0, 50, 0),
            ("c", "Lung", 0.0, 0, 90),
            ("d", "Lung", 1.0, 0, 0),
            ("a", "Heart", 1.0, 10, 10),
        )
    ]
    worst = worst_images(masks, "seg", 3)
    assert [m.image_id for m in worst["Lung"]] == ["c", "b", "a"] and worst["Heart"] == []
    assert [m.image_id for m in worst_images(masks, "seg", 1)["Lung"]] == ["c"]
    assert worst["Lung"][1].text == "Dice 0.00, IoU 0.00, 50 px true, 0 px predicted"
    labels = [
        {"image_id": i, "class": "Edema", "label": y, "probability": p}
        for i, y, p in (("a", 1.0, 0.4), ("b", 0.0, 0.7), ("c", 1.0, 0.9))
    ]
    found = worst_images(labels, "cls", 2)["Edema"]
    assert [m.image_id for m in found] == ["b", "a"]
    assert [m.text for m in found] == ["negative, probability 0.70", "positive, probability 0.40"]
    boxes = [
        {"image_id": i, "boxes_true": t, "boxes_shown": s, "matched": m, "best_score": b}
        for i, t, s, m, b in (("a", 2, 1, 1, 0.9), ("b", 0, 1, 0, 0.95), ("c", 3, 2, 1, 0.6))
    ]
    boxes.append({**boxes[0], "image_id": "d", "boxes_true": 1})
    assert worst_images(boxes, "loc", 9)[""] == [
        Mistake((3, 0.6), "c", "1 of 3 found, 1 too many, best score 0.60"),
        Mistake((1, 0.95), "b", "0 of 0 found, 1 too many, best score 0.95"),
        Mistake((1, 0.9), "a", "1 of 2 found, 0 too many, best score 0.90"),
    ]
