from __future__ import annotations

import json
import pickle
import resource
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from detectron2.checkpoint import PeriodicCheckpointer
from detectron2.config import CfgNode, get_cfg
from torch import nn

from fx_d2.config import add_fx_config
from fx_d2.data.intensity import IntensityConfig
from fx_d2.data.sources import SOURCES
from fx_d2.engine.checkpoint import (
    CheckpointError,
    FxCheckpointer,
    config_of,
    load_weights,
    read_description,
)
from fx_d2.engine.weights import convert_trusted_pickle
from fx_d2.modeling.heads.spec import HeadSpec


class Toy(nn.Module):
    """Parameter names as FoundationX has them."""

    def __init__(self, sources: Sequence[str], width: int = 6, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.trunk = nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width))
        heads = {s: nn.Linear(width, len(SOURCES[s].cls_classes)) for s in sources}
        self.heads = nn.ModuleDict({"cls": nn.ModuleDict(heads)})
        self.specs = [HeadSpec(s, "cls", SOURCES[s].cls_classes) for s in sources]


class Counting:
    """Something with a state, as a trainer has one."""

    def __init__(self, count: int = 0) -> None:
        self.count = count

    def state_dict(self) -> dict[str, object]:
        return {"count": self.count, "tensor": torch.arange(3), "scalar": np.float64(0.5)}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.count = int(state["count"])  # type: ignore[call-overload]


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.INPUT.FX.INTENSITY.GAMMA = 1.5
    return cfg


def same(a: nn.Module, b: nn.Module, names: Sequence[str] | None = None) -> bool:
    mine, theirs = a.state_dict(), b.state_dict()
    return all(torch.equal(mine[n], theirs[n]) for n in (mine if names is None else names))


