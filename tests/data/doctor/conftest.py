"""A clean synthetic world, and copies of single sources to plant faults in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fx_d2.data.doctor import Report, examine
from fx_d2.data.sources import get_source
from fx_d2.phantom.world import make_world

PATIENTS = 12
BESIDE = {  # folders that a source needs besides its own
    "chexmask_vindr": ("chexmask-cxr-segmentation-data",),
    "cxr_lt": ("cxr-lt-multi-label-long-tailed-classification-on-chest-x-rays-2.0.0",),
}


@pytest.fixture(scope="session")
def clean_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every source that can be written, small; never edited."""
    root = tmp_path_factory.mktemp("doctor") / "clean"
    make_world(root, patients=PATIENTS, seed=3, size_px=128)
    return root


@pytest.fixture
def copy_of(clean_world: Path, tmp_path: Path) -> Callable[..., Path]:
    """A copy of some sources, to be spoilt."""

    def copy(sources: Sequence[str]) -> Path:
        root = tmp_path / "world"
        root.mkdir()
        shutil.copy(clean_world / "PHANTOM.json", root)
        for key in sources:
            for folder in (get_source(key).folder, *BESIDE.get(key, ())):
                if not (root / folder).exists():
                    shutil.copytree(clean_world / folder, root / folder)
        return root

    return copy


@pytest.fixture
def diagnose() -> Callable[..., Report]:
    """The doctor's report on some sources of a root."""

    def run(root: Path, sources: Sequence[str]) -> Report:
        return examine(root, [get_source(key) for key in sources])[0]

    return run
