"""Masks of cached images stay in memory, small and packed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable

import numpy as np

_BUDGET_BYTES = 128 * 2**20


class KeptMasks:
    """Binary masks by key, one bit per pixel; the least recently used go first.

    A mask of a 3,000-px radiograph takes longer to decode and to shrink than a cached image takes
    to read. At the size of the cache it is some 10 KiB.

    Args:
        budget: bytes of packed masks to keep, in each process.
    """

    def __init__(self, budget: int = _BUDGET_BYTES) -> None:
        self._budget, self._used = budget, 0
        self._packed: OrderedDict[Hashable, tuple[np.ndarray, tuple[int, ...]]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The mask of ``key``, made when it is not there.

        Args:
            key: names the mask and its size.
            make: gives it, uint8 (H, W) of 0 and 1.

        Returns:
            uint8 (H, W), the caller's own.
        """
        if key in self._packed:
            self._packed.move_to_end(key)
            bits, shape = self._packed[key]
            return np.unpackbits(bits, count=shape[0] * shape[1]).reshape(shape)
        mask = make()
        bits = np.packbits(mask)
        if bits.nbytes <= self._budget:
            self._packed[key] = (bits, mask.shape)
            self._used += bits.nbytes
        while self._used > self._budget:
            _, (dropped, _) = self._packed.popitem(last=False)
            self._used -= dropped.nbytes
        return mask

    def __len__(self) -> int:
        return len(self._packed)
