"""A synthetic world: every source in its vendor's layout, and the truth of every image beside it.

The bytes of a source depend on (seed, patients, size_px) alone: not on which other sources are
written, nor on the number of workers. A family of sources that share files (VinDr-CXR and
CheXmask, MIMIC and CXR-LT) is written to a temporary folder and moved into place when it is
complete, so that an interrupted run can simply be called again.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fx_d2.data.processes import worker_pool
from fx_d2.data.sources import SOURCES, get_source
from fx_d2.phantom.writers import WRITERS, Entry, Job, Member, Writer, writers_of

FORMAT = "fx_d2 phantom 1"
VERSION = 1  # raised when the same seed gives other bytes than before
MARK = "PHANTOM.json"
TRUTH = "_truth"
_PARTIAL = ".partial-"
MIN_PATIENTS = 3  # three published parts need three patients
FULL_PATIENTS = 9  # fewer leave a validation split of some source empty
MIN_SIZE_PX = 64

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


class WorldError(ValueError):
    """The folder cannot become, or is not, the world asked for; the message is one line."""


@dataclass(frozen=True)
class Parameters:
    """What fixes the bytes of a world."""

    seed: int
    patients: int
    size_px: int | None

    def check(self) -> None:
        """Refuse values no world can be made of."""
        if self.patients < MIN_PATIENTS:
            raise WorldError(f"patients is {self.patients}; at least {MIN_PATIENTS} are needed")
        if self.size_px is not None and self.size_px < MIN_SIZE_PX:
            raise WorldError(f"size_px is {self.size_px}; at least {MIN_SIZE_PX} are needed")


def make_world(
    out: str | os.PathLike[str],
    *,
    patients: int,
    seed: int,
    sources: Sequence[str] | None = None,
    size_px: int | None = None,
    workers: int = 1,
    force: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Write a world, or complete one that was begun with the same parameters.

    Args:
        out: its folder: new, empty, or a world of the same seed, patients and size_px.
        patients: per source, each with one or more images. From `FULL_PATIENTS` on, every
            registered split has images.
        seed: same seed, same bytes.
        sources: keys; all by default. Sources that share files come together.
        size_px: detail. Images of sources without a fixed size have about this shorter side;
            images of a fixed frame keep it and are rendered with at least this detail.
            None: native sizes.
        workers: processes.
        force: replace a world of other parameters, and rewrite families that are complete.
        progress: wraps an iterable of patients as ``progress(iterable, family, total)``.

    Returns:
        The keys of the sources written now (those that stood already are left out).
    """
    for key in sources or ():
        get_source(key)
    parameters = Parameters(seed, patients, size_px)
    parameters.check()
    writers = writers_of(sources)
    root = Path(out)
    done = _prepare(root, parameters, force=force)
    written: list[str] = []
    try:
        with _pool(workers) as pool:
            for writer in writers:
                if set(writer.keys) <= done and not force:
                    continue
                _refuse_foreign(root, writer, done, force=force)
                _write_family(root, writer, parameters, pool, progress)
                done |= set(writer.keys)
                _write_mark(root, parameters, done)
                written += writer.keys
    finally:  # workers that still wrote when the folder was removed have ended now
        _remove(root, [path.name for path in root.glob(f"{_PARTIAL}*")])
    return written


