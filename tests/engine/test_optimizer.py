from __future__ import annotations

import pytest
import timm
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from torch import nn

from fx_d2.config import add_fx_config
from fx_d2.data.source import TASKS
from fx_d2.engine.optimizer import NormClipper, build_optimizer, layer_of, parameter_groups
from fx_d2.engine.setup import load_config


class Toy(nn.Module):
    """A real tiny Swin as trunk, and a head."""

    def __init__(self) -> None:
        super().__init__()
        tiny = {"embed_dim": 12, "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2)}
        self.trunk = nn.Module()
        self.trunk.net = timm.create_model(
            "swin_tiny_patch4_window7_224", features_only=True, **tiny
        )
        self.trunk.norm = nn.LayerNorm(96)
        self.heads = nn.ModuleDict({"cls": nn.Linear(96, 3), "conv": nn.Conv2d(3, 3, 1)})


@pytest.fixture(scope="module")
def toy() -> Toy:
    return Toy()


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY = 1e-4, 0.05
    cfg.SOLVER.FX.LR_FACTORS = ("trunk.*=0.1",)
    return cfg


def settings(model: nn.Module, groups: list[dict]) -> dict[str, tuple[float, float]]:
    """{name: (lr, weight decay)}; fails when a parameter is in no group or in two."""
    by_id = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(by_id) == sum(len(g["params"]) for g in groups)
    names = dict(model.named_parameters())
    assert len(by_id) == len(names)
    return {name: by_id[id(p)] for name, p in names.items()}


def test_the_papers_preset(cfg: CfgNode, toy: Toy):
    found = settings(toy, parameter_groups(cfg, toy))
    assert {name.startswith("trunk.") for name in found} == {True, False}
    for name, (rate, decay) in found.items():
        assert rate == pytest.approx(1e-5 if name.startswith("trunk.") else 1e-4)
        spared = name.endswith(("bias", "relative_position_bias_table")) or "norm" in name
        assert decay == (0 if spared else 0.05), name
    assert sum("relative_position_bias_table" in n for n in found) == 5


def test_decay_of_everything_as_the_released_code(cfg: CfgNode, toy: Toy):
    cfg.SOLVER.FX.DECAY_ALL = True
    assert {d for _, d in settings(toy, parameter_groups(cfg, toy)).values()} == {0.05}


def test_locked_parameters_are_grouped_too(cfg: CfgNode):
    """Detectron2's builder leaves them out, and they would never be trained once released."""
    model = Toy()
    model.trunk.requires_grad_(False)
    settings(model, build_optimizer(cfg, model).param_groups)


def test_the_first_pattern_decides(cfg: CfgNode, toy: Toy):
    cfg.SOLVER.FX.LR_FACTORS = ("trunk.norm.*=0.5", "trunk.*=0.1", "heads.cls.*=2")
    found = settings(toy, parameter_groups(cfg, toy))
    assert found["trunk.norm.weight"][0] == pytest.approx(5e-5)
    assert found["trunk.net.patch_embed.proj.weight"][0] == pytest.approx(1e-5)
    assert found["heads.cls.weight"][0] == pytest.approx(2e-4)
    assert found["heads.conv.weight"][0] == pytest.approx(1e-4)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("LR_FACTORS", ("trnk.*=0.1",), ("trnk.*", "heads, trunk")),
        ("LR_FACTORS", ("trunk.*=0.1", "trunk.norm.*=1"), ("trunk.norm.*", "first pattern")),
        ("LR_FACTORS", ("trunk.*",), ("trunk.*", "name=number")),
        ("LR_FACTORS", ("trunk.*=-1",), ("trunk.*=-1", "0 or more")),
        ("NO_DECAY", ("*query*",), ("NO_DECAY", "*query*")),
        ("OPTIMIZER", "Adam", ("'Adam'", "AdamW")),
        ("LAYER_DECAY", 0.0, ("LAYER_DECAY", "0.0")),
    ],
)
def test_wrong_settings_are_errors(cfg: CfgNode, toy: Toy, key: str, value, words):
    cfg.SOLVER.FX[key] = value
    with pytest.raises(ValueError) as error:
        build_optimizer(cfg, toy)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_layer_wise_decay(cfg: CfgNode, toy: Toy):
    cfg.SOLVER.FX.LAYER_DECAY = 0.5
    found = settings(toy, parameter_groups(cfg, toy))
    block = "trunk.net.layers_{}.blocks.{}.attn.qkv.weight"
    rates = [found[block.format(*at)][0] for at in ((0, 0), (1, 0), (1, 1), (2, 0), (3, 0))]
    # The norm behind the last block has the trunk's own rate.
    assert found["trunk.norm.weight"][0] == pytest.approx(1e-5)
    assert rates == pytest.approx([1e-5 * 0.5**k for k in (5, 4, 3, 2, 1)])
    assert found["trunk.net.patch_embed.proj.weight"][0] == pytest.approx(1e-5 * 0.5**6)
    assert found["trunk.net.layers_1.downsample.reduction.weight"][0] == pytest.approx(rates[1])
    assert found["heads.cls.weight"][0] == pytest.approx(1e-4)
    with pytest.raises(ValueError, match="no blocks"):
        parameter_groups(cfg, nn.ModuleDict({"trunk": nn.Linear(2, 2)}))


