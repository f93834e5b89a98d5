"""A run as one HTML file that needs nothing beside it."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from fx_d2.data.html_page import document, image_tag, picture_tag
from fx_d2.data.source import TASKS

from .gallery import Example

WHOSE = ("student", "teacher")
_TEACHER = "teacher/"
_METRIC_WORDS = {
    "AUC": "area under the ROC curve",
    "AP40": "average precision of boxes at an overlap of 0.4",
    "Dice_positive": "Dice on films that have the structure",
}
_TASK_WORDS = {"cls": "classification", "loc": "localization", "seg": "segmentation"}

_STYLE = """
img { max-width: 100%; height: auto }
h2 { margin-bottom: 6px } .wide img { background: #fff }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 12px 0 }
.tile { background: var(--card); border-radius: 8px; padding: 10px 16px; flex: 1 1 150px;
        border-top: 4px solid var(--edge) }
.tile.good { border-color: var(--good) } .tile.bad { border-color: var(--bad) }
.tile b { font-size: 26px; font-variant-numeric: tabular-nums; display: block }
.tile span { color: var(--dim); font-size: 13px }
tr.mean td { font-weight: 600; border-bottom: 2px solid var(--edge) }
tr.floor td { color: var(--dim) } td.pass { color: var(--good) } td.fail { color: var(--bad) }
.films { display: flex; flex-wrap: wrap; gap: 18px } .film { flex: 1 1 460px; min-width: 0 }
.film .row { display: flex; flex-wrap: wrap; gap: 4px; background: #121418; border-radius: 4px }
.film .row img { flex: 0 1 auto; min-width: 0 }
figcaption { color: var(--dim); margin-top: 4px }
pre { overflow-x: auto; font-size: 12px; white-space: pre-wrap; overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Report:
    """Everything a page shows; parts that are empty are left out, ``notes`` say why.

    Args:
        title: of the page.
        intro: a sentence or two below it.
        results: ``{"<source>/<task>": {metric: figure}}``, those of a teacher below ``teacher/``.
        images: {"<source>/<task>": images it was scored on}.
        metrics: {task: the figure of its heads}.
        floors: {task: what its mean has to reach}.
        curves: PNG.
        forgetting: PNG.
        forgetting_means: {whose: {name: figure}}.
        examples: of the gallery.
        facts: (name, text) of what was run, and on what.
        links: (file beside the page, words).
        notes: what is missing, and why.
    """

    title: str
    intro: str = ""
    results: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    metrics: Mapping[str, str] = field(default_factory=dict)
    floors: Mapping[str, float] = field(default_factory=dict)
    curves: bytes = b""
    forgetting: bytes = b""
    forgetting_means: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    examples: Sequence[Example] = ()
    facts: Sequence[tuple[str, str]] = ()
    links: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()

    def whose(self) -> list[str]:
        """Student and teacher, or only what there is."""
        teacher = any(head.startswith(_TEACHER) for head in self.results)
        student = any(not head.startswith(_TEACHER) for head in self.results)
        return [who for who, there in zip(WHOSE, (student, teacher), strict=True) if there]

    def heads(self, task: str) -> list[str]:
        """``<source>/<task>`` of one task, in the order of the evaluation."""
        plain = dict.fromkeys(head.removeprefix(_TEACHER) for head in self.results)
        return [head for head in plain if head.rpartition("/")[2] == task]

    def figure(self, who: str, head: str) -> float | None:
        """The one figure of a head; None where it is not known."""
        key = f"{_TEACHER}{head}" if who == "teacher" else head
        return self.results.get(key, {}).get(self.metrics.get(head.rpartition("/")[2], ""))

    def mean(self, who: str, task: str) -> float | None:
        """Over the heads of a task whose figure is known."""
        known = [v for head in self.heads(task) if (v := self.figure(who, head)) is not None]
        return fmean(known) if known else None

    def judged(self) -> str:
        """Whose means are compared with the floors: the teacher's where there is one."""
        return (self.whose() or ["student"])[-1]


def render(report: Report) -> str:
    """The page; every text is escaped, and nothing is loaded from elsewhere."""
    parts = [
        f"<h1>{_text(report.title)}</h1>",
        f"<p class=what>{_text(report.intro)}</p>" if report.intro else "",
        _tiles(report),
        _section("Results", _results(report)),
        _section("What is forgotten", _forgetting(report)),
        _section("Loss and learning rate", _curves(report)),
        _section("Predictions beside truth", _gallery(report)),
        _section("How this was made", _facts(report)),
    ]
    return document(report.title, "".join(parts), _STYLE)


def _text(words: object) -> str:
    return html.escape(str(words))


def _section(title: str, body: str) -> str:
    return f"<section><h2>{_text(title)}</h2>{body}</section>" if body else ""


def _number(value: float | None) -> str:
    return "&ndash;" if value is None else f"{value:.3f}"


def _tiles(report: Report) -> str:
    who, tiles = report.judged(), []
    for task in TASKS:
        mean = report.mean(who, task)
        if mean is None:
            continue
        floor = report.floors.get(task)
        kind = "" if floor is None else " good" if mean >= floor else " bad"
        heads = len(report.heads(task))
        words = f"mean {report.metrics[task]}, {_TASK_WORDS[task]}, {heads} head{'s' * (heads > 1)}"
        if floor is not None:
            words += f"; floor {floor:.2f}, {'reached' if mean >= floor else 'not reached'}"
        tiles.append(f"<div class='tile{kind}'><b>{mean:.3f}</b><span>{_text(words)}</span></div>")
    return f"<div class=tiles>{''.join(tiles)}</div>" if tiles else ""


def _results(report: Report) -> str:
    whose, rows = report.whose(), []
    if not whose:
        return ""
    for task in TASKS:
        heads, metric = report.heads(task), report.metrics.get(task, "")
        if not heads:
            continue
        for head in heads:
            cells = "".join(f"<td class=n>{_number(report.figure(who, head))}" for who in whose)
            seen = report.images.get(head)
            rows.append(f"<tr><td>{_text(head)}<td>{_text(metric)}<td class=n>{seen or ''}{cells}")
        cells = "".join(f"<td class=n>{_number(report.mean(who, task))}" for who in whose)
        rows.append(f"<tr class=mean><td>mean {_text(task)}<td>{_text(metric)}<td>{cells}")
        if task in report.floors:
            rows.append(_floor(report, task, whose))
    names = whose if len(whose) > 1 else ["figure"]
    top = "".join(f"<th class=n>{_text(name)}" for name in names)
    shown = dict.fromkeys(report.metrics.get(task, "") for task in TASKS if report.heads(task))
    words = "; ".join(f"{m}: {_METRIC_WORDS[m]}" for m in shown if m in _METRIC_WORDS)
    return (
        f"<table><tr><th>head<th>figure<th class=n>films{top}{''.join(rows)}</table>"
        f"<p class=what>{_text(words)}. A dash is a figure that cannot be computed from these "
        "films.</p>"
    )


def _floor(report: Report, task: str, whose: Sequence[str]) -> str:
    floor = report.floors[task]
    mean = report.mean(report.judged(), task)
    good = mean is not None and mean >= floor
    mark = "&#10003;" if good else "&#10007;"
    verdict = f"<td class='n {'pass' if good else 'fail'}'>{floor:.2f} {mark}"
    before = "<td class=n>" * (len(whose) - 1)
    return f"<tr class=floor><td>floor {_text(task)}<td><td>{before}{verdict}"


def _forgetting(report: Report) -> str:
    if not report.forgetting:
        return ""
    rows = "".join(
        f"<tr><td>{_text(name.replace('_', ' '))}<td>{_text(who)}<td class=n>{value:+.3f}"
        for who, means in report.forgetting_means.items()
        for name, value in means.items()
    )
    table = f"<table><tr><th>figure<th>of<th class=n>mean over heads{rows}</table>" if rows else ""
    picture = image_tag(report.forgetting, "png", "scores of every head at each moment of the run")
    return (
        "<p class=what>Every head, scored on validation films while training went on. Forgetting: "
        "best earlier score minus the last one; backward transfer: last score minus the one right "
        "after a head was trained; forward transfer: what other heads taught it before.</p>"
        f"<div class=wide>{picture}</div>{table}"
    )


def _curves(report: Report) -> str:
    if not report.curves:
        return ""
    picture = image_tag(report.curves, "png", "losses and learning rate over iterations")
    return (
        "<p class=what>A dot is the loss of one source, the line a running median. Shaded, "
        "where there is a cycle: its phases, darker where the trunk is locked; a thin line begins "
        "the next one.</p>"
        f"<div class=wide>{picture}</div>"
    )


def _gallery(report: Report) -> str:
    films = []
    for example in report.examples:
        row = "".join(picture_tag(picture, example.words) for picture in example.pictures[:1])
        row += "".join(picture_tag(picture) for picture in example.pictures[1:])
        films.append(
            f"<figure class=film><div class=row>{row}</div>"
            f"<figcaption><b>{_text(example.title)}</b>. {_text(example.words)}</figcaption>"
            "</figure>"
        )
    if not films:
        return ""
    return (
        f"<p class=what>Films that were not trained on, predicted by the {_text(report.judged())}. "
        "Films with a finding come first; what is predicted plays no part in the choice.</p>"
        f"<div class=films>{''.join(films)}</div>"
    )


def _facts(report: Report) -> str:
    rows = "".join(
        f"<tr><td>{_text(name)}<td>"
        + (f"<pre>{_text(value)}</pre>" if "\n" in value else _text(value))
        for name, value in report.facts
    )
    links = "".join(f"<li><a href='{_text(to)}'>{_text(words)}</a>" for to, words in report.links)
    notes = "".join(f"<p class=what>{_text(note)}</p>" for note in report.notes)
    table = f"<table>{rows}</table>" if rows else ""
    return table + notes + (f"<ul>{links}</ul>" if links else "")
