"""The pipeline on models whose answer is known: where a bright square is, the map is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hybrid_models import PaintedLungs, bright_classifier

from fx_d2.data.errors import DataError
from fx_d2.data.mapper import FxMapper
from fx_d2.pipelines.evidence import share_within
from fx_d2.pipelines.hybrid import NO_LUNGS, Hybrid, HybridSettings
from fx_d2.pipelines.lung_classifier import LungClassifier
from fx_d2.pipelines.stages import Film, LungMask

# Rows and columns; at the top of the left of the painted lungs, where a map that is stretched over
# the whole film in place of its box would be 35 rows off.
SQUARE = (slice(62, 102), slice(44, 84))


def film_with(place: tuple[slice, slice], folder: Path, size: tuple[int, int] = (300, 240)) -> Film:
    image = np.full(size, 40, dtype=np.uint8)
    image[place] = 250
    cv2.imwrite(str(folder / "film.png"), image)
    return Film(folder / "film.png")


def pipeline(classifier: LungClassifier | None = None, **settings: object) -> Hybrid:
    chosen = HybridSettings(**settings)  # type: ignore[arg-type]
    return Hybrid(PaintedLungs(), classifier or bright_classifier(), chosen)  # type: ignore[arg-type]


@pytest.mark.parametrize("resize", ["square", "keep"])
@pytest.mark.parametrize("mode", ["none", "mask", "crop", "mask+crop"])
@pytest.mark.parametrize("method", ["grad_cam", "layer_cam"])
def test_a_bright_square_is_found_where_it_is(
    tmp_path: Path, mode: str, resize: str, method: str
) -> None:
    film = film_with(SQUARE, tmp_path)
    classifier = bright_classifier("INPUT.FX.RESIZE", resize)
    found = pipeline(classifier, lung_input=mode, method=method)(film)
    assert found.crop is not None and found.scores is not None
    cut = mode.endswith("crop")
    assert (found.crop.shown.box != (0, 0, 240, 300)) == cut
    (heat,) = found.maps
    assert heat.cls == "Mass" and heat.values.shape == (300, 240)
    square = np.zeros((300, 240), dtype=bool)
    square[SQUARE] = True
    rows, columns = np.nonzero(heat.values >= 0.8 * heat.values.max())
    assert abs(rows.mean() - 82) < 22 and abs(columns.mean() - 64) < 22
    # A cell of the map is an eighth of the crop: the energy around the square, none far away.
    near = cv2.dilate(square.astype(np.uint8), np.ones((91, 75))).astype(bool)
    if method == "layer_cam":
        assert share_within(heat.values, near) > 0.99
        assert share_within(heat.values, square) > 0.4 > 10 * square.mean()


def test_the_stages_alone_are_the_pipeline(tmp_path: Path) -> None:
    film, line = film_with(SQUARE, tmp_path), pipeline(lung_input="mask+crop", threshold=0.5)
    whole = line(film)
    lungs = line.segment(film)
    crop = line.crop(film, lungs)
    scores = line.classify(crop)
    (heat,) = line.explain(crop, ["Mass"])
    assert np.array_equal(lungs.mask, whole.lungs.mask)
    assert whole.crop is not None and crop.shown.box == whole.crop.shown.box
    assert scores == whole.scores and scores.labels["Mass"] > 0.5
    assert np.array_equal(heat.values, whole.maps[0].values)
    assert lungs.rule == "one model" and lungs.members == pytest.approx({"painted": lungs.area})

    class Unsure(PaintedLungs):
        def probabilities(self, image: object) -> np.ndarray:
            return 0.6 * super().probabilities(image) + 0.1

    unsure = Hybrid(Unsure(), line.classifier).segment(film)  # type: ignore[arg-type]
    assert unsure.members == lungs.members and np.array_equal(unsure.mask, lungs.mask)


def test_hooks_and_flags_are_gone(tmp_path: Path) -> None:
    line = pipeline()
    module = line.classifier.member.module
    before = [(name, part.training) for name, part in module.named_modules()]
    line(film_with(SQUARE, tmp_path))
    assert not any(part._forward_hooks or part._backward_hooks for part in module.modules())
    assert before == [(name, part.training) for name, part in module.named_modules()]


@pytest.mark.parametrize("mode", ["none", "mask", "crop", "mask+crop"])
@pytest.mark.parametrize("resize", ["square", "keep"])
def test_the_network_sees_what_it_was_trained_on(tmp_path: Path, mode: str, resize: str) -> None:
    """Pixel for pixel the input that the mapper makes of a record with these lungs."""
    film = film_with(SQUARE, tmp_path)
    classifier = bright_classifier(
        *("INPUT.FX.LUNGS.MODE", mode, "INPUT.FX.RESIZE", resize, "DATASETS.TASKS", "('cls',)"),
        *("INPUT.FX.INTENSITY.MODE", "percentile"),
    )
    line = pipeline(classifier)
    lungs = line.segment(film)
    image, content = classifier.input_of(line.crop(film, lungs))
    record = {"file_name": str(film.path), "image_id": "a", "source": "nih14", "lungs": lungs.mask}
    sample = FxMapper(classifier.cfg, False, targets=False)(record, "cls", ("x",))  # type: ignore[arg-type]
    assert np.array_equal(image.numpy(), sample["image"].numpy())
    assert content == sample["content_size"]


def test_lungs_are_prepared_as_in_training(tmp_path: Path) -> None:
    """With the margin, the fill and the least side of the classifier's own run."""
    film = film_with(SQUARE, tmp_path)
    classifier = bright_classifier(
        *("INPUT.FX.LUNGS.MODE", "mask+crop", "INPUT.FX.LUNGS.MARGIN", "0.25"),
        *("INPUT.FX.LUNGS.FILL", "0.5", "INPUT.FX.LUNGS.MIN_SIDE_PX", "100"),
    )
    small = np.zeros((300, 240), dtype=bool)
    small[100:120, 80:160] = True
    crop = pipeline(classifier).crop(film, LungMask(small))
    assert crop.shown.mode == "mask+crop" and crop.shown.box == (60, 60, 180, 160)
    inside = small[60:160, 60:180]
    assert (crop.shown.image[~inside] == 0.5).all() and (crop.shown.image[inside] != 0.5).all()
    own = pipeline(classifier, lung_input="crop", margin=0.0).crop(film, LungMask(small))
    assert own.shown.mode == "crop" and own.shown.box == (70, 60, 170, 160)


