"""The converter as a user sees it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import timm
import torch
from detectron2.modeling import build_model

import convert_weights
from fx_d2.engine.checkpoint import FxCheckpointer, load_weights, read_description
from fx_d2.engine.setup import load_config

ROOT = Path(__file__).resolve().parents[2]
QUICK = str(ROOT / "configs/quick_schedules/foundation_x_instant_test.yaml")
KWARGS = {"embed_dim": 24, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 4, 8)}


@pytest.fixture
def swin(tmp_path: Path) -> Path:
    net = timm.create_model("swin_tiny_patch4_window7_224", **KWARGS)
    torch.save({"model": net.state_dict()}, tmp_path / "swin.pth")
    return tmp_path / "swin.pth"


def run(*words: object) -> int:
    try:
        return convert_weights.main([*map(str, words)])
    except SystemExit as exc:
        return int(exc.code or 0)


def test_converting_and_the_report(swin: Path, tmp_path: Path, capsys):
    out, report = tmp_path / "out.safetensors", tmp_path / "report.json"
    words = ("--input", swin, "--out", out, "--config-file", QUICK, "--report", report)
    assert run(*words) == 0
    said = capsys.readouterr().out
    assert "Swin of 24 channels, 1-1-1-1 blocks, window 7" in said and "trunk" in said
    body = json.loads(report.read_text())
    names = torch.load(swin, weights_only=True)["model"]
    assert sorted([*body["converted"], *body["left_out"], *body["mismatched"]]) == sorted(names)
    assert body["left_out"]["head.fc.weight"] == "a classifier of other classes"
    cfg = load_config(QUICK, ["MODEL.WEIGHTS", str(out)])
    model = build_model(cfg)
    FxCheckpointer(model, cfg=cfg).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    loaded = model.state_dict()
    assert all(torch.equal(loaded[ours], names[n]) for n, ours in body["converted"].items())


def test_lora_is_folded_into_the_weights(tmp_path: Path, capsys):
    cfg = load_config(QUICK, ["MODEL.FX.TUNE.MODE", "lora", "MODEL.FX.SOURCES", "('rsna',)"])
    tuned = build_model(cfg).eval()
    with torch.no_grad():
        for name, value in tuned.named_parameters():
            if ".lora.up" in name:
                value.normal_(std=0.1)
    FxCheckpointer(tuned, str(tmp_path), cfg=cfg).save_weights("tuned")
    out = tmp_path / "plain.safetensors"
    assert run("--input", tmp_path / "tuned.safetensors", "--out", out) == 0
    plain = build_model(load_config(QUICK, ["MODEL.FX.SOURCES", "('rsna',)"])).eval()
    assert load_weights(plain, out).complete
    x = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        found, wanted = plain.trunk(x)["res5"], tuned.trunk(x)["res5"]
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert "MODE: full" in read_description(out)["config"]


def test_wrong_use_is_one_line(swin: Path, tmp_path: Path, capsys):
    torch.save({"model": {}, "args": argparse.Namespace()}, tmp_path / "code.pth")
    out = tmp_path / "out.safetensors"
    for words, told in (
        (("--input", tmp_path / "nothing.pth", "--out", out), "no such file"),
        (("--input", swin, "--out", tmp_path / "out.pth"), ".safetensors"),
        (("--input", swin, "--out", out), "--config-file is needed"),
        (("--input", tmp_path / "code.pth", "--out", out), "--trust-pickle"),
        (("--input", swin, "--out", out, "--config-file", "x.yaml"), "no config file"),
        (
            (
                "--input",
                swin,
                "--out",
                out,
                "--config-file",
                QUICK,
                "MODEL.FX.TRUNK.KWARGS.embed_dim",
                48,
            ),
            "Swin of 24 channels",
        ),
    ):
        assert run(*words) == 2
        err = capsys.readouterr().err
        assert told in err and len(err.strip().splitlines()) == 1, err
    assert not out.exists()