@pytest.mark.parametrize(
    ("name", "blocks"), [("resnet18", 8), ("convnext_atto", 12), ("coatnet_0_rw_224", 14)]
)
def test_blocks_of_other_trunks(name: str, blocks: int):
    with torch.device("meta"):
        network = timm.create_model(name, features_only=True)
    depths = layer_of(f"trunk.net.{n}" for n, _ in network.named_parameters())
    assert set(depths.values()) == set(range(blocks + 1))


@pytest.mark.parametrize("kind", ["AdamW", "SGD"])
def test_a_step_moves_everything_and_fused_is_the_same(cfg: CfgNode, kind: str):
    cfg.SOLVER.FX.OPTIMIZER = kind
    results = []
    for fused in (False, True):
        cfg.SOLVER.FX.FUSED, cfg.SOLVER.FX.LR_FACTORS = fused, ()
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        before = [p.clone() for p in model.parameters()]
        optimizer = build_optimizer(cfg, model)
        model(torch.arange(8.0).view(2, 4).sin()).pow(3).sum().backward()
        optimizer.step()
        assert not any(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    torch.testing.assert_close(*results, rtol=0, atol=1e-7)


def test_clipping_by_task(cfg: CfgNode):
    cfg.SOLVER.FX.CLIP_NORM_BY = ("loc=0.1",)
    clip = NormClipper.from_config(cfg, TASKS)
    parameters = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(1))]

    def norm(task: str) -> tuple[float | None, float]:
        parameters[0].grad, parameters[1].grad = torch.tensor([3.0, 0.0]), torch.tensor([4.0])
        before = clip(parameters, task)
        grads = torch.cat([p.grad for p in parameters if p.grad is not None])
        return None if before is None else float(before), float(grads.norm())

    assert norm("loc") == pytest.approx((5.0, 0.1), abs=1e-5)  # all together, not one by one
    assert norm("cls") == (None, 5.0)
    cfg.SOLVER.FX.CLIP_NORM_BY = ("lok=0.1",)
    with pytest.raises(ValueError, match="lok"):
        NormClipper.from_config(cfg, TASKS)


@pytest.mark.parametrize("name", ["swin_t_11src_x", "swin_l_11src_xplus"])
def test_the_presets_fit_their_models(name: str, pytestconfig: pytest.Config):
    """On a tiny variant: no pattern of a preset is idle, and the rates are the paper's."""
    cfg = load_config(
        str(pytestconfig.rootpath / f"configs/foundation_x/{name}.yaml"),
        [
            *("MODEL.FX.SOURCES", "('siim_acr',)", "MODEL.DEVICE", "cpu"),
            *("MODEL.ROI_BOX_HEAD.FC_DIM", "8", "MODEL.FX.TRUNK.PRETRAINED", ""),
        ],
    ).clone()
    cfg.defrost()
    tiny = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}
    cfg.MODEL.FX.TRUNK.KWARGS.update(tiny)
    model = build_model(cfg)
    for parameter, (rate, _) in settings(model, parameter_groups(cfg, model)).items():
        assert rate == pytest.approx(1e-5 if parameter.startswith("trunk.") else 1e-4), parameter
    assert NormClipper.from_config(cfg, TASKS).by_task == {"loc": 0.1}
