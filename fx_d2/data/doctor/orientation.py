"""Is a frontal chest radiograph upright, bright where it is dense, and not mirrored?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .chest_template import TURNS, chest_template, heart_side, normalised, turn_scores
from .examination import Examination
from .findings import Hit, check

MARGIN = (
    0.15  # by which another pose must fit better; the worst real radiograph had +0.08 for upright
)
# Fluid in both halves makes the lower film bright and the upper dark: the negative of a chest
# upside down. Real films with such fluid painted in often reach +0.2, those that lie so +0.3.
MARGIN_OF_FLUID = 0.28
MIN_FIT = 0.25  # below, the picture resembles no chest at all and nothing is said
INVERTED_SLACK = (
    0.10  # plain inversion is preferred to inversion and a turn that fits little better
)
MIN_FOR_MEAN = 8  # images before a source's own mean is used beside the template
_MAX_FOR_MEAN = 2000
_FLAT = 8  # grey values of 255
MIN_FOR_MIRROR = 12
MIRROR_MEAN = -0.04  # mean heart_side; 12 real radiographs at random stay above, see docs/doctor.md


@dataclass(frozen=True)
class Poses:
    """How the frontal images of a source lie.

    Args:
        files: (N,) file numbers.
        turn: (N,) 0 upright, 1 to 3 quarter turns that the picture needs, -1 unknown.
        inverted: (N,) bool.
        upright: (N,) how well the picture fits as it is.
        best: (N,) how well it fits in the best pose.
    """

    files: npt.NDArray[np.int64]
    turn: npt.NDArray[np.int64]
    inverted: npt.NDArray[np.bool_]
    upright: npt.NDArray[np.float64]
    best: npt.NDArray[np.float64]


def _judge(scores: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """Turn and inversion from (N, 4) correlations: the best of eight if clearly better."""
    everything = np.concatenate([scores, -scores], axis=1)  # 0..3 as stored, 4..7 inverted
    pose = everything.argmax(axis=1)
    best = everything.max(axis=1)
    plainly_inverted = (pose > 4) & (everything[:, 4] >= best - INVERTED_SLACK)
    pose = np.where(plainly_inverted, 4, pose)
    margin = np.where(pose == 6, MARGIN_OF_FLUID, MARGIN)
    sure = (best - everything[:, 0] > margin) & (best > MIN_FIT)
    pose = np.where(sure, pose, 0)
    return pose % 4, pose >= 4


def find_poses(exam: Examination, key: str) -> Poses:
    """Judge every decoded frontal image by the template and by the source's own mean."""
    files = exam.files_of(key, frontal=True)
    files = files[exam.facts.decoded[files]]
    # A picture without contrast has no pose.
    files = files[exam.facts.contrast[files] > _FLAT]
    thumbs = exam.facts.thumbs[files]
    scores = turn_scores(thumbs, chest_template())
    if len(files) >= MIN_FOR_MEAN:
        mean = np.median(thumbs[:: max(1, len(thumbs) // _MAX_FOR_MEAN)], axis=0)
        mean = normalised(mean + mean[:, ::-1])
        turn, inverted = _judge(turn_scores(mean[None], chest_template()))
        # Only a source that is upright as a whole may say what upright is.
        if turn[0] == 0 and not inverted[0]:
            scores = (scores + turn_scores(thumbs, mean)) / 2
    turn, inverted = _judge(scores)
    return Poses(files, turn, inverted, scores[:, 0], np.abs(scores).max(axis=1, initial=0))


def _hits(
    exam: Examination, key: str, poses: Poses, chosen: npt.NDArray[np.bool_], words: list[str]
) -> Iterator[Hit]:
    for i in np.flatnonzero(chosen):
        entry = exam.entries[exam.entries_of_file[poses.files[i]][0]]
        place = exam.place(entry) | {"source": key}
        yield Hit(
            found=f"{words[i]} (fits a chest by {poses.upright[i]:.2f} as it is, "
            f"by {poses.best[i]:.2f} that way)",
            expected="an upright frontal chest, bright where it is dense",
            **place,
        )


def _poses_of_folders(exam: Examination) -> list[tuple[str, Poses]]:
    found = []
    for _, sources in exam.groups():
        # Sources of one folder share their images: judge them once, by the row that has most.
        key = max((s.key for s in sources), key=lambda k: len(exam.files_of(k, frontal=True)))
        found.append((key, find_poses(exam, key)))
    return found


def _folders(exam: Examination) -> list[tuple[str, Poses]]:
    return exam.remembered("poses", _poses_of_folders)


@check(
    "orientation/turned",
    "error",
    what="a frontal chest that lies on its side or upside down (one image, or the whole source)",
    fix="turn the file, with its boxes and masks; if all are turned, correct the conversion",
    needs_pixels=True,
)
def turned(exam: Examination) -> Iterator[Hit]:
    """Images that fit a chest clearly better after a turn."""
    for key, poses in _folders(exam):
        words = [
            f"looks {TURNS[t]}" + (" and inverted" if inverted else "")
            for t, inverted in zip(poses.turn, poses.inverted, strict=True)
        ]
        yield from _hits(exam, key, poses, poses.turn > 0, words)


@check(
    "orientation/inverted",
    "error",
    what="an image that is dark where it is dense: MONOCHROME1 flagged wrongly, or inverted twice",
    fix="correct PhotometricInterpretation, or leave the inversion to one place",
    needs_pixels=True,
)
def inverted(exam: Examination) -> Iterator[Hit]:
    """Images that fit a chest clearly better as their own negative."""
    for key, poses in _folders(exam):
        photometric = [exam.facts.storage[f][1] for f in poses.files]
        words = [f"looks inverted ({p or 'stored'} as read)" for p in photometric]
        yield from _hits(exam, key, poses, poses.inverted & (poses.turn == 0), words)


@check(
    "orientation/mirrored",
    "warning",
    what="the images of a source are mirrored: the heart points to the picture's left",
    fix="flip the images (and boxes and masks); single mirrored images cannot be told from a heart "
    "on the right side and are not looked for",
    needs_pixels=True,
)
def mirrored(exam: Examination) -> Iterator[Hit]:
    """Sources whose hearts lie on the wrong side on average."""
    for key, poses in _folders(exam):
        upright = poses.files[(poses.turn == 0) & ~poses.inverted]
        if len(upright) < MIN_FOR_MIRROR:
            continue
        side = float(heart_side(exam.facts.thumbs[upright]).mean())
        if side < MIRROR_MEAN:
            yield Hit(
                key,
                f"over {len(upright)} images the heart lies left of the middle ({side:+.2f})",
                "on the picture's right (positive), as the patient faces the viewer",
                count=len(upright),
            )
