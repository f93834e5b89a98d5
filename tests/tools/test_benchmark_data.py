"""The data benchmark measures what it says, on a source made here."""

from __future__ import annotations

import gc
import importlib.util
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from fx_d2.benchmark import data
from fx_d2.benchmark.memory import status_mib

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("fx_d2_tools_benchmark", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture(scope="module")
def shenzhen(tmp_path_factory):
    root = tmp_path_factory.mktemp("datasets")
    folder = root / "ChinaSet_AllFiles" / "CXR_png"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(4):
        image = rng.integers(0, 255, (300, 280), dtype=np.uint8)
        cv2.imwrite(str(folder / f"CHNCXR_{i + 1:04d}_{i % 2}.png"), image)
    return root


def test_table_has_a_row_per_source_with_both_rates(benchmark, shenzhen, tmp_path, capsys):
    out = tmp_path / "table.md"
    argv = ["data", "--root", str(shenzhen), "--num", "4", "--size", "64", "--rounds", "1"]
    with pytest.warns(UserWarning, match="shenzhen"):  # 4 images where 662 are published
        code = benchmark.main([*argv, "--no-large", "--quiet", "--markdown", str(out)])
    assert code == 0
    row = next(line for line in out.read_text().splitlines() if "shenzhen" in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[1] == "280 x 300"
    direct, cached, ratio = float(cells[2]), float(cells[3]), float(cells[4])
    assert direct > 0 and cached > 0
    assert ratio == pytest.approx(cached / direct, abs=0.05 + 0.51 / direct)
    assert float(cells[7]) == pytest.approx(64 * 64 / 1024, rel=0.5)  # one byte a pixel, and facts
    assert row in out.read_text() and "shenzhen" in capsys.readouterr().out


def test_large_files_are_what_the_table_says(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_LARGE_PX", (250, 260))
    for number, (name, form) in enumerate(data._LARGE_FORMS.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (file,) = data._large_files(folder, form, 1)
        facts = data.read_image(file).facts
        assert f"{facts.bits}-bit" in name
        assert (facts.height, facts.width) == (250, 260)


def test_missing_data_is_one_line_and_a_failure(benchmark, tmp_path, capsys):
    code = benchmark.main(["data", "--root", str(tmp_path), "--source", "rsna", "--quiet"])
    error = capsys.readouterr().err
    assert code == 1
    assert error.count("\n") == 1 and str(tmp_path) in error


@pytest.mark.parametrize("left_over", ["nothing", "freed memory", "garbage"])
def test_peak_is_that_of_the_reading(monkeypatch, left_over):
    if np.isnan(status_mib("VmRSS")):
        pytest.skip("peak memory is read from /proc, which this system does not have")

    def read(_: str):
        gc.collect()
        chunks = [np.ones(1 << 17) for _ in range(64)]  # 64 MiB in pieces that malloc reuses
        return data.LoadedImage(np.stack(chunks[:1]), None)

    monkeypatch.setattr(data, "_prepare", lambda loaded, size_px: loaded)
    held = [np.ones(1 << 17) for _ in range(200)]
    if left_over == "freed memory":
        del held[:-1]  # the last piece keeps the heap from shrinking
    elif left_over == "garbage":
        held.append(held)  # only the collector can free it
        del held
    assert 60 < data._peak(read, ["a", "b"], 64) < 180
