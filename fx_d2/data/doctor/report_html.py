"""The report as one self-contained page: what was found, what to do, and pictures of offenders."""

from __future__ import annotations

import html
from collections.abc import Iterator
from textwrap import shorten

from ..draw import draw_record
from ..errors import DataError
from ..html_page import document, picture_tag
from .examination import Examination
from .findings import CHECKS, Finding, Report

MAX_PICTURES = 8  # per check
MAX_LINES = 100  # per check; the JSON report has all
_PICTURE_PX = 220
_VERDICTS = {0: "No errors", 1: "Errors found"}

_STYLE = """
td.path { font-family: ui-monospace, monospace; font-size: 12px; overflow-wrap: anywhere }
section.error { border-color: var(--bad) } section.warning { border-color: var(--warn) }
.tag { font-size: 12px; border-radius: 4px; padding: 1px 7px; color: #fff; background: #8a94a3 }
.tag.error { background: var(--bad) } .tag.warning { background: var(--warn) }
.fix { margin: 4px 0 8px }
.pictures { display: flex; flex-wrap: wrap; gap: 8px; margin: 8px 0 }
figcaption { max-width: 340px } img { max-height: 260px }
"""


def render_html(report: Report, exam: Examination) -> str:
    """The page; nothing in it is loaded from elsewhere, and every text from disk is escaped."""
    groups = report.by_check()
    body = "".join(_check_section(check, found, exam) for check, found in groups.items())
    clean = [check for check in report.checks if check not in groups]
    return document(
        "fx_d2 doctor",
        f"<h1>Dataset report</h1><div>{html.escape(report.root)}</div>"
        f"{_verdict(report)}{_sources(report)}{body}"
        f"<section><h2>Checks without a finding</h2><p class=what>{html.escape(', '.join(clean))}"
        "</p></section>",
        _STYLE,
    )


def _verdict(report: Report) -> str:
    counts = report.counts
    kind = "bad" if report.exit_code else "ok"
    return (
        f"<div class='verdict {kind}'><b>{_VERDICTS[report.exit_code]}</b>: {counts['error']} "
        f"errors, {counts['warning']} warnings, {counts['info']} notes from {len(report.checks)} "
        f"checks in {report.seconds:.1f} s</div>"
    )


def _sources(report: Report) -> str:
    rows = ""
    for key, seen in report.checked.items():
        parts = ", ".join(f"{name} {number:,}" for name, number in seen["parts"].items())
        found = [f for f in report.findings if key in f.source.split("+")]
        errors = sum(f.severity == "error" for f in found)
        warnings = sum(f.severity == "warning" for f in found)
        rows += (
            f"<tr><td>{html.escape(key)}<td>{html.escape(seen['title'])}<td>{html.escape(parts)}"
            f"<td class=n>{seen['files']:,}<td class=n>{seen['decoded']:,}"
            f"<td class=n>{seen['boxes']:,}<td class=n>{errors}<td class=n>{warnings}"
        )
    return (
        "<section><table><tr><th>source<th>name<th>records<th class=n>images<th class=n>decoded"
        f"<th class=n>boxes<th class=n>errors<th class=n>warnings{rows}</table></section>"
    )


def _check_section(check: str, findings: list[Finding], exam: Examination) -> str:
    worst = findings[0].severity
    rows = "".join(_row(finding) for finding in findings[:MAX_LINES])
    rest = len(findings) - MAX_LINES
    more = f"<p class=what>{rest:,} more lines are in the JSON report.</p>" if rest > 0 else ""
    cases = sum(finding.count for finding in findings)
    table = f"<table><tr><th>source<th>file<th>where<th>found<th>expected{rows}</table>{more}"
    opened = " open" if len(findings) <= 12 else ""
    return (
        f"<section class={worst}><h2>{html.escape(check)} <span class='tag {worst}'>{worst}</span> "
        f"<small>{cases:,}</small></h2><p class=what>{html.escape(CHECKS[check].what)}</p>"
        f"<p class=fix><b>To do:</b> {html.escape(findings[0].fix)}</p>"
        f"<div class=pictures>{''.join(_pictures(findings, exam))}</div>"
        f"<details{opened}><summary>{_lines(len(findings))}</summary>{table}</details></section>"
    )


def _lines(number: int) -> str:
    return "1 line" if number == 1 else f"{number:,} lines"


def _row(finding: Finding) -> str:
    cells = (finding.file or finding.part or "", finding.where or "")
    tag = f"<span class='tag {finding.severity}'>{finding.severity}</span> "
    return (
        f"<tr><td>{tag}{html.escape(finding.source)}<td class=path>{html.escape(cells[0])}"
        f"<td class=path>{html.escape(cells[1])}<td>{html.escape(finding.found)}"
        f"<td>{html.escape(finding.expected)}"
    )


def _pictures(findings: list[Finding], exam: Examination) -> Iterator[str]:
    shown: set[tuple[int, int]] = set()
    for finding in findings:
        if finding.record is None or finding.record in shown or len(shown) >= MAX_PICTURES:
            continue
        shown.add(finding.record)
        part, number = finding.record
        source = exam.parts[part].source
        record = exam.parts[part].records[number]
        try:
            picture = draw_record(record, source, size_px=_PICTURE_PX)
        except (DataError, ValueError, IndexError, KeyError, TypeError):
            continue  # an offender that cannot even be drawn stands in the table
        words = f"{source.key} {record['image_id']}: {finding.found}"
        caption = html.escape(shorten(words, 180, placeholder=" ..."))
        yield f"<figure>{picture_tag(picture)}<figcaption>{caption}</figcaption></figure>"
