"""The command line as a user sees it, on a small synthetic world."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

import train_net
from fx_d2.engine.checkpoint import FxCheckpointer, load_weights
from fx_d2.engine.setup import load_config

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs/quick_schedules/foundation_x_instant_test.yaml"
Command = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def trained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of the quick config in its own process leaves; it takes seconds."""
    out = tmp_path_factory.mktemp("trained") / "run"
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", str(QUICK)),
            *("OUTPUT_DIR", str(out)),
        ],
        env={**os.environ, "DETECTRON2_DATASETS": str(world), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "eta: " in done.stdout and "Traceback" not in done.stdout + done.stderr
    return out


def one_line(result: tuple[int, str], *words: object) -> None:
    code, text = result
    lines = [line for line in text.splitlines() if line.startswith("train_net.py: error: ")]
    assert code == 2 and len(lines) == 1, text
    assert "Traceback" not in text
    for word in words:
        assert str(word) in lines[0], lines[0]


@pytest.mark.slow
def test_a_run_leaves_what_it_should(trained: Path):
    names = {p.name for p in trained.iterdir()}
    assert {"config.yaml", "log.txt", "metrics.json", "results.json", "results.md"} <= names
    assert {"model_final.safetensors", "model_final.json", "model_final.state.pt"} <= names
    about = json.loads((trained / "model_final.json").read_text())
    assert set(about["sources"]) == {"nih14", "rsna", "chestx_det"}
    assert set(about["sources"]["rsna"]) == {"cls", "loc"} and about["metrics"]


@pytest.mark.slow
def test_evaluating_twice_gives_the_same(trained: Path, command: Command, tmp_path: Path):
    found = []
    for name in ("a", "b"):
        words = (
            "MODEL.WEIGHTS",
            trained / "model_final.safetensors",
            "OUTPUT_DIR",
            tmp_path / name,
        )
        assert command("--config-file", QUICK, "--eval-only", *words)[0] == 0
        found.append(json.loads((tmp_path / name / "results.json").read_text())["results"])
    assert found[0] == found[1] and "chestx_det/seg" in found[0]
    at_the_end = json.loads((trained / "results.json").read_text())["results"]
    assert found[0] == at_the_end


@pytest.mark.slow
def test_resuming(trained: Path, command: Command, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    words = ("--config-file", QUICK, "--resume", "OUTPUT_DIR", run)
    assert command(*words, "SOLVER.MAX_ITER", 13, "TEST.EVAL_PERIOD", 0)[0] == 0
    assert json.loads((run / "model_final.json").read_text())["iteration"] == 12
    one_line(
        command(*words, "DATASETS.TRAIN", "('nih14_train',)", "DATASETS.TEST", "('nih14_val',)"),
        *("left out", "heads.cls.rsna", "MODEL.WEIGHTS"),
    )
    (run / "model_final.state.pt").unlink()
    one_line(command(*words), "no training state")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--config-file", "configs/Base-FY.yaml"), ("no config file", "configs/Base-FX.yaml")),
        (("SOLVER.FX.PRECISON", "bf16"), ("SOLVER.FX.PRECISON", "SOLVER.FX.PRECISION")),
        (("SOLVER.MAX_ITER", "many"), ("SOLVER.MAX_ITER", "command line")),
        (("SOLVER.MAX_ITER",), ("SOLVER.MAX_ITER", "no value")),
        (("DATASETS.TRAIN", "('rnsa_train',)"), ("rnsa_train", "rsna_train")),
        (("DATASETS.TEST", "('rsna_valid',)"), ("rsna_valid", "rsna_val")),
        (("DATASETS.TRAIN", "()"), ("DATASETS.TRAIN is empty",)),
        (("DATASETS.TASKS", "('cls','box')"), ("box", "loc")),
        (("DATASETS.TEST", "('siim_acr_val',)"), ("no head for siim_acr", "rsna/loc")),
        (("DATASETS.ROOTS.rsna", "/nowhere"), ("/nowhere", "DATASETS.ROOTS")),
        (("MODEL.META_ARCHITECTURE", "FoundationY"), ("FoundationY",)),
        (("MODEL.WEIGHTS", "/nowhere/m.safetensors"), ("/nowhere/m.safetensors",)),
        (("SOLVER.FX.LR_FACTORS", "('trnk.*=1',)"), ("trnk.*",)),
        (("--num-gpus", "3"), ("--num-gpus 3",)),
        (("--eval-only",), ("MODEL.WEIGHTS", "--resume")),
    ],
)
def test_wrong_use_is_one_line(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words, told
):
    monkeypatch.chdir(ROOT)
    flags = [w for w in words if w.startswith("--")]
    given = words if "--config-file" in flags else ("--config-file", QUICK, *words)
    if not flags:
        given = (*given, "OUTPUT_DIR", tmp_path / "run") if len(words) > 1 else given
    if "--num-gpus" in flags and torch.cuda.device_count() >= 3:
        pytest.skip("has these GPUs")
    one_line(command(*given), *told)


