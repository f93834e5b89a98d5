"""The report as JSON, as a page and as documentation."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fx_d2.data.doctor import CHECKS, check, check_table, examine
from fx_d2.data.doctor.findings import Finding, Report
from fx_d2.data.doctor.report_html import render_html
from fx_d2.data.sources import get_source

DOCS = Path(__file__).resolve().parents[3] / "docs" / "doctor.md"


def finding(severity: str = "error", **changes: object) -> Finding:
    body: dict = {
        "severity": severity,
        "check": "files/missing",
        "source": "nih14",
        "part": "test",
        "file": "a.png",
        "where": "row 3",
        "found": "no such file",
        "expected": "a file",
        "fix": "get it",
    }
    return Finding(**(body | changes))


@pytest.mark.parametrize(
    ("severities", "code"), [([], 0), (["info"], 0), (["warning", "info"], 0), (["error"], 1)]
)
def test_only_errors_make_the_exit_code(severities: list[str], code: int) -> None:
    assert Report("x", [finding(severity) for severity in severities]).exit_code == code


def test_json_holds_everything(tmp_path: Path) -> None:
    report = Report(str(tmp_path), [finding(), finding("warning", count=7)])
    body = json.loads(json.dumps(report.to_json()))
    assert body["format"] == "fx_d2 doctor 1"
    assert body["counts"] == {"error": 1, "warning": 1, "info": 0}
    assert body["findings"][1]["count"] == 7
    needed = {"severity", "check", "source", "file", "where", "found", "expected", "fix"}
    assert needed <= set(body["findings"][0])


def test_the_table_in_the_docs_is_the_registry() -> None:
    text = DOCS.read_text(encoding="utf-8")
    table = re.search(r"<!-- checks -->\n(.*?)<!-- /checks -->", text, re.DOTALL)
    assert table is not None
    assert table.group(1) == check_table(), "run tools/doctor.py --list-checks and paste its output"
    assert all(f"`{id}`" in text for id in CHECKS)


def test_a_check_id_can_be_taken_once() -> None:
    with pytest.raises(ValueError, match="registered twice"):
        check("files/missing", "error", what="x", fix="y")(lambda exam: iter(()))
    with pytest.raises(ValueError, match="severity 'fatal'"):
        check("files/other", "fatal", what="x", fix="y")


def test_the_page_shows_offenders_and_loads_nothing(
    copy_of: Callable[..., Path], clean_world: Path
) -> None:
    root = copy_of(["montgomery"])
    masks = root / "MontgomerySet/ManualMask"
    one = min((masks / "leftMask").iterdir()).name
    shutil.copy(masks / "rightMask" / one, masks / "leftMask" / one)
    report, exam = examine(root, [get_source("montgomery")])
    # Names come from disk: they must not become markup.
    report.findings.append(finding(found="<script>alert(1)</script>", file="<img src=x>"))
    page = render_html(report, exam)
    assert "<script" not in page and "<img src=x" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r"<[^>]*(src|href)=(?!['\"]data:)", page)
    assert "http" not in re.sub(r"base64,[^']*", "", page)
    assert page.count("data:image/jpeg;base64,") >= 1 or report.counts["error"] == 1
    assert "No errors" not in page
    clean, exam = examine(clean_world, [get_source("montgomery")])
    assert "No errors" in render_html(clean, exam)
