"""The box around both lungs: from lung masks where a record has them, else seen in the image.

Lesions keep their place relative to this box, so it need not follow the lungs' edge; it has to be
the same thing in every source.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from ..lung_masks import lungs_of
from ..record import Record

Box = tuple[float, float, float, float]  # x0, y0, x1, y1 as shares of the frame

_SIDE_PX = 64
# Where the lungs lie on an average frontal radiograph; for those on which they cannot be seen.
USUAL: Box = (0.13, 0.12, 0.87, 0.80)
_WHITE = 0.9
# Shares of the middle of the film that a level leaves darker, from bright to dark.
_LEVELS = tuple(np.linspace(0.8, 0.2, 9))


def lung_box(grey: npt.NDArray[np.float32], record: Record | None = None) -> Box | None:
    """The lungs' box as shares of the frame, or None where both cannot be told apart.

    Args:
        grey: (H, W) in [0, 1], bright = dense.
        record: its record, whose lung masks are used where it has them.
    """
    if record is not None:
        height, width = record.get("height"), record.get("width")
        if height is not None and width is not None:
            both = lungs_of(record, (height, width), resize=True)
            found = None if both is None else _around(both)
            if found is not None:
                return found
    step = max(1, max(grey.shape) // (2 * _SIDE_PX))  # every nth pixel is enough
    return _seen(grey[::step, ::step])


def _seen(grey: npt.NDArray[np.float32]) -> Box | None:
    """Two dark fields, one beside each other, that do not belong to the dark outside the body."""
    rows, columns = _without_white_bars(grey)
    small = cv2.resize(grey[rows, columns], (_SIDE_PX, _SIDE_PX), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), 0.8)
    centre = small[_SIDE_PX // 8 : -_SIDE_PX // 4, _SIDE_PX // 8 : -_SIDE_PX // 8]
    ordered = np.sort(centre, axis=None)
    # What np.quantile gives, in a fifth of its time.
    levels = np.interp(_LEVELS, np.linspace(0, 1, ordered.size), ordered).astype(np.float32)
    spine = cv2.GaussianBlur(small[_SIDE_PX // 4 : _SIDE_PX * 5 // 8], (0, 0), 2).mean(axis=0)
    near = slice(_SIDE_PX * 3 // 8, _SIDE_PX * 5 // 8)
    middle = near.start + int(np.argmax(spine[near]))
    lungs = np.zeros((_SIDE_PX, _SIDE_PX), dtype=bool)
    for half in (slice(0, middle), slice(middle, None)):
        side = small[:, half] if half.start == 0 else small[:, half][:, ::-1]
        field = _dark_field(np.ascontiguousarray(side), levels)
        if field is None:
            return None
        lungs[:, half] = field if half.start == 0 else field[:, ::-1]
    found = _around(lungs)
    if found is None or not (found[2] - found[0] > 0.35 and found[3] - found[1] > 0.25):
        return None
    height, width = grey.shape
    x, y = columns.start / width, rows.start / height
    w, h = (columns.stop - columns.start) / width, (rows.stop - rows.start) / height
    return (x + found[0] * w, y + found[1] * h, x + found[2] * w, y + found[3] * h)


def _without_white_bars(grey: npt.NDArray[np.float32]) -> tuple[slice, slice]:
    """Rows and columns without white bars along the edges, which fence in the outside air."""
    kept = []
    not_white = grey < _WHITE
    for axis in (1, 0):
        plain = np.flatnonzero(not_white.mean(axis=axis) > 0.02)
        enough = len(plain) and plain[-1] - plain[0] > 0.5 * grey.shape[1 - axis]
        kept.append(slice(plain[0], plain[-1] + 1) if enough else slice(0, grey.shape[1 - axis]))
    return kept[0], kept[1]


def _dark_field(
    side: npt.NDArray[np.float32], levels: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_] | None:
    """The largest field darker than a level that does not reach the edge of the film.

    Args:
        side: (S, S / 2), one half; its first column is the outer edge of the film.
        levels: from bright to dark; the brightest that parts lung from outside air is taken.
    """
    height, width = side.shape
    for level in levels:
        dark = (side < level).astype(np.uint8)
        dark[:, -1:] = 0  # the trachea joins what belongs apart
        _, names, stats, centres = cv2.connectedComponentsWithStats(dark, connectivity=4)
        areas = stats[1:, cv2.CC_STAT_AREA]
        fits = np.flatnonzero((areas > 0.05 * dark.size) & (areas < 0.6 * dark.size))
        for number in fits[np.argsort(-areas[fits])] + 1:
            x, y, w, h, _ = stats[number].tolist()
            inside = x > 0 and y > 0 and y + h < height
            within = 0.25 * height < centres[number][1] < 0.7 * height
            if inside and within and h > 0.25 * height and w > 0.3 * width:
                return names == number
    return None


def _around(mask: npt.NDArray[np.bool_]) -> Box | None:
    """The box that holds nearly all of ``mask``; single pixels far off do not count."""
    if not mask.any():
        return None
    edges = []
    for axis in (0, 1):
        share = np.cumsum(mask.sum(axis=axis, dtype=np.float64))
        share /= share[-1]
        first, last = np.searchsorted(share, (0.005, 0.995))
        edges.append((first / len(share), (last + 1) / len(share)))
    (x0, x1), (y0, y1) = edges
    return (float(x0), float(y0), float(x1), float(y1))