def test_an_output_folder_that_cannot_be_written(command: Command, tmp_path: Path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    one_line(command("--config-file", QUICK, "OUTPUT_DIR", folder), folder)


def test_files_of_others(command: Command, tmp_path: Path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps({"model": {}}))
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "m.pth")
    words = ("--config-file", QUICK, "--eval-only", "OUTPUT_DIR", tmp_path, "MODEL.WEIGHTS")
    one_line(command(*words, tmp_path / "m.pkl"), "refused", "convert_trusted_pickle")
    one_line(command(*words, tmp_path / "m.pth"), "none of its 1 tensors", "fc.weight")
    typo = tmp_path / "typo.yaml"
    typo.write_text("INPUT:\n  FX:\n    SISE: 448\n")
    one_line(command("--config-file", typo), "typo.yaml", "INPUT.FX.SISE", "INPUT.FX.SIZE")
    bad = tmp_path / "bad.yaml"
    bad.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{tmp_path}/ran']\n")
    one_line(command("--config-file", bad), "bad.yaml", "os.mkdir")
    assert not (tmp_path / "ran").exists()


def _config(*sources: str) -> CfgNode:
    return load_config(str(QUICK), ["MODEL.FX.SOURCES", str(sources), "MODEL.DEVICE", "cpu"])


def test_sources_come_and_go(tmp_path: Path):
    """Weights of A + B in models of A + B + C and of A: the shared part is bit-identical."""
    torch.manual_seed(0)
    both = build_model(_config("rsna", "chestx_det"))
    FxCheckpointer(both, str(tmp_path), cfg=_config("rsna", "chestx_det")).save_weights("ab")
    for sources, new, left in (
        (("rsna", "chestx_det", "siim_acr"), "siim_acr", None),
        (("rsna",), None, "chestx_det"),
    ):
        torch.manual_seed(1)
        model = build_model(_config(*sources))
        report = load_weights(model, tmp_path / "ab.safetensors")
        mine, theirs = model.state_dict(), both.state_dict()
        assert set(report.loaded) == set(mine) & set(theirs) and not report.mismatched
        assert all(torch.equal(mine[name], theirs[name]) for name in report.loaded)
        assert {n for n in report.loaded if n.startswith("trunk.")}
        assert {n.split(".")[2] for n in report.new} == ({new} if new else set())
        heads_left = {n.split(".")[2] for n in report.left_out if n.startswith("heads.")}
        assert heads_left == ({left} if left else set())


LOCK_RELEASE = ROOT / "configs/quick_schedules/lock_release_instant_test.yaml"


def test_a_dry_run_prints_the_cycle_and_leaves_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    printed: list[str] = []
    monkeypatch.setattr(train_net, "print", lambda text, **_: printed.append(text), raising=False)
    monkeypatch.chdir(tmp_path)
    words = ("--config-file", LOCK_RELEASE, "--dry-run", "OUTPUT_DIR", tmp_path / "run")
    assert command(*words, "CYCLE.CYCLES", 3, "CYCLE.MAX_STEPS_PER_PHASE", 0)[0] == 0
    title, _, header, _, *rows = printed.pop().splitlines()
    assert title.startswith("paper: 6 slots, 9 phases") and " are 3 cycles" in title
    assert header.split()[:6] == ["iterations", "source", "task", "phase", "share", "images"]
    lock = next(row.split() for row in rows if " lock " in row)
    assert lock[1:5] == ["rsna", "loc", "lock", "0.5"]
    assert lock[6:9] == ["locked", "-", "locked"]  # backbone, cls_head, loc_encoder
    assert list(tmp_path.iterdir()) == []
    assert command(*words, "CYCLE.NAME", "joint")[0] == 0
    assert printed.pop().startswith("joint mix")


@pytest.mark.slow
def test_a_refused_resume_overwrites_nothing(command: Command, tmp_path: Path):
    words = ("OUTPUT_DIR", tmp_path, "TEST.EVAL_PERIOD", 0, "DATASETS.TEST", "('nih14_val',)")
    first = ("--config-file", LOCK_RELEASE, *words, "CYCLE.MAX_STEPS_PER_PHASE")
    again = ("--resume", *first)
    assert command(*first, 1)[0] == 0

    def files() -> dict[str, bytes]:
        found = (p for p in tmp_path.rglob("*") if p.is_file() and p.name != "log.txt")
        return {p.relative_to(tmp_path).as_posix(): p.read_bytes() for p in found}

    before = files()
    one_line(command(*again, 2), "2 steps", "expected", "1 steps", "resume with its own config")
    one_line(
        command(*again, 1, "CYCLE.SLOTS", "('*/loc','*/cls','*/seg')"),
        *("rsna/loc lock", "nih14/cls release"),
    )
    after = files()
    assert {name: after[name] for name in before} == before


def test_a_cycle_on_the_command_line(command: Command, tmp_path: Path):
    words = ("OUTPUT_DIR", tmp_path / "run")
    files = ("--config-file", LOCK_RELEASE)

    def slot(phase: str) -> tuple[str, str]:
        return "CYCLE.SLOTS", f"[{{'slot': 'rsna/loc', 'phases': [{phase}]}}]"

    for flags in ((), ("--dry-run",)):
        given = (*files, *flags, *words)
        one_line(command(*given, "CYCLE.NAME", "papr"), "CYCLE.NAME", "did you mean 'paper'")
        one_line(command(*given, "CYCLE.SLOTS", "('rsna/lok',)"), "rsna/lok", "mean 'loc'")
        one_line(
            command(*given, *slot("{'share': 1.5, 'train': ['loc_decoder']}")),
            *("rsna/loc", "share is 1.5"),
        )
        one_line(command(*given, *slot("{'train': ['loc_decodr']}")), "loc_decodr", "'loc_decoder'")
