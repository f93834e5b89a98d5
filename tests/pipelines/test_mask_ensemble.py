"""Rules of an ensemble on masks made by hand, STAPLE on simulated raters, and the cleaning."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from fx_d2.pipelines.ensemble_report import EnsembleReport, masks_of
from fx_d2.pipelines.lung_masks import MaskRecipe
from fx_d2.pipelines.mask_ensemble import RULES, Cleaning, combine, staple

ALL_OFF = Cleaning(components=0, least=0, fill=0, dilate=0)


def test_the_rules_by_hand() -> None:
    # Four pixels: what each of three models says.
    given = np.array([[[0.9, 0.9, 0.9, 0.1]], [[0.6, 0.6, 0.1, 0.1]], [[0.5, 0.4, 0.1, 0.4]]])
    wanted = {
        "union": [True, True, True, False],
        "majority": [True, True, False, False],
        "mean": [True, True, False, False],
        "intersection": [True, False, False, False],
    }
    for rule, mask in wanted.items():
        assert combine(given, rule).tolist() == [mask], rule
    assert combine(given, "mean", 0.35).tolist() == [[True, True, True, False]]
    assert combine(given, "union", 0.95).sum() == 0
    # Of two models one is no majority.
    assert combine(given[:2], "majority").tolist() == [[True, True, False, False]]


def test_rules_are_ordered_and_agree_on_equal_masks() -> None:
    rng = np.random.default_rng(2)
    given = rng.random((3, 40, 40)).astype(np.float32)
    masks = {rule: combine(given, rule) for rule in RULES}
    assert (masks["intersection"] <= masks["majority"]).all()
    assert (masks["majority"] <= masks["union"]).all()
    one = given[0] >= 0.5
    for rule in RULES:
        assert np.array_equal(combine(np.stack([one] * 3), rule), one), rule
        assert np.array_equal(combine(one[None], rule), one), rule
        assert not combine(np.zeros((3, 8, 8), dtype=bool), rule).any(), rule
        assert combine(np.ones((2, 8, 8), dtype=bool), rule).all(), rule


def test_staple_finds_the_raters_and_beats_the_vote() -> None:
    """Three careless raters and two good ones: the vote follows the many."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:120, :120]
    truth = (rows - 60) ** 2 / 50**2 + (columns - 60) ** 2 / 35**2 < 1
    sensitivity = np.array([0.97, 0.95, 0.62, 0.6, 0.58])
    specificity = np.array([0.98, 0.96, 0.7, 0.68, 0.66])
    votes = np.stack(
        [
            np.where(truth, rng.random(truth.shape) < p, rng.random(truth.shape) > q)
            for p, q in zip(sensitivity, specificity, strict=True)
        ]
    )
    found = staple(votes)
    assert found.converged and found.iterations < 100
    assert found.sensitivity == pytest.approx(sensitivity, abs=0.02)
    assert found.specificity == pytest.approx(specificity, abs=0.02)

    def dice(mask: np.ndarray) -> float:
        return 2 * (mask & truth).sum() / (mask.sum() + truth.sum())

    assert dice(found.probability >= 0.5) > dice(combine(votes, "majority")) + 0.05
    assert dice(found.probability >= 0.5) > max(dice(vote) for vote in votes)


def test_staple_does_not_depend_on_the_empty_background() -> None:
    rng = np.random.default_rng(1)
    votes = rng.random((3, 30, 30)) < 0.6
    wide = np.zeros((3, 200, 300), dtype=bool)
    wide[:, 50:80, 100:130] = votes
    small, large = staple(votes), staple(wide)
    assert np.array_equal(small.probability, large.probability[50:80, 100:130])
    assert large.probability.sum() == pytest.approx(small.probability.sum())
    nothing = staple(np.zeros((2, 5, 5), dtype=bool))
    assert nothing.converged and not nothing.probability.any()


def test_cleaning_keeps_two_lungs_and_fills_small_holes() -> None:
    lungs = np.zeros((100, 120), dtype=bool)
    lungs[10:80, 10:40] = lungs[12:78, 70:100] = True
    mask = lungs.copy()
    mask[30:34, 20:24] = False  # a hole
    mask[90:96, 50:60] = True  # a speck, third largest
    clean = Cleaning(dilate=0)
    assert np.array_equal(clean(mask), lungs)
    assert clean(mask[:, :60]).sum() == lungs[:, :60].sum()  # one lung alone stays alone
    assert not clean(np.zeros((5, 5), dtype=bool)).any()
    assert np.array_equal(ALL_OFF(mask), mask)
    assert mask[90:96, 50:60].all()  # the mask that was given is untouched


def test_what_two_touching_lungs_enclose_is_not_filled() -> None:
    ring = np.zeros((100, 100), dtype=bool)
    ring[10:90, 10:90] = True
    ring[20:80, 40:60] = False  # the mediastinum: 1200 of 5200 pixels
    ring[50, 20] = False
    filled = Cleaning(dilate=0)(ring)
    assert filled.sum() == ring.sum() + 1 and filled[50, 20] and not filled[50, 50]
    assert Cleaning(dilate=0, fill=0.3)(ring).sum() == 80 * 80
    # A lung that reaches the border encloses nothing with it.
    open_ = np.zeros((50, 50), dtype=bool)
    open_[10:40, 5:45] = True
    open_[35:50, 5:10] = open_[35:50, 40:45] = True
    assert np.array_equal(Cleaning(dilate=0, fill=1)(open_), open_)


