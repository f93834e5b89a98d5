"""A source of two or three classes made on the spot, and evaluators for its records."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, Instances

from fx_d2.data.masks import encode_mask
from fx_d2.data.source import Source, carved
from fx_d2.evaluation import Truth

SOURCE = Source(
    key="toy_eval",
    title="Toy",
    folder="toy",
    reader="toy",
    splits=carved("all"),
    tasks=("cls", "loc", "seg"),
    cls_classes=("Edema", "Nodule", "Mass"),
    cls_subsets={"pair": ("Edema", "Mass")},
    thing_classes=("Nodule", "Mass"),
    instance_masks=True,
    seg_classes=("Lung", "Heart"),
    licence="none",
    homepage="none",
    citation="none",
    access="open",
)
SIZE = (60, 80)


def record(number: int, **more: Any) -> dict[str, Any]:
    return {
        "file_name": f"{number}.png",
        "image_id": f"image{number}",
        "source": SOURCE.key,
        "patient_id": f"p{number // 2}",
        "view": "PA",
        "height": SIZE[0],
        "width": SIZE[1],
        **more,
    }


def truth_of(records: list[dict[str, Any]], **changes: Any) -> Truth:
    return Truth("toy_eval_test", records, replace(SOURCE, **changes))


def box_mask(box: Any) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    x0, y0, x1, y1 = (round(float(v)) for v in box)
    mask[y0:y1, x0:x1] = True
    return mask


def annotation(box: Any, category: int = 0, **more: Any) -> dict[str, Any]:
    return {
        "bbox": [float(v) for v in box],
        "bbox_mode": 0,
        "category_id": category,
        "segmentation": encode_mask(box_mask(box)),
        **more,
    }


def instances(boxes: Any, scores: Any, classes: Any = None, *, masks: bool = True) -> Instances:
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    result = Instances(SIZE)
    result.pred_boxes = Boxes(torch.from_numpy(boxes))
    result.scores = torch.as_tensor(scores, dtype=torch.float64)
    chosen = np.zeros(len(boxes)) if classes is None else classes
    result.pred_classes = torch.as_tensor(chosen, dtype=torch.int64)
    if masks:
        pixels = (
            np.stack([box_mask(b) for b in boxes]) if len(boxes) else np.zeros((0, *SIZE), bool)
        )
        result.pred_masks = torch.from_numpy(pixels)
    return result


def run(evaluator: Any, records: list[dict[str, Any]], kind: str, values: list[Any]) -> Any:
    """Results of an evaluator for one part of the model's output per record."""
    evaluator.reset()
    for r, value in zip(records, values, strict=True):
        evaluator.process([r], [{kind: {SOURCE.key: value}}])
    results = evaluator.evaluate()
    for figures in results.values():  # a config's metric patterns are checked against these names
        assert set(figures) <= set(evaluator.metric_names()), figures
    return results


def random_boxes(rng: np.random.Generator, n: int) -> np.ndarray:
    corner = rng.uniform(0, [SIZE[1] - 20, SIZE[0] - 20], size=(n, 2))
    return np.concatenate([corner, corner + rng.uniform(4, 20, size=(n, 2))], axis=1)


def random_world(
    rng: np.random.Generator, n: int, *, whole: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Records with all three kinds of truth, and outputs of a model that is right now and then."""
    records, outputs = [], []
    for i in range(n):
        boxes = random_boxes(rng, int(rng.integers(0, 4)))
        boxes = boxes.round() if whole else boxes
        categories = rng.integers(0, 2, size=len(boxes))
        near = boxes + rng.normal(0, 2, size=boxes.shape)
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        said = np.concatenate([near, random_boxes(rng, int(rng.integers(0, 4)))])
        said = said.clip(0, [SIZE[1], SIZE[0]] * 2)
        classes = rng.integers(0, 2, size=len(said))
        classes[: len(boxes)] = np.where(
            rng.random(len(boxes)) < 0.8, categories, classes[: len(boxes)]
        )
        labels = rng.choice([0, 1, -1, np.nan], size=3, p=[0.5, 0.3, 0.1, 0.1]).astype(np.float32)
        lung, heart = box_mask(random_boxes(rng, 1)[0]), box_mask(random_boxes(rng, 1)[0])
        masks = {"Lung": encode_mask(lung)}
        if i % 3:
            masks["Heart"] = encode_mask(heart if i % 3 == 1 else np.zeros(SIZE, bool))
        notes = [annotation(b, int(c)) for b, c in zip(boxes, categories, strict=True)]
        records.append(record(i, labels=labels, masks=masks, annotations=notes))
        p = np.clip(np.nan_to_num(labels, nan=0.5) * 0.3 + rng.random(3) * 0.7, 0, 1)
        outputs.append(
            {
                "labels": {SOURCE.key: dict(zip(SOURCE.cls_classes, p.round(2), strict=True))},
                "instances": {SOURCE.key: instances(said, rng.random(len(said)).round(2), classes)},
                "masks": {SOURCE.key: {"Lung": np.roll(lung, 3, axis=1), "Heart": heart}},
            }
        )
    return records, outputs
