"""From a pre-training whose epochs are kept to the recommended one, and scores on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.engine import HookBase

import best_epoch
import few_shot
from fx_d2.engine import few_shot as protocol
from fx_d2.engine.best_epoch import Epoch, epochs_in, recommended, scored, write_tables
from fx_d2.engine.few_shot import Run, check_shares
from fx_d2.engine.setup import ConfigError, load_config
from fx_d2.engine.trainer import FxTrainer
from fx_d2.engine.weights import read_weights
from fx_d2.evaluation import Results
from fx_d2.phantom.world import make_world

QUICK = Path(__file__).resolve().parents[2] / "configs/quick_schedules"
PRETRAIN = QUICK / "doll_pretrain_instant_test.yaml"
PROBE = QUICK / "doll_adapt_instant_test.yaml"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    make_world(folder, patients=12, seed=1, sources=["chestx_det", "jsrt"], size_px=64)
    return folder


@pytest.fixture(scope="module")
def pretrained(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs of the quick pre-training."""
    out = tmp_path_factory.mktemp("pretrained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(world))
        words = ["OUTPUT_DIR", str(out), "MODEL.DEVICE", "cpu", "TEST.FX.BOOTSTRAP", "0"]
        trainer = FxTrainer(load_config(str(PRETRAIN), words))
        trainer.resume_or_load(resume=False)
        trainer.train()
    return out


@pytest.fixture
def command(world, monkeypatch, capsys, loggers_kept) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(world))

    def run(tool, *words: object) -> tuple[int, str, str]:
        try:
            code = tool.main(["--config-file", str(PROBE), *map(str, words)])
        except SystemExit as exc:
            code = int(exc.code or 0)
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_the_best_mean_is_recommended_of_equal_ones_the_earlier(tmp_path: Path):
    found = {
        0: {Run(4, 1): {"jsrt/seg/mIoU": 0.99}, Run(4, 2): {"jsrt/seg/mIoU": 0.99}},
        1: {Run(4, 1): {"jsrt/seg/mIoU": 0.2, "other": 1.0}, Run(4, 2): {"jsrt/seg/mIoU": 0.6}},
        2: {Run(4, 1): {"jsrt/seg/mIoU": 0.5}, Run(4, 2): {"jsrt/seg/mIoU": 0.5}},
        3: {Run(4, 1): {"jsrt/seg/mIoU": 0.6}, Run(4, 2): {"jsrt/seg/mIoU": 0.4}},
    }
    epochs = scored(found, "*/seg/mIoU")
    assert [e.mean for e in epochs] == pytest.approx([0.99, 0.4, 0.5, 0.5])
    assert epochs[1].std == pytest.approx(0.08**0.5)
    assert recommended(epochs).number == 2  # random weights are no epoch
    files = {n: Path(f"model_epoch_{n:03d}.safetensors") for n in (1, 2, 3)}
    text = write_tables(epochs, files, "*/seg/mIoU", tmp_path)
    lines = text.splitlines()
    assert "random weights" in lines[2] and "0.4000 ± 0.2828" in lines[3]
    assert [n for n, line in enumerate(lines) if "recommended" in line] == [4]
    body = json.loads((tmp_path / "best_epoch.json").read_text())
    assert body["recommended"] == 2 and body["weights"] == "model_epoch_002.safetensors"
    with pytest.raises(ConfigError, match=r"--metric 'x/\*' is none of jsrt/seg/mIoU"):
        scored(found, "x/*")
    assert Epoch(1, (0.5,)).std is None


