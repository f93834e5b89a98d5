"""Every command of the README is run as it stands; links and pictures of all pages exist."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import make_phantom

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "datasets/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]  # fmt: skip
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def blocks(page: Path = README) -> list[tuple[str, str]]:
    """(language, text) of the fenced blocks that name a language, in order."""
    return [(m[1], m[2]) for m in _BLOCK.finditer(page.read_text(encoding="utf-8"))]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def script_of(found: list[tuple[str, str]], world: Path) -> str:
    """One shell session with every block, so that exports last; ``make`` lines are left out."""
    parts = ["set -euo pipefail"]
    for number, (language, text) in enumerate(found):
        text = text.replace("/data/cxr", str(world))
        if language == "python":
            parts.append(f'"{sys.executable}" - <<"END_{number}"\n{text}END_{number}')
        else:
            lines = [line for line in text.splitlines() if not line.startswith("make ")]
            parts.append("\n".join(lines).replace(".venv/bin/python", f'"{sys.executable}"'))
    return "\n".join(parts)


def run(script: str, folder: Path) -> str:
    """What the script prints; ``folder`` looks like a clone, but what is written stays in it."""
    for name in ("tools", "configs"):
        (folder / name).symlink_to(ROOT / name)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTHONWARNINGS": "ignore",
        "OMP_NUM_THREADS": "1",
    }
    environment.pop("DETECTRON2_DATASETS", None)
    done = subprocess.run(
        ["bash", "-c", script], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


def test_blocks_are_commands_that_the_test_can_run() -> None:
    found = blocks()
    assert {language for language, _ in found} == {"bash", "python"}
    assert README.read_text().count("```") == 2 * len(found), "a block without a language"


def test_make_targets_exist() -> None:
    targets = make_targets()
    shown = {
        name
        for page in PAGES
        for name in re.findall(r"(?:^|`| {4})make ([a-z-]+)", page.read_text(), re.MULTILINE)
    }
    assert {"demo", "test"} <= shown <= targets
    row = re.search(r"^\| `make ([^|]+)\|", README.read_text(), re.MULTILINE)
    assert row is not None
    assert set(re.findall(r"[a-z-]+", row[1])) == targets


@pytest.mark.slow
def test_the_readme_runs_as_it_stands(tmp_path: Path) -> None:
    arguments = ["--patients", "12", "--seed", "3", "--size", "96", "--sources", "tbx11k"]
    world = tmp_path / "cxr"
    assert make_phantom.main(["--out", str(world), *arguments]) == 0
    folder = tmp_path / "clone"
    folder.mkdir()
    printed = run(script_of(blocks(), world), folder)
    assert printed.count("fit for training") == 2 and "NOT FIT" not in printed
    assert "('cls', 'loc')" in printed
    assert len(list((folder / "output/look/tbx11k_train").glob("*.png"))) >= 8
    assert (folder / "output/world/jsrt").is_dir()
    films = len(list((folder / "output/predictions/overlays").glob("*.png")))
    assert films > 0 and printed.count(".dcm {'Normal': ") == films


def test_tools_that_are_named_exist_and_take_the_options_shown() -> None:
    named = set(re.findall(r"`tools/(\w+\.py)([^`]*)`", README.read_text()))
    assert len(named) >= 7
    for tool, rest in named:
        source = (ROOT / "tools" / tool).read_text(encoding="utf-8")
        for option in re.findall(r"--[a-z-]+", rest):
            assert f'"{option}"' in source, f"{tool} has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in _LINK.findall(_FENCED.sub("", text)):
        if re.match(r"[a-z-]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{page.name} points to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.+)$", there.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", t).strip().lower().replace(" ", "-") for t in titles}
            assert anchor in slugs, f"{page.name} points to {target}"
