"""Swin of Microsoft, timm and Ark-6: the converted trunk computes the same numbers."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from foreign_models import DEPTHS, HEADS, SIDE, WIDTH, WINDOW, Swin, shaken

from fx_d2.engine.checkpoint import FxCheckpointer, load_weights
from fx_d2.engine.convert import convert, read_foreign, write_conversion
from fx_d2.engine.convert.convert import meta_model, position_index
from fx_d2.engine.setup import load_config
from fx_d2.engine.weights import CheckpointError, read_description

ROOT = Path(__file__).resolve().parents[3]
KWARGS = {"embed_dim": WIDTH, "depths": DEPTHS, "num_heads": HEADS, "window_size": WINDOW}


def tiny_config(file: str = "configs/quick_schedules/foundation_x_instant_test.yaml", *words):
    cfg = load_config(str(ROOT / file), ["MODEL.FX.SOURCES", "('rsna',)", *map(str, words)])
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.INPUT.FX.SIZE, cfg.MODEL.FX.TRUNK.NAME = "cpu", SIDE, "swin_t"
    cfg.MODEL.FX.TRUNK.KWARGS = CfgNode(KWARGS, new_allowed=True)
    return cfg


def reload(result, cfg, path: Path):
    """The model of ``cfg`` with the converted weights, through the checkpointer."""
    write_conversion(result, cfg, path)
    torch.manual_seed(5)
    model = build_model(cfg).eval()
    FxCheckpointer(model, cfg=cfg).resume_or_load(str(path), resume=False)
    return model


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("always_shift", [True, False])
@torch.no_grad()
def test_microsofts_layout_computes_the_same(tmp_path: Path, images, always_shift):
    theirs = shaken(Swin(head=7))
    torch.save({"model": theirs.state_dict()}, tmp_path / "swin.pth")
    foreign = read_foreign(tmp_path / "swin.pth")
    assert (foreign.kind, foreign.entry) == ("swin_microsoft", "model")
    cfg = tiny_config()
    if not always_shift:  # the classifier: at this size its last stage is one window, not shifted
        cfg.MODEL.FX.TRUNK.KWARGS |= {"always_partition": False, "img_size": SIDE}
    result = convert(foreign, meta_model(cfg))
    model = reload(result, cfg, tmp_path / "out.safetensors")
    wanted = theirs.stages(images, always_shift=always_shift)
    found = model.trunk(images)
    for ours, reference in zip(found.values(), wanted, strict=True):
        torch.testing.assert_close(ours, reference, rtol=1e-4, atol=1e-4)
    pooled = theirs.pooled(wanted[3])
    torch.testing.assert_close(model.trunk.pooled(found), pooled, rtol=1e-4, atol=1e-4)
    other = theirs.stages(images, always_shift=not always_shift)
    assert (other[3] - wanted[3]).abs().max() > 0.1  # the two do differ
    # Every name has one fate, and every tensor of the trunk came.
    fates = [*result.converted, *result.left_out, *result.mismatched]
    assert sorted(fates) == sorted(theirs.state_dict()) and not result.mismatched
    assert {n for n in model.state_dict() if n.startswith("trunk.")} == set(result.weights)
    assert all(n.startswith(("head.",)) or "attn" in n for n in result.left_out)


def test_timms_layout_is_kept_name_by_name(tmp_path: Path):
    net = shaken(timm.create_model("swin_tiny_patch4_window7_224", img_size=SIDE, **KWARGS))
    torch.save(net.state_dict(), tmp_path / "timm.pth")
    foreign = read_foreign(tmp_path / "timm.pth")
    assert foreign.kind == "swin_timm"
    result = convert(foreign, meta_model(tiny_config()))
    state = net.state_dict()
    assert all(
        torch.equal(result.weights[ours], state[name]) for name, ours in result.converted.items()
    )
    moved = {n: t for n, t in result.converted.items() if t not in (f"trunk.net.{n}", f"trunk.{n}")}
    assert not moved and not any(name.startswith("trunk.") for name in result.missing)


def test_ark_gives_its_teachers_trunk(tmp_path: Path):
    student, teacher = shaken(Swin(), 0), shaken(Swin(), 1)
    extra = {"projector.0.weight": torch.ones(3, 2), "omni_heads.5.bias": torch.ones(2)}

    def wrapped(model):
        return {f"module.{k}": v for k, v in {**model.state_dict(), **extra}.items()}

    content = {"epoch": 200, "state_dict": wrapped(student), "teacher": wrapped(teacher)}
    torch.save(content, tmp_path / "ark.pth.tar")
    for which, model in (("teacher", teacher), ("student", student)):
        foreign = read_foreign(tmp_path / "ark.pth.tar", which=which)
        assert foreign.kind == "ark6"
        result = convert(foreign, meta_model(tiny_config()))
        assert torch.equal(result.weights["trunk.norm.weight"], model.norm.weight)
        assert "heads of Ark-6" in result.left_out["omni_heads.5.bias"]
    # The published teacher is a state dict by itself.
    torch.save({**teacher.state_dict(), **extra}, tmp_path / "flat.pth")
    flat = convert(read_foreign(tmp_path / "flat.pth"), meta_model(tiny_config()))
    assert torch.equal(flat.weights["trunk.norm.weight"], teacher.norm.weight)
    assert flat.foreign.kind == "ark6" and flat.foreign.entry == ""


def test_the_checkpointer_tells_exactly_what_came(tmp_path: Path):
    torch.save(shaken(Swin()).state_dict(), tmp_path / "swin.pth")
    cfg = tiny_config()
    result = convert(read_foreign(tmp_path / "swin.pth"), meta_model(cfg))
    out = write_conversion(result, cfg, tmp_path / "out.safetensors")
    report = load_weights(build_model(cfg), out)
    assert set(report.loaded) == set(result.weights) and set(report.new) == set(result.missing)
    assert not (report.left_out or report.mismatched or report.other_classes)
    about = read_description(out)
    assert about["sources"] == {}  # no head came
    assert (
        about["converted_from"]["kind"] == "swin_microsoft"
        and len(about["converted_from"]["sha256"]) == 64
    )
    assert "converted" in result.summary() and "Swin of 24 channels, 2-2-2-2" in result.summary()


def test_another_network_is_refused_with_its_size(tmp_path: Path):
    torch.save(shaken(Swin()).state_dict(), tmp_path / "swin.pth")
    cfg = tiny_config()
    cfg.MODEL.FX.TRUNK.KWARGS.embed_dim = 48
    with pytest.raises(CheckpointError, match=r"Swin of 24 channels, 2-2-2-2 blocks, window 4"):
        convert(read_foreign(tmp_path / "swin.pth"), meta_model(cfg))
    cfg = tiny_config()
    cfg.MODEL.FX.TRUNK.KWARGS.window_size = 2
    result = convert(read_foreign(tmp_path / "swin.pth"), meta_model(cfg))
    assert set(result.mismatched) == {n for n in result.foreign.weights if n.endswith("_table")}
    assert "[49, 1] in the file, [9, 1]" in result.mismatched[next(iter(result.mismatched))]


def test_tables_in_another_order_are_refused(tmp_path: Path):
    state = shaken(Swin()).state_dict()
    name = "layers.0.blocks.1.attn.relative_position_index"
    assert torch.equal(state[name], position_index(WINDOW))
    state[name] = state[name].T.contiguous()
    torch.save(state, tmp_path / "swin.pth")
    with pytest.raises(CheckpointError, match="order"):
        convert(read_foreign(tmp_path / "swin.pth"), meta_model(tiny_config()))


def test_files_that_are_none(tmp_path: Path):
    def refused(name: str, content, match: str, **options) -> None:
        torch.save(content, tmp_path / name)
        with pytest.raises(CheckpointError, match=match):
            read_foreign(tmp_path / name, **options)

    state = Swin().state_dict()
    refused("a.pth", {"fc.weight": torch.ones(2)}, "exactly one Swin")
    refused("b.pth", {"model": {}}, "holds no weights")
    refused("c.pth", [torch.ones(2)], "holds a list")
    refused("d.pth", {"teacher": state}, "--weights teacher", which="student")
    with pytest.raises(CheckpointError, match="no such file.*a.pth, b.pth"):
        read_foreign(tmp_path / "e.pth")
    (tmp_path / "f.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:300])
    with pytest.raises(CheckpointError, match="damaged"):
        read_foreign(tmp_path / "f.pth")
    code = {"model": state, "args": argparse.Namespace(lr=1)}
    refused("g.pth", code, "needs code.*--trust-pickle")
    assert read_foreign(tmp_path / "g.pth", trust_pickle=True).kind == "swin_microsoft"
