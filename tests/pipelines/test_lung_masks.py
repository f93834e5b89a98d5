"""Lung masks by checkpoints of several kinds, and tools/ensemble_masks.py as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import ensemble_masks
from fx_d2.data.catalog import load_records
from fx_d2.data.lung_input import lung_classes
from fx_d2.data.splits import write_split_file
from fx_d2.engine.checkpoint import FxCheckpointer
from fx_d2.engine.setup import load_config
from fx_d2.phantom.world import make_world
from fx_d2.pipelines.lung_masks import LungSegmentor, MaskRecipe
from fx_d2.pipelines.mask_ensemble import RULES, Cleaning
from fx_d2.predictor import Predictor

CONFIGS = Path(__file__).parents[2] / "configs"
SMALL = ["MODEL.DEVICE", "cpu", "INPUT.FX.SIZE", "64"]
SEGMENTOR = "quick_schedules/lungs_instant_test.yaml"
FOUNDATION = "quick_schedules/few_shot_instant_test.yaml"
Command = Callable[..., tuple[int, str, str]]


def saved(folder: Path, config: str, seed: int, *words: str) -> Path:
    cfg = load_config(str(CONFIGS / config), [*SMALL, *words])
    torch.manual_seed(seed)
    model = build_model(cfg).eval()
    for name, value in model.named_parameters():
        if name.startswith("heads.seg.") and name.endswith("bias"):
            value.data.zero_()  # an untrained model marks something
        elif name.startswith("heads.seg."):
            value.data *= 100  # and is not everywhere at one half
    FxCheckpointer(model, str(folder), cfg=cfg).save("model_final", iteration=0)
    return folder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, patients=10, seed=3, sources=["montgomery"], size_px=96)
    return folder


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A segmentor at 64 px, and a Foundation X of another source's lungs at 96."""
    folder = tmp_path_factory.mktemp("runs")
    one = saved(folder / "unet", SEGMENTOR, 1, "MODEL.FX.SEG.DECODER", "unet")
    words = ("MODEL.FX.SOURCES", "('covid_radiography',)", "INPUT.FX.SIZE", "96")
    return [one, saved(folder / "swin", FOUNDATION, 2, *words)]


def test_lungs_are_the_pair_or_the_one() -> None:
    assert lung_classes(("Heart", "Left Lung", "Right Lung")) == ("Left Lung", "Right Lung")
    assert lung_classes(("Lungs",)) == ("Lungs",)
    assert lung_classes(("Left Lung", "Heart")) == () == lung_classes(())


def test_models_of_any_kind_and_size_make_one_mask(members: list[Path]) -> None:
    film = (np.random.default_rng(0).random((70, 90)) * 255).astype(np.uint8)
    recipe = MaskRecipe("mean", 0.5, Cleaning(components=0, least=0, fill=0, dilate=0))
    lungs = LungSegmentor(members, recipe=recipe, device="cpu")
    assert lungs.names == ("unet", "swin")
    given = lungs.probabilities(film)
    assert given.shape == (2, 70, 90) and given.dtype == np.float32
    assert len(np.unique(given[0])) > 50  # probabilities, not masks
    assert np.array_equal(lungs(film), given.mean(axis=0) >= 0.5)
    hard = Predictor(members[0], device="cpu")(film)["masks"]["montgomery"]
    both = hard["Left Lung"].numpy() | hard["Right Lung"].numpy()
    # Half precision may take a value over the threshold.
    assert ((given[0] >= 0.5) != both).mean() < 0.01
    twice = LungSegmentor([members[0]] * 2, device="cpu")
    assert twice.names == ("unet", "unet (2)")


def test_models_without_lungs_are_refused(members: list[Path], tmp_path: Path) -> None:
    words = ("MODEL.FX.SOURCES", "('siim_acr',)")
    other = saved(tmp_path / "other", FOUNDATION, 3, *words)
    with pytest.raises(ValueError, match="no masks of lungs among its heads siim_acr/seg"):
        LungSegmentor([members[0], other], device="cpu")
    with pytest.raises(ValueError, match="no lungs of 'jsrt'; it has those of montgomery"):
        LungSegmentor(members[:1], heads=["jsrt"], device="cpu")
    with pytest.raises(ValueError, match="1 heads for 2 models"):
        LungSegmentor(members, heads=["montgomery"], device="cpu")
    with pytest.raises(ValueError, match="no weights are named"):
        LungSegmentor([])
    with pytest.raises(ValueError, match="Did you mean 'staple'"):
        MaskRecipe("stapel")


