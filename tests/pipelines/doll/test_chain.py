"""Chain files: what is wrong is one line, and what a chain is of decides what is done again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fx_d2.data.pseudo_masks import FORMAT, MADE_NAME
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.study import overlaid
from fx_d2.pipelines.doll.chain import read_chain
from fx_d2.pipelines.doll.chain_calls import Calls
from fx_d2.pipelines.doll.chain_stages import STAGES, ChainRun, chain_datasets

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
QUICK = CONFIGS / "quick_schedules/doll_chain_instant_test.yaml"
TOOLS = ROOT / "tools"


def chain_file(folder: Path, **changes: Any) -> Path:
    """The quick chain with other settings; None takes a group away."""
    body = yaml.safe_load(QUICK.read_text("utf-8"))
    text = yaml.safe_dump({k: v for k, v in overlaid(body, changes).items() if v is not None})
    text = text.replace("config: doll_", f"config: {QUICK.parent}/doll_")
    text = text.replace("config: ../", f"config: {CONFIGS}/")
    file = folder / "chain.yaml"
    file.write_text(text, "utf-8")
    return file


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mask": {}}, "'mask' does not exist; did you mean 'masks'"),
        ({"members": None}, "has no 'members'"),
        ({"members": {"a": {"confg": "x"}}}, "did you mean 'config'"),
        ({"members": {"a/b": {"config": "x"}}}, "cannot be the name of a folder"),
        ({"members": {"c": {"path": "nowhere"}}}, "members.c.path: there is no"),
        ({"members": {"a": {"path": "x"}}}, "has 'path', which is trained already, and 'config'"),
        ({"members": {"a": {"weight": "much"}}}, "members.a.weight is 'much'"),
        ({"members": {"a": {"config": "nowhere.yaml"}}}, "there is no file"),
        ({"masks": {"overrides": {"lables": {}}}}, "did you mean 'labels'"),
        ({"masks": {"overrides": {"members": []}}}, "the chain's own 'members'"),
        ({"targets": {"jsrt": {"modes": ["ful"]}}}, "did you mean 'full'"),
        ({"targets": {"jsrt": {"weights": "x"}}}, "'weights', which the chain sets"),
        ({"targets": {"jsrt": {"image": [4]}}}, "'image' does not exist; did you mean 'images'"),
        ({"seeds": []}, "one or more different whole numbers"),
    ],
)
def test_what_is_no_chain_is_one_line(tmp_path: Path, changes: dict, told: str):
    with pytest.raises(ConfigError) as caught:
        read_chain(chain_file(tmp_path, **changes))
    said = str(caught.value)
    assert told in said and "\n" not in said and "chain.yaml" in said


def run_of(folder: Path, **changes: Any) -> ChainRun:
    return ChainRun(read_chain(chain_file(folder, **changes)), folder / "out", TOOLS)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"masks": {"overrides": {"dataset": "chestx_det_trian"}}}, "chestx_det_train"),
        ({"masks": {"overrides": {"labels": {"top_shar": 0.1}}}}, "top_share"),
        ({"masks": {"overrides": {"val_share": 0.0}}}, "held-out masks"),
        ({"members": {"a": {"overrides": {"SOLVER.MAX_ITR": 3}}}}, "SOLVER.MAX_ITER"),
        ({"pretrain": {"overrides": {"CYCLE.CYCLS": 3}}}, "CYCLE.CYCLES"),
        ({"choose": {"overrides": {"SOLVER.MAX_ITR": 3}}}, "SOLVER.MAX_ITER"),
        ({"targets": {"jsrt": {"score_at": [0.333]}}}, "whole percents"),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_made(tmp_path: Path, changes: dict, told: str):
    with pytest.raises(ConfigError) as caught:
        run_of(tmp_path, **changes)
    said = str(caught.value)
    assert told in said and "\n" not in said and not (tmp_path / "out").exists()


def marks(run: ChainRun) -> dict[str, str]:
    return {stage.name: stage.mark() for stage in run.stages()}


def test_a_change_concerns_its_stage_and_those_after(tmp_path: Path):
    plain = marks(run_of(tmp_path))
    assert tuple(plain) == STAGES and not (tmp_path / "out").exists()
    assert marks(run_of(tmp_path, title="Another")) == plain
    (tmp_path / "elsewhere").mkdir()
    assert marks(run_of(tmp_path / "elsewhere")) == plain
    for stage, changes in {
        "world": {"world": {"seed": 2}},
        "classify": {"members": {"b": {"seed": 3}}},
        "explain": {"masks": {"overrides": {"quality": {"min_auc": 0.6}}}},
        "pretrain": {"pretrain": {"overrides": {"SOLVER.BASE_LR": 0.5}}},
        "choose": {"choose": {"images": 4}},
        "adapt": {"targets": {"jsrt": {"modes": ["full"]}}},
    }.items():
        other = marks(run_of(tmp_path, **changes))
        same = [name for name in STAGES if other[name] == plain[name]]
        assert tuple(same) == STAGES[: STAGES.index(stage)], stage


def test_stages_that_a_chain_does_not_have(tmp_path: Path):
    (tmp_path / "trained").mkdir()
    members = {"a": None, "b": None, "c": {"path": "trained"}}
    file = chain_file(tmp_path, world=None, choose=None, targets=None)
    body = yaml.safe_load(file.read_text("utf-8"))
    body["members"] = {k: v for k, v in members.items() if v}
    file.write_text(yaml.safe_dump(body), "utf-8")
    run = ChainRun(read_chain(file), tmp_path / "out", TOOLS)
    assert [stage.name for stage in run.stages()] == ["explain", "pretrain"]
    assert run.world is None and run.settings.members[0]["path"] == str(tmp_path / "trained")


@pytest.mark.parametrize("name", ["chain.yaml", "chain_phantom.yaml"])
def test_the_chains_of_the_repository_can_be_planned(tmp_path: Path, name: str):
    run = ChainRun(read_chain(CONFIGS / "doll" / name), tmp_path, TOOLS)
    stages = [stage.name for stage in run.stages()]
    assert stages == [s for s in STAGES if s != "world" or "phantom" in name]
    jobs = run.targets.planned
    assert {job.seed for job in jobs} == {1, 2, 3}
    assert {job.arm for job in jobs} == {"doll", "random"}
    modes = {job.cfg.MODEL.FX.TUNE.MODE for job in jobs if job.arm == "doll"}
    assert modes == {"full", "seg_adapters", "heads"}
    assert {job.cfg.MODEL.FX.TUNE.MODE for job in jobs if job.arm == "random"} == {"full"}
    assert all(job.then and job.then.score_at == (0.25,) for job in jobs)
    assert len(run.member_jobs(count=False)) == 3


def pretrained(run: ChainRun, epochs: dict[int, int]) -> None:
    """As if every seed were trained and an epoch of each chosen; the weights are no weights."""
    for seed, epoch in epochs.items():
        folder, chosen = (
            run.out / "pretrain" / f"seed{seed}",
            f"model_epoch_{epoch:03d}.safetensors",
        )
        folder.mkdir(parents=True)
        for name in (chosen, "model_final.safetensors"):
            (folder / name).write_text(f"{name} of {seed}")
        choice = run.pretrained.choice(seed)
        choice.parent.mkdir(parents=True)
        choice.write_text(json.dumps({"weights": f"/elsewhere/{chosen}"}))


def test_what_is_adapted_are_the_chosen_weights_of_each_seed_and_random_ones(tmp_path: Path):
    run = run_of(tmp_path, seeds=[1, 2])
    pretrained(run, {1: 2, 2: 1})
    starts = run.pretrained.starts()
    assert {seed: file.name for seed, file in starts.items()} == {
        1: "model_epoch_002.safetensors",
        2: "model_epoch_001.safetensors",
    }
    jobs = run.targets.jobs(starts, count=False)
    for job in jobs:
        given = job.body["MODEL"].get("WEIGHTS", "")
        assert given == (str(starts[job.seed]) if job.arm == "doll" else ""), job.name
    modes = {(job.arm, job.cfg.MODEL.FX.TUNE.MODE) for job in jobs}
    assert modes == {("doll", "full"), ("doll", "heads"), ("random", "full")}
    # Other weights in the same place are another run, of that seed.
    starts[2].write_text("trained anew")
    again = run.targets.jobs(run.pretrained.starts(), count=False)
    moved = {
        (a.arm, a.seed) for a, b in zip(jobs, again, strict=True) if a.fingerprint != b.fingerprint
    }
    assert moved == {("doll", 2)}


def test_without_a_probe_the_last_epoch_is_adapted(tmp_path: Path):
    run = run_of(tmp_path, choose=None)
    pretrained(run, {1: 1})
    assert run.pretrained.starts() == {1: run.out / "pretrain/seed1/model_final.safetensors"}


def test_every_seed_is_probed_by_its_own(tmp_path: Path, monkeypatch):
    run, called = run_of(tmp_path, seeds=[1, 2]), []
    monkeypatch.setattr(Calls, "tool", lambda _, words, *__: called.append(list(map(str, words))))
    run._choose()
    for seed, words in zip((1, 2), called, strict=True):
        told = dict(zip(words[1::2], words[2::2], strict=True))
        assert told["--run"] == str(run.out / f"pretrain/seed{seed}") and told["SEED"] == str(seed)
        assert told["--out"] == str(run.pretrained.choice(seed).parent) and told["--images"] == "3"


def test_pretraining_is_scored_on_held_out_masks_and_known_by_them(tmp_path: Path, forget):
    run = run_of(tmp_path)
    assert chain_datasets(run.masks, "chestx_det")["DATASETS"] == {
        "PSEUDO_MASKS": [f"doll={run.masks}"],
        "TRAIN": ["chestx_det_doll_train"],
        "TEST": ["chestx_det_doll_val"],
        "TASKS": ["seg"],
    }
    header = {
        "format": FORMAT, "source": "chestx_det", "dataset": "chestx_det_train",
        "classes": ["Mass"], "kept": ["Mass"], "shards": 1, "fingerprint": "1",
        "val_patients": ["p"],
    }  # fmt: skip
    run.masks.mkdir(parents=True)
    known = []
    for fingerprint in ("1", "1", "2"):
        body = {**header, "fingerprint": fingerprint}
        (run.masks / MADE_NAME).write_text(json.dumps(body))
        (job,) = run.pretrain_jobs(count=False)
        assert job.cfg.DATASETS.TEST == ("chestx_det_doll_val",)
        known.append(job.fingerprint)
    assert known[0] == known[1] != known[2]
