"""Ends a run in which no process gets on, and says whom the others wait for.

A process that hangs (a dead network drive, a GPU that fell off the bus, a machine without power)
leaves all others waiting within a sum, for ever or until a timeout that names none of them. Here
every process tells the others now and then how far it is, from a thread of its own.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from detectron2.utils import comm

from fx_d2.modeling.whole_batch import exchanges

EXIT_CODE = 3
_KEY = "fx_d2/rank/"
_beats = 0


def beat() -> None:
    """This process gets on: a step, or a batch of an evaluation."""
    global _beats
    _beats += 1


@dataclass(frozen=True)
class Standing:
    """How far a process is.

    Args:
        done: sums over all processes that it took part in.
        idle_s: since it last got on, or was last heard of.
        host: its machine.
        silent_s: since it was last heard of.
    """

    done: int
    idle_s: float
    host: str
    silent_s: float = 0.0


def verdict(standings: Mapping[int, Standing], timeout_s: float) -> str | None:
    """Whom all wait for, in one line; None while anybody gets on.

    Args:
        standings: by rank, of all.
        timeout_s: after which standing still is being stuck.
    """
    if any(found.idle_s < timeout_s for found in standings.values()):
        return None
    silent = [rank for rank, found in standings.items() if found.silent_s >= timeout_s / 2]
    fewest = min(found.done for found in standings.values())
    behind = [rank for rank, found in standings.items() if found.done == fewest]
    late = silent or (behind if len(behind) < len(standings) else [])
    names = ", ".join(f"rank {rank} on {standings[rank].host}" for rank in late)
    if silent:
        why = f"stuck: {names}, not heard of for {standings[silent[0]].silent_s:.0f} s"
    elif late:
        why = f"stuck: {names}, which all others wait for"
    else:
        why = f"no process of {len(standings)} gets on, all after the same step: the network?"
    return (
        f"{why}. Nothing has moved for {timeout_s:.0f} s (SOLVER.FX.STUCK_AFTER_S): the run ends; "
        "--resume goes on from its last checkpoint"
    )


class StuckWatch:
    """Watches the processes of a run from within each of them.

    Args:
        store: where they leave notes for each other: ``set(key, text)`` and ``get(key)``.
        rank, world_size: of this process.
        timeout_s: see :func:`verdict`.
        end: what is done with the verdict.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        timeout_s: float,
        end: Callable[[str, bool], None],
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._timeout_s, self._end = timeout_s, end
        self._interval_s = min(max(timeout_s / 10, 0.05), 30.0)
        self._stop = threading.Event()
        self._moved, self._at = (-1, -1), time.monotonic()
        self._notes: dict[int, str] = {}
        self._heard = dict.fromkeys(range(world_size), time.monotonic())

    @classmethod
    def of_this_process(cls, timeout_s: float) -> StuckWatch:
        """That of the default process group; one that does nothing in a run of one process."""
        world_size = comm.get_world_size()
        # The store that the processes met at; torch has no public name for it.
        store = dist.distributed_c10d._get_default_store() if world_size > 1 else None
        return cls(store, comm.get_rank(), world_size, timeout_s, _leave)

    def __enter__(self) -> StuckWatch:
        if self._world_size > 1 and self._timeout_s > 0:
            self._tell()
            comm.synchronize()  # every note is there before one is read
            # Two threads: asking may hang too, where the machine with the store is gone.
            for loop in (self._talk, self._judge):
                threading.Thread(target=loop, name="fx_d2 stuck", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def standings(self) -> dict[int, Standing]:
        """Of all processes, as this one knows them."""
        now, found = time.monotonic(), {}
        for rank, text in list(self._notes.items()):
            note = json.loads(text)
            silent = now - self._heard[rank]
            found[rank] = Standing(note["done"], note["idle_s"] + silent, note["host"], silent)
        found[self._rank] = Standing(exchanges(), self._idle_s(), socket.gethostname())
        return found

    def _idle_s(self) -> float:
        now, moved = time.monotonic(), (exchanges(), _beats)
        if moved != self._moved:
            self._moved, self._at = moved, now
        return now - self._at

    def _tell(self) -> None:
        note = {
            "done": exchanges(),
            "idle_s": round(self._idle_s(), 2),
            "host": socket.gethostname(),
            "time": time.time(),  # so that every note is another one
        }
        self._store.set(f"{_KEY}{self._rank}", json.dumps(note))

    def _talk(self) -> None:
        while not self._stop.wait(self._interval_s):
            try:
                self._tell()
                for rank in range(self._world_size):
                    text = self._store.get(f"{_KEY}{rank}").decode()
                    if text != self._notes.get(rank):
                        self._notes[rank], self._heard[rank] = text, time.monotonic()
            except (RuntimeError, OSError):
                return  # the store is gone: the run is ending, or will be found silent

    def _judge(self) -> None:
        while not self._stop.wait(self._interval_s):
            standings = self.standings()
            if len(standings) < self._world_size:
                continue
            found = verdict(standings, self._timeout_s)
            if found is not None and not self._stop.is_set():
                heard = [r for r, s in standings.items() if s.silent_s < self._timeout_s / 2]
                self._end(found, self._rank == min(heard))


def _leave(why: str, speak: bool) -> None:
    """End this process though its main thread waits; one of them says why, before all others."""
    if speak:
        print(f"error: {why}", file=sys.stderr, flush=True)
    else:
        time.sleep(2)
    os._exit(EXIT_CODE)
