"""What a study file may say, and which runs it makes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from studies import FEW_SHOT, ROOT, WORLD, tiny_study, write_study

from fx_d2.data.build import source_of
from fx_d2.data.catalog import ROOT_VARIABLE
from fx_d2.engine.cycle_config import build_plan
from fx_d2.engine.setup import ConfigError, load_config
from fx_d2.engine.study import overlaid, read_study, settings
from fx_d2.engine.study_budget import heads_of, without_idle_patterns
from fx_d2.engine.study_folder import check_folders, note, state_of
from fx_d2.engine.study_plan import as_file, plan, sources_of
from fx_d2.engine.trainer import FxTrainer
from fx_d2.phantom.world import make_world

FILES = sorted((ROOT / "configs/studies").glob("*.yaml"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, patients=12, seed=1, sources=WORLD["sources"], size_px=64)
    return folder


@pytest.fixture
def data(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ROOT_VARIABLE, str(world))
    return world


def jobs_of(tmp_path: Path, *, count: bool = False, **changes):
    return plan(read_study(write_study(tmp_path, tiny_study(**changes))), tmp_path, count=count)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arm": {}}, ("'arm'", "'arms'")),
        ({"arms": {"a": {"override": {}}}}, ("arms.a", "'override'", "'overrides'")),
        ({"arms": {"a": {"joint": True, "each_head": True}}}, ("each_head and joint", "one")),
        ({"arms": {"a": {"joint": "yes"}}}, ("arms.a.joint", "true or false")),
        ({"arms": {"a": {"train": False}}}, ("nothing would be done",)),
        ({"arms": {"a": {"overrides": {"SEED": 3}}}}, ("SEED", "the study sets")),
        ({"arms": {"a": {"overrides": {"OUTPUT_DIR": "x"}}}}, ("OUTPUT_DIR",)),
        (
            {"arms": {"a": {"joint": True, "overrides": {"SOLVER.MAX_ITER": 3}}}},
            ("SOLVER.MAX_ITER", "'joint'"),
        ),
        ({"arms": {"a": {"layers": ["no.yaml"]}}}, ("arms.a.layers", "no.yaml")),
        ({"arms": {"../a": {}}}, ("'../a'", "name of a folder")),
        ({"arms": {"cache": {}}}, ("'cache'",)),
        ({"arms": {}}, ("arms is empty",)),
        ({"arms": []}, ("arms is '[]'", "mapping")),
        ({"scorings": -1}, ("scorings", "from 0")),
        ({"seeds": [1, 1]}, ("seeds", "different")),
        ({"seeds": [1.5]}, ("seeds", "1.5")),
        ({"seeds": []}, ("seeds",)),
        ({"config": "nowhere.yaml"}, ("config", "nowhere.yaml")),
        ({"world": {"patients": 0, "seed": 1}}, ("world.patients", "from 1")),
        ({"world": {"patients": 9}}, ("no 'seed'",)),
        ({"world": {"patients": 9, "seed": 1, "sources": ["rnsa"]}}, ("rnsa", "rsna")),
        ({"arms": {"a": {"then": {"t": {"images": []}}}}}, ("a.then.t.images",)),
        ({"arms": {"a": {"then": {"t": {"images": ["most"]}}}}}, ("most", "whole number")),
        ({"arms": {"a": {"then": {"t": {}}}}}, ("no 'images'",)),
        (
            {"arms": {"a": {"then": {"t": FEW_SHOT | {"score_at": ["soon"]}}}}},
            ("a.then.t.score_at", "soon", "number"),
        ),
        (
            {"arms": {"a": {"each_head": True, "then": {"t": {"images": [3]}}}}},
            ("no single weights",),
        ),
        (
            {"arms": {"a": {"train": False, "then": {"t": FEW_SHOT | {"weights": "{weights}"}}}}},
            ("{weights}", "train: false"),
        ),
    ],
)
def test_a_wrong_study_is_one_line(tmp_path: Path, changes, told):
    file = write_study(tmp_path, tiny_study(**changes))
    with pytest.raises(ConfigError) as caught:
        read_study(file)
    said = str(caught.value)
    assert str(file) in said and "\n" not in said
    for word in told:
        assert word in said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("- 1", "a study is"),
        ("a: [", "while parsing"),
        ("seeds: [1]\nseeds: [2]", "'seeds' stands twice"),
        ("arms:\n  a: {}\n  a: {}", "'a' stands twice"),
        ("config: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
    ],
)
def test_text_that_is_no_study(tmp_path: Path, text: str, told: str):
    with pytest.raises(ConfigError, match=told):
        read_study(write_study(tmp_path, text))
    with pytest.raises(ConfigError, match=r"no study file .*study\.yaml"):
        read_study(tmp_path / "studi.yaml")


def test_shared_parts_may_be_merged_and_changed(tmp_path: Path):
    text = yaml.safe_dump(tiny_study(arms={"x": None})).replace("arms:\n  x: null\n", "")
    text += """
