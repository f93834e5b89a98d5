from __future__ import annotations

import json
import math

from fx_d2.benchmark.report import Table, about_line, write_report

TABLE = Table(
    "Times",
    {"what": ("what", ""), "ms": ("ms", ".1f"), "bound": ("bound", ".2f")},
    [{"what": "a|step", "ms": 12.345, "bound": 1.5}, {"what": "b", "ms": math.nan}],
    ("One sentence.",),
)


def test_markdown_has_rounded_cells_and_empty_ones():
    lines = TABLE.text().splitlines()
    assert lines[0] == "### Times" and lines[-1] == "One sentence."
    rows = [[c.strip() for c in li.strip("|").split("|")] for li in lines if li.startswith("|")]
    assert rows[0] == ["what", "ms", "bound"]
    assert rows[2][-2:] == ["12.3", "1.50"]
    assert rows[3] == ["b", "", ""]


def test_files_have_the_figures_unrounded_and_what_they_were_measured_on(tmp_path):
    markdown, file = tmp_path / "t.md", tmp_path / "deep" / "t.json"
    file.parent.mkdir()
    facts = {"date": "2026-11-20", "gpu": "", "overrides": [], "seed": 0}
    write_report(facts, {"times": TABLE}, markdown=markdown, json_file=file)
    assert markdown.read_text() == f"date 2026-11-20, seed 0\n\n{TABLE.text()}\n"
    document = json.loads(file.read_text())
    assert document["about"] == facts
    first, second = document["tables"]["times"]["rows"]
    assert first == {"what": "a|step", "ms": 12.345, "bound": 1.5}
    assert second["ms"] is None  # not NaN, which is no JSON


def test_a_zero_is_told():
    assert about_line({"seed": 0, "weights": ""}) == "seed 0"
