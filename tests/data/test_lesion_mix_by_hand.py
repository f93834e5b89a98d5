"""Parts of the lesion mix on numbers made by hand: truth, grey levels, and who is short of what."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fx_d2.data.formats.contract import ImageFacts, LoadedImage
from fx_d2.data.lesion_mix.audit import _changed, _Limits
from fx_d2.data.lesion_mix.build import Written, _account, _part_is_there
from fx_d2.data.lesion_mix.correlation import Comparison
from fx_d2.data.lesion_mix.mixer import LesionMixer
from fx_d2.data.lesion_mix.place import matching
from fx_d2.data.lesion_mix.plan import Stock
from fx_d2.data.lesion_mix.recipe import minority
from fx_d2.data.lesion_mix.settings import MixSettings
from fx_d2.data.lesion_mix.truth import Lesion, Truth
from fx_d2.data.masks import empty_mask, encode_mask, load_mask
from fx_d2.data.sources import get_source

SIZE = (20, 30)


def square(size: tuple[int, int], x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    mask = np.zeros(size, dtype=bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_masks_are_those_of_the_base_and_of_what_was_pasted() -> None:
    own, shape = square(SIZE, 2, 3, 9, 8), np.eye(4, dtype=bool)
    lesions = [
        Lesion("Mass", (7, 6, 11, 10), shape, 1.0, 0),
        Lesion("Mass", (20, 2, 24, 6), shape, 0.6, 1),
        Lesion("Edema", (1, 1, 5, 5), None, 1.0, 2),
        Lesion("Nodule", (1, 1, 5, 5), shape, 1.0, 3),
        Lesion("Hernia", (12, 12, 16, 16), shape, 1.0, 4),
    ]
    known = {name: encode_mask(own) for name in ("Mass", "Edema", "Fibrosis")}
    truth = Truth(SIZE, np.zeros(1, np.float32), lesions, [], {**known, "Hernia": empty_mask()})
    found = truth.all_masks()
    # Of a lesion of unknown shape, or beside what is not annotated, no mask of the class is known.
    assert set(found) == {"Mass", "Fibrosis", "Hernia"}
    expected = own.copy()
    expected[6:10, 7:11] |= shape
    expected[2:6, 20:24] |= shape
    assert np.array_equal(load_mask(found["Mass"], *SIZE), expected)
    assert np.array_equal(load_mask(found["Fibrosis"], *SIZE), own)
    hernia = np.zeros(SIZE, dtype=bool)
    hernia[12:16, 12:16] = shape
    assert np.array_equal(load_mask(found["Hernia"], *SIZE), hernia)
    row = truth.to_row()
    assert row["absent"] == [] and [entry["class"] for entry in row["boxes"]] == [
        *("Mass", "Mass", "Edema", "Nodule", "Hernia")
    ]
    assert replace(truth, boxes=None).to_row()["boxes"] is None  # the base's own are not annotated


def test_what_the_base_has_is_scaled_to_the_image_that_is_mixed() -> None:
    """As of a cache: 100 x 160 pixels of which 50 x 40 are left."""
    base = get_source("cxr_lt")
    base = replace(base, thing_classes=base.cls_classes, seg_classes=base.cls_classes)
    facts = ImageFacts("png", 8, 255.0, 100, 160, mode="uint8")
    loaded = LoadedImage(np.zeros((50, 40), dtype=np.float32), facts)
    mixer = LesionMixer(base, None, MixSettings())  # type: ignore[arg-type]
    whole = square((100, 160), 16, 20, 80, 60)
    annotation = {"bbox": [16, 20, 80, 60], "bbox_mode": 0, "category_id": 3}
    drawn = {**annotation, "segmentation": encode_mask(whole)}
    labels = np.zeros(len(base.cls_classes), dtype=np.float32)
    record = {"annotations": [annotation, drawn], "labels": labels,
              "masks": {base.cls_classes[3]: encode_mask(whole)}}  # fmt: skip
    expected = square((50, 40), 4, 10, 20, 30)
    (name, box, none), (_, again, mask) = mixer._own_boxes(record, loaded)  # type: ignore[arg-type, misc]
    assert name == base.cls_classes[3] and box == again == (4, 10, 20, 30) and none is None
    assert np.array_equal(load_mask(mask, 50, 40), expected)  # type: ignore[arg-type]
    truth = mixer._truth(record, loaded, [], None)  # type: ignore[arg-type]
    assert np.array_equal(load_mask(truth.masks[name], 50, 40), expected)


def test_a_patch_gets_the_mean_and_the_spread_of_its_surround() -> None:
    rng = np.random.default_rng(0)
    grey = (0.3 + 0.2 * rng.random((20, 20))).astype(np.float32)
    base = (50 + 40 * rng.random((20, 20))).astype(np.float32)
    around = np.ones((20, 20), dtype=np.uint8)
    around[5:15, 5:15] = 0
    base[5:15, 5:15] = 255  # what lies beneath says nothing
    limits, ring = (10.0, 210.0), around > 0
    for contrast, gain in ((1.0, None), (8.0, 1.5), (0.0, 1 / 1.5)):
        place = (70 + contrast * (base - 70)).astype(np.float32)
        factor, summand = matching(grey, around, place, limits)
        matched = factor * grey + summand
        assert matched[ring].mean() == pytest.approx(place[ring].mean(), abs=1e-2)
        if gain is None:
            assert matched[ring].std() == pytest.approx(place[ring].std(), rel=1e-3)
        else:  # noise is not blown up, and a lesion stays one
            assert factor == pytest.approx(gain * 200)
    assert matching(grey, np.zeros_like(around), base, limits) == (200.0, 10.0)


def test_a_class_is_short_until_it_has_the_target() -> None:
    names = ("Mass", "Nodule", "Hernia", "No Finding", "Support Devices")
    short = minority(np.array([40, 39, 41, 0, 0]), names, 100, MixSettings(target=40))
    assert short.tolist() == [0, 1, 0, 0, 0]


def test_what_was_made_is_used_and_what_cannot_be_a_base_is_not_asked_again() -> None:
    result = Written([], Counter(), Stock(np.array([5, 0, 0])))
    made = {"base": 6, "labels": [1.0, None, 0.6], "patches": [2, 2, 7]}
    nowhere = {"base": 5, "failed": "another lesion lies there"}  # another patch may fit
    unseen = {"base": 3, "failed": "the lungs are not seen"}
    broken = {"base": 4, "failed": "cannot be read: no image"}
    _account(result, [unseen, broken, nowhere, made, nowhere])
    assert result.rows == [made] and result.failed[nowhere["failed"]] == 2
    assert result.stock.refused == {3, 4} and result.stock.counts.tolist() == [6, 0, 1]
    assert result.stock.base_uses == {6: 1} and result.stock.patch_uses == {2: 2, 7: 1}


def test_a_part_is_there_with_all_its_images(tmp_path: Path) -> None:
    rows = [{"number": 4, "file": "a.png"}, {"number": 5, "failed": "no lungs"}]
    items = [(SimpleNamespace(number=n), {}) for n in (4, 5)]
    assert not _part_is_there(tmp_path, 0, items)  # type: ignore[arg-type]
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/00000.json").write_text(json.dumps(rows))
    assert not _part_is_there(tmp_path, 0, items)  # type: ignore[arg-type]
    (tmp_path / "a.png").touch()
    assert _part_is_there(tmp_path, 0, items)  # type: ignore[arg-type]
    assert not _part_is_there(tmp_path, 0, items[:1])  # type: ignore[arg-type]


def test_each_limit_of_the_correlations_counts_alone() -> None:
    limits = _Limits(MixSettings(chance=0.0), np.zeros((2, 2)), 1.0)
    for r, largest, named in ((0.91, 0.09, ""), (0.89, 0.0, "MIN_R"), (1.0, 0.11, "MAX_DIFF")):
        found = _changed(Comparison(largest, (0, 1), r), "ab", limits)
        assert len(found) == bool(named) and named in "".join(found)
