"""Image labels: equal to scikit-learn, honest about classes that cannot be scored."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from toy_evaluation import SOURCE, record, run, truth_of

from fx_d2.evaluation import ClassificationEvaluator
from fx_d2.evaluation.curves import areas, interval, replicates

CLASSES = SOURCE.cls_classes


def _records(labels: np.ndarray, **more: object) -> list[dict]:
    return [record(i, labels=row.astype(np.float32), **more) for i, row in enumerate(labels)]


def _outputs(scores: np.ndarray, classes: tuple[str, ...] = CLASSES) -> list[dict[str, float]]:
    return [dict(zip(classes, map(float, row), strict=True)) for row in scores]


def _evaluate(labels: np.ndarray, scores: np.ndarray, *, changes: dict | None = None, **options):
    records = _records(labels)
    truth = truth_of(records, **(changes or {}))
    options.setdefault("n_bootstrap", 0)
    evaluator = ClassificationEvaluator(truth, **options)
    return run(evaluator, records, "labels", _outputs(scores, truth.source.cls_classes))


def _areas(scores, truth, weights=None):
    weights = np.ones(len(scores)) if weights is None else weights
    found = areas(
        np.asarray(scores, float), np.asarray(truth, bool), np.arange(len(scores)), weights[:, None]
    )
    return float(found[0][0]), float(found[1][0])


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 60), st.integers(1, 12))
def test_areas_equal_sklearn_with_ties_and_weights(seed: int, n: int, levels: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, levels, n) / levels
    truth = rng.random(n) < 0.4
    truth[:2] = True, False
    weights = rng.integers(0, 4, n).astype(float)
    weights[:2] = 1
    auc, ap = _areas(scores, truth, weights)
    assert auc == pytest.approx(sk.roc_auc_score(truth, scores, sample_weight=weights), abs=1e-12)
    expected = sk.average_precision_score(truth, scores, sample_weight=weights)
    assert ap == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6))
def test_auc_depends_on_the_ranking_alone(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, truth = rng.random(30).round(1), rng.random(30) < 0.5
    truth[:2] = True, False
    auc, ap = _areas(scores, truth)
    assert _areas(scores**3 * 0.5, truth) == pytest.approx((auc, ap))
    order = rng.permutation(30)
    assert _areas(scores[order], truth[order]) == pytest.approx((auc, ap))
    assert _areas(-scores, truth)[0] == pytest.approx(1 - auc)


def test_every_figure_equals_sklearn(rng: np.random.Generator) -> None:
    labels = rng.choice([0.0, 1.0, -1.0, np.nan], size=(300, 3), p=[0.5, 0.3, 0.1, 0.1])
    scores = np.clip(np.nan_to_num(labels, nan=0.5) * 0.2 + rng.random((300, 3)) * 0.8, 0, 1)
    scores = scores.astype(np.float32).round(2)
    figures = _evaluate(labels, scores, threshold=0.4)["toy_eval/cls"]
    means: dict[str, list[float]] = {}
    for c, name in enumerate(CLASSES):
        known = np.isin(labels[:, c], (0, 1))
        t, p = labels[known, c], scores[known, c].astype(np.float64)
        said = p >= 0.4
        expected = {
            "AUC": sk.roc_auc_score(t, p),
            "AP": sk.average_precision_score(t, p),
            "F1": sk.f1_score(t, said),
            "sensitivity": sk.recall_score(t, said),
            "specificity": sk.recall_score(1 - t, ~said),
            "accuracy": sk.accuracy_score(t, said),
            "kappa": sk.cohen_kappa_score(t, said),
        }
        for metric, value in expected.items():
            assert figures[f"{metric}-{name}"] == pytest.approx(value, abs=1e-12), metric
            means.setdefault(metric, []).append(value)
    for metric, values in means.items():
        assert figures[metric] == pytest.approx(np.mean(values))
    pair = [means["AUC"][0], means["AUC"][2]]
    assert figures["AUC_pair"] == pytest.approx(np.mean(pair))


def test_uncertain_and_unknown_labels_change_nothing(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 2, size=(40, 3)).astype(float)
    scores = rng.random((40, 3))
    more = np.concatenate([labels, np.tile([-1.0, np.nan, -1.0], (25, 1))])
    with_unknown = _evaluate(more, np.concatenate([scores, np.full((25, 3), 0.99)]))
    assert dict(with_unknown["toy_eval/cls"]) == dict(_evaluate(labels, scores)["toy_eval/cls"])
    assert with_unknown.notes["toy_eval/cls"]["images"] == 40


def test_a_class_with_one_value_is_named_and_left_out() -> None:
    labels = np.array([[0, 0, np.nan], [1, 0, np.nan], [1, 0, -1], [0, 0, np.nan]])
    results = _evaluate(labels, np.array([[0.1, 0.9, 0.5]] * 2 + [[0.8, 0.2, 0.5]] * 2))
    figures, notes = results["toy_eval/cls"], results.notes["toy_eval/cls"]
    assert notes["left_out"] == {
        "one label value only": {"Nodule": "0 positive, 4 negative"},
        "never annotated": {"Mass": "0 positive, 0 negative"},
    }
    assert figures["AUC"] == figures["AUC-Edema"] == figures["AUC_pair"] == 0.5
    assert not [name for name in figures if "Nodule" in name or "Mass" in name]
    assert np.isfinite(list(figures.values())).all()


@pytest.mark.parametrize(
    "labels", [np.full((3, 3), np.nan), np.zeros((3, 3)), np.ones((1, 3)), np.zeros((0, 3))]
)
def test_nothing_to_score_gives_no_figure_and_no_error(labels: np.ndarray) -> None:
    results = _evaluate(labels, np.full(labels.shape, 0.3), n_bootstrap=20)
    assert results["toy_eval/cls"] == {}
    left_out = results.notes["toy_eval/cls"]["left_out"]
    assert sorted(c for names in left_out.values() for c in names) == sorted(CLASSES)


def test_multiclass_takes_the_most_probable_class(rng: np.random.Generator) -> None:
    true = rng.integers(0, 3, 120)
    scores = rng.random((120, 3)) + np.eye(3)[true] * 0.5
    scores /= scores.sum(axis=1, keepdims=True)
    figures = _evaluate(np.eye(3)[true], scores, changes={"cls_kind": "multiclass"})["toy_eval/cls"]
    said = scores.argmax(axis=1)
    assert figures["accuracy"] == pytest.approx((said == true).mean())
    assert figures["kappa"] == pytest.approx(sk.cohen_kappa_score(true, said))
    assert figures["F1"] == pytest.approx(sk.f1_score(true, said, average="macro"))
    expected = sk.roc_auc_score(true, scores, multi_class="ovr", average="macro")
    assert figures["AUC"] == pytest.approx(expected, abs=1e-6)


def test_calibration_error_by_hand() -> None:
    # Four bins of width 1/4: [0, .25) holds 0.1 (wrong by .1); [.75, 1] holds 0.8 and 1.0 with one
    # positive: |0.9 - 0.5| * 2.
    labels = np.array([[0.0], [1.0], [0.0]])
    scores = np.array([[0.1], [0.8], [1.0]])
    changes = {"cls_classes": ("Edema",), "cls_kind": "binary", "cls_subsets": {}}
    figures = _evaluate(labels, scores, changes=changes, n_bins=4)["toy_eval/cls"]
    assert figures["ECE"] == pytest.approx((0.1 + 2 * 0.4) / 3, abs=1e-6)
    perfect = _evaluate(labels, labels.copy(), changes=changes)["toy_eval/cls"]
    assert perfect["ECE"] == 0
    assert perfect["F1"] == perfect["kappa"] == perfect["AUC"] == 1


def test_thresholds_by_class(rng: np.random.Generator) -> None:
    labels, scores = rng.integers(0, 2, (50, 3)).astype(float), rng.random((50, 3))
    figures = _evaluate(labels, scores, threshold={"Edema": 0.0})["toy_eval/cls"]
    assert figures["sensitivity-Edema"] == 1 and figures["specificity-Edema"] == 0
    assert figures["kappa-Edema"] == 0
    assert 0 < figures["specificity-Mass"] < 1
    with pytest.raises(ValueError, match="Oedema"):
        _evaluate(labels, scores, threshold={"Oedema": 0.5})


def test_a_study_is_scored_by_the_mean_of_its_views() -> None:
    changes = {"cls_classes": ("Abnormal",), "cls_kind": "binary", "cls_subsets": {}}
    # Study numbers start anew with every patient: ("a", 1) and ("b", 1) are two studies.
    views = [
        ("a", 1, 1, 0.9),
        ("a", 1, 1, 0.2),
        ("b", 1, 0, 0.3),
        ("b", 1, 0, 0.3),
        ("b", 2, 1, 0.6),
    ]
    records = [
        record(i, patient_id=patient, study_id=f"study{study}", labels=np.float32([label]))
        for i, (patient, study, label, _) in enumerate(views)
    ]
    evaluator = ClassificationEvaluator(
        truth_of(records, **changes), group_by="study_id", n_bootstrap=0
    )
    results = run(evaluator, records, "labels", [{"Abnormal": v[3]} for v in views])
    figures, notes = results["toy_eval/cls"], results.notes["toy_eval/cls"]
    assert (notes["cases"], notes["images"], notes["patients"]) == (3, 5, 2)
    # Means 0.55 and 0.6 (positive), 0.3 (negative); by view 0.2 would be below 0.3.
    assert (figures["AUC"], figures["specificity"], figures["sensitivity"]) == (1, 1, 1)
    del records[0]["study_id"]
    with pytest.raises(KeyError, match="study_id.*image0"):
        run(evaluator, records, "labels", [{"Abnormal": 0.5}] * 5)


def test_bootstrap_is_by_patient_seeded_and_covers_the_figure(rng: np.random.Generator) -> None:
    labels = rng.integers(0, 2, (200, 3)).astype(float)
    scores = np.clip(labels * 0.2 + rng.random((200, 3)) * 0.8, 0, 1)
    first = _evaluate(labels, scores, n_bootstrap=200)["toy_eval/cls"]
    assert first == _evaluate(labels, scores, n_bootstrap=200)["toy_eval/cls"]
    assert first != _evaluate(labels, scores, n_bootstrap=200, seed=1)["toy_eval/cls"]
    for name in ("AUC", "AP", "AUC_pair"):
        assert first[f"{name}_low"] < first[name] < first[f"{name}_high"]
    assert first["AUC_low-Edema"] < first["AUC-Edema"] < first["AUC_high-Edema"]


def test_a_replicate_repeats_all_images_of_a_patient(rng: np.random.Generator) -> None:
    """Copies of a patient's image carry nothing new: the interval must not become narrower."""
    truth, scores = (rng.random((60, 1)) < 0.5).astype(float), rng.random((60, 1))
    patients = np.arange(60)
    once = replicates(scores, truth, patients, n=300, seed=4)
    again = [np.repeat(a, 5, axis=0) for a in (scores, truth)]
    copies = replicates(*again, np.repeat(patients, 5), n=300, seed=4)
    np.testing.assert_allclose(once[0], copies[0])
    as_images = replicates(*again, np.arange(300), n=300, seed=4)
    widths = [np.subtract(*interval(a[:, 0])[::-1]) for a in (copies[0], as_images[0])]
    assert widths[1] < 0.6 * widths[0]


