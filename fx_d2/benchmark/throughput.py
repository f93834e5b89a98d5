"""Images per second of training by the switches of precision, and their share of the peak.

Meant for a GPU; runs anywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from .report import Table
from .setting import Setting, first_spec, tasks_of
from .steps import our_step
from .timing import alternate

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Switches:
    """How a step is run."""

    precision: str = "fp32"
    channels_last: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """Of the row."""
        words = [self.precision]
        words += ["channels-last"] * self.channels_last + ["compiled trunk"] * self.compiled
        return ", ".join(words)

    def overrides(self) -> tuple[str, ...]:
        """As config keys."""
        return (
            "SOLVER.FX.PRECISION",
            self.precision,
            "MODEL.FX.CHANNELS_LAST",
            str(self.channels_last),
            "MODEL.FX.COMPILE",
            str(self.compiled),
        )


def all_switches(*, compiled: bool) -> list[Switches]:
    """Every combination, those with a compiled trunk only if ``compiled``."""
    return [
        Switches(precision, channels_last, whether)
        for precision, whether, channels_last in itertools.product(
            _DTYPES, (False, True) if compiled else (False,), (False, True)
        )
    ]


def matmul_peak(
    device: torch.device, precision: str, side: int, clock: Callable[[], float], repeats: int = 5
) -> float:
    """Floating point operations per second of a large square matrix product."""
    a = torch.randn(side, side, device=device).to(_DTYPES[precision])
    b = torch.randn(side, side, device=device).to(_DTYPES[precision])
    product = {"matmul": lambda: torch.mm(a, b)}
    timing = alternate(product, repeats, warmup=2, device=device, clock=clock)["matmul"]
    return 2 * side**3 / min(timing.seconds)


def step_flops(cfg: CfgNode, setting: Setting, task: str) -> int:
    """Floating point operations of products and convolutions in a step, forward and backward."""
    step, _ = our_step(cfg, setting, task)
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def _steps(
    setting: Setting, switches: Switches, tasks: Sequence[str]
) -> dict[str, Callable[[], object]]:
    """The steps of all tasks on one model: its trunk is compiled once."""
    given = setting.having(*switches.overrides())
    cfg = given.cfg()
    model: nn.Module | None = None
    steps = {}
    for task in tasks:
        steps[task], model = our_step(cfg, given, task, model)
    return steps


def measure_throughput(
    setting: Setting,
    repeats: int,
    *,
    compiled: bool,
    matmul_side: int,
    clock: Callable[[], float],
    quiet: bool,
) -> Table:
    """Images per second per task and switches, all tasks in turns."""
    device = torch.device(setting.device)
    cfg = setting.cfg()
    tasks = tasks_of(cfg)
    flops = {task: step_flops(cfg, setting, task) for task in tasks}
    peaks = {p: matmul_peak(device, p, matmul_side, clock) for p in _DTYPES}
    rows: list[dict[str, Any]] = []
    for switches in all_switches(compiled=compiled):
        times = alternate(
            _steps(setting, switches, tasks),
            repeats,
            warmup=3 if switches.compiled else 1,
            device=device,
            title=switches.name,
            quiet=quiet,
            clock=clock,
        )
        for task, timing in times.items():
            reached = flops[task] / timing.median
            rows.append(
                {
                    "task": first_spec(cfg, task).name,
                    "switches": switches.name,
                    "rate": setting.batch / timing.median,
                    "gflops": reached / 1e9,
                    "share": reached / peaks[switches.precision],
                }
            )
    rows.sort(key=lambda row: row["task"])
    told = ", ".join(f"{name} {value / 1e12:.3g} TFLOP/s" for name, value in peaks.items())
    return Table(
        "Training throughput",
        {
            "task": ("head", ""),
            "switches": ("switches", ""),
            "rate": ("images/s", ".1f"),
            "gflops": ("GFLOP/s", ".0f"),
            "share": ("share of the peak", ".1%"),
        },
        rows,
        (
            f"Batch {setting.batch} at {setting.size_px} px. Peak: a product of two matrices of "
            f"{matmul_side} x {matmul_side} in the same precision: {told}. Operations are those of "
            "matrix products and convolutions.",
        ),
    )
