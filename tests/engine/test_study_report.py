"""Figures of a study by hand: runs are written as training leaves them, and read."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import FEW_SHOT, tiny_study, write_study

from fx_d2.data.errors import DataError
from fx_d2.engine.study import Study, read_study
from fx_d2.engine.study_folder import note
from fx_d2.engine.study_plan import FINAL, Job, plan
from fx_d2.engine.study_report import gather, markdown, write_report
from fx_d2.engine.weights import FORMAT, CheckpointFiles, write_checkpoint

ARMS = {
    "single": {"each_head": True},
    "locked": {"about": "with a lock phase", "then": {"target": FEW_SHOT}},
    "scratch": {"train": False, "then": {"target": FEW_SHOT}},
}


@pytest.fixture
def study(tmp_path: Path) -> Study:
    return read_study(write_study(tmp_path, tiny_study(arms=ARMS)))


def finish(job: Job, results: dict[str, Any], steps: int = 8, seconds: float = 1800.0) -> None:
    job.folder.mkdir(parents=True)
    (job.folder / "results.json").write_text(json.dumps({"results": results}))
    about = {"format": FORMAT, "iteration": steps - 1}
    files = CheckpointFiles(job.folder / FINAL)
    write_checkpoint(files, {"w": torch.zeros(1)}, about, None)
    note(job, seconds, done=True)


def shot(job: Job, dice: dict[tuple[int, int], float]) -> None:
    job.folder.mkdir(parents=True)
    runs = [
        {"images": n, "draw": d, "figures": {"montgomery/seg/Dice_positive": v, "other": 9.0}}
        for (n, d), v in dice.items()
    ]
    (job.folder / "few_shot.json").write_text(json.dumps({"runs": runs}))
    note(job, 60.0, done=True)


def done(study: Study, out: Path) -> list[Job]:
    """Both seeds of ``locked``, one and a bit of ``single``; its scores by hand."""
    jobs = plan(study, out, count=False)
    by_name = {job.name: job for job in jobs}
    for seed, auc, ap in ((1, 0.8, 0.3), (2, 0.6, 0.5)):
        job = by_name[f"locked seed {seed}"]
        results = {
            "shenzhen/cls": {"AUC": auc, "F1": 0.1},
            "rsna/cls": {"AUC": auc - 0.2},
            "rsna/loc": {"AP40": ap, "AP": 0.0},
            "teacher/shenzhen/cls": {"AUC": auc + 0.1},
            "teacher/rsna/cls": {"AUC": auc + 0.1},
            "teacher/rsna/loc": {"AP40": ap},
        }
        finish(job, results)
        transfer = {"average_forgetting": 0.1 * seed, "forward_transfer": None, "by_head": {}}
        (job.folder / "forgetting.json").write_text(json.dumps({"summary": {"student": transfer}}))
        shot(by_name[f"scratch seed {seed} target"], {(3, 1): 0.1, (3, 2): 0.3, (2, 1): 0.2})
    for head, figures in (
        ("shenzhen/cls", {"AUC": 0.9}),
        # Its own source's other task is scored by no head of this run.
        ("rsna/cls", {"AUC": 0.7}),
        ("rsna/loc", {"AP40": 0.25}),
    ):
        finish(by_name[f"single {head} seed 1"], {head: figures}, steps=3, seconds=900.0)
    finish(by_name["single rsna/loc seed 2"], {"rsna/loc": {"AP40": 1.0}}, steps=3)
    return jobs


def test_means_and_deviations_by_hand(study: Study, tmp_path: Path):
    jobs = done(study, tmp_path)
    report = gather(study, jobs)
    rows = {(r.kind, r.arm, r.model, r.figure): r for r in report.rows}
    # Mean over the two heads of a seed, then over seeds: (0.7 + 0.5) / 2.
    cls = rows["task", "locked", "student", "cls/AUC"]
    assert cls.values == pytest.approx((0.7, 0.5)) and cls.mean == pytest.approx(0.6)
    assert cls.std == pytest.approx(0.02**0.5)
    teacher = rows["task", "locked", "teacher", "cls/AUC"]
    assert teacher.values == pytest.approx((0.9, 0.7))
    assert rows["head", "locked", "student", "rsna/loc/AP40"].values == (0.3, 0.5)
    lost = rows["forgetting", "locked", "student", "average_forgetting"]
    assert lost.values == pytest.approx((0.1, 0.2))
    assert ("forgetting", "locked", "student", "forward_transfer") not in rows
    # A seed of which two heads are missing does not count.
    single = rows["task", "single", "student", "cls/AUC"]
    assert single.values == pytest.approx((0.8,)) and single.std is None
    assert rows["head", "single", "student", "rsna/loc/AP40"].values == (0.25,)
    assert rows["cost", "single", "", "steps"].values == (9.0,)
    assert rows["cost", "single", "", "hours"].values == pytest.approx((0.75,))
    assert rows["cost", "locked", "", "steps"].values == (8.0, 8.0)
    assert report.seeds == {"single": (1,), "locked": (1, 2), "scratch": ()}
    assert "single rsna/cls seed 2" in report.missing
    assert "single rsna/loc seed 2" not in report.missing


def test_few_shot_values_are_those_of_seeds_and_draws(study: Study, tmp_path: Path):
    report = gather(study, done(study, tmp_path))
    few = {(r.arm, r.images): r for r in report.rows if r.kind == "few-shot"}
    assert few["scratch", 3].values == pytest.approx((0.1, 0.3, 0.1, 0.3))
    assert few["scratch", 3].mean == pytest.approx(0.2) and few["scratch", 2].std == 0
    assert set(few) == {("scratch", 3), ("scratch", 2)}  # those of "locked" are not done
    text = markdown(report, {})
    table = text[text.index("### target") :].splitlines()
    assert "scratch (n=4)" in table[2] and "montgomery/seg/Dice_positive" in table[4]
    assert [cell.strip() for cell in table[4].split("|")[2:4]] == ["3", "0.200 ± 0.115"]
    assert [cell.strip() for cell in table[5].split("|")[2:4]] == ["2", "0.200 ± 0.000 (n=2)"]


def test_the_three_files(study: Study, tmp_path: Path):
    jobs = done(study, tmp_path)
    text = write_report(gather(study, jobs), tmp_path, {"command": "as called"})
    assert (tmp_path / "study.md").read_text("utf-8") == text
    lines = text.splitlines()
    row = next(line for line in lines if line.startswith("| locked") and "teacher" in line)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:5] == ["locked", "teacher", "2", "0.800 ± 0.141", "0.400 ± 0.141"]
    row = next(line for line in lines if line.startswith("| single"))
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == ["single", "student", "1", "0.800", "0.250", "-", "9", "0.75"]
    assert "- command: as called" in lines and "with a lock phase" in text
    assert "average forgetting" in text and "### Not finished" in text
    body = json.loads((tmp_path / "study.json").read_text())
    assert body["metrics"] == {"cls": ["AUC"], "loc": ["AP40"], "seg": ["Dice_positive"]}
    assert body["runs"][0]["arm"] == "single" and len(body["runs"]) == 3
    table = list(csv.DictReader((tmp_path / "study.csv").open(encoding="utf-8")))
    found = next(r for r in table if (r["arm"], r["figure"]) == ("locked", "rsna/loc/AP40"))
    assert (found["n"], float(found["mean"])) == ("2", pytest.approx(0.4))
    assert found["values"] == "0.3 0.5" and found["model"] == "student"
    single = next(r for r in table if (r["arm"], r["figure"]) == ("single", "rsna/loc/AP40"))
    assert single["std"] == ""


def test_a_head_without_a_figure_is_left_out_of_every_mean(study: Study, tmp_path: Path):
    jobs = done(study, tmp_path)
    file = next(j for j in jobs if j.name == "single rsna/cls seed 1").folder / "results.json"
    file.write_text(json.dumps({"results": {"rsna/cls": {"F1": 0.5}}}))
    report = gather(study, jobs)
    rows = {(r.kind, r.arm, r.model, r.figure): r for r in report.rows}
    # Not only of the arm that has none: a mean over other heads could not be compared.
    assert rows["task", "locked", "student", "cls/AUC"].values == pytest.approx((0.8, 0.6))
    assert rows["task", "single", "student", "cls/AUC"].values == pytest.approx((0.9,))
    assert rows["head", "locked", "student", "rsna/cls/AUC"].values == pytest.approx((0.6, 0.4))
    text = markdown(report, {})
    assert "Left out of every mean" in text and "rsna/cls/AUC (single seed 1)" in text


def test_the_columns_are_the_metrics_of_the_study(tmp_path: Path):
    arms = {
        "plain": None,
        "tuned": {"weights": "{plain}"},
        "both": {"ensemble": ["plain", "tuned"]},
    }
    content = tiny_study(arms=arms, seeds=[1], metrics=["cls/F1", "cls/AUC"])
    study = read_study(write_study(tmp_path, content))
    jobs = plan(study, tmp_path, count=False)
    for job, f1 in zip(jobs, (0.25, 0.5, 0.75), strict=True):
        scores = {"F1": f1, "AUC": f1 / 2}
        finish(job, {"shenzhen/cls": scores, "rsna/cls": scores, "rsna/loc": {"AP40": 0.9}})
    (jobs[2].folder / FINAL).unlink()  # an ensemble leaves no weights
    report = gather(study, jobs)
    rows = {(r.kind, r.arm, r.figure): r.values for r in report.rows}
    assert rows["task", "both", "cls/F1"] == (0.75,) and rows["cost", "both", "steps"] == (0.0,)
    assert rows["head", "tuned", "rsna/cls/AUC"] == (0.25,)
    assert not [key for key in rows if "loc" in key[2]]
    text = markdown(report, {})
    header = next(line for line in text.splitlines() if line.startswith("| arm"))
    cells = [cell.strip() for cell in header.split("|")[1:-1]]
    assert cells == ["arm", "model", "seeds", "cls F1", "cls AUC", "steps", "hours"]
    # A figure that one run lacks is left out of every mean; the other of the same head is not.
    (jobs[0].folder / "results.json").write_text(
        json.dumps({"results": {"shenzhen/cls": {"AUC": 0.1, "F1": 0.1}, "rsna/cls": {"AUC": 0.3}}})
    )
    report = gather(study, jobs)
    rows = {(r.kind, r.arm, r.figure): r.values for r in report.rows}
    assert report.left_out == {"rsna/cls/F1": ["plain seed 1"]}
    assert rows["task", "plain", "cls/F1"] == (0.1,)
    assert rows["task", "plain", "cls/AUC"] == pytest.approx((0.2,))


def test_a_damaged_result_is_named(study: Study, tmp_path: Path):
    jobs = done(study, tmp_path)
    file = next(j for j in jobs if j.name == "locked seed 1").folder / "results.json"
    file.write_text("{")
    with pytest.raises(DataError, match=r"locked/seed1/results.json"):
        gather(study, jobs)


def test_nothing_done_is_a_report_too(study: Study, tmp_path: Path):
    report = gather(study, plan(study, tmp_path, count=False))
    text = markdown(report, {})
    assert not report.rows and "- locked seed 1: to do" in text


def test_scores_on_the_way_and_trained_shares_have_lines_of_their_own(study: Study, tmp_path: Path):
    jobs = done(study, tmp_path)
    for seed, job in enumerate((j for j in jobs if j.name.startswith("scratch seed")), 1):
        figures = {
            "montgomery/seg/Dice_positive": 0.6,
            "montgomery/seg/Dice_positive@25%": 0.1 * seed,
            "montgomery/seg/IoU@25%": 0.9,  # not the main metric
            "trained_share": 0.0312,
        }
        body = {"runs": [{"images": 3, "draw": 1, "figures": figures}]}
        (job.folder / "few_shot.json").write_text(json.dumps(body))
    report = gather(study, jobs)
    few = {r.figure: r for r in report.rows if r.kind == "few-shot"}
    assert few["montgomery/seg/Dice_positive@25%"].values == pytest.approx((0.1, 0.2))
    assert few["trained_share"].values == (0.0312, 0.0312) and "IoU" not in str(set(few))
    lines = [line for line in markdown(report, {}).splitlines() if "| 3 " in line]
    cells = {line.split("|")[1].strip(): line.split("|")[3].strip() for line in lines}
    assert cells["montgomery/seg/Dice_positive@25%"] == "0.150 ± 0.071"
    assert cells["trained share"] == "3.12 %"
