"""A tiny training run that can be killed and resumed; a program for test_detectron2_patched.py.

    python resume_run.py OUTPUT_DIR SCHEDULER [KILL_AFTER]

Prints the learning rate of every iteration it does, then the final weight.
"""

from __future__ import annotations

import os
import signal
import sys

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import HookBase, SimpleTrainer, hooks
from detectron2.solver import LRMultiplier, WarmupParamScheduler
from fvcore.common.param_scheduler import MultiStepParamScheduler

MAX_ITER = 12
CHECKPOINT_PERIOD = 4


class OneWeight(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss_square": (self.weight * data).square().mean()}


class Data:
    """The same number every time, so that only the schedule can make two runs differ."""

    def __iter__(self):
        while True:
            yield torch.ones(1)


def make_scheduler(name: str, optimizer: torch.optim.Optimizer):
    schedulers = torch.optim.lr_scheduler
    if name == "step":
        return schedulers.StepLR(optimizer, step_size=3, gamma=0.5)
    if name == "cosine":
        return schedulers.CosineAnnealingLR(optimizer, T_max=MAX_ITER)
    if name == "lambda":
        return schedulers.LambdaLR(optimizer, lambda step: 1.0 / (1 + step))
    if name == "detectron2":
        steps = MultiStepParamScheduler([1.0, 0.1], milestones=[9], num_updates=MAX_ITER)
        return LRMultiplier(optimizer, WarmupParamScheduler(steps, 0.1, 0.5, "linear"), MAX_ITER)
    raise ValueError(f"unknown scheduler {name!r}")


class PrintRate(HookBase):
    def __init__(self, kill_after: int | None) -> None:
        self.kill_after = kill_after

    def before_step(self) -> None:
        print(self.trainer.iter, self.trainer.optimizer.param_groups[0]["lr"], flush=True)

    def after_step(self) -> None:
        if self.trainer.iter == self.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)


def main(output_dir: str, scheduler_name: str, kill_after: int | None) -> None:
    os.makedirs(output_dir, exist_ok=True)
    model = OneWeight()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = make_scheduler(scheduler_name, optimizer)
    trainer = SimpleTrainer(model, Data(), optimizer)
    checkpointer = DetectionCheckpointer(model, output_dir, trainer=trainer)
    trainer.register_hooks(
        [
            hooks.LRScheduler(optimizer, scheduler),
            hooks.PeriodicCheckpointer(checkpointer, CHECKPOINT_PERIOD),
            PrintRate(kill_after),
        ]
    )
    start_iter = 0
    checkpointer.resume_or_load("", resume=True)
    if checkpointer.has_checkpoint():
        start_iter = trainer.iter + 1
    trainer.train(start_iter, MAX_ITER)
    print("weight", model.weight.item(), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else None)