@pytest.fixture
def command(
    world: Path,
    members: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Run the tool: (exit code, stdout, stderr)."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world))

    def call(*words: object, source: str = "montgomery") -> tuple[int, str, str]:
        given = ["--weights", *members, "--source", source, "--out", tmp_path / "out", *words]
        try:
            code = ensemble_masks.main([str(word) for word in given])
        except SystemExit as stop:  # of argparse
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_report_has_every_rule_and_every_model(command: Command, tmp_path: Path) -> None:
    code, out, _ = command("--num", "1", "--size", "128", "--device", "cpu")
    assert code == 0 and "| union " in out
    body = json.loads((tmp_path / "out" / "report.json").read_text())
    names = {"unet", "swin", *RULES, *(f"{rule} + cleaning" for rule in RULES)}
    assert set(body["figures"]) == names
    assert body["dataset"] == "montgomery_test" and body["images"] == len(body["per_image"]) > 0
    for row in body["figures"].values():
        assert 0 <= row["lowest"] <= row["Dice"] <= 1 and row["IoU"] <= row["Dice"]
    figures = body["figures"]
    assert figures["intersection"]["area"] <= figures["majority"]["area"]
    assert (
        figures["mean"]["area"] <= figures["union"]["area"] <= figures["union + cleaning"]["area"]
    )
    assert figures["union"]["recall"] >= max(figures["unet"]["recall"], figures["swin"]["recall"])
    mean = np.mean([row["dice"]["staple"] for row in body["per_image"]])
    assert figures["staple"]["Dice"] == pytest.approx(mean)
    for row in body["per_image"]:  # of each image, not of the means
        for name in names:
            dice = row["dice"][name]
            assert row["iou"][name] == pytest.approx(dice / (2 - dice))
    assert [model["source"] for model in body["models"]] == ["montgomery", "covid_radiography"]
    assert cv2.imread(str(tmp_path / "out" / "worst.png")).shape[1] > 3 * 100
    assert "false area" in (tmp_path / "out" / "report.md").read_text()


def test_held_images_are_those_of_the_split_file(command: Command, tmp_path: Path) -> None:
    films = {
        split: [record["image_id"] for record in load_records("montgomery", split)]
        for split in ("train", "test")
    }
    held = films["train"][:2]
    file = tmp_path / "split.json"
    write_split_file(file, "montgomery", {"train": films["test"], "held": held})
    words = ("--num", "0", "--device", "cpu")
    code, _, err = command("--split", "held", "--split-file", file, *words)
    assert code == 0, err
    body = json.loads((tmp_path / "out" / "report.json").read_text())
    assert sorted(row["image_id"] for row in body["per_image"]) == sorted(held)
    assert body["split_file"] == str(file) and body["dataset"] == "montgomery_held"
    code, _, err = command("--split", "val", "--split-file", file, *words)
    assert code != 0 and "no split 'val'" in err and "['held', 'train']" in err
    code, _, err = command("--split-file", tmp_path / "nowhere.json", *words)
    assert code != 0 and "nowhere.json" in err and "Traceback" not in err


def test_a_broken_film_ends_it_or_is_counted(command: Command, world: Path, tmp_path: Path) -> None:
    films = sorted((world / "MontgomerySet" / "CXR_png").glob("*.png"))
    kept = {film: film.read_bytes() for film in films}
    try:
        for film in films[1:]:
            film.write_bytes(b"no image")
        code, _, err = command("--split", "all", "--num", "0")
        assert code == 1 and "Traceback" not in err and "ensemble_masks: " in err
        code, _, err = command("--split", "all", "--num", "0", "--skip")
        assert code == 0 and err.count("left out") == len(films) - 1
        body = json.loads((tmp_path / "out" / "report.json").read_text())
        assert body["images"] == 1 and len(body["skipped"]) == len(films) - 1
        films[0].write_bytes(b"")
        assert command("--split", "all", "--skip")[0] == 1
    finally:
        for film, data in kept.items():
            film.write_bytes(data)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--rule", "unoin"), "Did you mean 'union'"),
        (("--split", "tests"), "montgomery has train, val, test"),
        (("--dilate", "2"), "not a number from 0 to 0.5"),
        (("--heads", "montgomery", "jsrt"), "no lungs of 'jsrt'"),
        (("--weights", "/nowhere"), "there is no such checkpoint"),
    ],
)
def test_wrong_use_is_one_line(command: Command, words: tuple[str, ...], told: str) -> None:
    code, _, err = command(*words)
    assert code == 2 and told in err and err.count("\n") == 1


def test_a_source_without_lungs_is_refused(command: Command) -> None:
    assert "siim_acr has no masks of lungs" in command(source="siim_acr")[2]
    assert "Did you mean 'montgomery'" in command(source="montgomry")[2]
