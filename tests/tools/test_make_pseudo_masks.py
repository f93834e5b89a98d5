"""The tool, with committees of tiny classifiers on a phantom world."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

import make_pseudo_masks
from fx_d2.command_line import FAILED, INTERRUPTED, WRONG_USE
from fx_d2.data.sources import SOURCES
from fx_d2.engine.checkpoint import FxCheckpointer
from fx_d2.engine.setup import load_config
from fx_d2.phantom.world import make_world
from fx_d2.pipelines.doll import build

QUICK = str(
    Path(__file__).resolve().parents[2] / "configs/quick_schedules/foundation_x_instant_test.yaml"
)
FAST = ["ig.steps", "4", "ig.max_raise", "1", "labels.min_prob", "0", "shard_images", "3"]
FAST += ["labels.min_agree", "0.5"]


def saved(folder: Path, source: str, seed: int) -> str:
    """A classifier of random weights, saved as a run saves it."""
    keys = ["INPUT.FX.SIZE", "64", "MODEL.DEVICE", "cpu", "DATASETS.TASKS", "('cls',)"]
    keys += ["DATASETS.TRAIN", f"('{source}_train',)", "DATASETS.TEST", f"('{source}_val',)"]
    cfg = load_config(QUICK, keys)
    torch.manual_seed(seed)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if name.startswith("heads.cls"):
            torch.nn.init.normal_(parameter, std=0.5)
    FxCheckpointer(model, str(folder), cfg=cfg).save_weights("w", iteration=1)
    return str(folder / "w.safetensors")


@pytest.fixture(scope="module")
def members(tmp_path_factory) -> Iterator[list[str]]:
    root = tmp_path_factory.mktemp("pseudo")
    make_world(root / "world", patients=10, seed=3, sources=["nih14", "shenzhen"], size_px=96)
    known, there = set(SOURCES), set(DatasetCatalog.list())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root / "world"))
        yield [saved(root / f"m{i}", "nih14", i) for i in range(2)] + [
            saved(root / "other", "shenzhen", 5)
        ]
    for key in set(SOURCES) - known:
        del SOURCES[key]
    for name in set(DatasetCatalog.list()) - there:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def call(out: Path, members: list[str], *words: str) -> int:
    named = [word for member in members for word in ("--member", member)]
    return make_pseudo_masks.main(
        ["--out", str(out), "--dataset", "nih14_train", *named, "--limit", "7", *words, *FAST]
    )


def digests(out: Path) -> dict[str, str]:
    files = [p for p in out.rglob("*") if p.is_file()]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_masks_are_made_resumed_registered_and_named(
    tmp_path: Path, members: list[str], capsys, monkeypatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert call(first, members[:2]) == 0
    out = capsys.readouterr().out
    assert "7 images, " in out and "excluded: " in out and "report.md" in out
    header = json.loads((first / "pseudo_masks.json").read_text())
    assert header["shards"] == 3 and len(header["provenance"]["committee"]) == 2
    assert all(len(m["sha256"]) == 64 for m in header["provenance"]["committee"])
    shard = json.loads((first / "shards" / "00000.json").read_text())
    assert shard["info"]["provenance"] == header["provenance"]

    real, calls = build.write_shard, []

    def killed(*args) -> None:
        if calls:
            raise KeyboardInterrupt
        calls.append(args)
        real(*args)

    monkeypatch.setattr(build, "write_shard", killed)
    assert call(second, members[:2]) == INTERRUPTED
    assert "call it again to continue" in capsys.readouterr().err
    monkeypatch.setattr(build, "write_shard", real)
    assert call(second, members[:2]) == 0
    assert digests(second) == digests(first)

    load_config("", ["DATASETS.PSEUDO_MASKS", f"('doll={first}',)"])
    assert len(DatasetCatalog.get("nih14_doll_all")) == 7

    capsys.readouterr()
    name = header["kept"][0]
    assert call(second, members[:2], "--exclude", name) == 0
    assert f"excluded: {name}: asked for" in capsys.readouterr().out
    assert call(second, members[:2], "seed", "5") == FAILED
    assert "there are pseudo-masks of other seed" in capsys.readouterr().err
    assert call(second, members[:1]) == FAILED
    assert "there are pseudo-masks of other committee" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "code", "what"),
    [
        (lambda m: [m[0], m[2]], WRONG_USE, "different classes"),
        (lambda m: [m[0], m[1] + ".not"], FAILED, "safetensors.not"),
        (lambda m: [m[2]], FAILED, "are no labels of nih14"),
        (lambda m: [], WRONG_USE, "no classifier"),
    ],
)
def test_a_wrong_committee_is_one_line(tmp_path, members, capsys, change, code, what) -> None:
    assert call(tmp_path / "out", change(members)) == code
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--dataset", "nih14_trian"], "nih14_train"),
        (["labels.top_shar", "0.1"], "Did you mean 'top_share'"),
        (["--exclude", "Masss"], "Did you mean 'Mass'"),
        (["--config-file", "nowhere.yaml"], "nowhere.yaml: cannot be read"),
    ],
)
def test_a_wrong_word_is_one_line(tmp_path, members, capsys, words, what) -> None:
    assert call(tmp_path / "out", members[:1], *words) == WRONG_USE
    error = capsys.readouterr().err
    assert what in error and error.count("\n") == 1
