"""Importing fx_d2 registers things and does nothing else."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Detectron2, torch and timm are imported first: what they do on import is not ours to judge.
_PROBE = """
import json, os, random, sys
import cv2, numpy as np, torch
import detectron2.config, detectron2.data, detectron2.modeling, detectron2.structures, timm
import pandas, pycocotools.mask, tqdm

def state():
    return [torch.get_num_threads(), cv2.getNumThreads(), torch.get_rng_state().tolist(),
            np.random.get_state()[1].tolist(), repr(random.getstate()), sorted(os.environ.items())]

before, seen = state(), []
def watch(event, args):
    if event == "open" and not str(args[0]).endswith((".py", ".pyc", ".so")):
        seen.append(f"open {args[0]}")
    elif event.startswith(("socket.", "subprocess.", "urllib.", "os.mkdir", "tempfile.")):
        seen.append(event)
    elif event in ("os.scandir", "os.listdir") and "cxr" in str(args[0]):
        seen.append(f"{event} {args[0]}")
sys.addaudithook(watch)
import fx_d2
after = state()
from detectron2.data import DatasetCatalog, MetadataCatalog
print(json.dumps({"same": before == after, "seen": seen, "names": len(DatasetCatalog.list()),
                  "tasks": MetadataCatalog.get("rsna_train").tasks}))
"""


def test_import_registers_and_does_nothing_else(tmp_path):
    environment_root = tmp_path / "cxr"
    environment_root.mkdir()
    done = subprocess.run(
        [sys.executable, "-B", "-W", "ignore", "-c", _PROBE],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": "", "DETECTRON2_DATASETS": str(environment_root), "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    # Package metadata of other distributions may be looked up by them; nothing of ours is opened.
    ours = [s for s in result["seen"] if "site-packages" not in s and "/lib/python" not in s]
    assert ours == []
    assert result["same"], "importing fx_d2 changed a seed, a thread setting or the environment"
    assert result["tasks"] == ["cls", "loc"]
    assert result["names"] >= 22 * 3


def test_missing_detectron2_is_answered_with_the_command(tmp_path):
    blocker = "import sys; sys.modules['detectron2'] = None; import fx_d2"
    done = subprocess.run(
        [sys.executable, "-c", blocker], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode != 0
    assert "python tools/install_detectron2.py" in done.stderr.splitlines()[-1]


def _imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            names |= {f"{dots}{node.module or ''}.{alias.name}" for alias in node.names}
    return names


def test_the_source_table_imports_nothing_heavy():
    for name in ("sources.py", "source.py", "vocabulary.py"):
        imported = _imports(ROOT / "fx_d2" / "data" / name)
        heavy = {
            i for i in imported if i.split(".")[0] in ("torch", "detectron2", "numpy", "fx_d2")
        }
        local = {i for i in imported if i.startswith(".")}
        assert not heavy
        assert all(
            i.startswith((".vocabulary", "..vocabulary", ".source.", ".v")) for i in local
        ), local
