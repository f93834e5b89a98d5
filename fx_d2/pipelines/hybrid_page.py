"""What the hybrid pipeline found, as one HTML file of cards that needs nothing beside it."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fx_d2.data.html_page import document, picture_tag

from .hybrid_pictures import LUNG_COLOUR, colour_bar

_STYLE = """
h1 { margin-bottom: 2px } .what { font-size: 13px }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin: 14px 0 }
.tile { background: var(--card); border-radius: 8px; padding: 10px 16px; flex: 1 1 120px;
        border-top: 4px solid var(--edge) }
.tile.good { border-color: var(--good) } .tile.bad { border-color: var(--bad) }
.tile.warn { border-color: var(--warn) }
.tile b { font-size: 24px; font-variant-numeric: tabular-nums; display: block }
.tile span { color: var(--dim); font-size: 13px }
.note { border-left-color: var(--warn); font-size: 13px }
section.card { border-left-color: var(--good) }
section.card.warned { border-left-color: var(--warn) }
section.card.skipped { border-left-color: var(--edge) }
.head { display: flex; flex-wrap: wrap; gap: 4px 12px; align-items: baseline; margin-bottom: 10px }
.head h2 { overflow-wrap: anywhere } .head .size { color: var(--dim); font-size: 12px }
.chip { border-radius: 10px; padding: 1px 10px; font-size: 13px; color: #fff;
        background: var(--edge) }
.chip.found { background: var(--bad) } .chip.none { background: var(--good) }
.row { display: grid; gap: 12px; align-items: start;
       grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)) }
