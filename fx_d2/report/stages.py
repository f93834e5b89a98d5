"""Work in stages that tell how long they take, and that a second call does not repeat."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fx_d2.command_line import WrongUse
from fx_d2.data.atomic import write_atomically

FORMAT = "fx_d2 stages 1"
DONE, BEGUN, NEW, OTHER = "done", "begun", "to do", "other settings"


@dataclass(frozen=True)
class Stage:
    """A part of the work.

    Args:
        name: short, for the state.
        words: what is done, for people.
        expected_s: how long it takes on two idle cores; None where nobody knows.
        settings: all that decides about its outcome; JSON values.
        work: does it; interrupted and called again it goes on.
        there: whether its outcome still lies where it was put.
        after: stages whose new outcome makes this one's stale.
        holds: a folder that must not be mixed with one of other settings.
    """

    name: str
    words: str
    expected_s: float | None
    settings: Mapping[str, Any]
    work: Callable[[], None]
    there: Callable[[], bool]
    after: tuple[str, ...] = ()
    holds: Path | None = None

    def mark(self) -> str:
        """Of its settings."""
        body = json.dumps(self.settings, sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()


def run_stages(
    stages: Sequence[Stage], state_file: Path, tell: Callable[[str], None]
) -> dict[str, float]:
    """Do what is not done yet, in order.

    Args:
        stages: with different names.
        state_file: where it stands what is done, and how long it took.
        tell: hears of every stage before and after it.

    Returns:
        Seconds of each stage, those of interrupted attempts included.

    Raises:
        WrongUse: the outcome of other settings is in the way; nothing was done then.
    """
    state = _read(state_file)
    for stage in stages:
        known = state.get(stage.name)
        same = known is not None and known["mark"] == stage.mark()
        if stage.holds is not None and stage.holds.exists() and not same:
            raise WrongUse(
                f"{stage.holds} was made with other settings; name another folder, or remove it"
            )
    done = _done(stages, state)
    left_s = sum(stage.expected_s or 0.0 for stage in stages if not done[stage.name])
    told = all(stage.expected_s is not None for stage in stages)
    for number, stage in enumerate(stages, 1):
        place = f"[{number}/{len(stages)}] {stage.words}"
        if done[stage.name]:
            tell(f"{place}: done before, in {duration(state[stage.name]['seconds'])}")
            continue
        if told:
            own_s = stage.expected_s or 0.0
            place += f": about {duration(own_s)} (about {duration(left_s)} to the end)"
            left_s -= own_s
        tell(place)
        spent = _work(stage, state, state_file)
        tell(f"      took {duration(spent)}")
    return {stage.name: state[stage.name]["seconds"] for stage in stages}


def seconds_of(state_file: Path) -> dict[str, float]:
    """Seconds of each stage so far."""
    return {name: found["seconds"] for name, found in _read(state_file).items()}


def states_of(stages: Sequence[Stage], state_file: Path) -> dict[str, str]:
    """``done``, ``begun``, ``to do``, or ``other settings`` of each stage."""
    state = _read(state_file)
    done = _done(stages, state)
    found = {}
    for stage in stages:
        known = state.get(stage.name)
        words = DONE if done[stage.name] else NEW
        if known is not None and known["mark"] != stage.mark():
            words = OTHER
        elif known is not None and not known["done"]:
            words = BEGUN
        found[stage.name] = words
    return found


def _done(stages: Sequence[Stage], state: Mapping[str, Any]) -> dict[str, bool]:
    """Whether nothing is to be done, by its name; what follows something new is done anew."""
    done = {stage.name: _is_done(stage, state) for stage in stages}
    for stage in stages:
        done[stage.name] &= all(done.get(name, True) for name in stage.after)
    return done


def _is_done(stage: Stage, state: Mapping[str, Any]) -> bool:
    known = state.get(stage.name)
    return bool(known and known["done"] and known["mark"] == stage.mark() and stage.there())


def _work(stage: Stage, state: dict[str, Any], state_file: Path) -> float:
    """Do it and note it, also when it is interrupted."""
    known = state.get(stage.name)
    begun = known is not None and known["mark"] == stage.mark() and not known["done"]
    before = known["seconds"] if known is not None and begun else 0.0
    start, finished = time.monotonic(), False
    state[stage.name] = {"mark": stage.mark(), "done": False, "seconds": before}
    _write(state, state_file)
    try:
        stage.work()
        finished = True
    finally:
        spent = time.monotonic() - start
        state[stage.name] |= {"done": finished, "seconds": before + spent}
        _write(state, state_file)
    return spent


def _read(file: Path) -> dict[str, Any]:
    """What is done; nothing where the file is missing or none of ours."""
    try:
        body = json.loads(file.read_text("utf-8"))
        if body["format"] != FORMAT:
            return {}
        return {
            str(name): {
                "mark": str(found["mark"]),
                "done": bool(found["done"]),
                "seconds": float(found["seconds"]),
            }
            for name, found in body["stages"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(state: Mapping[str, Any], file: Path) -> None:
    write_atomically(file, json.dumps({"format": FORMAT, "stages": state}, indent=1) + "\n")


def duration(seconds: float) -> str:
    """``48 s``, ``3 min 5 s``, ``2 h 10 min``."""
    whole = max(0, round(seconds))
    if whole < 90:
        return f"{whole} s"
    if whole < 5400:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
