"""Regions to learn from, drawn for an image alone: whatever else is in the batch of its process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from torch import Tensor


class SeedPerImage:
    """Gives every image that is sampled its own seed.

    Detectron2 draws for one image after the other from torch's generator, so that the regions of
    the second would depend on the first, and with it on the number of processes.
    """

    _seeds: tuple[int, ...] = ()

    def seed_images(self, seeds: Iterable[int]) -> None:
        """Set the seeds of the images to come, in order; without seeds torch's state decides."""
        self._seeds = tuple(seeds)

    def _seed_next(self) -> None:
        if self._seeds:
            torch.manual_seed(self._seeds[0])
            self._seeds = self._seeds[1:]


@PROPOSAL_GENERATOR_REGISTRY.register()
class SeededRPN(SeedPerImage, RPN):
    """Detectron2's RPN with anchors drawn per image; same parameters, same names."""

    def _subsample_labels(self, label: Tensor) -> Any:
        self._seed_next()
        return super()._subsample_labels(label)
