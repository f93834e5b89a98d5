"""One small synthetic world, written once and read by all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from fx_d2.phantom.world import make_world

PATIENTS, SEED, SIZE_PX = 10, 11, 96


@pytest.fixture(scope="session")
def phantom_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("phantom") / "world"
    make_world(root, patients=PATIENTS, seed=SEED, size_px=SIZE_PX)
    return root
