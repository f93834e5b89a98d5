"""The key of pseudo-masks: DATASETS.PSEUDO_MASKS."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_pseudo_masks(cfg: CN) -> None:
    """Datasets of masks made from explanations."""
    # Folders of tools/make_pseudo_masks.py to register, "name=folder": each becomes the source
    # "<base source>_<name>" with the splits "train", "val" and "all".
    cfg.DATASETS.PSEUDO_MASKS = ()
