"""The table of sources in ``datasets/README.md``, made from the rows.

``python -m fx_d2.data.source_table`` prints it; with ``--write`` it replaces the one in the file.
A test compares the two, so that a row and its documentation cannot part.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from .atomic import write_atomically
from .source import Source
from .sources import SOURCES

BEGIN = "<!-- begin: made by python -m fx_d2.data.source_table --write -->"
END = "<!-- end -->"
_HEADER = ("source", "dataset", "folder", "tasks (classes)", "images", "splits", "licence")
_README = Path(__file__).resolve().parents[2] / "datasets" / "README.md"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _tasks(source: Source) -> str:
    """``cls (14), loc (8, on disk)``: a task that has no head by default is marked."""
    return ", ".join(
        f"{task} ({len(source.classes(task))}{'' if task in source.tasks else ', on disk'})"
        for task in source.all_tasks()
    )


def _images(source: Source) -> str:
    counts = [n for name, n in source.expected.items() if name.endswith("/images")]
    return f"{sum(counts):,}"


def _splits(source: Source) -> str:
    """Names of the splits; a star marks those that are cut patient-wise by fx_d2."""
    return ", ".join(
        split + ("*" if (part.low, part.high) != (0.0, 1.0) else "")
        for split, part in source.splits.items()
    )


def _row(source: Source) -> tuple[str, ...]:
    title = f"[{source.title}](https://{source.homepage})"
    if source.paper_id:
        title += f" {source.paper_id}"
    return (
        f"[`{source.key}`](#{source.key})",
        title,
        f"`{source.folder}`",
        _tasks(source),
        _images(source),
        _splits(source),
        f"{source.licence}; {source.access}",
    )


def source_table() -> str:
    """The table as Markdown, its two markers included."""
    lines = [BEGIN, "", f"| {' | '.join(_HEADER)} |", "|---" * len(_HEADER) + "|"]
    lines += [f"| {' | '.join(map(_cell, _row(source)))} |" for source in SOURCES.values()]
    lines += ["", "Please cite what you use:", ""]
    lines += [f"- `{source.key}`: {source.citation}" for source in SOURCES.values()]
    return "\n".join([*lines, "", END])


def committed_table(path: Path = _README) -> str:
    """The table that stands in ``path``, its two markers included."""
    text = path.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise ValueError(f"{path} needs the lines {BEGIN!r} and {END!r} once each")
    return text[text.index(BEGIN) : text.index(END) + len(END)]


def write_table(path: Path = _README) -> None:
    """Replace the table in ``path``, atomically."""
    text = path.read_text(encoding="utf-8").replace(committed_table(path), source_table())
    write_atomically(path, text)


def _main() -> None:
    parser = argparse.ArgumentParser(description="The table of sources in datasets/README.md")
    parser.add_argument("--write", action="store_true", help="replace the table in the file")
    parser.add_argument("--path", type=Path, default=_README)
    args = parser.parse_args()
    if args.write:
        write_table(args.path)
    else:
        print(source_table())


if __name__ == "__main__":
    _main()
