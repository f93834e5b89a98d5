"""Switches of a trunk in training, and the depth of each of its parameters."""

from __future__ import annotations

import pytest
import torch
from tiny_trunks import TINY, shake, tiny


@pytest.mark.parametrize("family", TINY)
def test_checkpointing_recomputes_and_changes_no_gradient(family):
    x = torch.randn(2, 3, 64, 64)
    gradients, calls = [], []
    for on in (False, True):
        backbone = tiny(family, grad_checkpoint=on, img_size=(64, 64)).train()
        counted = [
            m
            for m in backbone.net.modules()
            if "Block" in type(m).__name__ or type(m).__name__ == "Bottleneck"
        ]
        runs: list[int] = []
        for module in counted:
            # Before the block: recomputing stops as soon as it has what it needs.
            module.register_forward_pre_hook(lambda *_, runs=runs: runs.append(1))
        torch.manual_seed(1)
        features = backbone(x)
        sum(f.square().mean() for f in features.values()).backward()
        gradients.append({n: p.grad for n, p in backbone.net.named_parameters()})
        calls.append(len(runs))
    assert 0 < calls[0] < calls[1]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("family", TINY)
def test_drop_path_acts_in_training_only(family):
    backbone = tiny(family, drop_path=0.3, img_size=(64, 64))
    shake(backbone)  # a branch that starts as zero shows nothing
    rates = [m.drop_prob for m in backbone.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.3)
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(backbone(x)["res5"], backbone(x)["res5"])
        for m in backbone.modules():  # drop path alone, not BatchNorm
            m.train(type(m).__name__ == "DropPath")
        drawn = [backbone(x)["res5"] for _ in range(8)]
        assert any(not torch.equal(drawn[0], d) for d in drawn[1:])
    assert not any(type(m).__name__ == "DropPath" for m in tiny(family).modules())


@torch.no_grad()
def test_bf16_and_channels_last_give_the_same_features():
    backbone = tiny("swin")
    x = torch.randn(1, 3, 64, 64)
    exact = backbone(x)
    last = backbone.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    for name, value in exact.items():
        torch.testing.assert_close(last[name], value, rtol=1e-4, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        rough = backbone.pooled(backbone(x))
    torch.testing.assert_close(rough.float(), backbone.pooled(exact), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("family", TINY)
def test_layer_ids_name_every_parameter_from_the_stem_up(family):
    backbone = tiny(family)
    ids = backbone.layer_ids()
    assert set(ids) == {name for name, _ in backbone.named_parameters()}
    assert sorted(set(ids.values())) == list(range(max(ids.values()) + 1))
    order = [i for name, i in ids.items() if name.startswith("net.")]
    assert order[0] == 0 and ids[list(ids)[-1]] == max(ids.values())
    assert order == sorted(order)
