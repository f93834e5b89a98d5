"""Cases of the tuberculosis sources, shared by their writers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fx_d2.phantom.cases import findings_such_that
from fx_d2.phantom.findings import FindingSpec
from fx_d2.phantom.vocabulary_map import TB_ACTIVE, TB_OLD
from fx_d2.phantom.writers.base import Member


def is_tuberculosis(names: Sequence[str]) -> bool:
    """Whether findings say tuberculosis."""
    return any(name in TB_ACTIVE or name in TB_OLD for name in names)


def tuberculosis_case(
    key: str, member: Member, rng: np.random.Generator
) -> tuple[bool, list[FindingSpec]]:
    """Whether the patient has tuberculosis, and the findings; arranged patients alternate."""
    mode = member.mode()
    if mode == "negative":
        return False, []
    positive = mode == "positive" or bool(rng.random() < 0.45)
    drawn = findings_such_that(key, rng, lambda names: is_tuberculosis(names) == positive)
    if drawn is not None:
        return positive, drawn
    kinds = TB_ACTIVE + TB_OLD
    return positive, [FindingSpec(kinds[member.rank % len(kinds)])] if positive else []
