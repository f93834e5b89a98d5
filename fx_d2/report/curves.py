"""Loss and learning rate over a run as one picture, with the phases of the cycle shaded."""

from __future__ import annotations

import io
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fx_d2.data.source import TASKS

from .run_files import Curves, Span

COLOURS = {"cls": "#1f77b4", "loc": "#d9730d", "seg": "#2a9d5c"}
_OTHER = "#666666"
_LOCK, _RELEASE = 0.42, 0.13  # opacity of the shade
_MAX_SPANS = 3000  # more are narrower than a pixel
_WINDOW = 15  # points of a running median


def draw_curves(curves: Curves, *, width_in: float = 11.0) -> bytes:
    """A PNG: a panel per trained task, one of the consistency loss, one of the learning rate.

    A point is the loss of one source: sources differ, so the line is a running median. Shaded are
    the phases: all in the panel of the rate, those of its task in a panel of losses.

    Args:
        curves: of :func:`fx_d2.report.run_files.read_curves`.
        width_in: of the picture, at 110 dpi.

    Raises:
        ValueError: there is nothing to draw.
    """
    panels = _panels(curves)
    if not panels:
        raise ValueError("the run has written no losses yet")
    figure = Figure(figsize=(width_in, 1.75 * len(panels) + 0.6), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axis, (title, task, points) in zip(axes, panels, strict=True):
        _draw_points(axis, points, COLOURS.get(task, _OTHER), smooth=title != "learning rate")
        mine = [span for span in curves.spans if task not in COLOURS or span.task == task]
        _shade(axis, mine)
        axis.set_ylabel(title, fontsize=9)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        axis.margins(x=0.005)
    if panels[-1][0] == "learning rate":
        axes[-1].ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    _mark_cycles(axes, curves.spans)
    axes[-1].set_xlabel("iteration", fontsize=9)
    _legend(figure, curves.spans)
    buffer = io.BytesIO()
    # Without a date in it, equal curves give equal files.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


_Points = list[tuple[int, float]]


def _panels(curves: Curves) -> list[tuple[str, str, _Points]]:
    """(title, task or "", points) of every panel."""
    names = sorted(curves.names())
    panels = []
    for task in TASKS:
        found = [n for n in names if n.startswith("total/") and n.endswith(f"/{task}")]
        points = sorted(point for name in found for point in curves.series(name))
        if points:
            panels.append((f"loss {task}", task, points))
    if not panels and "total_loss" in names:
        panels.append(("loss", "", curves.series("total_loss")))
    for name, title in (("loss_consistency", "consistency"), ("lr", "learning rate")):
        points = curves.series(name)
        if points:
            panels.append((title, "", points))
    return panels


def _draw_points(axis: Axes, points: _Points, colour: str, *, smooth: bool) -> None:
    x, y = zip(*points, strict=True)
    if not smooth:
        axis.plot(x, y, color=colour, linewidth=1.3)
        return
    axis.plot(x, y, ".", color=colour, markersize=3.5, alpha=0.45)
    axis.plot(x, running_median(y), color=colour, linewidth=1.5)
    axis.set_ylim(*_limits(y))


def running_median(values: Sequence[float], window: int = _WINDOW) -> list[float]:
    """The median of ``window`` values around each.

    Towards the ends fewer, as many on either side: a steep beginning stays one.
    """
    half, last = window // 2, len(values) - 1
    reach = (min(half, i, last - i) for i in range(len(values)))
    return [statistics.median(values[i - r : i + r + 1]) for i, r in enumerate(reach)]


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Without the few values that would press all others to the ground."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[min(len(ordered) - 1, int(0.98 * len(ordered)))]
    margin = 0.08 * (high - low) or 0.5 * abs(high) or 1.0
    return low - margin, high + margin


def _shade(axis: Axes, spans: Sequence[Span]) -> None:
    if len(spans) > _MAX_SPANS:
        return
    for task, colour in COLOURS.items():
        for locked, opacity in ((True, _LOCK), (False, _RELEASE)):
            mine = [
                (s.first - 0.5, s.last - s.first + 1)
                for s in spans
                if s.task == task and is_lock(s) == locked
            ]
            if mine:
                axis.broken_barh(
                    mine,
                    (0, 1),
                    transform=axis.get_xaxis_transform(),
                    facecolors=colour,
                    alpha=opacity,
                    linewidth=0,
                    zorder=0,
                )


def is_lock(span: Span) -> bool:
    """Whether a phase has the name of one in which the trunk is locked."""
    return "lock" in span.name


def _mark_cycles(axes: Sequence[Axes], spans: Sequence[Span]) -> None:
    starts = [b.first for a, b in zip(spans, spans[1:], strict=False) if b.cycle != a.cycle]
    if len(starts) > _MAX_SPANS:
        return
    for axis in axes:
        for at in starts:
            axis.axvline(at - 0.5, color="black", linewidth=0.7, alpha=0.5, zorder=1)


def _legend(figure: Figure, spans: Sequence[Span]) -> None:
    kinds = {(span.task, is_lock(span)) for span in spans}
    handles = [
        Patch(
            facecolor=colour,
            alpha=_LOCK if locked else _RELEASE,
            label=f"{task} {'lock' if locked else 'release'}",
        )
        for task, colour in COLOURS.items()
        for locked in (True, False)
        if (task, locked) in kinds
    ]
    if handles:
        place = {"loc": "outside upper center", "ncols": len(handles)}
        figure.legend(handles=handles, fontsize=8, frameon=False, **place)
