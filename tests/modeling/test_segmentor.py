"""All pairs of architecture and encoder: they build, learn, and come back from their files."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from huggingface_hub import constants
from safetensors.torch import save_file

from fx_d2.engine.checkpoint import FxCheckpointer, load_weights
from fx_d2.engine.ensemble import load_trained
from fx_d2.engine.setup import load_config
from fx_d2.modeling.backbone.smp_encoder import ZOO, SmpEncoder, smp_library
from fx_d2.modeling.freeze import set_trainable
from fx_d2.modeling.heads.smp_decoder import SMP_DECODERS
from fx_d2.modeling.meta_arch import Segmentor

LUNGS = Path(__file__).parents[2] / "configs/hybrid/lungs.yaml"
SMALL = "mobilenet_v2"
PAIRS = [
    pytest.param(e, d, marks=[] if e == SMALL else pytest.mark.slow, id=f"{d}-{e}")
    for e, d in product(ZOO, SMP_DECODERS)
]


def config(encoder: str = SMALL, decoder: str = "fpn", *more: Any) -> CfgNode:
    words = ["MODEL.DEVICE", "cpu", "MODEL.FX.SOURCES", "('montgomery',)", "MODEL.FX.TRUNK.NAME"]
    words += [encoder, "MODEL.FX.SEG.DECODER", decoder, *map(str, more)]
    return load_config(str(LUNGS), words)


def batch(height: int = 64, width: int = 64) -> list[dict[str, Any]]:
    rng = torch.Generator().manual_seed(1)
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    masks[0, 20:50, 5:25] = masks[1, 20:50, 35:50] = 1
    known = torch.ones(2, dtype=torch.bool)
    return [
        {
            "image": torch.rand(1, height, width, generator=rng),
            "source": "montgomery",
            "task": "seg",
            "sem_masks": masks,
            "sem_known": known,
        }
        for _ in range(2)
    ]


def soft(model: Segmentor, items: list[dict[str, Any]]) -> list[dict[str, torch.Tensor]]:
    model.eval().soft_masks = True
    return [output["masks"]["montgomery"] for output in model(items)]


@pytest.fixture(scope="module")
def encoder_built_once() -> Iterator[None]:
    """The library builds VGG16 with a classifier of 120 M weights that it drops: once is enough."""
    built: dict[str, Any] = {}
    library = smp_library().encoders
    original = library.get_encoder

    def get_encoder(name: str, **settings: Any) -> Any:
        key = f"{name} {settings}"
        if key not in built:
            built.clear()  # of one encoder at a time, as the pairs come
            built[key] = original(name, **settings)
        return copy.deepcopy(built[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(library, "get_encoder", get_encoder)
        yield


@pytest.mark.usefixtures("encoder_built_once")
@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
def test_a_pair_builds_learns_and_is_restored(encoder: str, decoder: str, tmp_path: Path):
    cfg = config(encoder, decoder)
    torch.manual_seed(0)
    model = build_model(cfg)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)  # without a state for each weight
    items = batch()[:1]
    losses = model(items)
    assert set(losses) == {"loss_seg_bce", "loss_seg_dice"}
    sum(losses.values()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None]
    assert not idle  # training by several processes would stop at them
    optimizer.step()
    moved = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    for part in ("trunk.", "seg_decoder.", "heads.seg.montgomery."):
        assert any(name.startswith(part) for name in moved)
    expected = soft(model, items)
    saver = FxCheckpointer(model, str(tmp_path), cfg=cfg)
    saver.save("model_final", iteration=0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.ones_like(tensor))
    assert load_weights(model, tmp_path / "model_final.safetensors").complete
    for one, other in zip(expected, soft(model, items), strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("decoder", SMP_DECODERS)
def test_any_size_is_padded_and_cut_back(decoder: str):
    torch.manual_seed(0)
    model = build_model(config(decoder=decoder))
    (item, _) = batch(50, 70)
    assert sum(model.train()(batch(50, 70)).values()).isfinite()
    (masks,) = soft(model, [item])
    assert {name: tuple(mask.shape) for name, mask in masks.items()} == {
        "Left Lung": (50, 70),
        "Right Lung": (50, 70),
    }
    padded = {"image": torch.zeros(1, 64, 96), "content_size": (50, 70), "height": 50, "width": 70}
    padded["image"][:, :50, :70] = item["image"]
    (same,) = soft(model, [padded])
    assert all(torch.equal(masks[name], same[name]) for name in masks)
    # An image beside a larger one: its mask is of its own size.
    small, large = soft(model, [item, batch(64, 64)[0]])
    assert small["Left Lung"].shape == (50, 70) and large["Left Lung"].shape == (64, 64)


def test_a_checkpoint_alone_gives_the_model(tmp_path: Path):
    cfg = config(SMALL, "linknet")
    torch.manual_seed(0)
    model = build_model(cfg)
    FxCheckpointer(model, str(tmp_path), cfg=cfg).save("model_final", iteration=0)
    trained = load_trained(tmp_path, torch.device("cpu"))
    assert type(trained.model) is Segmentor
    (one, _), (other, _) = soft(model, batch()), soft(trained.model, batch())
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_layout_is_that_of_the_library():
    smp = pytest.importorskip("segmentation_models_pytorch")
    classes = {"unet": smp.Unet, "linknet": smp.Linknet, "fpn": smp.FPN}
    for decoder, kind in classes.items():
        whole = kind(SMALL, encoder_weights=None, in_channels=1)
        model = build_model(config(decoder=decoder))
        for ours, theirs in (
            (model.trunk.net, whole.encoder),
            (model.seg_decoder.net, whole.decoder),
        ):
            wanted = {name: v.shape for name, v in theirs.state_dict().items()}
            assert {name: v.shape for name, v in ours.state_dict().items()} == wanted
            ours.load_state_dict(theirs.state_dict())
        x = torch.rand(1, 1, 64, 32)
        with torch.no_grad():
            wanted = whole.eval().decoder(whole.encoder(x))
            found = model.eval().seg_decoder(model.trunk(x))
        assert torch.equal(found, wanted), decoder
        (shape,) = model.seg_decoder.output_shape().values()
        assert tuple(found.shape) == (1, shape.channels, 64 // shape.stride, 32 // shape.stride)


def test_a_decoder_of_the_library_on_another_trunk(tiny_model):
    model = tiny_model(
        "montgomery", MODEL__FX__SEG__DECODER="fpn", MODEL__FX__SEG__CHANNELS=32
    ).eval()
    (output,) = model([{"image": torch.rand(3, 64, 64), "height": 40, "width": 30}])
    assert output["masks"]["montgomery"]["Left Lung"].shape == (40, 30)
    with pytest.raises(ValueError, match='"unet" needs res1; the trunk has res2, res3'):
        tiny_model("montgomery", MODEL__FX__SEG__DECODER="unet")


def test_locking_and_depths():
    model = build_model(config())
    set_trainable(model, ["seg_decoder.*", "heads.*"])
    trained = {name.split(".")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {"seg_decoder", "heads"}
    statistics = model.trunk.net.state_dict()
    before = {name: value.clone() for name, value in statistics.items()}
    model.train()(batch())
    assert all(torch.equal(value, before[name]) for name, value in statistics.items())
    depths = model.trunk.layer_ids()
    assert set(depths) == {name for name, _ in model.trunk.named_parameters()}
    assert depths["net.features.0.0.weight"] == 0
    assert depths["net.features.18.1.weight"] == max(depths.values()) == 18


def test_the_speed_of_running_statistics():
    def momenta(encoder: SmpEncoder) -> set[float]:
        return {m.momentum for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm2d)}

    assert momenta(SmpEncoder(name="efficientnet-b2", norm_momentum=0.3)) == {0.3}
    (own,) = momenta(SmpEncoder(name="efficientnet-b2"))
    assert own == pytest.approx(0.01)
    with pytest.raises(ValueError, match="NORM_MOMENTUM is 2"):
        SmpEncoder(name=SMALL, norm_momentum=2)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("MODEL.FX.TRUNK.NAME", "efficientnet_b2"), "did you mean efficientnet-b2"),
        (("MODEL.FX.SEG.DECODER", "pyramid"), "'pyramid'; allowed: unet, linknet, fpn"),
        (("MODEL.BACKBONE.NAME", "build_timm_backbone"), "expected 'build_smp_encoder'"),
        (("DATASETS.TASKS", "('seg','cls')", "DATASETS.EXTRA_TASKS", "('montgomery/cls',)"),
         "learns masks, not montgomery/cls"),
        (("MODEL.FX.TRUNK.KWARGS", "{'depth': 4}"), "build_smp_encoder takes none"),
        (("MODEL.FX.SEG.CHANNELS", "40"), "a multiple of that"),
        (("INPUT.FX.CHANNELS", "3"), "MODEL.PIXEL_MEAN names 1"),
        (("MODEL.FX.TRUNK.PRETRAINED", "imagenette"), "no file imagenette; of mobilenet_v2.*'imag"),
        (("MODEL.FX.TRUNK.NAME", "mit_b0"), "mit_b0.*lacks one of the strides"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_said(words: tuple[str, ...], told: str):
    with pytest.raises(ValueError, match=told) as caught:
        build_model(config(SMALL, "fpn", *words))
    assert "\n" not in str(caught.value)


def test_no_width_is_refused_where_the_decoder_has_none_of_its_own(tiny_model):
    with pytest.raises(ValueError, match="MODEL.FX.SEG.CHANNELS is 0; DECODER 'pyramid'"):
        tiny_model("montgomery", MODEL__FX__SEG__CHANNELS=0)


def test_weights_of_a_file_are_fitted_to_one_channel(tmp_path: Path):
    torch.manual_seed(3)
    colour = SmpEncoder(name=SMALL, in_channels=3)
    state = {f"encoder.{name}": value for name, value in colour.net.state_dict().items()}
    file = tmp_path / "encoder.safetensors"
    save_file({**state, "encoder.classifier.1.weight": torch.zeros(3, 3)}, file)
    grey = SmpEncoder(name=SMALL, in_channels=1, pretrained=str(file))
    assert grey.weights_report is not None and grey.weights_report.complete
    x = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        one = grey.eval()(x)["res5"]
        three = colour.eval()(x.repeat(1, 3, 1, 1))["res5"]
    assert torch.allclose(one, three, atol=1e-5)


def test_published_weights_without_a_network_fail_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE, and smp-hub/mobilenet_v2.imagenet is "):
        SmpEncoder(name=SMALL, pretrained="imagenet")
    assert time.monotonic() - start < 5
    # What the library itself once downloaded, which is kept under its revision, is found.
    colour = SmpEncoder(name=SMALL, in_channels=3)
    revision = "e67aa804e17f7b404b629127eabbd224c4e0690b"
    folder = tmp_path / "hub" / "models--smp-hub--mobilenet_v2.imagenet" / "snapshots" / revision
    folder.mkdir(parents=True)
    save_file(colour.net.state_dict(), folder / "model.safetensors")
    found = SmpEncoder(name=SMALL, in_channels=3, pretrained="imagenet")
    assert found.weights_report is not None and found.weights_report.complete
