"""train_net.py as a user calls it, in this process, on a small synthetic world."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import train_net
from fx_d2.phantom.world import make_world

Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source with image labels, one with boxes too, one with masks too; not to be changed."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, patients=9, seed=1, sources=["nih14", "rsna", "chestx_det"], size_px=96)
    return folder


@pytest.fixture
def command(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    """Run train_net.py: (exit code, what it printed as an error)."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world))
    loggers = [logging.getLogger(name) for name in ("fx_d2", "detectron2", "fvcore")]
    before = [(log.handlers[:], log.propagate, log.level) for log in loggers]

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["train_net.py", *map(str, words)])
        try:
            train_net.main()
            code = 0
        except SystemExit as exc:
            code = int(exc.code or 0)
        return code, capsys.readouterr().err

    yield run
    for log, (handlers, propagate, level) in zip(loggers, before, strict=True):
        log.handlers[:], log.propagate, log.level = handlers, propagate, level


@pytest.fixture
def refused(command: Command) -> Callable[..., str]:
    """Run train_net.py, which has to say one line and end with 2; returns the line."""

    def run(*words: object) -> str:
        code, text = command(*words)
        lines = [line for line in text.splitlines() if line.startswith("train_net.py: error: ")]
        assert code == 2 and len(lines) == 1, f"exit code {code}\n{text}"
        assert "Traceback" not in text
        return lines[0]

    return run
