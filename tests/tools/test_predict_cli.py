"""tools/predict.py as a user calls it."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from pycocotools import mask as coco_mask

import fx_d2
import predict
from fx_d2.engine.checkpoint import FxCheckpointer
from fx_d2.engine.setup import load_config
from fx_d2.phantom.world import make_world

ROOT = Path(__file__).parents[2]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quick = ROOT / "configs/quick_schedules/foundation_x_instant_test.yaml"
    sources = ("MODEL.FX.SOURCES", "('rsna','chestx_det')", "INPUT.FX.SIZE", "64")
    cfg = load_config(str(quick), [*sources, "MODEL.DEVICE", "cpu"])
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("run")
    FxCheckpointer(build_model(cfg), str(folder), cfg=cfg).save("model_final", iteration=1)
    return folder / "model_final.safetensors"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four radiographs: DICOM, 8- and 16-bit PNG, not square, two of one name."""
    world = tmp_path_factory.mktemp("world")
    make_world(world, patients=3, seed=2, sources=["rsna"], size_px=96)
    folder = tmp_path_factory.mktemp("films")
    shutil.copy(next(world.rglob("*.dcm")), folder / "a.dcm")
    rng = np.random.default_rng(1)
    (folder / "p1").mkdir()
    small = cv2.GaussianBlur(rng.random((90, 130)), (0, 0), 5)
    small = (small - small.min()) / np.ptp(small)
    cv2.imwrite(str(folder / "a.png"), np.round(small * 255).astype(np.uint8))
    cv2.imwrite(str(folder / "p1/a.png"), np.round(small.T * 65535).astype(np.uint16))
    cv2.imwrite(str(folder / "p1/b.jpg"), np.round(small * 200).astype(np.uint8))
    return folder


