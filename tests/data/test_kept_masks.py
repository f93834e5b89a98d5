from __future__ import annotations

import numpy as np

from fx_d2.data.kept_masks import KeptMasks

RNG = np.random.default_rng(0)
MASKS = [RNG.integers(0, 2, (7, 9 + i), dtype=np.uint8) for i in range(6)]


def test_a_mask_comes_back_as_it_was_and_is_made_once():
    kept, made = KeptMasks(), []
    for _ in range(3):
        for i, mask in enumerate(MASKS):
            found = kept.get(("rsna", i), lambda i=i, mask=mask: made.append(i) or mask.copy())
            assert found.dtype == np.uint8 and np.array_equal(found, mask)
            found[:] = 0  # the caller's own
    assert made == list(range(6))


def test_the_least_recently_used_go_first():
    kept = KeptMasks(budget=2 * np.packbits(MASKS[0]).nbytes + 1)
    same = MASKS[0]
    for key in "aba":
        kept.get(key, same.copy)
    kept.get("c", same.copy)
    made = []
    for key in "ac":
        kept.get(key, lambda: made.append(1) or same.copy())
    assert not made and len(kept) == 2
    kept.get("b", lambda: made.append(1) or same.copy())
    assert made


def test_a_mask_above_the_budget_is_not_kept():
    kept = KeptMasks(budget=3)
    assert np.array_equal(kept.get("a", MASKS[0].copy), MASKS[0])
    assert len(kept) == 0
