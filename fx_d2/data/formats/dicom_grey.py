"""From DICOM's stored integers to grey: modality rescale, VOI LUT or window, polarity, padding.

Every step maps a stored value to another one, and there are at most 65,536 stored values. So the
chain is worked out once per *value*, in double precision, and then looked up per pixel. The steps
are written symmetrically about the middle of the range, so that an image stored as MONOCHROME1 and
its MONOCHROME2 copy give the same array exactly.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fx_d2.data.errors import DataError

_WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
# A window that leaves less than this of the image inside is a leftover of another image.
_LEAST_INSIDE = 0.02


@dataclass(frozen=True)
class Grey:
    """Pixels float32 (H, W) in [0, max_value], and how they came about (see ``ImageFacts``)."""

    pixels: npt.NDArray[np.float32]
    bits: int
    max_value: float
    offset: float
    voi: str
    window: tuple[float, float] | None
    clipped_low: float
    clipped_high: float
    padded: float


@dataclass(frozen=True)
class _Scale:
    """Modality values of all stored levels.

    ``centred`` is twice the distance of a value from the middle of the range it could take, worked
    out so that the values of a level and of its mirror image differ in nothing but the sign.
    """

    levels: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]
    centred: npt.NDArray[np.float64]
    lowest: float
    span: float


def luminance(colour: npt.NDArray) -> npt.NDArray[np.uint8]:
    """Rec. 601 luma of RGB (H, W, 3) uint8."""
    weights = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    return np.clip(np.rint(colour[..., :3].astype(np.float32) @ weights), 0, 255).astype(np.uint8)


def to_grey(stored: npt.NDArray, dataset: Any, path: str, *, voi: str, notes: list[str]) -> Grey:
    """Apply the DICOM grey-scale chain to stored integers (H, W)."""
    inverted = str(dataset.PhotometricInterpretation).strip() == "MONOCHROME1"
    bits, levels = _levels(stored, dataset, notes)
    scale = _modality(levels, dataset, path)
    max_value = scale.span
    window = _first_window(dataset, notes)
    fractions = None
    applied = "none"
    clipped = (0.0, 0.0)
    if voi == "auto":
        lut = _voi_lut(scale, dataset, notes)
        if lut is not None:
            fractions, applied = lut, "lut"
        elif window is not None:
            curve, clipped = _windowed(stored, scale, window, _function(dataset))
            if 1 - sum(clipped) < _LEAST_INSIDE:
                outside = f"{sum(clipped):.1%} of the pixels lie outside"
                notes.append(f"window {window[0]:g}/{window[1]:g} ignored: {outside}")
                clipped = (0.0, 0.0)
            else:
                fractions, applied = curve, "window"
    if fractions is None:
        table = (max_value - scale.centred if inverted else max_value + scale.centred) / 2
    else:
        table = max_value * ((1 - fractions if inverted else 1 + fractions) / 2)
    padding = _padding_levels(dataset, levels)
    padded = 0.0
    if padding is not None:
        table[padding] = 0.0
        inside = (stored >= levels[padding][0]) & (stored <= levels[padding][-1])
        padded = np.count_nonzero(inside) / stored.size
    return Grey(
        pixels=_look_up(table.astype(np.float32), stored, int(levels[0])),
        bits=bits,
        max_value=float(np.float32(max_value)),
        offset=-scale.lowest,
        voi=applied,
        window=window,
        clipped_low=clipped[0],
        clipped_high=clipped[1],
        padded=padded,
    )


def _look_up(
    table: npt.NDArray[np.float32], stored: npt.NDArray, first: int
) -> npt.NDArray[np.float32]:
    steps = np.diff(table[:2])
    if (
        first == 0
        and steps.size
        and np.array_equal(table, np.arange(len(table)) * steps[0] + table[0])
    ):
        # A straight line: far faster than looking up, and exact because the table was.
        if steps[0] == 1 and table[0] == 0:
            return stored.astype(np.float32)
        if steps[0] == -1:
            return np.subtract(table[0], stored, dtype=np.float32)
    index = stored if first == 0 else stored.astype(np.int32) - first
    return table[index]


def _levels(
    stored: npt.NDArray, dataset: Any, notes: list[str]
) -> tuple[int, npt.NDArray[np.int64]]:
    """Real depth and all values of that depth; more bits than declared widen it."""
    bits = int(dataset.BitsStored)
    signed = stored.dtype.kind == "i"
    lowest, highest = int(stored.min()), int(stored.max())
    needed = max(highest.bit_length(), (-lowest - 1).bit_length() if lowest < 0 else 0) + signed
    if needed > bits:
        notes.append(
            f"values from {lowest} to {highest} need {needed} bits, BitsStored says {bits}"
        )
        bits = needed
    first = -(1 << (bits - 1)) if signed else 0
    return bits, np.arange(first, first + (1 << bits), dtype=np.int64)


def _number(value: Any) -> float:
    """The first of one or several DICOM numbers; NaN when there is none or it is no number."""
    if isinstance(value, (list, tuple)) or (
        hasattr(value, "__iter__") and not isinstance(value, (str, bytes))
    ):
        value = next(iter(value), None)
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _modality(levels: npt.NDArray[np.int64], dataset: Any, path: str) -> _Scale:
    if dataset.get("ModalityLUTSequence"):
        from pydicom.pixels.processing import apply_modality_lut

        values = np.asarray(apply_modality_lut(levels.astype(np.int32), dataset), dtype=np.float64)
        depth = int(dataset.ModalityLUTSequence[0].LUTDescriptor[2])
        top = max(float(2**depth - 1), float(values.max()))
        return _Scale(levels, values, values - (top - values), 0.0, top)
    slope = _number(dataset.get("RescaleSlope", 1))
    intercept = _number(dataset.get("RescaleIntercept", 0))
    usable = math.isfinite(slope) and math.isfinite(intercept) and slope != 0
    if not usable or max(abs(slope), abs(intercept)) > 1e9:
        raise DataError(
            f"RescaleSlope {slope:g}, RescaleIntercept {intercept:g}",
            file=path,
            expected="finite numbers, slope not 0",
            fix="the header is damaged: download it again",
        )
    values = levels.astype(np.float64) * slope + intercept
    centred = slope * (2 * levels - levels[0] - levels[-1]).astype(np.float64)
    span = (levels[-1] - levels[0]) * abs(slope)
    return _Scale(levels, values, centred, float(values.min()), float(span))


def _first_window(dataset: Any, notes: list[str]) -> tuple[float, float] | None:
    if dataset.get("WindowCenter") is None or dataset.get("WindowWidth") is None:
        return None
    centre, width = _number(dataset.WindowCenter), _number(dataset.WindowWidth)
    smallest = 1.0 if _function(dataset) == "LINEAR" else 0.0
    usable = math.isfinite(centre) and math.isfinite(width) and width > 0
    if not usable or width < smallest:
        notes.append(f"window {dataset.WindowCenter}/{dataset.WindowWidth} ignored: not a window")
        return None
    return centre, width


def _function(dataset: Any) -> str:
    name = str(dataset.get("VOILUTFunction") or "LINEAR").strip().upper()
    return name if name in _WINDOW_FUNCTIONS else "LINEAR"


def _windowed(
    stored: npt.NDArray, scale: _Scale, window: tuple[float, float], function: str
) -> tuple[npt.NDArray[np.float64], tuple[float, float]]:
    """Display fraction, -1 to 1, of every level (PS3.3 C.11.2); shares of pixels below, above."""
    centre, width = window
    if function == "SIGMOID":
        return np.tanh(2 * (scale.values - centre) / width), (0.0, 0.0)
    if function == "LINEAR":
        centre, width = centre - 0.5, max(width - 1, 1e-6)
    relative = 2 * (scale.values - centre) / width
    low, high = scale.levels[relative < -1], scale.levels[relative > 1]
    return np.clip(relative, -1, 1), (_share(stored, low), _share(stored, high))


def _share(stored: npt.NDArray, levels: npt.NDArray[np.int64]) -> float:
    """Share of the pixels whose value is one of ``levels``, a run of neighbours."""
    if not levels.size:
        return 0.0
    return np.count_nonzero((stored >= levels[0]) & (stored <= levels[-1])) / stored.size


def _voi_lut(scale: _Scale, dataset: Any, notes: list[str]) -> npt.NDArray[np.float64] | None:
    """Display fraction, -1 to 1, of every level by the first VOI LUT; None without a usable one."""
    if not dataset.get("VOILUTSequence"):
        return None
    from pydicom.pixels.processing import apply_voi

    item = dataset.VOILUTSequence[0]
    # apply_voi() wants integers, and a LUT is defined on integers only.
    values = np.asarray(
        apply_voi(np.rint(scale.values).astype(np.int32), dataset, index=0), dtype=np.float64
    )
    top = float(2 ** int(item.LUTDescriptor[2]) - 1)
    if not top or values.min() < 0 or values.max() > top or values.min() == values.max():
        notes.append("VOI LUT ignored: its entries do not fit its descriptor")
        return None
    return (values - (top - values)) / top


def _padding_levels(dataset: Any, levels: npt.NDArray[np.int64]) -> slice | None:
    """Where in ``levels`` the padding values are; None when there is no padding."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    one = _number(dataset.PixelPaddingValue)
    other = _number(dataset.get("PixelPaddingRangeLimit", one))
    if not (math.isfinite(one) and math.isfinite(other)):
        return None
    first, last = sorted((round(one), round(other)))
    start, stop = np.searchsorted(levels, [first, last + 1])
    return slice(int(start), int(stop)) if stop > start else None
