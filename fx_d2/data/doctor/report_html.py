"""The report as one self-contained page: what was found, what to do, and pictures of offenders."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from textwrap import shorten

import cv2
import numpy as np

from ..draw import draw_record
from ..errors import DataError
from .examination import Examination
from .findings import CHECKS, Finding, Report

MAX_PICTURES = 8  # per check
MAX_LINES = 100  # per check; the JSON report has all
_PICTURE_PX = 220
_VERDICTS = {0: "No errors", 1: "Errors found"}

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1180px; padding: 24px;
       background: #f6f7f9; color: #1c2128; }
h1 { font-size: 24px; margin: 0 0 4px } h2 { font-size: 18px; margin: 0 }
.verdict { padding: 12px 16px; border-radius: 8px; color: #fff; margin: 12px 0 }
.ok { background: #1f7a4d } .bad { background: #b3261e }
table { border-collapse: collapse; width: 100%; font-size: 13px }
td, th { text-align: left; padding: 4px 8px; border-bottom: 1px solid #e3e6ea; vertical-align: top }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums }
td.path { font-family: ui-monospace, monospace; font-size: 12px; overflow-wrap: anywhere }
section { background: #fff; border-radius: 8px; padding: 14px 16px; margin: 14px 0;
          border-left: 6px solid #8a94a3 }
section.error { border-color: #b3261e } section.warning { border-color: #c98a00 }
.tag { font-size: 12px; border-radius: 4px; padding: 1px 7px; color: #fff; background: #8a94a3 }
.tag.error { background: #b3261e } .tag.warning { background: #a87300 }
.what { margin: 4px 0; color: #444c56 } .fix { margin: 4px 0 8px }
.pictures { display: flex; flex-wrap: wrap; gap: 8px; margin: 8px 0 }
figure { margin: 0 } figcaption { font-size: 12px; max-width: 340px; overflow-wrap: anywhere }
img { display: block; border-radius: 4px; max-height: 260px }
details summary { cursor: pointer; color: #444c56 }
"""


def render_html(report: Report, exam: Examination) -> str:
    """The page; nothing in it is loaded from elsewhere, and every text from disk is escaped."""
    groups = report.by_check()
    body = "".join(_check_section(check, found, exam) for check, found in groups.items())
    clean = [check for check in report.checks if check not in groups]
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>fx_d2 doctor</title><style>{_STYLE}</style>"
        f"<h1>Dataset report</h1><div>{html.escape(report.root)}</div>"
        f"{_verdict(report)}{_sources(report)}{body}"
        f"<section><h2>Checks without a finding</h2><p class=what>{html.escape(', '.join(clean))}"
        "</p></section></html>\n"
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
        ok, data = cv2.imencode(".jpg", np.ascontiguousarray(picture[..., ::-1]))
        if ok:
            packed = base64.b64encode(data.tobytes()).decode("ascii")
            words = f"{source.key} {record['image_id']}: {finding.found}"
            caption = html.escape(shorten(words, 180, placeholder=" ..."))
            yield (
                f"<figure><img alt='' src='data:image/jpeg;base64,{packed}'>"
                f"<figcaption>{caption}</figcaption></figure>"
            )
