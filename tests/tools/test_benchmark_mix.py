"""The price of pasted lesions is measured on what was mixed, and written images are counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import benchmark
from fx_d2.benchmark.lesion_mix import MixPlan, measure_mix
from fx_d2.command_line import FAILED, WRONG_USE
from fx_d2.data.lesion_mix.mixer import LesionMixer
from fx_d2.data.mapper import FxMapper
from fx_d2.phantom.world import make_world

BANK = ("INPUT.FX.LESION_MIX.BANK", "('chestx_det_train',)", "INPUT.FX.LESION_MIX.TARGET", "7")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    root = tmp_path_factory.mktemp("world") / "phantom"
    make_world(root, patients=14, seed=3, sources=["cxr_lt", "chestx_det"], size_px=96)
    yield root


@pytest.mark.slow
def test_the_price_is_that_of_the_images_that_were_mixed(root: Path, monkeypatch, caplog):
    done = {"read": 0, "mixed": 0}

    def counting(owner: type, name: str, key: str) -> None:
        real = getattr(owner, name)

        def call(*args, **kwargs):
            found = real(*args, **kwargs)
            done[key] += 1
            return found

        monkeypatch.setattr(owner, name, call)

    counting(FxMapper, "__call__", "read")
    counting(LesionMixer, "apply", "mixed")
    plan = MixPlan("configs/fpsm/cxr_lt_dadam.yaml", root, 64, num=6, rounds=2, overrides=BANK)
    # Reading takes a second, pasting half of one.
    tables = measure_mix(plan, clock=lambda: done["read"] + done["mixed"] / 2)
    assert "reading its files" not in caplog.text  # the cache is found
    rows = tables["online"].rows
    assert [row["images"] for row in rows] == ["cached"] * 3 + ["files"] * 3
    for row in rows:
        assert row["more"] == pytest.approx(row["mixed"] / 2) == row["low"] == row["high"]
        assert row["ms"] == pytest.approx(1000 * (1 + row["mixed"] / 2))
    assert rows[0]["mixed"] == rows[3]["mixed"] == 0 < rows[2]["mixed"] == rows[5]["mixed"]
    written = tables["written"].rows[0]
    assert 0 < written["images"] <= 6 and written["workers"] == 1
    assert written["rate"] == pytest.approx(written["images"] / written["seconds"])


def test_what_cannot_be_measured_is_said(root: Path, tmp_path: Path, capsys):
    words = ["mix", "--root", str(root), "--size", "64", "--quiet"]
    assert benchmark.main([*words, "--num", "999", "--opts", *BANK]) == FAILED
    assert "expected 999 or more" in capsys.readouterr().err
    assert benchmark.main([*words[:2], str(tmp_path / "none")]) == WRONG_USE
    assert "is not there" in capsys.readouterr().err
    wrong = ["--opts", "INPUT.FX.LESION_MIX.ALPHA", "2.0"]
    assert benchmark.main([*words, "--num", "2", *wrong]) == WRONG_USE
    assert "ALPHA" in capsys.readouterr().err


def test_figures_are_written(root: Path, tmp_path: Path, capsys):
    file = tmp_path / "mix.json"
    words = ["--root", str(root), "--size", "64", "--num", "3", "--rounds", "1", "--quiet"]
    assert benchmark.main(["mix", *words, "--json", str(file), "--opts", *BANK]) == 0
    assert "### The written form" in capsys.readouterr().out
    document = json.loads(file.read_text())
    assert document["about"]["config"] == "configs/fpsm/cxr_lt_dadam.yaml"
    assert document["tables"]["written"]["rows"][0]["images"] > 0
