"""A tool as a user starts it, and ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def call(tool: str, *words: object, stop_at: str = "") -> tuple[int, str]:
    """A tool in its own process, ended by SIGTERM once ``stop_at`` is among what it says.

    Returns:
        Its exit code, and all it said.
    """
    process = subprocess.Popen(
        [sys.executable, f"tools/{tool}.py", *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    said = b""
    while stop_at and stop_at.encode() not in said:
        byte = process.stdout.read(1)
        assert byte, said.decode()
        said += byte
    if stop_at:
        process.send_signal(signal.SIGTERM)
    said += process.communicate(timeout=900)[0]
    return process.returncode, said.decode().replace("\r", "\n")
