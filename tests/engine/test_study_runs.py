"""The processes of a study, with programs in the place of the tools that take no time."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml
from studies import FEW_SHOT, tiny_study, write_study

from fx_d2.data.errors import DataError
from fx_d2.engine.study import read_study
from fx_d2.engine.study_folder import locked, seconds_of, state_of
from fx_d2.engine.study_plan import Job, plan
from fx_d2.engine.study_runs import Runner

# Notes when it began and ended; "odd" fails, "slow" waits until it is interrupted, once.
PROGRAM = """
import json, os, sys, time
words = sys.argv[1:]
few = "few_shot" in sys.argv[0]
out = words[words.index("--out" if few else "OUTPUT_DIR") + 1]
def note(what):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps([what, out, time.time(), words, dict(os.environ)]) + "\\n")
note("begin")
try:
    if "/slow/" in out and not os.path.exists(out + "/stopped"):
        time.sleep(60)
    time.sleep(0.3)
    if "/odd/" in out:
        print("starting\\ntrain_net.py: error: the moon is full\\n")
        sys.exit(2)
    if "/dead/" in out:
        print("step 7")
        sys.stdout.flush()
        os.kill(os.getpid(), 9)
    if few:
        body = {"runs": []}
    else:
        body = {"results": {}}
        open(out + "/model_0000003.safetensors", "w").close()
        open(out + "/model_final.safetensors", "w").close()
    with open(out + ("/few_shot.json" if few else "/results.json"), "w") as file:
        json.dump(body, file)
except KeyboardInterrupt:
    open(out + "/stopped", "w").close()
    note("stopped")
    sys.exit(130)
note("end")
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("train_net.py", "few_shot.py"):
        (folder / name).write_text(PROGRAM)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return folder


