"""The tiny model of the quick schedules, as the benchmark takes it."""

from __future__ import annotations

import pytest

from fx_d2.benchmark.setting import Setting

QUICK = "configs/quick_schedules/foundation_x_instant_test.yaml"


@pytest.fixture
def quick(pytestconfig: pytest.Config) -> Setting:
    return Setting(str(pytestconfig.rootpath / QUICK), size_px=64, batch=2)
