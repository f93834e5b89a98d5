"""Tuning through the real trainer: what is locked stays as it was in MODEL.WEIGHTS."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from fx_d2.engine.checkpoint import FxCheckpointer
from fx_d2.engine.setup import load_config
from fx_d2.engine.trainer import FxTrainer
from fx_d2.engine.weights import read_weights
from fx_d2.phantom.world import make_world

QUICK = Path(__file__).resolve().parents[2] / "configs/quick_schedules/few_shot_instant_test.yaml"


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of an untuned model for another source, beside a small world."""
    make_world(tmp_path / "world", patients=8, seed=1, sources=["montgomery"], size_px=96)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "world"))
    cfg = load_config(str(QUICK), ["MODEL.FX.SOURCES", "('chestx_det',)"])
    FxCheckpointer(build_model(cfg), str(tmp_path), cfg=cfg).save_weights("before")
    return tmp_path / "before.safetensors"


def test_lora_from_a_checkpoint_with_other_heads(weights: Path, tmp_path: Path):
    words = ["MODEL.WEIGHTS", weights, "MODEL.FX.TUNE.MODE", "lora", "OUTPUT_DIR", tmp_path / "run"]
    cfg = load_config(str(QUICK), [*map(str, words), "DATASETS.TEST", "()", "SOLVER.MAX_ITER", "3"])
    trainer = FxTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    before, after = read_weights(weights), read_weights(tmp_path / "run/model_final.safetensors")
    trunk = [name for name in before if name.startswith("trunk.")]
    assert trunk and all(torch.equal(before[name], after[name]) for name in trunk)
    assert any(after[n].abs().max() > 0 for n in after if n.endswith(".lora.up.weight"))
    decoder = [name for name in before if name.startswith("seg_decoder.")]
    assert any(not torch.equal(before[name], after[name]) for name in decoder)
