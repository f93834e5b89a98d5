"""What a writer is: a family of sources that share files, written patient by patient."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from fx_d2.data.draws import draw_key, rng_for

MODES = ("positive", "negative", "drawn")
# So many patients of a part are arranged to hold positives and negatives of the main classes; the
# others follow the source's prevalences, which stay long-tailed in a world of any useful size.
ARRANGED_PER_PART = 36


@dataclass(frozen=True)
class Job:
    """A family being written.

    Attributes:
        root: Folder that stands for the world (a temporary one until the family is complete).
        family: Key of the family's first source; part of every draw.
        seed: Of the world.
        patients: Per family.
        size_px: Detail asked for, None for native sizes.
    """

    root: Path
    family: str
    seed: int
    patients: int
    size_px: int | None

    def rng(self, *position: int | str) -> np.random.Generator:
        """A generator that depends on the seed, the family and the position only."""
        return rng_for(self.seed, "phantom", self.family, *position)

    def hex_id(self, length: int, *position: int | str) -> str:
        """Hexadecimal id of up to 32 characters."""
        return f"{draw_key(self.seed, 'phantom id', self.family, *position):032x}"[:length]

    def uid(self, *position: int | str) -> str:
        """DICOM UID under the root for UUIDs."""
        return f"2.25.{draw_key(self.seed, 'phantom uid', self.family, *position)}"

    def uuid(self, *position: int | str) -> str:
        """Random-looking UUID."""
        key = draw_key(self.seed, "phantom uuid", self.family, *position)
        return str(uuid.UUID(int=key, version=4))


@dataclass(frozen=True)
class Member:
    """A patient of a family.

    Attributes:
        index: Number within the family, from 0.
        part: Published part the patient belongs to.
        rank: Number within the part, from 0.
    """

    index: int
    part: str
    rank: int

    def mode(self, study: int = 0) -> str:
        """``positive`` (arranged findings), ``negative`` (none) or ``drawn`` (by prevalence)."""
        number = self.rank + study
        return MODES[number % 3] if number < ARRANGED_PER_PART else "drawn"


@dataclass
class Entry:
    """One written image: what the index needs of it, and its truth by source."""

    part: str
    row: dict[str, Any]
    truth: dict[str, dict[str, Any]] = field(default_factory=dict)


class Writer:
    """Writes a family of sources that share one folder.

    Attributes:
        keys: Sources in it; the first names the family.
        folders: Top-level folders it writes.
        parts: Published parts and the share of patients each gets (at least one).
    """

    keys: ClassVar[tuple[str, ...]]
    folders: ClassVar[tuple[str, ...]]
    parts: ClassVar[Mapping[str, float]] = {"all": 1.0}

    def write_patient(self, job: Job, member: Member) -> list[Entry]:
        """Write the image and mask files of one patient."""
        raise NotImplementedError

    def write_index(self, job: Job, entries: Sequence[Entry]) -> None:
        """Write tables and lists; ``entries`` are in the order of the patients, without truth."""

    @property
    def family(self) -> str:
        """Key of the first source."""
        return self.keys[0]

    def members(self, patients: int) -> Iterator[Member]:
        """All patients, part by part."""
        index = 0
        for part, count in allot(self.parts, patients).items():
            for rank in range(count):
                yield Member(index, part, rank)
                index += 1


def allot(parts: Mapping[str, float], patients: int) -> dict[str, int]:
    """Patients per part: one each, the others by share (largest remainders first)."""
    if patients < len(parts):
        raise ValueError(f"{patients} patients cannot fill the parts {', '.join(parts)}")
    free = patients - len(parts)
    total = sum(parts.values())
    exact = {part: free * share / total for part, share in parts.items()}
    counts = {part: 1 + int(value) for part, value in exact.items()}
    order = sorted(
        parts, key=lambda part: int(exact[part]) - exact[part]
    )  # stable: ties keep order
    for part in order[: patients - sum(counts.values())]:
        counts[part] += 1
    return counts
