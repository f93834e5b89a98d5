from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from runs import DieAt, Stop, train

from fx_d2.data.errors import DataError
from fx_d2.engine.checkpoint import FxCheckpointer, read_description
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.step import NonFiniteLoss
from fx_d2.engine.trainer import FxTrainer
from fx_d2.engine.weights import read_weights

MakeCfg = Callable[..., CfgNode]


def weights(cfg: CfgNode, name: str = "model_final") -> dict[str, torch.Tensor]:
    return read_weights(Path(cfg.OUTPUT_DIR) / f"{name}.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def log_of(cfg: CfgNode) -> dict[int, dict[str, float]]:
    """metrics.json by iteration, without what a clock says."""
    lines = (Path(cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    clock = ("time", "data_time", "eta_seconds", "rank_data_time")
    return {r["iteration"]: {k: v for k, v in r.items() if k not in clock} for r in rows}


def test_the_same_config_and_seed_twice(toy_cfg: MakeCfg):
    first, second = toy_cfg("a", TEST__EVAL_PERIOD=6), toy_cfg("b", TEST__EVAL_PERIOD=6)
    other = toy_cfg("c", SEED=4)
    for cfg in (first, second, other):
        torch.rand(len(cfg.OUTPUT_DIR) % 7 + 1)  # the state a caller leaves must not matter
        np.random.rand(3)
        train(cfg)
    assert same(weights(first), weights(second)) and log_of(first) == log_of(second)
    assert len(log_of(first)) >= 12 and "toy_engine/cls/AUC" in str(log_of(first))
    assert not same(weights(first), weights(other))


def test_a_resumed_run_equals_an_uninterrupted_one(toy_cfg: MakeCfg):
    whole, cut = toy_cfg("whole"), toy_cfg("cut")
    steps = train(whole).storage.history("total_loss").values()
    train(cut, die_at=8)
    assert not (Path(cut.OUTPUT_DIR) / "model_final.safetensors").exists()
    resumed = train(cut, resume=True)
    assert resumed.start_iter == 5  # the checkpoint of iteration 4 is the last one
    assert same(weights(whole), weights(cut))
    assert resumed.storage.history("total_loss").values() == steps[5:]
    expected, found = log_of(whole), log_of(cut)
    assert [found[i]["lr"] for i in range(12)] == [expected[i]["lr"] for i in range(12)]


def test_a_run_killed_before_its_final_checkpoint_gets_it(toy_cfg: MakeCfg, monkeypatch):
    """After the last step's numbered checkpoint there is no step left that would write it."""
    whole, cut = toy_cfg("whole"), toy_cfg("cut")
    for cfg in (whole, cut):
        cfg.SOLVER.CHECKPOINT_PERIOD = 6  # of 12 iterations
    train(whole)
    real = FxCheckpointer.save

    def killed(self: FxCheckpointer, name: str, **facts: Any) -> None:
        if name == "model_final":
            raise Stop
        real(self, name, **facts)

    with monkeypatch.context() as patch:
        patch.setattr(FxCheckpointer, "save", killed)
        with pytest.raises(Stop):
            train(cut)
    assert not (Path(cut.OUTPUT_DIR) / "model_final.safetensors").exists()
    assert train(cut, resume=True).start_iter == 12
    assert same(weights(whole), weights(cut))
    (first, last) = [(Path(cfg.OUTPUT_DIR) / "last_checkpoint").read_text() for cfg in (whole, cut)]
    assert first == last == "model_final.safetensors"
    for cfg in (whole, cut):
        cfg.SOLVER.MAX_ITER = 14
        train(cfg, resume=True)
    assert same(weights(whole), weights(cut))


def test_a_finished_run_can_be_prolonged(toy_cfg: MakeCfg):
    """Resuming at the end trains nothing; with more iterations it goes on where it was."""
    cfg = toy_cfg(SOLVER__LR_SCHEDULER_NAME="WarmupMultiStepLR", SOLVER__STEPS=(100,))
    train(cfg)
    before = weights(cfg)
    assert train(cfg, resume=True).start_iter == 12
    assert same(before, weights(cfg))
    cfg.SOLVER.MAX_ITER = 14
    assert train(cfg, resume=True).iter == 14
    assert not same(before, weights(cfg))


def test_what_a_run_leaves(toy_cfg: MakeCfg):
    cfg = toy_cfg(TEST__EVAL_PERIOD=4, SOLVER__FX__BEST_METRIC=("*/cls/AUC",))
    trainer = train(cfg)
    folder = Path(cfg.OUTPUT_DIR)
    names = {p.name for p in folder.glob("*.safetensors")}
    assert names == {
        "model_0000009.safetensors",
        "model_best.safetensors",
        "model_final.safetensors",
    }
    assert list(folder.glob("events.out.tfevents*")) and (folder / "results.json").is_file()
    about = read_description(folder)
    results = trainer._last_eval_results
    assert about["iteration"] == 11
    assert about["metrics"]["toy_engine/cls/AUC"] == results["toy_engine/cls"]["AUC"]
    assert about["sources"] == {"toy_engine": {"cls": ["Low", "Other"], "seg": ["Low"]}}
    row = log_of(cfg)[11]
    assert {"total_loss", "lr"} <= set(row) and any(k.startswith("total/toy_engine/") for k in row)


def test_the_best_checkpoint_is_the_best_and_survives_a_resume(
    toy_cfg: MakeCfg, monkeypatch: pytest.MonkeyPatch
):
    values = iter([0.5, 0.9, 0.7, 0.8, 0.6])

    def scripted(cls: type, cfg: CfgNode, model: Any, evaluators: Any = None) -> Any:
        return {"toy_engine/cls": {"AUC": next(values)}}

    monkeypatch.setattr(FxTrainer, "test", classmethod(scripted))
    options = {"TEST__EVAL_PERIOD": 3, "SOLVER__FX__BEST_METRIC": ("*/AUC",)}
    cfg = toy_cfg(**options)
    train(cfg, die_at=7)  # evaluated at 2 and 5
    best = Path(cfg.OUTPUT_DIR) / "model_best.safetensors"
    assert read_description(best)["iteration"] == 5
    train(cfg, resume=True)  # evaluated at 5 (0.7 now), 8 and 11
    assert read_description(best)["metrics"] == {"toy_engine/cls/AUC": 0.9}


def test_a_loss_that_is_not_finite_stops_before_the_weights_are_touched(
    toy_cfg: MakeCfg, caplog: pytest.LogCaptureFixture
):
    cfg = toy_cfg()
    trainer = FxTrainer(cfg)

    class Break(HookBase):
        def before_step(self) -> None:
            if self.trainer.iter == 6:
                self.trainer.model.broken = math.nan
                self.trainer.before = {
                    k: v.clone() for k, v in self.trainer.model.named_parameters()
                }

    trainer.register_hooks([Break()])
    with pytest.raises(NonFiniteLoss) as error, caplog.at_level(logging.INFO):
        trainer.train()
    assert "\n" not in str(error.value) and "iteration 6" in str(error.value)
    (file,) = Path(cfg.OUTPUT_DIR).glob("bad_batch_*.json")
    assert str(file) in str(error.value)
    saved = json.loads(file.read_text())
    assert len(saved["images"]) == 4 and saved["iteration"] == 6
    assert all(Path(image["file_name"]).is_file() for image in saved["images"])
    assert all(torch.equal(trainer.before[k], v) for k, v in trainer.model.named_parameters())
    assert (Path(cfg.OUTPUT_DIR) / "model_0000004.safetensors").is_file()
    assert "Exception during training" not in caplog.text


def test_gradients_that_are_not_finite_stop_too(toy_cfg: MakeCfg):
    trainer = FxTrainer(toy_cfg(SOLVER__FX__CLIP_NORM=1.0))
    weight = trainer.model.trunk[0].weight
    weight.register_hook(lambda grad: grad * math.inf)
    with pytest.raises(NonFiniteLoss, match="norm of the gradients"):
        trainer.train()


def test_bugs_keep_their_traceback(toy_cfg: MakeCfg, caplog: pytest.LogCaptureFixture):
    trainer = FxTrainer(toy_cfg())
    trainer.register_hooks([DieAt(1)])
    log = logging.getLogger("detectron2")
    log.addHandler(caplog.handler)
    try:
        with pytest.raises(Stop):
            trainer.train()
    finally:
        log.removeHandler(caplog.handler)
    assert "Exception during training" in caplog.text and "DieAt" not in str(log.filters)


def test_clipping_by_task_reaches_the_step(toy_cfg: MakeCfg):
    cfg = toy_cfg(SOLVER__FX__CLIP_NORM_BY=("seg=0.001",), SOLVER__MAX_ITER=8)
    trainer = FxTrainer(cfg)
    norms: dict[str, list[float]] = {"cls": [], "seg": []}

    def note(optimizer: Any, *_: Any) -> None:
        grads = [p.grad for p in trainer.model.parameters() if p.grad is not None]
        total = torch.cat([g.flatten() for g in grads]).norm()
        task = "seg" if trainer.model.heads["seg"]["toy_engine"].weight.grad is not None else "cls"
        norms[task].append(float(total))

    trainer.optimizer.register_step_pre_hook(note)
    trainer.train()
    assert norms["seg"] and max(norms["seg"]) < 0.00101 and max(norms["cls"]) > 0.002


def test_bf16_trains_and_keeps_float32_weights(toy_cfg: MakeCfg):
    cfg = toy_cfg(SOLVER__FX__PRECISION="bf16")
    seen = []
    trainer = FxTrainer(cfg)
    trainer.model.trunk[0].register_forward_hook(lambda m, i, out: seen.append(out.dtype))
    trainer.train()
    assert set(seen) == {torch.bfloat16}  # evaluation at the end included
    assert {t.dtype for t in weights(cfg).values() if t.is_floating_point()} == {torch.float32}


def test_wrong_settings(toy_cfg: MakeCfg):
    with pytest.raises(ValueError, match="fp16"):
        FxTrainer(toy_cfg(SOLVER__FX__PRECISION="fp16"))
    with pytest.raises(ValueError, match="SOLVER.AMP"):
        FxTrainer(toy_cfg(SOLVER__AMP__ENABLED=True))
    with pytest.raises(ValueError, match="BEST_MODE"):
        FxTrainer(toy_cfg(SOLVER__FX__BEST_METRIC=("*/AUC",), SOLVER__FX__BEST_MODE="most"))
    with pytest.raises(ConfigError, match="rsna_val.*no head for rsna.*toy_engine/cls"):
        FxTrainer(toy_cfg(DATASETS__TEST=("rsna_val",)))
    with pytest.raises(ConfigError, match="clss.*the mix holds"):
        FxTrainer(toy_cfg(DATALOADER__FX__DATASET_RATIO=("toy_engine/clss=2",))).train()


def test_a_broken_image_stops_with_its_name(toy_cfg: MakeCfg, toy_source: Path):
    (toy_source / "train_03.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="train_03.png"):
        FxTrainer(toy_cfg()).train()


def test_learning(toy_cfg: MakeCfg):
    """The loop as a whole learns what is plain to see."""
    cfg = toy_cfg(SOLVER__MAX_ITER=60, SOLVER__BASE_LR=0.03, INPUT__FX__AUG__CLS__FLIP=0.0)
    cfg.INPUT.FX.AUG.CLS.CROP_SCALE = [1.0, 1.0]
    trainer = FxTrainer(cfg)
    results = trainer.train()
    assert results["toy_engine/cls"]["AUC"] == 1.0
