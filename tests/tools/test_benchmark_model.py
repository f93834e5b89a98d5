"""``tools/benchmark.py model`` from the command line to its files."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark.py"


@pytest.fixture(scope="module")
def benchmark():
    spec = importlib.util.spec_from_file_location("fx_d2_tools_benchmark_model", TOOL)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_quick_run_gives_every_table_and_both_files(benchmark, tmp_path, capsys):
    markdown, file = tmp_path / "model.md", tmp_path / "model.json"
    argv = ["model", "--quick", "--repeats", "1", "--quiet", "--threads", "1", "--seed", "3"]
    code = benchmark.main([*argv, "--markdown", str(markdown), "--json", str(file)])
    shown = capsys.readouterr().out
    assert code == 0
    document = json.loads(file.read_text())
    tables = document["tables"]
    assert list(tables) == ["steps", "prediction", "parts", "evaluation"]
    facts = document["about"]
    assert (facts["seed"], facts["size"], facts["repeats"], facts["threads"]) == (3, 64, 1, 1)
    assert facts["torch"] and facts["machine"] and facts["date"]
    assert facts["config"].endswith("foundation_x_instant_test.yaml")
    for table in tables.values():
        assert table["rows"] and f"### {table['title']}" in shown
        assert f"### {table['title']}" in markdown.read_text()
    times = [row["ms"] for row in tables["prediction"]["rows"]]
    assert all(math.isfinite(ms) and ms > 0 for ms in times)
    assert {row["layout"] for row in tables["prediction"]["rows"]} == {"X", "X+"}


def test_explaining_is_measured(benchmark, tmp_path, capsys):
    file = tmp_path / "explain.json"
    argv = ["explain", "--quick", "--repeats", "1", "--quiet", "--json", str(file)]
    assert benchmark.main(argv) == 0
    assert "### Integrated Gradients" in capsys.readouterr().out
    rows = json.loads(file.read_text())["tables"]["explain"]["rows"]
    assert [row["way"] for row in rows] == ["one by one", "Captum", "batched"]
    assert all(row["rate"] > 0 for row in rows)
    assert benchmark.main(["explain", "--quick", "--config-file", "nowhere.yaml"]) == 2


def test_named_sections_alone_are_run(benchmark, capsys):
    argv = ["model", "--quick", "--repeats", "1", "--quiet", "--only", "throughput"]
    assert benchmark.main(argv) == 0
    shown = capsys.readouterr().out
    assert shown.count("###") == 1 and "### Training throughput" in shown
    assert "bf16, channels-last" in shown and "share of the peak" in shown


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--config-file", "nowhere.yaml"], "nowhere.yaml"),
        (["--opts", "MODEL.FX.TRUNK.NAM", "swin_t"], "did you mean MODEL.FX.TRUNK.NAME"),
        (["--only", "prediktion"], "prediktion"),
        (["--repeats", "0"], "a whole number from 1"),
        (["--json", f"{TOOL}/x.json"], "benchmark.py is a file"),
        (["--only", "steps", "--opts", "MODEL.FX.TRUNK.NAME", "swin_q"], "swin_q"),
    ],
)
def test_wrong_use_is_one_line_before_the_work(benchmark, capsys, argv, said):
    try:
        code = benchmark.main(["model", "--quick", "--quiet", *argv])
    except SystemExit as exc:  # argparse
        code = exc.code
    error = capsys.readouterr().err
    assert code == 2
    assert error.count("\n") == 1 and said in error


def test_missing_weights_are_one_line(benchmark, capsys):
    argv = ["model", "--quick", "--quiet", "--only", "prediction", "--weights", "nowhere"]
    assert benchmark.main(argv) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "nowhere" in error


def test_interrupt_leaves_no_traceback(benchmark, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "run_sections", interrupted)
    assert benchmark.main(["model", "--quick"]) == 130
    assert sys.stdout is not None and "interrupted" in capsys.readouterr().err
