"""train_net.py with one rank that fails once; a program for test_many_processes.py.

    torchrun ... rank_run.py RANK ITERATION kill|hang MARKER [words of train_net.py]

MARKER is a file that is made when it happens; with it there, nothing happens any more.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import train_net
from fx_d2.engine.step import TrainStep


def main() -> None:
    rank, iteration, how, marker = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    run_step = TrainStep.run_step

    def failing(step: TrainStep) -> None:
        here = int(os.environ["RANK"]) == rank and step.iter == iteration
        if here and not Path(marker).exists():
            Path(marker).touch()
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(600)
        run_step(step)

    TrainStep.run_step = failing
    sys.argv[1:] = sys.argv[5:]
    train_net.main()


if __name__ == "__main__":
    main()
