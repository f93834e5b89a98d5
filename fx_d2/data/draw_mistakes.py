"""A film, its truth and what a model says of it, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .draw import Picture, Scene, draw_scene, scene_of_record
from .draw_predictions import Look, draw_prediction, scenes_of_prediction
from .record import Record
from .source import Source

# What a scene shows of each task.
_PARTS = {"cls": "labels", "loc": "annotations", "seg": "masks"}


def draw_mistake(
    record: Record,
    source: Source,
    task: str,
    cls: str,
    output: Mapping[str, Any],
    look: Look,
    *,
    text: str = "",
) -> list[Picture]:
    """Three pictures: the film alone, with the truth, with the prediction.

    Args:
        record: annotated for ``task``.
        source: its row.
        task: what is shown.
        cls: of labels and masks, the one class that is shown; of boxes all are (``""``).
        output: of the model, as :class:`fx_d2.predictor.Prediction`.
        look: size, colours, and from which score on boxes are drawn.
        text: how wrong it is, stands above the prediction.
    """
    truth = _truth(record, source, task, cls)
    scenes = [Scene(truth.image, title=record["image_id"]), truth]
    if task == "cls":
        said = {source.key: {cls: float(output["labels"][source.key][cls])}}
        prediction = {"labels": said, "instances": {}, "masks": {}}
        third = [draw_prediction(truth.image, prediction, look, title=text)]
    else:
        (scene,) = scenes_of_prediction(truth.image, _only(output, source, task, cls), look)
        scene.title = text
        scenes, third = [*scenes, scene], []
    # No legend: names stand at the boxes, and of masks and labels there is one class.
    drawn = [draw_scene(s, look.coloured(), size_px=look.size_px, legend=False) for s in scenes]
    return [*drawn, *third]


def _truth(record: Record, source: Source, task: str, cls: str) -> Scene:
    """The scene of one task alone, and of masks and labels of one class."""
    hidden = {part for part in _PARTS.values() if part != _PARTS[task]}
    shown = {key: value for key, value in record.items() if key not in hidden}
    if task == "seg":
        shown["masks"] = {cls: record["masks"][cls]}
    scene = scene_of_record(shown, source)
    if task == "loc":
        scene.title = f"truth: {len(scene.boxes)} boxes"
    elif task == "cls":
        scene.title = f"truth: {cls} {'positive' if scene.labels[cls] == 1 else 'negative'}"
    else:
        scene.title = f"truth: {cls}" + ("" if scene.masks[cls].any() else ", none")
    return scene


def _only(output: Mapping[str, Any], source: Source, task: str, cls: str) -> dict[str, Any]:
    """The part of an output that is shown."""
    if task == "loc":
        return {"instances": {source.key: output["instances"][source.key]}, "masks": {}}
    return {"instances": {}, "masks": {source.key: {cls: output["masks"][source.key][cls]}}}
