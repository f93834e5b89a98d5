"""What a patient of the world has: arranged so that small worlds hold every main class, else by prevalence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fx_d2.phantom.cooccurrence import sample_findings
from fx_d2.phantom.findings import FindingSpec
from fx_d2.phantom.patient import PatientSpec, sample_patient
from fx_d2.phantom.vocabulary_map import representatives
from fx_d2.phantom.writers.base import Job, Member

_DRAWS = 64  # tries to draw a case that has, or has not, what a label asks for


def patient_of(job: Job, member: Member) -> PatientSpec:
    """The anatomy of a patient; the same in all images."""
    return sample_patient(job.rng("patient", member.index))


def arranged_findings(
    key: str, member: Member, study: int = 0, count: int = 2
) -> list[FindingSpec]:
    """``count`` findings that stand for the next classes of the source, cycling through all of them."""
    names = representatives(key)
    number = (member.rank + study) // 3 + study
    chosen = [names[(number * count + k) % len(names)] for k in range(count)]
    return [FindingSpec(name) for name in dict.fromkeys(chosen)]


def findings_of(
    key: str, member: Member, rng: np.random.Generator, study: int = 0, count: int = 2
) -> list[FindingSpec]:
    """Findings of one study by the member's mode; see :meth:`Member.mode`."""
    mode = member.mode(study)
    if mode == "negative":
        return []
    if mode == "positive":
        return arranged_findings(key, member, study, count)
    return list(sample_findings(key, rng))


def findings_such_that(
    key: str, rng: np.random.Generator, wanted: Callable[[Sequence[str]], bool]
) -> list[FindingSpec] | None:
    """Draw by prevalence until the names please ``wanted``; None when luck does not help."""
    for _ in range(_DRAWS):
        findings = list(sample_findings(key, rng))
        if wanted([finding.name for finding in findings]):
            return findings
    return None
