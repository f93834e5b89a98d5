"""``docs/add_a_source.md`` is followed literally: its files are written, its commands run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "add_a_source.md"
_BLOCK = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks():
    """(language, file name or None, text) in the order of the page; trees have no language."""
    return [m.groups() for m in _BLOCK.finditer(PAGE.read_text(encoding="utf-8"))]


def run(command, folder):
    """Run a command of the page as typed, with this interpreter as ``python``."""
    programs = folder / "bin"
    if not programs.exists():
        programs.mkdir()
        # A link would leave the virtual environment behind.
        (programs / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (programs / "python").chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(PAGE.parents[1]),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("DETECTRON2_DATASETS", None)
    done = subprocess.run(
        ["bash", "-e", "-c", command], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def followed(tmp_path_factory):
    """Everything printed by the page's commands, in order."""
    folder = tmp_path_factory.mktemp("page")
    printed = []
    for language, name, text in blocks():
        if name:
            (folder / name).write_text(text, encoding="utf-8")
        elif language == "bash":
            printed.append(run(text, folder))
    return printed


def test_the_page_names_a_file_for_every_python_block():
    found = blocks()
    assert [name for language, name, _ in found if language == "python"] == [
        "make_files.py", "my_hospital.py", "use.py", "my_reader.py", "use_my_reader.py"
    ]  # fmt: skip
    commands = [text for language, _, text in found if language == "bash"]
    assert len(commands) == 3


def test_one_row_reads_and_loads(followed):
    printed = followed[1]
    assert "28 records, ('cls', 'loc', 'seg')" in printed
    for task in ("cls", "loc", "seg"):
        assert re.search(rf"^{task} \[torch\.Size\(\[\d+, 64, 64\]\)", printed, re.MULTILINE)


def test_a_reader_of_ones_own(followed):
    assert followed[2].strip().endswith("10 records, 5 with a nodule")


def test_the_row_is_one_statement():
    row = next(text for _, name, text in blocks() if name == "my_hospital.py")
    assert row.count("Source(") == 1 and "def " not in row and "class " not in row.split("#")[0]
