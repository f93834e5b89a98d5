"""Adapters of whole maps: the same output at the start, what is trained, where they stand."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase

import pytest
import torch

from fx_d2.engine.optimizer import build_optimizer
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.tuning import tune
from fx_d2.modeling.adapters import lock_for_tuning, norm_parameters
from fx_d2.modeling.seg_adapters import MapAdapter

SOURCES = ("chestx_det", "rsna")
MODE = {"MODEL__FX__TUNE__MODE": "seg_adapters"}
STAGES = ("res2", "res3", "res4", "res5")
DECODERS = {
    "pyramid": ("pooling", ""),
    "upernet": ("pooling", ""),
    "pspnet": ("",),  # ends with its pooling: one adapter is enough
    "fpn": ("",),
}


def options(decoder: str, **more):
    width = 32 if decoder == "fpn" else 24  # whose norms have 32 groups
    wide = {"MODEL__FX__SEG__CHANNELS": width, "MODEL__FX__SEG__DECODER": decoder}
    return {**wide, **MODE, **more}


def randomise(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, MapAdapter):
            torch.nn.init.normal_(module.up.weight, std=0.1)


@pytest.mark.parametrize("decoder", DECODERS)
@torch.no_grad()
def test_the_start_is_bit_identical(tiny_model, item, decoder):
    given = options(decoder)
    plain = tiny_model(*SOURCES, **{**given, "MODEL__FX__TUNE__MODE": "full"}).eval()
    tuned = tiny_model(*SOURCES, **given).eval()
    missing, unexpected = tuned.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected
    places = {name.rpartition(".map_adapter")[0] for name in missing}
    decoded = {f"seg_decoder.{place}".rstrip(".") for place in DECODERS[decoder]}
    assert places == {"trunk"} | decoded
    stages = {n.split(".")[2] for n in missing if n.startswith("trunk.")}
    assert stages == set(STAGES)
    x = [item("chestx_det", "seg")]
    before = plain.seen(x, "seg")["decoded"]
    assert torch.equal(tuned.seen(x, "seg")["decoded"], before)
    for ours, theirs in zip(
        tuned.trunk(x[0]["image"][None]).values(),
        plain.trunk(x[0]["image"][None]).values(),
        strict=True,
    ):
        assert torch.equal(ours, theirs)
    # Each of them does run: of other values the output differs.
    for name, module in tuned.named_modules():
        if isinstance(module, MapAdapter):
            torch.nn.init.normal_(module.up.weight, std=0.1)
            assert not torch.equal(tuned.seen(x, "seg")["decoded"], before), name
            module.up.weight.zero_()


def test_an_adapter_adds_what_its_bottleneck_makes_of_every_place():
    torch.manual_seed(0)
    adapter, x = MapAdapter(12, 5), torch.randn(2, 12, 3, 4)
    assert adapter.down.out_channels == 2 and MapAdapter(3, 8).down.out_channels == 1
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter)
    with torch.no_grad():
        found = adapter(x)
    down, up = adapter.down.weight[:, :, 0, 0], adapter.up.weight[:, :, 0, 0]
    for n, i, j in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        hidden = (down @ x[n, :, i, j] + adapter.down.bias).clamp(min=0)
        expected = x[n, :, i, j] + up @ hidden + adapter.up.bias
        torch.testing.assert_close(found[n, :, i, j], expected.detach())


def test_a_copy_reads_its_own_adapters(tiny_model, item):
    """As the teacher of a student does."""
    model = tiny_model(*SOURCES, **MODE).eval()
    other = copy.deepcopy(model)
    randomise(other)
    x = [item("chestx_det", "seg")]
    with torch.no_grad():
        assert not torch.equal(model.seen(x, "seg")["decoded"], other.seen(x, "seg")["decoded"])


@pytest.mark.parametrize("norms", [True, False])
def test_a_step_moves_exactly_adapters_heads_and_norms(tiny_cfg, tiny_model, item, norms):
    given = {**MODE, "MODEL__FX__TUNE__NORMS": norms}
    cfg = tiny_cfg(*SOURCES, **given)
    model = tiny_model(*SOURCES, **given).train()
    optimizer = build_optimizer(cfg, model)
    trained, total = lock_for_tuning(model, cfg.MODEL.FX.TUNE)
    affine = set(norm_parameters(model))
    assert {n for n in affine if n.startswith("trunk.")} and {
        n for n in affine if n.startswith("seg_decoder.")
    }
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):  # "down" has a gradient once "up" is not zero
        optimizer.zero_grad(set_to_none=True)
        sum(model([item("chestx_det", "seg")]).values()).backward()
        optimizer.step()
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert all(
        ".map_adapter." in n or n.startswith("heads.") or (norms and n in affine) for n in moved
    )
    adapters = {n for n in before if ".map_adapter." in n}
    assert adapters <= moved and len(adapters) == 4 * (len(STAGES) + 2)
    assert bool(moved & affine - {n for n in affine if n.startswith("heads.")}) is norms
    own = [
        p.numel()
        for n, p in model.named_parameters()
        if any(fnmatchcase(n, w) for w in ("heads.*", "cls_encoder.*", "loc_decoder.*"))
        or ".map_adapter." in n
        or (norms and n in affine)
    ]
    assert trained == sum(own) < total == sum(p.numel() for p in model.parameters())


def test_without_norms_no_gradient_goes_through_the_trunk(tiny_cfg, tiny_model, item):
    given = {**MODE, "MODEL__FX__TUNE__NORMS": False}
    model = tiny_model(*SOURCES, **given).train()
    lock_for_tuning(model, tiny_cfg(*SOURCES, **given).MODEL.FX.TUNE)
    assert not any(x.requires_grad for x in model.trunk.net(torch.rand(1, 3, 64, 64)))
    losses = model([item("chestx_det", "cls")])  # its stages are adapted for other tasks too
    sum(losses.values()).backward()
    assert model.trunk.map_adapter["res5"].up.weight.grad.abs().sum() > 0


def test_a_stage_that_nothing_reads_gets_none(tiny_model, item):
    """It would count as trained and never learn."""
    only = {"DATASETS__TASKS": ("seg",), "MODEL__FX__SEG__IN_FEATURES": ("res4", "res5")}
    model = tiny_model("chestx_det", **MODE, **only).train()
    assert list(model.trunk.map_adapter) == ["res4", "res5"]
    randomise(model)
    sum(model([item("chestx_det", "seg")]).values()).backward()
    adapted = {n: p.grad for n, p in model.named_parameters() if ".map_adapter." in n}
    assert len(adapted) == 4 * 4 and all(grad is not None for grad in adapted.values())
    assert all(grad.any() for n, grad in adapted.items() if n.endswith("up.bias"))


def test_widths_of_the_bottleneck():
    assert MapAdapter(64, 8).down.out_channels == 8 and MapAdapter(4, 8).down.out_channels == 1
    x = torch.randn(1, 64, 3, 3)
    assert torch.equal(MapAdapter(64, 8)(x), x)


def test_wrong_settings_are_named(tiny_cfg, tiny_model):
    with pytest.raises(ValueError, match="REDUCTION is 0; allowed: 1 and more"):
        tiny_model(*SOURCES, **MODE, MODEL__FX__TUNE__REDUCTION=0)
    cfg = tiny_cfg(*SOURCES, **MODE)
    with pytest.raises(
        ConfigError, match=r"'seg_adapters' would lock trunk.*MODEL.WEIGHTS is empt"
    ):
        tune(cfg, tiny_model(*SOURCES, **MODE))
