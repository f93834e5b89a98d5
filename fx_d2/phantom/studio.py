"""A rendered chest brought into the frame a provider publishes, its truth staying exact.

Where a provider fixes the size (1024 x 1024 for NIH, 2048 x 2048 for JSRT ...) a small world is
rendered with less detail and enlarged by a whole factor: intensities smoothly, masks pixel by
pixel, so that a mask is exact at any detail and readers meet the frame that their run lengths and
boxes assume.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from fx_d2.phantom.findings import FindingSpec
from fx_d2.phantom.findings.base import box_of
from fx_d2.phantom.look import LOOKS, Look, apply_look
from fx_d2.phantom.patient import PatientSpec, View
from fx_d2.phantom.render import Radiograph, render

MAX_DETAIL_PX = 1024  # finer rendering costs seconds per image and shows nothing new
MIN_DETAIL_PX = 64


@dataclass(frozen=True)
class FrameSize:
    """Rendering size (rows, columns) and the whole factor by which it is enlarged."""

    rows: int
    columns: int
    factor: int = 1

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the published image."""
        return self.rows * self.factor, self.columns * self.factor


def fixed_frame(side_px: int, detail_px: int | None) -> FrameSize:
    """A square frame of fixed side, rendered with at least the detail asked for."""
    wanted = min(side_px, MAX_DETAIL_PX if detail_px is None else max(detail_px, MIN_DETAIL_PX))
    factor = 1
    while side_px % (2 * factor) == 0 and side_px // (2 * factor) >= wanted:
        factor *= 2
    return FrameSize(side_px // factor, side_px // factor, factor)


def free_frame(rng: np.random.Generator, detail_px: int | None, look: Look) -> FrameSize:
    """A frame of a source whose sizes vary, with the look's own range of aspects.

    Args:
        rng: two numbers are drawn from it.
        detail_px: shorter side wanted (it varies by a fifth); None for the look's native range.
        look: of the source.
    """
    low, high = look.size_px if detail_px is None else (detail_px, round(1.2 * detail_px))
    short = max(MIN_DETAIL_PX, int(rng.integers(low, high + 1)))
    aspect = float(rng.uniform(*look.aspect))  # height over width
    factor = -(-short // MAX_DETAIL_PX)
    height, width = (short, short / aspect) if aspect < 1.0 else (short * aspect, short)
    return FrameSize(round(height / factor), round(width / factor), factor)


def draw_view(rng: np.random.Generator, look: Look) -> View:
    """A projection by the look's shares."""
    views = [view for view, _ in look.views]
    shares = np.array([share for _, share in look.views])
    return views[int(rng.choice(len(views), p=shares / shares.sum()))]  # type: ignore[return-value]


def enlarge_mask(mask: np.ndarray, factor: int) -> np.ndarray:
    """Every pixel of a bool (H, W) mask as a block of ``factor`` x ``factor`` pixels."""
    if factor == 1:
        return np.ascontiguousarray(mask)
    return np.repeat(np.repeat(mask, factor, axis=0), factor, axis=1)


@dataclass(frozen=True)
class Lesion:
    """A finding in the published frame.

    Attributes:
        name: Canonical name.
        mask: bool (H, W).
        box: x0, y0, x1, y1 with exclusive maxima; None when the mask is empty.
        part: Which device it is, for support devices.
    """

    name: str
    mask: np.ndarray
    box: tuple[int, int, int, int] | None
    part: str


@dataclass(frozen=True)
class Shot:
    """One exposure in the published frame.

    Attributes:
        pixels: float32 (H, W) in [0, 1], bright = dense, with the source's look.
        radiograph: As rendered, before enlarging.
        factor: Whole factor between the two.
    """

    pixels: np.ndarray
    radiograph: Radiograph
    factor: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        return int(self.pixels.shape[0]), int(self.pixels.shape[1])

    def structure(self, *names: str) -> np.ndarray:
        """Union of structure masks, bool (H, W)."""
        masks = [self.radiograph.structures[name] for name in names]
        return enlarge_mask(np.logical_or.reduce(masks), self.factor)

    def lesions(self, *, look_alikes: bool = False) -> list[Lesion]:
        """What the radiograph shows; findings of the whole image have an empty mask."""
        shown = []
        for finding in self.radiograph.findings:
            if finding.distractor and not look_alikes:
                continue
            mask = enlarge_mask(finding.mask, self.factor)
            shown.append(Lesion(finding.name, mask, box_of(mask), finding.part))
        return shown

    def names(self) -> tuple[str, ...]:
        """Names of the findings, hard negatives left out, each once."""
        return tuple(dict.fromkeys(f.name for f in self.radiograph.findings if not f.distractor))


def photograph(
    source_key: str,
    patient: PatientSpec,
    findings: Sequence[FindingSpec | str],
    frame: FrameSize,
    rng: np.random.Generator,
    *,
    view: View = "PA",
) -> Shot:
    """Render a patient and give the picture the look of a source."""
    radiograph = render(
        patient, list(findings), view=view, size=(frame.rows, frame.columns), rng=rng
    )
    image = apply_look(radiograph.image, LOOKS[source_key], rng)
    if frame.factor > 1:
        height, width = frame.size
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    return Shot(np.clip(image, 0.0, 1.0).astype(np.float32), radiograph, frame.factor)
