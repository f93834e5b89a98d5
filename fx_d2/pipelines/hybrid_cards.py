"""What the page of the hybrid pipeline says about a film and about all of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from fx_d2.data.html_page import picture_tag
from fx_d2.data.image_files import ImageFile

from .hybrid import NO_LUNGS, Found, MapFigures
from .hybrid_page import Card, percent
from .hybrid_pictures import FilmPictures
from .stages import Mask

UNREADABLE = "not read"
IN_PAGE_PX = 320


def known(value: Any) -> Any:
    """``value``, None in place of NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value


def row_of_map(one: MapFigures) -> dict[str, Any]:
    """The figures of a map; None where one is not known."""
    return {
        **{"class": one.cls, "probability": one.probability, "positive": one.positive},
        **{"in_lung": known(one.in_lung), "even": one.even},
        "severity_heuristic": known(one.severity),
    }


def facts_of(about: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How it was made, in words for the page."""
    lungs = [f"{one['name']} ({one['source']}, {_digest(one)})" for one in about["segmentors"]]
    one, shown, heat = about["classifier"], about["lung_input"], about["heat_map"]
    limits = about["lung_limits"]
    return [
        ("lung segmentors", ", ".join(lungs) or "none: masks were given"),
        ("combined by", _recipe(about["lung_recipe"])),
        ("plausible lung area", f"{limits['min_area']:.0%} to {limits['max_area']:.0%}"),
        ("classifier", f"{one['name']} ({one['head']}, {_digest(one)})"),
        ("shown to it", f"{shown['mode']}, margin {shown['margin']:g}"),
        ("heat maps", f"{heat['method']} of layer {heat['layer']}"),
        ("positive from", f"{about['threshold']:g}, or the likeliest class where one is true"),
        ("evidence in the lungs from", f"{about['min_in_lung']:.0%} of a heat map"),
    ]


def _recipe(recipe: Mapping[str, Any] | None) -> str:
    if recipe is None:
        return "nothing"
    clean = recipe["cleaning"]
    return (
        f"{recipe['rule']} from {recipe['threshold']:g}, then the {clean['components']} largest "
        f"pieces, holes filled, grown by {clean['dilate']:.2%} of the longer side"
    )


def _digest(origin: Mapping[str, Any]) -> str:
    return f"sha256 {str(origin.get('weights_sha256'))[:12]}"


def card_of(image: ImageFile, found: Found, lesions: Mapping[str, Mask], mode: str) -> Card:
    """The card of one film.

    Args:
        image: its file and name.
        found: all that was found.
        lesions: {class: bool (height, width)} of what is truly there.
        mode: what the classifier was shown.
    """
    draw = FilmPictures(found.film, IN_PAGE_PX)
    members = ", ".join(f"{name} {share:.0%}" for name, share in found.lungs.members.items())
    pictures = [(picture_tag(draw.lungs(found.lungs, found.crop), "lung mask"), "lung mask")]
    if found.crop is not None and mode != "none":
        shown = picture_tag(draw.crop(found.crop), "what the classifier was shown")
        pictures.append((shown, f"shown to the classifier: {mode}"))
    for heat, one in zip(found.maps, found.figures, strict=True):
        picture = draw.heat(heat, found.lungs, lesions, found.crop)
        caption = f"{heat.method} for {heat.cls} ({one.probability:.2f})"
        pictures.append((picture_tag(picture, caption), caption))
    facts = [("lung area", percent(found.lungs.area)), ("by segmentor", members)]
    facts += [
        (
            f"on true {one.cls}",
            f"{percent(one.energy)} of the map of {one.explained}; by chance "
            f"{percent(one.chance)}, of the lungs {percent(one.in_lungs)}",
        )
        for one in found.lesions
    ]
    return Card(
        name=image.name,
        file=str(image.path),
        size=found.film.size,
        pictures=pictures,
        labels=found.scores.labels if found.scores else {},
        positive=[one.cls for one in found.figures if one.positive],
        figures=[row_of_map(one) for one in found.figures],
        facts=[(words, figure) for words, figure in facts if figure],
        warnings=[one.text for one in found.remarks],
        skipped="no lungs found" if found.status == NO_LUNGS else "",
    )


def tiles_of(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(figure, words, kind) of the tiles at the top; ``figures`` as in ``summary.json``."""
    status, said = figures["by_status"], figures["with_warnings"]
    bad, none = status.get(UNREADABLE, 0), status.get(NO_LUNGS, 0)
    tiles = [(f"{figures['films']:,}", "films", "")]
    tiles += [(f"{count:,}", f"called {name}", "") for name, count in figures["positive"].items()]
    tiles += [(f"{said:,}", "with a warning", "warn" if said else "good")]
    tiles += [(f"{none:,}", "without lungs, not classified", "warn")] if none else []
    tiles += [(f"{bad:,}", "not read", "bad" if bad else "good")]
    if figures["mean_in_lung_share"] is not None:
        tiles.append(
            (percent(figures["mean_in_lung_share"]), "of a heat map in the lungs, on average", "")
        )
    if figures["seconds_per_film"] is not None:
        tiles.append((f"{figures['seconds_per_film']:.2f} s", "per film", ""))
    if figures["peak_memory_mib"] is not None:
        tiles.append((f"{figures['peak_memory_mib'] / 1024:.1f} GB", "peak memory", ""))
    return tiles