def test_dilation_is_a_disc_of_its_share() -> None:
    mask = np.zeros((101, 201), dtype=bool)
    mask[50, 100] = True
    grown = Cleaning(dilate=0.05)(mask)  # 10.05 px of 201
    rows, columns = np.mgrid[:101, :201]
    wanted = (rows - 50) ** 2 + (columns - 100) ** 2 <= 10.05**2
    assert np.array_equal(grown, wanted)
    lungs = np.random.default_rng(5).random((60, 60)) > 0.99
    slow = ndimage.distance_transform_edt(~lungs) <= 3
    assert np.array_equal(Cleaning(components=0, fill=0, dilate=0.05)(lungs), slow)


def test_the_default_growth_is_a_rim_not_a_third_lung() -> None:
    """Two ellipses that end half a percent short are made whole; exact ones lose little Dice."""
    rows, columns = np.mgrid[:400, :400]

    def lungs(short_px: float) -> np.ndarray:
        sides = [
            ((columns - x) / (58 - short_px)) ** 2 + ((rows - 205) / (117 - short_px)) ** 2 <= 1
            for x in (115, 285)
        ]
        return sides[0] | sides[1]

    truth, grown = lungs(0), Cleaning()(lungs(2))
    assert (grown & truth).sum() > 0.995 * truth.sum() > lungs(2)[truth].sum() + 0.03 * truth.sum()
    whole = Cleaning()(truth)
    assert 0.02 < (whole & ~truth).sum() / truth.sum() < 0.08


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: combine(np.zeros((2, 4, 4)), "uniom"), "no rule 'uniom'. Did you mean 'union'"),
        (lambda: combine(np.zeros((4, 4)), "union"), r"shape \(4, 4\); expected \(models"),
        (lambda: combine(np.full((1, 2, 2), 3.0), "union"), "from 0 to 1"),
        (lambda: combine(np.full((1, 2, 2), np.nan), "union"), "from 0 to 1"),
        (lambda: combine(np.ones((1, 2, 2), dtype=np.uint8), "union"), "masks of uint8"),
        (lambda: combine(np.ones((1, 2, 2)), "union", 0.0), "threshold is 0.0"),
        (lambda: staple(np.ones((1, 2, 2))), "votes of float64"),
        (lambda: staple(np.ones((17, 2, 2), dtype=bool)), "17 raters"),
        (lambda: Cleaning(components=-1), "components is -1"),
        (lambda: Cleaning(dilate=0.6), "dilate is 0.6; allowed: from 0 to 0.5"),
        (lambda: Cleaning()(np.zeros((2, 2))), "a mask of float64"),
    ],
)
def test_bad_input_is_said(call, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        call()


def test_the_figures_of_a_report_by_hand() -> None:
    """Two films of 10 x 10: true lungs of 20 and of 40 pixels, and one without any."""
    truth = np.zeros((3, 10, 10), dtype=bool)
    truth[0, :2], truth[1, :4] = True, True
    said = np.zeros_like(truth)
    said[0, 1:3] = said[1, :3] = said[2, 9:] = True  # 10 of 20 right, 30 of 30, 0 of 10
    report = EnsembleReport()
    for name, mask, true in zip("abc", said, truth, strict=True):
        report.add(name, {"one": mask}, true)
    figures = report.figures()["one"]
    assert report.dice("one") == pytest.approx([0.5, 60 / 70, 0])
    assert figures["Dice"] == pytest.approx((0.5 + 60 / 70) / 3) and figures["lowest"] == 0
    assert figures["IoU"] == pytest.approx((1 / 3 + 3 / 4) / 3)
    # Where there are lungs: how much of them is found, and what is false as a share of them.
    assert figures["recall"] == pytest.approx((0.5 + 0.75) / 2)
    assert figures["false area"] == pytest.approx((10 / 20 + 0) / 2)
    assert figures["area"] == pytest.approx((0.2 + 0.3 + 0.1) / 3)
    assert figures["area / true"] == pytest.approx(60 / 60)  # of all films together
    assert report.worst("one", 2) == ["c", "a"]


def test_every_rule_is_there_plain_and_cleaned() -> None:
    given = np.zeros((2, 60, 60), dtype=np.float32)
    given[:, 10:40, 5:25], given[0, 10:40, 30:50], given[:, 55, 55] = 0.9, 0.9, 0.9
    recipe = MaskRecipe(threshold=0.6, cleaning=Cleaning(dilate=0))
    found = masks_of(SimpleNamespace(names=("a", "b"), recipe=recipe), given)  # type: ignore[arg-type]
    assert list(found) == ["a", "b", *(name for r in RULES for name in (r, f"{r} + cleaning"))]
    assert found["a"].sum() == 1201 and found["b"].sum() == 601
    assert found["union"].sum() == 1201 and found["union + cleaning"].sum() == 1200
    assert found["intersection"].sum() == 601 and found["intersection + cleaning"].sum() == 600
