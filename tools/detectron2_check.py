"""Is the Detectron2 of this environment fit for fx_d2? Used by ``install_detectron2.py``.

The answer comes from trying it in a process of its own, not from version numbers, so that it holds
for the patched build, for the official repository and for a user's own copy alike. Standard library
only at import: the process that asks may have neither torch nor Detectron2.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import json
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

REQUIRED_MODULES = (
    "detectron2.config",
    "detectron2.checkpoint",
    "detectron2.data",
    "detectron2.engine",
    "detectron2.evaluation",
    "detectron2.export",
    "detectron2.layers",
    "detectron2.model_zoo",
    "detectron2.modeling",
    "detectron2.solver",
    "detectron2.structures",
    "detectron2.utils.analysis",
    "detectron2.utils.visualizer",
)

_TIMEOUT_SECONDS = 300


@dataclass
class Report:
    """What was found.

    Attributes:
        version: ``detectron2.__version__``, or None when there is no Detectron2.
        location: The folder it was imported from.
        compiled: Whether it has its compiled operators.
        passed: Names of the checks that passed.
        problems: One line for each check that did not.
    """

    version: str | None = None
    location: str | None = None
    compiled: bool = False
    passed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def fit(self) -> bool:
        """Whether fx_d2 can work with it."""
        return self.version is not None and not self.problems

    def as_text(self) -> str:
        """The report for a person."""
        if self.version is None and not self.problems:
            return "no Detectron2 here: run python tools/install_detectron2.py"
        operators = "with" if self.compiled else "without"
        lines = [f"Detectron2 {self.version} in {self.location}, {operators} compiled operators"]
        lines += [f"  ok       {name}" for name in self.passed]
        lines += [f"  PROBLEM  {problem}" for problem in self.problems]
        if self.fit:
            lines.append("fit for fx_d2")
        else:
            lines.append(
                "NOT fit for fx_d2. Repair it, or replace it by the patched build with "
                "python tools/install_detectron2.py --force"
            )
        return "\n".join(lines)


def is_present() -> bool:
    """Whether ``import detectron2`` finds a package. Imports nothing."""
    spec = importlib.util.find_spec("detectron2")
    return spec is not None and spec.origin is not None


def check_in_subprocess() -> Report:
    """Try the Detectron2 of this environment in a fresh process."""
    if not is_present():
        return Report()
    run = subprocess.run(
        [sys.executable, str(Path(__file__).resolve())],
        capture_output=True,
        text=True,
        check=False,
        timeout=_TIMEOUT_SECONDS,
    )
    lines = run.stdout.strip().splitlines()
    try:
        return Report(**json.loads(lines[-1]))
    except (IndexError, ValueError, TypeError):
        # The process died before it could answer: a crash in a compiled module, or out of memory.
        tail = (run.stderr.strip().splitlines() or ["no output"])[-1]
        return Report(problems=[f"the check ended with exit code {run.returncode}: {tail}"])


# --- in the process that tries it -----------------------------------------------------------------


def _try_imports() -> None:
    failures = []
    for name in REQUIRED_MODULES:
        try:
            importlib.import_module(name)
        except Exception as problem:  # a broken package may raise anything while it is imported
            failures.append(f"{name} ({type(problem).__name__}: {problem})")
    if failures:
        raise ImportError("cannot import " + "; ".join(failures))


def _try_cpu_operators() -> None:
    import torch
    from detectron2.layers import ROIAlign, batched_nms

    boxes = torch.tensor([[0.0, 0, 9, 9], [0, 0, 9, 8], [20, 20, 30, 30]])
    keep = batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3), 0.5)
    if keep.tolist() != [0, 2]:
        raise ValueError(f"batched_nms kept {keep.tolist()}, expected [0, 2]")
    pooled = ROIAlign((2, 2), 1.0, 0, aligned=True)(
        torch.ones(1, 1, 8, 8), torch.tensor([[0.0, 1, 1, 5, 5]])
    )
    if not torch.allclose(pooled, torch.ones(1, 1, 2, 2)):
        raise ValueError(f"ROIAlign of ones is {pooled.flatten().tolist()}")


def _try_resume() -> None:
    import torch
    from detectron2.engine.hooks import LRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    if not LRScheduler(optimizer, scheduler).state_dict():
        raise ValueError(
            "the LRScheduler hook saves nothing for StepLR: a resumed run restarts its schedule"
        )


def _try_data() -> None:
    from detectron2.data import MapDataset
    from detectron2.data.build import print_instances_class_histogram
    from detectron2.structures.masks import polygons_to_bitmask

    # A mapper that gives up on an element makes MapDataset draw another one.
    if MapDataset([0, 1], lambda x: x or None)[0] != 1:
        raise ValueError("MapDataset did not replace an element whose mapper returned None")
    print_instances_class_histogram([{"annotations": [{"category_id": 0}]}], ["one"])
    if polygons_to_bitmask([], 2, 3).shape != (2, 3):
        raise ValueError("polygons_to_bitmask: wrong shape")


def _try_model_zoo() -> None:
    from detectron2 import model_zoo

    model_zoo.get_config_file("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml")


def _try_environment_report() -> None:
    from detectron2.utils.collect_env import collect_env_info

    collect_env_info()


CHECKS: tuple[tuple[str, Callable[[], None]], ...] = (
    ("imports", _try_imports),
    ("operators on the CPU", _try_cpu_operators),
    ("resuming a learning rate schedule", _try_resume),
    ("data helpers", _try_data),
    ("model zoo configs", _try_model_zoo),
    ("environment report", _try_environment_report),
)


def _has_compiled_operators() -> bool:
    try:
        from detectron2 import _C
    except ImportError:
        return False
    return hasattr(_C, "box_iou_rotated")


def run_checks() -> Report:
    """Run every check in this process."""
    report = Report()
    for name, check in CHECKS:
        try:
            check()
        except Exception as problem:  # the point is to report whatever a foreign package raises
            reason = traceback.format_exception_only(problem)[-1].strip()
            report.problems.append(f"{name}: {reason}")
        else:
            report.passed.append(name)
    module = sys.modules.get("detectron2")
    report.version = str(getattr(module, "__version__", "of unknown version"))
    report.location = str(Path(getattr(module, "__file__", None) or "unknown").parent)
    report.compiled = _has_compiled_operators()
    return report


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        answer = run_checks()
    print(json.dumps(asdict(answer)))
