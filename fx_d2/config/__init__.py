"""Every config key of fx_d2: declared once, with its default and the reason beside it.

Section numbers refer to the Foundation X paper as summarised in the docs of that system. A preset
states only what differs from here.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from .data import add_data
from .lesion_mix import add_lesion_mix
from .model import add_model
from .pseudo_masks import add_pseudo_masks
from .training import add_training

__all__ = ["add_fx_config"]


def add_fx_config(cfg: CN) -> None:
    """Add the keys of fx_d2 to a Detectron2 config, in place."""
    add_data(cfg)
    add_lesion_mix(cfg)
    add_pseudo_masks(cfg)
    add_model(cfg)
    add_training(cfg)
