"""Boxes and instance masks: COCO's average precision and what radiologists ask for besides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from fx_d2.data.masks import encode_mask, instance_reference, load_mask
from fx_d2.data.record import Record, box_xyxy

from .coco_ap import IOU_THRESHOLDS, MAX_DETECTIONS, Objects, average_precision, backend_name
from .lesion_matching import FROC_RATES, Hits, hits_of_class, rsna_score, shown_and_found
from .truth import TaskEvaluator, Truth, as_bool

_AT_40, _AT_50, _AT_75 = 0, 2, 7  # places in IOU_THRESHOLDS
_FROM_50 = slice(2, None)
_TO_75 = slice(0, 8)
_NO_TRUTH = "no truth"


class DetectionEvaluator(TaskEvaluator):
    """Figures of the boxes of one source, and of its instance masks (``mask_...``).

    As the mean over classes, and per class with ``-<class>`` behind the name:

    * ``AP`` (COCO's mean over IoU 0.50 to 0.95), ``AP40``, ``AP50``, ``AP75``, ``AP40to75`` (mean
      over 0.40, 0.45 ... 0.75), for boxes and as ``mask_AP`` ... for masks;
    * ``mAP40_pascal``: VinDr's rule, PASCAL's area under precision and recall at IoU 0.40;
    * ``CPM``: mean sensitivity at 1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image, at
      ``match_iou``; ``sensitivity_at_1``: at one.

    And once: ``RSNA``, the challenge's score of the boxes from ``score_threshold`` on;
    ``FP_per_finding_free``, such boxes per image without a finding; ``finding_free_flagged``, the
    share of those images with at least one.

    Images that were looked at and are free of findings count in all of them; images whose boxes are
    not annotated do not. A class without truth enters no mean, and the notes name it.

    Args:
        truth: the records.
        class_agnostic: whether all classes are one; default as the source's row says.
        score_threshold: a box is shown from here on.
        match_iou: overlap at which a lesion is found, for ``CPM``.
        max_detections: boxes kept per image, the best ones.
        backend: of COCO's figures, see :data:`fx_d2.evaluation.coco_ap.BACKENDS`.
    """

    task = "loc"
    columns = ("boxes_true", "boxes_shown", "matched", "best_score")

    def __init__(
        self,
        truth: Truth,
        *,
        class_agnostic: bool | None = None,
        score_threshold: float = 0.5,
        match_iou: float = 0.4,
        max_detections: int = 300,
        backend: str = "auto",
    ) -> None:
        super().__init__(truth)
        agnostic = self.source.loc_agnostic if class_agnostic is None else class_agnostic
        self.class_agnostic = agnostic
        self.names = ("any",) if agnostic else self.classes
        self.score_threshold, self.match_iou = score_threshold, match_iou
        self.max_detections, self.backend = max_detections, backend_name(backend)

    def _figures(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        kinds = ("", "mask_") if self.source.instance_masks else ("",)
        names = ("AP", "AP40", "AP50", "AP75", "AP40to75")
        per_class = [f"{kind}{name}" for kind in kinds for name in names]
        alone = ("RSNA", "FP_per_finding_free", "finding_free_flagged")
        return (*per_class, "mAP40_pascal", "CPM", "sensitivity_at_1"), alone

    def _row(self, record: Record, given: Mapping, output: Mapping) -> Any:
        if "annotations" not in record:
            return None
        size = (int(given["height"]), int(given["width"]))
        instances = self._of_source(output, "instances")
        return size, self._true(record, size), self._predicted(instances, record, size)

    def _shortened(self, row: Any) -> Any:
        _, true, said = row
        best = float(said.scores.max()) if len(said.scores) else 0.0
        return (*shown_and_found(true, said, self.score_threshold, self.match_iou), best)

    def _lines(self, row: Any) -> Iterator[tuple]:
        yield row

    def _true(self, record: Record, size: tuple[int, int]) -> Objects:
        notes = record["annotations"]
        masks = None
        if self.source.instance_masks:
            references = [instance_reference(note["segmentation"]) for note in notes]
            resize = self.source.resize_masks
            masks = [encode_mask(load_mask(r, *size, resize=resize)) for r in references]
        return Objects(
            boxes=np.array([box_xyxy(note) for note in notes], dtype=np.float64).reshape(-1, 4),
            classes=self._numbers(np.array([n["category_id"] for n in notes], dtype=np.int64)),
            crowd=np.array([note.get("iscrowd", 0) for note in notes], dtype=np.int64),
            masks=masks,
        )

    def _predicted(self, instances: Any, record: Record, size: tuple[int, int]) -> Objects:
        instances = instances.to("cpu")
        scores = instances.scores.detach().double().numpy()
        best = np.argsort(-scores, kind="stable")[: self.max_detections]
        boxes = instances.pred_boxes.tensor.detach().double().numpy().reshape(-1, 4)[best]
        classes = instances.pred_classes.numpy().astype(np.int64)[best]
        who = f"image {record['image_id']!r}"
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
            raise ValueError(f"{who}: a predicted box or score is not a finite number")
        if classes.size and not 0 <= classes.min() <= classes.max() < len(self.classes):
            raise ValueError(
                f"{who}: predicted classes {sorted(set(classes.tolist()))}; {self.key} has "
                f"0..{len(self.classes) - 1}"
            )
        masks = None
        if self.source.instance_masks and instances.has("pred_masks"):
            pixels = instances.pred_masks
            if tuple(pixels.shape[-2:]) != size and len(pixels):
                raise ValueError(
                    f"{who}: predicted masks are {tuple(pixels.shape[-2:])}; expected the original "
                    f"pixels {size}"
                )
            masks = [encode_mask(as_bool(pixels[int(i)])) for i in best]
        return Objects(boxes, self._numbers(classes), scores=scores[best], masks=masks)

    def _numbers(self, classes: np.ndarray) -> np.ndarray:
        return np.zeros_like(classes) if self.class_agnostic else classes

    def _summarise(
        self, places: list[int], rows: list[Any]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        sizes, truth, predicted = [r[0] for r in rows], [r[1] for r in rows], [r[2] for r in rows]
        hits = [hits_of_class(truth, predicted, c, self.match_iou) for c in range(len(self.names))]
        present = [c for c, h in enumerate(hits) if h.n_lesions]
        left_out = {_NO_TRUTH: [n for c, n in enumerate(self.names) if c not in present]}
        per_class: dict[str, np.ndarray] = {}
        if present:
            ap = average_precision(sizes, truth, predicted, len(self.names), "bbox", self.backend)
            per_class |= _at_thresholds(ap[:, present], "")
            at_40 = hits
            if self.match_iou != 0.4:
                at_40 = [hits_of_class(truth, predicted, c, 0.4) for c in range(len(hits))]
            per_class["mAP40_pascal"] = np.array([at_40[c].pascal_ap() for c in present])
            per_class |= _froc([hits[c] for c in present])
        with_masks = bool(rows) and all(o.masks is not None for o in (*truth, *predicted))
        if self.source.instance_masks and not with_masks:
            left_out["the model gives no instance masks"] = ["mask_AP"]
        if with_masks and present:
            ap = average_precision(sizes, truth, predicted, len(self.names), "segm", self.backend)
            per_class |= _at_thresholds(ap[:, present], "mask_")
        metrics = {name: float(values.mean()) for name, values in per_class.items()}
        metrics |= self._shown_boxes(truth, predicted)
        for name, values in per_class.items():
            metrics |= {f"{name}-{self.names[c]}": float(values[i]) for i, c in enumerate(present)}
        notes = {
            "finding_free_images": sum(not len(t.boxes) for t in truth),
            "lesions": {n: h.n_lesions for n, h in zip(self.names, hits, strict=True)},
            "left_out": {reason: names for reason, names in left_out.items() if names},
            "class_agnostic": self.class_agnostic,
            "score_threshold": self.score_threshold,
            "match_iou": self.match_iou,
            "detections": f"best {self.max_detections} per image, COCO's figures from the best "
            f"{MAX_DETECTIONS} per image and class",
            "backend": self.backend,
        }
        return metrics, notes

    def _shown_boxes(self, truth: list[Objects], predicted: list[Objects]) -> dict[str, float]:
        figures: dict[str, float] = {}
        score = rsna_score(truth, predicted, self.score_threshold)
        if np.isfinite(score):
            figures["RSNA"] = score
        shown = np.array(
            [
                int((said.scores >= self.score_threshold).sum())
                for true, said in zip(truth, predicted, strict=True)
                if not len(true.boxes) and said.scores is not None
            ]
        )
        if len(shown):
            figures["FP_per_finding_free"] = float(shown.mean())
            figures["finding_free_flagged"] = float((shown > 0).mean())
        return figures


def _at_thresholds(ap: np.ndarray, prefix: str) -> dict[str, np.ndarray]:
    """COCO's figures by name from (T, K)."""
    if len(ap) != len(IOU_THRESHOLDS):
        raise ValueError(f"{len(ap)} rows; expected one per threshold ({len(IOU_THRESHOLDS)})")
    return {
        f"{prefix}AP": ap[_FROM_50].mean(axis=0),
        f"{prefix}AP40": ap[_AT_40],
        f"{prefix}AP50": ap[_AT_50],
        f"{prefix}AP75": ap[_AT_75],
        f"{prefix}AP40to75": ap[_TO_75].mean(axis=0),
    }


def _froc(hits: list[Hits]) -> dict[str, np.ndarray]:
    table = np.stack([h.sensitivities() for h in hits])
    return {"CPM": table.mean(axis=1), "sensitivity_at_1": table[:, FROC_RATES.index(1.0)]}
