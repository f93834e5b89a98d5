"""An image and a recipe to a mixed image and its exact truth; inputs are never changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from ..formats.contract import LoadedImage
from ..masks import MaskRef, empty_mask, encode_mask, instance_reference, load_mask
from ..record import Record, box_xyxy
from ..source import Source
from ..transforms import FxResizeTransform
from .bank import PatchBank
from .classes import is_finding_free, union
from .lungs import Box
from .place import (
    DoesNotFit,
    IntBox,
    Paste,
    Resized,
    matching,
    meets,
    placed_by,
    resized,
    target_box,
    tight_box,
    weights,
    window,
)
from .recipe import Recipe
from .settings import MixSettings
from .truth import Lesion, Truth

# Percentiles of the base come from about this many pixels: the scale of a patch, no more.
_SAMPLE_PIXELS = 1 << 12
_LUNG_PX = 192
_KEPT_LUNGS = 1 << 16
_OPAQUE = 0.999


@dataclass(frozen=True)
class Mixed:
    """The result: its pixels, what is known of it, and how many slots found no place."""

    image: LoadedImage
    truth: Truth
    dropped: int


class LesionMixer:
    """Carries out recipes on images of one base source.

    Args:
        base: its row.
        bank: of patches.
        settings: how lesions are placed and blended.
    """

    def __init__(self, base: Source, bank: PatchBank, settings: MixSettings) -> None:
        self.base, self.bank, self.settings = base, bank, settings
        # Finding the lungs costs as much as two pastes, and they stay where they are.
        self._kept: dict[tuple[str, tuple[int, ...]], Box | DoesNotFit] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_kept": {}}

    def apply(self, record: Record, loaded: LoadedImage, recipe: Recipe) -> Mixed:
        """Paste what ``recipe`` says.

        Args:
            record: of the base image.
            loaded: its pixels, at their full size or from a cache; the result has their size.
            recipe: see :class:`Recipe`.

        Raises:
            DoesNotFit: the first slot has no place.
        """
        size = (loaded.pixels.shape[0], loaded.pixels.shape[1])
        low, high = _limits(loaded.pixels)
        lungs = self._lungs(record, loaded.pixels, low, high)
        pixels = loaded.pixels.copy()
        taken: list[IntBox] = []
        lesions: list[Lesion] = []
        theirs = self._own_boxes(record, loaded)
        dropped = 0
        for number, slot in enumerate(recipe.slots):
            reason = "no patch"
            for paste in slot:
                try:
                    avoid: list[Sequence[float]] = [*taken]
                    avoid += [box for _, box, _ in theirs or ()]
                    blocked = avoid if paste.weight >= _OPAQUE else [*taken]
                    lesion = self._paste(pixels, paste, lungs, blocked, loaded, (low, high))
                except DoesNotFit as exc:
                    reason = str(exc)
                    continue
                lesions.append(lesion)
                taken.append(lesion.box)
                break
            else:
                if number == 0:
                    raise DoesNotFit(reason)
                dropped += 1
        facts = replace(loaded.facts, height=size[0], width=size[1])
        truth = self._truth(record, loaded, lesions, theirs)
        return Mixed(LoadedImage(pixels, facts), truth, dropped)

    def _lungs(
        self, record: Record, pixels: npt.NDArray[np.float32], low: float, high: float
    ) -> Box:
        key = (record["image_id"], pixels.shape)
        if key not in self._kept:
            if len(self._kept) >= _KEPT_LUNGS:
                self._kept.clear()
            step = max(1, max(pixels.shape) // _LUNG_PX)  # every nth pixel will do
            small = np.clip((pixels[::step, ::step] - low) / (high - low), 0, 1)
            grey = np.ascontiguousarray(small, dtype=np.float32)
            try:
                self._kept[key] = placed_by(grey, record, self.settings)
            except DoesNotFit as exc:
                self._kept[key] = exc
        found = self._kept[key]
        if isinstance(found, DoesNotFit):
            raise DoesNotFit(str(found))
        return found

    def _paste(
        self,
        pixels: npt.NDArray[np.float32],
        paste: Paste,
        lungs: Box,
        blocked: Sequence[Sequence[float]],
        loaded: LoadedImage,
        limits: tuple[float, float],
    ) -> Lesion:
        """Change ``pixels`` and say what was pasted."""
        patch = self.bank.patches[paste.patch]
        size = (pixels.shape[0], pixels.shape[1])
        box = target_box(patch, paste, size, lungs)
        if meets(box, blocked):
            raise DoesNotFit("another lesion lies there")
        piece = resized(patch, *self.bank.load(paste.patch), box)
        weight = weights(piece, self.settings)
        factor, summand = self._grey_levels(pixels, piece, weight, box, limits)
        under = pixels[box[1] : box[3], box[0] : box[2]]
        x0, y0, x1, y1 = piece.inner
        # In place: temporaries of this size cost more than what is computed.
        mixed = piece.grey[y0:y1, x0:x1] * np.float32(factor)
        mixed += np.float32(summand)
        np.clip(mixed, *limits, out=mixed)
        mixed -= under
        mixed *= weight if paste.weight == 1 else weight * np.float32(paste.weight)
        mixed += under
        step = _step(loaded)
        if step != 1:
            mixed /= np.float32(step)
        np.rint(mixed, out=mixed)
        if step != 1:
            mixed *= np.float32(step)
        np.clip(mixed, 0, loaded.facts.max_value, out=mixed)
        pasted = weight > 0
        np.copyto(under, mixed, where=pasted)
        stated = tight_box(pasted, box[0], box[1])
        mask = None
        if piece.mask is not None:
            left, top = x0 - box[0], y0 - box[1]
            mask = piece.mask[
                stated[1] + top : stated[3] + top, stated[0] + left : stated[2] + left
            ]
        return Lesion(patch.label, stated, mask, paste.weight, paste.patch)

    def _grey_levels(
        self,
        pixels: npt.NDArray[np.float32],
        piece: Resized,
        weight: npt.NDArray[np.float32],
        box: IntBox,
        limits: tuple[float, float],
    ) -> tuple[float, float]:
        """Factor and summand from a patch's grey values to those of the image."""
        low, high = limits
        if self.settings.match != "surround":
            return high - low, low
        around = np.ones(piece.grey.shape, dtype=np.uint8)
        x0, y0, x1, y1 = piece.inner
        around[y0:y1, x0:x1] = weight == 0
        if piece.mask is not None:
            around[piece.mask] = 0
        place = window(piece, box, (pixels.shape[0], pixels.shape[1]))
        return matching(
            piece.grey[place.crop],
            np.ascontiguousarray(around[place.crop]),
            pixels[place.image],
            limits,
        )

    def _own_boxes(
        self, record: Record, loaded: LoadedImage
    ) -> list[tuple[str, tuple[float, float, float, float], MaskRef | None]] | None:
        """The base's boxes in pixels of the result; None where they are not annotated."""
        if "annotations" not in record:
            free = is_finding_free(record["labels"], self.base.cls_classes)
            return [] if free else None
        shape = loaded.pixels.shape
        scale = np.array([shape[1] / loaded.facts.width, shape[0] / loaded.facts.height] * 2)
        found = []
        for annotation in record["annotations"]:
            box = tuple(float(v) for v in np.array(box_xyxy(annotation)) * scale)
            mask = None
            if annotation.get("segmentation"):
                mask = self._sized(instance_reference(annotation["segmentation"]), loaded)
            name = self.base.thing_classes[annotation["category_id"]]
            found.append((name, box, mask))
        return found  # type: ignore[return-value]

    def _sized(self, ref: MaskRef, loaded: LoadedImage) -> MaskRef:
        """A mask of the base as one of the result."""
        full = (loaded.facts.height, loaded.facts.width)
        size = (loaded.pixels.shape[0], loaded.pixels.shape[1])
        if full == size or ref == empty_mask():
            return ref
        mask = load_mask(ref, *full, resize=self.base.resize_masks).astype(np.uint8)
        return encode_mask(FxResizeTransform(*full, *size).apply_segmentation(mask).astype(bool))

    def _truth(
        self, record: Record, loaded: LoadedImage, lesions: list[Lesion], theirs: list | None
    ) -> Truth:
        classes, labels = self.base.cls_classes, record["labels"]
        soft = self.settings.soft_labels
        pasted = [(lesion.label, lesion.weight if soft else 1.0) for lesion in lesions]
        masks = {name: self._sized(ref, loaded) for name, ref in record.get("masks", {}).items()}
        if "masks" not in record:
            # An image label that is 0 says that there is no such pixel.
            free = is_finding_free(labels, classes)
            for name, value in zip(classes, labels, strict=True):
                if value == 0 or (free and np.isnan(value)):
                    masks[name] = empty_mask()
        return Truth(
            size=(loaded.pixels.shape[0], loaded.pixels.shape[1]),
            labels=union(labels, classes, pasted),
            lesions=lesions,
            boxes=theirs,
            masks=masks,
        )


