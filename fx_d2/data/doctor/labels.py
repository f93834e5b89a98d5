"""Checks of image labels: allowed values, published totals, classes that never occur."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..record import UNCERTAIN
from .examination import Examination, Part
from .findings import Hit, check
from .rows import row_hits

_ALLOWED = (0.0, 1.0, UNCERTAIN)
_NORMAL = ("no finding", "normal")
_NOT_A_DISEASE = ("support devices",)


@check(
    "labels/values",
    "error",
    what="a label outside 1, 0, -1 (uncertain) and not annotated",
    fix="map this value in the reader, or restore the row from the original file",
)
def values(exam: Examination) -> Iterator[Hit]:
    """Label values that mean nothing."""
    yield from row_hits(exam, "labels/values")
    for part in exam.parts:
        wrong = ~np.isnan(part.labels) & ~np.isin(part.labels, _ALLOWED)
        for i, j in zip(*np.nonzero(wrong), strict=True):
            name = part.source.cls_classes[j]
            yield Hit(
                found=f"{name} is {part.labels[i, j]:g}",
                expected="1, 0, -1 (uncertain) or not annotated",
                **exam.place(exam.entries[part.first + int(i)]),
            )


@check(
    "labels/published",
    "warning",
    what="totals of images, patients, boxes or positives differ from the published ones",
    fix="an interrupted download, another release, or a lost index; compare with the source's page",
)
def published(exam: Examination) -> Iterator[Hit]:
    """Totals against the figures of the row; a synthetic world is smaller on purpose."""
    if exam.is_phantom:
        return
    for part in exam.parts:
        if part.error is not None:
            continue
        for name, found in totals(exam, part).items():
            expected = part.source.expected.get(f"{part.name}/{name}")
            if expected is not None and found != expected:
                yield Hit(
                    part.source.key,
                    f"{found:,} {name}",
                    f"{expected:,} as published",
                    part=part.name,
                )


def totals(exam: Examination, part: Part) -> dict[str, int]:
    """What a part holds, under the names used in ``Source.expected``."""
    entries = exam.entries[part.first : part.first + len(part.records)]
    counts = {
        "images": len({e.image_id for e in entries}),
        "patients": len({e.patient for e in entries if e.patient is not None}),
        "boxes": len(part.boxes),
    }
    positive = (part.labels == 1).sum(axis=0)
    counts.update(zip(part.source.cls_classes, map(int, positive), strict=True))
    if part.source.cls_kind == "binary" and len(positive):
        counts["positive"] = int(positive[0])
    return counts


@check(
    "labels/contradiction",
    "info",
    what="an image is called normal and has a finding",
    fix="decide which label counts; readers and report miners do disagree",
)
def contradiction(exam: Examination) -> Iterator[Hit]:
    """`No Finding` beside a positive finding, counted per part."""
    for part in exam.parts:
        classes = [name.lower() for name in part.source.cls_classes]
        normal = [j for j, name in enumerate(classes) if name in _NORMAL]
        others = [j for j, name in enumerate(classes) if name not in (*_NORMAL, *_NOT_A_DISEASE)]
        if not normal or not others or not len(part.labels):
            continue
        both = (part.labels[:, normal] == 1).any(1) & (part.labels[:, others] == 1).any(1)
        if both.any():
            i = int(np.flatnonzero(both)[0])
            yield Hit(
                found=f"{int(both.sum())} of {len(both)} images are normal and have a finding",
                expected="none",
                count=int(both.sum()),
                **exam.place(exam.entries[part.first + i]),
            )


@check(
    "labels/one-value",
    "info",
    what="a class without a single positive, or without a single negative, in a part",
    fix="nothing is wrong with it, but no AUC is defined for it here",
)
def one_value(exam: Examination) -> Iterator[Hit]:
    """Classes on which nothing can be measured."""
    for part in exam.parts:
        if not len(part.labels) or part.source.cls_kind == "multiclass":
            continue
        positive, negative = (part.labels == 1).sum(axis=0), (part.labels == 0).sum(axis=0)
        for what, counts in (("positive", positive), ("negative", negative)):
            names = [n for n, c in zip(part.source.cls_classes, counts, strict=True) if c == 0]
            if names:
                yield Hit(
                    part.source.key,
                    f"no {what}: {', '.join(names)}",
                    f"at least one {what}",
                    part=part.name,
                )
