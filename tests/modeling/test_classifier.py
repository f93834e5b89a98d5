from __future__ import annotations

import math

import pytest
import torch
from detectron2.layers import ShapeSpec

from fx_d2.modeling.heads.classifier import (
    CLASSIFIER_REGISTRY,
    LocalEncoder,
    LocalMap,
    MultiSourceClassifier,
    SourceClassifier,
    build_classifier,
)
from fx_d2.modeling.heads.spec import HeadSpec

SPECS = [
    HeadSpec("multi", "cls", ("a", "b", "c")),
    HeadSpec("single", "cls", ("x",), kind="binary"),
    HeadSpec("exclusive", "cls", ("p", "q", "r"), kind="multiclass"),
]
SHAPES = {f"res{i}": ShapeSpec(channels=8 * 2**i, stride=2**i) for i in range(2, 6)}


def classifier(**options):
    torch.manual_seed(0)
    return MultiSourceClassifier(specs=SPECS, in_dim=12, **options)


def local_map(features, inside=None):
    if inside is None:
        inside = torch.ones(len(features), 1, *features.shape[-2:], dtype=torch.bool)
    return LocalMap(features, inside)


def test_the_papers_classifier_is_one_linear_layer_on_the_pooled_stage(tiny_cfg):
    cfg = tiny_cfg("chexpert", "rsna", MODEL__FX__CLS__LOCAL__IN_FEATURES=())
    assert LocalEncoder.from_config(cfg, SHAPES) is None
    built = build_classifier(cfg, SHAPES)
    assert isinstance(built, CLASSIFIER_REGISTRY.get("MultiSourceClassifier"))
    assert set(built.state_dict()) == {
        f"{source}.linear.{kind}" for source in ("chexpert", "rsna") for kind in ("weight", "bias")
    }
    pooled = torch.randn(2, 256)
    layer = built.chexpert.linear
    expected = pooled @ layer.weight.T + layer.bias
    assert torch.allclose(built(pooled, None, "chexpert"), expected, atol=1e-6)


def test_swin_b_has_the_papers_number_of_parameters(tiny_cfg):
    """69 outputs on 1024 channels (1.2)."""
    names = "chexpert nih14 vindr_cxr shenzhen mimic_cxr tbx11k node21 candid_ptx rsna chestx_det"
    cfg = tiny_cfg(*names.split(), "siim_acr", MODEL__FX__CLS__LOCAL__IN_FEATURES=())
    built = build_classifier(cfg, {"res5": ShapeSpec(channels=1024, stride=32)})
    assert sum(p.numel() for p in built.parameters()) == 70725


@pytest.mark.parametrize(("sharpness", "limit"), [(1e-3, "avg"), (300.0, "max")])
@pytest.mark.parametrize("pool", ["lse", "attention"])
def test_pooling_lies_between_the_mean_and_the_maximum(pool, sharpness, limit):
    torch.manual_seed(0)
    features, pooled = torch.randn(2, 4, 3, 5), torch.zeros(2, 6)
    soft = SourceClassifier(6, 3, local_dim=4, pool=pool, sharpness=sharpness)
    hard = SourceClassifier(6, 3, local_dim=4, pool=limit)
    soft.votes.weight.data.normal_()
    hard.load_state_dict(soft.state_dict())
    a, b = soft(pooled, local_map(features)), hard(pooled, local_map(features))
    assert torch.allclose(a, b, atol=0.03)


@pytest.mark.parametrize("pool", ["lse", "attention", "max", "avg"])
def test_padding_has_no_vote_and_no_gradient(pool):
    head = SourceClassifier(6, 3, local_dim=4, pool=pool)
    features = torch.randn(2, 4, 4, 4)
    inside = torch.zeros(2, 1, 4, 4, dtype=torch.bool)
    inside[0, :, :2], inside[1] = True, True
    features.requires_grad_()
    logits = head(torch.zeros(2, 6), local_map(features, inside))
    logits.sum().backward()
    assert (features.grad[0, :, 2:] == 0).all() and (features.grad[0, :, :2] != 0).any()
    cut = head(torch.zeros(1, 6), local_map(features[:1, :, :2]))
    assert torch.allclose(logits[:1], cut, atol=1e-6)


