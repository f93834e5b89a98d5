"""The chain of DoLL as a user runs it: wrong use, and a whole run that is ended and continued."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from own_process import call

import run_doll
from fx_d2.pipelines.doll.chain_stages import STAGES

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs/quick_schedules/doll_chain_instant_test.yaml"
TARGETS = ROOT / "configs/doll/chain_covid19_seg.yaml"


@pytest.fixture
def command(tmp_path: Path, capsys) -> Callable[..., tuple[int, str, str]]:
    def run(*words: object) -> tuple[int, str, str]:
        given = [] if "--chain" in words else ["--chain", QUICK]
        given += [] if "--out" in words else ["--out", tmp_path / "out"]
        try:
            code = run_doll.main([str(word) for word in (*given, *words)])
        except SystemExit as exc:
            code = int(exc.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_list_makes_nothing(command, tmp_path: Path):
    code, said, _ = command("--list")
    rows = [line.split()[:3] for line in said.splitlines()[2:]]
    assert code == 0 and rows == [[name, "to", "do"] for name in STAGES]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--until", "explian"), "Did you mean 'explain'"),
        (("--chain", "nowhere.yaml"), "there is no chain file nowhere.yaml"),
        (("--out", "file"), "is a file"),
        (("--jobs", "0"), "whole number from 1"),
        (("--from", "."), "--from has no use"),
        (("--chain", TARGETS), "name the folder of a chain that has it: --from DIR"),
        (("--chain", TARGETS, "--from", "nowhere"), "--from nowhere is no folder"),
        (("--chain", TARGETS, "--from", "."), "has no finished pre-training"),
    ],
)
def test_wrong_use_is_one_line(command, tmp_path: Path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    code, _, err = command(*words)
    assert code == 2 and told in err and len(err.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_chain_is_ended_and_continued_to_its_summary(command, tmp_path: Path, monkeypatch):
    out = tmp_path / "out"
    words = ("--chain", QUICK, "--out", out, "--jobs", "2")
    code, said = call("run_doll", *words, stop_at="explaining chestx_det_train")
    assert code == 130 and "Traceback" not in said
    assert said.strip().endswith("run_doll: interrupted; call it again to continue")
    listed = command("--list")[1].splitlines()
    states = [line.split()[1] for line in listed[2:5]]
    # It was told to stop as the third began, which may be before its first file.
    assert states[:2] == ["done", "done"] and states[2] in ("begun", "to")
    finished = (out / "members/a/seed1/model_final.safetensors").stat().st_mtime_ns

    code, said = call("run_doll", *words, "--until", "explain")
    assert code == 0 and "training 2 classifiers: done before" in said, said
    assert (out / "members/a/seed1/model_final.safetensors").stat().st_mtime_ns == finished
    assert not (out / "pretrain").exists()

    code, said = call("run_doll", *words)
    assert code == 0, said
    body = json.loads((out / "summary.json").read_text("utf-8"))
    assert [one["name"] for one in body["members"]] == ["a", "b"]
    report = json.loads((out / "masks/report.json").read_text("utf-8"))
    assert body["masks"]["places"] == report["places"]
    assert set(body["masks"]["places"]) >= {"integrated_gradients", "grad_cam"}
    page = (out / "summary.md").read_text("utf-8")
    assert "## Pointing game" in page and "grad_cam: consensus" in page
    # The chosen epoch is what is adapted, and scored at half of the way too.
    chosen = json.loads((out / "choose/seed1/best_epoch.json").read_text("utf-8"))
    config = (out / "doll/seed1/then/jsrt_full/run.yaml").read_text("utf-8")
    assert Path(chosen["weights"]).name in config
    assert body["epochs"][0]["recommended"] == chosen["recommended"]
    rows = {(r["start"], r["mode"]): r["figures"] for r in body["targets"]}
    assert set(rows) == {("doll", "full"), ("doll", "heads"), ("random", "full")}
    assert all({"jsrt/seg/mIoU", "jsrt/seg/mIoU@50%"} <= set(f) for f in rows.values())
    assert rows["doll", "heads"]["trained_share"][0] < rows["doll", "full"]["trained_share"][0] == 1

    # Nothing is done twice.
    log = (out / "pretrain/seed1/log").read_bytes()
    code, said = call("run_doll", "--chain", QUICK, "--out", out)
    assert code == 0 and said.count("done before") == 6
    assert (out / "pretrain/seed1/log").read_bytes() == log

    # Its networks serve another chain.
    monkeypatch.setenv("DETECTRON2_DATASETS", str(out / "world"))
    quick = yaml.safe_load(QUICK.read_text("utf-8"))
    own = {**quick["targets"]["jsrt"], "modes": ["heads"], "cache": 64}
    own["config"] = str(QUICK.parent / own["config"])
    file, again = tmp_path / "targets.yaml", tmp_path / "again"
    file.write_text(yaml.safe_dump({"targets": {"jsrt": own}, "seeds": [1]}), "utf-8")
    code, said = call("run_doll", "--chain", file, "--from", out, "--out", again)
    assert code == 0, said
    other = json.loads((again / "summary.json").read_text("utf-8"))
    assert [(row["start"], row["mode"]) for row in other["targets"]] == [("doll", "heads")]
    assert other["epochs"] == body["epochs"] and (again / "cache/jsrt").is_dir()
    assert chosen["weights"] in (again / "doll/seed1/then/jsrt_heads/run.yaml").read_text("utf-8")
