"""Predictions as files: JSON with COCO run lengths, a picture, a table of probabilities."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from .data.atomic import replacing, write_atomically
from .data.draw import display
from .data.draw_predictions import Look, as_mask, draw_prediction
from .data.image_files import ImageFile
from .data.images import read_image
from .data.masks import encode_mask
from .data.picture_files import save_png

FORMAT = "fx_d2 prediction 1"
JSON_FOLDER, PICTURE_FOLDER, TABLE = "json", "overlays", "labels.csv"


def as_json(
    prediction: Mapping[str, Any],
    heads: Mapping[str, Sequence[str]],
    *,
    file: str,
    score_threshold: float = 0.0,
    weights_sha256: str | list[str] | None = None,
) -> dict[str, Any]:
    """A prediction in values that JSON knows; boxes and masks as in COCO's result files.

    Args:
        prediction: of :class:`fx_d2.predictor.Predictor`.
        heads: {"source/task": classes} of the model.
        file: the image.
        score_threshold: boxes below are left out.
        weights_sha256: of the weights it was made with, a list of those of an ensemble.
    """
    return {
        "format": FORMAT,
        "file": file,
        "height": prediction["height"],
        "width": prediction["width"],
        "weights_sha256": weights_sha256,
        "score_threshold": score_threshold,
        "labels": prediction["labels"],
        "instances": {
            source: _objects(instances, heads[f"{source}/loc"], score_threshold)
            for source, instances in prediction["instances"].items()
        },
        "masks": {
            source: {name: _run_lengths(mask) for name, mask in masks.items()}
            for source, masks in prediction["masks"].items()
        },
    }


def _objects(instances: Any, classes: Sequence[str], threshold: float) -> list[dict[str, Any]]:
    """Detections from ``threshold`` on, the best first; ``bbox`` is x, y, width, height."""
    result = []
    scores = instances.scores.detach().cpu().numpy()
    for i in map(int, np.argsort(-scores, kind="stable")):
        if not scores[i] >= threshold:
            break
        x0, y0, x1, y1 = instances.pred_boxes.tensor[i].tolist()
        number = int(instances.pred_classes[i])
        one: dict[str, Any] = {
            "class": classes[number],
            "class_id": number,
            "score": float(scores[i]),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        if instances.has("pred_masks"):
            one["segmentation"] = _run_lengths(instances.pred_masks[i])
        result.append(one)
    return result


def _run_lengths(mask: Any) -> dict[str, Any]:
    """COCO's compressed form, its counts as text."""
    found = encode_mask(as_mask(mask))
    return {"size": list(map(int, found["size"])), "counts": found["counts"].decode("ascii")}


class PredictionFolder:
    """Writes what was predicted: a JSON file and a picture per image, and one table.

    ``json/<name>.json``, ``overlays/<name>.png`` and ``labels.csv``: a line per image, a column per
    source and class. Every file appears whole; the table when all is done.

    Args:
        folder: made where it is missing.
        look: of the pictures.
        asked: names of the heads that are run.
    """

    def __init__(self, folder: Path, look: Look, asked: Sequence[str]) -> None:
        self._folder, self._look = folder, look
        self._columns = [
            (source, name)
            for head, (source, _, task) in ((h, h.partition("/")) for h in asked)
            if task == "cls"
            for name in look.heads[head]
        ]
        self._stack = ExitStack()
        self._table: TextIO | None = None

    def __enter__(self) -> PredictionFolder:
        with ExitStack() as stack:
            place = stack.enter_context(replacing(self._folder / TABLE))
            file = place.open("w", encoding="utf-8", errors="backslashreplace", newline="")
            self._table = stack.enter_context(file)
            names = [f"{source}/{name}" for source, name in self._columns]
            csv.writer(self._table).writerow(["file", "name", *names])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(
        self, image: ImageFile, prediction: Mapping[str, Any], described: Mapping[str, Any]
    ) -> None:
        """Write all of one image.

        Args:
            image: the file, and the name of what is written.
            prediction: of the image.
            described: the same by :func:`as_json`.
        """
        text = json.dumps(described, indent=1) + "\n"
        write_atomically(self._folder / JSON_FOLDER / f"{image.name}.json", text)
        # Read again: to keep the films of a whole batch in memory costs more than their decoding.
        pixels = display(read_image(image.path).pixels)
        size = f"{prediction['height']} x {prediction['width']}"
        title = f"{image.path.name}   {size}   boxes from {self._look.score_threshold:g}"
        picture = draw_prediction(pixels, prediction, self._look, title=title)
        save_png(self._folder / PICTURE_FOLDER / f"{image.name}.png", picture)
        assert self._table is not None, "used outside its context"
        figures = [f"{prediction['labels'][s][name]:.6g}" for s, name in self._columns]
        csv.writer(self._table).writerow([image.path, image.name, *figures])
