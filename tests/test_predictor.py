"""A Predictor gives what an evaluation gives, in pixels of the original, from the weights alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances

import fx_d2
from fx_d2 import predictor as predictor_module
from fx_d2.data.build import build_eval_loader
from fx_d2.data.errors import DataError
from fx_d2.data.images import read_image
from fx_d2.engine.checkpoint import CheckpointError, FxCheckpointer, load_weights
from fx_d2.engine.setup import load_config
from fx_d2.engine.step import precision_of
from fx_d2.phantom.world import make_world

QUICK = "configs/quick_schedules/foundation_x_instant_test.yaml"
SOURCES = ("nih14", "rsna", "chestx_det")
Saved = Callable[..., Path]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """8-bit PNG (nih14, chestx_det), DICOM of both photometric kinds and not square (vindr)."""
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, patients=6, seed=2, sources=[*SOURCES, "vindr_local"], size_px=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(folder))
        yield folder


def config(*overrides: Any) -> CfgNode:
    root = Path(__file__).parents[1]
    sources = ("MODEL.FX.SOURCES", str((*SOURCES, "vindr_local")), "MODEL.DEVICE", "cpu")
    small = ("INPUT.FX.SIZE", "64", "SOLVER.IMS_PER_BATCH", "2")
    return load_config(str(root / QUICK), [*sources, *small, *map(str, overrides)])


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    """Random weights of a config with overrides, saved as a run saves them."""
    done: dict[tuple[Any, ...], Path] = {}

    def save(*overrides: Any) -> Path:
        if overrides not in done:
            cfg = config(*overrides)
            torch.manual_seed(4)
            folder = tmp_path_factory.mktemp("weights")
            FxCheckpointer(build_model(cfg), str(folder), cfg=cfg).save_weights("w", iteration=7)
            done[overrides] = folder / "w.safetensors"
        return done[overrides]

    return save


def films(world: Path) -> list[Path]:
    return sorted((world / "rsna-pneumonia-detection-challenge").rglob("*.dcm"))


def assert_same(mine: Any, theirs: Any) -> None:
    """Equal to the last bit."""
    assert mine["labels"] == theirs["labels"]
    assert set(mine["instances"]) == set(theirs["instances"])
    for source, a in mine["instances"].items():
        b = theirs["instances"][source]
        assert a.image_size == b.image_size and set(a.get_fields()) == set(b.get_fields())
        assert torch.equal(a.pred_boxes.tensor, b.pred_boxes.tensor)
        assert torch.equal(a.scores, b.scores) and torch.equal(a.pred_classes, b.pred_classes)
        if a.has("pred_masks"):
            assert torch.equal(a.pred_masks.maps, b.pred_masks.maps)
    assert {s: list(m) for s, m in mine["masks"].items()} == {
        s: list(m) for s, m in theirs["masks"].items()
    }
    for source, masks in mine["masks"].items():
        for name, mask in masks.items():
            assert mask.dtype == torch.bool and torch.equal(mask, theirs["masks"][source][name])


# Evaluation and prediction ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "tasks"),
    [("rsna_train", ("cls", "loc")), ("chestx_det_train", ("cls", "loc", "seg"))],
)
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("INPUT.FX.RESIZE", "keep", "INPUT.FX.INTENSITY.MODE", "depth"),
        (
            "INPUT.FX.INTENSITY.GAMMA",
            0.7,
            "INPUT.FX.AUG.LOC.FLIP",
            1.0,
            "INPUT.FX.AUG.CLS.FLIP",
            1.0,
        ),
        ("SOLVER.FX.PRECISION", "bf16"),
    ],
    ids=["default", "keep", "gamma", "bf16"],
)
def test_equals_the_evaluation(
    world: Path, saved: Saved, dataset: str, tasks: tuple[str, ...], overrides: tuple[Any, ...]
) -> None:
    weights = saved(*overrides)
    cfg = config(*overrides)
    model = build_model(cfg).eval()
    load_weights(model, weights)
    loader = build_eval_loader(cfg, dataset, tasks)
    source = dataset.removesuffix("_train")
    heads = [(source, task) for task in tasks]
    expected = []
    with model.asking(heads), precision_of(cfg):
        for batch in loader:
            expected += model(batch)
    predictor = fx_d2.Predictor(weights, heads=heads, device="cpu", batch_size=2)
    files = [record["file_name"] for record in loader.records]
    found = dict(predictor.stream(files))
    assert list(found) == files and len(files) >= 3
    for file, output in zip(files, expected, strict=True):
        prediction = found[file]
        assert_same(prediction, output)
        facts = read_image(file).facts
        assert (prediction["height"], prediction["width"]) == (facts.height, facts.width)
    # The inputs differ from image to image, and so does what is made of them.
    assert len({json.dumps(p["labels"]) for p in found.values()}) == len(files)


@pytest.mark.parametrize("voi", ["auto", "ignore"])
def test_films_that_are_not_square_and_inverted_ones(world: Path, saved: Saved, voi: str) -> None:
    """VinDr's DICOM: the same as the evaluation, one by one."""
    overrides = ("INPUT.FX.INTENSITY.VOI", voi)
    cfg = config(*overrides)
    model = build_model(cfg).eval()
    load_weights(model, saved(*overrides))
    loader = build_eval_loader(cfg, "vindr_local_train", ("loc",))
    predictor = fx_d2.Predictor(saved(*overrides), heads="vindr_local", device="cpu", batch_size=2)
    kinds, shapes, windows = set(), set(), set()
    files = [record["file_name"] for record in loader.records]
    found = [prediction for _, prediction in predictor.stream(files)]
    with model.asking(["vindr_local"]):
        expected = [output for batch in loader for output in model(batch)]
    for file, mine, theirs in zip(files, found, expected, strict=True):
        assert_same(mine, theirs)
        facts = read_image(file).facts
        kinds.add(facts.photometric)
        shapes.add(facts.height == facts.width)
        windows.add(facts.voi)
    assert "MONOCHROME1" in kinds and False in shapes and windows - {"none"}


