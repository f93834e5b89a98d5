"""tools/run_hybrid.py as a user calls it, on tiny random checkpoints."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import run_hybrid
from fx_d2.engine.checkpoint import FxCheckpointer
from fx_d2.engine.ensemble import load_trained
from fx_d2.engine.setup import load_config
from fx_d2.phantom.world import make_world
from fx_d2.pipelines.committee_members import last_stage

ROOT = Path(__file__).parents[2]
QUICK = str(ROOT / "configs/quick_schedules/foundation_x_instant_test.yaml")
ODD = "a<b>&'q.png"  # a name that would be markup
Command = Callable[..., tuple[int, str]]


def save(folder: Path, task: str, source: str, *words: str, everything: bool = False) -> None:
    """Random weights; ``everything`` calls every pixel lung."""
    given = ("MODEL.FX.SOURCES", f"('{source}',)", "DATASETS.TASKS", f"('{task}',)")
    cfg = load_config(QUICK, [*given, *words, "INPUT.FX.SIZE", "64", "MODEL.DEVICE", "cpu"])
    torch.manual_seed(3)
    model = build_model(cfg)
    if everything:
        for name, parameter in model.named_parameters():
            if name.startswith("heads.seg") and name.endswith("bias"):
                torch.nn.init.constant_(parameter, 40.0)
    FxCheckpointer(model, str(folder), cfg=cfg).save("model_final", iteration=1)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    save(folder / "segmentors/all", "seg", "montgomery", everything=True)
    save(folder / "segmentors/none", "seg", "covid_radiography")
    save(folder / "classifier", "cls", "covid_radiography")
    save(folder / "masked", "seg", "montgomery", "INPUT.FX.LUNGS.MODE", "mask")
    return folder


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two DICOM, a PNG with an odd name, a 16-bit PNG below, a broken DICOM."""
    world = tmp_path_factory.mktemp("world")
    make_world(world, patients=3, seed=2, sources=["rsna"], size_px=96)
    folder = tmp_path_factory.mktemp("films")
    dicoms = sorted(world.rglob("*.dcm"))
    for number, path in enumerate(dicoms[:2]):
        shutil.copy(path, folder / f"d{number}.dcm")
    (folder / "<i>broken.dcm").write_bytes(dicoms[0].read_bytes()[:600])
    rng = np.random.default_rng(1)
    grey = cv2.GaussianBlur(rng.random((90, 130)), (0, 0), 5)
    grey = (grey - grey.min()) / np.ptp(grey)
    cv2.imwrite(str(folder / "odd.png"), np.round(grey * 255).astype(np.uint8))
    (folder / "odd.png").rename(folder / ODD)
    (folder / "sub").mkdir()
    cv2.imwrite(str(folder / "sub/deep.png"), np.round(grey.T * 65535).astype(np.uint16))
    return folder


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    """Run run_hybrid.py on the CPU: (exit code, stderr)."""

    def run(*words: object) -> tuple[int, str]:
        try:
            code = run_hybrid.main([*map(str, words), "--device", "cpu"])
        except SystemExit as stop:  # of argparse
            code = int(stop.code or 0)
        return code, capsys.readouterr().err

    return run


@dataclass
class Ran:
    out: Path
    code: int
    rows: dict[str, dict[str, str]]
    lines: dict[str, dict]
    summary: dict
    page: str


