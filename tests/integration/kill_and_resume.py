#!/usr/bin/env python3
"""Kill a run with signal 9 at random moments, resume it, and compare its weights to the byte.

    DETECTRON2_DATASETS=WORLD python kill_and_resume.py OUT --kills 20 --workers 0 2 --seed 1

WORLD has the sources nih14, rsna and chestx_det. A moment lies in a step, in the writing of a
checkpoint or in an evaluation. Every run is killed and resumed until one gets through; its last
checkpoint has to be that of an uninterrupted run. Prints one line per kill, and ends with 1 where a
run differs. Only Linux: runs are forked, so that a start costs no imports.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import train_net  # noqa: E402
from fx_d2.engine import checkpoint, trainer  # noqa: E402
from fx_d2.engine.step import TrainStep  # noqa: E402

CONFIG = ROOT / "configs/quick_schedules/lock_release_instant_test.yaml"
SETTINGS = ["CYCLE.MAX_STEPS_PER_PHASE", "4", "SOLVER.CHECKPOINT_PERIOD", "3"]
SETTINGS += ["TEST.EVAL_PERIOD", "10", "DATASETS.TEST", "('rsna_val',)"]
# {what is interrupted: (where it is, its name, seconds within which the kill comes)}
MOMENTS = {
    "step": (TrainStep, "run_step", 0.15),
    "save": (checkpoint, "write_checkpoint", 0.08),
    "evaluation": (trainer, "score", 0.4),
}


def die_in(what: str, calls: int, delay_s: float) -> None:
    """Have this process killed some time into a call."""
    owner, name, _ = MOMENTS[what]
    whole, counted = getattr(owner, name), iter(range(1, 10**6))

    def killed(*args: object, **kwargs: object) -> object:
        if next(counted) == calls:
            kill = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGKILL))
            kill.daemon = True
            kill.start()
        return whole(*args, **kwargs)

    setattr(owner, name, killed)


def run(out: Path, workers: int, moment: tuple[str, int, float] | None) -> bool:
    """Start or resume a run in a process of its own; whether it came to its end."""
    child = os.fork()
    if child == 0:
        log = os.open(out.with_suffix(".log"), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if moment is not None:
            die_in(*moment)
        words = ["--resume", "--config-file", str(CONFIG), *SETTINGS, "OUTPUT_DIR", str(out)]
        sys.argv[1:] = [*words, "DATALOADER.NUM_WORKERS", str(workers)]
        code = 1
        try:
            train_net.main()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return False
    if status:
        sys.exit(f"a run ended with status {status}; see {out.with_suffix('.log')}")
    return True


def digest(out: Path) -> str:
    return hashlib.sha256((out / "model_final.safetensors").read_bytes()).hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kills", type=int, default=20, help="for each number of workers")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    run(args.out / "whole", 0, None)
    expected, begin = digest(args.out / "whole"), time.monotonic()
    print(f"uninterrupted: {expected[:16]}", flush=True)
    wrong, runs, hit = 0, 0, Counter[str]()
    for workers in args.workers:
        kills = 0
        while kills < args.kills:
            runs += 1
            out = args.out / f"run{runs:02d}_{workers}_workers"
            ended = False
            while not ended:
                moment = None
                if kills < args.kills:
                    what = rng.choice(list(MOMENTS))
                    calls = rng.randint(1, 8 if what == "step" else 2)
                    moment = (what, calls, rng.uniform(0, MOMENTS[what][2]))
                ended = run(out, workers, moment)
                if not ended and moment is not None:
                    kills += 1
                    hit[moment[0]] += 1
                    print(f"{workers} workers, kill {kills}: {moment[0]}", flush=True)
            same = digest(out) == expected
            wrong += not same
            print(f"{out.name}: {'the same weights' if same else 'DIFFERS'}", flush=True)
    moments = ", ".join(f"{count} in a {what}" for what, count in hit.items())
    print(
        f"{hit.total()} kills ({moments}), {runs} runs, {wrong} differ, "
        f"{time.monotonic() - begin:.0f} s"
    )
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
