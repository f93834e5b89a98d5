"""tools/install_detectron2.py --check tells a fit Detectron2 from broken ones."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import install_detectron2

_SCRIPT = Path(install_detectron2.__file__)


def run_check(path: Path) -> subprocess.CompletedProcess:
    command = [sys.executable, str(_SCRIPT), "--check"]
    env = {**os.environ, "PYTHONPATH": str(path)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("__version__ = '0.1'\n", "cannot import detectron2.config"),
        ("raise RuntimeError('half a package')\n", "half a package"),
        ("import os\nos._exit(7)\n", "exit code 7"),
    ],
    ids=["empty", "raises", "dies"],
)
def test_check_reports_a_broken_detectron2(tmp_path, content, expected):
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text(content)
    run = run_check(tmp_path)
    assert run.returncode == 1
    assert expected in run.stdout
    assert "NOT fit" in run.stdout
    assert "Traceback" not in run.stderr


def test_check_finds_the_silent_loss_of_the_schedule(tmp_path):
    installed = Path(importlib.util.find_spec("detectron2").origin).parent
    shutil.copytree(installed, tmp_path / "detectron2")
    hooks = tmp_path / "detectron2" / "engine" / "hooks.py"
    text = hooks.read_text()
    assert "lr_scheduler.LRScheduler)" in text
    hooks.write_text(text.replace("lr_scheduler.LRScheduler)", "lr_scheduler._LRScheduler)"))
    run = run_check(tmp_path)
    assert run.returncode == 1
    assert run.stdout.count("PROBLEM") == 1
    assert "a resumed run restarts its schedule" in run.stdout


def test_the_installed_detectron2_is_fit():
    run = subprocess.run(
        [sys.executable, str(_SCRIPT), "--check"], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "fit for fx_d2" in run.stdout
