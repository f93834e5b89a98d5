"""What is left of a run that is killed can always be resumed, to the byte."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("kill_and_resume.py")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its runs")
def test_killed_runs_end_as_the_uninterrupted_one(world: Path, tmp_path: Path):
    """A few kills; the program does any number of them."""
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(world),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    words = [tmp_path, "--kills", "3", "--workers", "0", "2", "--seed", "4"]
    result = subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr[-2000:]
    assert re.search(r"^6 kills \(.*\), \d+ runs, 0 differ", result.stdout, re.MULTILINE)