def test_the_tool_goes_through_every_epoch_on_validation_data(command, pretrained, tmp_path):
    assert list(epochs_in(pretrained)) == [1, 2]
    out = tmp_path / "out"
    words = ("--run", pretrained, "--out", out, "--images", 3, "--draws", 1)
    words += ("SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 0)
    code, said, err = command(best_epoch, *words)
    assert code == 0, err
    body = json.loads((out / "best_epoch.json").read_text())
    epochs = {e["number"]: e for e in body["epochs"]}
    best = body["recommended"]
    assert set(epochs) == {1, 2} and epochs[best]["mean"] == max(e["mean"] for e in epochs.values())
    assert f"recommended: epoch {best}" in said
    # What an epoch scores is of its own weights, on the validation split.
    for number in epochs:
        run = out / f"epoch{number:03d}"
        figures = json.loads((run / "runs/n0003_draw1/figures.json").read_text())["figures"]
        assert epochs[number]["values"] == [figures["jsrt/seg/mIoU"]]
        splits = json.loads((run / "splits/n0003_draw1.json").read_text())["splits"]
        assert set(splits) == {"train", "val"}
        # Adapters and norms are trained, the rest is that of the epoch.
        there = read_weights(run / "runs/n0003_draw1/model_final.safetensors")
        start = read_weights(pretrained / f"model_epoch_{number:03d}.safetensors")
        assert (there["trunk.net.conv1.0.weight"] == start["trunk.net.conv1.0.weight"]).all()
        assert 0 < figures["trained_share"] < 0.5
    assert command(best_epoch, *words)[0] == 0  # nothing is left to do


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--run", "."), "KEEP_EPOCHS True"),
        (("MODEL.WEIGHTS", "x.safetensors"), "leave it empty"),
        (("--images", "900"), "900 images of"),
        (("SOLVER.MAX_ITR", "2"), "SOLVER.MAX_ITER"),
    ],
)
def test_wrong_use_is_one_line(command, pretrained, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    given = ("--run", pretrained, "--out", tmp_path / "o", *words)
    code, _, err = command(best_epoch, *given)
    assert code == 2 and told in err and len(err.splitlines()) == 1 and "Traceback" not in err


class Interrupt(HookBase):
    """Ctrl-C in the first step after the score."""

    def before_step(self) -> None:
        if self.trainer.iter == 2:
            raise KeyboardInterrupt


def _sum(weights) -> float:
    return sum(float(v.double().abs().sum()) for v in weights.values())


def test_scores_on_the_way_are_those_of_the_weights_then(
    command, pretrained, tmp_path, monkeypatch
):
    words = ("--images", 3, "--draws", 1, "SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 0)
    words += ("SOLVER.CHECKPOINT_PERIOD", 2, "SOLVER.FX.KEEP_LAST", 0)
    words += ("MODEL.WEIGHTS", pretrained / "model_final.safetensors")
    more = ("--score-at", 0.5, "--metrics", "*/seg/mIoU", "trained_share")
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    # A figure that tells any two sets of weights apart.
    def score(cls, cfg, model, evaluators=None):
        return Results({"jsrt/seg": {"mIoU": _sum(model.state_dict())}})

    monkeypatch.setattr(protocol.FxTrainer, "scores", classmethod(score))
    assert command(few_shot, "--out", whole, *more, *words)[0] == 0
    table = (whole / "few_shot.md").read_text()
    assert "jsrt/seg/mIoU@50%" in table and "trained_share" in table
    figures = json.loads((whole / "few_shot.json").read_text())["runs"][0]["figures"]
    folder = whole / "runs/n0003_draw1"
    second = _sum(read_weights(folder / "model_0000001.safetensors"))
    final = _sum(read_weights(folder / "model_final.safetensors"))
    assert figures["jsrt/seg/mIoU@50%"] == second != final == figures["jsrt/seg/mIoU"]
    # A run that is interrupted there has them too, and trains the same.
    train = protocol.FxTrainer.train

    def interrupted(self):
        if self.start_iter == 0:
            self.register_hooks([Interrupt()])
        return train(self)

    monkeypatch.setattr(protocol.FxTrainer, "train", interrupted)
    assert command(few_shot, "--out", cut, *more, *words)[0] == 130
    assert command(few_shot, "--out", cut, *more, *words)[0] == 0
    resumed = json.loads((cut / "few_shot.json").read_text())["runs"][0]["figures"]
    assert resumed == figures
    # Another share is another run.
    assert command(few_shot, "--out", cut, "--score-at", 0.25, *words)[0] == 2


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, 0.333, float("nan"), 0.01])
def test_a_wrong_share_is_told(share):
    cfg = load_config(str(PROBE), ["SOLVER.MAX_ITER", "20"])
    with pytest.raises(ConfigError, match="whole percents between 0 and 1"):
        check_shares(cfg, [share])
    check_shares(cfg, [0.25, 0.5])
