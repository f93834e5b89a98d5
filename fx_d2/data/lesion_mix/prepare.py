"""From a config to a prepared mix: base images, patients held out, the bank, the statistics."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..catalog import load_records
from ..errors import DataError
from ..record import PackedRecords, Record
from ..source import Source
from .bank_build import build_bank, harvest
from .build import Prepared, check_same, digest, read_prepared, write_prepared
from .held_out import HeldOut, held_out_of, split_of
from .settings import MixSettings

# They decide which patches there are; the other settings are free to change with a bank.
_OF_BANK = (
    *("class_map", "exclude", "min_box_px", "max_box_share", "margin", "bank_px"),
    *("placement", "no_lungs"),
)


@dataclass
class Ready:
    """Everything to mix with.

    Args:
        prepared: bank and statistics, as on disk.
        records: the base images.
        held_out: patients that are evaluated on.
        settings: of the config.
    """

    prepared: Prepared
    records: Sequence[Record]
    held_out: HeldOut
    settings: MixSettings


def prepare(cfg: Any, folder: Path, *, workers: int = 1, progress: bool = True) -> Ready:
    """Build, or complete, the bank and the statistics in ``folder``.

    Args:
        cfg: ``INPUT.FX.LESION_MIX`` and ``DATASETS``; reading is configured already.
        folder: of the mix.
        workers: processes.
        progress: whether there are bars.

    Raises:
        DataError: a patch or base of a patient who is evaluated on, a source without boxes, a bank
            of other settings.
    """
    node, settings = cfg.INPUT.FX.LESION_MIX, MixSettings.from_config(cfg)
    base, records = _base_images(tuple(node.BASE))
    files = {key: path for key, path in cfg.DATASETS.SPLIT_FILES.items() if path}
    held_out = held_out_of((*node.BASE, *node.BANK), tuple(node.HELD_OUT), files)
    bank_records = {name: _loaded(name) for name in node.BANK}
    if not bank_records:
        raise DataError("INPUT.FX.LESION_MIX.BANK names no dataset to cut lesions out of")
    held_out.check(" + ".join(node.BASE), base.folder, records)
    for name, found in bank_records.items():
        held_out.check(name, split_of(name)[0].folder, found)
    begun = {
        "base": base.key,
        "bank": list(bank_records),
        "images of the bank": {name: _names(found) for name, found in bank_records.items()},
        **{name: settings.to_dict()[name] for name in _OF_BANK},
    }
    check_same(folder, "bank_begun.json", begun)
    build_bank(
        folder / "bank",
        harvest(bank_records, base, settings),
        settings,
        workers=workers,
        progress=progress,
    )
    labels = np.stack([record["labels"] for record in records])
    write_prepared(folder, base, tuple(node.BASE), labels, settings)
    prepared = read_prepared(folder)
    if not len(prepared.bank):
        raise DataError(
            f"no patch in {', '.join(bank_records)} is of use for {base.key}: "
            + ("; ".join(f"{n} x {why}" for why, n in prepared.bank.header["skipped"].items())),
            fix="name sources with boxes of training images in INPUT.FX.LESION_MIX.BANK",
        )
    return Ready(prepared, records, held_out, settings)


def _base_images(names: Sequence[str]) -> tuple[Source, Sequence[Record]]:
    rows = [split_of(name)[0] for name in names]
    if len({row.key for row in rows}) != 1:
        raise DataError(
            f"INPUT.FX.LESION_MIX.BASE is {list(names)}",
            expected="training splits of one source: they share their labels",
        )
    base = rows[0]
    if not base.cls_classes or base.cls_kind != "multilabel":
        raise DataError(
            f"{base.key} cannot be the base: its labels are {base.cls_kind}",
            expected="a source with independent image labels, such as cxr_lt",
        )
    loaded = [_loaded(name) for name in names]
    records = loaded[0] if len(loaded) == 1 else PackedRecords(r for part in loaded for r in part)
    for record in records:
        if "labels" not in record:
            raise DataError(
                "a base image without labels", file=record["file_name"],
                expected="image labels on every base image",
            )  # fmt: skip
    return base, records


def _loaded(name: str) -> PackedRecords:
    source, split = split_of(name)
    return load_records(source.key, split)


def _names(records: Sequence[Record]) -> str:
    if records and "labels" in records[0]:
        return digest(records)
    seen = hashlib.blake2b(digest_size=16)
    for record in records:
        seen.update(record["image_id"].encode() + b"\0")
    return seen.hexdigest()
