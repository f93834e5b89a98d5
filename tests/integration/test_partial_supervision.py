"""The real loop on the real model: what a step may move, and what a checkpoint hands on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from fx_d2.engine.setup import load_config
from fx_d2.engine.trainer import FxTrainer
from fx_d2.engine.weights import read_weights

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs/quick_schedules/foundation_x_instant_test.yaml"
SHARED = {"cls": {"cls_encoder"}, "loc": {"loc_encoder", "loc_decoder"}, "seg": {"seg_decoder"}}


def config(folder: Path, *sources: str, **settings: object) -> CfgNode:
    names = tuple(f"{source}_train" for source in sources)
    given = {
        "DATASETS.TRAIN": str(names),
        "DATASETS.TEST": "()",
        "TEST.EVAL_PERIOD": 0,
        "MODEL.DEVICE": "cpu",
        "OUTPUT_DIR": str(folder),
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    return load_config(str(QUICK), [str(word) for pair in given.items() for word in pair])


def part(name: str) -> str:
    """``trunk``, a shared part, or ``heads.<task>.<source>``."""
    pieces = name.split(".")
    return ".".join(pieces[:3]) if pieces[0] == "heads" else pieces[0]


@pytest.fixture(autouse=True)
def _datasets(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world))


def test_a_step_moves_the_trunk_the_parts_of_its_task_and_its_own_head(tmp_path: Path):
    """Momentum and weight decay included: they would go on moving a head with gradients of 0."""
    cfg = config(
        *(tmp_path, "nih14", "rsna", "chestx_det"),
        SOLVER__MAX_ITER=18,
        SOLVER__WARMUP_ITERS=0,
        DATALOADER__FX__REPEAT_TO_LONGEST=True,
    )
    trainer = FxTrainer(cfg)
    named = dict(trainer.model.named_parameters())
    before: dict[str, torch.Tensor] = {}
    batches: list[tuple[str, str]] = []
    moved: list[set[str]] = []
    forward = trainer.model.forward

    def spied(batch, *args):
        batches.append((batch[0]["task"], batch[0]["source"]))
        return forward(batch, *args)

    def start(*_):
        before.update({n: p.detach().clone() for n, p in named.items()})

    def end(*_):
        moved.append({part(n) for n, p in named.items() if not torch.equal(p, before[n])})

    trainer.model.forward = spied
    trainer.optimizer.register_step_pre_hook(start)
    trainer.optimizer.register_step_post_hook(end)
    trainer.train()
    assert len(set(batches)) == 6 and len(batches) == len(moved) == 18
    parts = {part(name) for name in named}
    for (task, source), found in zip(batches, moved, strict=True):
        allowed = {"trunk", f"heads.{task}.{source}"} | SHARED[task] & parts
        assert found <= allowed, f"{source}/{task} moved {found - allowed}"
        assert f"heads.{task}.{source}" in found and "trunk" in found


def test_a_trained_checkpoint_in_models_of_more_and_of_fewer_sources(tmp_path: Path):
    """A + B into A + B + C and into A: the shared part bit for bit, all else named once."""
    trained = FxTrainer(config(tmp_path / "ab", "rsna", "chestx_det", SOLVER__MAX_ITER=3))
    untrained = {n: t.clone() for n, t in trained.model.state_dict().items()}
    trained.train()
    file = tmp_path / "ab/model_final.safetensors"
    saved = read_weights(file)
    assert any(not torch.equal(saved[n], untrained[n]) for n in saved if n.startswith("trunk."))
    for sources, rest in (
        (("rsna", "chestx_det", "nih14"), {"new": {"heads.cls.nih14"}}),
        (("nih14", "rsna"), {"new": {"heads.cls.nih14"}, "left_out": None}),
        (("rsna",), {"left_out": None}),
    ):
        where = tmp_path / "-".join(sources)
        trainer = FxTrainer(config(where, *sources, MODEL__WEIGHTS=file, SEED=7))
        fresh = {n: t.clone() for n, t in trainer.model.state_dict().items()}
        trainer.resume_or_load(resume=False)
        mine, report = trainer.model.state_dict(), trainer.checkpointer.report
        assert report is not None and not report.mismatched and not report.other_classes
        assert set(report.loaded) == set(mine) & set(saved)
        assert all(torch.equal(mine[name], saved[name]) for name in report.loaded)
        assert set(report.new) == set(mine) - set(saved)
        assert all(torch.equal(mine[name], fresh[name]) for name in report.new)
        assert set(report.left_out) == set(saved) - set(mine)
        assert {part(n) for n in report.new} == rest.get("new", set())
        if "left_out" in rest:
            gone = {"heads.cls.chestx_det", "heads.loc.chestx_det", "heads.seg.chestx_det"}
            assert {part(n) for n in report.left_out} == gone | {"seg_decoder"}
        for name in {part(n) for n in (*report.new, *report.left_out)}:
            assert name in report.summary()
        assert {"trunk", "cls_encoder", "loc_encoder"} <= {part(n) for n in report.loaded}
