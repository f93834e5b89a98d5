"""Radiographs with their annotations drawn on them: boxes, outlines, masks, labels, a legend."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from .images import read_image
from .masks import load_mask
from .record import UNCERTAIN, Record, box_xyxy
from .source import Source

Picture = npt.NDArray[np.uint8]  # (H, W, 3) RGB
_Place = tuple[float, float, float, float]  # x0, y0, x1, y1

# Distinguishable with the common colour blindnesses, and on grey.
_BASE_COLOURS = (
    (86, 180, 233),
    (230, 159, 0),
    (0, 200, 140),
    (240, 228, 66),
    (235, 64, 64),
    (210, 110, 230),
    (120, 130, 255),
    (255, 175, 200),
)
BACKGROUND = (18, 20, 24)
TEXT = (235, 235, 235)
DIM = (135, 140, 148)
POSITIVE = (255, 196, 87)
_UNCERTAIN_COLOUR = (150, 190, 255)
_FILL = 0.32  # opacity of a mask
_MAX_EMPTY = 3  # empty masks named one by one in the legend


@dataclass
class Scene:
    """What is to be drawn, in pixels of ``image``.

    Args:
        image: (H, W) float in [0, 1].
        boxes: (class, (x0, y0, x1, y1), note).
        outlines: (class, mask) of instances, (H, W) bool.
        masks: class -> dense mask, (H, W) bool.
        labels: class -> 1, 0, -1 (uncertain) or NaN (not annotated).
        title: line above the picture.
        notes: what cannot be seen, such as "boxes: not annotated".
    """

    image: npt.NDArray[np.float32]
    boxes: list[tuple[str, tuple[float, float, float, float], str]] = field(default_factory=list)
    outlines: list[tuple[str, npt.NDArray[np.bool_]]] = field(default_factory=list)
    masks: dict[str, npt.NDArray[np.bool_]] = field(default_factory=dict)
    labels: dict[str, float] = field(default_factory=dict)
    title: str = ""
    notes: list[str] = field(default_factory=list)


def colour_of(number: int) -> tuple[int, int, int]:
    """The colour of class ``number``: eight chosen ones, then hues far from their neighbours."""
    if number < len(_BASE_COLOURS):
        return _BASE_COLOURS[number]
    hue = (number * 0.618034) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.55 + 0.3 * (number % 2), 0.95)
    return int(red * 255), int(green * 255), int(blue * 255)


def display(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Grey values stretched to [0, 1] between the 0.5th and 99.5th percentile, for looking only."""
    step = max(1, min(pixels.shape) // 512)
    low, high = np.percentile(pixels[::step, ::step], (0.5, 99.5))
    if high <= low:
        low, high = float(pixels.min()), max(float(pixels.max()), float(pixels.min()) + 1)
    return np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32)


def scene_of_record(record: Record, source: Source) -> Scene:
    """Read the image and the masks of a record."""
    image = display(read_image(record["file_name"]).pixels)
    height, width = image.shape
    title = f"{source.key}  {record['image_id']}"
    details = [record.get("view"), record.get("patient_id") and f"patient {record['patient_id']}"]
    scene = Scene(image, title="  ".join([title, *(d for d in details if d)]))
    if "labels" in record:
        scene.labels = dict(zip(source.cls_classes, map(float, record["labels"]), strict=True))
    if "annotations" in record:
        for annotation in record["annotations"]:
            name = source.thing_classes[annotation["category_id"]]
            readers = annotation.get("n_readers")
            note = f" x{readers}" if readers else ""
            scene.boxes.append((name, box_xyxy(annotation), note))
            ref = annotation.get("segmentation")
            if ref:
                ref = {"polygons": ref} if isinstance(ref, list) else ref
                mask = load_mask(ref, height, width, resize=source.resize_masks)
                scene.outlines.append((name, mask))
        if not record["annotations"]:
            scene.notes.append("boxes: annotated, none")
    elif source.thing_classes:
        scene.notes.append("boxes: not annotated")
    for name, ref in record.get("masks", {}).items():
        scene.masks[name] = load_mask(ref, height, width, resize=source.resize_masks)
    if source.seg_classes and "masks" not in record:
        scene.notes.append("masks: not annotated")
    return scene