def test_readers_in_other_processes_change_nothing(world: Path, saved: Saved) -> None:
    predictor = fx_d2.Predictor(saved(), device="cpu", batch_size=2)
    here = list(predictor.stream(films(world)[:4]))
    there = list(predictor.stream(films(world)[:4], num_workers=2))
    assert [path for path, _ in here] == [path for path, _ in there]
    for (_, a), (_, b) in zip(here, there, strict=True):
        assert_same(a, b)


# Pixels of the original ---------------------------------------------------------------------------


@pytest.mark.parametrize("resize", ["square", "keep"])
@pytest.mark.parametrize("size", [(300, 180), (140, 280)])
def test_what_is_found_lies_where_it_is(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, resize: str, size: tuple[int, int]
) -> None:
    """Heads that find what is bright in the input; the rest of the way back is the model's own."""
    predictor = fx_d2.Predictor(saved("INPUT.FX.RESIZE", resize), heads="chestx_det", device="cpu")
    model, seen = predictor.model, {}
    images = model._images

    def keep(batch: Any) -> Any:
        seen["images"] = images(batch)
        return seen["images"]

    def bright() -> torch.Tensor:
        tensor = seen["images"].tensor
        return tensor[:, :1] > tensor.mean() + 2 * tensor.std()

    def boxes(levels: Any, proposals: Any, sources: list[str], decoder: Any) -> Any:
        rows, columns = bright()[0, 0].nonzero().unbind(1)
        one = Instances(seen["images"].image_sizes[0])
        corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        one.pred_boxes = Boxes(torch.stack(corners)[None].float())
        one.scores, one.pred_classes = torch.ones(1), torch.zeros(1, dtype=torch.int64)
        one.pred_masks = torch.ones(1, 1, 28, 28)
        return {source: [one] for source in sources}

    def masks(decoded: Any, source: str, shape: Any) -> torch.Tensor:
        return (bright().float() * 20 - 10).expand(-1, 13, -1, -1)

    monkeypatch.setattr(model, "_images", keep)
    monkeypatch.setattr(model.heads["loc"], "inference", boxes)
    monkeypatch.setattr(model.heads["seg"], "forward", masks)
    height, width = size
    film = np.full(size, 30, dtype=np.uint8)
    box = (round(0.55 * width), round(0.2 * height), round(0.75 * width), round(0.4 * height))
    film[box[1] : box[3], box[0] : box[2]] = 250
    found = predictor(film)
    tolerance = 2 * max(size) / 64  # a pixel of the input at either edge
    instances = found["instances"]["chestx_det"]
    assert instances.image_size == size
    assert np.abs(instances.pred_boxes.tensor[0].numpy() - box).max() <= tolerance
    truth = film > 100
    for mask in (found["masks"]["chestx_det"]["Nodule"], instances.pred_masks[0]):
        assert tuple(mask.shape) == size
        overlap = (mask.numpy() & truth).sum() / (mask.numpy() | truth).sum()
        assert overlap > 0.7


