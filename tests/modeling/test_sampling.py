"""Which regions an image is learned from depends on the image alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_proposal_generator

from fx_d2 import add_fx_config
from fx_d2.modeling.heads.sampling import SeededRPN


def sampled(seeds: Sequence[int], images: int) -> list[torch.Tensor]:
    """Which of 500 anchors each image takes, 20 of them on a finding."""
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE = 32
    rpn = build_proposal_generator(cfg, {"res4": ShapeSpec(channels=8, stride=16)})
    assert isinstance(rpn, SeededRPN)
    rpn.seed_images(seeds)
    labels = torch.zeros(500)
    labels[:20] = 1
    return [rpn._subsample_labels(labels.clone()) for _ in range(images)]


def test_an_image_draws_the_same_beside_any_other():
    torch.manual_seed(1)
    first, second = sampled([7, 8], 2)
    torch.manual_seed(2)
    (alone,) = sampled([8], 1)
    assert torch.equal(second, alone) and not torch.equal(first, second)
    assert (alone >= 0).sum() == 32


def test_without_seeds_the_state_of_torch_decides():
    torch.manual_seed(1)
    before = sampled([], 1)[0]
    torch.manual_seed(1)
    assert torch.equal(before, sampled([], 1)[0])
    assert not torch.equal(before, sampled([], 1)[0])
