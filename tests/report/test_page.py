"""The page: figures by hand, everything escaped, nothing loaded from elsewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from fx_d2.report.gallery import Example
from fx_d2.report.page import Report, render

METRICS = {"cls": "AUC", "loc": "AP40", "seg": "Dice_positive"}
RESULTS = {
    "rsna/cls": {"AUC": 0.6, "AUC-Normal": 0.9},
    "node21/cls": {"AUC": 0.8},
    "tbx11k/cls": {"F1": 0.1},
    "rsna/loc": {"AP40": 0.10},
    "teacher/rsna/cls": {"AUC": 0.7},
    "teacher/node21/cls": {"AUC": 0.9},
    "teacher/tbx11k/cls": {},
    "teacher/rsna/loc": {"AP40": 0.15},
}
FLOORS = {"cls": 0.75, "loc": 0.20, "seg": 0.55}
NASTY = "<script>alert('x')</script> & \"q\""


class Seen(HTMLParser):
    """Tags and the places that a page loads or leads to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.places: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.places += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def full() -> Report:
    film = np.zeros((4, 5, 3), dtype=np.uint8)
    return Report(
        title=NASTY,
        intro=NASTY,
        results={**RESULTS, f"{NASTY}/seg": {"Dice_positive": 0.5}},
        images={"rsna/cls": 12},
        metrics=METRICS,
        floors=FLOORS,
        curves=b"curves",
        forgetting=b"map",
        forgetting_means={NASTY: {"average_forgetting": 0.0123}},
        examples=[Example(NASTY, film, film, None, NASTY), Example("b", film, None, film, "w")],
        facts=[("made by", NASTY), (NASTY, "two\nlines <b>")],
        links=[("doctor.html", NASTY)],
        notes=[NASTY],
    )


def test_means_are_over_known_figures_and_the_teacher_is_judged():
    report = Report("t", results=RESULTS, metrics=METRICS, floors=FLOORS)
    assert report.whose() == ["student", "teacher"] and report.judged() == "teacher"
    assert report.mean("student", "cls") == pytest.approx(0.7)
    assert report.mean("teacher", "cls") == pytest.approx(0.8)
    assert report.mean("teacher", "seg") is None
    assert report.heads("cls") == ["rsna/cls", "node21/cls", "tbx11k/cls"]


def test_the_table_says_what_is_reached():
    page = render(Report("t", results=RESULTS, metrics=METRICS, floors=FLOORS))
    text = " ".join(Seen(page).text.split())
    assert "tbx11k/cls AUC \u2013 \u2013" in text
    assert "mean cls AUC 0.700 0.800 floor cls 0.75 \u2713" in text
    assert "mean loc AP40 0.100 0.150 floor loc 0.20 \u2717" in text
    assert "floor seg" not in text  # nothing of it was scored
    assert "floor 0.75, reached" in text and "floor 0.20, not reached" in text


def test_a_run_without_a_teacher_has_one_column():
    page = render(Report("t", results={"rsna/cls": {"AUC": 0.6}}, metrics=METRICS, floors=FLOORS))
    text = " ".join(Seen(page).text.split())
    assert "teacher" not in text and "mean cls AUC 0.600 floor cls 0.75 \u2717" in text


def test_every_text_is_escaped_and_nothing_comes_from_elsewhere():
    page = render(full())
    seen = Seen(page)
    assert not {"script", "link"} & set(seen.tags)
    assert page.count("<script") == 0 and page.count("&lt;script&gt;") >= 9
    assert all(p.startswith("data:image/") or p == "doctor.html" for p in seen.places)
    assert not re.search(r"https?:|@import|url\(", page)
    assert sum(place.startswith("data:image/") for place in seen.places) == 6


def test_it_is_made_for_phones_and_for_dark_rooms():
    page = render(full())
    assert "name=viewport" in page and "prefers-color-scheme: dark" in page
    assert "max-width: 100%" in page


def test_a_run_with_nothing_yet_still_has_a_page():
    page = render(Report("empty", metrics=METRICS, notes=["Nothing was evaluated yet"]))
    seen = Seen(page)
    assert "Nothing was evaluated yet" in seen.text and "table" not in seen.tags
    assert "Results" not in seen.text and "img" not in seen.tags