def read_mark(root: str | os.PathLike[str]) -> dict[str, Any] | None:
    """The content of ``PHANTOM.json``, None when the folder is no phantom world."""
    try:
        body = json.loads((Path(root) / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return body if isinstance(body, dict) and body.get("format") == FORMAT else None


def read_truth(root: str | os.PathLike[str], key: str) -> list[dict[str, Any]]:
    """The truth of every image of a source."""
    path = Path(root) / TRUTH / f"{key}.jsonl"
    with path.open(encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def _prepare(root: Path, parameters: Parameters, *, force: bool) -> set[str]:
    """Make ``root`` ready and return the sources that stand already."""
    if root.exists() and not root.is_dir():
        raise WorldError(f"{root} is a file; name a folder")
    mark = read_mark(root)
    if mark is None:
        if root.exists() and any(root.iterdir()):
            raise WorldError(f"{root} is not empty and no phantom world; name another folder")
        root.mkdir(parents=True, exist_ok=True)
        _write_mark(root, parameters, set())
        return set()
    same = {name: mark.get(name) for name in ("seed", "patients", "size_px", "version")}
    if same == {**vars(parameters), "version": VERSION}:
        _remove(root, [p.name for p in root.glob(f"{_PARTIAL}*")])
        return {key for key in mark.get("sources", ()) if key in SOURCES}
    if not force:
        had = ", ".join(f"{name} {value}" for name, value in same.items())
        raise WorldError(f"{root} holds another world ({had}); name another folder or use force")
    ours = [folder for writer in WRITERS for folder in writer.folders]
    _remove(root, [*ours, TRUTH, *(p.name for p in root.glob(f"{_PARTIAL}*"))])
    _write_mark(root, parameters, set())
    return set()


def _refuse_foreign(root: Path, writer: Writer, done: set[str], *, force: bool) -> None:
    """A folder that the mark does not list may be the user's own data: never delete it unasked."""
    found = [folder for folder in writer.folders if (root / folder).exists()]
    if found and not set(writer.keys) <= done and not force:
        raise WorldError(
            f"{root / found[0]} is there, but this world did not write it: move it, or use force"
        )


def _remove(root: Path, names: Iterable[str]) -> None:
    for name in names:
        if (root / name).exists():
            shutil.rmtree(root / name)


def _write_mark(root: Path, parameters: Parameters, done: set[str]) -> None:
    body = {"format": FORMAT, **vars(parameters)}
    body.update(sources=[key for key in SOURCES if key in done], version=VERSION)
    temporary = root / f"{MARK}.tmp"
    temporary.write_text(json.dumps(body, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, root / MARK)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor | None]:
    if workers <= 1:
        yield None
        return
    with worker_pool(workers) as pool:
        yield pool


def _write_family(
    root: Path,
    writer: Writer,
    parameters: Parameters,
    pool: ProcessPoolExecutor | None,
    progress: Progress | None,
) -> None:
    """Write one family beside its place, then move it there."""
    beside = Path(tempfile.mkdtemp(prefix=f"{_PARTIAL}{writer.family}-", dir=root))
    try:
        job = Job(beside, writer.family, parameters.seed, parameters.patients, parameters.size_px)
        members = list(writer.members(parameters.patients))
        task = partial(_write_member, writer.family, job)
        results: Iterable[list[Entry]] = (pool.map if pool else map)(task, members)  # type: ignore[operator]
        if progress is not None:
            results = progress(results, writer.family, len(members))
        (beside / TRUTH).mkdir()
        entries = list(_split_off_truth(results, beside / TRUTH, writer.keys))
        writer.write_index(job, entries)
        _move_into_place(root, beside, writer)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write_member(family: str, job: Job, member: Member) -> list[Entry]:
    writer = next(w for w in WRITERS if w.family == family)
    return writer.write_patient(job, member)


def _split_off_truth(
    results: Iterable[list[Entry]], folder: Path, keys: Sequence[str]
) -> Iterator[Entry]:
    """Write truth as it comes, so that a large world does not hold all its masks in memory."""
    streams = {}
    try:
        for key in keys:
            streams[key] = (folder / f"{key}.jsonl").open("w", encoding="utf-8")
        for entries in results:
            for entry in entries:
                for key, row in entry.truth.items():
                    streams[key].write(json.dumps(row, separators=(",", ":")) + "\n")
                yield Entry(entry.part, entry.row)
    finally:
        for stream in streams.values():
            stream.close()


def _move_into_place(root: Path, beside: Path, writer: Writer) -> None:
    """Folders first, truth last; the mark that the caller writes makes the family complete."""
    for folder in writer.folders:
        if (root / folder).exists():
            shutil.rmtree(root / folder)
        os.replace(beside / folder, root / folder)
    (root / TRUTH).mkdir(exist_ok=True)
    for key in writer.keys:
        os.replace(beside / TRUTH / f"{key}.jsonl", root / TRUTH / f"{key}.jsonl")
