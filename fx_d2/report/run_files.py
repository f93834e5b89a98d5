"""What a training run left in its folder, read back without trusting it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fx_d2.data.errors import DataError
from fx_d2.evaluation.results import FORMAT as RESULTS_FORMAT

METRICS, LOG, RESULTS, FORGETTING = "metrics.json", "log.txt", "results.json", "forgetting"
_LOSS = "total_loss"
_MAX_BYTES = 1 << 28  # of a file that is read as a whole
# What LockReleaseHook logs when a phase begins.
_PHASE = re.compile(
    r"iteration (\d+): cycle (\d+), slot \d+ of \d+, ([^\s/]+)/(\w+) (.+), share [\d.e+-]+ in "
    r"\d+ iterations; trains "
)


@dataclass(frozen=True)
class Span:
    """Iterations of one phase of a cycle.

    Args:
        first, last: both inclusive.
        source, task: what was trained.
        name: of the phase, such as ``lock``.
        cycle: from 1.
    """

    first: int
    last: int
    source: str
    task: str
    name: str
    cycle: int


@dataclass(frozen=True)
class Curves:
    """Figures over iterations; a figure that is no number is left out.

    Args:
        rows: {iteration: {name: figure}}, in order.
        spans: phases in their order; none in joint training.
    """

    rows: Mapping[int, Mapping[str, float]]
    spans: Sequence[Span]

    def series(self, name: str) -> list[tuple[int, float]]:
        """(iteration, figure) of one name."""
        return [(at, row[name]) for at, row in self.rows.items() if name in row]

    def names(self) -> set[str]:
        """All figures there are."""
        return {name for row in self.rows.values() for name in row}

    @property
    def length(self) -> int:
        """Iterations so far; an evaluation at the end stands one behind them."""
        return _last_step(self.rows) + 1


def read_curves(folder: Path) -> Curves:
    """The curves of a run, also of one that goes on; without ``metrics.json`` there are none."""
    rows: dict[int, dict[str, float]] = {}
    if (folder / METRICS).is_file():
        with (folder / METRICS).open(encoding="utf-8", errors="replace") as file:
            rows = _rows(file)
    spans: list[Span] = []
    if (folder / LOG).is_file():
        with (folder / LOG).open(encoding="utf-8", errors="replace") as file:
            spans = _spans(file, _last_step(rows))
    return Curves(dict(sorted(rows.items())), spans)


def _last_step(rows: Mapping[int, Mapping[str, float]]) -> int:
    return max((at for at, row in rows.items() if _LOSS in row), default=-1)


def _rows(lines: Iterable[str]) -> dict[int, dict[str, float]]:
    """A resumed run writes an iteration again, and what is written later holds."""
    rows: dict[int, dict[str, float]] = {}
    for line in lines:
        try:
            found = json.loads(line)
            at = int(found.pop("iteration"))
        except (ValueError, TypeError, KeyError, AttributeError):
            continue  # the last line of a run that was killed
        kept = rows.setdefault(at, {})
        for name, value in found.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                kept[name] = float(value)
    return rows


def _spans(lines: Iterable[str], last: int) -> list[Span]:
    """Phases up to iteration ``last``; a resumed run may enter one in its middle."""
    begun: dict[int, tuple[str, str, str, int]] = {}
    for line in lines:
        found = _PHASE.search(line)
        if found is None:
            continue
        at, cycle, source, task, name = found.groups()
        if int(at) == 0:  # another run in the same folder
            begun.clear()
        begun[int(at)] = (source, task, name, int(cycle))
    return list(_joined(sorted(begun.items()), last))


def _joined(begun: Sequence[tuple[int, tuple[str, str, str, int]]], last: int) -> Iterator[Span]:
    starts = [(at, what) for i, (at, what) in enumerate(begun) if i == 0 or begun[i - 1][1] != what]
    for number, (first, (source, task, name, cycle)) in enumerate(starts):
        end = starts[number + 1][0] - 1 if number + 1 < len(starts) else last
        if first <= last:
            yield Span(first, min(end, last), source, task, name, cycle)


def read_results(folder: Path) -> dict[str, Any] | None:
    """``results`` and ``notes`` of the last evaluation of a run; None where there was none.

    Raises:
        DataError: the file is none of this package.
    """
    body = _json(folder / RESULTS)
    if body is None:
        return None
    try:
        if body["format"] != RESULTS_FORMAT:
            raise ValueError(f"format {body['format']!r}")
        figures = {
            str(head): {str(k): float(v) for k, v in found.items()}
            for head, found in body["results"].items()
        }
        notes = {str(head): dict(found) for head, found in (body.get("notes") or {}).items()}
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise _unreadable(folder / RESULTS, exc) from exc
    return {"results": figures, "notes": notes}


def read_forgetting(folder: Path) -> tuple[bytes, dict[str, dict[str, float]]] | None:
    """The map as PNG and its means by model; None where heads were not scored in training."""
    picture = folder / f"{FORGETTING}.png"
    body = _json(folder / f"{FORGETTING}.json")
    if body is None or not picture.is_file():
        return None
    try:
        summary = {
            str(who): {k: float(v) for k, v in found.items() if isinstance(v, (int, float))}
            for who, found in body["summary"].items()
        }
    except (ValueError, TypeError, KeyError, AttributeError) as exc:
        raise _unreadable(folder / f"{FORGETTING}.json", exc) from exc
    if picture.stat().st_size > _MAX_BYTES:
        raise _unreadable(picture, ValueError("too large"))
    return picture.read_bytes(), summary


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    if path.stat().st_size > _MAX_BYTES:
        raise _unreadable(path, ValueError("too large"))
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: Exception) -> DataError:
    return DataError(
        f"cannot be read as what a run writes ({' '.join(str(exc).split())[:80]})",
        file=path,
        fix="move the file away, or evaluate again with tools/train_net.py --eval-only",
    )
