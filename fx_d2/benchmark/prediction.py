"""Latency of predicting one image: the trunk, three heads, all heads, and where the time goes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from fx_d2.engine.checkpoint import load_weights
from fx_d2.modeling.heads.spec import HeadSpec
from fx_d2.modeling.postprocess import BoxMasks

from .parts import PartClock, parts_timed, without_postprocessing
from .report import Table
from .setting import Setting, first_spec, make_batch
from .timing import Timing, alternate

ALL_HEADS_BOUND = 1.5
LAYOUTS = {"X": "False", "X+": "True"}
# Random weights find as much as a source may return. A radiograph has a few findings.
LIMITS = (10, 3)
TRUNK, ONE_SOURCE, ALL_HEADS = "trunk", "heads of one source", "all heads"


@dataclass(frozen=True)
class Case:
    """How many detections there are.

    Args:
        name: in the table.
        most: detections that a source keeps per image; 0 is what the config says.
        weights: a checkpoint; "" is random.
    """

    name: str
    most: int = 0
    weights: str = ""


def cases(weights: str) -> list[Case]:
    """The cases to measure."""
    if weights:
        return [Case("given weights", weights=weights)]
    return [Case("random weights"), *(Case(f"at most {n} per source", most=n) for n in LIMITS)]


@contextmanager
def at_most(model: nn.Module, count: int) -> Iterator[None]:
    """Within, every source keeps at most ``count`` detections per image; 0 changes nothing."""
    sources = [spec.source for spec in model.specs if spec.task == "loc"]
    predictors = [model.get_submodule(f"heads.loc.{source}.box_predictor") for source in sources]
    before = [p.test_topk_per_image for p in predictors]
    for predictor in predictors if count else ():
        predictor.test_topk_per_image = count
    try:
        yield
    finally:
        for predictor, value in zip(predictors, before, strict=True):
            predictor.test_topk_per_image = value


def whole_source(specs: Sequence[HeadSpec]) -> str:
    """The source with most heads; among equals one whose boxes have masks, then the first."""

    def rank(source: str) -> tuple[int, bool]:
        own = [s for s in specs if s.source == source]
        return len(own), any(s.instance_masks for s in own)

    return max(dict.fromkeys(s.source for s in specs), key=rank)


def _of_size(batch: list[dict[str, Any]], original_px: int) -> list[dict[str, Any]]:
    return [{**item, "height": original_px, "width": original_px} for item in batch]


def raw_variants(model: nn.Module, batch: list[dict[str, Any]]) -> dict[str, Callable[[], Any]]:
    """{name: what to time}: the trunk, the heads of one source, all heads, raw results."""

    def trunk() -> Any:
        return model.trunk(model._images(batch).tensor)

    def raw(heads: Any) -> Callable[[], Any]:
        def run() -> Any:
            with without_postprocessing():
                return model.inference(batch, heads)

        return run

    return {
        TRUNK: torch.no_grad()(trunk),
        ONE_SOURCE: raw(whole_source(model.specs)),
        ALL_HEADS: raw(None),
    }


def whole_variants(
    model: nn.Module, batch: list[dict[str, Any]], original_px: int
) -> dict[str, Callable[[], Any]]:
    """{name: what to time}: all heads in pixels of an original, then every instance mask pasted."""
    large = _of_size(batch, original_px)

    def pasted() -> None:
        for result in model.inference(large):
            for found in result["instances"].values():
                if found.has("pred_masks"):
                    for _ in found.pred_masks:
                        pass

    return {"all, post-processed": lambda: model.inference(large), "all, masks pasted": pasted}


def breakdown(
    model: nn.Module,
    batch: list[dict[str, Any]],
    repeats: int,
    original_px: int,
    clock: Callable[[], float],
) -> dict[str, float]:
    """{part: median milliseconds} of one prediction by all heads, post-processing included."""
    large = _of_size(batch, original_px)
    rounds: list[dict[str, float]] = []
    for _ in range(repeats + 1):
        parts = PartClock(model.device, clock)
        with parts_timed(model, parts):
            model.inference(large)
        rounds.append(parts.seconds)
    return {
        part: 1e3 * statistics.median(r.get(part, 0.0) for r in rounds[1:]) for part in rounds[0]
    }


def count_detections(model: nn.Module, batch: list[dict[str, Any]]) -> tuple[int, int]:
    """(boxes, of which with masks) that all heads find in one prediction."""
    found = [i for result in model.inference(batch) for i in result["instances"].values()]
    masked = [i for i in found if i.has("pred_masks") and isinstance(i.pred_masks, BoxMasks)]
    return sum(map(len, found)), sum(map(len, masked))


@dataclass(frozen=True)
class Prediction:
    """What was measured of one layout in one case."""

    layout: str
    case: Case
    times: Mapping[str, Timing]
    parts: Mapping[str, float]
    boxes: int
    masks: int
    specs: Sequence[HeadSpec]

    def rows(self) -> Iterator[dict[str, Any]]:
        """Of the table of latencies."""
        base = self.times[ONE_SOURCE]
        for name, timing in self.times.items():
            row: dict[str, Any] = {
                "layout": self.layout,
                "case": self.case.name,
                "what": name,
                "ms": timing.median * 1e3,
                "ratio": timing.ratio(base),
                "quartiles": "{:.2f} to {:.2f}".format(*timing.spread(base)),
            }
            if name == ONE_SOURCE:
                source = whole_source(self.specs)
                count = sum(spec.source == source for spec in self.specs)
                row["what"] = f"{count} heads of {source}"
            if name == ALL_HEADS:
                row["what"] = f"all {len(self.specs)} heads"
                row["bound"] = ALL_HEADS_BOUND
                row["holds"] = "yes" if row["ratio"] <= ALL_HEADS_BOUND else "no"
                row["boxes"], row["masks"] = self.boxes, self.masks
            yield row


def _build(setting: Setting, case: Case) -> tuple[CfgNode, nn.Module]:
    cfg = setting.cfg()
    model = setting.model(cfg)
    if case.weights:
        load_weights(model, case.weights)
    return cfg, model.eval()


def measure_layout(
    setting: Setting,
    layout: str,
    case: Case,
    repeats: int,
    *,
    original_px: int,
    clock: Callable[[], float],
    quiet: bool,
) -> Prediction:
    """Latencies, parts and counts of one layout in one case."""
    one = replace(setting, batch=1)
    cfg, model = _build(one, case)
    batch = make_batch(first_spec(cfg, "cls"), cfg, one)
    title = f"{layout}, {case.name}"
    with at_most(model, case.most):
        times = {}
        # Not all in one: what the masks of a large original leave in the allocator slows down
        # whatever runs next.
        for variants in (raw_variants(model, batch), whole_variants(model, batch, original_px)):
            times |= alternate(
                variants, repeats, device=model.device, title=title, quiet=quiet, clock=clock
            )
        parts = breakdown(model, batch, repeats, original_px, clock)
        boxes, masks = count_detections(model, batch)
    return Prediction(layout, case, times, parts, boxes, masks, model.specs)


def measure_prediction(
    setting: Setting,
    repeats: int,
    *,
    weights: str,
    original_px: int,
    clock: Callable[[], float],
    quiet: bool,
) -> dict[str, Table]:
    """The tables of latencies and of parts, for X and X+; with weights the layout of the config."""
    layouts = {
        name: setting.having("MODEL.FX.LOC.SHARED_DECODER", v) for name, v in LAYOUTS.items()
    }
    if weights:
        shared = setting.cfg().MODEL.FX.LOC.SHARED_DECODER
        layouts = {"X+" if shared else "X": setting}
    found = [
        measure_layout(
            given, layout, case, repeats, original_px=original_px, clock=clock, quiet=quiet
        )
        for layout, given in layouts.items()
        for case in cases(weights)
    ]
    return {"prediction": _latency_table(found, original_px), "parts": _parts_table(found)}


def _latency_table(found: list[Prediction], original_px: int) -> Table:
    return Table(
        "Prediction of one image",
        {
            "layout": ("layout", ""),
            "case": ("case", ""),
            "what": ("what", ""),
            "ms": ("ms", ".0f"),
            "ratio": ("/ heads of one source", ".2f"),
            "quartiles": ("quartiles of the rounds", ""),
            "bound": ("bound", ".1f"),
            "holds": ("holds", ""),
            "boxes": ("boxes", "d"),
            "masks": ("of these with masks", "d"),
        },
        [row for prediction in found for row in prediction.rows()],
        (
            "Without post-processing, but for the last two rows of a case: results in pixels of an "
            f"original of {original_px} x {original_px} px, then every instance mask pasted too.",
        ),
    )


def _parts_table(found: list[Prediction]) -> Table:
    names = [f"{p.layout}, {p.case.name}" for p in found]
    parts = dict.fromkeys(part for p in found for part in p.parts)
    rows: list[dict[str, Any]] = [
        {"part": part, **{n: p.parts.get(part) for n, p in zip(names, found, strict=True)}}
        for part in parts
    ]
    rows.append(
        {"part": "sum", **{n: sum(p.parts.values()) for n, p in zip(names, found, strict=True)}}
    )
    return Table(
        "Parts of a prediction by all heads",
        {"part": ("part", ""), **{name: (f"{name}: ms", ".0f") for name in names}},
        rows,
        ("Medians. Post-processing does not paste instance masks; that is done when one asks.",),
    )
