"""Plateau, early stopping and the best checkpoints, by scripted metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import runs
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from runs import Stop

from fx_d2.engine.checkpoint import read_description
from fx_d2.engine.trainer import FxTrainer
from fx_d2.engine.weights import read_weights
from fx_d2.evaluation.results import Results

MakeCfg = Callable[..., CfgNode]
AUC = ("*/cls/AUC",)


class Rates(HookBase):
    """The learning rate of every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def before_step(self) -> None:
        self.seen.append(self.trainer.optimizer.param_groups[0]["lr"])


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """The AUC of the weights after each number of steps, as an evaluation would find it."""
    figures: dict[int, float] = {}

    def scores(cls: type, cfg: CfgNode, model: Any, evaluators: Any = None) -> Results:
        # By the weights and not by the number of calls: evaluated again, they score the same.
        return Results({"toy_engine/cls": {"AUC": figures[int(model.steps_done)]}})

    original = FxTrainer.build_model.__func__  # type: ignore[attr-defined]

    def build(cls: type, cfg: CfgNode) -> torch.nn.Module:
        model = original(cls, cfg)
        model.register_buffer("steps_done", torch.tensor(0))

        def count(module: torch.nn.Module, _: Any) -> None:
            if module.training:
                module.steps_done += 1

        model.register_forward_pre_hook(count)
        return model

    monkeypatch.setattr(FxTrainer, "scores", classmethod(scores))
    monkeypatch.setattr(FxTrainer, "build_model", classmethod(build))

    def write(*values: float, every: int = 2) -> None:
        figures.update({every * (i + 1): value for i, value in enumerate(values)})

    return write


def train(cfg: CfgNode, **how: Any) -> tuple[Any, Rates]:
    rates = Rates()
    return runs.train(cfg, also=[rates], **how), rates


def weights(cfg: CfgNode, name: str = "model_final") -> dict[str, torch.Tensor]:
    return read_weights(Path(cfg.OUTPUT_DIR) / f"{name}.safetensors")


FLAT = {
    "SOLVER__LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "SOLVER__STEPS": (100,),
    "SOLVER__WARMUP_ITERS": 0,
    "TEST__EVAL_PERIOD": 2,
    "SOLVER__CHECKPOINT_PERIOD": 2,
}


def test_plateau_lowers_the_rate_and_a_resumed_run_does_so_too(toy_cfg: MakeCfg, script):
    # Evaluated after steps 2, 4, ...: no progress at 4 and 6 (by 0.02), at 10 and 12.
    script(0.60, 0.61, 0.62, 0.70, 0.50, 0.60)
    options = FLAT | {
        "SOLVER__FX__PLATEAU__METRIC": AUC,
        "SOLVER__FX__PLATEAU__PATIENCE": 2,
        "SOLVER__FX__PLATEAU__MIN_DELTA": 0.02,
        "SOLVER__FX__PLATEAU__FACTOR": 0.5,
    }
    whole = toy_cfg("whole", **options)
    _, rates = train(whole)
    assert rates.seen == pytest.approx([0.01] * 6 + [0.005] * 6)
    for die_at in (6, 7, 9):  # 6: between the checkpoint with its evaluation and the next step
        cut = toy_cfg(f"cut{die_at}", **options)
        train(cut, die_at=die_at)
        trainer, rest = train(cut, resume=True)
        assert rest.seen == rates.seen[trainer.start_iter :]
        assert all(torch.equal(v, weights(cut)[n]) for n, v in weights(whole).items())


def test_early_stopping_ends_the_run_for_good(toy_cfg: MakeCfg, script):
    script(0.60, 0.70, 0.65, 0.70, 0.90, 0.95)
    options = FLAT | {
        "SOLVER__FX__EARLY_STOP__METRIC": AUC,
        "SOLVER__FX__EARLY_STOP__PATIENCE": 2,
        "SOLVER__FX__BEST_METRIC": AUC,
    }
    cfg = toy_cfg("whole", **options)
    trainer, rates = train(cfg)
    assert len(rates.seen) == 8  # 0.65 and 0.70 are no progress over 0.70
    folder = Path(cfg.OUTPUT_DIR)
    assert read_description(folder / "model_final.safetensors")["iteration"] == 7
    assert read_description(folder / "model_best.safetensors")["iteration"] == 3
    before = weights(cfg)
    _, again = train(cfg, resume=True)
    assert again.seen == []
    assert all(torch.equal(v, before[n]) for n, v in weights(cfg).items())
    # Killed after the checkpoint of the last step and before its evaluation was looked at.
    cut = toy_cfg("cut", **options)
    train(cut, die_at=7)
    trainer, rest = train(cut, resume=True)
    assert trainer.start_iter == 6 and len(rest.seen) == 2
    assert all(torch.equal(v, weights(cut)[n]) for n, v in before.items())