arms:
  a: &a {overrides: &o {SOLVER.BASE_LR: 0.1, SOLVER.MAX_ITER: 3}}
  b: &b {<<: *a, about: as a}
  c: {<<: *b, overrides: {<<: *o, SOLVER.MAX_ITER: 4}}
"""
    study = read_study(write_study(tmp_path, text))
    assert study.arm("b").overrides == study.arm("a").overrides
    assert study.arm("c").overrides["SOLVER"] == {"BASE_LR": 0.1, "MAX_ITER": 4}
    with pytest.raises(ConfigError, match="arm 'bb' does not exist; did you mean 'b'"):
        study.arm("bb")


def test_dotted_keys_and_groups_meet():
    assert settings({"A.B": 1, "A": {"C": {"D": 2}}, "A.C.E": 3}, "x") == {
        "A": {"B": 1, "C": {"D": 2, "E": 3}}
    }
    assert overlaid({"A": {"B": 1}, "C": [1, 2]}, {"A": 5, "C": [3]}) == {"A": 5, "C": [3]}


def test_a_key_that_no_config_has_names_the_arm(tmp_path: Path):
    for arm in ({"overrides": {"SOLVER.MAX_ITR": 3}}, {"overrides": {"SOLVER": 3}}):
        with pytest.raises(ConfigError, match=r"arms\.odd") as caught:
            jobs_of(tmp_path, arms={"odd": arm})
        assert "SOLVER" in str(caught.value) and "run.yaml" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"common: .*rnsa_train.*rsna_train"):
        jobs_of(tmp_path, common={"DATASETS.TRAIN": ["rnsa_train"]})


def test_what_is_not_scored_cannot_be_compared(tmp_path: Path):
    arms = {"blind": {"overrides": {"DATASETS.TEST": []}}}
    with pytest.raises(ConfigError, match=r"arms\.blind: DATASETS\.TEST is empty"):
        jobs_of(tmp_path, arms=arms)


def test_later_files_win(tmp_path: Path):
    layer = tmp_path / "layer.yaml"
    layer.write_text("SOLVER: {BASE_LR: 0.5, WEIGHT_DECAY: 0.5, MOMENTUM: 0.5}\n")
    common = tiny_study()["common"] | {"SOLVER.BASE_LR": 0.1, "SOLVER.GAMMA": 0.25}
    arm = {"layers": ["layer.yaml"], "overrides": {"SOLVER.MOMENTUM": 0.75}}
    (job,) = jobs_of(tmp_path, common=common, arms={"a": arm}, seeds=[3])
    solver = job.cfg.SOLVER
    found = (solver.BASE_LR, solver.WEIGHT_DECAY, solver.MOMENTUM, solver.GAMMA)
    assert found == (0.5, 0.5, 0.75, 0.25)
    # The file of the run says the same to train_net.py.
    file = tmp_path / "run.yaml"
    file.write_text(as_file(job.body))
    assert load_config(str(file)).dump() == job.cfg.dump()


def test_every_head_gets_the_steps_of_the_cycle(tmp_path: Path, data: Path):
    arms = {"locked": None, "single": {"each_head": True}, "mixed": {"joint": True}}
    common = tiny_study()["common"] | {
        "CYCLE.CYCLES": 3,
        "CYCLE.MAX_STEPS_PER_PHASE": 0,
        "SOLVER.WARMUP_ITERS": 5,
        "FORGETTING.AFTER": "slot",
    }
    jobs = jobs_of(tmp_path, count=True, arms=arms, common=common, seeds=[1])
    locked, single = jobs[0], {job.head: job for job in jobs if job.arm == "single"}
    assert set(single) == {"shenzhen/cls", "rsna/cls", "rsna/loc"}
    # A source's cls phase shows all images once, its loc phases half of them and all.
    n = {key: single[key].steps // 3 for key in single}
    loader = FxTrainer.build_train_loader(locked.cfg)
    for key in ("shenzhen/cls", "rsna/cls"):
        assert n[key] == loader.steps_per_pass(*key.split("/"))
    half = loader.steps_per_pass("rsna", "loc", 0.5)
    assert n["rsna/loc"] == n["rsna/cls"] + half and half > 0
    assert sum(job.steps for job in single.values()) == locked.steps
    for key, job in single.items():
        assert heads_of(job.cfg) == [tuple(key.split("/"))]
        assert [source_of(name).key for name in job.cfg.DATASETS.TEST] == [key.split("/")[0]]
        plan_of_run = build_plan(job.cfg, FxTrainer.build_train_loader(job.cfg))
        assert plan_of_run.max_iter == job.steps and plan_of_run.schedule is None
        assert min(5, job.steps // 10) == job.cfg.SOLVER.WARMUP_ITERS
        assert job.cfg.FORGETTING.AFTER == ""
    mixed = jobs[-1]
    assert mixed.arm == "mixed" and mixed.steps == locked.steps
    ratio = dict(text.split("=") for text in mixed.cfg.DATALOADER.FX.DATASET_RATIO)
    assert {key: int(number) for key, number in ratio.items()} == {k: 3 * n[k] for k in n}
    after = mixed.cfg.FORGETTING
    assert ("iterations", locked.steps // 3) == (after.AFTER, after.PERIOD)


def test_every_arm_is_scored_equally_often(tmp_path: Path, data: Path):
    arms = {
        "locked": {"overrides": {"CYCLE.CYCLES": 3}},
        "mixed": {"joint": True},
        "single": {"each_head": True},
        "own": {"overrides": {"FORGETTING.AFTER": "slot"}},
    }
    jobs = jobs_of(tmp_path, count=True, arms=arms, seeds=[1], scorings=3)
    found = {job.name: (job.steps, job.cfg.FORGETTING) for job in jobs}
    # Three heads of two, two and two times two steps, three times in "locked".
    assert [found[f"{name} seed 1"][0] for name in ("locked", "mixed")] == [24, 8]
    for name, period in (("locked", 8), ("mixed", 3)):
        after = found[f"{name} seed 1"][1]
        assert (after.AFTER, period) == ("iterations", after.PERIOD)
    assert found["own seed 1"][1].AFTER == "slot"
    assert found["single rsna/loc seed 1"][1].AFTER == ""


def test_no_cycle_has_no_budget(tmp_path: Path, data: Path):
    common = tiny_study()["common"] | {"CYCLE.NAME": "", "CYCLE.CYCLES": 0}
    with pytest.raises(ConfigError, match="joint training; .*name one in 'config'"):
        jobs_of(tmp_path, count=True, common=common)
    # Arms that need none are free to have none.
    jobs = jobs_of(tmp_path, count=True, common=common, arms={"a": None})
    assert {job.steps for job in jobs} == {12}


def test_runs_are_known_again_wherever_they_lie(tmp_path: Path):
    for name in "ab":
        (tmp_path / name).mkdir()
    few = {"then": {"target": FEW_SHOT}}
    here, there = (
        jobs_of(tmp_path / name, arms={"x": few}, world={**WORLD, "cache": 64}) for name in "ab"
    )
    marks = [job.fingerprint for job in here]
    assert marks == [job.fingerprint for job in there] and len(set(marks)) == 4
    assert [job.name for job in here] == [
        *("x seed 1", "x seed 1 target", "x seed 2", "x seed 2 target")
    ]
    for change in ({"seed": 2}, {"cache": 128}):
        other = jobs_of(tmp_path / "a", arms={"x": few}, world={**WORLD, "cache": 64, **change})
        assert not {job.fingerprint for job in other} & set(marks)
    # Another pretraining makes another fine-tuning of the same settings.
    changed = few | {"overrides": {"SOLVER.BASE_LR": 0.5}}
    other = jobs_of(tmp_path / "a", arms={"x": changed}, world={**WORLD, "cache": 64})
    assert not {job.fingerprint for job in other} & set(marks)


def test_few_shot_runs_start_from_their_arm_or_from_nothing(tmp_path: Path, data: Path):
    arms = {
        "trained": {"then": {"target": FEW_SHOT | {"seeds": [2]}}},
        "scratch": {"train": False, "then": {"target": FEW_SHOT | {"images": ["full", 3, 2]}}},
    }
    study = read_study(write_study(tmp_path, tiny_study(arms=arms)))
    jobs = plan(study, tmp_path, count=False)
    later = {(job.arm, job.seed): job for job in jobs if job.then}
    assert set(later) == {("trained", 2), ("scratch", 1), ("scratch", 2)}
    job = later["trained", 2]
    assert [(other.arm, other.seed) for other in job.after] == [("trained", 2)]
    weights = tmp_path / "trained/seed2/model_final.safetensors"
    assert job.body["MODEL"]["WEIGHTS"] == str(weights) and job.steps == 2 * 2 * 2
    scratch = later["scratch", 1]
    assert not scratch.after and scratch.body["MODEL"]["WEIGHTS"] == ""
    assert scratch.images == (3, 2)
    counted = {(j.arm, j.seed): j for j in plan(study, tmp_path) if j.then}["scratch", 1]
    assert counted.images[1:] == (3, 2) and counted.images[0] > 3
    assert counted.fingerprint == scratch.fingerprint
    with pytest.raises(ConfigError, match=r"scratch\.then\.t\.images has 99, but there are \d+ "):
        arm = {"train": False, "then": {"t": FEW_SHOT | {"images": [99]}}}
        jobs_of(tmp_path, arms={"scratch": arm}, count=True)
    assert sources_of(study, jobs) == ["shenzhen", "rsna", "montgomery"]
    two = FEW_SHOT["overrides"] | {"DATASETS.TRAIN": ["rsna_train", "shenzhen_train"]}
    with pytest.raises(ConfigError, match=r"scratch\.then\.t: .* one source"):
        arm = {"train": False, "then": {"t": FEW_SHOT | {"overrides": two}}}
        jobs_of(tmp_path, arms={"scratch": arm})


def test_patterns_over_other_heads_are_dropped_for_one_head(tmp_path: Path):
    factors = ["heads.cls.*=3", "heads.loc.*=2", "trunk.*=0.5"]
    common = tiny_study()["common"] | {"SOLVER.FX.LR_FACTORS": factors}
    jobs = jobs_of(tmp_path, common=common, arms={"one": {"each_head": True}}, seeds=[1])
    for job in jobs:
        body = without_idle_patterns(job.body, job.cfg)
        task = job.head.rpartition("/")[2]
        assert body["SOLVER"]["FX"]["LR_FACTORS"] == [
            text for text in factors if text.startswith((f"heads.{task}", "trunk"))
        ]
        assert list(job.cfg.SOLVER.FX.LR_FACTORS) == factors  # by which it is known


def test_a_folder_of_other_settings_is_refused(tmp_path: Path):
    jobs = jobs_of(tmp_path, seeds=[1])
    check_folders(jobs)
    note(jobs[0], 2.0, done=False)
    check_folders(jobs)
    assert [state_of(job) for job in jobs] == ["begun", "to do"]
    other = jobs_of(
        tmp_path, seeds=[1], common=tiny_study()["common"] | {"SOLVER.BASE_LR": 0.25}
    )  # fmt: skip
    with pytest.raises(ConfigError, match=r"SOLVER.BASE_LR was 0.001, the study says 0.25"):
        check_folders(other)
    # A run made by hand is not gone on with.
    state = jobs[1].folder
    state.mkdir(parents=True)
    (state / "config.yaml").write_text("SEED: 1\n")
    with pytest.raises(ConfigError, match="its settings are not known"):
        check_folders(jobs)
    (jobs[0].folder / "study_run.json").write_text(json.dumps([1]))
    with pytest.raises(ConfigError, match="locked/seed1 is a run of other settings"):
        check_folders(jobs)


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)
def test_every_study_file_is_planned(file: Path, tmp_path: Path):
    study = read_study(file)
    jobs = plan(study, tmp_path, count=False)
    assert len({job.folder for job in jobs}) == len(jobs)
    assert {job.arm for job in jobs} == {arm.name for arm in study.arms}
    assert {job.seed for job in jobs} == set(study.seeds)
    assert sources_of(study, jobs)


def test_the_study_of_the_page(tmp_path: Path):
    page = (ROOT / "docs/studies.md").read_text("utf-8")
    text = page.partition("```yaml\n")[2].partition("```")[0]
    text = text.replace("config: ../", f"config: {ROOT}/configs/")
    study = read_study(write_study(tmp_path, text))
    jobs = plan(study, tmp_path, count=False)
    assert [job.name for job in jobs if job.seed == 2 and not job.head] == [
        *("mixed seed 2", "unlocked seed 2", "locked seed 2"),
        *("locked seed 2 lungs", "scratch seed 2 lungs"),
    ]
    named = set(re.findall(r"^\| `(\w+)", page, re.MULTILINE)) - {"study"}
    assert named >= {"overrides", "layers", "each_head", "joint", "train", "about", "then"}
