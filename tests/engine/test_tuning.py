"""Tuning through the real trainer: what is locked stays as it was in MODEL.WEIGHTS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling import build_model
from runs import TINY, train

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


class Apart(HookBase):
    """The teacher never has a gradient."""

    def after_step(self) -> None:
        assert all(p.grad is None for p in self.trainer.model.teacher.parameters())


@pytest.mark.parametrize("mode", ["heads", "last_blocks", "lora", "adapters"])
def test_a_teacher_follows_what_is_tuned(toy_cfg: Callable[..., CfgNode], mode: str):
    """Branches too; what is locked stays as it was in both, and a killed run ends as the whole."""
    options = {
        **TINY, "MODEL__META_ARCHITECTURE": "StudentTeacher", "SOLVER__MAX_ITER": 4,
        "SOLVER__CHECKPOINT_PERIOD": 2, "SOLVER__IMS_PER_BATCH": 2, "DATASETS__TEST": (),
    }  # fmt: skip
    start = toy_cfg("start", **options)
    torch.manual_seed(5)
    FxCheckpointer(build_model(start), start.OUTPUT_DIR, cfg=start).save_weights("before")
    file = f"{start.OUTPUT_DIR}/before.safetensors"
    options |= {"MODEL__WEIGHTS": file, "MODEL__FX__TUNE__MODE": mode}
    whole, cut = toy_cfg("whole", **options), toy_cfg("cut", **options)
    model = train(whole, also=[Apart()]).model
    train(cut, die_at=3)
    train(cut, resume=True)
    before = read_weights(Path(file))
    found, again = (
        read_weights(Path(c.OUTPUT_DIR) / "model_final.safetensors") for c in (whole, cut)
    )
    assert all(torch.equal(found[name], again[name]) for name in found)
    tuned = {name for name, p in model.named_parameters() if p.requires_grad}
    locked = {name for name, p in model.named_parameters()} - tuned
    assert locked and tuned and {f"teacher.{name}" for name in tuned | locked} <= set(found)
    for name in locked:
        assert torch.equal(found[name], before[name])
        assert torch.equal(found[f"teacher.{name}"], before[f"teacher.{name}"])
    branch = {"lora": ".lora.up.weight", "adapters": ".adapter.up.weight"}.get(mode, "heads.")
    moved = [n for n in tuned if branch in n and not torch.equal(found[n], found[f"teacher.{n}"])]
    assert moved and any(found[f"teacher.{name}"].abs().max() > 0 for name in moved)
