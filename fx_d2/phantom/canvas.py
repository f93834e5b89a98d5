"""Pixels of a picture in patient centimetres, and the few drawing operations everything uses.

Sharp outlines are filled as sub-pixel polygons at full resolution. Smooth fields are evaluated on
a coarse grid and interpolated, which is what makes a 512 px radiograph cheap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

_SHIFT = 4  # fractional bits of polygon corners handed to OpenCV
_COARSE_CM = 0.36  # pitch of the grid on which smooth fields are evaluated


@dataclass(frozen=True)
class Frame:
    """Maps patient centimetres to pixels.

    x grows to the right of the picture (the patient's left in a frontal view), y downwards, with
    y = 0 at the lung apex. Pixel (row, column) has its centre at integer coordinates.
    """

    height: int
    width: int
    px_per_cm: float
    centre_cm: tuple[float, float]
    tilt_rad: float

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.height, self.width

    def to_px(self, points_cm: np.ndarray) -> np.ndarray:
        """Points (N, 2) in cm to (N, 2) float pixel coordinates (x, y)."""
        points = np.asarray(points_cm, dtype=np.float64)
        x, y = points[:, 0] - self.centre_cm[0], points[:, 1] - self.centre_cm[1]
        cos = math.cos(self.tilt_rad) * self.px_per_cm
        sin = math.sin(self.tilt_rad) * self.px_per_cm
        out = np.empty((len(points), 2))
        out[:, 0] = x * cos - y * sin + 0.5 * (self.width - 1)
        out[:, 1] = x * sin + y * cos + 0.5 * (self.height - 1)
        return out

    def to_cm(self, columns: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pixel coordinates to cm; the two arrays broadcast against each other."""
        u = (columns - np.float32(0.5 * (self.width - 1))) / np.float32(self.px_per_cm)
        v = (rows - np.float32(0.5 * (self.height - 1))) / np.float32(self.px_per_cm)
        cos, sin = np.float32(np.cos(self.tilt_rad)), np.float32(np.sin(self.tilt_rad))
        x = u * cos + v * sin + np.float32(self.centre_cm[0])
        y = v * cos - u * sin + np.float32(self.centre_cm[1])
        return x, y

    def zeros(self) -> np.ndarray:
        """An empty float32 (H, W) layer."""
        return np.zeros(self.shape, np.float32)

    def coarse(
        self, field: Callable[[np.ndarray, np.ndarray], np.ndarray], pitch_cm: float = _COARSE_CM
    ) -> np.ndarray:
        """Evaluate a smooth ``field(x_cm, y_cm)`` coarsely and interpolate to float32 (H, W)."""
        step = max(1.0, pitch_cm * self.px_per_cm)
        rows = max(8, int(np.ceil(self.height / step)))
        cols = max(8, int(np.ceil(self.width / step)))
        r = (np.arange(rows, dtype=np.float32) + 0.5) * (self.height / rows) - 0.5
        c = (np.arange(cols, dtype=np.float32) + 0.5) * (self.width / cols) - 0.5
        x, y = self.to_cm(c[None, :], r[:, None])
        return self.enlarge(field(x, y))

    def enlarge(self, small: np.ndarray) -> np.ndarray:
        """Interpolate a coarse array to float32 (H, W)."""
        return cv2.resize(
            np.ascontiguousarray(small, dtype=np.float32),
            (self.width, self.height),
            interpolation=cv2.INTER_LINEAR,
        )

    def roi(self, points_cm: np.ndarray, margin_cm: float = 0.0) -> tuple[slice, slice]:
        """Row and column slices that enclose points (N, 2), possibly empty."""
        px = self.to_px(points_cm)
        margin = margin_cm * self.px_per_cm + 1.0
        low, high = px.min(axis=0) - margin, px.max(axis=0) + margin
        rows = slice(
            int(np.clip(low[1], 0, self.height)), int(np.clip(high[1] + 1, 0, self.height))
        )
        cols = slice(int(np.clip(low[0], 0, self.width)), int(np.clip(high[0] + 1, 0, self.width)))
        return rows, cols

    def local(self, window: tuple[slice, slice]) -> tuple[np.ndarray, np.ndarray]:
        """Centimetre coordinates (x, y) of every pixel of a window."""
        rows = np.arange(window[0].start, window[0].stop, dtype=np.float32)[:, None]
        cols = np.arange(window[1].start, window[1].stop, dtype=np.float32)[None, :]
        return self.to_cm(cols, rows)


def _fixed(frame: Frame, points_cm: np.ndarray) -> np.ndarray:
    """Polygon corners as the fixed-point integers OpenCV wants, clipped far outside the picture."""
    px = frame.to_px(points_cm) * (1 << _SHIFT)
    np.minimum(np.maximum(px, -5e5, out=px), 1e6, out=px)
    return np.rint(px, out=px).astype(np.int32)


def fill(frame: Frame, polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Union of closed polygons (N, 2) in cm as a bool (H, W) mask."""
    canvas = np.zeros(frame.shape, np.uint8)
    for polygon in polygons:
        cv2.fillPoly(canvas, [_fixed(frame, polygon)], 1, cv2.LINE_8, _SHIFT)
    return canvas.astype(bool)


def paint(frame: Frame, canvas: np.ndarray, polygon: np.ndarray, value: int) -> None:
    """Fill one polygon into a uint8 canvas, antialiased, replacing what is there."""
    cv2.fillPoly(canvas, [_fixed(frame, polygon)], int(value), cv2.LINE_AA, _SHIFT)


def soft_fill(frame: Frame, polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Union of polygons as antialiased coverage, float32 (H, W) in [0, 1]."""
    canvas = np.zeros(frame.shape, np.uint8)
    for polygon in polygons:
        paint(frame, canvas, polygon, 255)
    return canvas.astype(np.float32) * np.float32(1.0 / 255.0)


def stroke(
    frame: Frame,
    canvas: np.ndarray,
    paths: Sequence[np.ndarray] | np.ndarray,
    width_cm: float,
    value: int,
) -> None:
    """Draw open paths (N, 2), or an array of them (M, N, 2), in cm with one line width.

    Hairlines fade instead of vanishing.
    """
    width_px = width_cm * frame.px_per_cm
    thickness = max(1, int(round(width_px)))
    shade = int(np.clip(round(value * min(1.0, max(width_px, 0.15) / thickness)), 1, 255))
    if isinstance(paths, np.ndarray):  # many paths of equal length: convert them together
        fixed = list(_fixed(frame, paths.reshape(-1, 2)).reshape(paths.shape))
    else:
        fixed = [_fixed(frame, path) for path in paths]
    cv2.polylines(canvas, fixed, False, shade, thickness, cv2.LINE_AA, _SHIFT)


def ellipse_points(
    centre: tuple[float, float], axes: tuple[float, float], angle_deg: float = 0.0, n: int = 48
) -> np.ndarray:
    """Outline (n, 2) of an ellipse; the angle turns its first axis clockwise on the screen."""
    circle = _unit_circle(n)
    a, b = axes[0] * circle[:, 0], axes[1] * circle[:, 1]
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    return np.stack([centre[0] + a * cos - b * sin, centre[1] + a * sin + b * cos], axis=1)


@lru_cache(maxsize=32)
def _unit_circle(n: int) -> np.ndarray:
    phase = np.linspace(0.0, 2.0 * np.pi, n, endpoint=False)
    circle = np.stack([np.cos(phase), np.sin(phase)], axis=1)
    circle.flags.writeable = False
    return circle


def add_ellipsoid(
    frame: Frame,
    layer: np.ndarray,
    centre: tuple[float, float],
    axes: tuple[float, float],
    depth_cm: float,
    angle_deg: float = 0.0,
    power: float = 0.5,
) -> None:
    """Add the chord of an ellipsoid (``depth_cm`` thick in its middle) to a float32 layer."""
    window = frame.roi(ellipse_points(centre, axes, angle_deg))
    target = layer[window]
    if target.size == 0:
        return
    x, y = frame.local(window)
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    u = ((x - centre[0]) * cos + (y - centre[1]) * sin) / axes[0]
    v = ((y - centre[1]) * cos - (x - centre[0]) * sin) / axes[1]
    inside = np.maximum(1.0 - u * u - v * v, 0.0)
    chord = np.sqrt(inside) if power == 0.5 else inside**power
    target += (depth_cm * chord).astype(np.float32)


def shifted(path: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Path (N, 2) moved by a vector."""
    return np.asarray(path) + np.array([dx, dy])


def path_normals(path: np.ndarray) -> np.ndarray:
    """Unit normals (N, 2) of an open path (N, 2)."""
    step = np.empty_like(path, dtype=np.float64)
    step[1:-1] = path[2:] - path[:-2]
    step[0], step[-1] = path[1] - path[0], path[-1] - path[-2]
    length = np.maximum(np.sqrt(step[:, 0] ** 2 + step[:, 1] ** 2), 1e-9)
    normal = np.empty_like(step)
    normal[:, 0], normal[:, 1] = -step[:, 1] / length, step[:, 0] / length
    return normal


def ribbon(path: np.ndarray, half_width: np.ndarray | float) -> np.ndarray:
    """Closed outline (2N, 2) of a band around an open path (N, 2)."""
    offset = path_normals(path) * np.reshape(half_width, (-1, 1))
    return np.concatenate([path + offset, (path - offset)[::-1]], axis=0)


def bezier(points: Sequence[Sequence[float]], n: int = 24) -> np.ndarray:
    """Points (n, 2) on the Bezier curve of 2 to 5 control points."""
    t = np.linspace(0.0, 1.0, n)[:, None]
    level = [np.asarray(point, dtype=np.float64)[None, :] for point in points]
    while len(level) > 1:
        level = [(1.0 - t) * a + t * b for a, b in zip(level[:-1], level[1:], strict=True)]
    return level[0]


def noise_field(
    frame: Frame, rng: np.random.Generator, scale_cm: float, aspect: float = 1.0
) -> np.ndarray:
    """Smooth zero-mean, unit-variance noise with features about ``scale_cm`` wide, (H, W)."""
    step_x = max(1.0, scale_cm * aspect * frame.px_per_cm)
    step_y = max(1.0, scale_cm * frame.px_per_cm)
    rows = int(np.ceil(frame.height / step_y)) + 3
    cols = int(np.ceil(frame.width / step_x)) + 3
    grid = rng.standard_normal((rows, cols), dtype=np.float32)
    if step_x == 1.0 and step_y == 1.0:
        return np.ascontiguousarray(grid[: frame.height, : frame.width])
    matrix = np.array([[1.0 / step_x, 0.0, 1.0], [0.0, 1.0 / step_y, 1.0]])
    # Cubic interpolation of white noise lowers its variance to about 0.55.
    return cv2.warpAffine(
        grid * np.float32(1.35),
        matrix,
        (frame.width, frame.height),
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )


def blur(layer: np.ndarray, sigma_px: float) -> np.ndarray:
    """Gaussian blur that costs the same for wide kernels (done on a reduced copy)."""
    if sigma_px < 0.3:
        return layer
    if sigma_px <= 4.0:
        return cv2.GaussianBlur(layer, (0, 0), sigma_px)
    factor = sigma_px / 2.0
    height, width = layer.shape
    small_size = (max(4, int(width / factor)), max(4, int(height / factor)))
    small = cv2.resize(layer, small_size, interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 2.0, borderType=cv2.BORDER_REPLICATE)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