# Streams ------------------------------------------------------------------------------------------


def test_a_broken_file_changes_nothing_for_the_others(
    world: Path, saved: Saved, tmp_path: Path
) -> None:
    names = []
    for number, film in enumerate(films(world)[:5]):
        names.append(tmp_path / f"{number}.dcm")
        shutil.copy(film, names[-1])
    predictor = fx_d2.Predictor(saved(), device="cpu", batch_size=2)
    before = dict(predictor.stream(names))
    broken = tmp_path / "1_broken.dcm"
    broken.write_bytes(names[0].read_bytes()[:2000])
    given = sorted([*names, broken])
    found = list(predictor.stream(given))
    assert [path for path, _ in found] == given
    errors = [path for path, prediction in found if isinstance(prediction, DataError)]
    assert errors == [broken]
    for path, prediction in found:
        if path != broken:
            assert_same(prediction, before[path])
    with pytest.raises(DataError, match=r"1_broken\.dcm"):
        predictor(given)


def test_only_broken_files(saved: Saved, tmp_path: Path) -> None:
    predictor = fx_d2.Predictor(saved(), device="cpu")
    found = list(predictor.stream([tmp_path / "a.png", tmp_path / "b.png"]))
    assert [type(prediction) for _, prediction in found] == [DataError, DataError]
    assert list(predictor.stream([])) == []


def test_no_more_is_read_than_a_batch_ahead(saved: Saved, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = fx_d2.Predictor(saved(), device="cpu", batch_size=3)
    batches: list[int] = []
    forward = predictor.model.forward
    monkeypatch.setattr(
        predictor.model, "forward", lambda batch: batches.append(len(batch)) or forward(batch)
    )
    taken = 0

    def arrays() -> Iterator[np.ndarray]:
        nonlocal taken
        for number in range(8):
            taken += 1
            yield np.full((40, 50), number, dtype=np.uint8)

    stream = predictor.stream(arrays())
    next(stream)
    assert taken <= 4 and batches == [3]
    assert len(list(stream)) == 7 and batches == [3, 3, 2]
    # Two films with the masks of 13 classes would be over the limit.
    monkeypatch.setattr(predictor_module, "_MAX_MASK_BYTES", 40 * 50 * 13)
    batches.clear()
    assert len(list(predictor.stream(arrays()))) == 8 and batches == [1] * 8


# Inputs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["percentile", "depth"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_arrays_are_as_files(saved: Saved, tmp_path: Path, mode: str, kind: Any) -> None:
    predictor = fx_d2.Predictor(saved("INPUT.FX.INTENSITY.MODE", mode), device="cpu")
    smooth = cv2.GaussianBlur(np.random.default_rng(0).random((70, 110)), (0, 0), 6)
    smooth = (smooth - smooth.min()) / np.ptp(smooth)
    film = np.round(smooth * np.iinfo(kind).max * 0.8).astype(kind)
    assert cv2.imwrite(str(tmp_path / "a.png"), film)
    from_file, from_array = predictor(tmp_path / "a.png"), predictor(film)
    assert_same(from_file, from_array)
    as_float = predictor([film.astype(np.float64) / np.iinfo(kind).max])[0]
    for name, value in from_array["labels"]["rsna"].items():
        assert as_float["labels"]["rsna"][name] == pytest.approx(value, abs=1e-4)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.uint8),
        np.zeros((4, 4), np.int64),
        np.zeros((0, 4), np.uint8),
        np.full((4, 4), np.nan, np.float32),
        np.zeros((4, 4), bool),
    ],
    ids=["colour", "int64", "empty", "nan", "bool"],
)
def test_other_arrays_are_refused(saved: Saved, array: np.ndarray) -> None:
    with pytest.raises(DataError, match="array"):
        fx_d2.Predictor(saved(), device="cpu")(array)


