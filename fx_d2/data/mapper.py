"""A record to what the model is fed: one image, and the targets its task needs.

The same class serves training and evaluation, and its reading and normalisation serve prediction.
Every draw comes from (seed, position), so a batch does not depend on which worker makes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Boxes, Instances
from fvcore.transforms.transform import PadTransform, TransformList

from .cache import CachedReader
from .draws import draw_key, rng_for, seeded_globals
from .errors import DataError
from .images import LoadedImage, read_image
from .intensity import IntensityConfig, normalise
from .kept_masks import KeptMasks
from .label_policy import UNCERTAIN_POLICIES, UNKNOWN_POLICIES, LabelPolicy, Rule, for_evaluation
from .lesion_mix.online import OnlineMix
from .lung_masks import LungInput
from .masks import MaskRef, instance_reference, load_mask
from .record import Record, box_xyxy
from .second_view import SecondView
from .source import TASKS, Source
from .sources import get_source
from .transforms import (
    FxResizeTransform,
    build_augmentations,
    is_mirrored,
    keeps_boxes_tight,
    mirror_order,
)

Position = tuple[int | str, ...]
# What an image may be known by beside its pixels; some heads are told.
CONTEXT_KEYS = ("view", "body_part")


class ImageReader(Protocol):
    """Anything that gives the image of a record: the files themselves or a cache of them."""

    def read(self, record: Record) -> LoadedImage:
        """The image; a cache may hold fewer pixels than ``facts.height`` x ``facts.width``."""
        ...


class FileReader:
    """Reads the original files.

    Args:
        voi: handed to :func:`read_image`.
    """

    def __init__(self, voi: str = "auto") -> None:
        self.voi = voi

    def read(self, record: Record) -> LoadedImage:
        """The image of ``record`` at its full size."""
        return read_image(record["file_name"], voi=self.voi)


def _reader(cache: str, voi: str) -> ImageReader:
    return CachedReader(cache, voi) if cache else FileReader(voi)


def seed_of(cfg: Any) -> int:
    """The seed of every draw; Detectron2's -1 means "any", ours has to be the same twice."""
    return max(int(cfg.SEED), 0)


