"""What the folder of a run of a study says about it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fx_d2.data.atomic import write_atomically
from fx_d2.data.errors import DataError

from .setup import ConfigError
from .study import leaves
from .study_plan import Job

FORMAT = "fx_d2 study run 1"
STATE, LOG = "study_run.json", "log"
DONE, BEGUN, NEW, OTHER = "done", "begun", "to do", "other settings"
_LOCK = ".lock"
_TAIL_BYTES = 8192


def state_of(job: Job) -> str:
    """What is there of a run: ``done``, ``begun``, ``to do`` or ``other settings``."""
    found = _read_state(job.folder)
    if found is None:
        return NEW
    if found.get("fingerprint") != job.fingerprint:
        return OTHER
    return DONE if found.get("done") and result_of(job).is_file() else BEGUN


def result_of(job: Job) -> Path:
    """The file that a finished run leaves."""
    return job.folder / ("results.json" if job.then is None else "few_shot.json")


def seconds_of(job: Job) -> float:
    """How long a run has taken so far, evaluations included."""
    return float((_read_state(job.folder) or {}).get("seconds", 0.0))


def _read_state(folder: Path) -> dict[str, Any] | None:
    """None where no run was begun; empty where what says so cannot be read."""
    file = folder / STATE
    if not file.is_file():
        # A run that somebody made by hand has no state, and is not ours to go on with.
        return {} if (folder / "config.yaml").is_file() else None
    try:
        found = json.loads(file.read_text("utf-8"))
        return dict(found) if found["format"] == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def check_folders(jobs: Sequence[Job]) -> None:
    """Raise for the first folder that holds a run of other settings."""
    for job in jobs:
        if state_of(job) != OTHER:
            continue
        there = dict(leaves((_read_state(job.folder) or {}).get("settings") or {}))
        now = dict(leaves(job.key))
        names = [k for k in {**now, **there} if there.get(k, "not set") != now.get(k, "not set")]
        said = "; its settings are not known"
        if there and names:
            was, is_now = (str(d.get(names[0], "not set"))[:60] for d in (there, now))
            said = f": {names[0]} was {was}, the study says {is_now}"
            said += f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise ConfigError(
            f"{job.folder} is a run of other settings{said}. Name another --out, or remove it"
        )


def note(job: Job, seconds: float, *, done: bool) -> None:
    """Write down where a run stands; ``seconds`` are those of all attempts."""
    about = {
        "format": FORMAT,
        "fingerprint": job.fingerprint,
        "seconds": round(seconds, 1),
        "done": done,
        "settings": job.key,
    }
    write_atomically(job.folder / STATE, json.dumps(about, indent=1) + "\n")


def last_line(file: Path) -> str:
    """The last line with something in it; ``""`` without one."""
    try:
        with open(file, "rb") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            text = stream.read(_TAIL_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return lines[-1] if lines else ""


@contextmanager
def locked(out: Path) -> Iterator[int]:
    """One study at a time in a folder; the lock goes with its last process.

    Yields:
        The descriptor to hand to the processes that write there.
    """
    out.mkdir(parents=True, exist_ok=True)
    with open(out / _LOCK, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            raise DataError(
                "a study or a run of it is at work in this folder",
                file=out,
                fix="wait for it, or end it first",
            ) from exc
        yield file.fileno()