def test_floats_beyond_one_need_a_stretch(saved: Saved) -> None:
    film = np.linspace(-1000, 3000, 64 * 64).reshape(64, 64)
    assert fx_d2.Predictor(saved(), device="cpu")(film)["labels"]
    with pytest.raises(DataError, match=r"-1000 to 3000.*\[0, 1\]"):
        fx_d2.Predictor(saved("INPUT.FX.INTENSITY.MODE", "depth"), device="cpu")(film)


# The checkpoint -----------------------------------------------------------------------------------


def test_heads_are_listed_and_chosen(saved: Saved) -> None:
    predictor = fx_d2.Predictor(saved(), heads=["nih14/cls", "loc"], device="cpu")
    assert predictor.heads["rsna/loc"] == ("Lung Opacity",)
    assert len(predictor.heads) == 8 and len(predictor.heads["chestx_det/seg"]) == 13
    assert predictor.asked == (
        "nih14/cls", "rsna/loc", "chestx_det/loc", "vindr_local/loc"
    )  # fmt: skip
    found = predictor(np.zeros((30, 30), np.uint8))
    assert list(found["labels"]) == ["nih14"] and found["masks"] == {}
    assert list(found["instances"]) == ["rsna", "chestx_det", "vindr_local"]
    with pytest.raises(KeyError, match=r"rnsa.*Did you mean 'rsna.*chestx_det/seg"):
        fx_d2.Predictor(saved(), heads=["rnsa/loc"], device="cpu")


def test_nothing_is_downloaded_and_no_random_state_is_touched(
    saved: Saved, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from fx_d2.modeling.backbone import weights as trunk_weights

    for suffix in (".safetensors", ".json"):
        shutil.copy(saved().with_suffix(suffix), tmp_path / f"w{suffix}")
    about = json.loads((tmp_path / "w.json").read_text())
    assert "PRETRAINED: ''" in about["config"]
    about["config"] = about["config"].replace("PRETRAINED: ''", "PRETRAINED: timm")
    about["config"] = about["config"].replace("DEVICE: cpu", "DEVICE: cuda")
    (tmp_path / "w.json").write_text(json.dumps(about))
    asked: list[str] = []
    monkeypatch.setattr(trunk_weights, "load_trunk_weights", lambda *a, **k: asked.append("hub"))
    monkeypatch.setattr(trunk_weights, "find_published_file", lambda *a: asked.append("hub"))
    before = torch.get_rng_state()
    found = fx_d2.Predictor(tmp_path / "w.safetensors", device="cpu")(np.eye(40, dtype=np.uint8))
    assert torch.equal(before, torch.get_rng_state()) and not asked
    same = fx_d2.Predictor(saved(), device="cpu")(np.eye(40, dtype=np.uint8))
    assert_same(found, same)


def _edit(about: dict[str, Any], case: str) -> None:
    if case == "classes":
        about["sources"]["rsna"]["cls"][0] = "Healthy"
    elif case == "source":
        about["sources"]["my_hospital"] = {"cls": ["Edema"]}
    elif case == "fewer":
        del about["sources"]["nih14"]
    elif case == "no config":
        del about["config"]
    elif case == "no sources":
        about["sources"] = []
    elif case == "trunk":
        about["config"] = about["config"].replace("NAME: swin_t", "NAME: swin_x")


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("classes", r"heads\.cls\.rsna.*Healthy"),
        ("source", "my_hospital.*registers it"),
        ("fewer", r"heads\.cls\.nih14"),
        ("no config", "no config"),
        ("no sources", "no heads"),
        ("trunk", "swin_x"),
    ],
)
def test_descriptions_that_do_not_fit(saved: Saved, tmp_path: Path, case: str, says: str) -> None:
    for suffix in (".safetensors", ".json"):
        shutil.copy(saved().with_suffix(suffix), tmp_path / f"w{suffix}")
    about = json.loads((tmp_path / "w.json").read_text())
    _edit(about, case)
    (tmp_path / "w.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=says) as caught:
        fx_d2.Predictor(tmp_path / "w.safetensors", device="cpu")
    assert "\n" not in str(caught.value)


def test_weights_without_a_description(saved: Saved, tmp_path: Path) -> None:
    shutil.copy(saved(), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="description"):
        fx_d2.Predictor(tmp_path / "w.safetensors")


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "meta"])
def test_devices_that_are_not_there(saved: Saved, device: str) -> None:
    with pytest.raises(ValueError, match=f"device '{device}' cannot be used"):
        fx_d2.Predictor(saved(), device=device)


