"""Scoring every head in the real loop: rows, files, and runs that die at the worst moment."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode
from PIL import Image
from runs import TINY, Stop

from fx_d2.data.errors import DataError
from fx_d2.engine import forgetting
from fx_d2.engine.forgetting import START, ForgettingHook, ForgettingTable, Moment, Row
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.trainer import FxTrainer
from fx_d2.evaluation.results import Results

HEADS = ("toy_engine/cls", "toy_engine/seg")
MakeCfg = Callable[..., CfgNode]


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Scripted scores, so that rows can be told by their iteration; -> iterations scored."""
    calls: list[int] = []
    # A picture takes a second; one test below draws it.
    monkeypatch.setattr(forgetting, "draw_map", lambda *_: b"picture")

    def scores(cls: type, cfg: CfgNode, model: Any, evaluators: Any = None) -> Results:
        if cfg.FORGETTING.AFTER and tuple(cfg.DATASETS.TEST) == ("toy_engine_val",):
            calls.append(len(calls))
        at = len(calls) / 100
        return Results({HEADS[0]: {"AUC": 0.5 + at}, HEADS[1]: {"Dice_positive": 0.9 - at}})

    monkeypatch.setattr(FxTrainer, "scores", classmethod(scores))
    return calls


def content(cfg: CfgNode) -> dict[str, Any]:
    return json.loads((Path(cfg.OUTPUT_DIR) / "forgetting.json").read_text())


def iterations(cfg: CfgNode) -> list[int]:
    return [row["moment"]["iteration"] for row in content(cfg)["rows"]]


def train(cfg: CfgNode, *, resume: bool = False) -> FxTrainer:
    trainer = FxTrainer(cfg)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def test_every_n_iterations_and_at_both_ends(toy_cfg: MakeCfg, scored: list[int]):
    cfg = toy_cfg(FORGETTING__AFTER="iterations", FORGETTING__PERIOD=5)
    trainer = train(cfg)
    assert iterations(cfg) == [START, 4, 9, 11]
    found = content(cfg)
    assert found["heads"] == list(HEADS) and found["metrics"]["seg"] == "Dice_positive"
    # cls grows by 0.01 a row, seg falls by it: best against last, of rows in training.
    by_head = found["summary"]["student"]["by_head"]
    assert by_head["forgetting"] == pytest.approx({HEADS[0]: -0.01, HEADS[1]: 0.02})
    average = found["summary"]["student"]["average_forgetting"]
    assert average == pytest.approx(0.005)
    logged = trainer.storage.history("average_forgetting/student")
    assert logged.latest() == pytest.approx(average)


def test_every_slot_and_cycle_of_a_cycle(toy_cfg: MakeCfg, scored: list[int]):
    """Two slots of 3 iterations; the run is cut within the second cycle."""
    cycle = {"CYCLE__NAME": "cyclic", "CYCLE__MAX_STEPS_PER_PHASE": 3, "SOLVER__MAX_ITER": 8}
    cycle |= TINY | {"MODEL__META_ARCHITECTURE": "FoundationX"}
    cfg = toy_cfg("slots", FORGETTING__AFTER="slot", **cycle)
    train(cfg)
    moments = [row["moment"] for row in content(cfg)["rows"]]
    assert [(m["iteration"], m["cycle"], m["slot"], m["trained"]) for m in moments] == [
        (START, -1, -1, ""),
        (2, 0, 0, HEADS[0]),
        (5, 0, 1, HEADS[1]),
        (7, 1, 0, HEADS[0]),  # the end of the run
    ]
    summary = content(cfg)["summary"]["student"]
    assert summary["by_head"]["forgetting"] == pytest.approx({HEADS[1]: 0.01})
    assert summary["by_head"]["backward"] == pytest.approx({HEADS[1]: -0.01})
    assert summary["by_head"]["forward"] == pytest.approx({HEADS[1]: -0.01})
    cfg = toy_cfg("cycles", FORGETTING__AFTER="cycle", FORGETTING__AT_START=False, **cycle)
    train(cfg)
    assert iterations(cfg) == [5, 7]


