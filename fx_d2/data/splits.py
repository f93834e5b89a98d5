"""Patient-wise splits that are a pure function of (seed, patient), and files that hold them.

Where a dataset publishes no split, patients are ranked by a keyed hash and cut at fractions: no
patient is ever on two sides, and the cut does not depend on the order of files. A split can be
written to a file and read back, so that a paper can say exactly which images it used.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .atomic import write_atomically
from .draws import draw_key
from .errors import DataError

# Part of the definition of the registered splits: another seed, other carved splits.
SPLIT_SEED = 20250301


_EXACT_BELOW = 2_000  # patients
_KEYS = 1 << 128


def patients_between(
    patients: Iterable[str], low: float, high: float, *, seed: int = SPLIT_SEED, salt: str = ""
) -> set[str]:
    """The patients in the share ``[low, high)`` of all patients.

    Of 2,000 patients or more, the side of a patient depends on its own id alone: leaving images
    out, as CheXmask does with masks of low quality, moves nobody else across, and sources of one
    folder stay cut alike. Of fewer, patients are ranked by the same keys, so that the sizes are
    exact where chance would show.

    Args:
        patients: ids, repeats allowed.
        low: where the share begins, 0 <= low < high <= 1.
        high: where it ends.
        seed: part of the hash.
        salt: the source's folder, so that equal ids in two datasets are not tied.
    """
    if not 0 <= low < high <= 1:
        raise ValueError(f"fractions [{low}, {high}) must satisfy 0 <= low < high <= 1")
    keys = {patient: draw_key(seed, salt, patient) for patient in patients}
    if len(keys) >= _EXACT_BELOW:
        first, end = int(low * _KEYS), int(high * _KEYS)
        return {patient for patient, key in keys.items() if first <= key < end}
    ranked = sorted(keys, key=lambda patient: (keys[patient], patient))
    return set(ranked[round(low * len(ranked)) : round(high * len(ranked))])


def folds_of(
    patients: Sequence[str], count: int, *, seed: int = SPLIT_SEED, salt: str = ""
) -> list[int]:
    """The fold of every image for cross-validation; a patient's images are in one fold.

    Patients are taken in the order of their keys and cut where the images, not the patients, are
    about equally many: in a small dataset one patient may have a dozen.

    Args:
        patients: of each image.
        count: of folds, at least 2.
        seed: part of the keys.
        salt: the source's folder.

    Returns:
        Per image a number from 0 to ``count - 1``; every fold has images.
    """
    images = Counter(patients)
    if not 2 <= count <= len(images):
        raise ValueError(f"{count} folds of {len(images)} patients; allowed: 2 to that number")
    ranked = sorted(images, key=lambda patient: (draw_key(seed, salt, patient), patient))
    fold_of: dict[str, int] = {}
    before, fold = 0, -1
    for left, patient in zip(range(len(ranked), 0, -1), ranked, strict=True):
        middle = (before + images[patient] / 2) / len(patients)
        # No fold is left out: not by one patient with many images, nor for want of patients.
        enough = left > count - 1 - fold
        fold = min(max(int(middle * count), fold), fold + 1) if enough else fold + 1
        fold_of[patient] = fold
        before += images[patient]
    return [fold_of[patient] for patient in patients]


def write_split_file(
    path: str | os.PathLike[str], source: str, splits: Mapping[str, Sequence[str]]
) -> None:
    """Write ``{split: image ids}`` as JSON, atomically."""
    body = {
        "format": "fx_d2 split 1",
        "source": source,
        "splits": {k: sorted(v) for k, v in splits.items()},
    }
    write_atomically(path, json.dumps(body, indent=1) + "\n")


def read_split_file(path: str | os.PathLike[str], source: str) -> dict[str, frozenset[str]]:
    """Read a split file written by :func:`write_split_file`; an image in two splits is an error."""
    fix = "write it again with tools/make_split.py"
    try:
        body = json.loads(Path(path).read_text(encoding="utf-8"))
        found, splits = body["source"], body["splits"]
        result = {str(name): frozenset(map(str, ids)) for name, ids in splits.items()}
    except OSError as exc:
        raise DataError(f"cannot read the split file ({exc.strerror})", file=path, fix=fix) from exc
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise DataError(
            f"not a split file ({type(exc).__name__}: {exc})", file=path, fix=fix
        ) from exc
    if found != source:
        raise DataError(
            f"split file of source {found!r}", file=path, expected=f"{source!r}", fix=fix
        )
    seen: dict[str, str] = {}
    for name, ids in result.items():
        for image_id in ids:
            if image_id in seen:
                raise DataError(
                    f"image {image_id!r} is in splits {seen[image_id]!r} and {name!r}",
                    file=path,
                    fix=fix,
                )
            seen[image_id] = name
    return result