class FxMapper:
    """Maps a record to a dict in Detectron2's format plus what partial supervision needs.

    Keys of the result:

    * ``image``: float32 (channels, H, W) in [0, 1];
    * ``second_view``: likewise, the same place with other grey levels; absent unless asked for;
    * ``image_id``, ``file_name``, ``source``, and ``height``, ``width``: original pixels;
    * ``synthetic``: whether lesions were pasted onto it;
    * ``content_size``: (h, w) of the image within H x W; the rest is padding at the right and
      bottom;
    * ``shown_box``: (x0, y0, x1, y1) in original pixels of what the image shows, where only the
      lungs are shown; absent unless asked for;
    * ``view``, ``body_part``: of the record, absent where it does not state them;
    * ``task``: the task, or a tuple of tasks at evaluation;
    * ``labels``: float32 (C,) over the source's ``cls_classes``, NaN where there is no target;
    * ``instances``: with ``gt_boxes``, ``gt_classes`` and, where the source has them, ``gt_masks``
      (BitMasks); empty when nothing was found, the key absent when boxes are not annotated; beside
      it ``draw_seed``, a whole number that decides which regions are learned from;
    * ``sem_masks``: uint8 (C, H, W) of 0 and 1 over ``seg_classes``, and ``sem_known``: bool (C,),
      which of them are annotated.

    Only what the task needs is decoded.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: Mapping[str, Sequence[T.Augmentation]],
        intensity: IntensityConfig,
        label_policy: LabelPolicy,
        reader: ImageReader,
        seed: int = 0,
        channels: int = 3,
        min_box_px: float = 1.0,
        targets: bool = True,
        second_view: SecondView | None = None,
        lesion_mix: OnlineMix | None = None,
        lungs: LungInput | None = None,
    ) -> None:
        """Keep the settings; ``FxMapper(cfg, is_train)`` takes them from a config.

        Args:
            is_train: whether labels become targets by ``label_policy``; else uncertain ones
                become NaN.
            augmentations: per task.
            intensity: how grey values become [0, 1].
            label_policy: what uncertain and unknown labels become in training.
            reader: where images come from.
            seed: of every draw.
            channels: 1, or 3 equal ones.
            min_box_px: boxes with a shorter side after the augmentations are dropped.
            targets: whether boxes and masks are made; labels always are, they cost nothing.
            second_view: makes ``second_view``, or None.
            lesion_mix: pastes lesions onto training images, or None.
            lungs: shows the lungs, or all but them, in place of the image; or None.
        """
        if channels not in (1, 3):
            raise ValueError(f"INPUT.FX.CHANNELS is {channels}; allowed: 1, 3")
        self.is_train, self.targets = is_train, targets
        self.augmentations = {task: T.AugmentationList(a) for task, a in augmentations.items()}
        self.intensity, self.label_policy = intensity, label_policy
        self.reader, self.seed = reader, seed
        self.channels, self.min_box_px = channels, min_box_px
        self._kept = KeptMasks()
        self.second_view, self.lesion_mix, self.lungs = second_view, lesion_mix, lungs

    @classmethod
    def from_config(
        cls,
        cfg: Any,
        is_train: bool = True,
        *,
        reader: ImageReader | None = None,
        targets: bool = True,
    ) -> dict[str, Any]:
        """The arguments that the config decides."""
        fx = cfg.INPUT.FX
        intensity = IntensityConfig.from_dict({k.lower(): v for k, v in fx.INTENSITY.items()})
        policy = LabelPolicy(
            uncertain=Rule.parse(fx.UNCERTAIN, fx.UNCERTAIN_BY, UNCERTAIN_POLICIES),
            unknown=Rule.parse(fx.UNKNOWN, fx.UNKNOWN_BY, UNKNOWN_POLICIES),
            smooth=tuple(fx.UNCERTAIN_SMOOTH),
        )
        return {
            "is_train": is_train,
            "augmentations": {task: build_augmentations(cfg, task, is_train) for task in TASKS},
            "intensity": intensity,
            "label_policy": policy,
            "reader": reader or _reader(fx.CACHE, intensity.voi),
            "seed": seed_of(cfg),
            "channels": fx.CHANNELS,
            "min_box_px": fx.MIN_BOX_PX,
            "targets": targets,
            "second_view": SecondView.from_config(cfg) if is_train else None,
            "lesion_mix": OnlineMix.from_config(cfg) if is_train else None,
            "lungs": LungInput.from_config(cfg),
        }

    def check(self, source: Source, task: str) -> None:
        """Raise early what would otherwise come up in the middle of a pass: classes, policies."""
        if task == "cls":
            rng = rng_for(0, "check")
            unknown = np.full(len(source.cls_classes), np.nan, dtype=np.float32)
            self.label_policy.targets(unknown, source.key, source.cls_classes, rng)
        if any(isinstance(a, T.RandomFlip) for a in self.augmentations[task].augs):
            mirror_order(source.classes(task))

    def __call__(
        self, record: Record, task: str | Sequence[str], position: Position
    ) -> dict[str, Any]:
        """Map one record.

        Args:
            record: as in fx_d2/data/record.py.
            task: one task, or several that share their augmentations (at evaluation).
            position: where in the schedule this image stands; decides every draw.
        """
        tasks = (task,) if isinstance(task, str) else tuple(task)
        source = get_source(record["source"])
        loaded = self.reader.read(record)
        if self.lesion_mix is not None:
            shapes = "seg" in tasks or ("loc" in tasks and source.instance_masks)
            record, loaded = self.lesion_mix(record, loaded, self.seed, position, masks=shapes)
        height, width = self._original_size(record, loaded)
        whole = grey = normalise(loaded, self.intensity)
        shown: dict[str, Any] = {}
        if self.lungs is not None:
            self.lungs.check(tasks if self.targets else ("cls",))
            size = (height, width)
            grey, shown = self.lungs.shown(whole, record, size, resize=source.resize_masks)
        with seeded_globals(self.seed, "augment", *position):
            given = T.AugInput(grey, boxes=_to_keep(record, tasks, grey.shape, (height, width)))
            applied = self.augmentations[tasks[0]](given)
        frame = _Frame(height, width, whole.shape, applied)
        if not frame.detailed_enough(given.image.shape):
            raise DataError(
                "the cached copy is {} x {}, less than the network sees".format(*whole.shape),
                file=record["file_name"],
                fix="build the cache at INPUT.FX.SIZE or more (tools/cache_images.py --size)",
            )
        result: dict[str, Any] = {
            "image": self._tensor(given.image, record),
            "image_id": record["image_id"],
            "file_name": record["file_name"],
            "source": source.key,
            "synthetic": bool(record.get("synthetic")),
            "task": tasks[0] if len(tasks) == 1 else tasks,
            "height": height,
            "width": width,
            "content_size": frame.content_size(given.image.shape),
        }
        result |= shown | {key: record[key] for key in CONTEXT_KEYS if record.get(key) is not None}
        if self.second_view is not None:
            # Draws of its own: the first view is the same whether there is a second one or not.
            with seeded_globals(self.seed, "second view", *position):
                result["second_view"] = self._tensor(self.second_view(grey, applied), record)
        labels = self._labels(record, source, frame, position, needed="cls" in tasks)
        if labels is not None:
            result["labels"] = labels
        if self.targets and "loc" in tasks and "annotations" in record:
            result["instances"] = self._instances(record, source, frame, given.image.shape)
            result["draw_seed"] = draw_key(self.seed, "regions", *position) % 2**63
        if self.targets and "seg" in tasks:
            masks, known = self._sem_masks(record, source, frame, given.image.shape)
            result["sem_masks"], result["sem_known"] = masks, known
        return result

    def _original_size(self, record: Record, loaded: LoadedImage) -> tuple[int, int]:
        found = (loaded.facts.height, loaded.facts.width)
        stated = (record.get("height"), record.get("width"))
        if stated[0] is not None and stated != found:
            raise DataError(
                f"image is {found[0]} x {found[1]} (height x width)",
                file=record["file_name"],
                row=f"image_id {record['image_id']!r}",
                expected=f"{stated[0]} x {stated[1]}, as its index states",
                fix="use images and index of one release; tools/doctor.py lists such files",
            )
        return found

    def _tensor(self, image: np.ndarray, record: Record) -> torch.Tensor:
        if not np.isfinite(image).all():
            raise DataError(
                "image has values that are not numbers after normalisation",
                file=record["file_name"],
                row=f"image_id {record['image_id']!r}",
                fix="tools/doctor.py shows what is wrong with it",
            )
        image = np.clip(image, 0, 1).astype(np.float32, copy=False)
        return torch.from_numpy(np.repeat(image[None], self.channels, axis=0))

    def _labels(
        self, record: Record, source: Source, frame: _Frame, position: Position, *, needed: bool
    ) -> torch.Tensor | None:
        raw = record.get("labels")
        if raw is None:
            if not needed:
                return None
            raw = np.full(len(source.cls_classes), np.nan, dtype=np.float32)
        if not self.is_train:
            return torch.from_numpy(for_evaluation(raw))
        rng = rng_for(self.seed, "labels", *position)
        values = self.label_policy.targets(raw, source.key, source.cls_classes, rng)
        return torch.from_numpy(values[frame.class_order(source.cls_classes)])

    def _instances(
        self, record: Record, source: Source, frame: _Frame, shape: tuple[int, ...]
    ) -> Instances:
        annotations = record["annotations"]
        boxes = frame.boxes(np.array([box_xyxy(a) for a in annotations]).reshape(-1, 4), shape)
        classes = frame.class_order(source.thing_classes)[
            np.array([a["category_id"] for a in annotations], dtype=np.int64)
        ]
        masks = None
        if source.instance_masks:
            masks = np.zeros((len(annotations), *shape), dtype=np.uint8)
            for i, annotation in enumerate(annotations):
                reference = instance_reference(annotation["segmentation"])
                masks[i] = frame.mask(reference, source.resize_masks, record)
                if not frame.boxes_stay_tight:
                    boxes[i] = _mask_box(masks[i])
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= self.min_box_px).all(axis=1)
        result = Instances((shape[0], shape[1]))
        result.gt_boxes = Boxes(torch.from_numpy(boxes[keep].astype(np.float32)))
        result.gt_classes = torch.from_numpy(classes[keep])
        if masks is not None:
            result.gt_masks = BitMasks(torch.from_numpy(masks[keep]).bool())
        return result

    def _sem_masks(
        self, record: Record, source: Source, frame: _Frame, shape: tuple[int, ...]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        references = record.get("masks", {})
        masks = np.zeros((len(source.seg_classes), *shape), dtype=np.uint8)
        known = np.array([name in references for name in source.seg_classes], dtype=bool)
        for i, name in enumerate(source.seg_classes):
            if not known[i]:
                continue
            make = partial(frame.read_mask, references[name], source.resize_masks, record)
            if frame.before is None:
                read = make()
            else:
                read = self._kept.get((source.key, record["image_id"], name), make)
            masks[i] = frame.applied.apply_segmentation(read)
        swap = frame.class_order(source.seg_classes)
        return torch.from_numpy(masks[swap]), torch.from_numpy(known[swap])


def _to_keep(
    record: Record, tasks: Sequence[str], read: tuple[int, ...], original: tuple[int, int]
) -> np.ndarray | None:
    """(N, 4) what a crop has to keep of what was read: its label would be wrong without it."""
    if "cls" not in tasks or not record.get("pasted"):
        return None
    scale = [read[1] / original[1], read[0] / original[0]] * 2
    return np.asarray(record["pasted"], dtype=np.float64) * scale


class _Frame:
    """How original pixels become pixels of the network's input.

    Args:
        height, width: of the original.
        read_size: (h, w) of what was read; smaller than the original when it came from a cache.
        transforms: the augmentations as applied.
    """

    def __init__(
        self, height: int, width: int, read_size: tuple[int, ...], transforms: TransformList
    ) -> None:
        self.height, self.width, self.read_size = height, width, tuple(read_size)
        self.before: FxResizeTransform | None = None
        self.applied = self.transforms = transforms
        if (height, width) != self.read_size:
            self.before = FxResizeTransform(height, width, *read_size)
            self.transforms = TransformList([self.before]) + transforms
        self.mirrored = is_mirrored(transforms)
        self.boxes_stay_tight = keeps_boxes_tight(transforms)

    def class_order(self, classes: Sequence[str]) -> np.ndarray:
        """int64 (C,): classes with a side change places when the image was mirrored."""
        return mirror_order(classes) if self.mirrored else np.arange(len(classes))

    def content_size(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """(h, w) of the image without padding."""
        pads = [t for t in self.transforms.transforms if isinstance(t, PadTransform)]
        return (shape[0] - sum(p.y1 for p in pads), shape[1] - sum(p.x1 for p in pads))

    def detailed_enough(self, shape: tuple[int, ...]) -> bool:
        """Whether what was read is as large as the input, or as the original if that is smaller."""
        wanted = np.minimum(self.content_size(shape), (self.height, self.width))
        return bool((np.array(self.read_size) >= wanted).all())

    def boxes(self, boxes: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        """(N, 4) original XYXY -> input XYXY, clipped to the image."""
        if not len(boxes):
            return boxes
        height, width = self.content_size(shape)
        return self.transforms.apply_box(boxes).clip(0, [width, height, width, height])

    def mask(self, reference: MaskRef, resize: bool, record: Record) -> np.ndarray:
        """uint8 (H, W) of 0 and 1 in the input."""
        return self.applied.apply_segmentation(self.read_mask(reference, resize, record))

    def read_mask(self, reference: MaskRef, resize: bool, record: Record) -> np.ndarray:
        """uint8 (H, W) of 0 and 1 at the size that was read."""
        try:
            mask = load_mask(reference, self.height, self.width, resize=resize)
        except DataError as exc:
            if exc.file is not None:
                raise
            raise DataError(  # run lengths stand in the index: say whose they are
                exc.problem,
                file=record["file_name"],
                row=f"image_id {record['image_id']!r}",
                expected=exc.expected,
                fix=exc.fix,
            ) from exc
        mask = mask.astype(np.uint8)
        return mask if self.before is None else self.before.apply_segmentation(mask)


def _mask_box(mask: np.ndarray) -> np.ndarray:
    """(4,) XYXY around the pixels of ``mask``, zeros when there are none."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return np.zeros(4)
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=np.float64)