def test_a_run_killed_between_checkpoint_and_evaluation_stops_when_resumed(
    toy_cfg: MakeCfg, script, monkeypatch: pytest.MonkeyPatch
):
    script(0.60, 0.70, 0.65, 0.70, 0.90, 0.95)
    cfg = toy_cfg(**FLAT, SOLVER__FX__EARLY_STOP__METRIC=AUC, SOLVER__FX__EARLY_STOP__PATIENCE=2)

    def die(self: FxTrainer) -> Any:
        if self.iter == 7:
            raise Stop
        return original(self)

    original = FxTrainer._evaluate
    with monkeypatch.context() as patch:
        patch.setattr(FxTrainer, "_evaluate", die)
        with pytest.raises(Stop):
            train(cfg)
    trainer, rest = train(cfg, resume=True)
    assert trainer.start_iter == 8 and rest.seen == []
    assert read_description(Path(cfg.OUTPUT_DIR) / "model_final.safetensors")["iteration"] == 7


def test_the_best_k_stay_also_over_a_resume(toy_cfg: MakeCfg, script):
    script(0.80, 0.60, 0.70, 0.90, 0.80, 0.75)
    options = FLAT | {"SOLVER__FX__BEST_METRIC": AUC, "SOLVER__FX__KEEP_BEST": 2}
    for name, die_at in (("whole", None), ("cut", 5)):
        cfg = toy_cfg(name, **options)
        if die_at:
            train(cfg, die_at=die_at)
            assert tops(cfg) == {1: 0.80, 3: 0.60}
        train(cfg, resume=bool(die_at))
        assert tops(cfg) == {1: 0.80, 7: 0.90}  # of two 0.80 the earlier one
        best = read_description(Path(cfg.OUTPUT_DIR) / "model_best.safetensors")
        assert best["iteration"] == 7
    for value in weights(cfg, "model_top_0000007").values():
        assert torch.isfinite(value.float()).all()


def tops(cfg: CfgNode) -> dict[int, float]:
    files = sorted(Path(cfg.OUTPUT_DIR).glob("model_top_*.safetensors"))
    about = [read_description(file) for file in files]
    assert len(list(Path(cfg.OUTPUT_DIR).glob("model_top_*"))) == 2 * len(files)
    return {a["iteration"]: a["metrics"]["toy_engine/cls/AUC"] for a in about}


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"EARLY_STOP__PATIENCE": 2}, "SOLVER.FX.EARLY_STOP needs METRIC"),
        ({"PLATEAU__PATIENCE": 2, "PLATEAU__METRIC": AUC, "PLATEAU__FACTOR": 1.0}, "FACTOR is 1.0"),
        (
            {"PLATEAU__PATIENCE": 2, "PLATEAU__METRIC": AUC, "PLATEAU__MODE": "best"},
            "MODE is 'best'",
        ),
        ({"PLATEAU__PATIENCE": 2, "PLATEAU__METRIC": AUC, "PLATEAU__MIN_DELTA": -1.0}, "MIN_DELTA"),
        ({"BEST_METRIC": AUC, "KEEP_BEST": 0}, "KEEP_BEST is 0"),
    ],
)
def test_wrong_settings(toy_cfg: MakeCfg, options, told):
    settings = {f"SOLVER__FX__{key}": value for key, value in options.items()}
    with pytest.raises(ValueError, match=told):
        FxTrainer(toy_cfg(TEST__EVAL_PERIOD=2, **settings))
    with pytest.raises(ValueError, match="TEST.EVAL_PERIOD"):
        FxTrainer(toy_cfg(SOLVER__FX__PLATEAU__PATIENCE=2, SOLVER__FX__PLATEAU__METRIC=AUC))


def test_plateau_stops_at_the_lowest_rate(toy_cfg: MakeCfg, script):
    script(0.6, 0.5, 0.5, 0.5, 0.5, 0.5)
    options = FLAT | {
        "SOLVER__FX__PLATEAU__METRIC": AUC,
        "SOLVER__FX__PLATEAU__PATIENCE": 1,
        "SOLVER__FX__PLATEAU__FACTOR": 0.5,
        "SOLVER__FX__PLATEAU__MIN_LR": 0.004,
    }
    _, rates = train(toy_cfg("bounded", **options))
    assert rates.seen == pytest.approx([0.01] * 4 + [0.005] * 2 + [0.004] * 6)
    low = toy_cfg("below", **options | {"SOLVER__FX__PLATEAU__MIN_LR": 0.1})
    _, rates = train(low)
    assert rates.seen == pytest.approx([0.01] * 12)  # never raised
    with pytest.raises(ValueError, match="MIN_LR is -1"):
        FxTrainer(toy_cfg("bad", **options | {"SOLVER__FX__PLATEAU__MIN_LR": -1.0}))
