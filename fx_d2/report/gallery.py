"""Predictions beside truth: a few films of several sources, with boxes, masks and class bars."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from fx_d2.data.draw import (
    BACKGROUND,
    DIM,
    POSITIVE,
    TEXT,
    Picture,
    Scene,
    contact_sheet,
    draw_scene,
    fitted,
    font_of,
    font_px,
    scene_of_record,
    text_size,
)
from fx_d2.data.draw_predictions import Look, scenes_of_prediction
from fx_d2.data.draws import draw_key
from fx_d2.data.record import Record
from fx_d2.data.source import Source
from fx_d2.modeling.heads.spec import ANY_CLASS

_BAR, _TRACK = (92, 122, 160), (44, 48, 56)


@dataclass(frozen=True)
class Example:
    """One film.

    Args:
        title: source and image.
        truth: the film with its boxes and masks.
        prediction: the same with those that are predicted; None where the source has labels only.
        bars: class probabilities, those that are true marked; None where labels are not known.
        words: what is true and what is said, for those who do not see the pictures.
    """

    title: str
    truth: Picture
    prediction: Picture | None
    bars: Picture | None
    words: str

    @property
    def pictures(self) -> list[Picture]:
        """Those there are, from left to right."""
        return [p for p in (self.truth, self.prediction, self.bars) if p is not None]


def chosen_films(records: Sequence[Record], seed: int) -> Iterator[Record]:
    """Films in the order in which they are worth showing: first those with something to find.

    What a model says about them plays no part; among equals the order is drawn.

    Args:
        records: of one source.
        seed: of the draw.
    """
    return iter(
        sorted(
            records,
            key=lambda r: (-_interest(r), draw_key(seed, "gallery", r["source"], r["image_id"])),
        )
    )


def _interest(record: Record) -> int:
    boxes = bool(record.get("annotations"))
    labels = np.asarray(record.get("labels", ()), dtype=float)
    return 2 * boxes + bool((labels == 1).any())


def spread(sources: Sequence[Source], number: int) -> dict[str, int]:
    """How many films of each source: as many sources as there can be, those with most tasks first.

    Args:
        sources: without repetition.
        number: of films.
    """
    ranked = sorted(sources, key=lambda s: -len(s.tasks))  # stable: else in the order given
    share = {source.key: 0 for source in ranked}
    for turn in range(number if ranked else 0):
        share[ranked[turn % len(ranked)].key] += 1
    return {key: count for key, count in share.items() if count}


def draw_example(
    record: Record, source: Source, output: Mapping[str, Any], heads: Mapping[str, Sequence[str]],
    *, size_px: int = 360, threshold: float = 0.5,
) -> Example:  # fmt: skip
    """A film with its truth, the same with what a model says, and the bars.

    Args:
        record: of the film.
        source: its row.
        output: a :class:`fx_d2.predictor.Prediction` that has the heads of the source.
        heads: {"source/task": classes} of the model.
        size_px: longer side of a film.
        threshold: score from which boxes are drawn, and probability from which bars stand out.
    """
    own = {name: classes for name, classes in heads.items() if name.startswith(f"{source.key}/")}
    look = Look(own, threshold, size_px)
    truth = _shown(scene_of_record(record, source), source.key, own)
    labels, truth.labels = truth.labels, {}
    said = _merged(truth.image, scenes_of_prediction(truth.image, _of(output, source.key), look))
    has_more = any(not name.endswith("/cls") for name in own)
    truth.title, said.title = "truth" if has_more else "film", "prediction"
    pictures = [
        draw_scene(scene, look.coloured(), size_px=size_px, legend=False) for scene in (truth, said)
    ]
    found = output["labels"].get(source.key, {})
    bars = draw_bars(found, labels, threshold, height_px=pictures[0].shape[0]) if found else None
    title = f"{source.key}  {record['image_id']}"
    words = _words(truth, said, labels, found, threshold)
    return Example(title, pictures[0], pictures[1] if has_more else None, bars, words)


def _shown(truth: Scene, key: str, heads: Mapping[str, Sequence[str]]) -> Scene:
    """Of the truth what the model has heads for, with the classes that it tells apart."""
    if f"{key}/seg" not in heads:
        truth.masks = {}
    if f"{key}/loc" not in heads:
        truth.boxes, truth.outlines = [], []
    elif tuple(heads[f"{key}/loc"]) == (ANY_CLASS,):
        truth.boxes = [(ANY_CLASS, box, note) for _, box, note in truth.boxes]
        truth.outlines = [(ANY_CLASS, mask) for _, mask in truth.outlines]
    return truth


def _of(output: Mapping[str, Any], key: str) -> dict[str, Any]:
    return {
        part: {k: v for k, v in output[part].items() if k == key} for part in ("instances", "masks")
    }


def _merged(image: Any, scenes: Iterator[Scene]) -> Scene:
    """Boxes of one head and masks of the other on one film."""
    result = Scene(image)
    for scene in scenes:
        result.boxes += scene.boxes
        result.outlines += scene.outlines
        result.masks.update(scene.masks)
        result.notes += scene.notes
    return result


def draw_bars(
    found: Mapping[str, float], truth: Mapping[str, float], threshold: float, *, height_px: int
) -> Picture:
    """A bar per class; ``+`` stands before those that are true, ``?`` where it is not known.

    Args:
        found: {class: probability}.
        truth: {class: 1, 0, -1 or NaN}.
        threshold: probabilities from here on stand out.
        height_px: of the picture, at least; rows are as high as there is room for.
    """
    size = min(font_px(height_px * 1.6), max(10, round(height_px / (1.45 * (len(found) + 1)))))
    font, row = font_of(size), round(size * 1.4)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    name_px = min(max(text_size(pen, name, font)[0] for name in found), 14 * size)
    sign_px, bar_px = size, 6 * size
    width = sign_px + name_px + bar_px + text_size(pen, "0.00", font)[0] + 3 * size
    canvas = Image.new("RGB", (width, max(height_px, row * (len(found) + 1))), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    pen.text((size // 2, 2), "+ true  ? not known", fill=DIM, font=font)
    for number, (name, value) in enumerate(found.items(), 1):
        top, x = number * row, size // 2
        known = truth.get(name, math.nan)
        true, high = known == 1, value >= threshold
        sign = "+" if true else "" if known == 0 else "?"
        pen.text((x, top), sign, fill=POSITIVE, font=font)
        text = fitted(pen, name, font, name_px)
        pen.text((x + sign_px, top), text, fill=POSITIVE if true else TEXT, font=font)
        left = x + sign_px + name_px + size // 2
        end = left + round(bar_px * min(max(value, 0.0), 1.0))
        pen.rectangle((left, top + size // 4, left + bar_px, top + size), fill=_TRACK)
        pen.rectangle((left, top + size // 4, end, top + size), fill=POSITIVE if high else _BAR)
        pen.text((left + bar_px + size // 2, top), f"{value:.2f}", fill=TEXT, font=font)
    return np.asarray(canvas)


def _words(
    truth: Scene,
    said: Scene,
    labels: Mapping[str, float],
    found: Mapping[str, float],
    threshold: float,
) -> str:
    def listed(scene: Scene, positive: Sequence[str]) -> str:
        boxes = Counter(name for name, _, _ in scene.boxes)
        named = [f"{n} boxes {name}" if n > 1 else f"box {name}" for name, n in boxes.items()]
        masks = [f"mask {name}" for name, mask in scene.masks.items() if mask.any()]
        return ", ".join([*positive, *named, *masks]) or "nothing"

    true = [name for name, value in labels.items() if value == 1]
    likely = [f"{name} {value:.2f}" for name, value in found.items() if value >= threshold]
    return f"truth: {listed(truth, true)}; prediction: {listed(said, likely)}"


def gallery_sheet(examples: Sequence[Example], *, columns: int = 2) -> Picture:
    """All films on one picture, ``columns`` beside each other."""
    return contact_sheet([_beside(example) for example in examples], columns=columns, gap_px=10)


def _beside(example: Example) -> Picture:
    size = font_px(max(example.truth.shape[:2]) * 1.3)
    top = round(size * 1.6)
    width = sum(picture.shape[1] + 4 for picture in example.pictures)
    height = max(picture.shape[0] for picture in example.pictures)
    canvas = Image.new("RGB", (width, height + top), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    font = font_of(size)
    pen.text((4, 1), fitted(pen, example.title, font, width - 8), fill=TEXT, font=font)
    left = 0
    for picture in example.pictures:
        canvas.paste(Image.fromarray(picture), (left, top))
        left += picture.shape[1] + 4
    return np.asarray(canvas)
