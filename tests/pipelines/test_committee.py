"""A committee's members keep their own input paths and answer for the same classes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fx_d2.explain import IGSettings
from fx_d2.pipelines.committee import Committee, build_committee
from fx_d2.predictor import Predictor

Saved = Callable[..., Path]
PYRAMID = (
    *("MODEL.META_ARCHITECTURE", "FPSM", "MODEL.FX.CLS.NAME", "PyramidClassifier"),
    *("MODEL.FX.CLS.PYRAMID.DIM", "16", "MODEL.FX.TRUNK.KWARGS.embed_dim", "12"),
)
FAST = IGSettings(steps=4, max_raise=1, batch=16)


@pytest.fixture(scope="session")
def files(saved_classifier: Saved) -> list[Path]:
    """A Foundation X at 64 px, a larger one that keeps proportions, an FPSM."""
    return [
        saved_classifier(1),
        saved_classifier(2, "INPUT.FX.SIZE", "80", "INPUT.FX.RESIZE", "keep"),
        saved_classifier(3, *PYRAMID),
    ]


@pytest.fixture(scope="session")
def committee(files: list[Path]) -> Committee:
    return build_committee(files)


def film(height: int = 90, width: int = 70, seed: int = 0) -> np.ndarray:
    grey = np.random.default_rng(seed).random((height // 10, width // 10), dtype=np.float32)
    return np.kron(grey, np.ones((10, 10), dtype=np.float32))


def test_every_member_says_what_it_predicts_alone(files: list[Path], committee: Committee) -> None:
    images = [film(), film(60, 60, 1)]
    answers = committee.answer([committee.prepare(image) for image in images])
    for number, file in enumerate(files):
        for n, alone in enumerate(Predictor(file, device="cpu")(images)):
            expected = list(alone["labels"]["nih14"].values())
            assert list(alone["labels"]["nih14"]) == list(committee.classes)
            found = answers.probabilities[number, n]
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(answers.combined, answers.probabilities.mean(0), rtol=1e-5)
    np.testing.assert_allclose(answers.probabilities, answers.logits.sigmoid(), rtol=1e-5)


@pytest.mark.parametrize("method", ["integrated_gradients", "grad_cam"])
def test_maps_of_all_members_share_a_frame(committee: Committee, method: str) -> None:
    images = [committee.prepare(image) for image in (film(), film(60, 60, 1), film(seed=2))]
    found = committee.explain(
        images, ["Mass", "Edema"], size=(48, 40), method=method, settings=FAST
    )
    assert found.maps.shape == (3, 3, 2, 48, 40) and (found.maps >= 0).all()
    assert found.logits.shape == (3, 3, len(committee.classes))
    torch.testing.assert_close(found.logits, committee.answer(images).logits, rtol=1e-4, atol=1e-4)
    # The order is that of the images although the second one has another shape.
    alone = committee.explain(images[2:], ["Mass"], size=(48, 40), method=method, settings=FAST)
    torch.testing.assert_close(found.maps[:, 2:, :1], alone.maps, rtol=1e-3, atol=1e-5)
    assert (found.completeness is None) == (method == "grad_cam")