@pytest.fixture(autouse=True)
def interruptible() -> Iterator[None]:
    """Also in a suite that was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def notes(tmp_path: Path, what: str) -> list[list]:
    file = tmp_path / "notes"
    lines = file.read_text().splitlines() if file.exists() else []
    return [note for note in map(json.loads, lines) if note[0] == what]


def jobs_of(tmp_path: Path, arms: dict, seeds: Sequence[int] = (1,)) -> list[Job]:
    study = read_study(write_study(tmp_path, tiny_study(arms=arms, seeds=list(seeds))))
    return plan(study, tmp_path / "out", count=False)


def runner(tmp_path: Path, tools: Path, at_once: int = 1, **options) -> Runner:
    return Runner(tmp_path / "out", tools, None, at_once, **options)


def test_what_is_called_and_at_most_so_many_at_once(tmp_path: Path, tools: Path):
    jobs = jobs_of(tmp_path, {"a": {"then": {"t": FEW_SHOT}}, "b": None}, seeds=(1, 2))
    reports: list[int] = []
    found = runner(
        tmp_path, tools, 2, finished=lambda: reports.append(len(notes(tmp_path, "end")))
    ).run(jobs)
    assert set(found.done) == set(jobs) and not found.failed and len(reports) == 6
    events = [(n[2], +1) for n in notes(tmp_path, "begin")]
    events += [(n[2], -1) for n in notes(tmp_path, "end")]
    at_work, most = 0, 0
    for _, change in sorted(events):
        at_work += change
        most = max(most, at_work)
    assert most == 2
    begun = {note[1]: note for note in notes(tmp_path, "begin")}
    train = begun[str(tmp_path / "out/a/seed2")]
    few = begun[str(tmp_path / "out/a/seed2/then/t")]
    assert train[3][2:] == ["--resume", "SEED", "2", "OUTPUT_DIR", str(tmp_path / "out/a/seed2")]
    assert few[3][2:] == [
        *("--images", "3", "2", "--draws", "2", "--metrics", "*/cls/AUC", "*/loc/AP40"),
        *("*/seg/Dice_positive", "--out", str(tmp_path / "out/a/seed2/then/t"), "SEED", "2"),
    ]
    assert few[2] > next(n[2] for n in notes(tmp_path, "end") if n[1] == train[1])
    weights = yaml.safe_load(Path(few[3][1]).read_text())["MODEL"]["WEIGHTS"]
    assert weights == str(tmp_path / "out/a/seed2/model_final.safetensors")
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    assert train[4]["OMP_NUM_THREADS"] == threads and train[4]["OMP_WAIT_POLICY"] == "PASSIVE"
    assert f"$ {sys.executable}" in (tmp_path / "out/a/seed2/log").read_text()
    # A finished run needs no numbered checkpoint; the final one stays.
    left = {p.name for p in (tmp_path / "out/a/seed2").glob("model*")}
    assert left == {"model_final.safetensors"}
    assert all(seconds_of(job) > 0 for job in jobs)
    # Once more: nothing is repeated; without its result a run is.
    assert runner(tmp_path, tools).run(jobs).done == jobs and len(notes(tmp_path, "begin")) == 6
    (tmp_path / "out/b/seed1/results.json").unlink()
    runner(tmp_path, tools).run(jobs)
    assert [n[1] for n in notes(tmp_path, "begin")[6:]] == [str(tmp_path / "out/b/seed1")]


def test_a_failed_run_is_told_and_the_rest_goes_on(tmp_path: Path, tools: Path, capsys):
    jobs = jobs_of(tmp_path, {"odd": {"then": {"t": FEW_SHOT}}, "b": None, "dead": None})
    found = runner(tmp_path, tools).run(jobs)
    assert found.failed == {
        "odd seed 1": "train_net.py: error: the moon is full",
        "dead seed 1": "ended by signal 9 after: step 7",
    }
    assert [job.name for job in found.done] == ["b seed 1"]
    assert [job.name for job in found.skipped] == ["odd seed 1 t"]
    assert "FAILED: odd seed 1: train_net.py: error" in capsys.readouterr().err
    assert [state_of(job) for job in jobs] == ["begun", "done", "begun", "to do"]
    # It is tried again by the next call.
    runner(tmp_path, tools).run(jobs)
    assert [Path(n[1]).parent.name for n in notes(tmp_path, "begin")] == [
        *("odd", "b", "dead"),
        *("odd", "dead"),
    ]


def test_a_model_that_cannot_be_built_is_a_failed_run(tmp_path: Path, tools: Path):
    odd = {"SOLVER.FX.LR_FACTORS": ["trunk.*=1"], "MODEL.FX.TRUNK.NAME": "swin_of_nobody"}
    jobs = jobs_of(tmp_path, {"odd": {"each_head": True, "overrides": odd}, "b": None})
    found = runner(tmp_path, tools).run(jobs)
    assert len(found.failed) == 3 and [job.name for job in found.done] == ["b seed 1"]
    assert "swin_of_nobody" in found.failed["odd rsna/cls seed 1"]


def test_what_waits_for_a_run_that_was_not_asked_for(tmp_path: Path, tools: Path):
    jobs = jobs_of(tmp_path, {"a": {"then": {"t": FEW_SHOT}}})
    found = runner(tmp_path, tools).run(jobs[1:])
    assert found.skipped == jobs[1:] and not notes(tmp_path, "begin")


def test_an_ensemble_is_evaluated_after_its_members(tmp_path: Path, tools: Path):
    arms = {"a": None, "b": {"weights": "{a}"}, "both": {"ensemble": ["a", "b"]}}
    jobs = jobs_of(tmp_path, arms)
    # Given in the wrong order, and with room for all at once.
    assert runner(tmp_path, tools, 3).run(jobs[::-1]).done == jobs
    begun = {Path(note[1]).parent.name: note for note in notes(tmp_path, "begin")}
    ended = {Path(note[1]).parent.name: note[2] for note in notes(tmp_path, "end")}
    assert begun["b"][2] > ended["a"] and begun["both"][2] > ended["b"]
    assert begun["both"][3][2] == "--eval-only" and begun["b"][3][2] == "--resume"
    body = yaml.safe_load(Path(begun["both"][3][1]).read_text())
    assert body["MODEL"]["FX"]["ENSEMBLE"] == [
        str(tmp_path / f"out/{arm}/seed1/model_final.safetensors") for arm in ("a", "b")
    ]


def test_what_needs_a_failed_run_is_skipped_to_the_end(tmp_path: Path, tools: Path):
    arms = {"odd": None, "c": None, "b": {"weights": "{odd}"}, "both": {"ensemble": ["b", "c"]}}
    found = runner(tmp_path, tools).run(jobs_of(tmp_path, arms))
    assert list(found.failed) == ["odd seed 1"] and [j.arm for j in found.done] == ["c"]
    assert [job.arm for job in found.skipped] == ["b", "both"]


def test_an_interrupt_ends_the_runs_which_are_resumed(tmp_path: Path, tools: Path):
    jobs = jobs_of(tmp_path, {"slow": None, "b": None})

    def press() -> None:
        until = time.monotonic() + 30
        while len(notes(tmp_path, "begin")) < 2 and time.monotonic() < until:
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    presser = threading.Thread(target=press)
    presser.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        runner(tmp_path, tools, 2).run(jobs)
    presser.join()
    assert time.monotonic() - began < 30
    assert "slow" in [Path(n[1]).parent.name for n in notes(tmp_path, "stopped")]
    assert state_of(jobs[0]) == "begun"
    spent = seconds_of(jobs[0])
    assert spent > 0
    # Nobody holds the folder any more, and the same call ends the work.
    found = runner(tmp_path, tools, 2).run(jobs)
    assert set(found.done) == set(jobs) and seconds_of(jobs[0]) > spent


def test_one_study_at_a_time_in_a_folder(tmp_path: Path, tools: Path):
    jobs = jobs_of(tmp_path, {"b": None})
    with (
        locked(tmp_path / "out"),
        pytest.raises(DataError, match="at work in this folder"),
    ):
        runner(tmp_path, tools).run(jobs)
    assert not notes(tmp_path, "begin")
    assert runner(tmp_path, tools).run(jobs).done == jobs


def test_runs_share_the_gpus(tmp_path: Path, tools: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    jobs = jobs_of(tmp_path, {"a": None, "b": None})
    runner(tmp_path, tools, 2).run(jobs)
    used = {n[4]["CUDA_VISIBLE_DEVICES"] for n in notes(tmp_path, "begin")}
    assert used == {"4", "6"}
