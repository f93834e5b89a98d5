"""Whom the processes of a run wait for."""

from __future__ import annotations

import threading
import time

import pytest

from fx_d2.engine import stuck
from fx_d2.engine.stuck import Standing, StuckWatch, verdict


def standings(*rows: tuple[int, float, float]) -> dict[int, Standing]:
    return {
        rank: Standing(done, idle_s, f"node{rank}", silent_s)
        for rank, (done, idle_s, silent_s) in enumerate(rows)
    }


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(5, 99, 0), (5, 3, 0)], None),  # one still evaluates
        ([(5, 99, 0), (4, 99, 0)], "stuck: rank 1 on node1, which all others wait for"),
        ([(5, 99, 0), (5, 99, 60)], "stuck: rank 1 on node1, not heard of for 60 s"),
        ([(4, 99, 0), (5, 99, 60), (5, 99, 0)], "stuck: rank 1 on node1, not heard of"),
        ([(5, 99, 0), (5, 99, 0)], "no process of 2 gets on"),
    ],
)
def test_the_verdict(rows, expected):
    found = verdict(standings(*rows), 50)
    assert found is None if expected is None else found.startswith(expected)


class Store(dict):
    """As the store that processes meet at, in memory."""

    def set(self, key: str, text: str) -> None:
        self[key] = text.encode()

    def get(self, key: str) -> bytes:
        return self[key]


def test_a_watch_ends_its_process_only_when_nobody_gets_on(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(stuck, "_beats", 0)
    store, ended = Store(), threading.Event()
    said: list[tuple[str, bool]] = []

    def end(why: str, speak: bool) -> None:
        said.append((why, speak))
        ended.set()

    store.set("fx_d2/rank/1", '{"done": -1, "idle_s": 0.0, "host": "far", "time": 0}')
    with StuckWatch(store, 0, 2, 0.5, end):
        for _ in range(10):  # this rank steps, the other is silent
            stuck.beat()
            time.sleep(0.1)
        assert not said
        assert ended.wait(10)
    assert said[0][0].startswith("stuck: rank 1 on far, not heard of") and said[0][1]


def test_no_watch_in_one_process_or_without_a_timeout():
    before = threading.active_count()
    with StuckWatch(None, 0, 1, 5.0, print), StuckWatch(Store(), 0, 2, 0.0, print):
        assert threading.active_count() == before
