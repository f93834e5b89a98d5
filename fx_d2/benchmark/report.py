"""Tables of figures, as text and as JSON, and what the figures were measured on."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from fx_d2.data.atomic import write_atomically


@dataclass(frozen=True)
class Table:
    """Figures of one kind.

    Args:
        title: heading.
        columns: {key: (heading, format such as ".2f" or "" for text)}, in order.
        rows: {key: value}; a missing value is an empty cell.
        notes: sentences below the table.
    """

    title: str
    columns: Mapping[str, tuple[str, str]]
    rows: Sequence[Mapping[str, Any]]
    notes: Sequence[str] = field(default_factory=tuple)

    def text(self, style: str = "github") -> str:
        """Heading, table and notes."""
        body = [
            [_cell(row.get(key), form) for key, (_, form) in self.columns.items()]
            for row in self.rows
        ]
        align = ["right" if form else "left" for _, form in self.columns.values()]
        table = tabulate(
            body,
            headers=[heading for heading, _ in self.columns.values()],
            tablefmt=style,
            disable_numparse=True,
            colalign=align,
        )
        return "\n\n".join([f"### {self.title}", table, *self.notes])


def _cell(value: Any, form: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return format(value, form)


def as_json(about: Mapping[str, Any], tables: Mapping[str, Table]) -> str:
    """Everything, unrounded; a figure that is missing is null."""
    document = {
        "about": dict(about),
        "tables": {
            name: {
                "title": table.title,
                "rows": [{key: _plain(value) for key, value in row.items()} for row in table.rows],
                "notes": list(table.notes),
            }
            for name, table in tables.items()
        },
    }
    return json.dumps(document, indent=1, allow_nan=False) + "\n"


def _plain(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_report(
    about: Mapping[str, Any],
    tables: Mapping[str, Table],
    *,
    markdown: Path | None,
    json_file: Path | None,
) -> None:
    """Write the files that were asked for."""
    if markdown is not None:
        parts = [about_line(about), *(table.text() for table in tables.values())]
        write_atomically(markdown, "\n\n".join(parts) + "\n")
    if json_file is not None:
        write_atomically(json_file, as_json(about, tables))


def about_line(about: Mapping[str, Any]) -> str:
    """What was measured on what, in one line."""
    return ", ".join(f"{key} {value}" for key, value in about.items() if value not in ("", []))


def typed_path(file: str) -> str:
    """A path as one would type it here."""
    near = os.path.relpath(file)
    return file if near.startswith(os.pardir) else near


def machine() -> str:
    """One line on what runs this."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the architecture has to do
    return f"{model}, {os.cpu_count()} cores, Python {platform.python_version()}"


def accelerator(device: torch.device) -> str:
    """The name of the GPU, or "" on the CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else ""
