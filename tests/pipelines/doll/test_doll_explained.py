"""One image through a committee: whose say counts, which class is asked, and where it may lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import doll_world
import numpy as np
import pytest

from fx_d2.data.builtin import load_records
from fx_d2.data.masks import encode_mask
from fx_d2.data.sources import get_source
from fx_d2.explain.consensus import consensus
from fx_d2.explain.pseudo_labels import LabelRules, pixel_labels
from fx_d2.pipelines.doll.explained import Explained, Explainer
from fx_d2.pipelines.doll.regions import anatomy_of, truth_of
from fx_d2.pipelines.doll.settings import DollSettings

SETTINGS = DollSettings(dataset="doll_toy_all", mask_px=48)
SIZE = (36, 48)  # of the masks
FILM = (doll_world.HEIGHT, doll_world.WIDTH)
LEFT = doll_world.CLASSES.index("Left")


class Unequal(doll_world.FakeCommittee):
    """The first member doubts every class, the others are sure of them."""

    def _chances(self, image: np.ndarray, member: int) -> list[float]:
        return [(0.2, 0.9, 0.9)[member]] * len(self.classes)


def rules(**changes: Any) -> DollSettings:
    return replace(SETTINGS, labels=LabelRules(**changes))


def explained(
    settings: DollSettings, committee: Any = None, masks: dict[str, np.ndarray] | None = None
) -> Explained:
    """The first image, whose only finding is ``Left``."""
    record = dict(load_records("doll_toy", "all")[0])
    if masks is not None:
        record["masks"] = {name: encode_mask(mask) for name, mask in masks.items()}
    source = get_source("doll_toy")
    return Explainer(committee or doll_world.committee(3), source, settings).explain(record)  # type: ignore[arg-type]


def maps_of(members: Sequence[int]) -> np.ndarray:
    fake, path = doll_world.committee(3), load_records("doll_toy", "all")[0]["file_name"]
    return np.stack([fake.map_of(fake.prepare(path)[0].image, "Left", m, SIZE) for m in members])


def test_a_class_is_weighed_by_its_own_row(toy) -> None:
    plain = explained(SETTINGS)
    np.testing.assert_array_equal(
        plain.masks[LEFT], pixel_labels(consensus(maps_of((0, 1, 2))), "Left", LabelRules())
    )
    one = explained(replace(SETTINGS, class_weights={"Left": [0.0, 2.0, 0.0]}))
    alone = consensus(maps_of((1,)))
    np.testing.assert_array_equal(one.masks[LEFT], pixel_labels(alone, "Left", LabelRules()))
    assert not np.array_equal(one.masks[LEFT], plain.masks[LEFT])
    assert one.quality[LEFT]["n_models"] == 1 and plain.quality[LEFT]["n_models"] == 3
    other = explained(replace(SETTINGS, class_weights={"Right": [0.0, 2.0, 0.0]}))
    np.testing.assert_array_equal(other.masks[LEFT], plain.masks[LEFT])


def test_a_doubted_finding_is_no_mask(toy) -> None:
    """By the weighted mean of the members, against the threshold of its class."""
    doubt = replace(SETTINGS, class_weights={"Left": [5.0, 1.0, 1.0]})  # 0.4 in place of 0.67
    for settings, state, chance in (
        (SETTINGS, "kept", 2 / 3),
        (doubt, "low probability", 0.4),
        (replace(doubt, labels=LabelRules(min_prob_by={"Left": 0.3})), "kept", 0.4),
        (rules(min_prob_by={"Left": 0.7}), "low probability", 2 / 3),
        (rules(min_prob_by={"Right": 0.7}), "kept", 2 / 3),
    ):
        found = explained(settings, Unequal(3))
        assert found.states[LEFT] == state and (LEFT in found.masks) == (state == "kept")
        assert found.row["mean_prob"][LEFT] == pytest.approx(chance, abs=1e-5)


def test_foreground_lies_in_the_region_of_its_class(toy) -> None:
    plain = explained(SETTINGS).masks[LEFT]
    columns = np.flatnonzero((plain == 1).any(axis=0))
    middle = int(columns.mean() / 48 * 80)
    sides = {"Left Lung": np.zeros(FILM, dtype=bool), "Right Lung": np.zeros(FILM, dtype=bool)}
    sides["Left Lung"][:, :middle] = True
    gated = explained(rules(region_by={"Left": "lungs"}), masks=sides).masks[LEFT]
    region = anatomy_of(
        "lungs", {"masks": {"Lungs": encode_mask(sides["Left Lung"])}},  # type: ignore[typeddict-item]
        get_source("doll_toy"), FILM, SIZE,
    )  # fmt: skip
    assert region is not None and 0 < (plain == 1)[~region].sum() < (plain == 1).sum()
    np.testing.assert_array_equal(
        gated, pixel_labels(consensus(maps_of((0, 1, 2))), "Left", LabelRules(), region)
    )
    # Both lungs are the region: the other one may hold it too.
    sides["Right Lung"][:, middle:] = True
    both = explained(rules(region_by={"Left": "lungs"}), masks=sides).masks[LEFT]
    np.testing.assert_array_equal(both, plain)
    # Another class's gate is none of this one.
    right = explained(rules(region_by={"Right": "lungs"}), masks={"Lungs": sides["Left Lung"]})
    np.testing.assert_array_equal(right.masks[LEFT], plain)


def test_a_region_that_is_not_known(toy) -> None:
    found = explained(rules(region_by={"Left": "heart"}))
    assert found.states[LEFT] == "no region" and LEFT not in found.masks
    free = explained(rules(region_by={"Left": "heart"}, no_region="ungated"))
    assert free.states[LEFT] == "kept"
    np.testing.assert_array_equal(free.masks[LEFT], explained(SETTINGS).masks[LEFT])


def test_labels_are_those_of_the_committees_classes(toy) -> None:
    """Which stand in another order than those of the source, or are no label of it at all."""
    found = explained(SETTINGS, doll_world.committee(3, classes=("Oedema", "Right", "Left")))
    assert found.states == ["unknown", "negative", "kept"] and set(found.masks) == {2}
    assert found.row["labels"] == [None, 0, 1]


def test_uncertain_labels_say_nothing_about_the_committee(toy) -> None:
    records = load_records("doll_toy", "all")
    explainer = Explainer(doll_world.committee(3), get_source("doll_toy"), SETTINGS)  # type: ignore[arg-type]
    found = explainer.explain(records[4])  # None, -1, 1, None, None
    assert found.row["labels"] == [None, None, 1, None, None]


def test_a_true_region_is_every_cell_that_it_touches(toy) -> None:
    """A hit on the border of a small lesion is a hit, whatever the resolution of the map."""
    source = get_source("doll_toy")
    box = {"bbox": [9.0, 9.0, 11.0, 11.0], "bbox_mode": 0, "category_id": 1}
    mask = np.zeros(FILM, dtype=bool)
    mask[9:11, 9:11] = True
    drawn = {**box, "segmentation": encode_mask(mask)}
    for annotation in (box, drawn):
        found = truth_of("Left", {"annotations": [annotation]}, source, FILM, (6, 8))  # type: ignore[typeddict-item]
        assert found is not None and np.argwhere(found).tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert truth_of("Right", {"annotations": [box]}, source, FILM, (6, 8)) is None  # type: ignore[typeddict-item]