def test_a_finding_of_one_cell_is_not_averaged_away():
    """One cell of 28 x 28 that speaks for a class moves the logit almost as all cells would."""
    moved = {}
    for pool in ("avg", "lse", "attention", "max"):
        head = SourceClassifier(6, 1, local_dim=1, pool=pool, sharpness=4.0)
        head.votes.weight.data.fill_(1.0)
        quiet = torch.zeros(1, 1, 28, 28)
        loud = quiet.clone()
        loud[0, 0, 3, 4] = 5.0
        pooled = torch.zeros(1, 6)
        moved[pool] = (head(pooled, local_map(loud)) - head(pooled, local_map(quiet))).item()
    assert moved["max"] == 5.0 and moved["avg"] == pytest.approx(5 / 784, rel=1e-3)
    assert moved["lse"] > 3 and moved["attention"] > 3


def test_the_local_map_has_the_size_of_its_finest_stage(tiny_cfg):
    encoder = LocalEncoder.from_config(tiny_cfg("rsna"), SHAPES)
    features = {
        n: torch.randn(2, s.channels, 96 // s.stride, 64 // s.stride) for n, s in SHAPES.items()
    }
    found = encoder(features, [(96, 64), (41, 64)])
    assert found.features.shape == (2, 16, 12, 8) and found.inside.shape == (2, 1, 12, 8)
    assert found.inside[0].all()
    assert found.inside[1, 0, :, 0].tolist() == [True] * 6 + [False] * 6  # 41 px touch 6 cells
    coarse = {**features, "res5": features["res5"] + torch.randn(2, 256, 3, 2)}
    assert not torch.allclose(encoder(coarse, [(96, 64)] * 2).features, found.features)
    with pytest.raises(ValueError, match=r"CLS.LOCAL.IN_FEATURES names \['res9'\]; the trunk has"):
        cfg = tiny_cfg("rsna", MODEL__FX__CLS__LOCAL__IN_FEATURES=("res9",))
        LocalEncoder.from_config(cfg, SHAPES)


def test_losses_by_kind_and_name():
    labels = torch.tensor([[1.0, 0.0, torch.nan], [0.0, 1.0, 0.0]])
    logits = torch.randn(2, 3)
    head = classifier()
    known = ~labels.isnan()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
    assert head.losses(logits, labels, "multi")["loss_cls_bce"].item() == pytest.approx(bce.item())
    ce = torch.nn.functional.cross_entropy(logits[1:], torch.tensor([1]))
    found = head.losses(logits, labels, "exclusive")
    assert found["loss_cls_ce"].item() == pytest.approx(ce.item())  # the first is not all known
    assert list(classifier(multiclass_loss="bce").losses(logits, labels, "exclusive")) == [
        "loss_cls_bce"
    ]
    for name in ("focal", "asymmetric", "class_weighted"):
        assert list(classifier(loss=name).losses(logits, labels, "multi")) == [f"loss_cls_{name}"]


def test_rare_classes_count_more_with_prevalence():
    labels, logits = torch.tensor([[1.0, 0.0, 0.0]]), torch.zeros(1, 3)
    plain = classifier(loss="class_weighted").losses(logits, labels, "multi")
    assert plain["loss_cls_class_weighted"].item() == pytest.approx(math.log(2))
    shares = {"multi": [0.01, 0.5, 0.5], "elsewhere": [0.1]}
    rare = classifier(loss="class_weighted", prevalence=shares).losses(logits, labels, "multi")
    expected = math.log(2) * (math.exp(0.99) + 2 * math.exp(0.5)) / 3
    assert rare["loss_cls_class_weighted"].item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match=r"PREVALENCE.multi has 2 values; its classes are \('a'"):
        classifier(prevalence={"multi": [0.1, 0.2]})


def test_probabilities_are_named_and_exclusive_ones_sum_to_one():
    head, logits = classifier(), torch.tensor([[0.0, 2.0, -2.0]])
    (multi,) = head.inference(logits, "multi")
    assert multi == pytest.approx({"a": 0.5, "b": 0.8808, "c": 0.1192}, abs=1e-4)
    (exclusive,) = head.inference(logits, "exclusive")
    assert sum(exclusive.values()) == pytest.approx(1) and max(exclusive, key=exclusive.get) == "q"
    assert head.inference(torch.zeros(2, 1), "single") == [{"x": 0.5}, {"x": 0.5}]


def test_projector_and_wrong_options():
    head = classifier(projector=5)
    assert head.multi.linear.in_features == 5
    assert head(torch.randn(2, 12), None, "multi").shape == (2, 3)
    for options in ({"loss": "hinge"}, {"multiclass_loss": "hinge"}, {"pool": "median"}):
        with pytest.raises(ValueError, match="MODEL.FX.CLS.*is '(hinge|median)'; allowed: .*"):
            classifier(**options)
