"""A study as a user runs it."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from own_process import call
from studies import FEW_SHOT

import run_study

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs/quick_schedules/lock_release_instant_test.yaml"
STUDY = {
    "title": "Two arms",
    "world": {"patients": 12, "seed": 1, "size": 64, "cache": 64},
    "config": str(QUICK),
    "common": {
        "DATASETS.TRAIN": ["shenzhen_train", "rsna_train"],
        "DATASETS.TEST": ["shenzhen_test", "rsna_test"],
        "DATASETS.TASKS": ["cls"],
        "INPUT.FX.SIZE": 64,
        "SOLVER": {"CHECKPOINT_PERIOD": 2, "FX": {"BEST_METRIC": [], "LOG_PERIOD": 1}},
        "TEST": {"EVAL_PERIOD": 0, "FX": {"BOOTSTRAP": 0}},
    },
    "seeds": [1, 2],
    "arms": {
        "cyclic": {"overrides": {"CYCLE.CYCLES": 2, "FORGETTING.AFTER": "cycle"}},
        "mixed": {
            "joint": True,
            "then": {"lungs": FEW_SHOT | {"images": ["full", 2], "seeds": [1]}},
        },
    },
}
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return file


@pytest.fixture
def command(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: object) -> tuple[int, str, str]:
        given = [] if "--study" in words else ["--study", study]
        given += [] if "--out" in words else ["--out", tmp_path / "out"]
        try:
            code = run_study.main([str(word) for word in (*given, *words)])
        except SystemExit as exc:
            code = int(exc.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_list_makes_nothing(command: Command, tmp_path: Path):
    code, said, err = command("--list", "--seeds", 5, 7)
    rows = [line.split("  ")[0] for line in said.splitlines()[2:]]
    assert code == 0 and "world is not made yet" in err
    assert rows == ["cyclic seed 5", "mixed seed 5", "cyclic seed 7", "mixed seed 7"]
    assert not (tmp_path / "out").exists()
    assert command("--list", "--only", "mixed")[1].count("mixed seed") == 3  # lungs is one


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--only", "mixd"), "did you mean 'mixed'"),
        (("--jobs", "0"), "whole number from 1"),
        (("--seeds", "-1"), "-1"),
        (("--study", "nowhere.yaml"), "there is no study file nowhere.yaml"),
        (("--out", "file"), "is a file"),
    ],
)
def test_wrong_use_is_one_line(command: Command, tmp_path: Path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    code, _, err = command(*words)
    assert code == 2 and told in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_wrong_arm_is_told_before_data_are_made(command: Command, study: Path, tmp_path: Path):
    body = STUDY | {"arms": {"odd": {"overrides": {"SOLVER.MAX_ITR": 1}}}}
    study.write_text(yaml.safe_dump(body))
    code, _, err = command()
    assert code == 2 and "arms.odd" in err and "SOLVER.MAX_ITER" in err
    assert len(err.strip().splitlines()) == 1 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_interrupted_continued_and_refused(command: Command, study: Path, tmp_path: Path):
    out = tmp_path / "out"
    words = ("--study", study, "--out", out, "--jobs", "2")
    code, said = call("run_study", *words, stop_at="finished: mixed seed 1")
    assert code == 130 and "Traceback" not in said
    assert said.strip().splitlines()[-1] == "run_study: interrupted; call it again to continue"
    state = json.loads((out / "mixed/seed1/study_run.json").read_text())
    assert state["done"] and "results.json" in os.listdir(out / "mixed/seed1")
    finished = (out / "mixed/seed1/model_final.safetensors").stat().st_mtime_ns

    code, said = call("run_study", *words)
    assert code == 0, said
    assert "started: mixed seed 1 lungs" in said and "5 of 5 runs done" in said
    assert "started: mixed seed 1\n" not in said
    assert (out / "mixed/seed1/model_final.safetensors").stat().st_mtime_ns == finished

    # Two sources' labels, one phase each: both arms train 2 cycles of 2 steps.
    table = list(csv.DictReader((out / "study.csv").open(encoding="utf-8")))
    steps = {r["arm"]: r["values"] for r in table if r["figure"] == "steps"}
    assert set(steps) == {"cyclic", "mixed"} and len(set(steps["cyclic"].split())) == 1
    auc = [r for r in table if (r["arm"], r["figure"]) == ("cyclic", "shenzhen/cls/AUC")]
    by_hand = [
        json.loads((out / f"cyclic/seed{s}/results.json").read_text())["results"]["shenzhen/cls"]
        for s in (1, 2)
    ]
    assert [float(v) for v in auc[0]["values"].split()] == [f["AUC"] for f in by_hand]
    assert any(r["figure"] == "average_forgetting" and r["arm"] == "cyclic" for r in table)
    shots = {r["images"]: r["n"] for r in table if r["kind"] == "few-shot"}
    assert len(shots) == 2 and shots["2"] == "2"
    assert "(all)" in (out / "study.md").read_text("utf-8")

    # Everything is there: nothing is done, and another config does not get in.
    log = (out / "cyclic/seed2/log").read_bytes()
    code, said, err = command()
    assert code == 0 and "5 of 5 runs done" in said and "started" not in err
    assert (out / "cyclic/seed2/log").read_bytes() == log
    study.write_text(study.read_text().replace("CYCLE.CYCLES: 2", "CYCLE.CYCLES: 3"))
    code, _, err = command()
    assert code == 2 and "CYCLE.CYCLES was 2, the study says 3" in err
    assert len(err.strip().splitlines()) == 1
