"""Figures and remarks, each with a planted cause."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fx_d2.data.sources import get_source
from fx_d2.pipelines.evidence import (
    SEVERITY_NOTE,
    LungLimits,
    even_share,
    evidence_remark,
    lesion_evidence,
    lesions_of,
    lung_remarks,
    severity,
    share_within,
)
from fx_d2.pipelines.stages import LungMask

SIZE = (100, 100)


def region(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(SIZE, dtype=bool)
    mask[rows, columns] = True
    return mask


LUNGS = region(slice(20, 80), slice(10, 45)) | region(slice(20, 80), slice(55, 90))


def test_share_within_a_region() -> None:
    values = np.zeros(SIZE, dtype=np.float32)
    values[30:40, 20:30] = 3  # in the lungs
    values[0:10, 0:10] = 1  # not
    assert share_within(values, LUNGS) == pytest.approx(0.75)
    assert math.isnan(share_within(np.zeros(SIZE, dtype=np.float32), LUNGS))
    seen = region(slice(20, 80), slice(10, 90))
    assert share_within(seen.astype(np.float32), LUNGS) == pytest.approx(even_share(LUNGS, seen))


def test_severity_is_a_share_of_the_lungs() -> None:
    values = np.zeros(SIZE, dtype=np.float32)
    values[20:80, 10:45] = 1  # one of two equal lungs
    values[20:80, 55:90] = 0.4
    assert severity(values, LUNGS, 0.5) == pytest.approx(0.5)
    assert severity(values, LUNGS, 0.4) == pytest.approx(1)
    values[0, 0] = 10  # the maximum may lie outside
    assert severity(values, LUNGS, 0.5) == 0
    assert severity(np.zeros(SIZE, dtype=np.float32), LUNGS, 0.5) == 0
    assert math.isnan(severity(values, np.zeros(SIZE, dtype=bool), 0.5))
    with pytest.raises(ValueError, match="level is 0"):
        severity(values, LUNGS, 0)
    assert "heuristic" in SEVERITY_NOTE


def test_energy_in_a_lesion() -> None:
    lesion, seen = region(slice(30, 40), slice(20, 30)), region(slice(0, 50), slice(0, 100))
    values = np.zeros(SIZE, dtype=np.float32)
    values[35, 25], values[5, 5] = 2, 1
    one = lesion_evidence("Mass", "Mass", values, lesion, seen, LUNGS)
    assert one.energy == pytest.approx(2 / 3) and one.chance == pytest.approx(100 / 5000)
    assert one.in_lungs == pytest.approx(100 / (30 * 70)) and one.hit
    unseen = lesion_evidence("Mass", "Mass", values, lesion, seen, ~seen)
    assert math.isnan(unseen.in_lungs)
    assert not lesion_evidence("Mass", "Mass", values[::-1].copy(), lesion, seen, LUNGS).hit
    corner = lesion | region(slice(0, 1), slice(0, 1))  # where a map of zeros has its first pixel
    assert not lesion_evidence("Mass", "Mass", values * 0, corner, seen, LUNGS).hit


def test_lesions_come_from_boxes_and_masks_but_not_from_organs() -> None:
    source = get_source("chestx_det")
    name = source.thing_classes[4]
    box = {"bbox": [10, 20, 30, 40], "bbox_mode": 0, "category_id": 4}
    organ = {"Heart": {"polygons": [[0, 0, 9, 0, 9, 9]]}}
    mask = {source.seg_classes[1]: {"polygons": [[50, 50, 59, 50, 59, 59, 50, 59]]}}
    found = lesions_of({"annotations": [box], "masks": organ | mask}, source, SIZE)  # type: ignore[typeddict-item]
    assert set(found) == {name, source.seg_classes[1]}
    assert found[name].sum() == 20 * 20 and found[name][20:40, 10:30].all()
    assert lesions_of({"annotations": []}, source, SIZE) == {}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("mask", "kinds", "words"),
    [
        (LUNGS, set(), ""),
        (region(slice(45, 50), slice(20, 24)) | region(slice(45, 50), slice(60, 64)),
         {"lung area"}, "covers 0.4% of the film; plausible are 10% to 60%"),
        (region(slice(2, 98), slice(2, 49)) | region(slice(2, 98), slice(51, 98)),
         {"lung area"}, "covers 90.2% of the film"),
        (region(slice(20, 80), slice(10, 60)), {"lung pieces"}, "has 1 piece instead of two"),
        (LUNGS | region(slice(85, 98), slice(20, 80)), {"lung pieces"}, "has 3 pieces"),
        (LUNGS | region(slice(70, 100), slice(20, 40)), {"lungs at the frame"}, "frame: bottom"),
        (np.zeros(SIZE, dtype=bool), set(), ""),
    ],
    ids=["good", "small", "large", "one", "three", "frame", "empty"],
)  # fmt: skip
def test_implausible_lungs(mask: np.ndarray, kinds: set[str], words: str) -> None:
    found = lung_remarks(LungMask(mask), LungLimits())
    assert {one.kind for one in found} == kinds
    assert words in "; ".join(one.text for one in found)


def test_a_positive_score_needs_the_lungs() -> None:
    assert evidence_remark("COVID", 0.9, 0.6, 0.5) is None
    low = evidence_remark("COVID", 0.9, 0.1, 0.5)
    assert low is not None and "only 10% of its heat map lies in the lungs" in low.text
    none = evidence_remark("COVID", 0.9, math.nan, 0.5)
    assert none is not None and "heat map is empty" in none.text


def test_limits_are_checked() -> None:
    with pytest.raises(ValueError, match="low < high"):
        LungLimits(0.6, 0.1)
