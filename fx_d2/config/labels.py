"""Keys of the losses of image labels, and of the classifier on a feature pyramid."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_label_losses(cfg: CN) -> None:
    """Add what the losses of ``MODEL.FX.CLS.LOSS`` may be told."""
    cfg.MODEL.FX.CLS.ASYMMETRIC = CN()
    # How much easy negatives count less; this and the next two are the defaults of its authors.
    cfg.MODEL.FX.CLS.ASYMMETRIC.GAMMA_NEGATIVE = 4.0
    # How much easy positives count less: they are few.
    cfg.MODEL.FX.CLS.ASYMMETRIC.GAMMA_POSITIVE = 1.0
    # Taken off the probability of a negative, so that the very easy ones count nothing.
    cfg.MODEL.FX.CLS.ASYMMETRIC.CLIP = 0.05
    cfg.MODEL.FX.CLS.FOCAL = CN()
    # How much easy labels count less; RetinaNet's.
    cfg.MODEL.FX.CLS.FOCAL.GAMMA = 2.0
    # Factor of positives, negatives have 1 less it; RetinaNet's.
    cfg.MODEL.FX.CLS.FOCAL.ALPHA = 0.25
    cfg.MODEL.FX.CLS.LDAM = CN()
    # Margin of the rarest label, in units of the logits; the published 0.5.
    cfg.MODEL.FX.CLS.LDAM.MAX_MARGIN = 0.5
    # Factor of the logits after the margin. Published is 30, for logits that are cosines; these are
    # not.
    cfg.MODEL.FX.CLS.LDAM.SCALE = 1.0
    # Share of the run from which on labels are weighed by the effective number of their images
    # (DRW); 1 is never. Published: 160 of 200 epochs.
    cfg.MODEL.FX.CLS.LDAM.REWEIGH_FROM = 0.8
    # Of that number, from 0 (no weights) to below 1 (inverse to the number of images).
    cfg.MODEL.FX.CLS.LDAM.BETA = 0.9999
    # Of "logit_adjusted": factor of the log odds; 1 is the published one.
    cfg.MODEL.FX.CLS.TAU = 1.0


def add_pyramid(cfg: CN) -> None:
    """Of "PyramidClassifier"; docs/systems/fpsm_dadam.md says what of it the poster states."""
    node = cfg.MODEL.FX.CLS.PYRAMID = CN()
    # Stages of the trunk, 4 the deepest (stride 32), 1 the finest (stride 4); the best of the
    # poster's table 1.
    node.LEVELS = (4, 3, 2)
    # "fpn": coarse levels are added to finer ones, all with DIM channels; "none": stages as they
    # are.
    node.NECK = "fpn"
    # Channels of every level with "fpn"; those of the FPN paper.
    node.DIM = 256
    # A LayerNorm before every stage. Trunks without norms at their outputs (Swin) need it.
    node.NORM = True
    # "sum" of what the levels say, or one classifier on their vectors side by side ("concat").
    node.FUSE = "sum"
    # One classifier for all levels, so that "sum" is that of the features, as the poster says;
    # False gives each level its own.
    node.SHARED = True
    # What a level counts: "one", "resolution" (in proportion to the side of its map) or "learned".
    node.WEIGHT = "one"
    # Weight of the losses of the levels alone; the poster has them and gives no weight.
    node.AUX = 0.5
    # Places of a level to its vector: "avg", or "csra", which adds those that speak for a class.
    node.POOL = "avg"
    # Of "csra": weight of that addition; 0.1 to 0.4 are usual.
    node.CSRA_WEIGHT = 0.2
    # Of "csra": between the mean (towards 0) and the maximum (large) of the places.
    node.CSRA_SHARPNESS = 1.0
    # What else an image is known by: some of "synthetic" (or original), "view", "source",
    # "body_part" (MURA).
    node.CONTEXT = ()
