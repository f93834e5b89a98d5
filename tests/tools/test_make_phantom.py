from __future__ import annotations

import sys
from pathlib import Path

import pytest

import make_phantom
from fx_d2.command_line import WRONG_USE

ARGS = ["--patients", "3", "--seed", "5", "--size", "64"]


def call(*args: str) -> int:
    return make_phantom.main([*args, *ARGS])


def test_it_writes_a_world_and_says_how_to_use_it(tmp_path: Path, capsys) -> None:
    out = tmp_path / "my world"
    assert call("--out", str(out), "--sources", "montgomery, jsrt") == 0
    text = capsys.readouterr().out
    assert "montgomery, jsrt" in text and f"DETECTRON2_DATASETS='{out}'" in text and " MB" in text
    assert "some validation splits are empty" in text
    assert (out / "MontgomerySet" / "CXR_png").is_dir()
    assert call("--out", str(out), "--sources", "montgomery") == 0
    assert "all of it was there" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--sources", "montgomry"], "Did you mean 'montgomery'"),
        (["--sources", ","], "names no source"),
        (["--sources", "jsrt", "--size", "3"], "size_px is 3"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys, args: list[str], said: str) -> None:
    code = make_phantom.main(["--out", str(tmp_path / "w"), *ARGS, *args])
    error = capsys.readouterr().err.strip().splitlines()
    assert code == WRONG_USE
    assert said in error[-1]
    assert len(error) == 1 and error[0].startswith("make_phantom: ")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    assert call("--out", str(tmp_path), "--force") == WRONG_USE
    assert "not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_help_states_what_size_means(capsys) -> None:
    with pytest.raises(SystemExit, match="0"):
        make_phantom.main(["--help"])
    text = capsys.readouterr().out
    assert "2048 for JSRT" in text and "--workers" in text


def test_pydicom_is_needed_for_dicom_only(tmp_path: Path, capsys, monkeypatch) -> None:
    for module in [name for name in sys.modules if name.split(".")[0] == "pydicom"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "pydicom", None)  # importing it raises
    out = ["--out", str(tmp_path / "w")]
    assert call(*out, "--sources", "montgomery") == 0
    capsys.readouterr()
    assert call(*out, "--sources", "rsna") == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("make_phantom: ") and "pip install 'fx_d2[dicom]'" in error
    assert not list((tmp_path / "w").glob(".partial*"))
    assert not (tmp_path / "w/rsna-pneumonia-detection-challenge").exists()
