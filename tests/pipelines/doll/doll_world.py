"""Images with a bright square per finding, and classifiers that are plain functions of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch

from fx_d2.data.images import read_image
from fx_d2.data.intensity import IntensityConfig, normalise
from fx_d2.data.source import Source, carved

CLASSES = ("No Finding", "Left", "Right", "Rare", "Never")
HEIGHT, WIDTH = 60, 80
SIDE = 40  # of what the members see
# Labels by image number modulo 11.
_LABELS = (
    (0, 1, 0, 0, None),
    (0, 0, 1, 0, None),
    (1, None, None, None, None),
    (0, 1, 1, 0, None),
    (None, -1, 1, None, None),
    (None, 1, -1, None, None),
    (1, 1, 0, 0, None),  # cannot be
    (0, None, 1, 1, None),
    (0, 1, None, 0, None),
    (0, 0, 0, 0, None),
    (None, None, None, None, None),
)


def read(request: Any) -> Iterator[dict[str, Any]]:
    """The reader of the source."""
    for row in json.loads((request.root / "truth.json").read_text()):
        labels = [np.nan if v is None else v for v in row["labels"]]
        yield {
            "file_name": str(request.root / row["file"]),
            "image_id": row["image_id"],
            "height": HEIGHT,
            "width": WIDTH,
            "source": request.source.key,
            "patient_id": row["patient"],
            "view": "PA",
            "labels": np.array(labels, dtype=np.float32),
            "annotations": [
                {"bbox": box, "bbox_mode": 0, "category_id": category}
                for category, box in row["boxes"]
            ],
        }


SOURCE = Source(
    key="doll_toy",
    title="Doll toy",
    folder="doll_toy",
    reader=read,
    splits=carved("all"),
    tasks=("cls", "loc"),
    cls_classes=CLASSES,
    thing_classes=("Right", "Left"),
    licence="none",
    homepage="none",
    citation="none",
    access="open",
)


def write(root: Path, count: int) -> None:
    """Images and their truth."""
    root.mkdir(parents=True)
    rng = np.random.default_rng(4)
    rows = []
    for n in range(count):
        image = rng.integers(20, 60, (HEIGHT, WIDTH)).astype(np.uint8)
        image[0, :4], image[-1, -4:] = 0, 255
        boxes = []
        for k, low in ((1, 4), (2, 44)):
            if _LABELS[n % 11][k] == 1:
                x, y = int(rng.integers(low, low + 16)), int(rng.integers(4, 40))
                image[y : y + 14, x : x + 14] = 200
                boxes.append((0 if k == 2 else 1, [x, y, x + 14, y + 14]))
        cv2.imwrite(str(root / f"{n:03d}.png"), image)
        rows.append({"file": f"{n:03d}.png", "image_id": f"im{n}", "patient": f"p{n // 2}",
                     "labels": _LABELS[n % 11], "boxes": boxes})  # fmt: skip
    (root / "truth.json").write_text(json.dumps(rows))


SOURCE_AS_SPEC = SimpleNamespace(source=SOURCE.key)


class FakeCommittee:
    """As :class:`fx_d2.pipelines.committee.Committee`, without networks.

    A member's map of a class is the brightness of its half of the image and, at a place of its
    own, a stripe that is brighter still: each member by itself is often wrong, two never agree.
    """

    def __init__(self, count: int, classes: Sequence[str] = CLASSES, wrong: float = 3.0) -> None:
        self.classes, self.wrong = tuple(classes), wrong
        self.members = tuple(
            SimpleNamespace(name=f"m{i}", checksum=f"{i:064x}", spec=SOURCE_AS_SPEC, layer="none")
            for i in range(count)
        )
        self.weights = np.ones((count, len(self.classes)))

    def prepare(self, path: str) -> tuple[Any, ...]:
        loaded = read_image(path)
        grey = normalise(loaded, IntensityConfig())
        small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        one = SimpleNamespace(
            image=small, content=(SIDE, SIDE), height=grey.shape[0], width=grey.shape[1]
        )
        return (one,) * len(self.members)

    def answer(self, images: Sequence[Any]) -> Any:
        """Sure of what is bright in its half; never sure of ``Rare``."""
        rows = [[self._chances(seen[0].image, m) for seen in images]
                for m in range(len(self.members))]  # fmt: skip
        return SimpleNamespace(probabilities=torch.tensor(rows, dtype=torch.float32))

    def _chances(self, image: np.ndarray, member: int) -> list[float]:
        half = {"Left": image[:, : SIDE // 2], "Right": image[:, SIDE // 2 :]}
        shift = 0.01 * member * float(image.mean())
        return [
            float(np.clip(half[name].std() * 4 + shift, 0, 1)) if name in half else 0.3
            for name in self.classes
        ]

    def explain(
        self, images: Sequence[Any], classes: Sequence[str], *, size: tuple[int, int],
        method: str, settings: Any,
    ) -> Any:  # fmt: skip
        maps = np.stack([
            [[self.map_of(seen[0].image, name, m, size) for name in classes] for seen in images]
            for m in range(len(self.members))
        ])  # fmt: skip
        errors = None
        if method == "integrated_gradients":
            errors = torch.full(maps.shape[:3], 0.01) + 0.001 * settings.seed
        return SimpleNamespace(maps=torch.from_numpy(maps), completeness=errors)

    def map_of(self, image: np.ndarray, name: str, member: int, size: tuple[int, int]):
        found = image.astype(np.float32).copy()
        found[:, SIDE // 2 :] *= name != "Left"
        found[:, : SIDE // 2] *= name != "Right"
        found[2 + 12 * member, 15:25] = self.wrong  # less than the clipped percent
        return cv2.resize(found, (size[1], size[0]), interpolation=cv2.INTER_LINEAR)


def committee(count: int, **changes: Any) -> FakeCommittee:
    """Made in every process."""
    return FakeCommittee(count, **changes)