def snapshot(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def one_line(error: pytest.ExceptionInfo[CheckpointError], *words: str) -> None:
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """Writing a file beyond this size fails, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_round_trip(tmp_path: Path, cfg: CfgNode):
    model, state = Toy(["rsna", "nih14"]), Counting(7)
    model.to(memory_format=torch.channels_last)
    FxCheckpointer(model, str(tmp_path), cfg=cfg, trainer=state).save("model_0000004", iteration=4)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000004.safetensors"
    other, counted = Toy(["rsna", "nih14"], seed=1), Counting()
    extra = FxCheckpointer(other, str(tmp_path), trainer=counted).resume_or_load("", resume=True)
    assert same(model, other) and counted.count == 7 and extra["iteration"] == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "last_checkpoint",
        *(f"model_0000004.{end}" for end in ("json", "safetensors", "state.pt")),
    ]


def test_the_description_holds_what_prediction_needs(tmp_path: Path, cfg: CfgNode):
    FxCheckpointer(Toy(["rsna"]), str(tmp_path), cfg=cfg).save("model", iteration=4)
    about = read_description(tmp_path / "model.safetensors")
    assert about["sources"] == {"rsna": {"cls": list(SOURCES["rsna"].cls_classes)}}
    assert IntensityConfig.from_dict(about["input"]["intensity"]).gamma == 1.5
    assert about["input"]["size"] == cfg.INPUT.FX.SIZE and about["iteration"] == 4
    assert yaml.safe_load(config_of(about).dump()) == yaml.safe_load(cfg.dump())
    assert {"git_revision", "fx_d2", "torch", "metrics", "weights_sha256"} <= set(about)
    with pytest.raises(CheckpointError) as error:
        config_of({"config": "SUCH: {KEY: 1}", "fx_d2": "0.0.1"})
    one_line(error, "SUCH", "0.0.1")


def test_sources_added_and_removed(tmp_path: Path):
    trained = Toy(["rsna", "nih14"])
    FxCheckpointer(trained, str(tmp_path)).save("ab")
    more, fewer = Toy(["rsna", "nih14", "shenzhen"], seed=1), Toy(["rsna"], seed=1)
    fresh = more.heads["cls"]["shenzhen"].weight.clone()
    report = load_weights(more, tmp_path / "ab.safetensors")
    assert same(trained, more, list(trained.state_dict()))
    assert torch.equal(fresh, more.heads["cls"]["shenzhen"].weight)
    assert report.new == ("heads.cls.shenzhen.weight", "heads.cls.shenzhen.bias")
    assert not report.left_out and "heads.cls.shenzhen (2)" in report.summary()
    report = load_weights(fewer, tmp_path / "ab.safetensors")
    assert same(fewer, trained)
    assert set(report.left_out) == {"heads.cls.nih14.weight", "heads.cls.nih14.bias"}
    assert not report.new and "left out" in report.summary()


def test_other_shapes_are_named_and_not_loaded(tmp_path: Path):
    FxCheckpointer(Toy(["rsna"]), str(tmp_path)).save("m")
    wide = Toy(["rsna"], width=8, seed=1)
    before = wide.heads["cls"]["rsna"].weight.clone()
    report = load_weights(wide, tmp_path / "m.safetensors")
    assert ("heads.cls.rsna.weight", (3, 6), (3, 8)) in report.mismatched
    assert torch.equal(before, wide.heads["cls"]["rsna"].weight)
    assert "heads.cls.rsna.bias" in report.loaded and not report.complete
    assert "[3, 6] in the file and [3, 8] in the model" in report.summary()


def test_a_head_of_other_classes_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Same shape, other meaning: loading it would mislabel every image without an error."""
    FxCheckpointer(Toy(["rsna", "nih14"]), str(tmp_path)).save("m")
    row = SOURCES["rsna"]
    swapped = replace(row, cls_classes=row.cls_classes[::-1], cls_subsets={})
    monkeypatch.setitem(SOURCES, "rsna", swapped)
    report = load_weights(Toy(["rsna", "nih14"], seed=1), tmp_path / "m.safetensors")
    assert [n for n, _ in report.other_classes] == ["heads.cls.rsna.weight", "heads.cls.rsna.bias"]
    assert "heads.cls.nih14.weight" in report.loaded
    assert str(list(row.cls_classes)) in report.summary()


def test_resuming_needs_the_same_parts(tmp_path: Path):
    FxCheckpointer(Toy(["rsna"]), str(tmp_path), trainer=Counting()).save("m", iteration=0)
    model, counted = Toy(["rsna", "nih14"], seed=1), Counting(3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        FxCheckpointer(model, str(tmp_path), trainer=counted).resume_or_load("", resume=True)
    one_line(error, "heads.cls.nih14 (2)", "MODEL.WEIGHTS")
    assert counted.count == 3 and all(
        torch.equal(before[k], v) for k, v in model.state_dict().items()
    )


def test_weights_alone_cannot_be_resumed(tmp_path: Path):
    writer = FxCheckpointer(Toy(["rsna"]), str(tmp_path), trainer=Counting(2))
    writer.save("m", iteration=0)
    (tmp_path / "m.state.pt").unlink()
    with pytest.raises(CheckpointError) as error:
        writer.resume_or_load("", resume=True)
    one_line(error, "no training state", "MODEL.WEIGHTS")
    assert writer.load(str(tmp_path / "m.safetensors")) == {}


def test_a_full_disk_leaves_the_old_checkpoint_whole(tmp_path: Path):
    writer = FxCheckpointer(Toy(["rsna"]), str(tmp_path), trainer=Counting(1))
    writer.save("model_final", iteration=1)
    old = snapshot(tmp_path)
    sizes = sorted(len(b) for n, b in old.items() if n.startswith("model_final"))
    for room in (0, sizes[0] - 1, sizes[1] - 1, sizes[2] - 1):
        bigger = FxCheckpointer(Toy(["rsna"], seed=2), str(tmp_path), trainer=Counting(2))
        with full_disk(room), pytest.raises(CheckpointError) as error:
            bigger.save("model_final", iteration=2)
        one_line(error, "cannot write", "untouched", "OUTPUT_DIR")
        assert snapshot(tmp_path) == old  # nothing changed, nothing left over
    counted = Counting()
    FxCheckpointer(Toy(["rsna"]), str(tmp_path), trainer=counted).resume_or_load("", resume=True)
    assert counted.count == 1


def test_files_of_different_moments_are_not_mixed(tmp_path: Path):
    writer = FxCheckpointer(Toy(["rsna"]), str(tmp_path), trainer=Counting(1))
    writer.save("a", iteration=1)
    writer.model = Toy(["rsna"], seed=2)
    writer.save("b", iteration=2)
    (tmp_path / "b.state.pt").write_bytes((tmp_path / "a.state.pt").read_bytes())
    with pytest.raises(CheckpointError) as error:
        writer.resume_or_load("", resume=True)
    one_line(error, "different moments")
    (tmp_path / "b.json").write_bytes((tmp_path / "a.json").read_bytes())
    with pytest.raises(CheckpointError) as error:
        load_weights(Toy(["rsna"]), tmp_path / "b.safetensors")
    one_line(error, "do not belong together")


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text"])
def test_damaged_weights(tmp_path: Path, damage: str):
    FxCheckpointer(Toy(["rsna"]), str(tmp_path)).save("m")
    file = tmp_path / "m.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    kinds = {"cut": data[:-20], "flipped": data, "empty": b"", "text": b"not weights at all"}
    file.write_bytes(kinds[damage])
    model = Toy(["rsna"], seed=1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError) as error:
        load_weights(model, file)
    one_line(error, "m.safetensors", "damaged")
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_a_file_of_another_model(tmp_path: Path):
    torch.save({"state_dict": {"features.0.weight": torch.zeros(3)}}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError) as error:
        load_weights(Toy(["rsna"]), tmp_path / "other.pth")
    one_line(error, "none of its 1 tensors", "features.0.weight", "trunk.0.weight")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(CheckpointError) as error:
        load_weights(Toy(["rsna"]), tmp_path / "none.pth")
    one_line(error, "holds no weights", "epoch", "state_dict")
    with pytest.raises(CheckpointError) as error:
        load_weights(Toy(["rsna"]), tmp_path / "nothing.safetensors")
    one_line(error, "no such checkpoint")


def test_a_pth_of_tensors_is_read(tmp_path: Path):
    trained, model = Toy(["rsna"]), Toy(["rsna"], seed=1)
    wrapped = {f"module.{k}": v for k, v in trained.state_dict().items()}
    torch.save({"model": wrapped, "iteration": 3}, tmp_path / "m.pth")
    assert load_weights(model, tmp_path / "m.pth").complete and same(model, trained)


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path("exploded"),))


