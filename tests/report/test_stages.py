"""Stages: nothing is done twice, nothing of other settings is mixed, times add up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fx_d2.command_line import WrongUse
from fx_d2.report.stages import Stage, duration, run_stages, seconds_of, states_of


class Work:
    """Three stages that write a file each, and say when they are done."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.done, self.fail = folder, [], ""
        self.said: list[str] = []

    def stage(self, name: str, settings: int = 1, after: tuple[str, ...] = (), holds: bool = False):
        def work() -> None:
            self.done.append(name)
            if self.fail == name:
                raise KeyboardInterrupt
            (self.folder / name).write_text("x")

        file = self.folder / name
        place = file if holds else None
        return Stage(name, f"doing {name}", 10, {"n": settings}, work, file.is_file, after, place)

    def run(self, *stages: Stage) -> list[str]:
        self.done.clear()
        self.said.clear()
        run_stages(stages, self.folder / "state.json", self.said.append)
        return list(self.done)


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_a_second_call_repeats_nothing_and_says_so(work: Work):
    stages = work.stage("a"), work.stage("b"), work.stage("c", after=("b",))
    assert work.run(*stages) == ["a", "b", "c"]
    assert "[1/3] doing a: about 10 s (about 30 s to the end)" in work.said
    assert "[3/3] doing c: about 10 s (about 10 s to the end)" in work.said
    assert work.run(*stages) == []
    assert all(": done before, in " in line for line in work.said) and len(work.said) == 3


def test_after_an_interruption_it_goes_on_and_adds_the_time(work: Work):
    stages = work.stage("a"), work.stage("b")
    work.fail = "b"
    with pytest.raises(KeyboardInterrupt):
        work.run(*stages)
    state = work.folder / "state.json"
    body = json.loads(state.read_text())
    assert body["stages"]["a"]["done"] and not body["stages"]["b"]["done"]
    body["stages"]["b"]["seconds"] = 100.0
    state.write_text(json.dumps(body))
    work.fail = ""
    assert work.run(*stages) == ["b"]
    assert 100 <= seconds_of(state)["b"] < 101


def test_an_outcome_that_went_away_is_made_again_with_what_rests_on_it(work: Work):
    stages = work.stage("a"), work.stage("b", after=("a",)), work.stage("c")
    work.run(*stages)
    (work.folder / "a").unlink()
    assert work.run(*stages) == ["a", "b"]


def test_other_settings_renew_what_may_be_and_never_what_is_held(work: Work):
    work.run(work.stage("a"), work.stage("b", holds=True))
    assert work.run(work.stage("a", 2), work.stage("b", holds=True)) == ["a"]
    with pytest.raises(WrongUse, match=r"/b was made with other settings; .*or remove it"):
        work.run(work.stage("a", 3), work.stage("b", 2, holds=True))
    assert work.done == []  # it is found out before anything is done
    (work.folder / "b").unlink()
    assert work.run(work.stage("a", 2), work.stage("b", 2, holds=True)) == ["b"]


def test_a_folder_of_unknown_origin_is_left_alone(work: Work):
    (work.folder / "b").write_text("somebody's")
    with pytest.raises(WrongUse, match="other settings"):
        work.run(work.stage("b", holds=True))
    assert (work.folder / "b").read_text() == "somebody's"


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": "fx_d2 stages 1", "stages": {"a": 1}}']
)
def test_a_damaged_state_is_no_state(work: Work, text: str):
    work.run(work.stage("a"))
    (work.folder / "state.json").write_text(text)
    assert work.run(work.stage("a")) == ["a"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0 s"), (89, "89 s"), (90, "1 min 30 s"), (720, "12 min 0 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


def test_the_state_of_every_stage(work: Work):
    stages = work.stage("a"), work.stage("b"), work.stage("c", after=("b",))
    file = work.folder / "state.json"
    assert states_of(stages, file) == {"a": "to do", "b": "to do", "c": "to do"}
    work.fail = "b"
    with pytest.raises(KeyboardInterrupt):
        work.run(*stages)
    assert states_of(stages, file) == {"a": "done", "b": "begun", "c": "to do"}
    work.fail = ""
    work.run(*stages)
    changed = work.stage("a", settings=2), stages[1], stages[2]
    assert states_of(changed, file) == {"a": "other settings", "b": "done", "c": "done"}
    (work.folder / "b").unlink()  # what follows is made anew too
    assert states_of(stages, file) == {"a": "done", "b": "to do", "c": "to do"}


def test_a_time_that_nobody_knows_is_not_told(work: Work):
    unknown = replace(work.stage("b"), expected_s=None)
    work.run(work.stage("a"), unknown)
    assert work.said[0] == "[1/2] doing a" and work.said[2] == "[2/2] doing b"
