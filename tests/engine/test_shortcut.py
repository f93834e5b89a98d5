"""Words for what is left without the lungs, and the report that holds them."""

from __future__ import annotations

import json

import pytest

from fx_d2.engine.shortcut import (
    ABOVE_CHANCE,
    AT_CHANCE,
    HIGH,
    UNTOLD,
    Row,
    modes_for,
    verdicts,
)
from fx_d2.engine.shortcut_report import ONE_EACH, page, write_report


def row(shown: str, auc: float, width: float = 0.05, **notes: object) -> Row:
    figures = {"AUC": auc, "AUC_low": auc - width, "AUC_high": auc + width, "F1": 0.5}
    figures |= {"accuracy": 0.6, "sensitivity": 0.4, "sensitivity-A": 0.3, "sensitivity-B": 0.5}
    return Row("model.safetensors", shown, shown, figures, {"images": 9, **notes})


@pytest.mark.parametrize(
    ("whole", "background", "level"),
    [
        (0.95, 0.90, HIGH),
        (0.95, 0.76, HIGH),  # high in itself
        (0.62, 0.57, HIGH),  # more than half of what is above chance
        (0.95, 0.60, ABOVE_CHANCE),
        (0.95, 0.54, AT_CHANCE),  # the interval holds 0.5
        (0.95, 0.30, AT_CHANCE),
        (0.52, 0.54, UNTOLD),  # the classes are not told from whole images either
        (0.52, 0.80, HIGH),
    ],
)
def test_levels(whole, background, level):
    (verdict,) = verdicts([row("none", whole), row("background", background)])
    assert verdict.level == level and verdict.shown == "background"
    assert f"AUC {background:.3f}" in verdict.text and f"{whole:.3f}" in verdict.text
    assert ("SHORTCUT" in verdict.text) == (level == HIGH)


def test_a_wide_interval_is_no_proof():
    (verdict,) = verdicts([row("none", 0.9), row("frame", 0.8, width=0.35)])
    assert verdict.level == AT_CHANCE
    (verdict,) = verdicts([row("background", 0.8)])  # alone, as one model of its own
    assert verdict.level == HIGH


def test_the_best_other_row_is_the_measure():
    rows = [row("none", 0.55), row("mask+crop", 0.95), row("background", 0.6)]
    assert verdicts(rows)[0].level == ABOVE_CHANCE
    assert verdicts(rows, high=0.6)[0].level == HIGH


def test_what_a_model_is_shown():
    assert modes_for("none") == ("none", "mask", "background", "frame")
    assert modes_for("mask+crop") == ("none", "mask+crop", "background", "frame")
    assert modes_for("background") == ("none", "mask", "background", "frame")


def test_the_report(tmp_path):
    rows = [row("none", 0.95, images_of_dataset=12), row("background", 0.9, images_of_dataset=12)]
    paths = write_report({ONE_EACH: rows}, "covid_radiography_3_test", 0.75, tmp_path / "new")
    told = json.loads(paths[0].read_text("utf-8"))
    reading = told["readings"][ONE_EACH]
    assert [r["shown"] for r in reading["rows"]] == ["none", "background"]
    assert reading["verdicts"][0]["level"] == HIGH
    text = paths[1].read_text("utf-8")
    assert text == page({ONE_EACH: rows}, "covid_radiography_3_test", 0.75)
    assert "SHORTCUT: AUC 0.900 (95 % 0.850 to 0.950) from all but the lungs" in text
    assert "recall A" in text and "9 of 12 (all but the lungs)" in text
