"""No patch and no base of a patient who is evaluated on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..catalog import load_records, patient_of
from ..errors import DataError
from ..record import Record
from ..source import Source
from ..sources import get_source
from ..splits import read_split_file

_logger = logging.getLogger(__name__)
_TRAINING = ("train", "trainval", "all")  # splits that are not there to evaluate on


@dataclass
class HeldOut:
    """Patients by source folder, which is what patient ids are unique in.

    Args:
        patients: source folder -> patients that are evaluated on.
        unread: datasets whose patients could not be compared, and why.
    """

    patients: dict[str, set[str]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, *, needed: bool = False) -> None:
        """Hold out the patients of a registered dataset; one that is not on disk is noted."""
        meta = MetadataCatalog.get(name)
        folder = get_source(meta.source).folder
        try:
            records = load_records(meta.source, meta.split)
        except DataError as exc:
            if needed:
                raise
            self.unread[name] = exc.problem
            _logger.warning("patients of %s are not compared: %s", name, exc)
            return
        self.patients.setdefault(folder, set()).update(patient_of(r) for r in records)

    def check(self, name: str, folder: str, records: Iterable[Record]) -> None:
        """Raise if one of the records is of a patient held out.

        Args:
            name: of their dataset.
            folder: of its source, which patient ids are unique in.
            records: of the dataset.
        """
        held = self.patients.get(folder, set())
        shared = sorted({patient_of(r) for r in records} & held)
        if shared:
            raise DataError(
                f"{len(shared)} patients of {name} are also evaluated on, such as {shared[0]!r}",
                expected="patches and bases of training patients only",
                fix="name the train split, or write splits with tools/make_split.py",
            )


def split_of(name: str) -> tuple[Source, str]:
    """Row and split of a registered dataset; one to evaluate on is refused."""
    if name not in DatasetCatalog.list():
        raise DataError(f"no dataset {name!r} is registered", expected="<source>_<split>")
    meta = MetadataCatalog.get(name)
    source, split = get_source(meta.source), str(meta.split)
    if split not in _TRAINING:
        raise DataError(
            f"{name} is there to evaluate on",
            expected=f"{source.key}_train: never a patch or a base of validation or test",
            fix="where only evaluated images have boxes (nih14), write splits of your own with "
            "tools/make_split.py and name the file in DATASETS.SPLIT_FILES",
        )
    return source, split


def held_out_of(
    names: Sequence[str], further: Sequence[str] = (), split_files: Mapping[str, str] | None = None
) -> HeldOut:
    """The patients of every split to evaluate on of the sources of ``names``.

    Args:
        names: datasets that patches and bases come from.
        further: datasets whose patients are held out too.
        split_files: source -> split file in force.
    """
    result = HeldOut()
    for key in dict.fromkeys(split_of(name)[0].key for name in names):
        path = (split_files or {}).get(key)
        splits = read_split_file(path, key) if path else get_source(key).splits
        for split in splits:
            if split in _TRAINING or f"{key}_{split}" not in DatasetCatalog.list():
                continue
            result.add(f"{key}_{split}")
    for name in further:
        result.add(name, needed=True)
    return result
