"""Writes a mixed dataset: a plan, its images and their truth, in parts that resume.

``<folder>/`` holds ``bank/``, ``images/000/mix000123.png``, ``parts/00000.json``, and when all is
done ``records.jsonl``, ``lesion_mix.json`` (what it is) and ``audit/``.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import write_atomically
from ..cache import CacheSettings
from ..cache_build import pack
from ..errors import DataError
from ..formats.contract import LoadedImage
from ..images import read_image
from ..record import Record
from ..source import Source
from ..sources import get_source
from .bank import PatchBank, shared_bank
from .correlation import label_counts, phi_matrix
from .mixer import LesionMixer, encoded_png
from .parts import cut, run_parts
from .place import DoesNotFit
from .plan import Planned, Planner, Stock
from .recipe import Kitchen, Recipe, minority
from .settings import MixSettings

MADE_NAME = "lesion_mix.json"
RECORDS_NAME = "records.jsonl"
PREPARED_NAME = "prepared.json"
FORMAT = "fx_d2 lesion mix 1"
_PART_IMAGES = 32
_MAX_ROUNDS = 12


@dataclass(frozen=True)
class Prepared:
    """A bank and the statistics of the base images: what both ways of mixing start from.

    Args:
        base: row of the base source.
        datasets: its datasets that are pasted onto.
        bank: the patches.
        settings: of the preparation.
        counts: (C,) base images per label.
        phi: (C, C) correlations over the base images.
        n_images: base images.
    """

    base: Source
    datasets: tuple[str, ...]
    bank: PatchBank
    settings: MixSettings
    counts: np.ndarray
    phi: np.ndarray
    n_images: int

    def kitchen(self, settings: MixSettings | None = None) -> Kitchen:
        """Draws recipes for what the base images are short of."""
        settings = settings or self.settings
        need = minority(self.counts, self.base.cls_classes, self.n_images, settings)
        return Kitchen(self.base, self.bank, settings, need, self.phi)


def write_prepared(
    folder: Path, base: Source, datasets: Sequence[str], labels: np.ndarray, settings: MixSettings
) -> None:
    """Write counts and correlations of the base images beside the bank."""
    body = {
        "format": FORMAT,
        "base": base.key,
        "datasets": list(datasets),
        "classes": list(base.cls_classes),
        "images": len(labels),
        "counts": label_counts(labels).tolist(),
        "phi": phi_matrix(labels).round(9).tolist(),
        "settings": settings.to_dict(),
    }
    write_atomically(folder / PREPARED_NAME, json.dumps(body) + "\n")


def read_prepared(folder: Path) -> Prepared:
    """What :func:`write_prepared` wrote, and the bank."""
    path = Path(folder) / PREPARED_NAME
    fix = "make it again with tools/make_lesion_mix.py"
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']!r}")
        base = get_source(str(body["base"]))
        if list(base.cls_classes) != body["classes"]:
            raise ValueError(f"classes that are not those of {base.key}")
        counts = np.asarray(body["counts"], dtype=np.int64)
        phi = np.asarray(body["phi"], dtype=np.float64)
        n = len(base.cls_classes)
        if counts.shape != (n,) or phi.shape != (n, n) or not np.isfinite(phi).all():
            raise ValueError("statistics of another shape")
        settings = MixSettings.from_dict(body["settings"])
        datasets, images = tuple(map(str, body["datasets"])), int(body["images"])
    except OSError as exc:
        raise DataError(
            f"no prepared lesion mix ({exc.strerror})", file=path,
            expected="the --out of tools/make_lesion_mix.py", fix=fix,
        ) from exc  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise DataError(
            f"not a prepared lesion mix ({type(exc).__name__}: {exc})", file=path, fix=fix
        ) from exc
    bank = PatchBank.open(Path(folder) / "bank", base.cls_classes)
    return Prepared(base, datasets, bank, settings, counts, phi, images)


@dataclass(frozen=True)
class Job:
    """What a worker needs to write a part.

    Args:
        folder: of the dataset.
        base: key of the base source.
        settings: how.
        size_px: shorter side the base images are shrunk to; 0 leaves them.
        voi: as for :func:`read_image`.
        on_error: ``raise``, or ``skip`` a base image that cannot be read.
    """

    folder: Path
    base: str
    settings: MixSettings
    size_px: int
    voi: str = "auto"
    on_error: str = "raise"


def read_base(path: str, size_px: int, voi: str = "auto") -> LoadedImage:
    """A base image, shrunk exactly as an image cache of that size holds it."""
    loaded = read_image(path, voi=voi)
    if not size_px:
        return loaded
    stored, scale = pack(loaded, CacheSettings(size_px=size_px, side="short", voi=voi, root="/"))
    pixels = stored.astype(np.float32)
    return LoadedImage(pixels if scale == 1 else pixels / np.float32(scale), loaded.facts)


def _write_part(job: Job, number: int, items: Sequence[tuple[Planned, Record]]) -> None:
    base = get_source(job.base)
    bank = shared_bank(job.folder / "bank", base.cls_classes)
    mixer = LesionMixer(base, bank, job.settings)
    rows = []
    for planned, record in items:
        common = {"number": planned.number, "base": planned.base, "served": planned.served}
        try:
            loaded = read_base(record["file_name"], job.size_px, job.voi)
            mixed = mixer.apply(record, loaded, planned.recipe)
        except DoesNotFit as exc:
            rows.append({**common, "failed": str(exc)})
            continue
        except DataError as exc:
            if job.on_error == "raise":
                raise
            rows.append({**common, "failed": f"cannot be read: {exc.problem}"})
            continue
        name = f"images/{planned.number // 1000:03d}/mix{planned.number:06d}.png"
        write_atomically(job.folder / name, encoded_png(mixed.image))
        rows.append(
            {
                **common,
                "file": name,
                "image_id": f"mix{planned.number:06d}",
                "base_image": record["image_id"],
                "patient_id": record["patient_id"],
                "view": record["view"],
                "arm": planned.recipe.arm,
                "patches": [lesion.patch for lesion in mixed.truth.lesions],
                "dropped": mixed.dropped,
                "recipe": planned.recipe.to_row(),
                **mixed.truth.to_row(),
            }
        )
    write_atomically(_part_path(job.folder, number), json.dumps(rows) + "\n")


def _part_path(folder: Path, number: int) -> Path:
    return folder / "parts" / f"{number:05d}.json"


def _part_is_there(folder: Path, number: int, items: Sequence[tuple[Planned, Record]]) -> bool:
    path = _part_path(folder, number)
    if not path.is_file():
        return False
    rows = _read_part(path)
    whole = [row["number"] for row in rows] == [planned.number for planned, _ in items]
    return whole and all((folder / row["file"]).is_file() for row in rows if "file" in row)


def _read_part(path: Path) -> list[dict[str, Any]]:
    try:
        return list(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as exc:
        raise DataError(
            f"a part cannot be read ({exc})", file=path, fix="delete it and call the tool again"
        ) from exc


@dataclass
class Written:
    """A written mix.

    Args:
        rows: one per image, in order.
        failed: why images that were planned are not there.
        stock: what was used and reached.
        unserved: minority class -> why it is short still.
    """

    rows: list[dict[str, Any]]
    failed: Counter[str]
    stock: Stock
    unserved: dict[str, str] = field(default_factory=dict)


def write_mix(
    job: Job,
    prepared: Prepared,
    records: Sequence[Record],
    *,
    seed: int,
    limit: int | None = None,
    workers: int = 1,
    progress: bool = True,
) -> Written:
    """Plan and write images until no class is short that can be served.

    A planned image may turn out to have no place for its lesion, so it is planned in rounds, each
    from what the last one reached.

    Args:
        job: where and how.
        prepared: bank and statistics.
        records: the base images.
        seed: of every draw.
        limit: most images to try.
        workers: processes.
        progress: whether there is a bar.
    """
    labels = np.stack([record["labels"] for record in records])
    planner = Planner(prepared.kitchen(job.settings), labels, [r["view"] for r in records], seed)
    result = Written([], Counter(), Stock(label_counts(labels)))
    number = part = 0
    work, done = partial(_write_part, job), partial(_part_is_there, job.folder)
    for round_ in range(_MAX_ROUNDS):
        left = None if limit is None else limit - number
        items = [(p, records[p.base]) for p in planner.plan(result.stock, number, left)]
        if not items:
            break
        parts = cut(items, _PART_IMAGES)
        run_parts(
            parts, work, done, first=part, workers=workers, what=f"mixing, round {round_ + 1}",
            progress=progress,
        )  # fmt: skip
        for i in range(part, part + len(parts)):
            _account(result, _read_part(_part_path(job.folder, i)))
        number += len(items)
        part += len(parts)
    result.unserved = dict(planner.unserved)
    return result


def _account(result: Written, rows: Sequence[dict[str, Any]]) -> None:
    for row in rows:
        if "failed" in row:
            result.failed[row["failed"]] += 1
            if "lungs" in row["failed"] or "cannot be read" in row["failed"]:
                result.stock.refused.add(row["base"])
            continue
        result.rows.append(row)
        result.stock.counts += np.array([(v or 0) > 0 for v in row["labels"]])
        result.stock.base_uses[row["base"]] += 1
        result.stock.patch_uses.update(row["patches"])


def check_same(folder: Path, name: str, made: Mapping[str, Any], what: str = "is a mix") -> None:
    """Refuse to continue what was begun with other settings; else note them.

    Args:
        folder: of the dataset.
        name: of the note.
        made: everything that decides its bytes.
        what: completes "there ... of other settings".
    """
    path = folder / name
    text = json.dumps(made, indent=1, sort_keys=True) + "\n"
    if not path.is_file():
        write_atomically(path, text)
        return
    before = path.read_text(encoding="utf-8")
    if before == text:
        return
    try:
        old = json.loads(before)
        differ = sorted(k for k in {*old, *made} if old.get(k) != json.loads(text).get(k))
    except (ValueError, AttributeError, TypeError):
        differ = ["everything"]
    raise DataError(
        f"there {what} of other {', '.join(differ)}", file=folder,
        expected="an empty folder, or one that the same call began",
        fix="choose another --out, or delete this folder",
    )  # fmt: skip


def digest(records: Sequence[Record]) -> str:
    """Names the base images and their labels."""
    seen = hashlib.blake2b(digest_size=16)
    for record in records:
        seen.update(record["image_id"].encode() + b"\0" + record["labels"].tobytes())
    return seen.hexdigest()


def known_recipe(row: Mapping[str, Any]) -> Recipe:
    """The draws of a written image."""
    return Recipe.from_row(row["recipe"])
