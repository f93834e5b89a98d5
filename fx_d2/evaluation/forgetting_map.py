"""The picture of what is learned and forgotten: time downwards, a column per head."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from .forgetting import ScoreRow, known

_LABELS = 40  # rows named at most; more would lie over each other
_NUMBERS = 40  # rows in which scores are printed at most
_COLUMN, _PANEL_GAP = 0.5, 0.9  # inches


def draw_map(
    heads: Sequence[str],
    rows: Mapping[str, Sequence[ScoreRow]],
    titles: Sequence[str],
    metrics: Mapping[str, str] | None = None,
) -> bytes:
    """Draw scores as a PNG.

    Each task has colours of its own, from its lowest to its highest score: an AUC of 0.8 is little
    and an AP40 of 0.3 much. Outlined is what a row was trained on, grey what is not known.

    Args:
        heads: columns, ``source/task``.
        rows: {whose: its scores}, such as of student and teacher; drawn one above the other.
        titles: of the rows.
        metrics: {task: name of its figure}, for the titles.
    """
    tasks = list(dict.fromkeys(head.rpartition("/")[2] for head in heads))
    columns = {task: [h for h in heads if h.rpartition("/")[2] == task] for task in tasks}
    height = float(np.clip(0.24 * len(titles), 1.2, 14))
    width = 2.6 + _COLUMN * len(heads) + _PANEL_GAP * len(tasks)
    figure = Figure(figsize=(width, 1.6 + (height + 0.5) * len(rows)), layout="constrained")
    axes = figure.subplots(
        len(rows),
        len(tasks),
        squeeze=False,
        sharey=True,
        width_ratios=[len(columns[task]) + 0.6 for task in tasks],
    )
    for at, task in enumerate(tasks):
        values = {who: _table(columns[task], given) for who, given in rows.items()}
        low, high = _range(list(values.values()))
        for line, (who, table) in enumerate(values.items()):
            axis = axes[line, at]
            axis.set_facecolor("0.85")
            image = axis.imshow(
                np.ma.masked_invalid(table), aspect="auto", vmin=low, vmax=high, cmap="viridis"
            )
            _decorate(axis, table, (low, high), columns[task], rows[who])
            _name_rows(axis, titles, first=at == 0)
            if line == 0:
                axis.set_title(f"{task}: {(metrics or {}).get(task, 'score')}", fontsize=9)
            if at == 0:
                axis.set_ylabel(who, fontsize=10)
            is_bottom = line == len(rows) - 1
            axis.set_xticks(
                range(len(columns[task])),
                [h.rpartition("/")[0] for h in columns[task]] if is_bottom else [],
                rotation=90,
                fontsize=8,
            )
        bar = figure.colorbar(image, ax=list(axes[:, at]), aspect=40, pad=0.01)
        bar.ax.tick_params(labelsize=7)
    figure.suptitle("scores in %; outlined: trained just before; grey: not known", fontsize=8)
    buffer = io.BytesIO()
    # Without a date in it, equal scores give equal files.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _table(heads: Sequence[str], rows: Sequence[ScoreRow]) -> np.ndarray:
    """Table (rows, heads) of percentages, NaN where a score is not known."""
    table = np.full((len(rows), len(heads)), np.nan)
    for i, row in enumerate(rows):
        for j, head in enumerate(heads):
            value = known(row.scores, head)
            table[i, j] = np.nan if value is None else 100 * value
    return table


def _range(tables: Sequence[np.ndarray]) -> tuple[float, float]:
    values = np.concatenate([table[np.isfinite(table)] for table in tables])
    if not len(values):
        return 0.0, 100.0
    low, high = float(values.min()), float(values.max())
    return (low, high) if high > low else (low, low + 1)


def _decorate(
    axis: Axes,
    table: np.ndarray,
    limits: tuple[float, float],
    heads: Sequence[str],
    rows: Sequence[ScoreRow],
) -> None:
    """Outlines of what was trained, and numbers where there is room."""
    low, high = limits
    for i, row in enumerate(rows):
        for j, head in enumerate(heads):
            if head in row.trained:
                corner, line = (j - 0.5, i - 0.5), 1.5 if len(rows) <= _NUMBERS else 0.6
                axis.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=line))
            if len(rows) <= _NUMBERS and np.isfinite(table[i, j]):
                bright = (table[i, j] - low) / (high - low) > 0.6
                text = f"{table[i, j]:.0f}"
                colour = "black" if bright else "white"
                axis.text(j, i, text, ha="center", va="center", fontsize=7, color=colour)


def _name_rows(axis: Axes, titles: Sequence[str], *, first: bool) -> None:
    step = -(-len(titles) // _LABELS)
    places = list(range(0, len(titles), step))
    axis.set_yticks(places, [titles[i] for i in places], fontsize=7)
    axis.tick_params(axis="y", labelleft=first)
