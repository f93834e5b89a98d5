"""Targets of a chain: folds, their data, and the networks of another chain to start from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fx_d2.engine.setup import ConfigError
from fx_d2.engine.study import overlaid
from fx_d2.pipelines.doll.chain import read_chain
from fx_d2.pipelines.doll.chain_stages import ChainRun
from fx_d2.pipelines.doll.chain_targets import AdaptRun, Pretrained

ROOT = Path(__file__).resolve().parents[3]
CONFIGS = ROOT / "configs"
TOOLS = ROOT / "tools"
BODY: dict[str, Any] = {
    "targets": {
        "jsrt": {
            "config": str(CONFIGS / "quick_schedules/doll_adapt_instant_test.yaml"),
            "images": [4],
            "modes": ["full", "heads"],
            "folds": True,
            "cache": 64,
        }
    },
    "seeds": [1, 2],
}


def chain_file(folder: Path, **changes: Any) -> Path:
    file = folder / "chain.yaml"
    file.write_text(yaml.safe_dump(overlaid(BODY, changes)), "utf-8")
    return file


def other_chain(folder: Path, seeds: tuple[int, ...] = (1, 2), chosen: bool = True) -> Path:
    """What a chain leaves of its networks; the epoch of a seed is its number."""
    for seed in seeds:
        own = folder / "pretrain" / f"seed{seed}"
        own.mkdir(parents=True)
        (own / "results.json").write_text("{}")
        for name in ("model_final", f"model_epoch_{seed:03d}"):
            (own / f"{name}.safetensors").write_bytes(f"{name} {seed}".encode())
        if chosen:
            choice = folder / "choose" / f"seed{seed}" / "best_epoch.json"
            choice.parent.mkdir(parents=True)
            # The folder was another one when the epochs were tried.
            body = {"weights": f"/elsewhere/model_epoch_{seed:03d}.safetensors"}
            choice.write_text(json.dumps(body))
    return folder


def run_of(folder: Path, start: Path, **changes: Any) -> AdaptRun:
    return AdaptRun(read_chain(chain_file(folder, **changes)), start, folder / "out", TOOLS)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"world": {"patients": 4, "seed": 1}}, "world has no use without members, masks"),
        ({"choose": {"config": "x.yaml"}}, "choose has no use without members, masks"),
        ({"pretrain": {"config": "x.yaml"}}, "has no 'members'"),
        ({"targets": {}, "seeds": [1]}, "a fold per seed, and there is one seed"),
        ({"targets": {"jsrt": {"folds": 3}}}, "targets.jsrt.folds is '3'; allowed: true or false"),
        ({"targets": {"jsrt": {"cache": -1}}}, "targets.jsrt.cache is '-1'"),
    ],
)
def test_what_is_no_chain_of_targets_is_one_line(tmp_path: Path, changes: dict, told: str):
    with pytest.raises(ConfigError) as caught:
        read_chain(chain_file(tmp_path, **changes))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_a_seed_has_its_own_fold_and_the_epoch_that_was_chosen(tmp_path: Path):
    start = other_chain(tmp_path / "other")
    run = run_of(tmp_path, start)
    assert [stage.name for stage in run.stages()] == ["data", "adapt"]
    jobs = run.targets.jobs(run.pretrained.starts(), count=False)
    assert {(j.arm, j.seed, j.then.name) for j in jobs if j.then} == {
        (arm, seed, f"jsrt_{mode}")
        for seed in (1, 2)
        for arm, mode in (("doll", "full"), ("doll", "heads"), ("random", "full"))
    }
    for job in jobs:
        split = tmp_path / f"out/splits/jsrt_fold{job.seed}.json"
        assert job.body["DATASETS"]["SPLIT_FILES"] == {"jsrt": str(split)}
        assert job.body["INPUT"]["FX"]["CACHE"] == str(tmp_path / "out/cache")
        chosen = start / f"pretrain/seed{job.seed}/model_epoch_{job.seed:03d}.safetensors"
        assert job.body["MODEL"]["WEIGHTS"] == (str(chosen) if job.arm == "doll" else "")
    assert not (tmp_path / "out").exists()


def test_without_a_choice_the_last_epoch_is_adapted(tmp_path: Path):
    run = run_of(tmp_path, other_chain(tmp_path / "other", chosen=False))
    assert {path.name for path in run.pretrained.starts().values()} == {"model_final.safetensors"}


def test_the_start_of_a_seed_is_known_when_its_pre_training_is_finished(tmp_path: Path):
    had = Pretrained(tmp_path, (1, 2), chosen=False)
    assert not had.all_known()
    other_chain(tmp_path, (1,), chosen=False)
    assert had.known(1) and not had.known(2) and not had.all_known()
    assert not Pretrained(tmp_path, (1,), chosen=True).known(1)


def prints(run: AdaptRun) -> dict[str, str]:
    jobs = run.targets.jobs(run.pretrained.starts(), count=False)
    return {job.name: job.fingerprint for job in jobs}


def test_a_run_is_known_by_weights_and_folds_and_not_by_its_place(tmp_path: Path):
    start = other_chain(tmp_path / "other")
    plain = prints(run_of(tmp_path, start))
    (tmp_path / "elsewhere").mkdir()
    assert prints(run_of(tmp_path / "elsewhere", start)) == plain

    three = prints(run_of(tmp_path, other_chain(tmp_path / "three", (1, 2, 3)), seeds=[1, 2, 3]))
    assert all(three[name] != mark for name, mark in plain.items())

    (start / "pretrain/seed1/model_epoch_001.safetensors").write_bytes(b"others")
    other = prints(run_of(tmp_path, start))
    changed = {name for name, mark in plain.items() if other[name] != mark}
    assert changed == {"doll seed 1 jsrt_full", "doll seed 1 jsrt_heads"}


def test_the_marks_of_the_stages_tell_what_changed(tmp_path: Path):
    start = other_chain(tmp_path / "other")

    def marks(**changes: Any) -> list[str]:
        return [stage.mark() for stage in run_of(tmp_path, start, **changes).stages()]

    plain = marks()
    assert marks(title="Another") == plain
    data, adapt = marks(targets={"jsrt": {"cache": 96}})
    assert data != plain[0] and adapt == plain[1]
    data, adapt = marks(targets={"jsrt": {"modes": ["full"]}})
    assert data == plain[0] and adapt != plain[1]


@pytest.mark.parametrize(
    ("seeds", "broken", "told"),
    [
        ((1,), "", "seed2 has no finished pre-training; there are: seed1"),
        ((), "", "seed1 has no finished pre-training; there are: none"),
        ((1, 2), "pretrain/seed2/results.json", "seed2 has no finished pre-training"),
        ((1, 2), "choose/seed2/best_epoch.json", "so no epoch is chosen"),
    ],
)
def test_another_chain_that_is_not_finished(tmp_path: Path, seeds: tuple, broken: str, told: str):
    start = other_chain(tmp_path / "other", seeds)
    if broken:
        (start / broken).unlink()
    with pytest.raises(ConfigError, match=told):
        run_of(tmp_path, start)
    assert not (tmp_path / "out").exists()


def test_the_folder_of_the_other_chain_is_not_written_to(tmp_path: Path):
    start = other_chain(tmp_path / "out")
    with pytest.raises(ConfigError, match="name another --out"):
        run_of(tmp_path, start)


def test_folds_of_a_whole_chain_come_before_its_targets(tmp_path: Path):
    quick = CONFIGS / "quick_schedules/doll_chain_instant_test.yaml"
    body = overlaid(yaml.safe_load(quick.read_text("utf-8")), BODY)
    text = yaml.safe_dump(body).replace("config: doll_", f"config: {quick.parent}/doll_")
    file = tmp_path / "chain.yaml"
    file.write_text(text.replace("config: ../", f"config: {CONFIGS}/"), "utf-8")
    run = ChainRun(read_chain(file), tmp_path / "out", TOOLS)
    assert [stage.name for stage in run.stages()][-3:] == ["choose", "data", "adapt"]


def test_the_chain_of_real_films_can_be_planned(tmp_path: Path):
    chain = read_chain(CONFIGS / "doll/chain_covid19_seg.yaml")
    run = AdaptRun(chain, other_chain(tmp_path / "other", (1, 2, 3)), tmp_path / "out", TOOLS)
    jobs = run.targets.planned
    assert len(jobs) == 9 and {job.seed for job in jobs} == {1, 2, 3}
    # The networks of both chains are the same.
    phantom = read_chain(CONFIGS / "doll/chain_phantom.yaml")
    network = ChainRun(phantom, tmp_path / "phantom", TOOLS).targets.planned[0].cfg
    for job in jobs:
        assert job.cfg.MODEL.FX.TRUNK == network.MODEL.FX.TRUNK
        assert job.cfg.MODEL.FX.SEG == network.MODEL.FX.SEG
        assert job.cfg.INPUT.FX.SIZE == network.INPUT.FX.SIZE
