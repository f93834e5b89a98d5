"""Ways of tuning: what each trains, what it leaves alone, and LoRA as plain weights."""

from __future__ import annotations

import copy

import pytest
import torch
from detectron2.config import CfgNode
from safetensors.torch import save_file

from fx_d2.engine.optimizer import build_optimizer
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.tuning import tune
from fx_d2.modeling.adapters import MODES, Branch, add_branches, fold_lora, lock_for_tuning

SOURCES = ("chestx_det", "rsna")
BRANCHED = ("lora", "adapters")


def node(**options) -> CfgNode:
    base = {"MODE": "full", "ALSO": (), "LAST_BLOCKS": 1, "RANK": 4, "ALPHA": 16.0, "MODULES": ()}
    return CfgNode({**base, **options})


def step(model, item, optimizer, task="seg") -> None:
    optimizer.zero_grad(set_to_none=True)
    sum(model([item("chestx_det", task)]).values()).backward()
    optimizer.step()


@pytest.mark.parametrize("mode", BRANCHED)
@torch.no_grad()
def test_the_start_is_bit_identical(tiny_model, item, mode):
    plain = tiny_model(*SOURCES).eval()
    tuned = tiny_model(*SOURCES, MODEL__FX__TUNE__MODE=mode).eval()
    missing, unexpected = tuned.load_state_dict(plain.state_dict(), strict=False)
    assert not unexpected and missing
    assert all(".lora." in name or ".adapter." in name for name in missing)
    assert all(name.startswith("trunk.net.layers.") for name in missing)
    x = torch.rand(2, 3, 64, 64)
    for ours, theirs in zip(tuned.trunk(x).values(), plain.trunk(x).values(), strict=True):
        assert torch.equal(ours, theirs)
    # And the branches do run: of any other values the output differs.
    for module in tuned.modules():
        if isinstance(module, Branch):
            torch.nn.init.normal_(module.up.weight, std=0.1)
            before = tuned.trunk(x)["res5"]
            module.up.weight.zero_()
            assert not torch.equal(before, tuned.trunk(x)["res5"])


# The others; "seg_adapters" has tests of its own.
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "seg_adapters"])
def test_a_step_moves_exactly_what_is_trained(tiny_cfg, tiny_model, item, mode):
    options = {"MODEL__FX__TUNE__MODE": mode, "MODEL__FX__TUNE__LAST_BLOCKS": 1}
    model = tiny_model(*SOURCES, **options).train()
    optimizer = build_optimizer(tiny_cfg(*SOURCES, **options), model)
    trained, total = lock_for_tuning(model, tiny_cfg(*SOURCES, **options).MODEL.FX.TUNE)
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    before = copy.deepcopy(model.state_dict())
    for _ in range(2):  # the first layer of a branch has a gradient once the second is not zero
        step(model, item, optimizer)
    moved = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved <= names and {n for n in moved if n.startswith("heads.seg.chestx_det")}
    in_trunk = {n for n in moved if n.startswith("trunk.")}
    wanted = {
        "full": lambda n: not n.startswith("trunk.norm"),
        "heads": lambda n: False,
        "last_blocks": lambda n: n.startswith("trunk.net.layers.3."),
        "lora": lambda n: ".lora." in n,
        "adapters": lambda n: ".adapter." in n,
    }[mode]
    assert in_trunk == {n for n in before if n.startswith("trunk.") and wanted(n)}
    assert trained == sum(p.numel() for n, p in model.named_parameters() if n in names)
    assert total == sum(p.numel() for p in model.parameters())
    assert (trained == total) == (mode == "full")
    if mode == "heads":
        parts = {".".join(n.split(".")[:2]) for n in names}
        assert parts == {
            "heads.cls",
            "heads.loc",
            "heads.seg",
            *(p for p in parts if "cls_enc" in p),
        }


@torch.no_grad()
def test_lora_becomes_plain_weights(tiny_model):
    tuned = tiny_model(*SOURCES, MODEL__FX__TUNE__MODE="lora", MODEL__FX__TUNE__ALPHA=4.0).eval()
    rng = torch.Generator().manual_seed(1)
    for name, value in tuned.state_dict().items():
        if ".lora." in name:
            value.copy_(0.1 * torch.randn(value.shape, generator=rng))
    plain = tiny_model(*SOURCES).eval()
    x = torch.rand(2, 3, 64, 64)
    before = plain.trunk(x)["res5"]
    plain.load_state_dict(fold_lora(tuned.state_dict(), 4.0))  # strict: nothing is left over
    wanted = tuned.trunk(x)["res5"]
    torch.testing.assert_close(plain.trunk(x)["res5"], wanted, rtol=1e-4, atol=1e-4)
    assert (before - wanted).abs().max() > 0.05
    broken = {n: v for n, v in tuned.state_dict().items() if not n.endswith("qkv.lora.up.weight")}
    with pytest.raises(ValueError, match="is not whole"):
        fold_lora(broken, 4.0)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"MODE": "lorra"}, "'lorra'; allowed: full, heads"),
        ({"MODE": "lora", "RANK": 0}, "RANK is 0"),
        ({"MODE": "lora", "MODULES": ("*.qqv",)}, r"'\*.qqv' is no module.*qkv"),
        ({"MODE": "lora", "MODULES": ("*.mlp",)}, "mlp is a Mlp; LoRA is for Linear"),
        ({"MODE": "adapters", "MODULES": ("*.norm1",)}, "norm1 ends with no Linear"),
        ({"MODE": "last_blocks", "LAST_BLOCKS": 9}, "LAST_BLOCKS is 9; allowed: 1 to 4"),
        ({"MODE": "heads", "ALSO": ("seg_decodr.*",)}, "seg_decodr"),
    ],
)
def test_wrong_settings_are_named(tiny_model, options, match):
    given = {f"MODEL__FX__TUNE__{key}": value for key, value in options.items()}
    with pytest.raises(ValueError, match=match):
        lock_for_tuning(tiny_model(*SOURCES, **given), node(**options))


def test_a_trunk_without_such_layers_is_told():
    with pytest.raises(
        ValueError, match="finds nothing like.*name MODEL.FX.TUNE.MODULES, such as 0"
    ):
        add_branches(torch.nn.Sequential(torch.nn.Linear(2, 2)), node(MODE="lora"))


def test_nothing_is_locked_at_random_weights(tiny_cfg, tiny_model, tmp_path):
    def run(model=None, **options):
        cfg = tiny_cfg(*SOURCES, MODEL__FX__TUNE__MODE="heads", **options)
        tune(cfg, model or tiny_model(*SOURCES))

    with pytest.raises(ConfigError, match=r"lock trunk, .*MODEL.WEIGHTS is empty"):
        run()
    state = tiny_model(*SOURCES).state_dict()
    no_decoder = {n: v for n, v in state.items() if not n.startswith("seg_decoder.")}
    save_file(no_decoder, tmp_path / "part.safetensors")
    weights = {"MODEL__WEIGHTS": str(tmp_path / "part.safetensors")}
    with pytest.raises(ConfigError, match=r"would lock seg_decoder at random.*ALSO"):
        run(**weights)
    model = tiny_model(*SOURCES)
    run(model, **weights, MODEL__FX__TUNE__ALSO=("seg_decoder.*",))
    assert all(
        p.requires_grad == n.startswith(("heads.", "cls_encoder.", "seg_decoder."))
        for n, p in model.named_parameters()
    )
    with pytest.raises(ConfigError, match="CYCLE.NAME"):
        run(**weights, CYCLE__NAME="paper")
