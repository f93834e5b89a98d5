"""The hybrid pipeline: lung masks, what the lungs show, and where a classifier sees it.

Every stage can be called alone::

    pipeline = Hybrid(LungSegmentor(["runs/unet", "runs/fpn"]), classifier)
    film = Film("a.dcm")
    lungs = pipeline.segment(film)             # LungMask
    crop = pipeline.crop(film, lungs)          # Crop
    scores = pipeline.classify(crop)           # Scores
    maps = pipeline.explain(crop, ["COVID"])   # HeatMap, in pixels of the film
    found = pipeline(film)                     # all of it, with figures and warnings
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fx_d2.data.errors import did_you_mean
from fx_d2.data.lung_input import LUNG_MODES, prepare_lungs

from .evidence import (
    LesionEvidence,
    LungLimits,
    Remark,
    even_share,
    evidence_remark,
    lesion_evidence,
    lung_remarks,
    severity,
    share_within,
)
from .lung_classifier import LungClassifier
from .lung_masks import LungSegmentor
from .stages import Crop, Film, HeatMap, LungMask, Mask, Scores

DONE, NO_LUNGS = "done", "no lungs"


@dataclass(frozen=True)
class HybridSettings:
    """What the pipeline leaves to its user.

    Args:
        limits: of a plausible lung mask.
        lung_input: what the classifier is shown; None is what it was trained with.
        margin: around the box of the lungs; None likewise.
        method: of the heat maps.
        layer: they are taken from; "" is the classifier's own choice.
        classes: to explain always; empty: the positive ones, else the likeliest.
        max_maps: classes to explain, at most, where ``classes`` is empty.
        threshold: probability from which a label is positive.
        min_in_lung: share of a positive class's map that has to lie in the lungs.
        level: of the severity heuristic, as a share of a map's maximum.
    """

    limits: LungLimits = field(default_factory=LungLimits)
    lung_input: str | None = None
    margin: float | None = None
    method: str = "grad_cam"
    layer: str = ""
    classes: tuple[str, ...] = ()
    max_maps: int = 3
    threshold: float = 0.5
    min_in_lung: float = 0.5
    level: float = 0.5

    def __post_init__(self) -> None:
        if self.lung_input is not None and self.lung_input not in LUNG_MODES:
            near = did_you_mean(self.lung_input, LUNG_MODES)
            raise ValueError(
                f"lung input {self.lung_input!r}; allowed: {', '.join(LUNG_MODES)}.{near}"
            )
        for name in ("threshold", "min_in_lung", "level"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: 0 to 1")
        if self.level == 0:
            raise ValueError("level is 0; every place of a map is at least that: take more")
        if self.max_maps < 1:
            raise ValueError(f"max_maps is {self.max_maps}; allowed: 1 or more")


@dataclass(frozen=True)
class MapFigures:
    """What is measured of one heat map.

    Args:
        cls: its class.
        probability: of the class.
        positive: whether the class is called present.
        in_lung: share of the map in the lungs; NaN for a map of zeros.
        even: what that share is for an even map over what the classifier saw.
        severity: the heuristic; NaN where the class is not a finding that is called present.
    """

    cls: str
    probability: float
    positive: bool
    in_lung: float
    even: float
    severity: float


@dataclass(frozen=True)
class Found:
    """All that the pipeline says about one film.

    Args:
        film: it.
        lungs: where the lungs are.
        crop: what the classifier was shown; None without lungs.
        scores: of the classifier, None likewise.
        maps: heat maps, the likeliest class first.
        figures: of each map.
        lesions: maps beside true regions, where there is truth.
        remarks: what a person should look at.
        status: ``done``, or why the later stages were left out.
    """

    film: Film
    lungs: LungMask
    crop: Crop | None = None
    scores: Scores | None = None
    maps: tuple[HeatMap, ...] = ()
    figures: tuple[MapFigures, ...] = ()
    lesions: tuple[LesionEvidence, ...] = ()
    remarks: tuple[Remark, ...] = ()
    status: str = DONE


class Hybrid:
    """Runs the stages; holds models, keeps nothing of a film.

    Args:
        segmentor: of lungs, one model or several combined; None where masks are given.
        classifier: of what the lungs show.
        settings: everything else.

    Raises:
        ValueError: a class to explain is not among the classifier's; or there is no such layer.
    """

    def __init__(
        self,
        segmentor: LungSegmentor | None,
        classifier: LungClassifier,
        settings: HybridSettings | None = None,
    ) -> None:
        self.segmentor, self.classifier = segmentor, classifier
        self.settings = settings or HybridSettings()
        self.mode = self.settings.lung_input or classifier.lung_input.mode
        margin = self.settings.margin
        self.margin = classifier.lung_input.margin if margin is None else margin
        for name in self.settings.classes:
            if name not in classifier.classes:
                raise ValueError(
                    f"the classifier has no class {name!r}.{did_you_mean(name, classifier.classes)}"
                    f" It has {', '.join(classifier.classes)}"
                )
        self.layer = classifier.checked_layer(self.settings.layer)

    def segment(self, film: Film) -> LungMask:
        """Where the lungs are, by all segmentors together.

        Raises:
            DataError: the film cannot be read.
        """
        if self.segmentor is None:
            raise ValueError("this pipeline has no lung segmentor; give it a LungMask")
        recipe, names = self.segmentor.recipe, self.segmentor.names
        found = self.segmentor.probabilities(film)
        shares = (found >= recipe.threshold).mean(axis=(1, 2)).tolist()
        rule = recipe.rule if len(names) > 1 else "one model"
        return LungMask(recipe(found), rule, dict(zip(names, shares, strict=True)))

    def crop(self, film: Film, lungs: LungMask) -> Crop:
        """What the classifier is shown.

        Raises:
            DataError: the mask is not of the film's size, or is empty where lungs are needed.
        """
        lungs.check_size(film)
        grey = film.grey(self.classifier.intensity)
        trained = self.classifier.lung_input
        mask = None if self.mode == "none" else lungs.mask
        shown = prepare_lungs(
            grey, mask, self.mode, self.margin, trained.fill, min_side_px=trained.min_side_px
        )
        return Crop(shown, film.size)

    def classify(self, crop: Crop) -> Scores:
        """What it shows."""
        return self.classifier.scores(crop)

    def explain(self, crop: Crop, classes: Sequence[str]) -> tuple[HeatMap, ...]:
        """Where the classifier sees each of some classes, in pixels of the film."""
        return self.classifier.heat(crop, classes, self.settings.method, self.layer)

    def __call__(
        self,
        film: Film,
        lungs: LungMask | None = None,
        lesions: Mapping[str, Mask] | None = None,
    ) -> Found:
        """All stages.

        Args:
            film: a radiograph.
            lungs: of it; None segments them.
            lesions: {class: bool (height, width)} of what is truly there, to compare maps with.

        Raises:
            DataError: the film cannot be read, or the mask given is not of its size.
        """
        lungs = self.segment(film) if lungs is None else lungs
        lungs.check_size(film)
        if not lungs.mask.any():
            said = (Remark("no lungs", "no lungs were found; the film was not classified"),)
            return Found(film, lungs, remarks=said, status=NO_LUNGS)
        crop = self.crop(film, lungs)
        scores = self.classify(crop)
        maps = self.explain(crop, self._explained(scores, lesions or {}))
        figures = [self._measured(heat, crop, scores, lungs) for heat in maps]
        remarks = lung_remarks(lungs, self.settings.limits)
        least = self.settings.min_in_lung
        for one in figures:
            if one.positive:
                found = evidence_remark(one.cls, one.probability, one.in_lung, least)
                remarks += [found] if found else []
        return Found(
            film,
            lungs,
            crop,
            scores,
            maps,
            tuple(figures),
            tuple(compared(lesions or {}, maps, crop, lungs)),
            tuple(remarks),
        )

    def _explained(self, scores: Scores, lesions: Mapping[str, Mask]) -> list[str]:
        settings = self.settings
        chosen = settings.classes or scores.explained(settings.threshold, settings.max_maps)
        true = [name for name in lesions if name in scores.labels]
        return list(dict.fromkeys([*chosen, *true]))

    def _measured(self, heat: HeatMap, crop: Crop, scores: Scores, lungs: LungMask) -> MapFigures:
        positive = heat.cls in scores.positive(self.settings.threshold)
        grade = severity(heat.values, lungs.mask, self.settings.level) if positive else math.nan
        return MapFigures(
            heat.cls,
            scores.labels[heat.cls],
            positive,
            in_lung=share_within(heat.values, lungs.mask),
            even=even_share(lungs.mask, crop.seen()),
            severity=grade,
        )

    def described(self) -> dict[str, Any]:
        """What a result says about how it was made."""
        settings = self.settings
        return {
            "segmentors": [] if self.segmentor is None else self.segmentor.origin(),
            "classifier": self.classifier.origin(),
            "lung_recipe": None if self.segmentor is None else asdict(self.segmentor.recipe),
            "lung_limits": vars(settings.limits),
            "lung_input": {"mode": self.mode, "margin": self.margin},
            "heat_map": {"method": settings.method, "layer": self.layer},
            "threshold": settings.threshold,
            "min_in_lung": settings.min_in_lung,
            "severity_level": settings.level,
        }


def compared(
    lesions: Mapping[str, Mask], maps: Sequence[HeatMap], crop: Crop, lungs: LungMask
) -> list[LesionEvidence]:
    """Every true region beside the map of its class; where there is none, of the first class.

    Regions whose class the classifier does not know count as one: any of them may be what the map
    of the likeliest class shows.
    """
    if not lesions or not maps:
        return []
    seen, by_class = crop.seen(), {heat.cls: heat for heat in maps}
    known = {name: region for name, region in lesions.items() if name in by_class}
    rest = [region for name, region in lesions.items() if name not in by_class]
    found = [
        lesion_evidence(name, name, by_class[name].values, region, seen, lungs.mask)
        for name, region in known.items()
    ]
    if rest:
        union = np.logical_or.reduce(rest)
        names = "+".join(name for name in lesions if name not in by_class)
        first = maps[0]
        found.append(lesion_evidence(names, first.cls, first.values, union, seen, lungs.mask))
    return found
