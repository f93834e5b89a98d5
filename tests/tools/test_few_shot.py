"""The few-shot protocol on a small synthetic world, through the real trainer."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.engine import HookBase

import few_shot
from fx_d2.engine import few_shot as protocol
from fx_d2.engine.checkpoint import config_of, read_description
from fx_d2.engine.few_shot import Pool, Row, Run, drawn, markdown, rows_of, runs_of
from fx_d2.engine.setup import ConfigError
from fx_d2.phantom.world import make_world

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs/quick_schedules/few_shot_instant_test.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, patients=12, seed=1, sources=["montgomery", "chestx_det"], size_px=96)
    return folder


@pytest.fixture
def command(world, monkeypatch, capsys, loggers_kept) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world))

    def run(*words: object) -> tuple[int, str, str]:
        try:
            code = few_shot.main(["--config-file", str(QUICK), *map(str, words)])
        except SystemExit as exc:
            code = int(exc.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


class Interrupt(HookBase):
    """Ctrl-C in the third step."""

    def after_step(self) -> None:
        if self.trainer.iter == 2:
            raise KeyboardInterrupt


def pool(patients: int, images_each: int) -> Pool:
    owner = {f"p{p}_{i}": f"p{p}" for p in range(patients) for i in range(images_each)}
    return Pool("montgomery", owner, ("t",))


def test_draws_are_nested_whole_patients_and_differ():
    there = pool(20, 3)
    for draw in (1, 2, 3):
        large, small = drawn(there, Run(24, draw), 7), drawn(there, Run(12, draw), 7)
        assert len(large) == 24 == len(set(large)) and small == large[:12]
        counts = [
            sum(i.startswith(f"{p}_") for i in large) for p in {i.split("_")[0] for i in large}
        ]
        assert counts == [3] * 8
        assert len({i.split("_")[0] for i in drawn(there, Run(10, draw), 7)}) == 4
    sets = {tuple(drawn(there, Run(6, d), s)) for d in (1, 2, 3) for s in (7, 8)}
    assert len(sets) == 6
    assert drawn(there, Run(6, 1), 7) == drawn(there, Run(6, 1), 7)
    # The order of the files on disk plays no part.
    turned = Pool(there.source, dict(reversed(there.patients.items())), there.test)
    assert drawn(turned, Run(24, 1), 7) == drawn(there, Run(24, 1), 7)
    with pytest.raises(ConfigError, match="61 images of 60 that montgomery has"):
        drawn(there, Run(61, 1), 7)


def test_tables_by_hand():
    found = {Run(6, 1): {"a/seg/Dice": 0.5, "a/seg/Dice-R": 1.0}, Run(6, 2): {"a/seg/Dice": 0.7}}
    found[Run(3, 1)] = {"a/seg/Dice": 0.25}
    rows = rows_of(found)
    assert rows[0].mean == pytest.approx(0.6) and rows[0].std == pytest.approx(0.02**0.5)
    assert rows[1] == Row(6, "a/seg/Dice-R", 1, 1.0, None)
    text = markdown(rows, ["a/seg/Dice"])
    assert "0.6000 ± 0.1414" in text and text.splitlines()[-1].split("|")[2].strip() == "0.2500"
    assert [r.name for r in runs_of([3, 6, 3], 2)] == [
        *("n0006_draw1", "n0006_draw2", "n0003_draw1", "n0003_draw2")
    ]


def test_the_whole_protocol_and_going_on(command, tmp_path: Path, monkeypatch):
    out = tmp_path / "out"
    words = ("--images", 3, 2, "--draws", 2, "--out", out)
    words += ("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2)
    trained: list[tuple[str, int]] = []
    train = protocol.FxTrainer.train

    def counted(self):
        trained.append((Path(self.cfg.OUTPUT_DIR).name, self.start_iter))
        if len(trained) == 2:
            self.register_hooks([Interrupt()])
        return train(self)

    monkeypatch.setattr(protocol.FxTrainer, "train", counted)
    code, _, err = command(*words)
    assert code == 130 and "call it again to continue" in err and "Traceback" not in err
    code, said, _ = command(*words)
    assert code == 0
    # The finished one is not repeated, the interrupted one goes on from its checkpoint.
    assert trained == [
        *(("n0003_draw1", 0), ("n0003_draw2", 0)),
        *(("n0003_draw2", 2), ("n0002_draw1", 0), ("n0002_draw2", 0)),
    ]
    assert "montgomery/seg/Dice" in said and "±" in (out / "few_shot.md").read_text("utf-8")
    body = json.loads((out / "few_shot.json").read_text())
    figures = {(r["images"], r["draw"]): r["figures"]["montgomery/seg/Dice"] for r in body["runs"]}
    assert len(figures) == 4
    rows = list(csv.DictReader((out / "few_shot.csv").open(encoding="utf-8")))
    row = next(r for r in rows if r["images"] == "3" and r["metric"] == "montgomery/seg/Dice")
    assert float(row["mean"]) == pytest.approx((figures[3, 1] + figures[3, 2]) / 2)
    splits = {p.stem: json.loads(p.read_text())["splits"] for p in (out / "splits").iterdir()}
    assert set(splits["n0002_draw1"]["train"]) < set(splits["n0003_draw1"]["train"])
    assert splits["n0002_draw1"]["test"] == splits["n0003_draw2"]["test"]
    assert not set(splits["n0003_draw1"]["test"]) & set(splits["n0003_draw1"]["train"])
    own = config_of(read_description(out / "runs/n0003_draw1/model_final.safetensors"))
    assert tuple(own.DATASETS.TEST) == ("montgomery_test",) and own.TEST.EVAL_PERIOD == 0
    # Finished, called once more: nothing is trained, the table is the same.
    before = (out / "few_shot.csv").read_bytes()
    assert command(*words)[0] == 0 and len(trained) == 5
    assert (out / "few_shot.csv").read_bytes() == before
    # Other settings do not overwrite it, and say so before anything is trained.
    code, _, err = command(*words, "SOLVER.BASE_LR", 0.5)
    assert code == 2 and "other settings" in err and len(err.splitlines()) == 1
    assert len(trained) == 5


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--images", "0"), "whole number from 1"),
        (("--images", "90"), "90 images of"),
        (("--out", "file"), "is a file"),
        (("DATASETS.TRAIN", "('montgomery_train','chestx_det_train')"), "one source"),
        (("SOLVER.MAX_ITR", "3"), "SOLVER.MAX_ITER"),
    ],
)
def test_wrong_use_is_one_line(command, tmp_path: Path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    given = ("--out", tmp_path / "out") if "--out" not in words else ()
    code, _, err = command(*given, *words)
    assert code == 2 and told in err and len(err.strip().splitlines()) == 1
