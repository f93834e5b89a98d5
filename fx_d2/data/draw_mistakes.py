"""A film, its truth and what a model says of it, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .draw import Picture, Scene, draw_scene, scene_of_record
from .draw_predictions import Look, scenes_of_prediction
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
    """Three pictures: the film alone, with the truth, with the prediction; of ``cls`` one with all.

    Args:
        record: annotated for ``task``.
        source: its row.
        task: what is shown.
        cls: of labels and masks, the one class that is shown; of boxes all are (``""``).
        output: of the model, as :class:`fx_d2.predictor.Prediction`; of ``cls`` nothing is read.
        look: size, colours, and from which score on boxes are drawn.
        text: how wrong it is, in words.
    """
    truth = _truth(record, source, task, cls)
    film = Scene(truth.image, title=record["image_id"])
    if task == "cls":  # nothing of it is drawn on a film
        film.notes = [cls, *text.split(", ")]
        return [draw_scene(film, size_px=look.size_px)]
    (said,) = scenes_of_prediction(truth.image, _only(output, source, task, cls), look)
    said.title = text
    # No legend: names stand at the boxes, and of masks there is one class.
    return [
        draw_scene(scene, look.coloured(), size_px=look.size_px, legend=False)
        for scene in (film, truth, said)
    ]


def _truth(record: Record, source: Source, task: str, cls: str) -> Scene:
    """The scene of one task alone, and of one class of masks."""
    hidden = {part for part in _PARTS.values() if part != _PARTS[task]}
    shown = {key: value for key, value in record.items() if key not in hidden}
    if task == "seg":
        shown["masks"] = {cls: record["masks"][cls]}
    scene = scene_of_record(shown, source)
    if task == "loc":
        scene.title = f"truth: {len(scene.boxes)} boxes"
    elif task == "seg":
        scene.title = f"truth: {cls}" + ("" if scene.masks[cls].any() else ", none")
    return scene


def _only(output: Mapping[str, Any], source: Source, task: str, cls: str) -> dict[str, Any]:
    """The part of an output that is shown."""
    if task == "loc":
        return {"instances": {source.key: output["instances"][source.key]}, "masks": {}}
    return {"instances": {}, "masks": {source.key: {cls: output["masks"][source.key][cls]}}}
