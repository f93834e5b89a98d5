from __future__ import annotations

from pathlib import Path

import pytest

from fx_d2.data.source_table import BEGIN, committed_table, source_table, write_table
from fx_d2.data.sources import SOURCES

README = Path(__file__).parents[2] / "datasets" / "README.md"
OURS = [key for key in SOURCES if not key.startswith("toy")]


def test_the_committed_table_is_the_generated_one():
    assert committed_table(README) == source_table(), (
        "run: python -m fx_d2.data.source_table --write"
    )


@pytest.mark.parametrize("key", OURS)
def test_every_source_is_described(key):
    text = README.read_text(encoding="utf-8")
    assert f"\n### {key}\n" in text, "how to get it, and the tree it must have"
    assert f"(https://{SOURCES[key].homepage})" in text
    assert f"`{key}`: {SOURCES[key].citation}" in text
    section = text.split(f"\n### {key}\n")[1].split("\n### ")[0]
    assert SOURCES[key].folder in section or section.strip().startswith("As [`")


def test_the_table_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(README.read_text(encoding="utf-8").replace("Tuberculosis", "x") + "tail\n")
    changed = path.read_text().replace("| `rsna-pneumonia", "| `other")
    path.write_text(changed)
    write_table(path)
    assert committed_table(path) == source_table()
    assert path.read_text().endswith("tail\n")
    assert [p.name for p in tmp_path.iterdir()] == ["README.md"]


def test_a_file_without_markers_is_refused(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="needs the lines"):
        write_table(path)
    assert BEGIN not in path.read_text()
