"""A prediction as one picture: a panel per head with something to show, and the probabilities."""

from __future__ import annotations

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
    left = _grid(panels)
    side = _bars(prediction["labels"], look, left.shape[0], font_px(panels[0]))
    notes = [f"nothing found by {', '.join(nothing)}"] if nothing else []
    return _titled([part for part in (left, side) if part is not None], title, notes, panels[0])


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
    canvas = np.full((sum(heights), cell * columns, 3), BACKGROUND, dtype=np.uint8)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for i, panel in enumerate(row):
            canvas[top : top + panel.shape[0], i * cell : i * cell + panel.shape[1]] = panel
        top += height
    return canvas


def _bars(
    labels: Mapping[str, Mapping[str, float]], look: Look, height: int, size: int
) -> Picture | None:
    """Per source its classes with a bar and a figure, in columns as high as the panels."""
    if not labels:
        return None
    pen, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), font_of(size)
    row = round(size * 1.4)
    names = [name for classes in labels.values() for name in (*classes, *labels)]
    name_px = min(max(text_size(pen, name, font)[0] for name in names), 15 * size)
    bar_px, number_px = 6 * size, text_size(pen, "0.00", font)[0]
    column_px = name_px + bar_px + number_px + 3 * size
    columns = _flow(labels, max(height // row, 2 + max(map(len, labels.values()))))
    deepest = max(len(column) for column in columns)
    canvas = Image.new("RGB", (column_px * len(columns), max(height, deepest * row)), BACKGROUND)
    pen = ImageDraw.Draw(canvas)
    for number, column in enumerate(columns):
        x = number * column_px + size
        for place, (name, value) in enumerate(column):
            y = place * row
            if value is None:
                pen.text((x, y), fitted(pen, name, font, column_px - size), fill=DIM, font=font)
                continue
            high = value >= look.score_threshold
            bar = (x + name_px + size // 2, y + size // 4, y + size)
            pen.text((x, y), fitted(pen, name, font, name_px), fill=TEXT, font=font)
            pen.rectangle((bar[0], bar[1], bar[0] + bar_px, bar[2]), fill=_TRACK)
            end = bar[0] + round(bar_px * min(max(value, 0.0), 1.0))
            pen.rectangle((bar[0], bar[1], end, bar[2]), fill=POSITIVE if high else _BAR)
            colour = POSITIVE if high else TEXT
            pen.text((bar[0] + bar_px + size // 2, y), f"{value:.2f}", fill=colour, font=font)
    return np.asarray(canvas)


_Row = tuple[str, "float | None"]  # a class and its probability, or a heading


def _flow(labels: Mapping[str, Mapping[str, float]], rows: int) -> list[list[_Row]]:
    """Blocks of sources in columns of at most ``rows``; a block is never torn."""
    columns: list[list[_Row]] = [[]]
    for source, classes in labels.items():
        block: list[_Row] = [(source, None), *classes.items()]
        if columns[-1] and len(columns[-1]) + 1 + len(block) > rows:
            columns.append([])
        columns[-1] += [("", None), *block] if columns[-1] else block
    return columns


def _titled(parts: Sequence[Picture], title: str, notes: Sequence[str], panel: Picture) -> Picture:
    """Parts side by side under the title and above the notes, on a dark ground."""
    size = font_px(panel)
    font, margin, row = font_of(size), size, round(size * 1.6)
    width = sum(p.shape[1] for p in parts) + 2 * margin
    height = max(p.shape[0] for p in parts)
    top = margin + (row if title else 0)
    canvas = Image.new("RGB", (width, top + height + margin + row * len(notes)), BACKGROUND)
    x = margin
    for part in parts:
        canvas.paste(Image.fromarray(part), (x, top))
        x += part.shape[1]
    pen = ImageDraw.Draw(canvas)
    room = width - 2 * margin
    pen.text((margin, size // 2), fitted(pen, title, font, room), fill=TEXT, font=font)
    for i, note in enumerate(notes):
        y = top + height + size // 2 + i * row
        pen.text((margin, y), fitted(pen, note, font, room), fill=DIM, font=font)
    return np.asarray(canvas)
