"""Work in numbered parts, each written whole or not at all: how a killed run goes on.

A part is done when its last file is there. What a part holds depends on its number alone, so the
result is the same for any number of workers and interruptions.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from itertools import islice
from typing import Any

from tqdm import tqdm

from ..processes import worker_pool

Work = Callable[[int, Sequence[Any]], None]


def cut(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    """``items`` in parts of ``size``, the last one shorter."""
    return [items[i : i + size] for i in range(0, len(items), size)]


def run_parts(
    parts: Sequence[Sequence[Any]],
    work: Work,
    done: Callable[[int, Sequence[Any]], bool],
    *,
    first: int = 0,
    workers: int = 1,
    what: str = "",
    unit: str = "img",
    progress: bool = True,
) -> None:
    """Call ``work(number, items)`` for every part that is not done.

    Args:
        parts: the items of each.
        work: writes a part; has to be picklable where there are several workers.
        done: whether a part is there.
        first: number of the first part.
        workers: processes; 1 works in this one.
        what: beside the bar.
        unit: of the items.
        progress: whether there is a bar.
    """
    numbered = list(enumerate(parts, start=first))
    todo = [(number, part) for number, part in numbered if not done(number, part)]
    kept = sum(map(len, parts)) - sum(len(part) for _, part in todo)
    bar = tqdm(
        total=sum(map(len, parts)), initial=kept, desc=what, unit=f" {unit}", file=sys.stderr,
        disable=not progress or not todo,
    )  # fmt: skip
    with bar:
        if workers <= 1 or len(todo) <= 1:  # a process takes longer to start than a part
            for number, part in todo:
                work(number, part)
                bar.update(len(part))
            return
        with worker_pool(min(workers, max(len(todo), 1))) as pool:
            running: dict[Future[None], int] = {}
            waiting = iter(todo)
            while True:
                for number, part in islice(waiting, 2 * workers - len(running)):
                    running[pool.submit(work, number, part)] = len(part)
                if not running:
                    return
                finished, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    bar.update(running.pop(future))
                    future.result()
