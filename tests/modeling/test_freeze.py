from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from fx_d2.engine.cycle import GROUPS
from fx_d2.modeling.freeze import group_parameters, set_trainable


class Small(nn.Module):
    """A trunk and a head, each with a layer of every kind that depends on the mode."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.BatchNorm2d(4, affine=False)
        )
        self.head = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Conv2d(4, 1, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.trunk(x)).square().mean()


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 3) -> None:
    for number in range(count):
        torch.manual_seed(number)
        model.train()  # as a trainer does after an evaluation
        loss = model(torch.rand(4, 1, 3, 3))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def state(model: nn.Module, prefix: str = "") -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items() if k.startswith(prefix)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("make", [torch.optim.AdamW, torch.optim.SGD])
def test_locked_is_bit_identical_and_released_moves(make: Any):
    model = Small()
    options = {"momentum": 0.9} if make is torch.optim.SGD else {}
    optimizer = make(model.parameters(), lr=0.1, weight_decay=0.1, **options)
    steps(model, optimizer)  # momentum that would go on moving it
    model(torch.rand(4, 1, 3, 3)).backward()  # and a gradient that is stored
    trunk = state(model, "trunk")
    assert set_trainable(model, ["head.*"]) == 4 + 4 + 4 + 1
    optimizer.step()  # before any zero_grad
    assert same(trunk, state(model, "trunk"))
    head = state(model, "head")
    steps(model, optimizer)
    assert same(trunk, state(model, "trunk"))
    moved = state(model, "head")
    assert not any(torch.equal(head[name], moved[name]) for name in head)
    set_trainable(model, ["*"])
    steps(model, optimizer)
    after = state(model, "trunk")
    assert not any(torch.equal(trunk[name], after[name]) for name in trunk)


def test_parameters_only():
    """The released code: gradients are off, statistics move."""
    model = Small()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    before = state(model, "trunk")
    set_trainable(model, ["head.*"], layers="train")
    steps(model, optimizer)
    moved = {name for name, value in state(model, "trunk").items() if not value.equal(before[name])}
    assert moved and all("running" in name or "num_batches" in name for name in moved)
    assert all(module.training for module in model.modules())


def test_locked_layers_are_as_in_prediction():
    model = Small().train()
    set_trainable(model, ["head.*"])
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes == {
        **dict.fromkeys(["", "trunk", "head", "head.0", "head.1", "head.2"], True),
        **dict.fromkeys(["trunk.0", "trunk.1", "trunk.2", "trunk.3"], False),
    }
    x = torch.rand(4, 1, 3, 3)
    assert torch.equal(model.trunk(x), model.trunk(x))
    model.train()
    model(x)
    assert not model.trunk[1].training  # every forward pass sees to it
    set_trainable(model, ["trunk.*"])
    assert model.trunk[1].training and model.trunk[2].training and not model.head[1].training
    set_trainable(model, ["*"])
    assert all(module.training for module in model.modules())
    set_trainable(model, ["head.*"])
    model.eval()
    set_trainable(model, ["*"])
    assert not any(module.training for module in model.modules())
    assert len(model._forward_pre_hooks) == 1


def test_a_layer_is_still_when_all_of_it_is_locked():
    model = Small().train()
    set_trainable(model, ["trunk.1.weight", "head.*"])
    assert model.trunk[1].training and not model.trunk[0].training
    assert not model.trunk[1].bias.requires_grad


def test_a_copy_is_on_its_own():
    model = Small().train()
    set_trainable(model, ["head.*"])
    twin = copy.deepcopy(model).train()
    twin(torch.rand(4, 1, 3, 3))
    assert not twin.trunk[1].training
    set_trainable(twin, ["*"])
    model.train()(torch.rand(4, 1, 3, 3))
    assert not model.trunk[1].training and twin.trunk[1].training


def test_patterns_that_name_nothing():
    model = Small()
    with pytest.raises(ValueError, match=r"'trnk.\*' names no parameter.*trunk, head"):
        set_trainable(model, ["head.*", "trnk.*"])
    with pytest.raises(ValueError, match="trunk.0.weights"):
        set_trainable(model, ["trunk.0.weights"])
    assert all(p.requires_grad for p in model.parameters())  # nothing was changed
    with pytest.raises(ValueError, match="'evaluation'"):
        set_trainable(model, ["*"], layers="evaluation")


def test_every_parameter_is_in_exactly_one_group():
    model = Small()
    found = group_parameters(model, {"a": ["trunk.*"], "b": ["head.*"], "c": ["none.*"]})
    assert set(found["a"]) | set(found["b"]) == {n for n, _ in model.named_parameters()}
    assert not set(found["a"]) & set(found["b"]) and found["c"] == ()
    with pytest.raises(ValueError, match=r"parameter head.0.weight is in no group.*a \(trunk"):
        group_parameters(model, {"a": ["trunk.*"]})
    with pytest.raises(ValueError, match="trunk.0.weight is in the groups a and b"):
        group_parameters(model, {"a": ["trunk.*"], "b": ["*"]})
    model.head[2].weight = model.trunk[0].weight
    with pytest.raises(ValueError, match=r"trunk.0.weight, shared with head.2.weight,.*a and b"):
        group_parameters(model, {"a": ["trunk.*"], "b": ["head.*"]})


@pytest.mark.parametrize("shared", [False, True])
def test_the_groups_of_the_table_hold_all_of_foundation_x(
    tiny_model: Callable[..., nn.Module], shared: bool
):
    model = tiny_model("chestx_det", "rsna", MODEL__FX__LOC__SHARED_DECODER=shared)
    found = group_parameters(model, {name: group.patterns for name, group in GROUPS.items()})
    assert sum(map(len, found.values())) == len(list(model.parameters())) and all(found.values())
    alone = tiny_model("nih14")  # classification only
    found = group_parameters(alone, {name: group.patterns for name, group in GROUPS.items()})
    assert {name for name, names in found.items() if names} == {"backbone", "cls_head"}


@pytest.mark.parametrize(
    ("task", "trained"),
    [("cls", "cls_head"), ("loc", "loc_decoder"), ("seg", "seg_head")],
)
def test_a_lock_phase_of_foundation_x(
    tiny_model: Callable[..., nn.Module],
    item: Callable[..., dict[str, Any]],
    task: str,
    trained: str,
):
    """All but the head is bit-identical, buffers too; a locked encoder still gives losses."""
    model = tiny_model("chestx_det", MODEL__FX__TRUNK__DROP_PATH=0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    batch = [item("chestx_det", task, number) for number in range(2)]

    def step() -> dict[str, torch.Tensor]:
        model.train()
        losses = model(batch)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        return losses

    released = step()
    set_trainable(model, GROUPS[trained].patterns[:1])
    before = state(model)
    assert step().keys() == released.keys()
    step()
    after = state(model)
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved and all(name.startswith(f"heads.{task}.") for name in moved)
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)
    # Drop path of a locked trunk is off: the same image gives the same features.
    image = torch.rand(2, 3, 64, 64)
    first, second = (model.trunk(image)["res5"] for _ in range(2))
    assert torch.equal(first, second)
