"""Ctrl-C in the middle of a tool: one line, exit code 130, nothing half-done, and it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fx_d2.phantom.world import make_world

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("interrupts") / "world"
    make_world(root, patients=30, seed=2, size_px=96, sources=["jsrt"])
    return root


def interrupted(mark: str, *command: str | Path) -> str:
    """Run a tool, press Ctrl-C (for its workers too) once ``mark`` is on its stderr."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, *map(str, command)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A suite that was started in the background ignores Ctrl-C, and its children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr is not None
    said = b""
    while mark.encode() not in said:
        byte = process.stderr.read(1)
        assert byte, said.decode()
        said += byte
    os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    said += process.communicate(timeout=60)[1]
    text = said.decode().replace("\r", "\n")
    assert process.returncode == 130, text
    assert "Traceback" not in text and "interrupted" in text.strip().splitlines()[-1]
    assert time.monotonic() - began < 30
    return text


@pytest.mark.parametrize("workers", ["1", "2"])
def test_make_phantom(tmp_path: Path, workers: str) -> None:
    command = ["tools/make_phantom.py", "--out", tmp_path, "--patients", "400", "--seed", "1"]
    options = ["--size", "512", "--sources", "montgomery", "--workers", workers]
    text = interrupted("montgomery:", *command, *options)
    assert "call it again to continue" in text
    assert [path.name for path in tmp_path.iterdir()] == ["PHANTOM.json"]


def test_cache_images(world: Path, tmp_path: Path) -> None:
    import cache_images

    command = ["--root", world, "--source", "jsrt", "--out", tmp_path, "--size", "64"]
    interrupted("caching", "tools/cache_images.py", *command, "--workers", "2")
    left = {path.name for path in (tmp_path / "jsrt").iterdir()}
    assert left <= {"cache.json", "index.bin", "lock", "shard-00000.bin"}
    assert cache_images.main([str(word) for word in command]) == 0


def test_doctor(world: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    interrupted("reading", "tools/doctor.py", "--root", world, "--workers", "2",
                "--json", report)  # fmt: skip
    assert not list(tmp_path.iterdir())
