"""The head of FPSM: equal to what it replaces where it should be, and every combination learns."""

from __future__ import annotations

import itertools

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from torch.nn import functional as F

from fx_d2.modeling.heads.classifier import LocalMap, MultiSourceClassifier
from fx_d2.modeling.heads.pyramid import (
    Layout,
    Level,
    LevelClassifier,
    PyramidClassifier,
    PyramidEncoder,
)
from fx_d2.modeling.heads.spec import HeadSpec

KEY = "MODEL__FX__CLS__PYRAMID__"
TRUNKS = {
    "tresnet_m": {"layers": [1, 1, 1, 1], "width_factor": 0.25},
    "resnet50": {"layers": [1, 1, 1, 1], "channels": [8, 16, 24, 32]},
    "swin_t": {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]},
}
LEVELS = ((4,), (4, 2), (4, 3, 2), (4, 3, 2, 1))
SHAPES = {f"res{i}": ShapeSpec(channels=4 * 2**i, stride=2**i) for i in range(2, 6)}


@pytest.fixture
def fpsm_cfg(tiny_cfg):
    """A config of FPSM with a tiny trunk and head."""

    def build(*sources, trunk="swin_t", **pyramid):
        cfg = tiny_cfg(*(sources or ("nih14",)), DATASETS__TASKS=("cls",))
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.FX.CLS.NAME = "FPSM", "PyramidClassifier"
        cfg.MODEL.FX.TRUNK.NAME = trunk
        cfg.MODEL.FX.TRUNK.KWARGS.clear()
        cfg.MODEL.FX.TRUNK.KWARGS.update(TRUNKS[trunk])
        cfg.MODEL.FX.CLS.PYRAMID.DIM = 16
        for key, value in pyramid.items():
            cfg.MODEL.FX.CLS.PYRAMID[key] = value
        return cfg

    return build


@pytest.fixture
def fpsm(fpsm_cfg):
    def build(*sources, **options):
        torch.manual_seed(0)
        return build_model(fpsm_cfg(*sources, **options))

    return build


