"""The commands and the program of ``docs/predict.md`` are run as they stand."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import predict
from fx_d2.engine.checkpoint import FxCheckpointer
from fx_d2.engine.setup import load_config
from fx_d2.phantom.world import make_world

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/predict.md"


def block(language: str) -> str:
    """The one block of a language."""
    pattern = rf"^```{language}\n(.*?)^```$"
    (text,) = re.findall(pattern, PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """``films`` and ``output/first`` as on the page."""
    make_world(tmp_path / "world", patients=3, seed=2, sources=["rsna"], size_px=96)
    films = tmp_path / "films"
    films.mkdir()
    next((tmp_path / "world").rglob("*.dcm")).rename(films / "a.dcm")
    cv2.imwrite(str(films / "b.png"), np.arange(100 * 80, dtype=np.uint16).reshape(100, 80))
    quick = ROOT / "configs/quick_schedules/foundation_x_instant_test.yaml"
    cfg = load_config(str(quick), ["MODEL.DEVICE", "cpu", "INPUT.FX.SIZE", "64"])
    torch.manual_seed(0)
    checkpointer = FxCheckpointer(build_model(cfg), str(tmp_path / "output/first"), cfg=cfg)
    checkpointer.save("model_final", iteration=1)
    return tmp_path


def test_the_commands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    first, second = block("bash").splitlines()
    for line in (first, second):
        command, _, target = line.partition(" > ")
        program, script, *arguments = shlex.split(command)
        assert (program, script) == (".venv/bin/python", "tools/predict.py")
        assert predict.main(arguments) == 0
        printed = capsys.readouterr().out
        assert bool(printed) == bool(target)
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [line["file"] for line in lines] == ["films/a.dcm", "films/b.png"]
    written = {str(p.relative_to(folder)) for p in Path("predictions").resolve().rglob("*.*")}
    assert written == {
        *("predictions/json/a.json", "predictions/json/b.json", "predictions/labels.csv"),
        *("predictions/overlays/a.png", "predictions/overlays/b.png"),
    }


def test_the_keys_shown_are_those_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = ["films/a.dcm", "--weights", "output/first", "--score-threshold", "0"]
    assert predict.main(words) == 0
    about = json.loads(Path("predictions/json/a.json").read_text())
    shown = re.findall(r'"(\w+)":', block("text"))
    found = [one for many in about["instances"].values() for one in many]
    keys = {*about, *found[0], *(key for one in found for key in one), "size", "counts"}
    assert set(shown) - {"rsna", "chestx_det", "Normal", "Effusion"} == keys


def test_every_option_is_described() -> None:
    source = (ROOT / "tools/predict.py").read_text("utf-8")
    described = re.findall(r"^\| `(--[a-z-]+)", PAGE.read_text("utf-8"), re.MULTILINE)
    assert sorted(described) == sorted(re.findall(r'"(--[a-z-]+)"', source))


@pytest.mark.slow
def test_the_program(folder: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", block("python")],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "('Lung Opacity',)" in done.stdout and done.stdout.count("True") == 2
    assert "a.dcm {" in done.stdout and "b.png {" in done.stdout
