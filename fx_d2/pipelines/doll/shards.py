"""Shards of pseudo-masks: what decides their bytes, how one is written, and when one is done.

A shard is a function of its number, the dataset, the committee and the settings. It is written
whole or not at all, after its measures, so a killed run goes on with the shards that are missing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from fx_d2.data.atomic import write_atomically
from fx_d2.data.errors import DataError
from fx_d2.data.masks import encode_mask
from fx_d2.data.pseudo_masks import FORMAT, shard_path
from fx_d2.data.readers.pseudo_masks import read_shard
from fx_d2.data.record import Record
from fx_d2.data.source import Source
from fx_d2.explain.pseudo_labels import IGNORE, Labels

from .explained import Explained, Explainer
from .settings import DollSettings

if TYPE_CHECKING:
    from fx_d2.pipelines.committee import Committee

MEASURES_FOLDER = "measures"


@dataclass(frozen=True)
class Job:
    """What a worker needs to write a shard.

    Args:
        folder: of the dataset to be.
        source: row of the images.
        root: folder of the source; file names in shards are relative to it.
        classes: of the committee.
        settings: of the run.
        committee: makes the committee; called once per process.
        provenance: everything that decides the bytes, as plain values.
        on_error: ``raise``, or ``skip`` an image that cannot be read.
    """

    folder: Path
    source: Source
    root: Path
    classes: tuple[str, ...]
    settings: DollSettings
    committee: Callable[[], Committee]
    provenance: Mapping[str, Any]
    on_error: str = "raise"

    @property
    def fingerprint(self) -> str:
        """Of the provenance."""
        text = json.dumps(self.provenance, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


# The committee of this process: building it takes longer than explaining an image.
_shared: dict[str, Committee] = {}


def shared_committee(job: Job) -> Committee:
    """The committee of a job, made where this process has none yet."""
    if job.fingerprint not in _shared:
        share_committee(job, job.committee())
    return _shared[job.fingerprint]


def share_committee(job: Job, committee: Committee) -> None:
    """Let this process use a committee that is there already."""
    _shared.clear()
    _shared[job.fingerprint] = committee


def measures_path(folder: Path, number: int) -> Path:
    """The file of the figures of a shard's images."""
    return folder / MEASURES_FOLDER / f"{number:05d}.json"


def write_shard(job: Job, number: int, records: Sequence[Record]) -> None:
    """Explain the images of a shard and write it."""
    with _one_thread(job.settings.device):
        explainer = Explainer(shared_committee(job), job.source, job.settings)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        rows: list[dict[str, Any]] = []
        for record in records:
            try:
                found = explainer.explain(record)
            except DataError as exc:
                if job.on_error == "raise":
                    raise
                rows.append({"image_id": record["image_id"], "failed": exc.problem})
                continue
            entry = _image(job, record, found)
            entry["id"] = len(images) + 1
            images.append(entry)
            for k, labels in found.masks.items():
                annotations.append(_annotation(labels, k, entry["id"], len(annotations) + 1))
                annotations[-1]["doll"] = found.quality[k]
            rows.append({"image_id": record["image_id"], **found.row})
    body = {
        "info": {
            "format": FORMAT,
            "shard": number,
            "fingerprint": job.fingerprint,
            "provenance": job.provenance,
        },
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(job.classes)],
        "images": images,
        "annotations": annotations,
    }
    write_atomically(measures_path(job.folder, number), _text(rows))
    write_atomically(shard_path(job.folder, number), _text(body))


def _text(body: Any) -> str:
    # NaN is no JSON: better an error here than a file that others cannot read.
    return json.dumps(body, allow_nan=False, separators=(",", ":"), sort_keys=True) + "\n"


@contextmanager
def _one_thread(device: str) -> Iterator[None]:
    """Sums over several threads depend on their number; the shards must not."""
    before = torch.get_num_threads()
    if device == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _image(job: Job, record: Record, found: Explained) -> dict[str, Any]:
    labels = record.get("labels")
    return {
        "file_name": _relative(record["file_name"], job.root),
        "image_id": record["image_id"],
        "height": found.original[0],
        "width": found.original[1],
        "patient_id": record["patient_id"],
        "view": record["view"],
        "labels": None
        if labels is None
        else [None if np.isnan(v) else int(v) for v in np.asarray(labels)],
        "states": found.states,
    }


def _relative(name: str, root: Path) -> str:
    try:
        path = Path(name).absolute().relative_to(root.expanduser().absolute())
    except ValueError as exc:
        raise DataError(
            "image outside the folder of its source", file=name, expected=f"below {root}",
            fix="pseudo-masks name images relative to that folder: set DATASETS.ROOTS",
        ) from exc  # fmt: skip
    return str(PurePosixPath(path))


def _annotation(labels: Labels, k: int, image: int, number: int) -> dict[str, Any]:
    front = encode_mask(labels == 1)
    return {
        "id": number,
        "image_id": image,
        "category_id": k + 1,
        "iscrowd": 0,
        "area": int((labels == 1).sum()),
        "bbox": [float(v) for v in coco_mask.toBbox(front)],
        "segmentation": _plain(front),
        "ignore": _plain(encode_mask(labels == IGNORE)),
    }


def _plain(rle: dict[str, Any]) -> dict[str, Any]:
    counts = rle["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else counts
    return {"size": [int(v) for v in rle["size"]], "counts": text}


def shard_is_done(job: Job, number: int, records: Sequence[Record]) -> bool:
    """Whether a shard of this job is there with all its images.

    Raises:
        DataError: the shard that is there was made by another committee or other settings.
    """
    path = shard_path(job.folder, number)
    if not path.is_file() or not measures_path(job.folder, number).is_file():
        return False
    body = read_shard(path, job.classes, job.fingerprint)
    rows = read_measures(job.folder, number)
    wanted = [record["image_id"] for record in records]
    made = [row["image_id"] for row in rows if "failed" not in row]
    return [row["image_id"] for row in rows] == wanted and made == [
        entry.get("image_id") for entry in body["images"]
    ]


def read_measures(folder: Path, number: int) -> list[dict[str, Any]]:
    """The figures of a shard's images."""
    path = measures_path(folder, number)
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(rows, list) or not all("image_id" in row for row in rows):
            raise ValueError("no list of images")
    except (OSError, ValueError, TypeError, RecursionError) as exc:
        raise DataError(
            f"measures cannot be read ({exc})", file=path, fix="delete it and call the tool again"
        ) from exc
    return rows
