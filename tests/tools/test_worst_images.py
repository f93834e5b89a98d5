"""tools/worst_images.py as a user calls it, with a tiny model on a synthetic world."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.modeling import build_model

import worst_images
from fx_d2.engine import worst as engine
from fx_d2.engine.checkpoint import FxCheckpointer
from fx_d2.engine.setup import load_config
from fx_d2.engine.trainer import FxTrainer
from fx_d2.phantom.world import make_world

QUICK = Path(__file__).parents[2] / "configs/quick_schedules/foundation_x_instant_test.yaml"
DATASET = "chestx_det_test"
OPTIONS = [
    *("MODEL.FX.SOURCES", "('chestx_det',)", "INPUT.FX.SIZE", "64", "MODEL.DEVICE", "cpu"),
    *("SOLVER.IMS_PER_BATCH", "2", "TEST.FX.SCORE_THRESHOLD", "0.06"),
]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, patients=8, seed=4, sources=["chestx_det"], size_px=96)
    return folder


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder: weights, and the evaluation of them with its scores by image."""
    folder = tmp_path_factory.mktemp("run")
    more = ["OUTPUT_DIR", str(folder), "DATASETS.TEST", f"('{DATASET}',)"]
    cfg = load_config(str(QUICK), [*OPTIONS, *more])
    torch.manual_seed(3)
    model = build_model(cfg).eval()
    saver = FxCheckpointer(model, str(folder), cfg=cfg)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(world))
        results = FxTrainer.test(cfg, model)
    saver.add_metrics(flatten_results_dict(results), 1)
    saver.save("model_final", iteration=1)
    return folder


@pytest.fixture
def command(
    world: Path,
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Command:
    """Run the tool: (exit code, stdout, stderr)."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world))

    def call(*words: object, options: list[str] = OPTIONS, **changed: object) -> tuple:
        named = {"config-file": QUICK, "weights": run, "dataset": DATASET, "out": tmp_path / "o"}
        named |= {key.replace("_", "-"): value for key, value in changed.items()}
        given = [str(w) for key, value in named.items() for w in (f"--{key}", value)]
        more = ["--size", "128", *map(str, words), *options, "OUTPUT_DIR", str(tmp_path / "none")]
        try:
            code = worst_images.main([*given, *more])
        except SystemExit as stop:  # of argparse
            code = int(stop.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return call


def test_the_switch_of_an_evaluation(
    world: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world))
    more = ["OUTPUT_DIR", str(tmp_path), "DATASETS.TEST", f"('{DATASET}',)"]
    cfg = load_config(str(QUICK), [*OPTIONS, *more, "TEST.FX.PER_IMAGE", "False"])
    FxTrainer.test(cfg, build_model(cfg).eval())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results.json", "results.md"]
    written = sorted(p.name for p in (run / "per_image").iterdir())
    assert written == [f"{DATASET}_{task}.csv" for task in ("cls", "loc", "seg")]


def never(*args: object, **kwargs: object) -> None:
    raise AssertionError("evaluated, although the scores are there")


def test_scores_that_are_there_are_read_and_else_made_anew(
    command: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(engine.WorstImages, "_evaluated", never)
        code, read, said = command("--num", "2")
    assert code == 0, said
    assert f"seg: scores of {run}" in read and "loc: scores of" in read
    files = {p.name: p.read_bytes() for p in (tmp_path / "o").iterdir()}
    assert len(files) > 3 and f"{DATASET}_loc.png" in files
    # The same scores, from an evaluation: of other settings, so that those written do not count.
    options = [*OPTIONS, "TEST.FX.BOOTSTRAP", "7"]
    code, made, said = command("--num", "2", out=tmp_path / "p", options=options)
    assert code == 0 and "scores of" not in made, said
    assert {p.name: p.read_bytes() for p in (tmp_path / "p").iterdir()} == files
    lines = [line for line in read.splitlines() if "scores of" not in line]
    assert made.replace(f"{tmp_path}/p/", f"{tmp_path}/o/").splitlines() == lines


def test_one_class_is_one_sheet_of_three_columns(
    command: Command, run: Path, tmp_path: Path
) -> None:
    rows = list(csv.DictReader((run / f"per_image/{DATASET}_seg.csv").open()))
    wrong = [row for row in rows if float(row["dice"]) < 1 and int(row["true_px"])]
    cls = wrong[0]["class"]
    count = min(3, sum(row["class"] == cls and float(row["dice"]) < 1 for row in rows))
    code, printed, said = command("--task", "seg", "--class", cls, "--num", "3")
    assert code == 0, said
    (file,) = (tmp_path / "o").iterdir()
    assert file.name == f"{DATASET}_seg_{cls.replace(' ', '_')}.png"
    assert f"{file}: {count} images, the worst " in printed
    sheet = cv2.imread(str(file))
    assert 3 * 128 <= sheet.shape[1] <= 3 * 150
    assert count * 128 <= sheet.shape[0] <= count * 170
    # Film in grey; a mistake is a mask in the truth or in the prediction, in colour.
    third = sheet.shape[1] // 3
    colourful = [np.ptp(sheet[:, i * third : (i + 1) * third].astype(int), 2) for i in range(3)]
    assert colourful[0].max() < 12
    assert max(part.max() for part in colourful[1:]) > 40


def test_weights_that_changed_are_evaluated_again(
    command: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    description = run / "model_final.json"
    before = description.read_text()
    content = json.loads(before)
    key = next(name for name in content["metrics"] if name.startswith("chestx_det/seg/Dice"))
    content["metrics"][key] += 1e-6
    made = []
    real = engine.WorstImages._evaluated
    monkeypatch.setattr(
        engine.WorstImages,
        "_evaluated",
        lambda self, tasks: made.extend(tasks) or real(self, tasks),
    )
    try:
        description.write_text(json.dumps(content))
        code, _, said = command("--num", "1")
    finally:
        description.write_text(before)
    assert code == 0, said
    assert made == ["seg"]


@pytest.mark.parametrize(
    ("words", "changed", "says"),
    [
        ((), {"dataset": "chestx_det_tset"}, "near it: ['chestx_det_test'"),
        ((), {"dataset": "rsna_val"}, "has no head for rsna"),
        ((), {"weights": "/none/w.safetensors"}, "no such checkpoint"),
        ((), {"config_file": "/none/c.yaml"}, "there is no config file"),
        (("--class", "Efusion"), {}, "did you mean Effusion?"),
        (("--task", "loc", "--class", "Effusion"), {}, "leave the class out"),
        (("--task", "sge"), {}, "sge"),
        (("--num", "0"), {}, "from 1 to 24"),
        (("DATASETS.TASK", "seg"), {}, "did you mean DATASETS.TASKS"),
        (("--task", "cls", "DATASETS.TASKS", "('seg',)"), {}, "possible: seg"),
        ((), {"out": QUICK}, "is a file"),
    ],
)
def test_wrong_use_is_one_line(
    command: Command, words: tuple[str, ...], changed: dict, says: str, tmp_path: Path
) -> None:
    code, printed, said = command(*words, **changed)
    assert code == 2 and printed == "" and says in said, said
    assert said.count("\n") == 1
    assert not (tmp_path / "o").exists()
