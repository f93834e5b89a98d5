"""The sections of ``tools/benchmark.py model`` and what they are told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import torch

from .ap import measure_evaluation
from .prediction import measure_prediction
from .report import Table, accelerator, machine, typed_path
from .setting import Setting
from .steps import measure_memory, measure_steps
from .throughput import measure_throughput

CLOCKS: Mapping[str, Callable[[], float]] = {
    "wall": time.perf_counter,
    "cpu": time.process_time,
}


@dataclass(frozen=True)
class Plan:
    """What to measure and how often.

    Args:
        setting: the model.
        repeats: timed rounds.
        clock: a key of :data:`CLOCKS`.
        weights: a checkpoint to predict with; "" is random.
        original_px: side of the image that predictions are mapped back to.
        images: of the evaluation.
        detections: of the evaluation.
        matmul_side: of the product that stands for the machine's peak.
        compiled: also measure a compiled trunk.
        quiet: no progress bars.
    """

    setting: Setting
    repeats: int = 5
    clock: str = "wall"
    weights: str = ""
    original_px: int = 2048
    images: int = 2000
    detections: int = 40_000
    matmul_side: int = 2048
    compiled: bool = False
    quiet: bool = False


def _steps(plan: Plan) -> dict[str, Table]:
    times = measure_steps(plan.setting, plan.repeats, clock=CLOCKS[plan.clock], quiet=plan.quiet)
    return {"steps": times}


def _memory(plan: Plan) -> dict[str, Table]:
    return {"memory": measure_memory(plan.setting, quiet=plan.quiet)}


def _prediction(plan: Plan) -> dict[str, Table]:
    return measure_prediction(
        plan.setting,
        plan.repeats,
        weights=plan.weights,
        original_px=plan.original_px,
        clock=CLOCKS[plan.clock],
        quiet=plan.quiet,
    )


def _evaluation(plan: Plan) -> dict[str, Table]:
    table = measure_evaluation(
        plan.images,
        plan.detections,
        plan.repeats,
        seed=plan.setting.seed,
        clock=CLOCKS[plan.clock],
        quiet=plan.quiet,
    )
    return {"evaluation": table}


def _throughput(plan: Plan) -> dict[str, Table]:
    table = measure_throughput(
        plan.setting,
        plan.repeats,
        compiled=plan.compiled,
        matmul_side=plan.matmul_side,
        clock=CLOCKS[plan.clock],
        quiet=plan.quiet,
    )
    return {"throughput": table}


SECTIONS: Mapping[str, Callable[[Plan], dict[str, Table]]] = {
    "steps": _steps,
    "memory": _memory,
    "prediction": _prediction,
    "evaluation": _evaluation,
    "throughput": _throughput,
}


def default_sections(device: str) -> list[str]:
    """All on a GPU; elsewhere throughput is left out, which would say little."""
    return [name for name in SECTIONS if device == "cuda" or name != "throughput"]


def run_sections(plan: Plan, names: Sequence[str]) -> dict[str, Table]:
    """The tables of the named sections."""
    if plan.setting.threads:
        torch.set_num_threads(plan.setting.threads)
    tables: dict[str, Table] = {}
    for name in names:
        tables |= SECTIONS[name](plan)
    return tables


def about(plan: Plan) -> dict[str, Any]:
    """What the figures depend on."""
    setting = plan.setting
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "gpu": accelerator(torch.device(setting.device)),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "config": typed_path(setting.config_file),
        "overrides": list(setting.overrides),
        "size": setting.size_px,
        "batch": setting.batch,
        "seed": setting.seed,
        "repeats": plan.repeats,
        "clock": plan.clock,
        "weights": plan.weights,
    }