def levels_of(dims, n=3, seed=0):
    """Levels of random places; the last image has padding."""
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for level, dim in dims.items():
        side = 2 ** (5 - level)
        places = torch.randn(n, dim, side, side, generator=generator)
        inside = torch.ones(n, 1, side, side, dtype=torch.bool)
        inside[-1, :, side // 2 :] = False
        vector = (places * inside).sum((2, 3)) / inside.sum((2, 3))
        result[level] = Level(vector, LocalMap(places, inside))
    return result


def head(dims, **options):
    torch.manual_seed(1)
    built = LevelClassifier(dims, {n: 2 ** (n + 1) for n in dims}, 5, **options)
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return built


@pytest.mark.parametrize("trunk", TRUNKS)
@pytest.mark.parametrize("fuse", ["sum", "concat"])
def test_level_4_alone_is_the_plain_classifier_on_the_last_stage(fpsm_cfg, item, trunk, fuse):
    """The same weights, the same logits and the same loss, with padding too."""
    has_norm = trunk == "swin_t"  # whose stages are raw; the others end in batch norm and ReLU
    cfg = fpsm_cfg(trunk=trunk, LEVELS=(4,), NECK="none", NORM=has_norm, FUSE=fuse)
    torch.manual_seed(0)
    mine = build_model(cfg).eval()
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.FX.CLS.NAME = "FoundationX", "MultiSourceClassifier"
    cfg.MODEL.FX.CLS.LOCAL.IN_FEATURES = ()
    plain = build_model(cfg).eval()
    names = {"heads.cls.nih14.joint.": "heads.cls.nih14.", "cls_encoder.norms.res5.": "trunk.norm."}
    renamed = {n: v for n, v in mine.state_dict().items() if not n.startswith("trunk.norm")}
    for old, new in names.items():
        renamed = {n.replace(old, new): v for n, v in renamed.items()}
    plain.load_state_dict(renamed)  # strict: there is nothing else
    batch = [item("nih14", "cls", i) for i in range(2)]
    batch[1]["content_size"] = (33, 64)
    a, b = mine(batch), plain(batch)
    for x, y in zip(a, b, strict=True):
        assert x["labels"]["nih14"] == pytest.approx(y["labels"]["nih14"], abs=1e-6)
    found = {
        k: m.heads["cls"].losses(_logits(m, batch), torch.ones(2, 14), "nih14")["loss_cls_bce"]
        for k, m in (("mine", mine), ("plain", plain))
    }
    torch.testing.assert_close(found["mine"], found["plain"])


def _logits(model, batch):
    images = model._images(batch)
    features = model.trunk(images.tensor)
    pooled = model._pooled(images, features)
    return model._label_logits(batch, images, features, pooled, model.specs)["nih14"]


@pytest.mark.parametrize("levels", LEVELS)
def test_the_sum_with_one_classifier_is_the_sum_of_the_features_up_to_the_bias(levels):
    dims = dict.fromkeys(levels, 6)
    built, given = head(dims, shared=True), levels_of(dims)
    found = built(given)
    layer = built.joint.linear
    summed = sum(level.vector for level in given.values()) @ layer.weight.T
    expected = summed + len(levels) * layer.bias
    torch.testing.assert_close(found.fused, expected)
    for level, alone in zip(given.values(), found.levels, strict=True):
        torch.testing.assert_close(alone, level.vector @ layer.weight.T + layer.bias)


def test_concat_without_a_hidden_layer_is_the_sum_of_a_classifier_each_up_to_the_bias():
    """Which is why the poster's two fusions can only differ where the sum shares a classifier."""
    dims = {4: 7, 3: 5, 2: 3}
    side_by_side, own = head(dims, fuse="concat"), head(dims, shared=False)
    parts = side_by_side.joint.linear.weight.split(list(dims.values()), dim=1)
    for level, part in zip(dims, parts, strict=True):
        own.own[f"level{level}"].linear.weight.data.copy_(part)
        own.own[f"level{level}"].linear.bias.data.copy_(side_by_side.joint.linear.bias)
    given = levels_of(dims)
    a, b = side_by_side(given), own(given)
    torch.testing.assert_close(a.fused + 2 * side_by_side.joint.linear.bias, b.fused)
    for x, y in zip(a.levels, b.levels, strict=True):
        torch.testing.assert_close(x, y)
    hidden = head(dims, fuse="concat", projector=8)(given)
    assert hidden.fused.shape == (3, 5) and len(hidden.levels) == 3


@pytest.mark.parametrize("fuse", ["sum", "concat"])
def test_weights_of_levels(fuse):
    dims = {4: 6, 3: 6, 2: 6}
    built = head(dims, fuse=fuse, weight="resolution")
    # Sides of the maps are as 1 to 2 to 4.
    torch.testing.assert_close(built.weights(), torch.tensor([3 / 7, 6 / 7, 12 / 7]))
    learned = head(dims, fuse=fuse, weight="learned")
    given = levels_of(dims)
    plain = head(dims, fuse=fuse)
    torch.testing.assert_close(learned(given).fused, plain(given).fused)  # equal at the start
    learned(given).fused.square().sum().backward()
    assert (learned.level_weights.grad != 0).any()
    learned.level_weights.data = torch.tensor([9.0, 0.0, 0.0])
    only = head(dims, fuse=fuse)
    for n in (3, 2):
        given[n] = Level(torch.zeros_like(given[n].vector), given[n].places)
    if fuse == "concat":
        given[4] = Level(given[4].vector * learned.weights()[0], given[4].places)
        torch.testing.assert_close(
            learned(levels_of(dims)).fused, only(given).fused, atol=0.02, rtol=0
        )
    else:
        expected = only.joint(levels_of(dims)[4].vector, None) * 3
        torch.testing.assert_close(learned(levels_of(dims)).fused, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize("fuse", ["sum", "concat"])
def test_csra_adds_the_places_that_speak_for_a_class(fuse):
    """Against a loop over images, classes and places."""
    dims = {4: 4, 3: 3} if fuse == "concat" else {4: 4, 3: 4}
    built = head(dims, fuse=fuse, pool="csra", csra_weight=0.3, csra_sharpness=2.0)
    plain = head(dims, fuse=fuse)
    plain.load_state_dict(built.state_dict())
    given = levels_of(dims)
    matrix = built.joint.linear.weight
    parts = matrix.split(list(dims.values()), dim=1) if fuse == "concat" else [matrix] * 2
    expected = plain(given).fused.clone()
    for part, level in zip(parts, given.values(), strict=True):
        for n, c in itertools.product(range(3), range(5)):
            places = level.places.features[n][:, level.places.inside[n, 0]].T
            votes = places @ part[c]
            expected[n, c] += 0.3 * (votes * torch.softmax(2 * votes, dim=0)).sum()
    found, without = built(given), plain(given)
    torch.testing.assert_close(found.fused, expected)
    # What a level says alone has its own places in it, so that its own loss sees them.
    gained = sum(a - b for a, b in zip(found.levels, without.levels, strict=True))
    torch.testing.assert_close(gained, expected - without.fused)
    with pytest.raises(ValueError, match="set MODEL.FX.CLS.PROJECTOR to 0"):
        head(dims, pool="csra", projector=8)


def test_losses_are_that_of_the_sum_and_half_of_each_level():
    spec = HeadSpec("one", "cls", ("a", "b"))
    dims, strides = {4: 3, 3: 3}, {4: 32, 3: 16}
    torch.manual_seed(0)
    built = PyramidClassifier(dims=dims, strides=strides, specs=[spec], aux=0.5)
    labels = torch.tensor([[1.0, torch.nan], [0.0, 1.0]])
    logits = built(None, levels_of(dims, n=2), "one")
    found = built.losses(logits, labels, "one")
    assert list(found) == ["loss_cls_bce", "loss_cls_levels"]
    known = ~labels.isnan()

    def bce(z):
        return F.binary_cross_entropy_with_logits(z[known], labels[known])

    torch.testing.assert_close(found["loss_cls_bce"], bce(logits.fused))
    torch.testing.assert_close(found["loss_cls_levels"], 0.5 * sum(bce(z) for z in logits.levels))
    for row, (mine,) in zip(
        logits.fused.sigmoid().tolist(), _one_by_one(built, logits), strict=True
    ):
        assert mine == pytest.approx(dict(zip("ab", row, strict=True)))  # all levels together
    alone = PyramidClassifier(dims={4: 3}, strides={4: 32}, specs=[spec], aux=0.5)
    assert list(alone.losses(alone(None, levels_of({4: 3}, n=2), "one"), labels, "one")) == [
        "loss_cls_bce"
    ]
    nothing = built.losses(
        built(None, levels_of(dims, n=2), "one"), torch.full((2, 2), torch.nan), "one"
    )
    sum(nothing.values()).backward()
    assert all((p.grad == 0).all() for p in built.parameters())


def _one_by_one(built, logits):
    return [
        built.inference(type(logits)(f[None], tuple(z[None] for z in levels)), "one")
        for f, *levels in zip(logits.fused, *logits.levels, strict=True)
    ]


@pytest.mark.parametrize("neck", ["fpn", "none"])
def test_padding_and_coarser_levels(neck):
    """Padding enters no mean; with a neck a level sees the coarser ones and never the finer."""

    dim = 8 if neck == "fpn" else 0
    stages = {4: "res5", 3: "res4", 2: "res3"}
    shapes = {name: SHAPES[name] for name in stages.values()}
    torch.manual_seed(0)
    encoder = PyramidEncoder(Layout(stages, shapes, dim), norm=True)
    features = {
        k: torch.randn(2, s.channels, 96 // s.stride, 64 // s.stride) for k, s in shapes.items()
    }
    found = encoder(features, [(96, 64), (40, 64)])
    sizes = [dim or s.channels for s in shapes.values()]
    assert [level.vector.shape for level in found.values()] == [(2, n) for n in sizes]
    assert found[2].places.inside[1, 0, :, 0].tolist() == [True] * 5 + [False] * 7
    changed = {**features, "res3": torch.randn_like(features["res3"])}
    again = encoder(changed, [(96, 64), (40, 64)])
    assert torch.equal(again[4].vector, found[4].vector)
    assert torch.equal(again[3].vector, found[3].vector)
    assert not torch.equal(again[2].vector, found[2].vector)
    changed = {**features, "res5": torch.randn_like(features["res5"])}
    again = encoder(changed, [(96, 64), (40, 64)])
    assert torch.equal(again[2].vector, found[2].vector) == (neck == "none")
    if neck == "none":
        padded = {k: v.clone() for k, v in features.items()}
        for name, s in shapes.items():
            padded[name][1, :, -(-40 // s.stride) :] = 1e6
        again = encoder(padded, [(96, 64), (40, 64)])
        assert all(torch.equal(again[n].vector, found[n].vector) for n in found)


GRID = list(itertools.product(LEVELS, ["fpn", "none"], ["sum", "own", "concat"]))


@pytest.mark.parametrize("trunk", TRUNKS)
def test_every_combination_predicts_and_every_parameter_learns(fpsm, item, trunk):
    for number, (levels, neck, fuse) in enumerate(GRID):
        shared = fuse == "sum"
        if shared and neck == "none" and len(levels) > 1:
            continue  # refused, see below
        options = {
            "WEIGHT": ("one", "resolution", "learned")[number % 3],
            "POOL": ("avg", "csra")[number % 2],
            "CONTEXT": (("synthetic", "view"), ())[number % 2],
        }
        model = fpsm(
            trunk=trunk,
            LEVELS=levels,
            NECK=neck,
            FUSE="concat" if fuse == "concat" else "sum",
            SHARED=shared,
            **options,
        )
        model.trunk.requires_grad_(False)  # the same in all; its gradient is looked at once
        batch = [item("nih14", "cls", i) for i in range(2)]
        losses = model.train()(batch)
        assert all(torch.isfinite(v) for v in losses.values())
        assert ("loss_cls_levels" in losses) == (len(levels) > 1)
        sum(losses.values()).backward()
        idle = {
            n
            for n, p in model.named_parameters()
            if not n.startswith("trunk.") and (p.grad is None or not torch.isfinite(p.grad).all())
        }
        assert not idle, (levels, neck, fuse, options)
        moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()}
        expected = {n for n, _ in model.named_parameters() if not n.startswith("trunk.")}
        # With one level its weight is 1 whatever is learned.
        still = {n for n in expected - moved if "level_weights" not in n or len(levels) > 1}
        assert not still, (levels, neck, fuse, options)
        for output in model.eval()(batch):
            assert len(output["labels"]["nih14"]) == 14
            assert all(0 < p < 1 for p in output["labels"]["nih14"].values())


@pytest.mark.parametrize("trunk", TRUNKS)
def test_the_trunk_learns_from_every_level(fpsm, item, trunk):
    model = fpsm(trunk=trunk, LEVELS=(4, 3, 2, 1)).train()
    batch = [item("nih14", "cls", i) for i in range(2)]
    sum(model(batch).values()).backward()
    parameters = dict(model.trunk.named_parameters())
    idle = {n for n, p in parameters.items() if p.grad is None}
    assert all(n.startswith("norm.") for n in idle), idle  # the plain classifier's own
    # Residual branches of timm start at zero, and what is within them with a gradient of zero.
    moved = [n for n, p in parameters.items() if p.grad is not None and p.grad.any()]
    assert len(moved) > len(parameters) / 4


def test_a_context_changes_the_prediction_only_where_it_was_learned(fpsm, item):
    model = fpsm("mura", CONTEXT=("synthetic", "body_part", "view", "source")).eval()
    assert model.cls_encoder.context.rows["source"] == {"unknown": 0, "mura": 1}
    batch = [item("mura", "cls", 0) for _ in range(4)]
    batch[1]["synthetic"], batch[2]["body_part"], batch[3]["view"] = True, "WRIST", "LATERAL"

    def probabilities():
        return [found["labels"]["mura"]["Abnormal"] for found in model(batch)]

    assert len(set(probabilities())) == 1
    for table in model.cls_encoder.context.tables.values():
        torch.nn.init.normal_(table.weight, std=3.0)
    assert len(set(probabilities())) == 4
    for row in batch[1:]:
        row.update(synthetic=False, body_part="SKULL", view=None)  # nothing known
    assert len(set(probabilities())) == 1


def test_the_head_stands_in_a_model_with_boxes_and_masks(tiny_model, item):
    options = {"MODEL__FX__CLS__NAME": "PyramidClassifier", f"{KEY}DIM": 16}
    model = tiny_model("chestx_det", "nih14", **options).train()
    for task in ("cls", "loc", "seg"):
        losses = model([item("chestx_det", task, i) for i in range(2)])
        assert all(torch.isfinite(v) for v in losses.values())
    (output,) = model.eval()([item("nih14", "cls", 0)])
    assert set(output["labels"]) == {"chestx_det", "nih14"} and output["masks"]


def test_wrong_settings_are_named(fpsm, fpsm_cfg):
    for options, words in (
        ({"LEVELS": (4, 5)}, r"LEVELS is \(4, 5\); name some of 4, 3, 2, 1"),
        ({"LEVELS": ()}, "LEVELS is"),
        ({"NECK": "bifpn"}, "NECK is 'bifpn'; allowed: fpn, none"),
        ({"FUSE": "max"}, "FUSE is 'max'; allowed: sum, concat"),
        ({"WEIGHT": "two"}, "WEIGHT is 'two'"),
        ({"POOL": "max"}, "POOL is 'max'"),
        ({"CONTEXT": ("age",)}, "CONTEXT is 'age'; allowed: synthetic, view"),
        ({"AUX": -1.0}, "AUX is -1.0"),
        ({"NECK": "none", "SHARED": True}, "SHARED needs levels of one length"),
    ):
        with pytest.raises(ValueError, match=words):
            fpsm(**options)
    cfg = fpsm_cfg()
    cfg.MODEL.FX.CLS.NAME = "MultiSourceClassifier"
    with pytest.raises(ValueError, match="FPSM has MODEL.FX.CLS.NAME 'MultiSourceClassifier'"):
        build_model(cfg)
    cfg = fpsm_cfg("rsna")
    cfg.DATASETS.TASKS = ("cls", "loc")
    with pytest.raises(ValueError, match="learns image labels, not rsna/loc"):
        build_model(cfg)
    assert issubclass(PyramidClassifier, MultiSourceClassifier)
