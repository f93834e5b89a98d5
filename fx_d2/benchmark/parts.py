"""Which part of a prediction takes how long: the parts' calls timed from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from fx_d2.modeling.meta_arch import foundation_x

from .timing import wait_for

REST = "rest"


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Within, ``owner.name`` is ``value``; afterwards what it was, or the class's again."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


@contextmanager
def without_postprocessing() -> Iterator[None]:
    """Within, a model leaves detections and mask probabilities as the heads gave them."""
    with (
        replaced(foundation_x, "original_instances", lambda found, *_, **__: found),
        replaced(foundation_x, "original_masks", lambda *_, **__: {}),
    ):
        yield


class PartClock:
    """Seconds per part. A call within a call counts for the inner part only.

    Args:
        device: waited for at every border of a part.
        clock: seconds.
    """

    def __init__(
        self, device: torch.device, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.device, self.clock = device, clock
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call``, its time going to ``part``."""

        def run(*args: Any, **kwargs: Any) -> Any:
            wait_for(self.device)
            self._inner.append(0.0)
            start = self.clock()
            try:
                return call(*args, **kwargs)
            finally:
                wait_for(self.device)
                passed = self.clock() - start
                own = passed - self._inner.pop()
                self.seconds[part] = self.seconds.get(part, 0.0) + own
                if self._inner:
                    self._inner[-1] += passed

        return run


def _parts(model: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """(part, owner, name of the call) of a FoundationX."""
    yield REST, model, "inference"
    yield "trunk", model.trunk, "forward"
    if model.cls_encoder is not None:
        yield "classifiers", model.cls_encoder, "forward"
    if "cls" in model.heads:
        yield "classifiers", model, "_label_logits"
    if "loc" in model.heads:
        yield "pyramid", model.loc_encoder.neck, "forward"
        yield "region proposals", model.loc_encoder.rpn, "forward"
        heads = model.heads["loc"]
        yield "detections (scores, NMS)", heads, "inference"
        yield "box heads", heads.box_pooler, "forward"
        yield "instance masks", heads, "_add_masks"
        own = [heads.get_submodule(source) for source in heads.specs]
        for head in own:
            yield "box heads", head.box_predictor, "forward"
        for decoder in [model.loc_decoder, *(head.decoder for head in own)]:
            if decoder is not None:
                yield "box heads", decoder.box_head, "forward"
    if "seg" in model.heads:
        yield "segmentation", model.seg_decoder, "forward"
        yield "segmentation", model.heads["seg"], "forward"
    yield "post-processing", foundation_x, "original_instances"
    yield "post-processing", foundation_x, "original_masks"


@contextmanager
def parts_timed(model: nn.Module, clock: PartClock) -> Iterator[PartClock]:
    """Within, predictions of ``model`` are timed part by part."""
    with ExitStack() as stack:
        for part, owner, name in _parts(model):
            call = clock.timed(part, getattr(owner, name))
            stack.enter_context(replaced(owner, name, call))
        yield clock
