"""What a row of the source table holds, and the ways a dataset is cut into splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

TASKS = ("cls", "loc", "seg")
CLS_KINDS = ("multilabel", "multiclass", "binary")


@dataclass(frozen=True)
class Part:
    """Where a split comes from: a published part, or a patient-wise share ``[low, high)`` of it."""

    name: str
    low: float = 0.0
    high: float = 1.0


def official(**parts: str) -> dict[str, Part]:
    """Splits that are published as they are: ``official(train="train", test="val")``."""
    return {split: Part(name) for split, name in parts.items()}


def carved(name: str, train: float = 0.7, val: float = 0.1) -> dict[str, Part]:
    """Train, val and test cut patient-wise from one published part."""
    return {
        "train": Part(name, 0.0, train),
        "val": Part(name, train, train + val),
        "test": Part(name, train + val, 1.0),
        "all": Part(name),
    }


def val_from_train(train: str, test: str, share: float = 0.1) -> dict[str, Part]:
    """Published train and test; ``val`` is a patient-wise share of train, ``trainval`` is all."""
    return {
        "train": Part(train, 0.0, 1 - share),
        "val": Part(train, 1 - share, 1.0),
        "trainval": Part(train),
        "test": Part(test),
    }


@dataclass(frozen=True)
class Source:
    """A dataset as fx_d2 sees it.

    Args:
        key: name in configs and in ``heads.<task>.<key>``.
        title: name for people.
        folder: the folder it was downloaded as, under ``$DETECTRON2_DATASETS``.
        reader: module under ``fx_d2.data.readers`` (or a dotted path elsewhere) whose
            ``read(request)`` yields records; or such a function itself.
        splits: split name -> :class:`Part`; registered as ``<key>_<split>``.
        tasks: the tasks this source has heads for by default.
        extra_tasks: annotated on disk too, used when asked for (NIH's boxes exist for test images
            only).
        paper_id: C1..C11 of Foundation X, in paper order.
        cls_classes, cls_kind: image labels; ``multilabel``, ``multiclass`` (exactly one) or
            ``binary`` (one class).
        cls_subsets: named subsets that a paper averages over.
        thing_classes: classes of boxes, in ``category_id`` order.
        loc_agnostic: the paper trains one class-agnostic head on them.
        instance_masks: boxes carry a segmentation.
        seg_classes: dense masks, overlapping.
        resize_masks: mask files may have another size than the image and are resized (nearest
            neighbour).
        image_size: (height, width) of every image where the provider fixes it.
        frontal_views: values of ``view`` that are frontal; None when the source is frontal
            throughout.
        images_of: key of the source whose images these are, where the folder has none of its own.
        options: handed to the reader.
        expected: published figures, ``{"train/images": 223414}``; soft checks of the reader and the
            doctor.
        overlaps: sources that share images with this one.
        licence, homepage, citation, access: for the table in ``datasets/README.md``.
    """

    key: str
    title: str
    folder: str
    reader: str | Callable[..., Any]
    splits: Mapping[str, Part]
    tasks: tuple[str, ...]
    licence: str
    homepage: str
    citation: str
    access: str
    extra_tasks: tuple[str, ...] = ()
    paper_id: str | None = None
    cls_classes: tuple[str, ...] = ()
    cls_kind: str = "multilabel"
    cls_subsets: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    thing_classes: tuple[str, ...] = ()
    loc_agnostic: bool = False
    instance_masks: bool = False
    seg_classes: tuple[str, ...] = ()
    resize_masks: bool = False
    image_size: tuple[int, int] | None = None
    frontal_views: tuple[str, ...] | None = None
    images_of: str = ""
    options: Mapping[str, object] = field(default_factory=dict)
    expected: Mapping[str, int] = field(default_factory=dict)
    overlaps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        classes = {"cls": self.cls_classes, "loc": self.thing_classes, "seg": self.seg_classes}
        for task in (*self.tasks, *self.extra_tasks):
            if task not in TASKS:
                raise ValueError(f"source {self.key!r}: task {task!r} is not one of {TASKS}")
            if not classes[task]:
                raise ValueError(f"source {self.key!r}: task {task!r} has no classes")
        if self.cls_kind not in CLS_KINDS:
            raise ValueError(
                f"source {self.key!r}: cls_kind {self.cls_kind!r} is not one of {CLS_KINDS}"
            )
        for task, names in classes.items():
            if len(set(names)) != len(names):
                raise ValueError(
                    f"source {self.key!r}: a class of {task!r} stands twice in {names}"
                )

    def classes(self, task: str) -> tuple[str, ...]:
        """The class names of ``task`` in head order."""
        return {"cls": self.cls_classes, "loc": self.thing_classes, "seg": self.seg_classes}[task]

    def all_tasks(self) -> tuple[str, ...]:
        """Every task annotated on disk, in the order cls, loc, seg."""
        return tuple(t for t in TASKS if t in self.tasks or t in self.extra_tasks)
