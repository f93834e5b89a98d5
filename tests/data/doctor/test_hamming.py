from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import pytest

from fx_d2.data.doctor.hamming import near_pairs


def crowded(n: int, seed: int) -> np.ndarray:
    """Hashes with many near neighbours: a few centres with some bits turned."""
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**63, 8, dtype=np.uint64)
    hashes = rng.choice(centres, n)
    for _ in range(5):
        flip = rng.random(n) < 0.7
        bit = np.uint64(1) << rng.integers(0, 64, n, dtype=np.uint64)
        hashes = np.where(flip, hashes ^ bit, hashes)
    hashes[n // 2] = hashes[0]
    return hashes


@pytest.mark.parametrize("radius", [0, 1, 3, 5, 7])
def test_exactly_the_pairs_of_a_full_comparison(radius: int) -> None:
    hashes = crowded(150, seed=radius)
    expected = {
        (i, j, (int(hashes[i]) ^ int(hashes[j])).bit_count())
        for i, j in combinations(range(len(hashes)), 2)
        if (int(hashes[i]) ^ int(hashes[j])).bit_count() <= radius
    }
    found = list(near_pairs(hashes, radius))
    assert len(found) == len(set(found))
    assert set(found) == expected
    assert expected


def test_a_hundred_thousand_hashes_take_seconds() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**63, 100_000, dtype=np.uint64)
    hashes[77_777] = hashes[3] ^ np.uint64(0b10101)
    started = time.process_time()
    found = list(near_pairs(hashes, 5))
    assert found == [(3, 77_777, 3)]
    assert time.process_time() - started < 30


def test_identical_hashes_do_not_explode() -> None:
    hashes = np.full(3000, 5, dtype=np.uint64)
    assert len(list(near_pairs(hashes, 5, max_pairs=1000))) == 1000


def test_a_radius_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="radius 64"):
        list(near_pairs(np.zeros(2, dtype=np.uint64), 64))
