"""Every config file, found by listing, loads and builds in a tiny variant."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from fx_d2.data.source import TASKS
from fx_d2.data.sources import pretraining_sources
from fx_d2.engine.checks import check_config
from fx_d2.engine.optimizer import NormClipper, build_optimizer
from fx_d2.engine.setup import ConfigError, load_config
from fx_d2.modeling.backbone.presets import network_name
from fx_d2.modeling.backbone.smp_encoder import ZOO
from fx_d2.modeling.heads.spec import head_specs

ROOT = Path(__file__).resolve().parents[2] / "configs"
OTHERS = ("doll/pseudo_masks.yaml", "doll/chain", "quick_schedules/doll_chain")
FILES = sorted(
    name
    for path in ROOT.rglob("*.yaml")
    # Studies are lists of runs of these; tests/engine/test_study.py plans them. The settings of
    # tools that are no config of Detectron2 are loaded by their own tests.
    if not (name := path.relative_to(ROOT).as_posix()).startswith(("studies/", *OTHERS))
)
FOUNDATION_X = [name for name in FILES if name.startswith("foundation_x/")]
# Laid over a config of a model by a list of _BASE_; here over the base of all.
LAYERS = ("teacher/",)
CHILD_LINES = 32  # settings without comments; two lists of 11 datasets among them


def load(name: str | Path) -> CfgNode:
    """As train_net.py does: unknown keys and names are errors."""
    layer = str(name).startswith(LAYERS)
    cfg = load_config(str(ROOT / ("Base-FX.yaml" if layer else name)), ["MODEL.DEVICE", "cpu"])
    if cfg.DATASETS.TRAIN:  # a base file leaves the datasets to its children
        check_config(cfg, train=True)
    if cfg.MODEL.META_ARCHITECTURE == "Segmentor":
        assert cfg.MODEL.FX.TRUNK.NAME in ZOO
    else:
        network_name(cfg.MODEL.FX.TRUNK.NAME)
    cfg = cfg.clone()
    cfg.defrost()
    if layer:
        cfg.merge_from_file(str(ROOT / name))
    return cfg


def tiny(cfg: CfgNode) -> CfgNode:
    """Same heads, same layout, few channels."""
    cfg = copy.deepcopy(cfg)
    cfg.MODEL.DEVICE, cfg.INPUT.FX.SIZE = "cpu", 64
    cfg.MODEL.FX.TRUNK.NAME, cfg.MODEL.FX.TRUNK.PRETRAINED = "swin_t", ""
    kwargs = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
    cfg.MODEL.FX.TRUNK.KWARGS = CfgNode(kwargs, new_allowed=True)
    cfg.MODEL.FPN.OUT_CHANNELS = cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.FX.SEG.CHANNELS = 24  # "upernet" needs the width of the finest stage
    cfg.MODEL.FX.CLS.LOCAL.DIM = 16
    if cfg.MODEL.META_ARCHITECTURE == "Segmentor":
        cfg.MODEL.FX.TRUNK.NAME, cfg.MODEL.FX.SEG.CHANNELS = "mobilenet_v2", 32
        cfg.MODEL.FX.TRUNK.KWARGS.clear()
    if not (cfg.DATASETS.TRAIN or cfg.MODEL.FX.SOURCES):
        cfg.MODEL.FX.SOURCES = ("chestx_det",)
    return cfg


def test_the_files_are_found():
    assert "Base-FX.yaml" in FILES and len(FOUNDATION_X) == 6


@pytest.mark.parametrize("name", FILES)
def test_a_config_loads_builds_and_predicts(name):
    cfg = load(name)
    small = tiny(cfg)
    model = build_model(small).eval()
    specs = head_specs(small)
    assert specs and not any(p.is_meta for p in model.parameters())
    image = torch.rand(len(cfg.MODEL.PIXEL_MEAN), 64, 64)
    (output,) = model([{"image": image, "height": 40, "width": 50}])
    for task, key in (("cls", "labels"), ("loc", "instances"), ("seg", "masks")):
        assert set(output[key]) == {s.source for s in specs if s.task == task}
    # What a run would do with its parameters: no pattern is idle, no task misspelt.
    build_optimizer(small, model)
    NormClipper.from_config(small, TASKS)


@pytest.mark.parametrize(
    ("given", "typo"),
    [
        ("BASE_LR:", "BASE_LRR:"),
        ("PRETRAINED: timm", "PRETRAIN: timm"),
        ("CLIP_NORM_BY:", "CLIP_NORMS:"),
        ("rsna_train", "rnsa_train"),
        ("siim_acr_val", "siim_acr_valid"),
        ("chexpert=smooth", "chexprt=smooth"),
        ("NAME: MultiSourceROIHeads", "NAME: MultiSourceROIHead"),
        ("LR_SCHEDULER_NAME: WarmupCosineLR", "LR_SCHEDULER_NAME: Cosine"),
        ("NAME: swin_l", "NAME: swim_l"),
        ("MAX_ITER: 889000", "MAX_ITER: many"),
        ("trunk.*=0.1", "trnk.*=0.1"),
        ("loc=0.1", "lok=0.1"),
        ("LOSS: dice", "LOSS: dise"),
    ],
)
def test_a_typo_in_any_config_is_found(tmp_path, given, typo):
    """The tests above would not pass over a file with one."""
    shutil.copytree(ROOT, tmp_path / "configs")
    files = sorted((tmp_path / "configs").rglob("*.yaml"))
    hits = [p for p in files if given in p.read_text("utf-8")]
    assert hits, given
    hits[0].write_text(hits[0].read_text("utf-8").replace(given, typo, 1), "utf-8")
    # Of a base file, in what is built on it.
    file = "foundation_x/swin_b_11src_x.yaml" if hits[0].name == "Base-FX.yaml" else hits[0]
    with pytest.raises((ConfigError, KeyError, ValueError)):
        small = tiny(load(tmp_path / "configs" / file))
        build_optimizer(small, build_model(small))
        NormClipper.from_config(small, TASKS)


@pytest.mark.parametrize("name", FOUNDATION_X)
def test_schedules_are_26_passes(name):
    """Where the published curves end; every (source, task) once in a pass."""
    cfg = load(name)
    images = 0.0
    for source in pretraining_sources():
        part = source.splits["train"]
        share = source.expected[f"{part.name}/images"] * (part.high - part.low)
        images += share * len(source.tasks)
    steps = images / cfg.SOLVER.IMS_PER_BATCH
    solver = cfg.SOLVER
    assert solver.MAX_ITER / 26 / steps == pytest.approx(1, abs=1e-3)
    assert solver.WARMUP_ITERS / steps == pytest.approx(1, abs=1e-3)
    assert 10 * solver.CHECKPOINT_PERIOD == cfg.TEST.EVAL_PERIOD == solver.WARMUP_ITERS


@pytest.mark.parametrize("name", [n for n in FILES if not n.startswith("quick_schedules/")])
def test_a_preset_states_only_what_differs_from_its_base(name, tmp_path):
    text = (ROOT / name).read_text(encoding="utf-8")
    own = yaml.safe_load(text)
    base = own.pop("_BASE_", None)
    if base is None:
        return
    settings = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    assert len(settings) <= CHILD_LINES
    bases = [str((ROOT / name).parent / b) for b in ([base] if isinstance(base, str) else base)]
    (tmp_path / "parent.yaml").write_text(yaml.safe_dump({"_BASE_": bases}), encoding="utf-8")
    parent = load(tmp_path / "parent.yaml")

    def repeated(node: dict, given: CfgNode, prefix: str = "") -> list[str]:
        found = []
        for key, value in node.items():
            if isinstance(value, dict):
                found += repeated(value, given.get(key, CfgNode()), f"{prefix}{key}.")
            elif key in given and _plain(given[key]) == _plain(value):
                found.append(prefix + key)
        return found

    assert repeated(own, parent) == []


def _plain(value):
    return list(value) if isinstance(value, (list, tuple)) else value


@pytest.mark.parametrize("name", FOUNDATION_X)
def test_foundation_x_has_the_twenty_heads_of_the_paper(name):
    cfg = load(name)
    specs = head_specs(cfg)
    tasks = [s.task for s in specs]
    assert (tasks.count("cls"), tasks.count("loc"), tasks.count("seg")) == (11, 6, 3)
    assert [s.source for s in specs if s.task == "cls"] == [s.key for s in pretraining_sources()]
    assert sum(len(s.classes) for s in specs if s.task == "cls") == 69
    plus = name.endswith("_xplus.yaml")
    assert cfg.MODEL.FX.LOC.SHARED_DECODER is plus
    assert tuple(cfg.MODEL.FX.CLS.LOCAL.IN_FEATURES) == ()
    assert cfg.MODEL.FX.SEG.LOSS == "dice"
    over = cfg.MODEL.FX.SEG.DICE_OVER
    assert over == ("channel" if plus else "batch")


def test_no_source_is_said_with_what_the_config_names():
    with pytest.raises(ValueError, match=r"no heads: DATASETS.TRAIN is \(\), MODEL.FX.SOURCES is"):
        head_specs(load("Base-FX.yaml"))
    cfg = load("Base-FX.yaml")
    cfg.MODEL.FX.SOURCES = ("rsnaa",)
    with pytest.raises(KeyError, match="no source 'rsnaa'. Did you mean 'rsna'"):
        head_specs(cfg)
    cfg.MODEL.FX.SOURCES, cfg.DATASETS.TRAIN = (), ("rsna_train", "rsna_val", "node21_train")
    assert [s.name for s in head_specs(cfg)] == ["rsna/cls", "rsna/loc", "node21/cls", "node21/loc"]
    cfg.DATASETS.TASKS = ("seg",)
    with pytest.raises(ValueError, match="no heads"):
        head_specs(cfg)
    cfg.MODEL.FX.SOURCES, cfg.DATASETS.EXTRA_TASKS = ("nih14",), ("nih14/loc",)
    assert [s.name for s in head_specs(cfg)] == ["nih14/loc"]


def test_a_layer_lies_over_a_model(tmp_path):
    """As the comments in configs/teacher say it is used."""
    for name in (f for f in FILES if f.startswith("teacher/")):
        model = "foundation_x/swin_b_11src_x.yaml"
        (tmp_path / "mine.yaml").write_text(f"_BASE_: [{ROOT / model}, {ROOT / name}]\n")
        layered, plain = load(model), load(model)
        layered.merge_from_file(str(tmp_path / "mine.yaml"))
        assert layered.MODEL.META_ARCHITECTURE == "StudentTeacher"
        assert layered.TEACHER != plain.TEACHER
        plain.TEACHER, plain.MODEL.META_ARCHITECTURE = layered.TEACHER, "StudentTeacher"
        assert layered == plain  # nothing else changed


def test_the_faithful_teacher_has_the_numbers_of_the_released_code():
    node = load("teacher/faithful.yaml").TEACHER
    assert (node.UPDATE, node.MOMENTUM, node.WEIGHT, node.MIX) == ("phase", 0.8, 0.5, "convex")
    assert (node.VIEWS, node.MOMENTUM_SCHEDULE, node.MOMENTUM_WARMUP) == (1, "constant", False)
    intended = load("teacher/intended.yaml").TEACHER
    assert (intended.UPDATE, intended.VIEWS, intended.MIX) == ("iteration", 2, "sum")
