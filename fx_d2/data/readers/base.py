"""What every reader needs: its request, files that must exist, boxes that must fit, counts."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import DataError, ReadReport
from ..source import Source
from ..tree import walk_files
from .tables import (
    BINARY_CELLS,
    LABEL_CELLS,
    RESTORE_FILE,
    bad_cell,
    checked_labels,
    line_of,
    number,
    read_table,
    reject,
)

__all__ = [
    "BINARY_CELLS",
    "LABEL_CELLS",
    "MAX_SIDE_PX",
    "RESTORE_FILE",
    "ReadRequest",
    "bad_cell",
    "checked_labels",
    "counted",
    "files_in",
    "find_file",
    "fit_box",
    "index_by_stem",
    "line_of",
    "missing_image",
    "number",
    "read_json",
    "read_lines",
    "read_table",
    "reject",
    "relative_name",
    "view_filter",
    "warn_counts",
]


@dataclass
class ReadRequest:
    """What is to be read.

    Args:
        root: the source's own folder.
        part: a published part of the source (the name in its row's ``splits``).
        source: the row.
        report: collects skips and soft checks.
        options: the row's options, overridden by the config.
    """

    root: Path
    part: str
    source: Source
    report: ReadReport = field(default_factory=ReadReport)
    options: Mapping[str, Any] = field(default_factory=dict)

    def option(self, name: str, default: Any = None) -> Any:
        """An option of this request, else of the row, else ``default``."""
        return self.options.get(name, self.source.options.get(name, default))


def find_file(root: Path, *candidates: str, what: str, fix: str | None = None) -> Path:
    """The first of ``candidates`` (relative to ``root``) that exists.

    Otherwise a :class:`DataError` that tells what is there.
    """
    for candidate in candidates:
        path = root / candidate
        if path.exists():
            return path
    try:
        there = sorted(entry.name for entry in os.scandir(root))[:12]
    except OSError:
        raise DataError(
            f"no folder for {what}",
            file=root,
            fix=fix
            or "put the dataset there, or set DETECTRON2_DATASETS to the folder that holds it",
        ) from None
    near = difflib.get_close_matches(Path(candidates[0]).name, there, n=1, cutoff=0.7)
    raise DataError(
        f"{what} not found" + (f" (is it {near[0]!r}?)" if near else f"; the folder holds {there}"),
        file=root / candidates[0],
        expected=" or ".join(candidates),
        fix=fix or "see datasets/README.md for the tree this source must have",
    )


def read_json(path: Path, kind: type) -> Any:
    """Parse a JSON file whose top level must be ``kind`` (``dict`` or ``list``)."""
    fix = RESTORE_FILE
    try:
        body = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as exc:
        raise DataError(f"cannot be read ({exc.strerror})", file=path, fix=fix) from exc
    except UnicodeDecodeError as exc:
        raise DataError(f"not UTF-8 text (byte {exc.start})", file=path, fix=fix) from exc
    except (ValueError, RecursionError) as exc:
        raise DataError(f"not JSON ({exc})", file=path, fix=fix) from exc
    if not isinstance(body, kind):
        raise DataError(
            f"top level is a {type(body).__name__}",
            file=path,
            expected=f"a {kind.__name__}",
            fix=fix,
        )
    return body


def read_lines(path: Path) -> list[str]:
    """The non-blank lines of a text file, stripped."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as exc:
        raise DataError(
            f"cannot be read as text ({exc})",
            file=path,
            expected="a UTF-8 list, one entry per line",
            fix=RESTORE_FILE,
        ) from exc
    return [line.strip() for line in text.splitlines() if line.strip()]


def index_by_stem(
    root: Path, suffixes: Sequence[str], *, full_name: bool = False
) -> dict[str, str]:
    """All files below ``root`` with one of ``suffixes``, by stem (or by name); one directory walk.

    Hidden files (macOS ``._*``) are passed over; a name that occurs twice keeps the first path in
    sorted order.
    """
    found: dict[str, str] = {}
    wanted = tuple(s.lower() for s in suffixes)
    for folder, names in walk_files(root):
        for name in names:
            if name.lower().endswith(wanted):
                key = name if full_name else Path(name).stem
                found.setdefault(key, os.path.join(folder, name))
    return found


def files_in(folder: Path, suffixes: Sequence[str]) -> dict[str, str]:
    """The files directly in ``folder`` with one of ``suffixes``, by stem, in order of name.

    Hidden files (macOS ``._*``) are passed over; of several files with one stem, the suffix named
    first wins.
    """
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if not entry.is_dir())
    except OSError as exc:
        raise DataError(
            f"cannot be listed ({exc.strerror})",
            file=folder,
            expected="a folder",
            fix="restore the folder from the original download",
        ) from exc
    ranks = {suffix.lower(): rank for rank, suffix in enumerate(suffixes)}
    found: dict[str, tuple[int, str]] = {}
    for name in names:
        stem, suffix = os.path.splitext(name)
        rank = ranks.get(suffix.lower())
        if rank is None or name.startswith("."):
            continue
        if stem not in found or rank < found[stem][0]:
            found[stem] = (rank, os.path.join(folder, name))
    return {stem: path for stem, (_, path) in found.items()}


