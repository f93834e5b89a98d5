"""A prediction as one picture: a panel per head with something to show, and the probabilities."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from .draw import (
    BACKGROUND,
    DIM,
    POSITIVE,
    TEXT,
    Picture,
    Scene,
    draw_scene,
    fitted,
    font_of,
    font_px,
    text_size,
)

_BAR = (92, 122, 160)
_TRACK = (44, 48, 56)
_SCREEN = 1.5  # width / height
_MAX_BOXES = 20  # names of more would hide the film


@dataclass(frozen=True)
class Look:
    """How predictions are drawn.

    Args:
        heads: {"source/task": classes} of the model; their order fixes the colours, so that a class
            looks alike in every panel and picture.
        score_threshold: boxes below are not drawn, probabilities from here on stand out.
        size_px: longer side of the film in a panel.
    """

    heads: Mapping[str, Sequence[str]]
    score_threshold: float = 0.5
    size_px: int = 640

    def coloured(self) -> list[str]:
        """Classes of boxes and masks, in the order of colours."""
        named = [c for head, classes in self.heads.items() if not _is(head, "cls") for c in classes]
        return list(dict.fromkeys(named))


def _is(head: str, task: str) -> bool:
    return head.endswith(f"/{task}")


def draw_prediction(
    image: npt.NDArray[np.float32], prediction: Mapping[str, Any], look: Look, *, title: str = ""
) -> Picture:
    """Panels with boxes, instance masks and dense masks, and bars of the class probabilities.

    Args:
        image: (height, width) in [0, 1], of the original's size.
        prediction: of :class:`fx_d2.predictor.Predictor`.
        look: colours, threshold, size.
        title: the line above.
    """
    scenes = list(_scenes(image, prediction, look))
    nothing = [scene.title for scene in scenes if not (scene.boxes or scene.masks)]
    shown = [scene for scene in scenes if scene.title not in nothing] or [Scene(image)]
    panels = [draw_scene(scene, look.coloured(), size_px=look.size_px) for scene in shown]
    notes = [f"nothing found by {', '.join(nothing)}"] if nothing else []
    size = font_px(look.size_px)
    return _titled(_with_bars(_grid(panels), prediction["labels"], look, size), title, notes, size)


def _scenes(
    image: npt.NDArray[np.float32], prediction: Mapping[str, Any], look: Look
) -> Iterator[Scene]:
    """A scene per head of boxes or masks; one without either found nothing."""
    for source, instances in prediction["instances"].items():
        head = f"{source}/loc"
        scene = Scene(image, title=head)
        scores = instances.scores.detach().cpu().numpy()
        good = np.flatnonzero(scores >= look.score_threshold)
        best = good[np.argsort(-scores[good], kind="stable")]
        for i in map(int, best[:_MAX_BOXES]):
            name = look.heads[head][int(instances.pred_classes[i])]
            x0, y0, x1, y1 = instances.pred_boxes.tensor[i].tolist()
            scene.boxes.append((name, (x0, y0, x1, y1), f" {scores[i]:.2f}"))
            if instances.has("pred_masks"):
                scene.outlines.append((name, as_mask(instances.pred_masks[i])))
        if len(best) > _MAX_BOXES:
            scene.notes.append(f"and {len(best) - _MAX_BOXES} more")
        yield scene
    for source, masks in prediction["masks"].items():
        scene = Scene(image, title=f"{source}/seg")
        found = {name: as_mask(mask) for name, mask in masks.items()}
        if any(mask.any() for mask in found.values()):
            scene.masks = found
        yield scene


def as_mask(mask: Any) -> npt.NDArray[np.bool_]:
    """A predicted mask, wherever it lies, as bool (height, width)."""
    return np.asarray(mask.detach().cpu().numpy(), dtype=bool)


def _grid(panels: Sequence[Picture], gap_px: int = 8) -> Picture:
    """Panels in rows of a common height, about as wide as a screen."""
    columns = len(panels) if len(panels) <= 3 else 2 if len(panels) == 4 else 3
    rows = [panels[i : i + columns] for i in range(0, len(panels), columns)]
    heights = [max(p.shape[0] for p in row) + gap_px for row in rows]
    cell = max(p.shape[1] for p in panels) + gap_px
    parts = [
        (panel, (sum(heights[:r]), i * cell))
        for r, row in enumerate(rows)
        for i, panel in enumerate(row)
    ]
    return _stacked((cell * columns, sum(heights)), *parts)


def _with_bars(
    films: Picture, labels: Mapping[str, Mapping[str, float]], look: Look, size: int
) -> Picture:
    """Bars at the right of the films or below them, whichever fits a screen better."""
    if not labels:
        return films
    bars = _Bars(labels, look, size)
    height, width = films.shape[:2]
    plans = []
    for rows in bars.choices():
        across, down = bars.extent(rows)
        for place in ((0, width), (height, 0)):
            whole = (max(width, place[1] + across), max(height, place[0] + down))
            # As small as possible, and of the shape of a screen.
            misfit = math.log(whole[0] * whole[1])
            misfit += abs(math.log(whole[0] / whole[1] / _SCREEN))
            plans.append((misfit, whole, place, rows))
    _, whole, place, rows = min(plans)
    return _stacked(whole, (films, (0, 0)), (bars.draw(rows), place))


def _stacked(size: tuple[int, int], *parts: tuple[Picture, tuple[int, int]]) -> Picture:
    """Pictures at their (top, left) on a dark ground of (width, height)."""
    canvas = np.full((size[1], size[0], 3), BACKGROUND, dtype=np.uint8)
    for picture, (top, left) in parts:
        canvas[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return canvas


_Row = tuple[str, "float | None"]  # a class and its probability, or a heading


class _Bars:
    """Per source its classes, each with a bar and a figure, in columns.

    Args:
        labels: {source: {class: probability}}.
        look: the threshold.
        size: of the text.
    """

    def __init__(self, labels: Mapping[str, Mapping[str, float]], look: Look, size: int) -> None:
        self._labels, self._look, self._size = labels, look, size
        self._font = font_of(size)
        pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
        names = [name for classes in labels.values() for name in (*classes, *labels)]
        widest = max(text_size(pen, name, self._font)[0] for name in names)
        self._name_px, self._bar_px = min(widest, 15 * size), 6 * size
        number_px = text_size(pen, "0.00", self._font)[0]
        self._column_px = self._name_px + self._bar_px + number_px + 3 * size
        self._row_px = round(size * 1.4)

    def choices(self) -> range:
        """Rows that a column may have: from those of the longest source to all in one column."""
        lengths = [len(classes) + 2 for classes in self._labels.values()]
        return range(max(lengths) - 1, sum(lengths))

    def extent(self, rows: int) -> tuple[int, int]:
        """(width, height) of the picture with columns of at most ``rows``."""
        columns = self._columns(rows)
        height = max(map(len, columns)) * self._row_px + self._size
        return self._column_px * len(columns), height

    def _columns(self, rows: int) -> list[list[_Row]]:
        """Blocks of sources in columns of at most ``rows``; a block is never torn."""
        columns: list[list[_Row]] = [[]]
        for source, classes in self._labels.items():
            block: list[_Row] = [(source, None), *classes.items()]
            if columns[-1] and len(columns[-1]) + 1 + len(block) > rows:
                columns.append([])
            columns[-1] += [("", None), *block] if columns[-1] else block
        return columns

    def draw(self, rows: int) -> Picture:
        """The columns, of at most ``rows``."""
        canvas = Image.new("RGB", self.extent(rows), BACKGROUND)
        pen = ImageDraw.Draw(canvas)
        for number, column in enumerate(self._columns(rows)):
            x = number * self._column_px + self._size
            for place, row in enumerate(column):
                self._draw_row(pen, x, place * self._row_px, *row)
        return np.asarray(canvas)

    def _draw_row(
        self, pen: ImageDraw.ImageDraw, x: int, y: int, name: str, value: float | None
    ) -> None:
        size, font = self._size, self._font
        if value is None:
            name = fitted(pen, name, font, self._column_px - size)
            pen.text((x, y), name, fill=DIM, font=font)
            return
        pen.text((x, y), fitted(pen, name, font, self._name_px), fill=TEXT, font=font)
        high = value >= self._look.score_threshold
        left, top, bottom = x + self._name_px + size // 2, y + size // 4, y + size
        end = left + round(self._bar_px * min(max(value, 0.0), 1.0))
        pen.rectangle((left, top, left + self._bar_px, bottom), fill=_TRACK)
        pen.rectangle((left, top, end, bottom), fill=POSITIVE if high else _BAR)
        place = (left + self._bar_px + size // 2, y)
        pen.text(place, f"{value:.2f}", fill=POSITIVE if high else TEXT, font=font)


def _titled(picture: Picture, title: str, notes: Sequence[str], size: int) -> Picture:
    """A picture under its title and above its notes, on a dark ground."""
    font, margin, row = font_of(size), size, round(size * 1.6)
    height, width = picture.shape[0], picture.shape[1] + 2 * margin
    top = margin + (row if title else 0)
    canvas = Image.new("RGB", (width, top + height + margin + row * len(notes)), BACKGROUND)
    canvas.paste(Image.fromarray(picture), (margin, top))
    pen = ImageDraw.Draw(canvas)
    room = width - 2 * margin
    pen.text((margin, size // 2), fitted(pen, title, font, room), fill=TEXT, font=font)
    for i, note in enumerate(notes):
        y = top + height + size // 2 + i * row
        pen.text((margin, y), fitted(pen, note, font, room), fill=DIM, font=font)
    return np.asarray(canvas)
