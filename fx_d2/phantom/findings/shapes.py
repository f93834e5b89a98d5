"""Irregular solids, networks and lines from which findings are made."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fx_d2.phantom.canvas import Frame, blur, noise_field


@dataclass(frozen=True)
class Lump:
    """A star-shaped solid: an ellipsoid whose radius wanders around its circumference."""

    centre: tuple[float, float]
    axes: tuple[float, float]
    angle_deg: float
    amplitude: np.ndarray
    phase: np.ndarray

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        centre: tuple[float, float],
        axes: tuple[float, float],
        roughness: float,
    ) -> Lump:
        """A random lump; rougher means more lobulated."""
        orders = np.arange(2, 8)
        amplitude = rng.normal(0.0, roughness, len(orders)) / orders**0.7
        return cls(
            centre, axes, rng.uniform(0, 180), amplitude, rng.uniform(0, 2 * np.pi, len(orders))
        )

    def radius(self, phi: np.ndarray) -> np.ndarray:
        """Relative radius at polar angles of any shape."""
        orders = np.arange(2, 8)
        waves = np.cos(np.multiply.outer(phi, orders) + self.phase) * self.amplitude
        return np.maximum(1.0 + waves.sum(axis=-1), 0.35)

    def outline(self, n: int = 72) -> np.ndarray:
        """Closed outline (n, 2) in cm."""
        phi = np.linspace(0.0, 2.0 * np.pi, n, endpoint=False)
        radius = self.radius(phi)
        a, b = self.axes[0] * radius * np.cos(phi), self.axes[1] * radius * np.sin(phi)
        cos, sin = np.cos(np.radians(self.angle_deg)), np.sin(np.radians(self.angle_deg))
        return np.stack([self.centre[0] + a * cos - b * sin, self.centre[1] + a * sin + b * cos], 1)

    def add(self, frame: Frame, layer: np.ndarray, depth_cm: float, power: float = 0.5) -> None:
        """Add the chord of the solid to a float32 layer (H, W)."""
        window = frame.roi(self.outline())
        target = layer[window]
        if target.size == 0:
            return
        x, y = frame.local(window)
        cos, sin = np.cos(np.radians(self.angle_deg)), np.sin(np.radians(self.angle_deg))
        u = ((x - self.centre[0]) * cos + (y - self.centre[1]) * sin) / self.axes[0]
        v = ((y - self.centre[1]) * cos - (x - self.centre[0]) * sin) / self.axes[1]
        table = np.linspace(-np.pi, np.pi, 129)
        edge = np.interp(np.arctan2(v, u), table, self.radius(table))
        inside = np.maximum(1.0 - (u * u + v * v) / (edge * edge), 0.0)
        target += (depth_cm * inside**power).astype(np.float32)


def network(
    frame: Frame, rng: np.random.Generator, mesh_cm: float, line: float = 0.22
) -> np.ndarray:
    """Net of thin curved lines (H, W) in [0, 1]: where smooth noise crosses zero."""
    field = noise_field(frame, rng, mesh_cm)
    other = noise_field(frame, rng, 0.6 * mesh_cm)
    # A line cannot be thinner than a pixel: widen it on small pictures and weaken it in return.
    mesh_px = mesh_cm * frame.px_per_cm
    wide = max(line, min(1.2, 1.2 / max(mesh_px, 0.5)))
    weight = line / wide
    net = np.exp(-((field / wide) ** 2)) + 0.7 * np.exp(-((other / wide) ** 2))
    return (weight * np.minimum(net, 1.3) / 1.3).astype(np.float32)


def soft_region(frame: Frame, mask: np.ndarray, edge_cm: float) -> np.ndarray:
    """Mask as float (H, W) fading over ``edge_cm`` inside the mask, zero outside it."""
    sigma = max(0.4, 0.5 * edge_cm * frame.px_per_cm)
    return np.clip(2.0 * blur(mask.astype(np.float32), sigma) - 1.0, 0.0, 1.0) * mask