def scene_of_sample(sample: dict[str, Any], source: Source) -> Scene:
    """What the mapper made of a record, as the model sees it (arrays or CPU tensors)."""
    scene = Scene(np.asarray(sample["image"], dtype=np.float32)[0])
    task = sample["task"] if isinstance(sample["task"], str) else "+".join(sample["task"])
    height, width = scene.image.shape
    scene.title = f"{source.key}/{task}  {sample['image_id']}  {height} x {width}"
    if "labels" in sample:
        values = map(float, np.asarray(sample["labels"]))
        scene.labels = dict(zip(source.cls_classes, values, strict=True))
    if "instances" in sample:
        found = sample["instances"]
        names = [source.thing_classes[int(i)] for i in found.gt_classes]
        boxes = np.asarray(found.gt_boxes.tensor, dtype=float)
        scene.boxes = [
            (name, (float(x0), float(y0), float(x1), float(y1)), "")
            for name, (x0, y0, x1, y1) in zip(names, boxes, strict=True)
        ]
        if found.has("gt_masks"):
            scene.outlines = list(zip(names, np.asarray(found.gt_masks.tensor), strict=True))
        if not names:
            scene.notes.append("boxes: annotated, none")
    elif "loc" in task:
        scene.notes.append("boxes: not annotated")
    if "sem_masks" in sample:
        masks = np.asarray(sample["sem_masks"]).astype(bool)
        known = np.asarray(sample["sem_known"])
        pairs = zip(source.seg_classes, masks, strict=True)
        scene.masks = {name: mask for (name, mask), k in zip(pairs, known, strict=True) if k.any()}
        if not known.any():
            scene.notes.append("masks: not annotated")
    return scene


def draw_record(
    record: Record, source: Source, *, size_px: int = 640, bare: bool = False
) -> Picture:
    """A record as a picture of about ``size_px`` with its legend beside it; ``bare`` draws none."""
    if bare:
        image = display(read_image(record["file_name"]).pixels)
        return draw_scene(Scene(image, title=source.key), size_px=size_px)
    return draw_scene(scene_of_record(record, source), source.thing_classes, size_px=size_px)


def draw_scene(
    scene: Scene, classes: Sequence[str] = (), *, size_px: int = 640, legend: bool = True
) -> Picture:
    """Draw ``scene`` with its longer side ``size_px`` high or wide, and a legend at its right.

    Args:
        scene: what to draw.
        classes: fixes the order of colours, so that a class looks alike in every picture.
        size_px: longer side of the radiograph.
        legend: whether there is one.
    """
    colours = _colours(scene, classes)
    height, width = scene.image.shape
    scale = size_px / max(height, width)
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrink = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    grey = cv2.resize(scene.image, shape, interpolation=shrink)
    canvas = np.repeat(np.clip(grey, 0, 1)[..., None] * 255, 3, axis=2).astype(np.float32)
    for name, mask in scene.masks.items():
        _paint_mask(canvas, mask, colours[name], fill=_FILL)
    for name, mask in scene.outlines:
        _paint_mask(canvas, mask, colours[name], fill=_FILL / 2)
    picture = np.clip(canvas, 0, 255).astype(np.uint8)
    for name, box, _ in scene.boxes:
        _paint_box(picture, [v * scale for v in box], colours[name])
    picture = _name_boxes(picture, scene, colours, scale)
    return _beside_legend(picture, scene.title, list(_legend(scene, colours)) if legend else [])


def _colours(scene: Scene, classes: Sequence[str]) -> dict[str, tuple[int, int, int]]:
    names = [*classes, *scene.masks, *(b[0] for b in scene.boxes), *(o[0] for o in scene.outlines)]
    return {name: colour_of(i) for i, name in enumerate(dict.fromkeys(names))}


