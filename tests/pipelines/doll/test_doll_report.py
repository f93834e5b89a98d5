"""Figures of rows made by hand, and the classes that are left out by them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fx_d2.pipelines.doll.measures import mass, pointing
from fx_d2.pipelines.doll.report import Report, gather
from fx_d2.pipelines.doll.settings import Quality

CLASSES, MEMBERS = ("Edema", "Mass"), ("a", "b")


def figures(hit: float, own: tuple[float, float], share: float) -> dict[str, Any]:
    members = {"pointing": list(own), "pointing_unclipped": list(own), "mass": [share, share]}
    return {
        "completeness": [0.01, 0.03], "area": 0.1, "ignored": 0.2, "chance": 0.05,
        "pointing": hit, "mass": share, "members": members, "front_in_truth": 0.5,
        "truth_covered": 0.5, "beside": {},
    }  # fmt: skip


def row(number: int, edema: int | None, mass_: int | None, chance: float, **found: Any) -> dict:
    states = ["kept" if c in found else "negative" for c in CLASSES]
    chances = [chance, 0.5]
    return {
        "image_id": f"im{number}", "labels": [edema, mass_], "prob": [chances, chances],
        "mean_prob": chances, "classes": found, "states": states,
    }  # fmt: skip


@pytest.fixture
def report() -> Report:
    rows = [
        row(0, 1, 0, 0.9, Edema=figures(1.0, (1.0, 0.0), 0.3)),
        row(1, 1, 1, 0.4, Mass=figures(0.5, (0.0, 0.5), 0.8)),
        row(2, 1, None, 0.8, Edema=figures(0.0, (0.5, 0.0), 0.1)),
        row(3, 0, 0, 0.6),
        row(4, 0, None, 0.1),
        row(5, None, 1, 0.99, Mass=figures(0.5, (0.5, 1.0), 0.9)),
    ]
    return gather(rows, CLASSES, MEMBERS, ["integrated_gradients"])


def test_what_is_counted(report: Report) -> None:
    edema, other = report.per_class["Edema"], report.per_class["Mass"]
    # Pairs of a positive and a negative: 0.9, 0.4, 0.8 against 0.6, 0.1; the unlabelled is none.
    assert edema["auc"]["consensus"] == pytest.approx(5 / 6)
    assert edema["positive"] == 3 and edema["masks"] == 2
    assert edema["share_kept"] == pytest.approx(2 / 3)
    assert edema["pointing"] == {"consensus": 0.5, "a": 0.75, "b": 0.0}
    assert other["pointing"]["consensus"] == 0.5 and other["mass"]["consensus"] == pytest.approx(
        0.85
    )
    assert edema["completeness"] == {"mean": pytest.approx(0.03), "worst": 0.03}
    # Every class counts alike: member a has 0.75 and 0.25, b 0 and 0.75.
    places = report.places["integrated_gradients"]
    assert places["pointing"] == {"consensus": 0.5, "a": 0.5, "b": pytest.approx(0.375)}
    assert places["best_member"] == "a"


@pytest.mark.parametrize(
    ("quality", "excluded"),
    [
        ({}, {}),
        ({"min_auc": 0.83}, {"Mass": "auc 0.500, below 0.83"}),
        ({"min_auc": 0.84}, {"Edema": "auc 0.833, below 0.84", "Mass": "auc 0.500, below 0.84"}),
        ({"min_pointing": 0.5}, {}),
        ({"min_pointing": 0.51}, dict.fromkeys(CLASSES, "pointing 0.500, below 0.51")),
        ({"min_kept": 0.7}, {"Edema": "share_kept 0.667, below 0.7"}),
        ({"min_masks": 2}, {}),
        (
            {"min_masks": 3},
            dict.fromkeys(CLASSES, "2 masks, fewer than 3 (2 x kept; 4 x negative)"),
        ),
    ],
)  # fmt: skip
def test_classes_below_the_quality_are_left_out(
    report: Report, quality: dict, excluded: dict
) -> None:
    found = replace(report, excluded={})
    found.exclude((), Quality(**quality))
    assert found.excluded == excluded
    assert found.kept == tuple(c for c in CLASSES if c not in excluded)


def test_a_class_that_means_nothing_found_has_no_quality(report: Report) -> None:
    found = replace(report, always_background=("Edema",))
    found.exclude((), Quality(min_masks=10))
    assert list(found.excluded) == ["Mass"]
    found = replace(report, excluded={})
    found.exclude(("Edema",), Quality())
    assert found.excluded == {"Edema": "asked for"}


def test_pointing_is_no_luck_among_equal_maxima() -> None:
    values = np.zeros((4, 4), dtype=np.float32)
    values[0, 0] = values[1, 1] = values[2, 2] = values[3, 3] = 0.7
    region = np.zeros((4, 4), dtype=bool)
    region[0, 0] = True
    assert pointing(values, region) == pytest.approx(0.25)
    region[:] = True
    assert pointing(values, region) == 1 and pointing(np.full_like(values, 0.7), region) == 0
    assert mass(values, values > 0) == pytest.approx(1) and mass(values * 0, region) == 0