def test_chance_is_that_of_what_the_classifier_saw(tmp_path: Path) -> None:
    film = film_with(SQUARE, tmp_path)
    cut, whole = (pipeline(lung_input=mode)(film) for mode in ("crop", "none"))
    assert cut.crop is not None
    x0, y0, x1, y1 = cut.crop.shown.box
    area = cut.lungs.mask.sum()
    assert cut.figures[0].even == pytest.approx(area / ((x1 - x0) * (y1 - y0)))
    assert whole.figures[0].even == pytest.approx(area / (300 * 240))


def test_what_the_network_would_pad_is_padded_before(tmp_path: Path) -> None:
    """So that a map of the network's input covers what the tensor covers: 60 px become 64."""
    classifier = bright_classifier("INPUT.FX.SIZE", "60", "INPUT.FX.RESIZE", "square")
    line = pipeline(classifier, lung_input="none", method="layer_cam")
    film = film_with(SQUARE, tmp_path)
    image, content = classifier.input_of(line.crop(film, line.segment(film)))
    assert tuple(image.shape[1:]) == (64, 64) and content == (60, 60)
    assert not image[:, 60:].any() and not image[:, :, 60:].any() and image[:, :60, :60].all()


def test_evidence_outside_the_lungs_is_told(tmp_path: Path) -> None:
    inside = pipeline(lung_input="none", method="layer_cam")(film_with(SQUARE, tmp_path))
    assert "no evidence in the lungs" not in {one.kind for one in inside.remarks}
    marker = (slice(4, 30), slice(4, 30))  # a letter in the corner
    outside = pipeline(lung_input="none", method="layer_cam")(film_with(marker, tmp_path))
    assert outside.figures[0].positive and outside.figures[0].in_lung < 0.1
    assert [one.kind for one in outside.remarks] == ["no evidence in the lungs"]
    negative = pipeline(lung_input="none")(film_with((slice(0, 1), slice(0, 1)), tmp_path))
    assert not negative.figures[0].positive and negative.remarks == ()
    assert np.isnan(negative.figures[0].severity)


def test_severity_only_of_what_is_called(tmp_path: Path) -> None:
    found = pipeline(lung_input="none", method="layer_cam")(film_with(SQUARE, tmp_path))
    assert 0 < found.figures[0].severity < 0.5


def test_a_film_without_lungs_is_left_at_that(tmp_path: Path) -> None:
    film = film_with(SQUARE, tmp_path)
    cv2.imwrite(f"{tmp_path}/film.png.lungs.png", np.zeros((300, 240), dtype=np.uint8))
    (tmp_path / "film.png.lungs.png").rename(tmp_path / "film.png.lungs")
    found = pipeline()(film)
    assert found.status == NO_LUNGS and found.scores is None and found.maps == ()
    assert [one.kind for one in found.remarks] == ["no lungs"]
    with pytest.raises(DataError, match="empty"):
        pipeline(lung_input="crop").crop(film, found.lungs)


def test_a_mask_of_another_film_is_refused(tmp_path: Path) -> None:
    film = film_with(SQUARE, tmp_path)
    for filled in (True, False):  # an empty one is no statement about this film either
        big = LungMask(np.full((600, 480), filled))
        for stage in (pipeline(), pipeline(lung_input="none").crop):
            with pytest.raises(DataError, match="600 x 480; expected 300 x 240"):
                stage(film, big)


def test_true_lesions_are_compared_with_the_map_of_their_class(tmp_path: Path) -> None:
    film = film_with(SQUARE, tmp_path)
    square, other = np.zeros((300, 240), dtype=bool), np.zeros((300, 240), dtype=bool)
    square[SQUARE], other[200:240, 150:190] = True, True
    both = ("Mass", "No Finding")  # what no map is of is compared with the first one
    found = pipeline(method="layer_cam", lung_input="none", classes=both)(
        film, lesions={"Mass": square, "Unknown": other}
    )
    mass, rest = found.lesions
    assert (mass.cls, mass.explained) == ("Mass", "Mass") and mass.hit
    assert mass.energy > 5 * mass.chance and mass.chance == pytest.approx(square.mean())
    assert (rest.cls, rest.explained) == ("Unknown", "Mass")
    assert rest.energy < rest.chance and not rest.hit


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"no class 'mass'\. Did you mean 'Mass'"):
        pipeline(classes=("mass",))
    with pytest.raises(ValueError, match=r"no layer 'trunk\.pol'\. Did you mean 'trunk\.pool'"):
        pipeline(layer="trunk.pol")
    with pytest.raises(ValueError, match=r"lung input 'crp'; allowed: .*Did you mean 'crop'"):
        HybridSettings(lung_input="crp")
    with pytest.raises(ValueError, match="threshold is 2"):
        HybridSettings(threshold=2)
    line = pipeline()
    with pytest.raises(ValueError, match="no lung segmentor"):
        Hybrid(None, line.classifier).segment(Film("a.png"))
    assert replace(line.settings, level=0.3).level == 0.3