def _limits(pixels: npt.NDArray[np.float32]) -> tuple[float, float]:
    """Grey values that stand for 0 and 1 of a normalised patch."""
    step = max(1, int(np.sqrt(pixels.size / _SAMPLE_PIXELS)))
    sample = pixels[step // 2 :: step, step // 2 :: step].ravel()
    last = len(sample) - 1
    places = (round(0.005 * last), round(0.995 * last))
    low, high = np.partition(sample, places)[list(places)]  # np.percentile costs thrice as much
    if high - low <= 1e-6 * max(abs(low), abs(high), 1.0):
        low, high = float(pixels.min()), float(pixels.min()) + 1.0
    return float(low), float(high)


def _step(loaded: LoadedImage) -> float:
    """Distance of two grey values that a file can hold: of 8 bit, or as fine as 16 bit allow."""
    top = loaded.facts.max_value
    if loaded.facts.bits <= 8 and top == 255:
        return 1.0
    scale = 65535 / top
    return 1.0 / (np.floor(scale) if scale >= 1 else scale)


def encoded_png(image: LoadedImage) -> bytes:
    """The image as a PNG of 8 or 16 bit that reads back as it is, up to a factor of the depth."""
    step = _step(image)
    kind = np.uint8 if step == 1.0 and image.facts.max_value == 255 else np.uint16
    values = np.rint(image.pixels / step).clip(0, np.iinfo(kind).max).astype(kind)
    ok, data = cv2.imencode(".png", values, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not ok:
        raise OSError(f"an image of {values.shape} cannot be encoded as PNG")
    return data.tobytes()
