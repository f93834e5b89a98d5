from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from runs import TINY

import export_weights
from fx_d2.engine.checkpoint import FxCheckpointer, config_of, load_weights, read_description
from fx_d2.modeling.meta_arch.foundation_x import FoundationX
from fx_d2.predictor import Predictor

OPTIONS = {**TINY, "MODEL__META_ARCHITECTURE": "StudentTeacher", "TEACHER__VIEWS": 2}


@pytest.fixture
def run(toy_cfg: Callable[..., CfgNode]) -> tuple[Path, Any]:
    """A checkpoint whose teacher differs from its student, and the model."""
    cfg = toy_cfg(**OPTIONS)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for weight in model.teacher.parameters():
        weight.data += 0.1 * torch.randn(weight.shape)
    checkpointer = FxCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg)
    checkpointer.metrics = {"toy_engine/cls/AUC": 0.6, "teacher/toy_engine/cls/AUC": 0.7}
    checkpointer.save("model_final", iteration=9)
    return Path(cfg.OUTPUT_DIR), model


@pytest.mark.parametrize("who", ["teacher", "student"])
def test_the_part_predicts_as_it_did(run: tuple[Path, Any], tmp_path: Path, who: str, capsys):
    folder, model = run
    out = tmp_path / "plain.safetensors"
    assert export_weights.main([str(folder), "--part", who, "--out", str(out)]) == 0
    assert str(out) in capsys.readouterr().out
    about = read_description(out)
    cfg = config_of(about)
    plain = build_model(cfg).eval()
    assert type(plain) is FoundationX and cfg.TEACHER.VIEWS == 1
    assert load_weights(plain, out).complete
    batch = [{"image": torch.rand(3, 64, 64), "height": 50, "width": 40}]
    with model.answering(who):
        expected = model(batch)[0]["labels"]
    with model.answering("student" if who == "teacher" else "teacher"):
        assert model(batch)[0]["labels"] != expected
    assert plain(batch)[0]["labels"] == expected
    assert Predictor(out).heads.keys() == {"toy_engine/cls", "toy_engine/seg"}
    assert about["metrics"] == {"toy_engine/cls/AUC": 0.7 if who == "teacher" else 0.6}
    assert about["iteration"] == 9 and about["exported_from"]["part"] == who
    assert {p.name for p in tmp_path.glob("plain*")} == {"plain.safetensors", "plain.json"}


def test_wrong_use_is_one_line_and_overwrites_nothing(
    run: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture
):
    folder, _ = run
    there = tmp_path / "there.safetensors"
    there.write_text("mine")
    out = tmp_path / "plain.safetensors"
    assert export_weights.main([str(folder), "--out", str(out)]) == 0
    capsys.readouterr()
    cases = [
        ([folder, "--out", there], "is there already"),
        ([folder, "--out", tmp_path / "x.pth"], "NAME.safetensors"),
        ([out, "--out", tmp_path / "again.safetensors"], "holds no teacher"),
        ([tmp_path / "no.safetensors", "--out", tmp_path / "a.safetensors"], "no such checkpoint"),
    ]
    for words, told in cases:
        assert export_weights.main([str(word) for word in words]) in (1, 2), words
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1, error
    about = folder / "model_final.json"
    about.write_text(json.dumps({**json.loads(about.read_text()), "weights_sha256": "0"}))
    assert export_weights.main([str(folder), "--out", str(tmp_path / "a.safetensors")]) == 1
    assert "do not belong together" in capsys.readouterr().err
    assert there.read_text() == "mine" and not (tmp_path / "a.safetensors").exists()
