"""What a patient has: arranged so that small worlds hold every main class, else by prevalence."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from fx_d2.phantom.cooccurrence import sample_findings
from fx_d2.phantom.findings import FINDINGS, FindingSpec
from fx_d2.phantom.patient import PatientSpec, sample_patient
from fx_d2.phantom.vocabulary_map import representatives
from fx_d2.phantom.writers.base import Job, Member

Case = list[FindingSpec]

_DRAWS = 64  # tries to draw a case that has, or has not, what a label asks for


def patient_of(job: Job, member: Member) -> PatientSpec:
    """The anatomy of a patient; the same in all images."""
    return sample_patient(job.rng("patient", member.index))


def names_of(findings: Iterable[FindingSpec]) -> list[str]:
    """Names of the findings that count: look-alikes are no findings."""
    return [f.name for f in findings if not FINDINGS[f.name].distractor]


def drawn_case(key: str, rng: np.random.Generator) -> Case:
    """A case by the prevalences and co-occurrences of a source."""
    return [FindingSpec(name) for name in sample_findings(key, rng)]


def arranged_case(table: str, member: Member, study: int = 0, count: int = 2) -> Case:
    """``count`` findings that stand for the next classes of a table, cycling through it."""
    names = representatives(table)
    number = (member.rank + study) // 3 + study
    chosen = [names[(number * count + k) % len(names)] for k in range(count)]
    return [FindingSpec(name) for name in dict.fromkeys(chosen)]


def case_of(
    key: str,
    member: Member,
    rng: np.random.Generator,
    *,
    study: int = 0,
    table: str | None = None,
    count: int = 2,
) -> Case:
    """Findings of one study by the member's mode; see :meth:`Member.mode`.

    Args:
        key: source whose prevalences are drawn from.
        member: the patient.
        rng: for drawn cases.
        study: number of the study.
        table: label table that arranged cases cycle through; the source's own by default.
        count: findings per arranged case.
    """
    mode = member.mode(study)
    if mode == "negative":
        return []
    if mode == "positive":
        return arranged_case(table or key, member, study, count)
    return drawn_case(key, rng)


def case_such_that(
    key: str, rng: np.random.Generator, wanted: Callable[[list[str]], bool]
) -> Case | None:
    """Draw by prevalence until the names please ``wanted``; None when luck does not help."""
    for _ in range(_DRAWS):
        case = drawn_case(key, rng)
        if wanted(names_of(case)):
            return case
    return None