def test_the_files_say_the_same(toy_cfg: MakeCfg, scored: list[int]):
    cfg = toy_cfg(FORGETTING__AFTER="iterations", FORGETTING__PERIOD=6)
    train(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    with (folder / "forgetting.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [int(r["iteration"]) for r in rows] == [-1, 5, 11]
    expected = [row["scores"]["student"][HEADS[1]] for row in content(cfg)["rows"]]
    assert [float(r[HEADS[1]]) for r in rows] == pytest.approx(expected)
    assert {r["model"] for r in rows} == {"student"}
    assert (folder / "forgetting.png").read_bytes() == b"picture"
    assert not list(folder.glob(".forgetting*"))


@pytest.mark.parametrize("die_in", ["step", "scoring", "before the file"])
def test_no_row_is_missing_or_comes_twice(
    toy_cfg: MakeCfg, scored: list[int], monkeypatch: pytest.MonkeyPatch, die_in: str
):
    """Checkpoints and scores after 4 and 9, scores at both ends too."""
    options = {"FORGETTING__AFTER": "iterations", "FORGETTING__PERIOD": 5}
    whole, cut = toy_cfg("whole", **options), toy_cfg("cut", **options)
    train(whole)
    with monkeypatch.context() as patch:
        if die_in == "step":

            def die(self: Any) -> None:
                if self.trainer.iter == 7:
                    raise Stop

            patch.setattr(ForgettingHook, "before_step", die)
        else:
            name = "scores" if die_in == "scoring" else "write"
            owner = FxTrainer if die_in == "scoring" else ForgettingTable
            original, count = getattr(owner, name), []

            def fail(*args: Any, **kwargs: Any) -> Any:
                count.append(1)
                if len(count) == 3:  # before training, after 4, after 9: as its checkpoint is there
                    raise Stop
                return original(*args, **kwargs)

            patch.setattr(owner, name, staticmethod(fail) if owner is FxTrainer else fail)
        with pytest.raises(Stop):
            train(cut)
    assert iterations(cut) == [START, 4]
    trainer = train(cut, resume=True)
    assert trainer.start_iter == (5 if die_in == "step" else 10)
    assert iterations(cut) == iterations(whole) == [START, 4, 9, 11]
    before = content(cut)
    train(cut, resume=True)  # a finished run: nothing comes again
    assert content(cut) == before


def test_rows_after_the_checkpoint_come_again(
    toy_cfg: MakeCfg, scored: list[int], monkeypatch: pytest.MonkeyPatch
):
    cfg = toy_cfg(FORGETTING__AFTER="iterations", FORGETTING__PERIOD=2, SOLVER__MAX_ITER=9)

    def die(self: Any) -> None:
        if self.trainer.iter == 7:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(ForgettingHook, "before_step", die)
        with pytest.raises(Stop):
            train(cfg)
    assert iterations(cfg) == [START, 1, 3, 5]
    old = content(cfg)["rows"]
    assert train(cfg, resume=True).start_iter == 5  # the checkpoint after 4
    assert iterations(cfg) == [START, 1, 3, 5, 7, 8]
    rows = content(cfg)["rows"]
    assert rows[:3] == old[:3] and rows[3] != old[3]


def test_a_new_run_begins_a_new_table(toy_cfg: MakeCfg, scored: list[int]):
    cfg = toy_cfg(FORGETTING__AFTER="iterations", FORGETTING__PERIOD=4)
    train(cfg)
    cfg.SOLVER.MAX_ITER = 5
    train(cfg)
    assert iterations(cfg) == [START, 3, 4]


def test_real_scores_of_student_and_teacher(toy_cfg: MakeCfg):
    """No scripted figures: equal at the start, of validation images, with names of the heads."""
    cfg = toy_cfg(
        FORGETTING__AFTER="iterations",
        FORGETTING__PERIOD=2,
        SOLVER__MAX_ITER=2,
        DATASETS__TEST=(),
        MODEL__META_ARCHITECTURE="StudentTeacher",
        **TINY,
    )
    trainer = train(cfg)
    first, last = content(cfg)["rows"]
    assert set(first["scores"]) == {"student", "teacher"}
    assert first["scores"]["student"] == first["scores"]["teacher"]
    assert set(first["scores"]["student"]) == set(HEADS)
    assert None not in first["scores"]["student"].values()
    cfg.DATASETS.TEST, cfg.TEACHER.EVALUATE = ("toy_engine_val",), "both"
    results = FxTrainer.test(cfg, trainer.model)
    for who, prefix in (("student", ""), ("teacher", "teacher/")):
        expected = {
            HEADS[0]: results[prefix + HEADS[0]]["AUC"],
            HEADS[1]: results[prefix + HEADS[1]]["Dice_positive"],
        }
        assert last["scores"][who] == pytest.approx(expected)


def test_a_damaged_table_is_named(toy_cfg: MakeCfg, scored: list[int]):
    cfg = toy_cfg(FORGETTING__AFTER="iterations", FORGETTING__PERIOD=6)
    train(cfg)
    file = Path(cfg.OUTPUT_DIR) / "forgetting.json"
    text = file.read_text()
    for damaged in (text[:100], "[]", '{"format": "other"}', text.replace('"rows"', '"lines"')):
        file.write_text(damaged)
        with pytest.raises(DataError, match="forgetting.json.*cannot be read") as error:
            train(cfg, resume=True)
        assert "\n" not in str(error.value) and file.read_text() == damaged
    file.write_text(text)
    cfg.FORGETTING.METRICS = ("cls=AP", "loc=AP40", "seg=Dice")
    with pytest.raises(ConfigError, match="FORGETTING.METRICS is .*AP.* holds .*AUC"):
        train(cfg, resume=True)


EVERY = {"AFTER": "iterations", "PERIOD": 1}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"AFTER": "epoch"}, "FORGETTING.AFTER 'epoch' does not exist .known: slot, cycle"),
        ({"AFTER": "iterations"}, "FORGETTING.PERIOD is 0"),
        ({"AFTER": "slot", "METRICS": ("cls:AUC",)}, "'cls:AUC'"),
        ({"AFTER": "slot", "METRICS": ("cls=AUC",)}, "nothing about loc, seg"),
        ({"AFTER": "slot"}, "there is no CYCLE"),
        ({**EVERY, "DATASETS": ("rsna_test",)}, "'rsna_test'.*validation"),
        ({**EVERY, "DATASETS": ("toy_engine_dev",)}, "no dataset 'toy_engine_dev'"),
        ({**EVERY, "DATASETS": ("toy_engine_val", "toy_engine_train")}, "several datasets"),
    ],
)
def test_wrong_settings(toy_cfg: MakeCfg, scored: list[int], options, told):
    cfg = toy_cfg(**{f"FORGETTING__{key}": value for key, value in options.items()})
    with pytest.raises(ValueError, match=told):
        train(cfg)


def test_a_moment_has_a_title():
    assert Moment(START).title == "before training"
    assert Moment(9).title == "iteration 10"
    assert Moment(9, 1, 4).title == "cycle 2"
    assert Moment(9, 1, 4, "rsna/loc").title == "c2 s05 rsna/loc"


def test_an_equal_moment_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    table = ForgettingTable(tmp_path, HEADS, {"cls": "AUC", "seg": "Dice"})
    for iteration, value in ((4, 0.5), (START, 0.1), (4, 0.7)):
        table.add(Row(Moment(iteration), {"student": {HEADS[0]: value, HEADS[1]: None}}))
    assert [(r.moment.iteration, r.scores["student"][HEADS[0]]) for r in table.rows] == [
        (START, 0.1),
        (4, 0.7),
    ]
    with caplog.at_level(logging.WARNING):
        table.write()  # a head without any score has a picture too
    assert not caplog.records
    with Image.open(tmp_path / "forgetting.png") as picture:
        assert min(picture.size) > 200 and len(picture.convert("RGB").getcolors(1 << 20)) > 50
