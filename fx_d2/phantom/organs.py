"""Airways, diaphragm and what lies under it."""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.anatomy import Body, dome_line
from fx_d2.phantom.canvas import (
    Frame,
    add_ellipsoid,
    bezier,
    blur,
    fill,
    noise_field,
    paint,
    ribbon,
)


def airway_paths(body: Body) -> list[tuple[np.ndarray, float]]:
    """Trachea and main bronchi as (centre line (N, 2), radius cm)."""
    k = body.half_width / 14.0
    hilum_y = 0.255 * (body.dome_y["left"] + body.dome_y["right"])
    shift = 0.5 * body.mediastinum_shift + body.trachea_shift + 0.3 * body.anterior_shift
    carina = (0.35 * k + body.mediastinum_shift, hilum_y - 2.2)
    trachea = bezier([(0.0, -9.0), (0.0 + 0.3 * shift, -3.0), (0.5 * k + shift, 2.0), carina], 24)
    right = bezier(
        [carina, (carina[0] - 1.5, hilum_y - 1.0), (-3.3 * k + shift, hilum_y + 0.6)], 12
    )
    left = bezier([carina, (carina[0] + 1.8, hilum_y - 0.9), (4.2 * k + shift, hilum_y + 0.1)], 12)
    return [(trachea, 0.88 * k), (right, 0.62 * k), (left, 0.55 * k)]


def airway_layer(frame: Frame, body: Body) -> tuple[np.ndarray, np.ndarray]:
    """Air column thickness (H, W) in cm and the truth mask of trachea and main bronchi."""
    canvas = np.zeros(frame.shape, np.uint8)
    outlines = []
    for path, radius in reversed(airway_paths(body)):  # the trachea last, over its branches
        gas = 1.0 if radius > 0.8 * body.half_width / 14.0 else 0.62
        for share, level in ((1.0, 130), (0.85, 190), (0.6, 230), (0.3, 255)):
            paint(frame, canvas, ribbon(path, share * radius), int(gas * level))
        outlines.append(ribbon(path, radius))
    depth = 2.3 * body.half_width / 14.0
    # Towards the larynx the column narrows and is lost in the neck.
    seen = frame.coarse(lambda x, y: np.clip((y + 8.8) / 4.5, 0.0, 1.0) + 0.0 * x)
    layer = blur(canvas.astype(np.float32), 0.14 * frame.px_per_cm) * seen
    return layer * np.float32(depth / 255.0), fill(frame, outlines)


def diaphragm_mask(frame: Frame, body: Body) -> np.ndarray:
    """Both domes and what is under them down to the level of the lower costophrenic angle."""
    outlines = []
    low = max(body.dome_y.values()) + body.cp_drop
    for side in ("right", "left"):
        line = dome_line(body, side)
        base = np.array([(line[-1, 0], low), (line[0, 0], low)])
        outlines.append(np.concatenate([line, base], axis=0))
    return fill(frame, outlines)


def add_abdomen(frame: Frame, body: Body, soft: np.ndarray, seed: int) -> None:
    """Subtract the stomach bubble and a little bowel gas from the soft tissue below the domes."""
    rng = np.random.default_rng([seed, 31])
    k = body.half_width / 14.0
    gas = frame.zeros()
    dome = body.dome_y["left"]
    if rng.random() < 0.65:
        _stomach_bubble(frame, body, gas, rng)
    for _ in range(int(rng.integers(0, 3))):  # loops of colon: pouches side by side
        x, y = rng.normal(4.0, 5.0) * k, dome + rng.uniform(4.0, 9.0)
        heading = rng.uniform(-0.9, 0.9)
        for _ in range(int(rng.integers(3, 7))):
            size = rng.uniform(0.8, 1.5) * k
            axes = (size * rng.uniform(0.9, 1.3), size * rng.uniform(0.7, 1.0))
            add_ellipsoid(frame, gas, (x, y), axes, 1.0 * size, rng.uniform(-90, 90), 1.5)
            heading += rng.normal(0.0, 0.4)
            x += 1.3 * size * np.cos(heading)
            y += 1.3 * size * np.sin(heading)
    soft -= blur(gas, 0.16 * frame.px_per_cm)


def _stomach_bubble(frame: Frame, body: Body, gas: np.ndarray, rng: np.random.Generator) -> None:
    """Gas under the left dome; upright it ends below in a level, lying down it fades out."""
    k = body.half_width / 14.0
    size = rng.uniform(1.2, 2.8) * k
    x = rng.uniform(4.5, 7.5) * k
    y = body.dome_y["left"] + 0.8 * size + rng.uniform(0.7, 1.3)
    bubble = frame.zeros()
    add_ellipsoid(
        frame, bubble, (x, y), (1.4 * size, 0.9 * size), 1.9 * size, rng.uniform(-20, 20), 1.1
    )
    for _ in range(3):  # folds of the stomach wall make its outline uneven
        spot = (x + rng.normal(0.0, 0.7) * size, y + rng.uniform(-0.1, 0.7) * size)
        axes = (rng.uniform(0.4, 0.8) * size, rng.uniform(0.3, 0.6) * size)
        add_ellipsoid(frame, bubble, spot, axes, 0.7 * size, rng.uniform(-60, 60), 1.5)
    if not body.arms_down:
        level = y + rng.uniform(0.0, 0.5) * size
        bubble *= frame.coarse(lambda x, y: np.clip(0.5 + (level - y) / 0.7, 0.0, 1.0) + 0.0 * x)
    gas += bubble


def add_tissue_texture(frame: Frame, soft: np.ndarray, seed: int) -> None:
    """Uneven fat and muscle, in proportion to the tissue there is."""
    rng = np.random.default_rng([seed, 37])
    field = 0.65 * noise_field(frame, rng, 2.4, aspect=1.6) + 0.35 * noise_field(frame, rng, 0.7)
    soft *= 1.0 + np.float32(0.016) * field