def test_bootstrap_equals_resampling_the_rows(rng: np.random.Generator) -> None:
    truth, scores = rng.random(40) < 0.3, rng.random(40).round(1)
    drawn = rng.integers(0, 40, size=(30, 40))
    weights = np.stack([np.bincount(d, minlength=40) for d in drawn], axis=1).astype(float)
    auc, ap = areas(scores, truth, np.arange(40), weights)
    for i, rows in enumerate(drawn):
        assert auc[i] == pytest.approx(sk.roc_auc_score(truth[rows], scores[rows]))
        assert ap[i] == pytest.approx(sk.average_precision_score(truth[rows], scores[rows]))


def test_replicates_with_one_value_are_no_figure() -> None:
    auc, ap = replicates(
        np.array([[0.2], [0.7]]), np.array([[0.0], [1.0]]), np.arange(2), n=50, seed=0
    )
    assert np.isnan(auc).any() and np.isfinite(auc).any()
    np.testing.assert_array_equal(np.isnan(auc), np.isnan(ap))
    assert set(auc[np.isfinite(auc)]) == {1.0}
    assert interval(np.full(5, np.nan)) is None


@pytest.mark.parametrize("bad", [np.nan, 3.2, -0.1])
def test_scores_that_are_no_probabilities_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="image0.*probabilities"):
        _evaluate(np.zeros((1, 3)), np.array([[0.1, bad, 0.2]]))


def test_an_output_without_the_source_or_a_class_is_refused() -> None:
    records = _records(np.zeros((1, 3)))
    evaluator = ClassificationEvaluator(truth_of(records))
    with pytest.raises(KeyError, match=r"no 'labels' of source 'toy_eval', only of \['rsna'\]"):
        evaluator.process(records, [{"labels": {"rsna": {}}}])
    with pytest.raises(KeyError, match="Mass"):
        evaluator.process(records, [{"labels": {"toy_eval": {"Edema": 0.1, "Nodule": 0.2}}}])
    with pytest.raises(KeyError, match="stranger"):
        evaluator.process([{**records[0], "image_id": "stranger"}], [{}])
    with pytest.raises(ValueError, match="rsna"):
        evaluator.process([{**records[0], "source": "rsna"}], [{}])
