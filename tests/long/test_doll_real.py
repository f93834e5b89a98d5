"""DoLL carried from a synthetic world to real films, as docs/results/doll_phantom.md reports it.

The pre-training takes half an hour on two cores, its targets another quarter. A chain that is
finished already is named by FX_D2_DOLL_CHAIN, the folder of configs/doll/chain_phantom.yaml.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
REAL = Path(os.environ.get("FX_D2_REAL_SAMPLES") or ROOT.parent / "shared" / "real")
LUNGS = ("Left Lung", "Right Lung")
# To be exceeded by the mean over the folds of Dice on held-out films. The mean lungs of the other
# films, drawn on every one, reach 0.81. That one start is better is not asked for.
FLOOR = 0.84


def run_doll(chain: str, out: Path, *words: object) -> None:
    subprocess.run(
        [sys.executable, str(ROOT / "tools/run_doll.py"), "--chain",
         str(ROOT / "configs/doll" / chain), "--out", str(out), *map(str, words)],
        env={**os.environ, "DETECTRON2_DATASETS": str(REAL), "PYTHONPATH": str(ROOT)},
        check=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the chain of real films."""
    folder = tmp_path_factory.mktemp("doll")
    start = os.environ.get("FX_D2_DOLL_CHAIN")
    if not start:
        run_doll("chain_phantom.yaml", folder / "chain", "--jobs", 2, "--until", "choose")
        start = str(folder / "chain")
    run_doll("chain_covid19_seg.yaml", folder / "real", "--from", start, "--jobs", 2)
    return folder / "real"


def figures(folder: Path, start: str, mode: str) -> list[dict[str, float]]:
    """Of every fold."""
    files = sorted((folder / start).glob(f"seed*/then/covid19_seg_{mode}/few_shot.json"))
    return [run["figures"] for file in files for run in json.loads(file.read_text())["runs"]]


def targets(folder: Path) -> dict[tuple[str, str], dict[str, Any]]:
    rows = json.loads((folder / "summary.json").read_text())["targets"]
    return {(row["start"], row["mode"]): row["figures"] for row in rows}


real = pytest.mark.skipif(
    not (REAL / "covid19_seg").is_dir(), reason="needs the images of covid19_seg beside the project"
)


@pytest.mark.long
@pytest.mark.real
@real
@pytest.mark.parametrize("start", ["doll", "random"])
def test_both_starts_learn_the_lungs_of_real_films(adapted: Path, start: str):
    folds = figures(adapted, start, "full")
    assert len(folds) == 3
    for name in LUNGS:
        key = f"covid19_seg/seg/Dice_positive-{name}"
        assert statistics.fmean(fold[key] for fold in folds) > FLOOR, (start, name)


@pytest.mark.long
@pytest.mark.real
@real
def test_the_summary_has_both_starts_with_their_shares(adapted: Path):
    rows = targets(adapted)
    assert set(rows) == {("doll", "full"), ("doll", "seg_adapters"), ("random", "full")}
    for row in rows.values():
        for name in ("covid19_seg/seg/mIoU", "covid19_seg/seg/mIoU@25%"):
            assert len(row[name]) == 3 and all(0 < value < 1 for value in row[name])
    assert rows["doll", "full"]["trained_share"] == rows["random", "full"]["trained_share"]
    assert set(rows["doll", "full"]["trained_share"]) == {1.0}
    assert all(0 < share < 0.2 for share in rows["doll", "seg_adapters"]["trained_share"])
    page = (adapted / "summary.md").read_text()
    assert "| covid19_seg | doll | full |" in page and "| covid19_seg | random | full |" in page


@pytest.mark.long
@pytest.mark.real
@real
def test_every_film_is_scored_once(adapted: Path):
    folds = [json.loads(f.read_text()) for f in sorted(adapted.glob("splits/*_fold*.json"))]
    held = [image for fold in folds for image in fold["splits"]["test"]]
    assert len(folds) == 3 and len(held) == len(set(held))
    for fold in folds:
        assert not set(fold["splits"]["train"]) & set(fold["splits"]["test"])
        assert set(fold["splits"]["train"]) | set(fold["splits"]["test"]) == set(held)