def relative_name(name: object, *, file: Path, row: int | str) -> str:
    """A file name from an index, which must stay below the source's folder: files are untrusted."""
    if (
        not isinstance(name, str)
        or not name
        or "\\" in name
        or "\0" in name
        or name.startswith("/")
        or ".." in name.split("/")
    ):
        raise DataError(
            f"file name {name!r}",
            file=file,
            row=row,
            expected="a path below the source's folder",
            fix="restore this row from the original file",
        )
    return name


def missing_image(name: str, *, file: Path, row: int | str, folder: Path) -> DataError:
    """The error for an index row whose image is not on disk."""
    return DataError(
        f"image {name!r} is not below {folder}",
        file=file,
        row=row,
        expected="every image of the index on disk",
        fix="complete the download, or let DATASETS.ON_ERROR be 'skip' to go on without it",
    )


MAX_SIDE_PX = 32_768  # no radiograph is larger; a number beyond is no coordinate


def fit_box(
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    *,
    frame: tuple[int, int] | None,
    file: Path,
    row: int | str,
) -> list[float]:
    """A box as ``[x0, y0, x1, y1]``, at most 1 px of it cut off at ``frame`` (height, width).

    Annotation tools round; more than that, or a box without area, is another convention or another
    image.
    """
    wide, high = (MAX_SIDE_PX, MAX_SIDE_PX) if frame is None else (frame[1], frame[0])
    box = [max(x0, 0.0), max(y0, 0.0), min(x1, wide), min(y1, high)]
    outside = max(-x0, -y0, x1 - wide, y1 - high)
    if outside > 1 or not (box[2] > box[0] and box[3] > box[1]):
        what = "leaves the image" if outside > 1 else "has no area"
        raise DataError(
            f"box (x0, y0, x1, y1) = {[float(x0), float(y0), float(x1), float(y1)]} {what}",
            file=file,
            row=row,
            expected="x1 > x0, y1 > y0" + f", within {wide} x {high} (width x height)",
            fix="check the box convention and that table and images are of one release",
        )
    return box


def view_filter(request: ReadRequest) -> Callable[[str | None], bool]:
    """Whether a view is wanted: option ``views`` lists them, None takes all.

    An image whose view is unknown stays.
    """
    views = request.option("views")
    if views is None:
        return lambda view: True
    wanted = frozenset([views] if isinstance(views, str) else views)
    return lambda view: view is None or view in wanted


def counted(request: ReadRequest, records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pass ``records`` on and, at the end, compare images and boxes with the published figures."""
    images = boxes = positive = 0
    for record in records:
        images += 1
        boxes += len(record.get("annotations", ()))
        positive += bool(len(record.get("labels", ())) == 1 and record["labels"][0] == 1)
        yield record
    warn_counts(request, images=images, boxes=boxes, positive=positive)


def warn_counts(request: ReadRequest, **counts: int) -> None:
    """Soft-check ``counts`` (``images=...``) of the part against the row's published figures."""
    if not request.report.published_counts:
        return
    for name, value in counts.items():
        expected = request.source.expected.get(f"{request.part}/{name}")
        if expected is not None:
            request.report.soft(
                f"{request.source.key} {request.part}/{name}", found=value, expected=expected
            )
