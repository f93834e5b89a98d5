"""What the stages of the hybrid pipeline hand to each other, each in pixels of the original film.

``Film -> LungMask -> Crop -> Scores -> HeatMap``. A stage can be called with any of these made by
hand: a mask drawn by a reader, a crop of another tool.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from fx_d2.data.errors import DataError
from fx_d2.data.images import LoadedImage, read_image
from fx_d2.data.intensity import IntensityConfig, normalise
from fx_d2.data.lesion_mix.classes import is_no_finding
from fx_d2.data.lung_input import LungCrop

from .mask_ensemble import Mask

Grey = npt.NDArray[np.float32]

# A smaller piece is a speck, not a lung that was found.
_PIECE_SHARE = 0.1
# A lung that ends at the frame does so over some length; one pixel is rounding.
_EDGE_SHARE = 0.01


class Film:
    """A radiograph that several models look at, each in its own way; decoded once per way.

    Args:
        path: of the file; names it in messages.
        loaded: the image where it is in memory already, read with ``voi`` "auto".
    """

    def __init__(self, path: str | os.PathLike[str], loaded: LoadedImage | None = None) -> None:
        self.path = Path(path)
        self._loaded: dict[str, LoadedImage] = {} if loaded is None else {"auto": loaded}
        self._grey: dict[IntensityConfig, Grey] = {}

    def __fspath__(self) -> str:
        """Its path: what takes a file takes a film."""
        return str(self.path)

    def loaded(self, voi: str = "auto") -> LoadedImage:
        """The image as :func:`fx_d2.data.images.read_image` gives it.

        Raises:
            DataError: it cannot be read.
        """
        auto = self._loaded.get("auto")
        if voi == "ignore" and auto is not None and auto.facts.voi == "none":
            return auto  # there was nothing to ignore
        if voi not in self._loaded:
            self._loaded[voi] = read_image(self.path, voi=voi)
        return self._loaded[voi]

    def grey(self, intensity: IntensityConfig) -> Grey:
        """(height, width) in [0, 1] by the settings of one model."""
        if intensity not in self._grey:
            self._grey[intensity] = normalise(self.loaded(intensity.voi), intensity)
        return self._grey[intensity]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width); reads the file where nothing else has."""
        facts = next(iter(self._loaded.values()), None) or self.loaded()
        return facts.facts.height, facts.facts.width


@dataclass(frozen=True)
class LungMask:
    """Where the lungs are.

    Args:
        mask: bool (height, width) of the film.
        rule: how several segmentors were combined, or where the mask comes from.
        members: {segmentor: share of the film that it calls lung}, before they are combined.
    """

    mask: Mask
    rule: str = "given"
    members: Mapping[str, float] = field(default_factory=dict)

    @property
    def area(self) -> float:
        """Share of the film."""
        return float(self.mask.mean())

    def pieces(self) -> tuple[float, ...]:
        """Share of the film of every piece that hangs together, the largest first; no specks."""
        _, _, facts, _ = cv2.connectedComponentsWithStats(self.mask.astype(np.uint8))
        areas = np.sort(facts[1:, cv2.CC_STAT_AREA])[::-1]
        large = areas[areas >= _PIECE_SHARE * areas.sum()]
        return tuple((large / self.mask.size).tolist())

    def edges(self) -> tuple[str, ...]:
        """Sides of the film that the lungs run into."""
        sides = {
            "left": self.mask[:, 0],
            "right": self.mask[:, -1],
            "top": self.mask[0],
            "bottom": self.mask[-1],
        }
        return tuple(name for name, side in sides.items() if side.mean() > _EDGE_SHARE)

    def check_size(self, film: Film) -> None:
        """Raise where the mask is not of the film's size.

        Raises:
            DataError: it names both sizes.
        """
        height, width = film.size
        if self.mask.shape != (height, width):
            raise DataError(
                f"the lung mask is {self.mask.shape[0]} x {self.mask.shape[1]}",
                file=film.path,
                expected=f"{height} x {width}, the film's size",
                fix="use mask and film of the same export",
            )


@dataclass(frozen=True)
class Crop:
    """What a classifier is shown of a film.

    Args:
        shown: its grey values in [0, 1], and the box of the film that they are.
        frame: (height, width) of the film.
    """

    shown: LungCrop
    frame: tuple[int, int]

    def __post_init__(self) -> None:
        x0, y0, x1, y1 = self.shown.box
        height, width = self.frame
        if not (0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height):
            raise ValueError(f"box {self.shown.box} is not within a film of {height} x {width}")
        if self.shown.image.shape != (y1 - y0, x1 - x0):
            raise ValueError(f"image is {self.shown.image.shape}, its box {self.shown.box}")

    def seen(self) -> Mask:
        """Bool (height, width): the part of the film within the box."""
        x0, y0, x1, y1 = self.shown.box
        result = np.zeros(self.frame, dtype=bool)
        result[y0:y1, x0:x1] = True
        return result

    def to_film(self, values: npt.NDArray[np.generic], content: tuple[int, int]) -> Grey:
        """A map over the network's input, in pixels of the film; zero outside the box.

        Args:
            values: (H, W) over the whole input.
            content: (h, w) of the crop within the input; the rest is padding at the right and
                bottom.
        """
        return self.shown.map_in_original(values[: content[0], : content[1]], *self.frame)


@dataclass(frozen=True)
class Scores:
    """What a classifier says about a crop.

    Args:
        source: of the head.
        labels: {class: probability}, in the head's order.
        exclusive: whether exactly one class is true, so that they sum to 1.
    """

    source: str
    labels: Mapping[str, float]
    exclusive: bool = False

    @property
    def top(self) -> str:
        """The class of the highest probability."""
        return max(self.labels, key=lambda name: self.labels[name])

    def positive(self, threshold: float) -> tuple[str, ...]:
        """Findings that are called present, the likeliest first.

        Where one class is true: that class, unless it means that nothing was found. Else all from
        ``threshold`` on.
        """
        if self.exclusive:
            called = [self.top]
        else:
            called = [name for name, value in self.labels.items() if value >= threshold]
        found = [name for name in called if is_finding(name)]
        return tuple(sorted(found, key=lambda name: -self.labels[name]))

    def explained(self, threshold: float, at_most: int) -> tuple[str, ...]:
        """The classes whose maps are worth a look: the positive ones, else the likeliest."""
        if self.exclusive:
            return (self.top,)
        finding = [name for name in self.labels if is_finding(name)] or list(self.labels)
        best = max(finding, key=lambda name: self.labels[name])
        return (self.positive(threshold) or (best,))[:at_most]


@dataclass(frozen=True)
class HeatMap:
    """Where a classifier looked for one class.

    Args:
        cls: the class.
        values: float32 (height, width) of the film, >= 0, as the method gives them; zero outside
            the crop.
        method: such as ``grad_cam``.
        layer: the layer it was taken from.
    """

    cls: str
    values: Grey
    method: str
    layer: str

    def scaled(self) -> Grey:
        """``values`` with their maximum at 1; zeros stay zeros."""
        top = float(self.values.max(initial=0))
        return self.values / np.float32(top) if top > 0 else self.values


# RSNA's third class: something else than an opacity, it does not say what and where.
_NO_OPACITY = "No Lung Opacity / Not Normal"


def is_finding(name: str) -> bool:
    """Whether a class names something that is seen, not that nothing is."""
    return name != _NO_OPACITY and not is_no_finding(name)
