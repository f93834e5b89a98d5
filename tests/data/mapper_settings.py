"""What the tests of the mapper ask it for."""

from __future__ import annotations

NO_AUGMENTATION = (
    *("CROP_SCALE", (1.0, 1.0), "FLIP", 0.0, "ROTATE_DEG", 0.0, "SHIFT", 0.0, "SCALE", 0.0),
    *("BRIGHTNESS", 0.0, "CONTRAST", 0.0),
)


def plain(cfg, **changes):
    """No augmentation but ``changes``."""
    keys = dict(zip(NO_AUGMENTATION[::2], NO_AUGMENTATION[1::2], strict=True)) | changes
    for task in ("CLS", "LOC", "SEG"):
        for key, value in keys.items():
            cfg.INPUT.FX.AUG[task][key] = value
    return cfg


def position(number=0):
    return ("toy_chest", "x", 0, "1.0", number)
