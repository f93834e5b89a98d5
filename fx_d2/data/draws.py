"""Random draws as a pure function of their position, so that no random state is ever saved.

A batch is the same for 0, 1 or 3 workers, and a resumed run equals an uninterrupted one, because
every draw asks for its own generator by name: ``rng_for(seed, "order", source, pass_index)``.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np


def draw_key(seed: int, *position: int | str) -> int:
    """A 128-bit key of (seed, position); equal positions give equal keys everywhere.

    ``hash()`` is salted per process and NumPy's seed mixing takes integers only, hence a digest.
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *position))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def rng_for(seed: int, *position: int | str) -> np.random.Generator:
    """The generator that belongs to ``position`` (a counter-based Philox stream)."""
    return np.random.Generator(np.random.Philox(key=draw_key(seed, *position)))


@contextmanager
def seeded_globals(seed: int, *position: int | str) -> Iterator[None]:
    """NumPy's and Python's global generators belong to ``position`` within, and are restored after.

    Detectron2's augmentations draw from the global generators, so this is how their draws become a
    function of the position too.
    """
    numpy_state, python_state = np.random.get_state(), random.getstate()
    key = draw_key(seed, *position)
    np.random.seed(key % 2**32)
    random.seed(key)
    try:
        yield
    finally:
        np.random.set_state(numpy_state)
        random.setstate(python_state)
