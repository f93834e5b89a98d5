"""A dataset and a committee to a folder of pseudo-masks, from the first image to the report."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

import fx_d2
from fx_d2.data.atomic import write_atomically
from fx_d2.data.catalog import patient_of, source_root
from fx_d2.data.errors import DataError, did_you_mean
from fx_d2.data.lesion_mix.build import check_same
from fx_d2.data.lesion_mix.parts import run_parts
from fx_d2.data.pseudo_masks import FORMAT, MADE_NAME
from fx_d2.data.record import PackedRecords
from fx_d2.data.source import Source
from fx_d2.data.splits import patients_between

from .explained import weights_of
from .report import Report, gather
from .settings import DollSettings
from .shards import Job, read_measures, shard_is_done, share_committee, write_shard

if TYPE_CHECKING:
    from fx_d2.pipelines.committee import Committee

BEGUN_NAME = "begun.json"


@dataclass(frozen=True)
class Plan:
    """A run that is ready to go.

    Args:
        job: for the workers.
        records: of the dataset, in its order.
        unlabelled: classes of the committee that the dataset has no label for.
    """

    job: Job
    records: PackedRecords
    unlabelled: tuple[str, ...]

    def parts(self) -> list[PackedRecords]:
        """The images of every shard."""
        size = self.job.settings.shard_images
        n = len(self.records)
        return [self.records.select(range(i, min(i + size, n))) for i in range(0, n, size)]


def plan(
    folder: Path,
    source: Source,
    records: PackedRecords,
    make_committee: Callable[[], Committee],
    settings: DollSettings,
    *,
    limit: int | None = None,
    on_error: str = "raise",
) -> Plan:
    """Check committee, dataset and settings against each other before any image is explained.

    Args:
        folder: of the dataset to be.
        source: row of the images.
        records: of the dataset.
        make_committee: picklable where there are several workers.
        settings: of the run.
        limit: only that many images, spread over the dataset.
        on_error: ``raise``, or ``skip`` images that cannot be read.

    Raises:
        DataError: nothing could come of it.
        ValueError: a setting names a class that there is not.
    """
    committee = make_committee()
    classes = tuple(committee.classes)
    settings.check_classes(classes, len(committee.members))
    unlabelled = tuple(name for name in classes if name not in source.cls_classes)
    if len(unlabelled) == len(classes):
        raise DataError(
            f"the committee's classes are no labels of {source.key}: {', '.join(classes)}",
            expected=f"some of {', '.join(source.cls_classes) or 'its labels (it has none)'}",
            fix="choose a head of this source, or another dataset."
            + did_you_mean(classes[0], source.cls_classes),
        )
    if limit is not None and limit < len(records):
        records = records.select([i * len(records) // limit for i in range(limit)])
    provenance = {
        "fx_d2": fx_d2.__version__,
        "source": source.key,
        "dataset": settings.dataset,
        "images": _digest(records),
        "classes": list(classes),
        "committee": [
            {
                "name": member.name,
                "sha256": member.checksum,
                "head": member.spec.source,
                "layer": member.layer,
                "weights": weights.tolist(),
            }
            for member, weights in zip(
                committee.members, weights_of(committee, settings), strict=True
            )
        ],
        **settings.deciding(),
    }
    job = Job(
        folder, source, source_root(source.key), classes, settings, make_committee,
        provenance, on_error,
    )  # fmt: skip
    share_committee(job, committee)
    return Plan(job, records, unlabelled)


def _digest(records: PackedRecords) -> str:
    """Names the images and their labels."""
    seen = hashlib.blake2b(digest_size=16)
    for record in records:
        labels = record.get("labels")
        seen.update(record["image_id"].encode() + b"\0")
        seen.update(b"" if labels is None else labels.tobytes())
    return seen.hexdigest()


def build(plan: Plan, *, workers: int = 1, progress: bool = True) -> Report:
    """Write the shards that are missing, the report, and what the folder is.

    Args:
        plan: what is to be done.
        workers: processes.
        progress: whether there is a bar.

    Raises:
        DataError: the folder holds shards of another run, or no class has a mask at the end.
    """
    job = plan.job
    check_same(job.folder, BEGUN_NAME, job.provenance, what="are pseudo-masks")
    parts = plan.parts()
    run_parts(
        parts, partial(write_shard, job), partial(shard_is_done, job), workers=workers,
        what="explaining", progress=progress,
    )  # fmt: skip
    return finish(plan, len(parts), progress=progress)


def finish(plan: Plan, shards: int, *, progress: bool = True) -> Report:
    """The report of written shards and, where a class has masks, the header of the folder."""
    job = plan.job
    bar = tqdm(range(shards), desc="measuring", unit=" shards", delay=2, file=sys.stderr,
               disable=not progress)  # fmt: skip
    committee = [entry["name"] for entry in job.provenance["committee"]]
    report = gather(
        (row for n in bar for row in read_measures(job.folder, n)),
        job.classes,
        committee,
        [job.settings.explainer, *job.settings.beside],
        job.settings.labels.no_finding,
        plan.unlabelled,
    )
    report.exclude(job.settings.exclude, job.settings.quality)
    report.write(job.folder, job.provenance)
    if not report.kept_with_masks:
        raise DataError(
            f"no class has a mask: {report.why_nothing()}", file=job.folder,
            fix="see report.md there; lower labels.min_prob or quality, or train the committee "
            "longer",
        )  # fmt: skip
    _write_header(plan, shards, report)
    return report


def _write_header(plan: Plan, shards: int, report: Report) -> None:
    job, share = plan.job, plan.job.settings.val_share
    patients = [patient_of(record) for record in plan.records]
    held: set[str] = set()
    if share:
        held = patients_between(patients, 1 - share, 1.0, salt=job.source.folder)
    body: dict[str, Any] = {
        "format": FORMAT,
        "source": job.source.key,
        "dataset": job.settings.dataset,
        "classes": list(job.classes),
        "kept": list(report.kept),
        "excluded": report.excluded,
        "shards": shards,
        "images": report.images,
        "fingerprint": job.fingerprint,
        "val_patients": sorted(held),
        "provenance": job.provenance,
    }
    write_atomically(job.folder / MADE_NAME, json.dumps(body, indent=1) + "\n")
