"""tools/shortcut_test.py as a user calls it: a planted corner marker is found, a lesion is none."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

import shortcut_test
from fx_d2.engine.setup import load_config
from fx_d2.engine.shortcut import Row
from fx_d2.engine.trainer import FxTrainer

CONFIG = Path(__file__).parents[2] / "configs/quick_schedules/hybrid_classifier_instant_test.yaml"
CLASSES = ("COVID", "Normal", "Viral Pneumonia")
TEST = "covid_radiography_3_test"
_PER_CLASS, _SIDE = 24, 299


def _write_films(root: Path, *, marker: bool) -> None:
    """Films of noise with two lungs; the class shows in a corner, or as a lesion in a lung."""
    rng = np.random.default_rng(5)
    lungs = np.zeros((_SIDE, _SIDE), dtype=np.uint8)
    cv2.ellipse(lungs, (95, 160), (50, 95), 0, 0, 360, 255, -1)
    cv2.ellipse(lungs, (205, 160), (50, 95), 0, 0, 360, 255, -1)
    for number, name in enumerate(CLASSES):
        folder = root / "COVID-19_Radiography_Dataset" / name
        for kind in ("images", "masks"):
            (folder / kind).mkdir(parents=True)
        for i in range(_PER_CLASS):
            film = cv2.resize(rng.uniform(80, 150, (30, 30)), (_SIDE, _SIDE))
            film[lungs > 0] -= 30
            # Of class 0 there is none; the two others have their own side.
            x, y = (4 + 240 * (number - 1), 4) if marker else (75 + 105 * (number - 1), 140)
            if number:
                film[y : y + 45, x : x + 45] = 250
            cv2.imwrite(str(folder / "images" / f"{name}-{i}.png"), film.astype(np.uint8))
            cv2.imwrite(str(folder / "masks" / f"{name}-{i}.png"), lungs)


def _train(root: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
    folder = root / f"run_{mode}"
    settings = {
        "INPUT.FX.LUNGS.MODE": mode,
        "INPUT.FX.SIZE": 32,
        "INPUT.FX.INTENSITY.MODE": "depth",
        "INPUT.FX.AUG.CLS.ROTATE_DEG": 0.0,
        "INPUT.FX.AUG.CLS.SHIFT": 0.0,
        "INPUT.FX.AUG.CLS.SCALE": 0.0,
        "SOLVER.IMS_PER_BATCH": 12,
        "SOLVER.MAX_ITER": 30,
        "SOLVER.BASE_LR": 0.003,
        "SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR",
        "SOLVER.FX.PLATEAU.PATIENCE": 0,
        "SOLVER.FX.EARLY_STOP.PATIENCE": 0,
        "TEST.EVAL_PERIOD": 0,
        "SOLVER.CHECKPOINT_PERIOD": 100,
        "SOLVER.FX.BEST_METRIC": (),
        "DATASETS.TEST": (),
        "TEST.FX.BOOTSTRAP": 50,
        "MODEL.DEVICE": "cpu",
        "OUTPUT_DIR": folder,
    }
    words = [str(word) for pair in settings.items() for word in pair]
    trainer = FxTrainer(load_config(str(CONFIG), words))
    trainer.resume_or_load(resume=False)
    trainer.train()
    return folder


def _report(folder: Path) -> dict:
    return json.loads((folder / "shortcut.json").read_text("utf-8"))["readings"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # fewer films than are published
def test_a_planted_corner_marker_is_detected(tmp_path, monkeypatch, capsys):
    _write_films(tmp_path, marker=True)
    whole, other = (_train(tmp_path, mode, monkeypatch) for mode in ("none", "background"))
    out = tmp_path / "report"
    arguments = ["--weights", whole, "--trained", whole, other, "--dataset", TEST, "--out", out]
    assert shortcut_test.main([*map(str, arguments), "MODEL.DEVICE", "cpu"]) == 0
    said = capsys.readouterr().out
    readings = _report(out)
    for name, parts in (
        ("one_model", ("background", "frame")),
        ("trained_on_each", ("background",)),
    ):
        found = readings[name]
        assert [(v["shown"], v["level"]) for v in found["verdicts"]] == [(p, "high") for p in parts]
        assert all(
            v["text"].startswith("SHORTCUT") and v["text"] in said for v in found["verdicts"]
        )
    by_part = {row["shown"]: row["figures"]["AUC"] for row in readings["one_model"]["rows"]}
    assert by_part["none"] > 0.95 and by_part["background"] > 0.9 and by_part["mask"] < 0.75
    assert np.sum(readings["one_model"]["rows"][0]["confusion"]["table"]) > 10


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_lesions_in_the_lungs_are_no_shortcut(tmp_path, monkeypatch):
    _write_films(tmp_path, marker=False)
    whole = _train(tmp_path, "none", monkeypatch)
    out = tmp_path / "report"
    arguments = ["--weights", whole, "--dataset", TEST, "--out", out]
    assert shortcut_test.main([*map(str, arguments), "MODEL.DEVICE", "cpu"]) == 0
    found = _report(out)["one_model"]
    by_part = {row["shown"]: row["figures"]["AUC"] for row in found["rows"]}
    assert by_part["none"] > 0.95
    assert {v["level"] for v in found["verdicts"]} <= {"at chance", "above chance"}, by_part


@pytest.mark.parametrize(("high", "levels"), [(0.75, "above chance"), (0.55, "high")])
def test_what_is_found_is_said_in_words(tmp_path, monkeypatch, capsys, high, levels):
    """With planted figures; that models come to such figures is what the slow tests show."""
    aucs, asked = {"none": 0.95, "mask": 0.6, "background": 0.9, "frame": 0.56}, []

    def planted(weights, dataset, *, modes=None, options=()):
        asked.append((weights, dataset, modes, tuple(options)))
        for mode in aucs if modes is None else [weights]:
            auc = aucs[mode]
            figures = {"AUC": auc, "AUC_low": auc - 0.05, "AUC_high": auc + 0.05}
            yield Row(weights, weights, mode, figures, {"images": 9, "images_of_dataset": 9})

    monkeypatch.setattr(shortcut_test, "evaluate_parts", planted)
    arguments = ["--weights", "none", "--trained", "none", "frame", "--dataset", TEST]
    arguments += ["--out", str(tmp_path / "o"), "--high", str(high), "MODEL.DEVICE", "cpu"]
    assert shortcut_test.main(arguments) == 0
    words = ("MODEL.DEVICE", "cpu")
    assert asked == [
        ("none", TEST, None, words), ("none", TEST, ("own",), words),
        ("frame", TEST, ("own",), words),
    ]  # fmt: skip
    readings, said = _report(tmp_path / "o"), capsys.readouterr().out
    rows = {name: [row["shown"] for row in found["rows"]] for name, found in readings.items()}
    assert rows == {"one_model": list(aucs), "trained_on_each": ["none", "frame"]}
    told = {name: [v["level"] for v in found["verdicts"]] for name, found in readings.items()}
    assert told == {"one_model": ["high", levels], "trained_on_each": [levels]}
    assert "- SHORTCUT: AUC 0.900 (95 % 0.850 to 0.950) from all but the lungs, 0.950 from" in said
    assert "without the lungs; figures on whole images say little about disease" in said
    assert said.count("SHORTCUT") == (1 if levels == "above chance" else 3)
    assert "shortcut.json" in said and (tmp_path / "o/shortcut.md").read_text("utf-8") in said


def test_wrong_use(tmp_path, capsys):
    base = ["--dataset", TEST, "--out", str(tmp_path / "o")]
    missing = str(tmp_path / "x.safetensors")
    for words, expected in (
        (base, "name a model with --weights"),
        (["--weights", missing, *base], "x.safetensors"),
        (["--trained", missing, *base], "x.safetensors"),
    ):
        assert shortcut_test.main(words) == 2
        error = capsys.readouterr().err
        assert expected in error and error.count("\n") == 1
    with pytest.raises(SystemExit) as stop:
        shortcut_test.main(["--weights", missing, *base, "--high", "0.4"])
    assert stop.value.code == 2 and "above 0.5" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
