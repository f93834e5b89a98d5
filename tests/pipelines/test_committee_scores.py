"""A committee's table: areas per class and member, policies for uncertain labels, weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fx_d2.data.build import load_datasets
from fx_d2.data.errors import DataError
from fx_d2.data.label_policy import UNCERTAIN_POLICIES, LabelPolicy, Rule
from fx_d2.data.sources import get_source
from fx_d2.phantom.world import make_world
from fx_d2.pipelines import committee_scores
from fx_d2.pipelines.committee import Committee, build_committee
from fx_d2.pipelines.committee_scores import committee_targets, score_committee
from fx_d2.predictor import Predictor

Saved = Callable[..., Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, patients=12, seed=2, sources=["nih14"], size_px=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        yield folder


@pytest.fixture(scope="module")
def files(saved_classifier: Saved) -> list[Path]:
    return [saved_classifier(1), saved_classifier(2)]


@pytest.fixture(scope="module")
def committee(files: list[Path]) -> Committee:
    return build_committee(files)


def test_areas_are_those_of_the_predictions(
    world: Path, files: list[Path], committee: Committee
) -> None:
    scores = score_committee(committee, "nih14_train", batch_size=4, quiet=True)
    records = list(load_datasets(["nih14_train"]))
    labels = np.stack([record["labels"] for record in records])
    said = np.array(
        [
            [
                list(one["labels"]["nih14"].values())
                for one in Predictor(file, device="cpu")([r["file_name"] for r in records])
            ]
            for file in files
        ]
    )
    known = [k for k in range(labels.shape[1]) if len(set(labels[:, k])) == 2]
    assert len(known) >= 3 and not scores.skipped
    for k in known:
        for member in range(2):
            expected = roc_auc_score(labels[:, k], said[member, :, k])
            assert scores.auc[member, k] == pytest.approx(expected, abs=1e-6)
        together = roc_auc_score(labels[:, k], said[:, :, k].mean(0))
        assert scores.committee[k] == pytest.approx(together, abs=1e-6)
    unknown = [k for k in range(labels.shape[1]) if k not in known]
    assert np.isnan(scores.auc[:, unknown]).all()
    assert scores.positives.tolist() == (labels == 1).sum(0).tolist()
    table = scores.text()
    assert "committee" in table and "mean" in table and "nan" not in table
    few = score_committee(committee, "nih14_train", limit=5, quiet=True)
    assert int((few.positives + few.negatives).max()) == 5


def test_weights_are_how_much_better_than_guessing(world: Path, committee: Committee) -> None:
    scores = score_committee(committee, "nih14_train", quiet=True)
    weights = scores.weights()
    assert weights.shape == scores.auc.shape and (weights >= 0).all()
    assert (weights.sum(0) > 0).all()
    for k in range(len(scores.classes)):
        auc = scores.auc[:, k]
        if np.isnan(auc).any() or (auc <= 0.5).all():
            assert weights[:, k].tolist() == [1.0, 1.0]
        else:
            np.testing.assert_allclose(weights[:, k], np.maximum(auc - 0.5, 0))
    weighed = score_committee(committee.weighing(weights), "nih14_train", quiet=True)
    assert not np.allclose(weighed.committee, scores.committee, equal_nan=True)


@pytest.mark.parametrize("policy", UNCERTAIN_POLICIES)
def test_uncertain_labels_follow_the_policy_of_their_class(policy: str) -> None:
    labels = np.zeros(14, dtype=np.float32)
    names = ("Edema", "Fracture", "Not a class of this source")
    record = {"source": "chexpert", "image_id": "a", "labels": labels}

    own = get_source("chexpert").cls_classes
    labels[own.index("Edema")] = labels[own.index("Fracture")] = -1
    rule = Rule.parse("ignore", [f"chexpert/Edema={policy}"], UNCERTAIN_POLICIES)
    found = committee_targets(record, names, LabelPolicy(uncertain=rule))
    again = committee_targets(record, names, LabelPolicy(uncertain=rule))
    np.testing.assert_array_equal(found, again)
    assert np.isnan(found[1:]).all()
    low, high = {"ignore": (None, None), "zeros": (0, 0), "ones": (1, 1), "smooth": (0.55, 0.85)}[
        policy
    ]
    assert np.isnan(found[0]) if low is None else low <= found[0] <= high


def test_a_policy_for_uncertain_labels_moves_the_counts(
    world: Path, committee: Committee, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [dict(record) for record in load_datasets(["nih14_train"])]
    for record in records[::2]:
        record["labels"] = np.full_like(record["labels"], -1.0)
    records[1]["labels"] = np.append(np.float32(np.nan), records[1]["labels"][1:])

    monkeypatch.setattr(committee_scores, "load_datasets", lambda names: records)
    ignored = score_committee(committee, "nih14_train", quiet=True)
    more = len(records[::2])
    for name in ("ones", "smooth"):  # a label between counts as present too
        policy = LabelPolicy(uncertain=Rule(name))
        counted = score_committee(committee, "nih14_train", policy=policy, quiet=True)
        assert (counted.positives == ignored.positives + more).all()
        assert (counted.negatives == ignored.negatives).all()
        assert (counted.uncertain == more).all() and (ignored.uncertain == more).all()
    known = (ignored.positives + ignored.negatives).tolist()
    assert known == [len(records) - more - 1] + [len(records) - more] * (len(known) - 1)


def test_bad_images_are_counted_and_no_labels_are_an_error(
    world: Path, committee: Committee, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = [dict(record) for record in load_datasets(["nih14_train"])]
    records[0]["file_name"] = "gone.png"

    monkeypatch.setattr(committee_scores, "load_datasets", lambda names: records)
    scores = score_committee(committee, "nih14_train", quiet=True)
    assert len(scores.skipped) == 1 and "gone.png" in str(scores.skipped[0])
    with pytest.raises(DataError, match="gone.png"):
        score_committee(committee, "nih14_train", quiet=True, on_error="raise")
    for record in records:
        record["labels"] = np.full_like(record["labels"], np.nan)
    with pytest.raises(DataError, match="no image with a known label of Atelectasis"):
        score_committee(committee, "nih14_train", quiet=True)
