"""Images per second of Integrated Gradients, in batches and one step at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from fx_d2.explain import Classifier, IGSettings, integrated_gradients

from .report import Table
from .setting import Setting, first_spec, make_batch
from .timing import Timing, alternate

# Captum has it too, and it needs no pass of its own for the ends of the path.
_RULE = "middle"


@dataclass(frozen=True)
class ExplainPlan:
    """What is explained.

    Args:
        setting: the model; its ``batch`` is the number of images.
        steps: of the path; they are not raised here.
        classes: explained per image.
        batch: points of the path in a forward pass where they are batched.
        repeats: timed rounds.
    """

    setting: Setting
    steps: int = 50
    classes: int = 2
    batch: int = 32
    repeats: int = 3


def measure_explain(
    plan: ExplainPlan,
    *,
    clock: Callable[[], float] = time.perf_counter,
    quiet: bool = True,
) -> Table:
    """Three ways to the same maps, in turns.

    ``one by one`` makes a pass for every image, class and step; ``Captum`` batches the steps and
    makes a pass for every class; ``batched`` shares passes between steps, images and classes.

    Raises:
        ConfigError: the config has no head of image labels.
        ValueError: the ways differ in what they find, which would make their times meaningless.
    """
    setting = plan.setting
    cfg = setting.cfg()
    spec = first_spec(cfg, "cls")
    model = cast(Any, setting.model(cfg)).eval()
    batch = make_batch(spec, cfg, setting)
    images = torch.stack([item["image"] for item in batch])
    chosen = list(range(min(plan.classes, len(spec.classes))))

    def classifier(points: Tensor) -> Tensor:
        return model.label_logits(
            [{"image": p, "source": spec.source} for p in points], spec.source
        )

    model.requires_grad_(False)
    settings = IGSettings(plan.steps, 1, batch=plan.batch, rule=_RULE, sigma=0.0)
    ways: dict[str, Callable[[], Tensor]] = {
        "one by one": lambda: _one_by_one(classifier, images, chosen, settings),
        "Captum": lambda: _captum(classifier, images, chosen, settings),
        "batched": lambda: integrated_gradients(classifier, images, chosen, settings).maps,
    }
    found: dict[str, Tensor] = {}

    def keeping(name: str, way: Callable[[], Tensor]) -> Callable[[], None]:
        def run() -> None:
            found[name] = way()

        return run

    times = alternate(
        {name: keeping(name, way) for name, way in ways.items()},
        plan.repeats,
        device=torch.device(setting.device),
        title="explaining",
        quiet=quiet,
        clock=clock,
    )
    what = (
        f"{len(images)} images of {setting.size_px} px, {len(chosen)} classes of {spec.name}, "
        f"{plan.steps} steps, {plan.batch} points in a pass."
    )
    return _table(times, found, len(images), what)


def _table(
    times: Mapping[str, Timing], found: Mapping[str, Tensor], images: int, what: str
) -> Table:
    base, slowest = found["batched"], times["one by one"]
    rows = []
    for name, timing in times.items():
        apart = float((found[name] - base).abs().max() / base.abs().max().clamp_min(1e-12))
        if not apart < 1e-2:
            raise ValueError(f"maps of {name!r} are {apart:.2g} of the largest value off")
        rows.append(
            {
                "way": name,
                "rate": images / timing.median,
                "speed": 1 / timing.ratio(slowest),
                "apart": apart,
            }
        )
    return Table(
        "Integrated Gradients",
        {
            "way": ("way", ""),
            "rate": ("images/s", ".3f"),
            "speed": ("times as fast", ".2f"),
            "apart": ("largest difference", ".1e"),
        },
        rows,
        (
            f"{what} The difference is that of the maps from the last row, as a share of their "
            "largest value.",
        ),
    )


def _one_by_one(
    classifier: Classifier, images: Tensor, classes: list[int], settings: IGSettings
) -> Tensor:
    alone = replace(settings, batch=1)
    return torch.cat(
        [
            torch.cat(
                [integrated_gradients(classifier, image[None], [c], alone).maps for c in classes],
                dim=1,
            )
            for image in images
        ]
    )


def _captum(
    classifier: Classifier, images: Tensor, classes: list[int], settings: IGSettings
) -> Tensor:
    explainer = IntegratedGradients(classifier)
    given = [
        explainer.attribute(
            images,
            torch.zeros_like(images),
            target=c,
            n_steps=settings.steps,
            method="riemann_middle",
            internal_batch_size=max(settings.batch, len(images)),
        )
        for c in classes
    ]
    return torch.stack([one.detach().abs().sum(1) for one in given], dim=1)
