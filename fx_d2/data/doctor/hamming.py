"""All pairs of 64-bit hashes within a Hamming distance, exactly, without comparing all pairs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

HASH_BITS = 64
_BLOCK = 2048  # rows compared at a time: bounds memory to a few tens of megabytes


def distances(a: npt.NDArray[np.uint64], b: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Number of differing bits of every pair, (len(a), len(b))."""
    return np.bitwise_count(a[:, None] ^ b[None, :])


def near_pairs(
    hashes: npt.NDArray[np.uint64], radius: int, *, max_pairs: int = 1_000_000
) -> Iterator[tuple[int, int, int]]:
    """Pairs (i, j, distance) with i < j and distance <= radius, each once.

    The 64 bits are cut into ``radius + 1`` bands. Two hashes that differ in at most ``radius`` bits
    agree in one band at least, so only hashes that share a band's value are compared: exact, and
    close to linear as long as hashes are spread out.

    Args:
        hashes: (N,).
        radius: largest distance.
        max_pairs: stop after so many (a source of identical images would give N * N / 2).
    """
    if not 0 <= radius < HASH_BITS:
        raise ValueError(f"radius {radius} is not within 0..{HASH_BITS - 1}")
    edges = np.linspace(0, HASH_BITS, radius + 2).round().astype(int)
    found = 0
    for band, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        values = _bits(hashes, low, high)
        order = np.argsort(values, kind="stable")
        starts = np.flatnonzero(np.diff(values[order])) + 1
        for bucket in np.split(order, starts):
            if len(bucket) < 2:
                continue
            for i, j, distance in _within(hashes, np.sort(bucket), radius):
                # A pair that agrees in an earlier band was found there.
                if any(_agree(hashes[i], hashes[j], *edges[b : b + 2]) for b in range(band)):
                    continue
                yield i, j, distance
                found += 1
                if found >= max_pairs:
                    return


def _bits(hashes: npt.NDArray[np.uint64], low: int, high: int) -> npt.NDArray[np.uint64]:
    width = np.uint64(high - low)
    keep = np.uint64(2**64 - 1) if high - low == 64 else (np.uint64(1) << width) - np.uint64(1)
    return (hashes >> np.uint64(low)) & keep


def _agree(a: np.uint64, b: np.uint64, low: int, high: int) -> bool:
    return (int(a) ^ int(b)) >> int(low) & ((1 << int(high - low)) - 1) == 0


def _within(
    hashes: npt.NDArray[np.uint64], bucket: npt.NDArray[np.int64], radius: int
) -> Iterator[tuple[int, int, int]]:
    values = hashes[bucket]
    for start in range(0, len(bucket), _BLOCK):
        stop = min(start + _BLOCK, len(bucket))
        for other in range(start, len(bucket), _BLOCK):
            table = distances(values[start:stop], values[other : other + _BLOCK])
            rows, columns = np.nonzero(table <= radius)
            later = rows + start < columns + other
            for r, c in zip(rows[later], columns[later], strict=True):
                yield int(bucket[start + r]), int(bucket[other + c]), int(table[r, c])
