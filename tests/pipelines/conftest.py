"""Random weights of tiny classifiers, saved as a run saves them."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from fx_d2.engine.checkpoint import FxCheckpointer
from fx_d2.engine.setup import load_config

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside that are no tests

ROOT = Path(__file__).resolve().parents[2]
QUICK = str(ROOT / "configs/quick_schedules/foundation_x_instant_test.yaml")
BASE = ("INPUT.FX.SIZE", "64", "MODEL.DEVICE", "cpu", "DATASETS.TASKS", "('cls',)")
Saved = Callable[..., Path]


@pytest.fixture(scope="session")
def saved_classifier(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """``saved_classifier(seed, *overrides)`` gives the file of its weights."""

    def save(seed: int, *overrides: str) -> Path:
        heads = ("DATASETS.TRAIN", "('nih14_train',)", "DATASETS.TEST", "('nih14_val',)")
        cfg = load_config(QUICK, [*BASE, *heads, *overrides])
        folder = tmp_path_factory.mktemp(f"member{seed}")
        torch.manual_seed(seed)
        model = build_model(cfg)
        for name, parameter in model.named_parameters():
            if name.startswith("heads.cls"):
                torch.nn.init.normal_(parameter, std=0.5)
        FxCheckpointer(model, str(folder), cfg=cfg).save_weights("w", iteration=1)
        return folder / "w.safetensors"

    return save