def test_it_comes_with_the_package_but_not_at_import() -> None:
    assert fx_d2.Predictor is predictor_module.Predictor and "Predictor" in fx_d2.__all__
    with pytest.raises(AttributeError, match="no attribute 'Predicator'"):
        _ = fx_d2.Predicator


@pytest.fixture(scope="module")
def limb_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FPSM on MURA, told the body part; its table is not zero, as after a training."""
    root, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("limbs")
    quick = root / "configs/quick_schedules/fpsm_instant_test.yaml"
    words = ["DATASETS.TRAIN", "('mura_train',)", "MODEL.DEVICE", "cpu", "MODEL.FX.CLS.LOSS", "bce"]
    cfg = load_config(str(quick), [*words, "MODEL.FX.SOURCES", "('mura',)", "INPUT.FX.SIZE", "64"])
    torch.manual_seed(4)
    model = build_model(cfg)
    for name, parameter in model.named_parameters():
        if "context" in name:
            torch.nn.init.normal_(parameter, std=3.0)
    FxCheckpointer(model, str(folder), cfg=cfg).save_weights("w", iteration=7)
    return folder / "w.safetensors"


def test_a_body_part_is_told(limb_model: Path) -> None:
    film = np.random.default_rng(1).random((64, 64))

    def said(**context: str) -> float:
        found = fx_d2.Predictor(limb_model, device="cpu", context=context)(film)
        return found["labels"]["mura"]["Abnormal"]

    wrist, hand = said(body_part="WRIST"), said(body_part="HAND")
    assert wrist == said(body_part="WRIST") != hand
    assert said(body_part="WRIST", view="PA") != wrist != said(body_part="unknown")


@pytest.mark.parametrize(
    ("context", "told"),
    [
        ({}, "has to be told the body_part of an image; name one of unknown, ELBOW"),
        ({"body_part": "wrst"}, r"body_part is 'wrst'; did you mean 'WRIST'\? .known: unknown"),
        ({"body_part": "HAND", "source": "mura"}, "not told 'source'.*it is told view, body_part"),
    ],
    ids=str,
)
def test_what_is_told_wrongly(limb_model: Path, context: dict[str, str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        fx_d2.Predictor(limb_model, device="cpu", context=context)


def test_a_model_of_pixels_is_told_nothing(saved: Saved) -> None:
    with pytest.raises(ValueError, match="not told 'view'.*nothing but the pixels"):
        fx_d2.Predictor(saved(), device="cpu", context={"view": "AP"})
