"""What the hybrid pipeline found, as files: masks, maps, pictures, tables and a page.

========================  ==========================================================================
``masks/<name>.png``      the lung mask, 0 and 255, of the film's size
``maps/<name>.<class>.png``  a heat map of the film's size, 8 bit, its maximum at 255
``overlays/<name>.png``   the stages beside each other
``films.jsonl``           a line per film with every figure
``summary.csv``           a line per film
``summary.json``          totals, settings, models
``index.html``            cards
========================  ==========================================================================
"""

from __future__ import annotations

import csv
import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any, TextIO

import numpy as np

from fx_d2.data.atomic import replacing, write_atomically
from fx_d2.data.draw import contact_sheet
from fx_d2.data.image_files import ImageFile
from fx_d2.data.picture_files import file_name, save_png

from .evidence import SEVERITY_NOTE, LesionEvidence
from .hybrid import Found, Hybrid, MapFigures
from .hybrid_cards import UNREADABLE, card_of, facts_of, known, row_of_map, tiles_of
from .hybrid_page import Card, Page, percent, render
from .hybrid_pictures import FilmPictures, titled
from .stages import Mask

FORMAT = "fx_d2 hybrid 1"
MASKS, MAPS, OVERLAYS = "masks", "maps", "overlays"
LINES, TABLE, SUMMARY, PAGE = "films.jsonl", "summary.csv", "summary.json", "index.html"
FOLDERS = (MASKS, MAPS, OVERLAYS)
_FIRST = ("file", "name", "status", "height", "width", "lung_area", "lung_pieces")
_LAST = (
    *("positive", "explained", "in_lung_share", "in_lung_by_chance", "severity_heuristic"),
    *("seconds", "warnings"),
)