def _paint_mask(
    canvas: npt.NDArray[np.float32],
    mask: npt.NDArray[np.bool_],
    colour: tuple[int, int, int],
    *,
    fill: float,
) -> None:
    """Blend a mask into the canvas and draw its outline."""
    size = (canvas.shape[1], canvas.shape[0])
    cover = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    alpha = (cover * fill)[..., None]
    canvas += (np.array(colour, dtype=np.float32) - canvas) * alpha
    edge = cv2.findContours(
        (cover > 0.5).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
    )[0]
    line = np.zeros(canvas.shape[:2], dtype=np.uint8)
    cv2.drawContours(line, edge, -1, 255, 1, cv2.LINE_AA)
    alpha = (line.astype(np.float32) / 255 * 0.9)[..., None]
    canvas += (np.array(colour, dtype=np.float32) - canvas) * alpha


def _paint_box(picture: Picture, box: Sequence[float], colour: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = (round(v) for v in box)
    thick = max(1, round(max(picture.shape) / 420))
    # A dark border keeps the line visible on bone.
    cv2.rectangle(picture, (x0, y0), (x1, y1), (0, 0, 0), thick + 2, cv2.LINE_AA)
    cv2.rectangle(picture, (x0, y0), (x1, y1), colour, thick, cv2.LINE_AA)


def font_of(size_px: int) -> Any:
    """Pillow's own font."""
    return ImageFont.load_default(size=size_px)


def font_px(side_px: int) -> int:
    """Size of the text on a picture of this longer side."""
    return max(12, round(side_px / 42))


def _name_boxes(
    picture: Picture,
    scene: Scene,
    colours: dict[str, tuple[int, int, int]],
    scale: float,
) -> Picture:
    """Names at the boxes, none over another."""
    image = Image.fromarray(picture)
    pen, font = ImageDraw.Draw(image), font_of(font_px(max(picture.shape[:2])))
    taken: list[_Place] = []
    for name, box, note in scene.boxes:
        wide, high = text_size(pen, name + note, font)
        size = (wide + 6, high + 5)
        place = _free_place([v * scale for v in box], size, image.size, taken)
        taken.append(place)
        pen.rectangle(place, fill=colours[name])
        pen.text((place[0] + 3, place[1] + 1), name + note, fill=(0, 0, 0), font=font)
    return np.asarray(image)


def _free_place(
    box: Sequence[float], size: tuple[int, int], frame: tuple[int, int], taken: Sequence[_Place]
) -> _Place:
    """Where a name of ``size`` stands: at its box where that is free, else as near as possible.

    Args:
        box: in pixels of the picture.
        size: (width, height) of the name with its margin.
        frame: (width, height) of the picture.
        taken: places of other names.
    """
    x0, y0, x1, y1 = box
    wide, high = size
    beside = [
        *((x0, y0 - high - 1), (x0, y1 + 2), (x1 - wide, y0 - high - 1), (x1 - wide, y1 + 2)),
        *((x0, y0 + 2), (x1 + 2, y0), (x0 - wide - 2, y0)),
    ]
    step = max(high // 2, 1)
    rows = range(0, max(frame[1] - high, 1), step)
    anywhere = [(x, y) for x in (x0, x1 - wide, 0, frame[0] - wide) for y in rows]
    anywhere.sort(key=lambda spot: abs(spot[0] - x0) + abs(spot[1] - y0))
    inside = [
        (min(max(x, 0), max(frame[0] - wide - 1, 0)), min(max(y, 0), max(frame[1] - high - 1, 0)))
        for x, y in (*beside, *anywhere)
    ]
    places = [(x, y, x + wide, y + high) for x, y in inside]
    free = (place for place in places if not any(_meet(place, other) for other in taken))
    return next(free, places[0])


def _meet(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def text_size(pen: ImageDraw.ImageDraw, text: str, font: Any) -> tuple[int, int]:
    """(width, height) in pixels."""
    left, _, right, bottom = pen.textbbox((0, 0), text, font=font)
    return int(right - left), int(bottom)


@dataclass(frozen=True)
class _Line:
    text: str
    colour: tuple[int, int, int] = TEXT
    swatch: tuple[int, int, int] | None = None
    hollow: bool = False


def _legend(scene: Scene, colours: dict[str, tuple[int, int, int]]) -> Iterator[_Line]:
    if scene.labels:
        yield _Line("labels", DIM)
        yield from _label_lines(scene.labels)
    counts: dict[str, int] = {}
    for name, _, _ in scene.boxes:
        counts[name] = counts.get(name, 0) + 1
    if counts:
        yield _Line("boxes", DIM)
        for name, number in counts.items():
            times = f" x{number}" if number > 1 else ""
            yield _Line(name + times, swatch=colours[name], hollow=True)
    if scene.masks:
        yield _Line("masks", DIM)
        empty = [name for name, mask in scene.masks.items() if not mask.any()]
        for name in scene.masks:
            if name not in empty:
                yield _Line(name, swatch=colours[name])
        if len(empty) > _MAX_EMPTY:
            yield _Line(f"{len(empty)} empty", DIM)
        else:
            yield from (_Line(f"{name} (empty)", DIM) for name in empty)
    for note in scene.notes:
        yield _Line(note, DIM)


def _label_lines(labels: dict[str, float]) -> Iterator[_Line]:
    soft = {name: v for name, v in labels.items() if 0 < v < 1}  # a smoothed uncertain label
    unknown = [name for name, value in labels.items() if np.isnan(value)]
    positive = [name for name, value in labels.items() if value == 1]
    uncertain = [name for name, value in labels.items() if value == UNCERTAIN]
    for name in positive:
        yield _Line(f"+ {name}", POSITIVE)
    for name in uncertain:
        yield _Line(f"? {name} (uncertain)", _UNCERTAIN_COLOUR)
    for name, value in soft.items():
        yield _Line(f"~ {name} {value:.2f}", _UNCERTAIN_COLOUR)
    if not positive and not uncertain and not soft and len(unknown) < len(labels):
        yield _Line("all negative")
    if unknown:
        more = "all" if len(unknown) == len(labels) else str(len(unknown))
        yield _Line(f"{more} not annotated", DIM)


def _beside_legend(picture: Picture, title: str, lines: Sequence[_Line]) -> Picture:
    """The picture under its title, the legend at its right, on a dark ground."""
    size = font_px(max(picture.shape[:2]))
    font = font_of(size)
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    row = round(size * 1.45)
    indent = round(size * 1.3)
    widths = [text_size(pen, line.text, font)[0] + (indent if line.swatch else 0) for line in lines]
    side = max(widths, default=0) + (2 * size if lines else 0)
    top = row + 4 if title else 0
    height = max(picture.shape[0] + top, top + row * len(lines) + size)
    image = Image.new("RGB", (picture.shape[1] + side, height), BACKGROUND)
    image.paste(Image.fromarray(picture), (0, top))
    pen = ImageDraw.Draw(image)
    if title:
        pen.text((4, 2), fitted(pen, title, font, image.width - 8), fill=TEXT, font=font)
    x, y = picture.shape[1] + size, top + size // 2
    for line in lines:
        if line.swatch:
            place = (x, y + size // 4, x + size - 3, y + size // 4 + size - 3)
            pen.rectangle(
                place, fill=None if line.hollow else line.swatch, outline=line.swatch, width=2
            )
        pen.text((x + (indent if line.swatch else 0), y), line.text, fill=line.colour, font=font)
        y += row
    return np.asarray(image)


def fitted(pen: ImageDraw.ImageDraw, text: str, font: Any, width: int) -> str:
    """``text``, cut where it is wider than ``width`` pixels."""
    if text_size(pen, text, font)[0] <= width:
        return text
    while text and text_size(pen, text + "...", font)[0] > width:
        text = text[:-1]
    return text + "..."


def contact_sheet(pictures: Sequence[Picture], *, columns: int = 4, gap_px: int = 6) -> Picture:
    """Pictures in rows of ``columns``, each row as high as its tallest picture."""
    if not pictures:
        raise ValueError("no picture to put on the sheet")
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    cell = max(picture.shape[1] for picture in pictures) + gap_px
    heights = [max(picture.shape[0] for picture in row) + gap_px for row in rows]
    width = cell * min(columns, len(pictures)) + gap_px
    sheet = np.full((sum(heights) + gap_px, width, 3), BACKGROUND, dtype=np.uint8)
    top = gap_px
    for row, height in zip(rows, heights, strict=True):
        for i, picture in enumerate(row):
            left = gap_px + i * cell
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        top += height
    return sheet
