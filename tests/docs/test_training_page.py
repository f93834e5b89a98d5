"""``docs/training.md`` is run as one session; what both pages name exists."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg

from fx_d2 import add_fx_config
from fx_d2.data.sources import pretraining_sources

ROOT = Path(__file__).parents[2]
TRAINING, SYSTEM = ROOT / "docs/training.md", ROOT / "docs/systems/foundation_x.md"
_BLOCK = re.compile(r"^```(\w*)(?: file=(\S+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[tuple[str, str, str]]:
    """(language, file name or "", text) in the order of the page."""
    return [m.groups(default="") for m in _BLOCK.finditer(TRAINING.read_text(encoding="utf-8"))]


@pytest.mark.slow
def test_the_page_on_training_runs_as_it_stands(tmp_path: Path):
    parts = ["set -euo pipefail"]
    for number, (language, name, text) in enumerate(blocks()):
        if name:
            (tmp_path / name).write_text(text)
        elif language == "python":
            parts.append(f'"{sys.executable}" - <<"END_{number}"\n{text}END_{number}')
        elif language == "bash":
            parts.append(text.replace(".venv/bin/python", f'"{sys.executable}"'))
    for folder in ("tools", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    environment.pop("DETECTRON2_DATASETS", None)
    done = subprocess.run(
        ["bash", "-c", "\n".join(parts)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    written = {p.name for p in (tmp_path / "output").iterdir()}
    assert written == {"world", "first", "second", "evaluated", "third", "mine"}
    left = {p.name for p in (tmp_path / "output/first").iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "results.json", "results.md"} <= left
    assert {"model_final.safetensors", "model_best.safetensors", "model_0000011.json"} <= left
    results = (tmp_path / "output/evaluated/results.md").read_text()
    assert "### nih14/cls" in results and "### rsna/loc" in results
    log = (tmp_path / "output/third/log.txt").read_text()
    assert "new, not in the file: " in log and "heads.seg.chestx_det" in log
    assert "loss_cls_squared_error" in (tmp_path / "output/mine/metrics.json").read_text()
    assert "{'cls': ['Normal'" in done.stdout and "loaded " in done.stdout


@pytest.mark.parametrize("page", [TRAINING, SYSTEM], ids=lambda page: page.name)
def test_keys_that_are_named_exist(page: Path):
    cfg = get_cfg()
    add_fx_config(cfg)
    named = set(
        re.findall(
            r"\b(?:MODEL|SOLVER|INPUT|DATASETS|DATALOADER|TEST)(?:\.[A-Z][A-Z_0-9]*)+",
            page.read_text(),
        )
    )
    assert len(named) >= 10
    for key in named:
        node = cfg
        for part in key.split("."):
            assert isinstance(node, CfgNode) and part in node, f"{page.name}: {key}"
            node = node[part]


def test_files_and_classes_of_the_system_exist():
    text = SYSTEM.read_text(encoding="utf-8")
    rows = re.findall(r"^\| [^|]+ \| [^|]+ \| (`fx_d2/[^|]+) \|$", text, re.MULTILINE)
    assert len(rows) >= 12
    for row in rows:
        module = None
        for entry in re.findall(r"`([^`]+)`", row):
            path, _, name = entry.rpartition(":")
            if path:
                assert (ROOT / path).is_file(), path
                module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
            assert hasattr(module, name), f"{path or module}: {name}"


def test_presets_of_the_page_are_those_there_are():
    text = SYSTEM.read_text(encoding="utf-8")
    named = set(re.findall(r"\b(swin_\w+)\.yaml", text))
    assert named == {p.stem for p in (ROOT / "configs/foundation_x").glob("*.yaml")}
    tasks = [task for source in pretraining_sources() for task in source.tasks]
    counts = tuple(tasks.count(task) for task in ("cls", "loc", "seg"))
    assert f"{len(tasks)} heads: {counts[0]} `cls`, {counts[1]} `loc`, {counts[2]} `seg`" in text
    for page in (TRAINING, SYSTEM):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / target).exists(), target
