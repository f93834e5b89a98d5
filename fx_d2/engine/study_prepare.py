"""Data that a study needs beside its world: made by tools of ours, once, before the runs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tqdm import tqdm

from fx_d2.data.atomic import write_atomically
from fx_d2.data.catalog import ROOT_VARIABLE

from .setup import ConfigError
from .study import OUT, Study
from .study_folder import last_line, locked
from .study_plan import world_of
from .tool_calls import call_tool

_FOLDER, _DONE, _LOG = "prepare", "done.json", "log"


def prepare_data(study: Study, out: Path, tools: Path) -> None:
    """Call what the study's ``prepare`` lists, as far as that was not done with the same words.

    Args:
        study: whose.
        out: its folder; stands for ``{out}`` in the words.
        tools: folder of the tools.

    Raises:
        ConfigError: a call failed; with the last line that it said.
    """
    out = out.expanduser().absolute()
    folder = out / _FOLDER
    done = _read(folder / _DONE)
    waiting = [words for words in study.prepare if list(words) not in done]
    if not waiting:
        return
    environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
    if study.world is not None:
        environment[ROOT_VARIABLE] = str(world_of(out))
    with locked(out) as lock:
        folder.mkdir(exist_ok=True)
        for words in tqdm(waiting, "prepare", unit=" calls"):
            tool, *rest = (word.replace(OUT, str(out)) for word in words)
            command = [sys.executable, str(tools / tool), *rest]
            code = call_tool(command, folder / _LOG, environment, lock)
            if code:
                said = last_line(folder / _LOG)
                raise ConfigError(f"{study.file}: prepare: {tool} ended with {code}: {said}")
            done.append(list(words))
            write_atomically(folder / _DONE, json.dumps(done, indent=1) + "\n")


def _read(file: Path) -> list[list[str]]:
    """Calls that were done; none where that cannot be read, since the tools go on by themselves."""
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return []
    return found if isinstance(found, list) else []
