"""Three radiologists on their own, and five in consensus: what each writes about an image.

Truth must be known exactly although readers differ: boxes of one class never touch, each reader
moves a box by little enough that all of them overlap well, and the fused box is their plain mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from fx_d2.phantom.studio import Shot
from fx_d2.phantom.vocabulary_map import classes_of, positive_classes

Box = tuple[float, float, float, float]

_LOCAL, _GLOBAL = "vindr_local", "vindr_global"
_READERS = 17
_MISS_SHARE = 0.2  # of findings that the second and third reader pass over
_JITTER = 0.02  # of a box's sides


@dataclass
class Reading:
    """What one reader, or the consensus, says.

    Attributes:
        reader: R1 to R17, blank for the consensus.
        boxes: local classes with x0, y0, x1, y1.
        global_labels: global classes other than ``No finding``.
    """

    reader: str
    boxes: list[tuple[str, Box]] = field(default_factory=list)
    global_labels: set[str] = field(default_factory=set)

    def labels(self) -> set[str]:
        """Classes this reader marks in the table of image labels."""
        said = {name for name, _ in self.boxes} | self.global_labels
        return said or {"No finding"}


def _apart(boxes: list[Box]) -> list[Box]:
    """Join boxes that touch until none does."""
    done: list[Box] = []
    for box in boxes:
        joined = box
        while True:
            near = [b for b in done if _touch(b, joined)]
            if not near:
                break
            done = [b for b in done if b not in near]
            corners = np.array([joined, *near])
            low, high = corners[:, :2].min(axis=0), corners[:, 2:].max(axis=0)
            joined = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
        done.append(joined)
    return done


def _touch(a: Box, b: Box) -> bool:
    """Whether boxes overlap, with room for the readers' jitter."""
    room = 2 * _JITTER * max(a[2] - a[0], a[3] - a[1], b[2] - b[0], b[3] - b[1]) + 1
    return a[0] < b[2] + room and b[0] < a[2] + room and a[1] < b[3] + room and b[1] < a[3] + room


def _true_boxes(shot: Shot) -> list[tuple[str, Box]]:
    by_class: dict[str, list[Box]] = {}
    for lesion in shot.lesions():
        for name in classes_of(_LOCAL, lesion.name):
            if lesion.box is not None:
                x0, y0, x1, y1 = (float(v) for v in lesion.box)
                by_class.setdefault(name, []).append((x0, y0, x1, y1))
    return [(name, box) for name, boxes in by_class.items() for box in _apart(boxes)]


def consensus(shot: Shot) -> Reading:
    """Everything that is there."""
    return Reading("", _true_boxes(shot), positive_classes(_GLOBAL, shot.names()))


def three_readings(shot: Shot, rng: np.random.Generator) -> list[Reading]:
    """The first reader sees everything; the others miss some, but never all of it."""
    boxes = _true_boxes(shot)
    diseases = sorted(positive_classes(_GLOBAL, shot.names()))
    numbers = rng.choice(_READERS, size=3, replace=False) + 1
    height, width = shot.size
    readings = []
    for k, number in enumerate(numbers):
        reading = Reading(f"R{int(number)}")
        for place, (name, box) in enumerate(boxes):
            luck, moves = rng.random(), rng.uniform(-_JITTER, _JITTER, 4)
            if k == 0 or place == 0 or luck >= _MISS_SHARE:
                reading.boxes.append((name, _moved(box, moves, height, width)))
        for place, disease in enumerate(diseases):
            luck = rng.random()
            if k == 0 or (place == 0 and not boxes) or luck >= _MISS_SHARE:
                reading.global_labels.add(disease)
        readings.append(reading)
    return readings


def _moved(box: Box, moves: np.ndarray, height: int, width: int) -> Box:
    sides = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    corners = np.clip(np.array(box) + moves * sides, 0.0, [width, height] * 2)
    x0, y0, x1, y1 = (round(float(v), 3) for v in corners)
    return x0, y0, x1, y1


def fused_boxes(readings: Sequence[Reading]) -> list[tuple[str, Box]]:
    """Mean of the readers' boxes of one class that touch each other."""
    groups: list[tuple[str, list[Box]]] = []
    for reading in readings:
        for name, box in reading.boxes:
            for other, members in groups:
                if other == name and _overlap(members[0], box):
                    members.append(box)
                    break
            else:
                groups.append((name, [box]))
    fused = []
    for name, members in groups:
        x0, y0, x1, y1 = (float(v) for v in np.mean(members, axis=0))
        fused.append((name, (x0, y0, x1, y1)))
    return fused


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
