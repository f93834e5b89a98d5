"""A tiny study for the tests: two sources of a synthetic world, a few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs/quick_schedules/lock_release_instant_test.yaml"
WORLD = {"patients": 12, "seed": 1, "size": 64, "sources": ["shenzhen", "rsna", "montgomery"]}


def tiny_study(**changes: Any) -> dict[str, Any]:
    """The content of a study file; three heads, one cycle of two steps a phase."""
    return {
        "title": "Tiny",
        "config": str(QUICK),
        "common": {
            "DATASETS.TRAIN": ["shenzhen_train", "rsna_train"],
            "DATASETS.TEST": ["shenzhen_test", "rsna_test"],
            "INPUT.FX.SIZE": 64,
            "SOLVER": {"CHECKPOINT_PERIOD": 2, "FX": {"BEST_METRIC": [], "LOG_PERIOD": 1}},
            "TEST.EVAL_PERIOD": 0,
            "TEST.FX.BOOTSTRAP": 0,
        },
        "seeds": [1, 2],
        "arms": {"locked": None, "mixed": {"joint": True}},
        **changes,
    }


def write_study(folder: Path, content: Any) -> Path:
    file = folder / "study.yaml"
    file.write_text(
        content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False)
    )
    return file


FEW_SHOT = {
    "images": [3, 2],
    "draws": 2,
    "overrides": {
        "DATASETS.TRAIN": ["montgomery_train"],
        "DATASETS.TEST": ["montgomery_val"],
        "DATASETS.TASKS": ["seg"],
        "CYCLE.NAME": "",
        "INPUT.FX.SIZE": 64,
        "SOLVER.MAX_ITER": 2,
        "SOLVER.FX.BEST_METRIC": [],
    },
}
