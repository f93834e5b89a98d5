"""An ensemble is the mean of its members, in an evaluation and in a prediction, and says so."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from fx_d2.engine.checkpoint import CheckpointError, FxCheckpointer
from fx_d2.engine.ensemble import evaluated_ensemble, load_ensemble
from fx_d2.engine.scoring import score
from fx_d2.engine.setup import load_config
from fx_d2.modeling.meta_arch import Ensemble
from fx_d2.phantom.world import make_world
from fx_d2.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
QUICK = str(ROOT / "configs/quick_schedules/foundation_x_instant_test.yaml")
BASE = ("INPUT.FX.SIZE", "64", "MODEL.DEVICE", "cpu", "TEST.FX.BOOTSTRAP", "0")
CPU = torch.device("cpu")
Saved = Callable[..., Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, patients=8, seed=2, sources=["nih14"], size_px=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        yield folder


def config(*overrides: str):
    heads = ("DATASETS.TRAIN", "('nih14_train',)", "DATASETS.TEST", "('nih14_val',)")
    return load_config(QUICK, [*BASE, *heads, "DATASETS.TASKS", "('cls',)", *overrides])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Random weights of a config, saved as a run saves them."""

    def save(seed: int, *overrides: str) -> Path:
        cfg, folder = config(*overrides), tmp_path_factory.mktemp("weights")
        torch.manual_seed(seed)
        model = build_model(cfg)
        for parameter in model.heads["cls"].parameters():  # far from one half
            torch.nn.init.normal_(parameter, std=0.5)
        FxCheckpointer(model, str(folder), cfg=cfg).save_weights("w", iteration=1)
        return folder / "w.safetensors"

    return save


PYRAMID = (
    *("MODEL.META_ARCHITECTURE", "FPSM", "MODEL.FX.CLS.NAME", "PyramidClassifier"),
    *("MODEL.FX.CLS.PYRAMID.DIM", "16", "MODEL.FX.TRUNK.KWARGS.embed_dim", "12"),
)


@pytest.fixture(scope="module")
def files(saved: Saved) -> list[Path]:
    """Two of one kind and one of another, with another trunk."""
    return [saved(1), saved(2), saved(3, *PYRAMID)]


def test_an_ensemble_predicts_the_mean(world: Path, files: list[Path]) -> None:
    film = sorted(world.rglob("*.png"))[0]
    single = [Predictor(file, device="cpu")(film)["labels"]["nih14"] for file in files]
    together = Predictor(files, device="cpu")
    found = together(film)
    assert len({round(one["Mass"], 4) for one in single}) == 3
    for name, value in found["labels"]["nih14"].items():
        assert value == pytest.approx(np.mean([one[name] for one in single]))
    assert found["masks"] == {} and together.asked == ("nih14/cls",)
    assert len(set(together.description["weights_sha256"])) == 3
    one = Predictor(files[:1], device="cpu")(film)["labels"]["nih14"]
    assert one == single[0]


def test_an_evaluation_says_what_the_ensemble_is(world: Path, files: list[Path]) -> None:
    cfg = config("MODEL.FX.ENSEMBLE", str(tuple(map(str, files))))
    ensemble = evaluated_ensemble(cfg)
    assert isinstance(ensemble, Ensemble) and not ensemble.training
    results = score(cfg, ensemble)
    note = results.notes["nih14/cls"]["ensemble"]
    assert note["of"] == "mean probability"
    assert [member["weights"] for member in note["members"]] == ["w.safetensors"] * 3
    hashes = [json.loads(f.with_suffix(".json").read_text())["weights_sha256"] for f in files]
    assert [member["weights_sha256"] for member in note["members"]] == hashes
    lines = {}
    for number, file in enumerate([*files, None]):
        model = ensemble if file is None else load_ensemble([file], CPU)[0]
        table = score(cfg, model).per_image["nih14_val_cls"].rows()
        lines[number] = [row["probability"] for row in table]
    mean = np.mean([lines[0], lines[1], lines[2]], axis=0)
    np.testing.assert_allclose(lines[3], mean, rtol=1e-5)
    assert evaluated_ensemble(config()) is None


def test_members_that_cannot_be_one(world: Path, files: list[Path], saved: Saved) -> None:
    other_size = saved(1, "INPUT.FX.SIZE", "96")
    with pytest.raises(CheckpointError, match=r"images have size 96, those of w.safetensors 64"):
        load_ensemble([files[0], other_size], CPU)
    cfg = config("MODEL.FX.ENSEMBLE", str((str(other_size),)))
    with pytest.raises(CheckpointError, match="have size 96, those of this config 64"):
        evaluated_ensemble(cfg)
    other_head = saved(1, "MODEL.FX.SOURCES", "('rsna',)")
    with pytest.raises(ValueError, match=r"a label head that all members have: .* has nih14; .*"):
        load_ensemble([files[0], other_head], CPU)
    both = saved(1, "MODEL.FX.SOURCES", "('rsna', 'nih14')")
    assert [s.name for s in load_ensemble([both, files[0]], CPU)[0].specs] == ["nih14/cls"]
    with pytest.raises(RuntimeError, match="an ensemble predicts"):
        load_ensemble(files[:1], CPU)[0].train()([])
    with pytest.raises(ValueError, match="no weights are named"):
        Predictor([])


def test_the_command_line(world: Path, files: list[Path], tmp_path: Path) -> None:
    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", QUICK]
        command += [*overrides, *BASE, "DATASETS.TEST", "('nih14_val',)", "DATASETS.TASKS"]
        command += ["('cls',)", "OUTPUT_DIR", str(tmp_path / "out")]
        command += ["MODEL.FX.ENSEMBLE", str(tuple(map(str, files[:2])))]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)

    done = run("--eval-only")
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out/results.json").read_text())
    assert len(written["notes"]["nih14/cls"]["ensemble"]["members"]) == 2
    refused = run()
    assert refused.returncode == 2
    assert "MODEL.FX.ENSEMBLE is evaluated, not trained" in refused.stderr
