"""A committee's members keep their own input paths and answer for the same classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fx_d2.data.errors import DataError
from fx_d2.engine.checkpoint import CheckpointError
from fx_d2.explain import IGSettings, class_activation, integrated_gradients
from fx_d2.pipelines.committee import (
    METHODS,
    Committee,
    CommitteeError,
    MemberSpec,
    _classes,
    build_committee,
    resized,
)
from fx_d2.predictor import Predictor

Saved = Callable[..., Path]
PYRAMID = (
    *("MODEL.META_ARCHITECTURE", "FPSM", "MODEL.FX.CLS.NAME", "PyramidClassifier"),
    *("MODEL.FX.CLS.PYRAMID.DIM", "16", "MODEL.FX.TRUNK.KWARGS.embed_dim", "12"),
)
FAST = IGSettings(steps=4, max_raise=1, batch=16)


@pytest.fixture(scope="session")
def files(saved_classifier: Saved) -> list[Path]:
    """A Foundation X at 64 px, a larger one that keeps proportions, an FPSM."""
    return [
        saved_classifier(1),
        saved_classifier(2, "INPUT.FX.SIZE", "80", "INPUT.FX.RESIZE", "keep"),
        saved_classifier(3, *PYRAMID),
    ]


@pytest.fixture(scope="session")
def committee(files: list[Path]) -> Committee:
    return build_committee(files)


def film(height: int = 90, width: int = 70, seed: int = 0) -> np.ndarray:
    grey = np.random.default_rng(seed).random((height // 10, width // 10), dtype=np.float32)
    return np.kron(grey, np.ones((10, 10), dtype=np.float32))


def test_every_member_says_what_it_predicts_alone(files: list[Path], committee: Committee) -> None:
    images = [film(), film(60, 60, 1)]
    answers = committee.answer([committee.prepare(image) for image in images])
    for number, file in enumerate(files):
        for n, alone in enumerate(Predictor(file, device="cpu")(images)):
            expected = list(alone["labels"]["nih14"].values())
            assert list(alone["labels"]["nih14"]) == list(committee.classes)
            found = answers.probabilities[number, n]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(answers.combined, answers.probabilities.mean(0), rtol=1e-5)
    np.testing.assert_allclose(answers.probabilities, answers.logits.sigmoid(), rtol=1e-5)


@pytest.mark.parametrize("method", ["integrated_gradients", "grad_cam"])
def test_maps_of_all_members_share_a_frame(committee: Committee, method: str) -> None:
    images = [committee.prepare(image) for image in (film(), film(60, 60, 1), film(seed=2))]
    settings = replace(FAST, baseline="zero")  # which differs from member to member
    found = committee.explain(
        images, ["Mass", "Edema"], size=(48, 40), method=method, settings=settings
    )
    assert found.maps.shape == (3, 3, 2, 48, 40) and (found.maps >= 0).all()
    assert found.logits.shape == (3, 3, len(committee.classes))
    torch.testing.assert_close(found.logits, committee.answer(images).logits, rtol=1e-4, atol=1e-4)
    # The order is that of the images although the second one has another shape.
    alone = committee.explain(images[2:], ["Mass"], size=(48, 40), method=method, settings=settings)
    torch.testing.assert_close(found.maps[:, 2:, :1], alone.maps, rtol=1e-3, atol=1e-5)
    # The frame is that of the original: what a member pads is cut off before.
    one, seen = committee.members[1], images[0][1]
    content, image, places = seen.content, seen.image[None], committee.places(["Mass"])
    assert tuple(image.shape[2:]) != content
    ask = one.classifier(content)
    if method == "grad_cam":
        own = class_activation(one.module, ask, image, places, one.layer, method)
    else:
        own = integrated_gradients(ask, image, places, settings, one.black, one.zero)
    expected = resized(own.maps[..., : content[0], : content[1]], (48, 40))
    torch.testing.assert_close(found.maps[1, :1, :1], expected, rtol=1e-3, atol=1e-5)
    assert (found.completeness is None) == (method == "grad_cam")


def test_a_member_is_unchanged_by_explaining(committee: Committee) -> None:
    module = committee.members[0].module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    wanting = [p.requires_grad for p in module.parameters()]
    images = [committee.prepare(film())]
    for method in METHODS:
        committee.explain(images, ["Mass"], size=(16, 16), method=method, settings=FAST)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [p.requires_grad for p in module.parameters()] == wanting and any(wanting)
    assert all(p.grad is None for p in module.parameters())
    assert not any(part.training or part._forward_hooks for part in module.modules())


def test_weights_decide_the_mean(committee: Committee) -> None:
    images = [committee.prepare(film())]
    answers, count = committee.answer(images), len(committee.classes)
    weights = np.zeros((3, count))
    weights[1, 0], weights[:, 1] = 0.4, [1, 0, 3]
    found = committee.weighing(weights).answer(images).combined
    own = answers.probabilities
    torch.testing.assert_close(found[:, 0], own[1, :, 0])
    torch.testing.assert_close(found[:, 1], (own[0, :, 1] + 3 * own[2, :, 1]) / 4)
    torch.testing.assert_close(found[:, 2], own[:, :, 2].mean(0))  # nobody has a say: all alike
    for bad in (weights[:2], -weights, weights * np.nan):
        with pytest.raises(ValueError, match="weights are"):
            committee.weighing(bad)


def test_classes_may_stand_in_another_order(files: list[Path]) -> None:
    chosen = ["Mass", "Atelectasis"]
    two, all_of_it = build_committee(files[:1], classes=chosen), build_committee(files[:1])
    image = film()
    found = two.answer([two.prepare(image)])
    whole = all_of_it.answer([all_of_it.prepare(image)])
    places = all_of_it.places(chosen)
    assert two.classes == tuple(chosen) == two.members[0].classes
    torch.testing.assert_close(found.logits, whole.logits[:, :, places])
    for name in chosen:  # and so may what is explained
        mine, theirs = (
            one.explain([one.prepare(image)], [name], size=(16, 16), settings=FAST).maps
            for one in (two, all_of_it)
        )
        assert theirs.max() > 0
        torch.testing.assert_close(mine, theirs)


def test_a_multiclass_head_is_asked_as_a_whole(saved_classifier: Saved) -> None:
    file = saved_classifier(4, "MODEL.FX.SOURCES", "('rsna',)")
    classes = build_committee([file]).classes
    one = build_committee([file], classes=classes[:1])
    image = film()
    alone = Predictor(file, device="cpu")(image)["labels"]["rsna"]
    found = one.answer([one.prepare(image)]).probabilities
    assert float(found) == pytest.approx(alone[classes[0]], rel=1e-4)


def test_members_have_names_and_checksums(files: list[Path]) -> None:
    specs = [MemberSpec(files[0]), MemberSpec(files[0]), MemberSpec(files[2], name="pyramid")]
    committee = build_committee(specs)
    folder = files[0].parent.name
    assert [m.name for m in committee.members] == [folder, f"{folder}#2", "pyramid"]
    with pytest.raises(CommitteeError, match="cannot be named 'committee': that name is taken"):
        build_committee([MemberSpec(files[0], name="committee")])
    sums = [member.checksum for member in committee.members]
    assert sums[0] == sums[1] != sums[2] and all(len(one) == 64 for one in sums)
    assert all(m.layer == "trunk.net.layers.3" for m in committee.members)


def test_committees_that_cannot_be(files: list[Path], saved_classifier: Saved) -> None:
    other = saved_classifier(5, "MODEL.FX.SOURCES", "('chexpert',)")
    both = saved_classifier(6, "MODEL.FX.SOURCES", "('chexpert', 'nih14')")
    name = files[0].parent.name
    with pytest.raises(CommitteeError, match=rf"{name} and .* different classes: .* lacks .*Mass"):
        build_committee([files[0], other])
    shared = build_committee([files[0], other], classes=["Edema", "Pneumonia"])
    assert [m.spec.source for m in shared.members] == ["nih14", "chexpert"]
    with pytest.raises(CommitteeError, match=r"no class 'Oedema'\. Did you mean 'Edema'"):
        build_committee([files[0]], classes=["Oedema"])
    with pytest.raises(CommitteeError, match="several heads of image labels; name one"):
        build_committee([both])
    assert build_committee([MemberSpec(both, head="chexpert")]).classes[0] == "No Finding"
    with pytest.raises(CommitteeError, match=r"no head 'chexprt'\. Did you mean 'chexpert'"):
        build_committee([MemberSpec(both, head="chexprt")])
    with pytest.raises(CommitteeError, match=r"no layer 'trunk.net.layer.3'\. Did you mean"):
        build_committee([MemberSpec(files[0], layer="trunk.net.layer.3")])
    with pytest.raises(CheckpointError, match="there is no such checkpoint"):
        build_committee([files[0], files[0].with_name("gone.safetensors")])
    with pytest.raises(CommitteeError, match="at least one member"):
        build_committee([])
    boxes = saved_classifier(7, "MODEL.FX.SOURCES", "('tbx11k',)", "DATASETS.TASKS", "('loc',)")
    with pytest.raises(CommitteeError, match="no head of image labels; it has tbx11k/loc"):
        build_committee([boxes])


def test_a_class_that_only_one_member_has_is_named() -> None:
    few, more = ("few", ["Edema", "Mass"]), ("more", ["Mass", "Edema", "Hernia"])
    for members, told in (
        ((few, more), "only more has Hernia. To do: name the classes; all have Edema, Mass"),
        ((more, few), "few lacks Hernia. To do: name the classes; all have Mass, Edema"),
    ):
        with pytest.raises(CommitteeError, match=f"have different classes: {told}"):
            _classes(members, None)
    assert _classes((few, ("other", ["Mass", "Edema"])), None) == ("Edema", "Mass")


def test_many_images_are_taken_in_parts(
    committee: Committee, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [committee.prepare(film(seed=seed)) for seed in range(5)]
    whole = committee.answer(images).logits
    monkeypatch.setattr("fx_d2.pipelines.committee._MAX_IMAGES", 2)
    seen: list[int] = []
    module = committee.members[0].module
    handle = module.trunk.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        parts = committee.answer(images).logits
    finally:
        handle.remove()
    assert seen == [2, 2, 1]
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)


def test_explaining_what_is_not_there(committee: Committee) -> None:
    images = [committee.prepare(film())]
    with pytest.raises(KeyError, match="Did you mean 'Mass'"):
        committee.explain(images, ["Mas"], size=(8, 8))
    with pytest.raises(ValueError, match="explainer 'gradcam'; .* mean 'grad_cam'"):
        committee.explain(images, ["Mass"], size=(8, 8), method="gradcam")
    with pytest.raises(ValueError, match="no images"):
        committee.answer([])
    with pytest.raises(DataError, match="gone"):
        committee.prepare("gone.png")