@pytest.mark.parametrize("name", ["m.pth", "m.pkl", "m.bin"])
def test_a_pickle_that_needs_code_is_refused_unless_trusted(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    trained, model = Toy(["rsna"]), Toy(["rsna"], seed=1)
    body = {"model": {k: v.numpy() for k, v in trained.state_dict().items()}, "x": Bomb()}
    if name == "m.pkl":
        Path(name).write_bytes(pickle.dumps(body))
    else:
        torch.save(body, name)
    with pytest.raises(CheckpointError) as error:
        load_weights(model, name)
    one_line(error, "refused", "convert_trusted_pickle", name)
    assert not Path("exploded").exists()
    # The command that the message gives, as it stands there.
    command = str(error.value).split('python -c "')[1].rstrip('"')
    exec(compile(command, "command", "exec"), {})
    assert load_weights(model, "m.safetensors").complete and same(model, trained)
    assert Path("exploded").exists()


def test_the_state_is_never_unpickled_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    writer = FxCheckpointer(Toy(["rsna"]), str(tmp_path), trainer=Counting())
    writer.save("m", iteration=0)
    torch.save({"weights_sha256": "", "trainer": Bomb()}, tmp_path / "m.state.pt")
    with pytest.raises(CheckpointError) as error:
        writer.resume_or_load("", resume=True)
    one_line(error, "refused")
    assert not Path("exploded").exists()


def test_a_state_that_only_a_pickle_could_hold_is_refused_when_saved(tmp_path: Path):
    writer = FxCheckpointer(Toy(["rsna"]), str(tmp_path))
    with pytest.raises(CheckpointError) as error:
        writer.save("m", hooks={"MyHook": [Bomb()]})
    one_line(error, "hooks.MyHook[0]", "Bomb")
    assert snapshot(tmp_path) == {}


def test_a_last_checkpoint_that_points_elsewhere(tmp_path: Path):
    FxCheckpointer(Toy(["rsna"]), str(tmp_path / "run")).save("m")
    (tmp_path / "run" / "last_checkpoint").write_text("../../gone.safetensors")
    with pytest.raises(CheckpointError) as error:
        FxCheckpointer(Toy(["rsna"]), str(tmp_path / "run")).resume_or_load("", resume=True)
    one_line(error, str(tmp_path / "run" / "gone.safetensors"), "m.safetensors")


def test_detectron2s_periodic_checkpointer(tmp_path: Path):
    """The newest numbered one, the final one, and files of other names stay."""
    writer = FxCheckpointer(Toy(["rsna"]), str(tmp_path), keep_last=2, trainer=Counting())
    writer.save_weights("model_best", iteration=0)
    earlier = FxCheckpointer(Toy(["rsna"]), str(tmp_path))
    earlier.save("model_0009999")
    periodic = PeriodicCheckpointer(writer, period=2, max_iter=9)
    for iteration in range(9):
        periodic.step(iteration)
    names = [Path(f).stem for f in writer.get_all_checkpoint_files()]
    assert names == ["model_0000005", "model_0000007", "model_0009999", "model_best", "model_final"]
    assert Path(writer.get_checkpoint_file()).stem == "model_final"
    assert not (tmp_path / "model_0000003.state.pt").exists()
    assert not (tmp_path / "model_best.state.pt").exists()


def test_metrics_reach_the_checkpoint_they_belong_to(tmp_path: Path):
    writer = FxCheckpointer(Toy(["rsna"]), str(tmp_path))
    writer.save("m", iteration=5)
    writer.add_metrics({"rsna/cls/auc": 0.25}, iteration=4)
    assert read_description(tmp_path / "m.safetensors")["metrics"] == {}
    writer.add_metrics({"rsna/cls/auc": 0.75}, iteration=5)
    assert read_description(tmp_path)["metrics"] == {"rsna/cls/auc": 0.75}
    assert load_weights(Toy(["rsna"], seed=1), tmp_path).complete


def test_another_input_path_is_warned_about(
    tmp_path: Path, cfg: CfgNode, caplog: pytest.LogCaptureFixture
):
    FxCheckpointer(Toy(["rsna"]), str(tmp_path), cfg=cfg).save("m")
    other = cfg.clone()
    other.INPUT.FX.SIZE = 448
    reader = FxCheckpointer(Toy(["rsna"]), "", cfg=other)
    with caplog.at_level("WARNING"):
        reader.load(str(tmp_path / "m.safetensors"))
    assert "size is 448, was 224" in caplog.text and "intensity" not in caplog.text


def test_tied_weights(tmp_path: Path):
    model = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    FxCheckpointer(model, str(tmp_path)).save("m")
    other = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)})
    assert load_weights(other, tmp_path).complete and same(model, other)


def test_a_description_of_another_format(tmp_path: Path):
    FxCheckpointer(Toy(["rsna"]), str(tmp_path)).save("m")
    text = tmp_path / "m.json"
    text.write_text(json.dumps({"format": "something 9"}))
    with pytest.raises(CheckpointError) as error:
        load_weights(Toy(["rsna"]), tmp_path)
    one_line(error, "m.json", "another format")
    text.write_text("{")
    with pytest.raises(CheckpointError) as error:
        read_description(tmp_path)
    one_line(error, "m.json", "cannot be read")


def test_converting_needs_tensors(tmp_path: Path):
    (tmp_path / "m.pkl").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(CheckpointError) as error:
        convert_trusted_pickle(tmp_path / "m.pkl", tmp_path / "m.safetensors")
    one_line(error, "holds no weights", "list")
