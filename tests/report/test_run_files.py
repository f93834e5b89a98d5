"""What a run leaves behind, read back: resumed, restarted, killed and damaged ones too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fx_d2.data.errors import DataError
from fx_d2.report.run_files import Span, read_curves, read_forgetting, read_results


def entry(at: int, cycle: int, title: str, steps: int) -> str:
    return (
        f"[11/20 18:00:00] fx_d2.engine.lock_release INFO: iteration {at}: cycle {cycle}, slot 1 "
        f"of 2, {title}, share 0.5 in {steps} iterations; trains loc_decoder (7 parameters)"
    )


def write(folder: Path, *rows: dict, log: list[str] | None = None, tail: str = "") -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows) + tail
    (folder / "metrics.json").write_text(text)
    if log is not None:
        (folder / "log.txt").write_text("\n".join(["something else", *log]) + "\n")
    return folder


def test_what_is_written_later_holds_and_half_a_line_is_left_out(tmp_path: Path):
    folder = write(
        tmp_path,
        {"iteration": 4, "total_loss": 1.0, "lr": 0.1, "total/a/cls": float("nan")},
        {"iteration": 2, "total/a/cls": 3.0},
        {"iteration": 4, "total_loss": 0.5},
        {"iteration": 5, "a/cls/AUC": 0.7},
        tail='{"iteration": 9, "total_',
    )
    curves = read_curves(folder)
    assert list(curves.rows) == [2, 4, 5]
    assert curves.rows[4] == {"total_loss": 0.5, "lr": 0.1}
    assert curves.series("total/a/cls") == [(2, 3.0)]
    assert curves.length == 5  # the evaluation behind the last step is none
    assert curves.spans == []


def test_phases_of_a_run_that_was_resumed_in_the_middle_of_one(tmp_path: Path):
    log = [
        entry(0, 1, "rsna/loc lock", 3),
        entry(3, 1, "rsna/loc release", 4),
        entry(5, 1, "rsna/loc release", 4),  # resumed
        entry(7, 2, "rsna/loc lock", 3),
        entry(10, 2, "rsna/loc release", 4),
    ]
    folder = write(tmp_path, {"iteration": 11, "total_loss": 1.0}, log=log)
    assert read_curves(folder).spans == [
        Span(0, 2, "rsna", "loc", "lock", 1),
        Span(3, 6, "rsna", "loc", "release", 1),
        Span(7, 9, "rsna", "loc", "lock", 2),
        Span(10, 11, "rsna", "loc", "release", 2),
    ]


def test_a_run_begun_anew_in_the_same_folder_forgets_the_one_before(tmp_path: Path):
    log = [entry(0, 1, "rsna/loc lock", 3), entry(3, 1, "rsna/loc release", 4)]
    log += [entry(0, 1, "node21/cls release", 9)]
    folder = write(tmp_path, {"iteration": 5, "total_loss": 1.0}, log=log)
    assert read_curves(folder).spans == [Span(0, 5, "node21", "cls", "release", 1)]


def test_an_empty_folder_has_nothing(tmp_path: Path):
    curves = read_curves(tmp_path)
    assert (curves.length, curves.rows, curves.spans) == (0, {}, [])
    assert read_results(tmp_path) is None and read_forgetting(tmp_path) is None


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"format": "another", "results": {}}',
        '{"format": "fx_d2 results 1", "results": {"a/cls": {"AUC": "high"}}}',
        '{"format": "fx_d2 results 1", "results": {"a/cls": 3}}',
    ],
)
def test_results_of_another_program_are_refused_in_one_line(tmp_path: Path, text: str):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match="results.json: cannot be read") as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)


def test_forgetting_needs_picture_and_numbers(tmp_path: Path):
    body = {"summary": {"student": {"average_forgetting": 0.1, "forward_transfer": None}}}
    (tmp_path / "forgetting.json").write_text(json.dumps(body))
    assert read_forgetting(tmp_path) is None
    (tmp_path / "forgetting.png").write_bytes(b"png")
    assert read_forgetting(tmp_path) == (b"png", {"student": {"average_forgetting": 0.1}})
    (tmp_path / "forgetting.json").write_text('{"summary": []}')
    with pytest.raises(DataError, match="forgetting.json: cannot be read"):
        read_forgetting(tmp_path)
