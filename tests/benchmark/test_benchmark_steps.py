from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage

from fx_d2.benchmark import steps
from fx_d2.benchmark.memory import added_by, status_mib
from fx_d2.benchmark.setting import first_spec, make_batch, tasks_of
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.step import TrainStep

# A source with masks of boxes and one without.
SOURCES = ("chestx_det", "rsna")


def of_source(quick, source, shared=False):
    names = f"['{source}_train']"
    return quick.having("DATASETS.TRAIN", names, "MODEL.FX.LOC.SHARED_DECODER", str(shared))


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("source", SOURCES)
def test_both_localization_models_do_the_same_work(quick, source, shared):
    setting = of_source(quick, source, shared)
    cfg = setting.cfg()
    spec = first_spec(cfg, "loc")
    ours, theirs = setting.model(cfg), steps.build_mask_rcnn(cfg, spec)
    parts = [ours.trunk, ours.loc_encoder, ours.heads["loc"].get_submodule(source)]
    parts += [ours.loc_decoder] if shared else []
    assert sum(map(count, parts)) == count(theirs)
    steps.copy_weights(ours, theirs, source)
    batch = make_batch(spec, cfg, setting)
    losses = []
    for model in (ours, theirs):
        torch.manual_seed(3)
        with EventStorage():
            found = model.train()(batch)
        losses.append(sorted(value.item() for value in found.values()))
    assert losses[0] == losses[1]
    assert len(losses[0]) == (5 if spec.instance_masks else 4)


def test_each_step_is_that_of_its_trainer_and_leaves_the_weights(quick, monkeypatch):
    ran = []
    for trainer in (TrainStep, SimpleTrainer):
        run = trainer.run_step

        def noted(self, run=run):
            ran.append(type(self).__name__)
            run(self)
            grads = [p.grad for p in self.model.parameters() if p.grad is not None]
            assert grads and any(g.abs().sum() > 0 for g in grads)

        monkeypatch.setattr(trainer, "run_step", noted)
    cfg = quick.cfg()
    for build in (steps.our_step, steps.mask_rcnn_step):
        arguments = (cfg, quick, "loc") if build is steps.our_step else (cfg, quick)
        step, model = build(*arguments)
        before = {n: p.clone() for n, p in model.named_parameters()}
        step()
        assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert ran == ["TrainStep", "SimpleTrainer"]


def test_bare_trunk_is_the_same_network(quick):
    # Drop path is the one draw in its step; at 224 px timm's windows are those of any size.
    quick = replace(quick.having("MODEL.FX.TRUNK.DROP_PATH", "0.0"), size_px=224)
    cfg = quick.cfg()
    step, bare = steps.bare_trunk_step(cfg, quick, "cls")
    ours = quick.model(cfg)
    spec = first_spec(cfg, "cls")
    linear = ours.heads["cls"].get_submodule(spec.source).linear
    assert count(bare) == count(ours.trunk) + count(linear)
    before = step()
    assert before == step() > 0  # learning rate 0
    assert all(p.grad is not None for p in bare.parameters())


def test_batches_are_a_function_of_the_seed(quick):
    cfg = quick.cfg()
    for task in tasks_of(cfg):
        spec = first_spec(cfg, task)
        one, same, other = (
            make_batch(spec, cfg, replace(quick, seed=seed))[1]["image"] for seed in (1, 1, 2)
        )
        assert torch.equal(one, same) and not torch.equal(one, other)
        assert one.shape == (3, 64, 64) and one.min() >= 0 and one.max() <= 1
    found = make_batch(first_spec(cfg, "loc"), cfg, quick)[0]["instances"]
    for box, mask in zip(found.gt_boxes.tensor, found.gt_masks.tensor, strict=True):
        x0, y0, x1, y1 = box.round().int().tolist()
        assert mask.any() and mask[y0:y1, x0:x1].sum() == mask.sum()


def test_table_of_steps_has_a_row_per_task(quick):
    ticks = iter(range(10_000))
    table = steps.measure_steps(quick, 1, clock=lambda: next(ticks), quiet=True)
    assert [row["task"] for row in table.rows] == ["nih14/cls", "chestx_det/loc", "chestx_det/seg"]
    assert [row["ratio"] for row in table.rows] == [1.0, 1.0, 1.0]
    assert [row.get("bound") for row in table.rows] == [1.10, 1.05, None]
    assert [row.get("holds") for row in table.rows] == ["yes", "yes", None]


def test_ratio_above_its_bound_is_said():
    assert steps._ratio(1.2, 1.1)["holds"] == "no"


def test_task_without_a_head_is_one_line(quick):
    cfg = quick.having("DATASETS.TASKS", "('cls',)").cfg()
    assert tasks_of(cfg) == ["cls"]
    with pytest.raises(ConfigError, match="no source with a loc head"):
        first_spec(cfg, "loc")


needs_proc = pytest.mark.skipif(
    status_mib("VmRSS") != status_mib("VmRSS"), reason="memory is read from /proc"
)


@needs_proc
def test_memory_added_is_the_peak_and_not_what_stays():
    def work():
        large = torch.ones(64 * 2**18)  # 64 MiB
        return float(large.sum())

    assert 60 < added_by(work) < 90


@needs_proc
@pytest.mark.slow
def test_peak_of_a_step_holds_weights_gradients_and_state(quick):
    cfg = quick.cfg()
    net = steps.build_bare_trunk(cfg, 14, quick.size_px)
    least = 4 * 4 * count(net) / 2**20  # weight, gradient and two moments
    assert least < steps.peak_mib(quick, "cls", steps.TRUNK) < least + 150