.row img { width: 100%; height: auto; background: #000 }
.row figcaption { color: var(--dim); margin-top: 4px }
.bars { font-size: 13px; display: grid; gap: 3px 8px; align-items: center;
        grid-template-columns: minmax(70px, max-content) 1fr 3em }
.bars i { height: 9px; border-radius: 3px; background: var(--line); display: block;
          overflow: hidden }
.bars i b { display: block; height: 100%; background: var(--edge) }
.bars i.hot b { background: var(--bad) } .bars span { overflow-wrap: anywhere }
.bars em { font-style: normal; text-align: right; font-variant-numeric: tabular-nums }
.figures { margin-top: 10px } .figures td, .figures th { padding: 2px 6px }
ul.said { margin: 10px 0 0; padding: 8px 12px 8px 28px; border-radius: 6px; font-size: 13px;
          border: 1px solid var(--warn) }
.legend { display: flex; flex-wrap: wrap; gap: 6px 20px; align-items: center; font-size: 13px;
          color: var(--dim) }
.legend > span { display: inline-flex; gap: 8px; align-items: center }
.line { display: inline-block; width: 22px; height: 3px }
a { color: inherit } .path { overflow-wrap: anywhere }
"""


@dataclass(frozen=True)
class Card:
    """One film on the page; small enough to keep many.

    Args:
        name: of the film.
        file: its path.
        size: (height, width).
        pictures: (``<img>`` tag, caption as plain text).
        labels: {class: probability}; empty where it was not classified.
        positive: classes called present.
        figures: rows of the table of maps, as :func:`fx_d2.pipelines.hybrid_cards.row_of_map`.
        facts: (words, figure as text) about the film.
        warnings: sentences.
        skipped: why later stages were left out; "" if they were not.
    """

    name: str
    file: str
    size: tuple[int, int]
    pictures: Sequence[tuple[str, str]]
    labels: Mapping[str, float] = field(default_factory=dict)
    positive: Sequence[str] = ()
    figures: Sequence[Mapping[str, Any]] = ()
    facts: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()
    skipped: str = ""


@dataclass(frozen=True)
class Page:
    """Everything the page shows.

    Args:
        title: of it.
        tiles: (figure, words, ``good``, ``warn``, ``bad`` or "").
        cards: of films, those with warnings first.
        left_out: films that have no card.
        failed: (file, reason) of those that could not be read.
        tables: (title, column names, rows) of summaries.
        notes: sentences that must be read with the figures.
        facts: (name, text) of how it was made.
        lesions: whether true lesions are outlined.
    """

    title: str
    tiles: Sequence[tuple[str, str, str]]
    cards: Sequence[Card]
    left_out: int = 0
    failed: Sequence[tuple[str, str]] = ()
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = ()
    notes: Sequence[str] = ()
    facts: Sequence[tuple[str, str]] = ()
    lesions: bool = False


def render(page: Page) -> str:
    """The page; every text is escaped, nothing is loaded from elsewhere."""
    notes = "".join(f"<p class=what>{_text(note)}</p>" for note in page.notes)
    parts = [
        f"<h1>{_text(page.title)}</h1>",
        _tiles(page.tiles),
        f"<section class=note>{notes}</section>" if notes else "",
        *(_table(*table) for table in page.tables),
        _failed(page.failed),
        _legend(page.lesions) if page.cards else "",
        *(_card(card) for card in page.cards),
        f"<p class=what>{page.left_out:,} more films are in summary.csv.</p>"
        if page.left_out
        else "",
        _facts(page.facts),
    ]
    return document(page.title, "".join(parts), _STYLE)


def _text(words: object) -> str:
    # The name of a file need not be text.
    return html.escape(str(words).encode("utf-8", "backslashreplace").decode("utf-8"))


def _tiles(tiles: Iterable[tuple[str, str, str]]) -> str:
    shown = "".join(
        f"<div class='tile {kind}'><b>{_text(figure)}</b><span>{_text(words)}</span></div>"
        for figure, words, kind in tiles
    )
    return f"<div class=tiles>{shown}</div>"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th{' class=n' * (i > 0)}>{_text(c)}" for i, c in enumerate(columns))
    body = "".join(
        "<tr>" + "".join(f"<td{' class=n' * (i > 0)}>{_text(v)}" for i, v in enumerate(row))
        for row in rows
    )
    return f"<section><h2>{_text(title)}</h2><table><tr>{top}{body}</table></section>"


def _failed(failed: Sequence[tuple[str, str]]) -> str:
    if not failed:
        return ""
    rows = "".join(f"<tr><td class=path>{_text(file)}<td>{_text(why)}" for file, why in failed)
    return (
        f"<section class=note><h2>Not read: {len(failed)}</h2>"
        f"<table><tr><th>file<th>reason{rows}</table></section>"
    )


def _legend(lesions: bool) -> str:
    colour = "rgb({}, {}, {})".format(*LUNG_COLOUR)
    lines = f"<span><i class=line style='background:{colour}'></i>lung mask</span>"
    if lesions:
        lines += (
            "<span><i class=line style='background:#fff;outline:1px solid #000'></i>"
            "true lesion</span>"
        )
    bar = picture_tag(colour_bar(), "colours of the heat map")
    return f"<p class=legend>{lines}<span>heat map: 0 {bar} its maximum in the film</span></p>"


def _card(card: Card) -> str:
    kind = "skipped" if card.skipped else "warned" if card.warnings else ""
    height, width = card.size
    figures = "".join(
        f"<figure>{tag}<figcaption>{_text(caption)}</figcaption></figure>"
        for tag, caption in card.pictures
    )
    said = "".join(f"<li>{_text(words)}" for words in card.warnings)
    return (
        f"<section class='card {kind}'><div class=head><h2>{_text(card.name)}</h2>{_chips(card)}"
        f"<span class=size>{width} x {height} px &middot; {_text(card.file)}</span></div>"
        f"<div class=row>{figures}<div>{_bars(card)}{_card_figures(card)}</div></div>"
        f"{f'<ul class=said>{said}</ul>' if said else ''}</section>"
    )


def _chips(card: Card) -> str:
    if card.skipped:
        return f"<span class=chip>{_text(card.skipped)}</span>"
    if not card.positive:
        return "<span class='chip none'>no finding called</span>"
    return "".join(
        f"<span class='chip found'>{_text(name)} {card.labels[name]:.2f}</span>"
        for name in card.positive
    )


def _bars(card: Card, at_most: int = 14) -> str:
    """The likeliest classes, in the order of the head."""
    best = set(sorted(card.labels, key=lambda name: -card.labels[name])[:at_most])
    rows = "".join(
        f"<span>{_text(name)}</span><i{' class=hot' * (name in card.positive)}>"
        f"<b style='width:{100 * min(max(value, 0.0), 1.0):.1f}%'></b></i><em>{value:.2f}</em>"
        for name, value in card.labels.items()
        if name in best
    )
    return f"<div class=bars>{rows}</div>" if rows else ""


def _card_figures(card: Card) -> str:
    facts = "".join(
        f"<tr><td>{_text(words)}<td class=n>{_text(figure)}" for words, figure in card.facts
    )
    rows = "".join(
        f"<tr><td>{_text(row['class'])}<td class=n>{percent(row['in_lung'])}"
        f"<td class=n>{percent(row['even'])}<td class=n>{percent(row['severity_heuristic'])}"
        for row in card.figures
    )
    top = "<tr><th>heat map of<th class=n>in lungs<th class=n>by chance<th class=n>severity *"
    maps = f"<table class=figures>{top}{rows}</table>" if rows else ""
    return maps + (f"<table class=figures>{facts}</table>" if facts else "")


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    rows = "".join(f"<tr><td>{_text(name)}<td class=path>{_text(value)}" for name, value in facts)
    return f"<section><h2>How this was made</h2><table>{rows}</table></section>" if rows else ""


def percent(value: float | None) -> str:
    """A share as text; a dash where it is not known."""
    return "\u2013" if value is None or math.isnan(value) else f"{value:.0%}"
