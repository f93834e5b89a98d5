"""Runs of FPSM: what training counts and turns on, and what evaluation says of rare classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from fx_d2.data.build import build_eval_loader
from fx_d2.engine.checkpoint import config_of, read_description
from fx_d2.engine.checks import check_config
from fx_d2.engine.prevalence import with_prevalence
from fx_d2.engine.setup import ConfigError, load_config
from fx_d2.engine.trainer import FxTrainer
from fx_d2.phantom.world import make_world
from fx_d2.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, patients=24, seed=1, size_px=96, sources=["cxr_lt", "mura"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        yield folder


def config(out: Path, *overrides: str) -> CfgNode:
    file = str(ROOT / "configs/quick_schedules/fpsm_instant_test.yaml")
    return load_config(file, ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(out), *overrides])


def test_the_quick_schedule(world: Path, tmp_path: Path) -> None:
    """26 classes in groups by their number, limbs by study, thresholds that are said."""
    cfg = config(tmp_path / "run")
    check_config(cfg, train=True)
    trainer = FxTrainer(cfg)
    turned_on = []
    heads = trainer.model.heads["cls"]

    def look(model: torch.nn.Module, _: tuple) -> None:
        if model.training:
            turned_on.append(heads.reweighted)

    trainer.model.register_forward_pre_hook(look)
    results = trainer.train()
    assert turned_on == [False] * 10 + [True] * 2  # from 0.8 of 12 iterations on
    figures, notes = results["cxr_lt/cls"], results.notes["cxr_lt/cls"]
    assert {"AP_tail", "AP_tail_low", "AUC_head", "F1_medium"} <= set(figures)
    assert set().union(*notes["groups"].values()) <= set(notes["positive"])
    assert notes["threshold"] == "by class, best F1 on cxr_lt_val"
    limbs = results.notes["mura/cls"]
    assert limbs["group_by"] == "study_id" and limbs["cases"] < limbs["images"]
    assert {"kappa", "accuracy", "AP", "AUC"} <= set(results["mura/cls"])
    assert not [name for name in results["mura/cls"] if "tail" in name or "head" in name]
    kept = config_of(read_description(cfg.OUTPUT_DIR)).MODEL.FX.CLS
    assert len(kept.PREVALENCE.cxr_lt) == len(kept.LABELLED.cxr_lt) == 26
    film = sorted((world / "MURA-v1.1").rglob("*.png"))[0]
    predictor = Predictor(cfg.OUTPUT_DIR, device="cpu", context={"body_part": "WRIST"})
    found = predictor(film)["labels"]
    assert set(found) == {"cxr_lt", "mura"} and len(found["cxr_lt"]) == 26


def test_an_average_of_the_weights_has_the_same_heads(world: Path, tmp_path: Path) -> None:
    """configs/teacher/average.yaml over FPSM."""
    layered = tmp_path / "layered.yaml"
    files = [
        ROOT / f"configs/{n}.yaml" for n in ("quick_schedules/fpsm_instant_test", "teacher/average")
    ]
    layered.write_text(f"_BASE_: [{files[0]}, {files[1]}]\n")
    small = ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(tmp_path / "run"), "SOLVER.MAX_ITER", "3"]
    cfg = load_config(str(layered), [*small, "TEST.FX.BOOTSTRAP", "0", "TEST.EVAL_PERIOD", "0"])
    trainer = FxTrainer(cfg)
    start = {n: p.clone() for n, p in trainer.model.teacher.named_parameters()}
    results = trainer.train()
    assert "teacher/cxr_lt/cls" in results
    moved = [n for n, p in trainer.model.teacher.named_parameters() if not torch.equal(p, start[n])]
    assert any(n.startswith("cls_encoder.") for n in moved)


def test_a_batch_says_what_an_image_is_known_by(world: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    limb = next(iter(build_eval_loader(cfg, "mura_test", ("cls",))))[0]
    assert limb["body_part"] in (
        "ELBOW",
        "FINGER",
        "FOREARM",
        "HAND",
        "HUMERUS",
        "SHOULDER",
        "WRIST",
    )
    assert "view" not in limb and not limb["synthetic"]  # the first is not stated there
    chest = next(iter(build_eval_loader(cfg, "cxr_lt_test", ("cls",))))[0]
    assert chest["view"] in ("AP", "PA", "LATERAL") and "body_part" not in chest


def test_only_what_is_needed_is_counted(world: Path, tmp_path: Path) -> None:
    cfg = config(tmp_path, "MODEL.FX.CLS.LOSS", "bce")
    node = with_prevalence(cfg).MODEL.FX.CLS
    assert list(node.PREVALENCE) == ["cxr_lt"]  # for the groups; mura has one class
    node = with_prevalence(config(tmp_path), train=False).MODEL.FX.CLS
    assert list(node.PREVALENCE) == ["cxr_lt"]
    cfg = config(tmp_path, "MODEL.FX.CLS.LOSS", "bce", "TEST.FX.TAIL", "()")
    assert with_prevalence(cfg) is cfg
    node = with_prevalence(config(tmp_path)).MODEL.FX.CLS
    assert set(node.LABELLED) == set(node.PREVALENCE) == {"cxr_lt", "mura"}
    assert len(set(node.LABELLED.cxr_lt)) == 1 and node.LABELLED.mura[0] > 20


def test_wrong_numbers(tmp_path: Path) -> None:
    cfg = config(tmp_path).clone()
    cfg.defrost()
    cfg.MODEL.FX.CLS.LABELLED.mura = [-1]
    with pytest.raises(ConfigError, match=r"LABELLED.mura is \[-1\]; expected 1 numbers of 0 or"):
        check_config(cfg, train=True)
