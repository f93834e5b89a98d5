from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fx_d2.benchmark import throughput
from fx_d2.benchmark.steps import bare_trunk_step


def test_switches_reach_the_model_and_the_step(quick):
    switches = throughput.Switches("bf16", channels_last=True)
    setting = quick.having(*switches.overrides())
    step, model = throughput.our_step(setting.cfg(), setting, "cls")
    kinds, formats = set(), set()
    conv = next(m for m in model.trunk.modules() if isinstance(m, torch.nn.Conv2d))

    def look(_, args, out):
        kinds.add(out.dtype)
        formats.add(args[0].is_contiguous(memory_format=torch.channels_last))

    conv.register_forward_hook(look)
    step()
    assert kinds == {torch.bfloat16} and formats == {True}


def test_every_combination_is_named_once():
    names = [s.name for s in throughput.all_switches(compiled=True)]
    assert len(set(names)) == len(names) == 8
    few = throughput.all_switches(compiled=False)
    assert len(few) == 4 and not any(s.compiled for s in few)


def test_operations_grow_with_the_batch_and_training_costs_three_forwards(quick):
    quick = replace(quick, size_px=224)  # where timm's own network has the windows of ours
    cfg = quick.cfg()
    cfg.defrost()
    cfg.MODEL.FX.CLS.LOCAL.IN_FEATURES = ()
    one = throughput.step_flops(cfg, replace(quick, batch=1), "cls")
    two = throughput.step_flops(cfg, replace(quick, batch=2), "cls")
    assert two == pytest.approx(2 * one, rel=0.02)
    _, bare = bare_trunk_step(cfg, replace(quick, batch=1), "cls")
    with torch.no_grad(), throughput.FlopCounterMode(display=False) as counter:
        bare.eval()(torch.zeros(1, 3, 224, 224))
    assert one == pytest.approx(3 * counter.get_total_flops(), rel=0.1)


@pytest.mark.slow
def test_rate_and_share_follow_from_the_times(quick, monkeypatch):
    ticks = iter(range(10_000))  # every timed run takes one second
    monkeypatch.setattr(throughput, "step_flops", lambda *_: 4000)
    table = throughput.measure_throughput(
        quick, 1, compiled=False, matmul_side=10, clock=lambda: next(ticks), quiet=True
    )
    assert len(table.rows) == 3 * 4
    for row in table.rows:
        assert row["rate"] == quick.batch
        assert row["share"] == 4000 / (2 * 10**3)