@pytest.fixture(scope="module")
def ran(weights: Path, films: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The whole folder, once, by the mask that calls everything lung."""
    out = tmp_path_factory.mktemp("out") / "hybrid"
    code = run_hybrid.main(
        [*(str(films), "--weights", str(weights), "--out", str(out)), "--device", "cpu"]
    )
    lines = [json.loads(line) for line in (out / "films.jsonl").read_text().splitlines()]
    return Ran(
        out,
        code,
        {row["name"]: row for row in csv.DictReader((out / "summary.csv").open())},
        {line["name"]: line for line in lines},
        json.loads((out / "summary.json").read_text()),
        (out / "index.html").read_text(),
    )


def test_a_corrupt_file_is_reported_and_the_rest_finish(ran: Ran) -> None:
    assert ran.code == 1
    assert ran.summary["films"] == 5 and ran.summary["by_status"] == {"done": 4, "not read": 1}
    (bad,) = ran.summary["not_read"]
    assert bad["file"].endswith("<i>broken.dcm") and bad["why"]
    assert ran.rows["<i>broken"]["status"] == "not read" and ran.rows["<i>broken"]["warnings"]
    assert ran.summary["seconds_per_film"] > 0 and ran.summary["peak_memory_mib"] > 100


def test_files_are_of_the_films_size(ran: Ran) -> None:
    for name, row in ran.rows.items():
        if row["status"] != "done":
            assert not (ran.out / "masks" / f"{name}.png").exists()
            continue
        size = (int(row["height"]), int(row["width"]))
        mask = cv2.imread(str(ran.out / "masks" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
        assert mask.shape == size and set(np.unique(mask)) <= {0, 255}
        assert (mask > 0).mean() == pytest.approx(float(row["lung_area"]), abs=1e-4)
        (heat,) = ran.lines[name]["maps"]
        kind = heat["class"].replace(" ", "_")
        values = cv2.imread(str(ran.out / f"maps/{name}.{kind}.png"), cv2.IMREAD_UNCHANGED)
        assert values.shape == size and values.max() in (0, 255)
        assert (ran.out / "overlays" / f"{name}.png").is_file()
    assert ran.rows["sub/deep"]["height"] == "130"


def test_tables_say_the_same(ran: Ran) -> None:
    for name, row in ran.rows.items():
        line = ran.lines[name]
        assert line["status"] == row["status"]
        if line["status"] != "done":
            continue
        shown = {key[2:]: float(value) for key, value in row.items() if key.startswith("p:")}
        assert shown == pytest.approx(line["labels"], abs=1e-4)
        assert sum(shown.values()) == pytest.approx(1, abs=1e-3)
        assert row["explained"] == max(shown, key=lambda cls: shown[cls])
        finding = row["explained"] != "Normal"
        assert bool(row["positive"]) == finding == bool(row["severity_heuristic"])


def test_implausible_masks_are_told(ran: Ran) -> None:
    assert ran.summary["with_warnings"] == 4
    assert ran.summary["warnings"] == {"lung area": 4, "lung pieces": 4, "lungs at the frame": 4}
    assert "covers 100.0% of the film" in ran.rows["d0"]["warnings"]


def test_the_page_stands_alone_and_escapes_names(ran: Ran) -> None:
    assert "<b>&'" not in ran.page and "<i>broken" not in ran.page
    assert "a&lt;b&gt;&amp;" in ran.page and "&lt;i&gt;broken" in ran.page
    assert not re.search(r"https?://|<script|<link|@import|url\(", ran.page)
    assert set(re.findall(r"src='([^,]*),", ran.page)) == {"data:image/jpeg;base64"}
    assert "heuristic" in ran.page and "Not read: 1" in ran.page
    assert len(ran.page) < 2_000_000


def test_maps_are_of_the_last_stage_that_is_fine_enough(ran: Ran, weights: Path) -> None:
    """At 64 px stride 32 has 2 x 2 cells, stride 16 has 4 x 4, stride 8 has 8 x 8."""
    layer = ran.summary["settings"]["heat_map"]["layer"]
    module = load_trained(weights / "classifier", torch.device("cpu")).model
    info = module.trunk.net.feature_info
    facts = info if isinstance(info, list) else info.get_dicts()
    assert [f["reduction"] for f in facts if layer == f"trunk.net.{f['module']}"] == [8]
    assert last_stage(module).endswith(facts[-1]["module"])


def test_severity_is_called_a_heuristic_wherever_it_stands(ran: Ran) -> None:
    assert "heuristic" in ran.summary["severity"]
    assert "severity_heuristic" in next(iter(ran.rows.values()))
    assert all(
        "severity_heuristic" in m for line in ran.lines.values() for m in line.get("maps", ())
    )
    assert "severity *" in ran.page


def test_films_without_lungs_are_counted(
    command: Command, films: Path, weights: Path, tmp_path: Path
) -> None:
    none = weights / "segmentors/none"
    words = ("--segmentor", none, "--classifier", weights / "classifier", "--out", tmp_path / "o")
    code, said = command(films / "d0.dcm", films / "sub", *words)
    assert code == 0 and "0 of 2 films done" in said and "no lungs 2" in said
    summary = json.loads((tmp_path / "o/summary.json").read_text())
    assert summary["by_status"] == {"no lungs": 2}
    assert "2 with warnings: no lungs 2" in said


def test_given_masks(command: Command, films: Path, weights: Path, tmp_path: Path) -> None:
    """One fits, one is bigger than its film, one is not there."""
    masks = tmp_path / "masks"
    (masks / "sub").mkdir(parents=True)
    mask = np.zeros((130, 90), dtype=np.uint8)
    mask[30:100, 10:35] = mask[30:100, 50:80] = 255
    cv2.imwrite(str(masks / "sub/deep.png"), mask)
    cv2.imwrite(str(masks / "d0.png"), np.full((500, 500), 255, dtype=np.uint8))
    words = ("--masks", masks, "--classifier", weights / "classifier", "--out", tmp_path / "o")
    code, said = command(films, *words, "--lung-input", "mask+crop", "--cards", "1")
    assert code == 1 and "1 of 5 films done" in said
    assert re.search(r"d0\.dcm: the lung mask is 500 x 500; expected \d+ x \d+, the film", said)
    assert said.count("no lung mask") == 2  # d1, the odd one
    lacking = [line for line in said.splitlines() if "broken.dcm" in line]
    assert len(lacking) == 1 and "mask" not in lacking[0]  # the film is broken, mask or not
    lines = [json.loads(line) for line in (tmp_path / "o/films.jsonl").read_text().splitlines()]
    (done,) = [line for line in lines if line["status"] == "done"]
    assert done["warnings"] == [] and done["crop"]["mode"] == "mask+crop"
    x0, y0, x1, y1 = done["crop"]["box_xyxy"]
    assert x0 <= 10 < 80 <= x1 and y0 <= 30 < 100 <= y1 and y1 - y0 < 100


def test_masks_of_the_source(
    command: Command, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --dataset the lungs that a record has stand in for segmentors."""
    make_world(tmp_path / "world", patients=9, seed=2, sources=["montgomery"], size_px=64)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "world"))
    given = ("--masks", "record", "--classifier", weights / "classifier", "--out", tmp_path / "o")
    code, said = command("--dataset", "montgomery_train", "--num", "1", *given)
    assert code == 0, said
    (line,) = map(json.loads, (tmp_path / "o/films.jsonl").read_text().splitlines())
    assert line["lungs"]["rule"] == "record" and len(line["lungs"]["pieces"]) == 2
    assert 0.1 < line["lungs"]["area"] < 0.6
    code, said = command(tmp_path / "world", *given)
    assert code == 2 and "--masks record is not a folder" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--segmentor", "{w}/classifier", "--classifier", "{w}/classifier"), "no masks of lungs"),
        (("--segmentor", "{w}/segmentors/all", "--classifier", "{w}/segmentors/all"),
         "has no head of image labels"),
        (("--segmentor", "{w}/masked", "--classifier", "{w}/classifier"),
         r"masked: learned from films .*LUNGS.MODE 'mask'.*trained with MODE none"),
        (("--weights", "{w}/segmentors"), r"no weights of the classifier.*--classifier"),
        (("--weights", "{w}/nowhere"), "there is no such folder"),
        (("--classifier", "{w}/classifier"), "no weights of the segmentors.*--segmentor PATH"),
        (("--weights", "{w}", "--classifier", "{w}/classifier@covid_radiograpy"),
         "Did you mean 'covid_radiography'"),
        (("--weights", "{w}", "--class", "Covid"), "no class 'Covid'"),
        (("--weights", "{w}", "--layer", "trunk.x"), "no layer 'trunk.x'"),
        (("--weights", "{w}", "--level", "0"), "level is 0"),
        (("--weights", "{w}", "--lung-area", "0.6", "0.1"), "low < high"),
        (("--weights", "{w}", "--dataset", "rsna_test"), "INPUT files or folders, or --dataset"),
        (("--weights", "{w}", "--masks", "{w}/nowhere"), "is not a folder"),
    ],
    ids=["cls as seg", "seg as cls", "masked seg", "no cls", "no folder", "no seg", "head",
         "class", "layer", "level", "area", "both", "masks"],
)  # fmt: skip
def test_wrong_use_is_one_line(
    command: Command,
    films: Path,
    weights: Path,
    tmp_path: Path,
    words: tuple[str, ...],
    message: str,
) -> None:
    given = [word.format(w=weights) for word in words]
    code, said = command(films, *given, "--out", tmp_path / "o")
    assert code == 2 and re.search(message, said), said
    assert len(said.strip().splitlines()) == 1 and not (tmp_path / "o").exists()


def test_results_do_not_lie_among_the_films(command: Command, films: Path, weights: Path) -> None:
    code, said = command(films, "--weights", weights, "--out", films / "out")
    assert code == 2 and "would be taken for radiographs" in said
