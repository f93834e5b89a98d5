"""Every epoch's weights are kept, also by a run that was interrupted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import train

from fx_d2.engine.checkpoint import read_description
from fx_d2.engine.hooks import KeepEpochs
from fx_d2.engine.weights import read_weights

EPOCHS = {"SOLVER__FX__KEEP_EPOCHS": True, "CYCLE__CYCLES": 3, "SOLVER__CHECKPOINT_PERIOD": 4}


def kept(folder: str) -> dict[str, dict[str, torch.Tensor]]:
    return {p.stem: read_weights(p) for p in sorted(Path(folder).glob("model_epoch_*.safetensors"))}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in other) and set(one) == set(other)


def test_one_file_per_pass_also_after_an_interruption(toy_cfg):
    cfg = toy_cfg("whole", **EPOCHS)
    trainer = train(cfg)
    # 12 images in batches of 4, for each of two tasks: 6 steps a pass; MAX_ITER says 12.
    assert trainer.max_iter == 18
    whole = kept(cfg.OUTPUT_DIR)
    assert list(whole) == ["model_epoch_001", "model_epoch_002", "model_epoch_003"]
    for number, name in enumerate(whole, 1):
        about = read_description(Path(cfg.OUTPUT_DIR, f"{name}.safetensors"))
        assert about["iteration"] == 6 * number - 1
    final = read_weights(Path(cfg.OUTPUT_DIR) / "model_final.safetensors")
    assert same(whole["model_epoch_003"], final) and not same(whole["model_epoch_002"], final)
    # Of what is resumed there is one numbered checkpoint, as without it.
    assert len(list(Path(cfg.OUTPUT_DIR).glob("model_0*.safetensors"))) == 1
    cfg = toy_cfg("cut", **EPOCHS)
    train(cfg, die_at=13)  # epoch 2 is kept, the last checkpoint is of its step 12
    train(cfg, resume=True)
    cut = kept(cfg.OUTPUT_DIR)
    assert list(cut) == list(whole) and all(same(cut[name], whole[name]) for name in whole)


def test_none_unless_asked_for_and_a_number_is_needed(toy_cfg):
    cfg = toy_cfg(CYCLE__CYCLES=1)
    train(cfg)
    assert not kept(cfg.OUTPUT_DIR)
    with pytest.raises(ValueError, match=r"KEEP_EPOCHS needs .* set CYCLE.CYCLES above 0"):
        KeepEpochs(None, 0, 12)
