"""``docs/data.md`` and the short examples of the other pages are run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import doctor
import make_phantom

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str]]:
    return [(m[1], m[2]) for m in _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8"))]


def run_python(program: str, folder: Path, world: Path) -> str:
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(world),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world of the first command of docs/data.md, made with the arguments shown there."""
    shown = next(text for language, text in blocks("docs/data.md") if language == "bash")
    make, export = shown.splitlines()
    program, script, *arguments = shlex.split(make)
    assert (program, script) == (".venv/bin/python", "tools/make_phantom.py")
    place = arguments[arguments.index("--out") + 1]
    assert export == f"export DETECTRON2_DATASETS={place}"
    folder = tmp_path_factory.mktemp("data_page")
    arguments[arguments.index("--out") + 1] = str(folder / place)
    assert make_phantom.main(arguments) == 0
    return folder / place


def test_the_page_on_data(small: Path, tmp_path: Path) -> None:
    found = [text for language, text in blocks("docs/data.md") if language == "python"]
    assert len(found) == 6
    (tmp_path / "output").mkdir()
    printed = run_python("\n".join(found), tmp_path, small)
    assert "('chestx_det', 'seg')" in printed and "('chexpert', 'cls')" in printed
    assert "torch.Size([3, 64, 64])" in printed and "torch.Size([13, 64, 64])" in printed
    assert printed.count("Instances(num_instances=") >= 3
    assert (tmp_path / "output/nih14_boxes.json").is_file()


def test_what_the_page_says_of_detectron2s_readers(small: Path) -> None:
    """The table "With Detectron2's own tools": polygons where it says polygons."""
    from fx_d2.data.catalog import load_records

    records = load_records("chestx_det", "train", root=small / "chestx_det")
    forms = {type(a["segmentation"]) for r in records for a in r["annotations"]}
    assert forms == {list}
    nih = load_records("nih14", "test", root=small / "nih14")
    assert {"annotations" in record for record in nih} == {True, False}


def test_short_examples_of_the_other_pages(small: Path, tmp_path: Path) -> None:
    for page in ("docs/phantom.md", "datasets/README.md"):
        programs = [text for language, text in blocks(page) if language == "python"]
        assert programs
        run_python("\n".join(programs), tmp_path, small)


def test_commands_of_the_doctors_page(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small))
    monkeypatch.chdir(tmp_path)
    (commands,) = [text for language, text in blocks("docs/doctor.md") if language == "bash"]
    for line in commands.splitlines():
        program, script, *arguments = shlex.split(line, comments=True)
        assert (program, script) == (".venv/bin/python", "tools/doctor.py")
        if "--source" in arguments:  # the page names sources that this world does not have
            start = arguments.index("--source") + 1
            arguments[start : start + 2] = ["chexpert", "nih14"]
        if "--workers" in arguments:
            arguments[arguments.index("--workers") + 1] = "0"
        assert doctor.main([*arguments, "--quiet"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "report.json"}
