"""Data made before the runs of a study: once, by list of words, and told when that fails."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from studies import WORLD, tiny_study, write_study

from fx_d2.data.catalog import ROOT_VARIABLE
from fx_d2.data.errors import DataError
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.study import Study, read_study
from fx_d2.engine.study_folder import locked
from fx_d2.engine.study_prepare import prepare_data

PROGRAM = f"""
import json, os, sys
with open(os.environ["NOTES"], "a") as file:
    file.write(json.dumps([sys.argv[1:], os.environ.get("{ROOT_VARIABLE}")]) + "\\n")
if "fail" in sys.argv:
    print("reading\\nmake_split: error: the moon is full\\n")
    sys.exit(2)
"""


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tools"
    folder.mkdir()
    for name in ("make_lesion_mix.py", "make_split.py"):
        (folder / name).write_text(PROGRAM)
    monkeypatch.setenv("NOTES", str(tmp_path / "notes"))
    monkeypatch.setenv(ROOT_VARIABLE, "elsewhere")
    return folder


def study_of(tmp_path: Path, *prepare: list, **changes) -> Study:
    return read_study(write_study(tmp_path, tiny_study(prepare=list(prepare), **changes)))


def notes(tmp_path: Path) -> list:
    file = tmp_path / "notes"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def test_every_call_is_made_once_and_no_shell_reads_it(tmp_path: Path, tools: Path):
    out = tmp_path / "out"
    first = ["make_lesion_mix.py", "--out", "{out}/mix", "KEY", "a; touch $HOME *", 4]
    prepare_data(study_of(tmp_path, first), out, tools)
    words = ["--out", f"{out}/mix", "KEY", "a; touch $HOME *", "4"]
    assert notes(tmp_path) == [[words, "elsewhere"]]
    prepare_data(study_of(tmp_path, first), out, tools)
    assert len(notes(tmp_path)) == 1
    # Another call, on a world of the study: that alone is made.
    prepare_data(study_of(tmp_path, first, ["make_split.py"], world=WORLD), out, tools)
    assert notes(tmp_path)[1:] == [[[], str(out / "world")]]
    (out / "prepare/done.json").write_text("{")  # cannot be read: the tools go on by themselves
    prepare_data(study_of(tmp_path, first), out, tools)
    assert len(notes(tmp_path)) == 3


def test_nothing_to_prepare_makes_no_folder(tmp_path: Path, tools: Path):
    prepare_data(study_of(tmp_path), tmp_path / "out", tools)
    assert not (tmp_path / "out").exists()


def test_a_failed_call_is_one_line_and_tried_again(tmp_path: Path, tools: Path):
    study = study_of(tmp_path, ["make_lesion_mix.py"], ["make_split.py", "fail"])
    for _ in range(2):
        with pytest.raises(ConfigError) as caught:
            prepare_data(study, tmp_path / "out", tools)
        said = str(caught.value)
        assert "make_split.py ended with 2: make_split: error: the moon is full" in said
        assert "\n" not in said
    assert [words for words, _ in notes(tmp_path)] == [[], ["fail"], ["fail"]]


def test_not_while_a_study_is_at_work_there(tmp_path: Path, tools: Path):
    with locked(tmp_path / "out"), pytest.raises(DataError, match="at work in this folder"):
        prepare_data(study_of(tmp_path, ["make_split.py"]), tmp_path / "out", tools)
    assert not notes(tmp_path)