@dataclass
class Totals:
    """What is counted over all films."""

    status: Counter[str] = field(default_factory=Counter)
    positive: Counter[str] = field(default_factory=Counter)
    warned: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    in_lung: list[float] = field(default_factory=list)
    lesions: dict[tuple[str, str], list[LesionEvidence]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def lesion_rows(self) -> list[dict[str, Any]]:
        """A row per class of truth: how much of the maps lies on it, and by chance."""
        return [
            {
                "truth": truth,
                "heat_map": explained,
                "films": len(found),
                "energy": _mean([one.energy for one in found]),
                "chance": _mean([one.chance for one in found]),
                "in_lungs": _mean([one.in_lungs for one in found]),
                "maximum_inside": fmean(one.hit for one in found),
            }
            for (truth, explained), found in sorted(self.lesions.items())
        ]


class HybridFolder:
    """Writes films as they come; tables and page appear whole when all is done.

    Args:
        folder: made where it is missing.
        pipeline: whose results these are.
        size_px: longer side of a film in ``overlays``.
        max_cards: films on the page, at most; those with warnings come first.
        lesions: whether films come with true lesions.
    """

    def __init__(
        self,
        folder: Path,
        pipeline: Hybrid,
        *,
        size_px: int = 640,
        max_cards: int = 200,
        lesions: bool = False,
    ) -> None:
        self.folder, self.pipeline, self.size_px = folder, pipeline, size_px
        self.max_cards, self.lesions = max_cards, lesions
        self.totals, self.failed = Totals(), list[tuple[str, str]]()
        self._warned: list[Card] = []
        self._plain: list[Card] = []
        self._stack = ExitStack()
        self._files: tuple[TextIO, TextIO] | None = None

    def __enter__(self) -> HybridFolder:
        with ExitStack() as stack:
            opened = []
            for name in (TABLE, LINES):
                place = stack.enter_context(replacing(self.folder / name))
                file = place.open("w", encoding="utf-8", errors="backslashreplace", newline="")
                opened.append(stack.enter_context(file))
            self._files = (opened[0], opened[1])
            names = [f"p:{name}" for name in self.pipeline.classifier.classes]
            csv.writer(opened[0]).writerow([*_FIRST, *names, *_LAST])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def write(
        self,
        image: ImageFile,
        found: Found,
        seconds: float,
        lesions: Mapping[str, Mask] | None = None,
    ) -> None:
        """Write all of one film.

        Args:
            image: the file, and the name of what is written.
            found: of it.
            seconds: it took.
            lesions: {class: bool (height, width)} of what is truly there.
        """
        save_png(self.folder / MASKS / f"{image.name}.png", found.lungs.mask * np.uint8(255))
        for heat in found.maps:
            levels = np.rint(heat.scaled() * np.float32(255)).astype(np.uint8)
            save_png(self.folder / MAPS / f"{image.name}.{file_name(heat.cls)}.png", levels)
        self._draw(image, found, lesions or {})
        self._count(found, seconds)
        line = described(image, found) | {"seconds": round(seconds, 3)}
        self._line(line)
        first = found.figures[0] if found.figures else None
        labels = found.scores.labels if found.scores else {}
        self._row(
            [
                *(image.path, image.name, found.status, *found.film.size),
                *(f"{found.lungs.area:.4f}", len(found.lungs.pieces())),
                *(_cell(labels.get(name)) for name in self.pipeline.classifier.classes),
                "; ".join(line["positive"]),
                *_map_cells(first),
                *(f"{seconds:.3f}", "; ".join(one.text for one in found.remarks)),
            ]
        )

    def fail(self, image: ImageFile, why: str) -> None:
        """Write down a film that could not be read."""
        self.failed.append((str(image.path), why))
        self.totals.status[UNREADABLE] += 1
        self._line({"file": str(image.path), "name": image.name, "status": UNREADABLE, "why": why})
        blank = len(_FIRST) - 3 + len(self.pipeline.classifier.classes) + len(_LAST) - 1
        self._row([image.path, image.name, UNREADABLE, *[""] * blank, why])

    def finish(self, peak_mib: float) -> dict[str, Any]:
        """Write summary and page; what the summary says.

        Args:
            peak_mib: largest resident memory of the process.
        """
        totals = self.totals
        figures = {
            "films": sum(totals.status.values()),
            **{"by_status": dict(totals.status), "positive": dict(totals.positive)},
            **{"with_warnings": totals.warned, "warnings": dict(totals.kinds)},
            "mean_in_lung_share": known(_mean(totals.in_lung)),
            "seconds_per_film": known(_mean(totals.seconds)),
            "peak_memory_mib": known(peak_mib),
        }
        summary = {
            "format": FORMAT,
            **figures,
            "lesions": [{k: known(v) for k, v in row.items()} for row in totals.lesion_rows()],
            "severity": self._severity_note(),
            "settings": self.pipeline.described(),
            "not_read": [{"file": file, "why": why} for file, why in self.failed],
        }
        write_atomically(self.folder / SUMMARY, json.dumps(summary, indent=1) + "\n")
        write_atomically(self.folder / PAGE, render(self._page(figures)))
        return summary

    def _draw(self, image: ImageFile, found: Found, lesions: Mapping[str, Mask]) -> None:
        large = FilmPictures(found.film, self.size_px)
        area = f"lungs {percent(found.lungs.area)} of {image.path.name}"
        panels = [titled(large.lungs(found.lungs, found.crop), area)]
        if found.crop is not None and self.pipeline.mode != "none":
            shown = f"shown to the classifier: {self.pipeline.mode}"
            panels.append(titled(large.crop(found.crop), shown))
        panels += [
            titled(
                large.heat(heat, found.lungs, lesions, found.crop), f"{heat.method} {_said(one)}"
            )
            for heat, one in zip(found.maps, found.figures, strict=True)
        ]
        path = self.folder / OVERLAYS / f"{image.name}.png"
        save_png(path, contact_sheet(panels, columns=min(len(panels), 4)))
        kept = self._warned if found.remarks else self._plain
        if len(kept) < self.max_cards:
            kept.append(card_of(image, found, lesions, self.pipeline.mode))

    def _count(self, found: Found, seconds: float) -> None:
        totals = self.totals
        totals.status[found.status] += 1
        totals.seconds.append(seconds)
        totals.warned += bool(found.remarks)
        totals.kinds.update({one.kind for one in found.remarks})
        totals.positive.update(one.cls for one in found.figures if one.positive)
        totals.in_lung += [f.in_lung for f in found.figures[:1] if not math.isnan(f.in_lung)]
        for one in found.lesions:
            totals.lesions[one.cls, one.explained].append(one)

    def _line(self, values: Mapping[str, Any]) -> None:
        assert self._files is not None, "used outside its context"
        self._files[1].write(json.dumps(values) + "\n")

    def _row(self, cells: Sequence[object]) -> None:
        assert self._files is not None, "used outside its context"
        csv.writer(self._files[0]).writerow(cells)

    def _severity_note(self) -> str:
        return SEVERITY_NOTE.format(level=self.pipeline.settings.level)

    def _page(self, figures: Mapping[str, Any]) -> Page:
        cards = (self._warned + self._plain)[: self.max_cards]
        written = sum(self.totals.status.values()) - len(self.failed)
        return Page(
            title="Lungs, scores and heat maps",
            tiles=tiles_of(figures),
            cards=cards,
            left_out=written - len(cards),
            failed=self.failed,
            tables=self._tables(),
            notes=(
                "Research use only. A heat map shows what a network used, not where a disease is; "
                "it says nothing about whether the score is right.",
                f"* {self._severity_note()}",
            ),
            facts=facts_of(self.pipeline.described()),
            lesions=self.lesions,
        )

    def _tables(self) -> list[tuple[str, Sequence[str], Sequence[Sequence[str]]]]:
        columns = (
            *("true lesion", "heat map of", "films", "on the lesion", "by chance"),
            *("of the lungs", "maximum"),
        )
        rows = [
            (
                *(row["truth"], row["heat_map"], str(row["films"])),
                *(percent(row[key]) for key in ("energy", "chance", "in_lungs", "maximum_inside")),
            )
            for row in self.totals.lesion_rows()
        ]
        return [("Heat maps on true lesions", columns, rows)]


def described(image: ImageFile, found: Found) -> dict[str, Any]:
    """One film in values that JSON knows; what is not known is null."""
    box = found.crop.shown.box if found.crop else None
    return {
        **{"file": str(image.path), "name": image.name, "status": found.status},
        **{"height": found.film.size[0], "width": found.film.size[1]},
        "lungs": {
            **{"area": found.lungs.area, "pieces": list(found.lungs.pieces())},
            **{"edges": list(found.lungs.edges()), "rule": found.lungs.rule},
            "members": dict(found.lungs.members),
        },
        "crop": {"box_xyxy": box, "mode": found.crop.shown.mode} if found.crop else None,
        "labels": dict(found.scores.labels) if found.scores else None,
        "positive": [one.cls for one in found.figures if one.positive],
        "maps": [row_of_map(one) for one in found.figures],
        "lesions": [
            {name: known(value) for name, value in vars(one).items()} for one in found.lesions
        ],
        "warnings": [vars(one) for one in found.remarks],
    }


def _said(one: MapFigures) -> str:
    return f"{one.cls} {one.probability:.2f}, {percent(one.in_lung)} in lungs"


def _map_cells(one: MapFigures | None) -> list[str]:
    if one is None:
        return [""] * 4
    return [one.cls, *map(_cell, (one.in_lung, one.even, one.severity))]


def _cell(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.4f}"


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return fmean(known) if known else math.nan
