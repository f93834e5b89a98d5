"""Classes that exclude each other: equal to scikit-learn, and who is taken for whom."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sk
from toy_evaluation import SOURCE, record, run, truth_of

from fx_d2.evaluation import ClassificationEvaluator
from fx_d2.evaluation.results import Results, format_table

CLASSES = SOURCE.cls_classes


def _results(true: np.ndarray, scores: np.ndarray, unknown: int = 0) -> Results:
    labels = np.eye(3, dtype=np.float32)[true]
    labels[:unknown] = np.nan
    records = [record(i, labels=row) for i, row in enumerate(labels)]
    truth = truth_of(records, cls_kind="multiclass")
    outputs = [dict(zip(CLASSES, map(float, row), strict=True)) for row in scores]
    return run(ClassificationEvaluator(truth, n_bootstrap=0), records, "labels", outputs)


@pytest.fixture
def answers(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """150 films of three classes of 67, 24 and 9 %, and softmax scores in float32."""
    true = rng.choice(3, 150, p=[0.67, 0.24, 0.09])
    logits = rng.normal(size=(150, 3)) + 1.2 * np.eye(3)[true]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return true, scores.astype(np.float32).astype(np.float64)


def test_all_figures_of_the_issue_equal_sklearn(answers) -> None:
    true, scores = answers
    results = _results(true, scores)
    figures, said = results["toy_eval/cls"], scores.argmax(axis=1)
    assert figures["accuracy"] == pytest.approx(sk.accuracy_score(true, said))
    assert figures["F1"] == pytest.approx(sk.f1_score(true, said, average="macro"))
    assert figures["sensitivity"] == pytest.approx(sk.balanced_accuracy_score(true, said))
    recalls = sk.recall_score(true, said, average=None)
    assert [figures[f"sensitivity-{c}"] for c in CLASSES] == pytest.approx(list(recalls))
    ovr = sk.roc_auc_score(true, scores / scores.sum(1, keepdims=True), multi_class="ovr")
    assert figures["AUC"] == pytest.approx(ovr, abs=1e-6)
    assert figures["log_loss"] == pytest.approx(sk.log_loss(true, scores, labels=[0, 1, 2]), 1e-5)
    confusion = results.notes["toy_eval/cls"]["confusion"]
    assert confusion["classes"] == list(CLASSES)
    assert confusion["table"] == sk.confusion_matrix(true, said).tolist()
    assert len({tuple(row) for row in confusion["table"]}) == 3  # a transposed one would differ
    assert confusion["table"] != sk.confusion_matrix(said, true).tolist()


def test_unknown_classes_are_in_no_figure(answers) -> None:
    true, scores = answers
    some, rest = _results(true, scores, unknown=30), _results(true[30:], scores[30:])
    assert some["toy_eval/cls"] == pytest.approx(rest["toy_eval/cls"])
    tables = [r.notes["toy_eval/cls"]["confusion"]["table"] for r in (some, rest)]
    assert tables[0] == tables[1] and np.sum(tables[0]) == 120


def test_a_certain_mistake_has_a_finite_loss() -> None:
    figures = _results(np.array([0, 1]), np.eye(3)[[1, 1]])["toy_eval/cls"]
    assert figures["log_loss"] == pytest.approx(-np.log(1e-7) / 2)


def test_the_table_is_in_the_page(answers) -> None:
    results = _results(*answers)
    page = format_table(results)
    row = results.notes["toy_eval/cls"]["confusion"]["table"][0]
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines()]
    assert ["images of ... said to be", *CLASSES] in cells
    assert [CLASSES[0], *map(str, row)] in cells
    labels = [record(0, labels=np.array([1.0, 0, 0], dtype=np.float32))]
    plain = run(ClassificationEvaluator(truth_of(labels), n_bootstrap=0), labels, "labels",
                [dict.fromkeys(CLASSES, 0.5)])  # fmt: skip
    assert "confusion" not in plain.notes["toy_eval/cls"]
    assert "log_loss" not in plain["toy_eval/cls"]
