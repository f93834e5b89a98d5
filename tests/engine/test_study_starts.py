"""Arms that need other arms, data prepared before the runs, and metrics that are chosen."""

from __future__ import annotations

from pathlib import Path

import pytest
from studies import tiny_study, write_study

from fx_d2.engine.setup import ConfigError
from fx_d2.engine.study import overlaid, read_study
from fx_d2.engine.study_plan import Job, plan


def jobs_of(tmp_path: Path, **changes) -> list[Job]:
    return plan(read_study(write_study(tmp_path, tiny_study(**changes))), tmp_path, count=False)


CHAIN = {
    "plain": None,
    "tuned": {"weights": "{plain}", "overrides": {"SOLVER.BASE_LR": 0.5}},
    "both": {"ensemble": ["plain", "tuned"]},
}


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"arms": {"a": None, "b": {"weights": "{aa}"}}}, ("arms.b.weights", "'aa'", "mean 'a'")),
        ({"arms": {"b": {"weights": "{a}"}, "a": None}}, ("'a' has to stand above 'b'",)),
        ({"arms": {"a": {"weights": "{a}"}}}, ("'a' has to stand above 'a'",)),
        ({"arms": {"a": {"weights": "x.safetensors"}}}, ('write "{arm}"', "MODEL.WEIGHTS")),
        (
            {"arms": {"a": None, "b": {"weights": "{a}", "overrides": {"MODEL.WEIGHTS": "x"}}}},
            ("MODEL.WEIGHTS", "the study sets"),
        ),
        ({"arms": {"a": {"each_head": True}, "b": {"weights": "{a}"}}}, ("no single weights",)),
        ({"arms": {"a": None, "b": {"each_head": True, "weights": "{a}"}}}, ("no use",)),
        ({"arms": {"a": None, "b": {"ensemble": ["a"]}}}, ("two or more",)),
        ({"arms": {"a": None, "b": {"ensemble": ["a", "a"]}}}, ("two or more different",)),
        ({"arms": {**CHAIN, "c": {"ensemble": ["plain", "both"]}}}, ("'ensemble'", "no single")),
        ({"arms": {**CHAIN, "c": {"ensemble": ["plain", "tund"]}}}, ("ensemble", "mean 'tuned'")),
        ({"arms": {"a": {"ensemble": "a"}}}, ("a.ensemble", "write a list")),
        ({"prepare": "make_split.py --out x; rm -r y"}, ("prepare", "write a list")),
        ({"prepare": [["rm", "-r"]]}, ("prepare[0]: tool 'rm'", "make_lesion_mix.py")),
        ({"prepare": [["../make_split.py"]]}, ("'../make_split.py'", "'make_split.py'")),
        ({"prepare": [[]]}, ("prepare[0] is empty",)),
        ({"prepare": [["make_split.py", ["x"]]]}, ("texts and numbers",)),
        ({"metrics": ["AUC"]}, ("'AUC'", "task/metric")),
        ({"metrics": ["classification/AUC"]}, ("task/metric",)),
    ],
)
def test_wrong_starts_prepared_data_and_metrics_are_one_line(tmp_path: Path, changes, told):
    file = write_study(tmp_path, tiny_study(**changes))
    with pytest.raises(ConfigError) as caught:
        read_study(file)
    said = str(caught.value)
    assert str(file) in said and "\n" not in said
    for word in told:
        assert word in said


def test_arms_start_from_arms_of_their_seed(tmp_path: Path):
    jobs = {job.name: job for job in jobs_of(tmp_path, arms=CHAIN)}
    assert list(jobs)[:3] == ["plain seed 1", "tuned seed 1", "both seed 1"]
    plain, tuned, both = (jobs[f"{arm} seed 2"] for arm in CHAIN)
    assert tuned.after == (plain,) and both.after == (plain, tuned) and not plain.after
    files = [str(tmp_path / f"{arm}/seed2/model_final.safetensors") for arm in ("plain", "tuned")]
    assert tuned.body["MODEL"]["WEIGHTS"] == files[0]
    assert both.body["MODEL"]["FX"]["ENSEMBLE"] == files and both.ensemble and both.steps == 0
    assert not plain.ensemble and not tuned.ensemble
    # Other weights to start from are another run.
    other = overlaid(tiny_study()["common"], {"SOLVER.BASE_LR": 0.25})
    again = {job.name: job for job in jobs_of(tmp_path, arms=CHAIN, common=other)}
    assert tuned.cfg.SOLVER.BASE_LR == again["tuned seed 2"].cfg.SOLVER.BASE_LR == 0.5
    for arm in CHAIN:
        assert jobs[f"{arm} seed 2"].fingerprint != again[f"{arm} seed 2"].fingerprint


def test_prepared_data_are_of_the_runs_that_use_them(tmp_path: Path):
    arms = {
        "plain": None,
        "mixed": {"overrides": {"INPUT.FX.LESION_MIX": {"FOLDER": "{out}/mix", "PROB": 0.5}}},
    }

    def found(folder: str, *words: object) -> dict[str, str]:
        prepare = [["make_lesion_mix.py", "--out", "{out}/mix", *words]]
        study = read_study(write_study(tmp_path, tiny_study(arms=arms, prepare=prepare)))
        jobs = plan(study, tmp_path / folder, count=False)
        mixed = next(job for job in jobs if job.arm == "mixed")
        assert str(tmp_path / folder / "mix") == mixed.cfg.INPUT.FX.LESION_MIX.FOLDER
        return {job.name: job.fingerprint for job in jobs}

    first, moved, other = found("a"), found("b"), found("a", "SEED", 3)
    assert first == moved
    assert first["plain seed 1"] == other["plain seed 1"]
    assert first["mixed seed 1"] != other["mixed seed 1"]


def test_a_metric_that_no_run_gives_is_told_before(tmp_path: Path):
    for name in ("cls/AUC", "loc/AP40", "cls/AP"):
        assert jobs_of(tmp_path, metrics=[name])
    with pytest.raises(ConfigError, match=r"metrics: 'cls/AUCC' .*did you mean 'cls/AUC'"):
        jobs_of(tmp_path, metrics=["cls/AUCC"])
    with pytest.raises(ConfigError, match="'cls/AP_tail' does not exist"):
        jobs_of(tmp_path, metrics=["cls/AP_tail"])
    common = tiny_study()["common"] | {"TEST.FX.TAIL": [0.01, 0.1]}
    assert jobs_of(tmp_path, metrics=["cls/AP_tail"], common=common)
