"""Several processes of train_net.py on one machine, with gloo."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
LOCK_RELEASE = ROOT / "configs/quick_schedules/lock_release_instant_test.yaml"
TRAIN_NET, RANK_RUN = ROOT / "tools/train_net.py", ROOT / "tests/integration/rank_run.py"
# Drop path is drawn by each process for its own images. AdamW divides a gradient by its own size,
# so that of a gradient which is 0 up to rounding it makes whole steps in either direction.
EXACT = {
    "SOLVER.IMS_PER_BATCH": 4,
    "SOLVER.FX.OPTIMIZER": "SGD",
    "MODEL.FX.TRUNK.KWARGS": "{'drop_path_rate': 0.0}",
    "TEST.EVAL_PERIOD": 0,
    "DATASETS.TEST": "('nih14_val',)",
}


def run(
    world: Path,
    *words: object,
    processes: int = 1,
    program: tuple[object, ...] = (TRAIN_NET,),
    restarts: int = 0,
) -> subprocess.CompletedProcess[str]:
    """Run train_net.py in its own processes, to the end."""
    starter: list[object] = [sys.executable]
    if processes > 1:
        starter += ["-m", "torch.distributed.run", "--nproc-per-node", processes]
        starter += ["--max-restarts", restarts, "--rdzv-backend", "c10d"]
        starter += ["--rdzv-endpoint", "localhost:0"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(world),
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return subprocess.run(
        [str(word) for word in (*starter, *program, "--config-file", LOCK_RELEASE, *words)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def words(settings: dict[str, object]) -> list[object]:
    return [word for item in settings.items() for word in item]


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model_final.safetensors").read_bytes()).hexdigest()


@pytest.mark.slow
def test_two_processes_equal_one_with_the_same_batches(world: Path, tmp_path: Path):
    """All tasks, locked and released, batches with other numbers of labels and regions per rank."""
    settings = EXACT | {"CYCLE.MAX_STEPS_PER_PHASE": 9, "CYCLE.CYCLES": 4}
    for count in (1, 2):
        out = ("OUTPUT_DIR", tmp_path / str(count))
        result = run(world, *words(settings), *out, processes=count)
        assert result.returncode == 0, result.stderr[-2000:]
    one = load_file(tmp_path / "1/model_final.safetensors")
    two = load_file(tmp_path / "2/model_final.safetensors")
    last = json.loads((tmp_path / "1/model_final.json").read_text())
    assert last["iteration"] >= 49
    worst = max(float((one[name].double() - two[name].double()).abs().max()) for name in one)
    assert worst < 1e-5


@pytest.mark.slow
def test_a_killed_rank_costs_the_steps_since_the_last_checkpoint(world: Path, tmp_path: Path):
    """Under --max-restarts the run ends as if nothing had happened."""
    settings = words(EXACT | {"SOLVER.CHECKPOINT_PERIOD": 4})
    whole = run(world, *settings, "OUTPUT_DIR", tmp_path / "whole", processes=2)
    assert whole.returncode == 0, whole.stderr[-2000:]
    marker = tmp_path / "killed"
    killed = run(
        world,
        "--resume",
        *settings,
        "OUTPUT_DIR",
        tmp_path / "killed_run",
        processes=2,
        program=(RANK_RUN, 1, 10, "kill", marker),
        restarts=1,
    )
    assert killed.returncode == 0, killed.stderr[-2000:]
    assert marker.exists()
    assert digest(tmp_path / "killed_run") == digest(tmp_path / "whole")
    log = (tmp_path / "killed_run/log.txt").read_text()
    assert "Starting training from iteration 8" in log


@pytest.mark.slow
def test_a_stuck_rank_is_named(world: Path, tmp_path: Path):
    begin = time.monotonic()
    result = run(
        world,
        *words(EXACT | {"SOLVER.FX.STUCK_AFTER_S": 20, "OUTPUT_DIR": tmp_path / "run"}),
        processes=2,
        program=(RANK_RUN, 1, 3, "hang", tmp_path / "hung"),
    )
    assert result.returncode != 0 and time.monotonic() - begin < 200
    lines = [line for line in result.stderr.splitlines() if "stuck" in line]
    assert any("error: stuck: rank 1 on " in line and "--resume" in line for line in lines), (
        result.stderr[-2000:]
    )


@pytest.mark.slow
def test_what_several_processes_cannot_do_is_one_line(world: Path, tmp_path: Path):
    out = ("OUTPUT_DIR", tmp_path / "run")
    odd = run(world, "SOLVER.IMS_PER_BATCH", 3, *out, processes=2)
    lines = [line for line in odd.stderr.splitlines() if "train_net.py: error" in line]
    assert odd.returncode != 0 and len(lines) == 1
    assert "batch size 3 is not a multiple of the 2 processes" in lines[0]
    both = run(world, "--num-gpus", 2, *out, processes=2)
    lines = [line for line in both.stderr.splitlines() if "train_net.py: error" in line]
    assert len(lines) == 1 and "leave --num-gpus and --num-machines out" in lines[0]
