"""Cases of the tuberculosis sources, shared by their writers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fx_d2.phantom.cases import Case, case_such_that
from fx_d2.phantom.findings import FindingSpec
from fx_d2.phantom.vocabulary_map import TB_ACTIVE, TB_OLD
from fx_d2.phantom.writers.base import Member

_POSITIVE_SHARE = 0.45


def is_tuberculosis(names: Iterable[str]) -> bool:
    """Whether findings say tuberculosis."""
    return any(name in TB_ACTIVE or name in TB_OLD for name in names)


def tuberculosis_case(key: str, member: Member, rng: np.random.Generator) -> tuple[bool, Case]:
    """Whether the patient has tuberculosis, and the findings; arranged patients alternate."""
    mode = member.mode()
    if mode == "negative":
        return False, []
    positive = mode == "positive" or bool(rng.random() < _POSITIVE_SHARE)
    drawn = case_such_that(key, rng, lambda names: is_tuberculosis(names) == positive)
    if drawn is not None:
        return positive, drawn
    kinds = TB_ACTIVE + TB_OLD
    return positive, [FindingSpec(kinds[member.rank % len(kinds)])] if positive else []