@pytest.fixture
def command(weights: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run predict.py: (exit code, stdout, stderr)."""

    def run(*words: object) -> tuple[int, str, str]:
        given = [str(word) for word in words]
        if "--weights" not in given:
            given += ["--weights", str(weights)]
        if "--device" not in given:
            given += ["--device", "cpu"]
        try:
            code = predict.main(given)
        except SystemExit as stop:  # of argparse
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def files_below(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_folder_becomes_json_pictures_and_a_table(
    command: Command, films: Path, weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, printed, said = command(films, "--out", out, "--score-threshold", "0.05", "--size", "256")
    assert code == 0 and printed == "" and "4 of 4 images predicted" in said
    names = ["a", "a_png", "p1/a", "p1/b"]
    assert files_below(out) == sorted(
        [f"json/{n}.json" for n in names] + [f"overlays/{n}.png" for n in names] + ["labels.csv"]
    )
    rows = list(csv.DictReader((out / "labels.csv").open()))
    assert [row["name"] for row in rows] == names
    predictor = fx_d2.Predictor(weights, device="cpu")
    for row, (path, found) in zip(rows, predictor.stream([r["file"] for r in rows]), strict=True):
        about = json.loads((out / "json" / f"{row['name']}.json").read_text())
        assert about["file"] == path and about["labels"] == found["labels"]
        size = (found["height"], found["width"])
        assert (about["height"], about["width"]) == size
        for head, value in row.items():
            source, _, name = head.partition("/")
            if name:
                assert float(value) == pytest.approx(found["labels"][source][name], rel=1e-5)
        check_objects(about, found, "chestx_det")
        masks = found["masks"]["chestx_det"]
        assert set(about["masks"]["chestx_det"]) == set(masks)
        for name, mask in masks.items():
            decoded = coco_mask.decode(about["masks"]["chestx_det"][name])
            assert (decoded.astype(bool) == mask.numpy()).all()
        picture = cv2.imread(str(out / "overlays" / f"{row['name']}.png"))
        assert min(picture.shape[:2]) > 256 * min(size) / max(size)
        assert np.ptp(picture.astype(int), axis=2).max() > 60
    columns = len(rows[0]) - 2
    assert columns == len(predictor.heads["rsna/cls"]) + len(predictor.heads["chestx_det/cls"])


def check_objects(about: dict, found: dict, source: str) -> None:
    instances = found["instances"][source]
    objects = about["instances"][source]
    keep = instances.scores >= 0.05
    assert len(objects) == int(keep.sum()) > 0
    scores = [one["score"] for one in objects]
    assert scores == sorted(scores, reverse=True) == instances.scores[keep].tolist()
    for i, one in enumerate(objects):
        x, y, w, h = one["bbox"]
        corners = np.array([x, y, x + w, y + h])
        assert np.allclose(corners, instances.pred_boxes.tensor[i].numpy(), atol=1e-3)
        decoded = coco_mask.decode(one["segmentation"]).astype(bool)
        assert (decoded == instances.pred_masks[i].numpy()).all()


def test_the_same_twice_and_whatever_the_workers(
    command: Command, films: Path, tmp_path: Path
) -> None:
    for name, more in (("a", ()), ("b", ("--workers", "2"))):
        assert command(films, "--out", tmp_path / name, "--size", "128", *more)[0] == 0
    for file in files_below(tmp_path / "a"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_json_lines(
    command: Command, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed, _ = command(films / "a.dcm", films / "a.png", "--json", "--heads", "rsna/cls")
    assert code == 0 and files_below(tmp_path) == []
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["a.dcm", "a.png"]
    assert all(set(line["labels"]) == {"rsna"} and not line["instances"] for line in lines)
    assert lines[0]["format"] == "fx_d2 prediction 1" and len(lines[0]["weights_sha256"]) == 64
    code, printed, _ = command(films / "a.png", "--json", "--out", "o", "--heads", "rsna,seg")
    assert code == 0
    written = json.loads((tmp_path / "o/json/a.json").read_text())
    assert json.loads(printed) == written and set(written["masks"]) == {"chestx_det"}


def test_the_default_place(
    command: Command, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(films / "a.png", "--heads", "cls")[0] == 0
    assert files_below(tmp_path / "predictions") == ["json/a.json", "labels.csv", "overlays/a.png"]


def test_a_bad_file_is_told_and_the_rest_goes_on(
    command: Command, films: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "films"
    shutil.copytree(films, folder)
    assert command(folder, "--out", tmp_path / "whole", "--size", "128")[0] == 0
    (folder / "a_cut.dcm").write_bytes((folder / "a.dcm").read_bytes()[:1500])
    (folder / "p1/empty.png").write_bytes(b"")
    code, printed, said = command(folder, "--out", tmp_path / "out", "--size", "128", "--json")
    assert code == 1 and "4 of 6 images predicted" in said and "Traceback" not in said
    told = [line for line in said.replace("\r", "\n").splitlines() if "predict: " in line]
    assert len(told) == 2 and "a_cut.dcm" in told[0] and "0 bytes" in told[1]
    lines = [json.loads(line) for line in printed.splitlines()]
    assert [("error" in line) for line in lines] == [False, False, True, False, False, True]
    for name in files_below(tmp_path / "whole"):
        mine, other = tmp_path / "whole" / name, tmp_path / "out" / name
        assert mine.read_bytes() == other.read_bytes()
    assert not [n for n in files_below(tmp_path / "out") if "cut" in n or "empty" in n]


def test_a_full_disk_leaves_no_half_of_a_file(
    command: Command, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fx_d2.data import atomic

    calls = []

    def replace(*places: object) -> None:
        calls.append(places)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(places[1]))
        os.rename(*places)

    monkeypatch.setattr(atomic.os, "replace", replace)
    code, _, said = command(films / "a.png", films / "p1/b.jpg", "--out", tmp_path / "o")
    assert code == 1 and "No space left" in said and "Traceback" not in said
    assert files_below(tmp_path / "o") == ["json/a.json"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{films}/none.png"], "none.png: there is no such file"),
        (["{tmp}/empty"], "no image in"),
        (["{films}", "--weights", "{tmp}/none.safetensors"], "there is no such checkpoint"),
        (["{films}", "--weights", "{tmp}/empty"], "last_checkpoint"),
        (["{films}", "--weights", "{tmp}/text.safetensors"], "description"),
        (["{films}", "--heads", "rnsa/loc"], "Did you mean 'rsna/loc'? This model has rsna/cls"),
        (["{films}", "--heads", "loc,boxes"], "no head 'boxes'"),
        (["{films}", "--device", "gpu"], "device 'gpu' cannot be used"),
        (["{films}", "--out", "{tmp}/text.safetensors"], "is a file"),
        (["{films}", "--out", "/proc/none/here"], "/proc"),
        (["{films}", "--out", "{films}/out"], "lies in"),
        (["{films}", "--out", "{films}"], "lies in"),
        (["{tmp}/o/overlays/x.png", "--out", "{tmp}/o"], "puts its pictures"),
        (["{films}", "--context", "view"], "'view' is not NAME=VALUE"),
        (["{films}", "--context", "view=AP"], "this model is not told 'view' of an image"),
        (["{films}", "--batch-size", "0"], "from 1"),
        (["{films}", "--score-threshold", "1.5"], "not a number from 0 to 1"),
        (["{films}", "--score-threshold", "half"], "half"),
        ([], "INPUT"),
    ],
)
def test_wrong_use_is_one_line(
    command: Command, films: Path, tmp_path: Path, words: list[str], says: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.safetensors").write_text("no weights")
    (tmp_path / "o/overlays").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "o/overlays/x.png"), np.zeros((9, 9), np.uint8))
    given = [word.format(films=films, tmp=tmp_path) for word in words]
    if "--out" not in given:
        given += ["--out", str(tmp_path / "p")]
    before = files_below(tmp_path)
    code, _, said = command(*given)
    assert code == 2 and says in said and said.count("\n") == 1, said
    assert files_below(tmp_path) == before


def test_places_are_checked_before_the_model_is_built(
    command: Command, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []
    monkeypatch.setattr(predict, "Predictor", lambda *a, **k: built.append(a))
    (tmp_path / "out").mkdir()
    (tmp_path / "out/json").write_text("")
    assert command(films, "--out", tmp_path / "out")[0] == 2 and not built
    assert command(films / "gone", "--out", tmp_path / "p")[0] == 2 and not built


def test_memory_of_the_device(
    command: Command, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object, **kwargs: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(fx_d2.Predictor, "stream", full)
    code, _, said = command(films, "--out", tmp_path / "o")
    assert code == 2 and "lower --batch-size" in said and said.count("\n") == 1
