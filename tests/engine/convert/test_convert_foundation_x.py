"""Foundation X and X+: trunk, classifiers and masks compute the same; the rest is listed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from foreign_models import CLASSES, MASKS, SIDE, WIDTH, FoundationX, foundation_x_file, shaken
from test_convert_swin import reload, tiny_config

from fx_d2.data.vocabulary import CHEXPERT_14
from fx_d2.engine.checkpoint import read_description
from fx_d2.engine.convert import Foreign, convert, read_foreign
from fx_d2.engine.convert.convert import meta_model, position_index
from fx_d2.engine.setup import load_config
from fx_d2.engine.weights import CheckpointError
from fx_d2.predictor import Predictor

ROOT = Path(__file__).resolve().parents[3]
# Classifier i of a checkpoint, as documented.
CLS_HEADS = (
    *("tbx11k", "node21", "candid_ptx", "rsna", "chestx_det", "siim_acr"),
    *("chexpert", "nih14", "vindr_cxr", "shenzhen", "mimic_cxr"),
)
PUBLISHED = "configs/published/foundation_x_swin_b.yaml"


def published():
    cfg = tiny_config(PUBLISHED)
    cfg.MODEL.FX.SOURCES, cfg.MODEL.FX.SEG.CHANNELS = (), WIDTH
    return cfg


@pytest.fixture(scope="module")
def models() -> tuple[FoundationX, FoundationX]:
    return shaken(FoundationX(), 3), shaken(FoundationX(), 4)


@pytest.mark.parametrize("plus", [False, True])
@torch.no_grad()
def test_every_head_computes_the_same(tmp_path: Path, models, plus):
    student, teacher = models
    torch.save(foundation_x_file(student, teacher, plus=plus), tmp_path / "ckpt.pth")
    cfg = published()
    foreign = read_foreign(tmp_path / "ckpt.pth", which="student")
    assert foreign.kind == ("foundation_x_plus" if plus else "foundation_x")
    result = convert(foreign, meta_model(cfg))
    assert result.missing == () and not result.left_out.keys() & result.converted.keys()
    model = reload(result, cfg, tmp_path / "out.safetensors")
    images = torch.randn(2, 3, SIDE, SIDE)
    stages = student.stages(images)
    features = model.trunk(images)
    pooled, decoded = model.trunk.pooled(features), model.seg_decoder(features)
    alphabet = sorted(CHEXPERT_14)
    for index, source in enumerate(CLS_HEADS):
        wanted = student.classification_heads[index](student.pooled(stages[3]))
        if source == "mimic_cxr":  # by name, as its label file has them
            by_name = dict(zip(alphabet, wanted.T, strict=True))
            wanted = torch.stack([by_name[name] for name in CHEXPERT_14], 1)
        found = model.heads["cls"](pooled, None, source)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3, msg=source)
    for index, source in ((2, "candid_ptx"), (4, "chestx_det"), (5, "siim_acr")):
        wanted = student.masks(stages, index)
        found = model.heads["seg"](decoded, source, (SIDE, SIDE))
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3, msg=source)


def test_what_has_no_place_is_listed_with_the_reason(tmp_path: Path, models):
    torch.save(foundation_x_file(*models, plus=True), tmp_path / "ckpt.pth")
    result = convert(read_foreign(tmp_path / "ckpt.pth"), meta_model(published()))
    weights = result.foreign.weights
    fates = Counter([*result.converted, *result.left_out, *result.mismatched])
    assert fates == Counter(weights.keys())
    for name, why in (
        ("transformer.tgt_embed.0.weight", "DINO"),
        ("class_embed_.0.0.weight", "DINO"),
        ("backbone.0.Segnorm0.weight", "used by nothing"),
        ("backbone.0.segmentation_heads.3.bias", "organ"),
        ("backbone.0.segmentation_FPN.smooth_conv.2.bias", "copy"),
        ("backbone.0.head.weight", "used by nothing"),
    ):
        assert why in result.left_out[name]
    # No localization here, so its norms have a place, but not in this config.
    assert {n.split(".")[2] for n in result.mismatched} == {"Locnorm1", "Locnorm2", "Locnorm3"}
    with_boxes = published()
    with_boxes.DATASETS.TASKS = ("cls", "loc", "seg")
    whole = convert(result.foreign, meta_model(with_boxes))
    norm = whole.weights["loc_encoder.neck.bottom_up.res4.weight"]
    assert torch.equal(norm, weights["backbone.0.Locnorm2.weight"]) and not whole.mismatched
    odd = Foreign(**{**vars(result.foreign), "weights": {**weights, "new.thing": torch.ones(1)}})
    found = convert(odd, meta_model(published()))
    assert "not documented" in found.left_out["new.thing"] and "1 names" in found.notes[-1]


def test_the_teachers_statistics_are_the_students(tmp_path: Path, models):
    student, teacher = models
    torch.save(foundation_x_file(student, teacher, plus=True), tmp_path / "ckpt.pth")
    result = convert(read_foreign(tmp_path / "ckpt.pth"), meta_model(published()))
    name = "segmentation_PPN.bottleneck.1"
    ours = "seg_decoder.pooling.fuse.1"
    for kind, model in (("running_mean", student), ("running_var", student), ("weight", teacher)):
        assert torch.equal(
            result.weights[f"{ours}.{kind}"], model.get_submodule(name).state_dict()[kind]
        )
    assert any("batch statistics are the student's" in note for note in result.notes)
    alone = Foreign(**{**vars(result.foreign), "student": {}})
    assert "not usable" in convert(alone, meta_model(published())).notes[0]


def test_another_decoder_gets_nothing_of_it(tmp_path: Path, models):
    """Some of its tensors have the right name and shape by chance."""
    torch.save(foundation_x_file(*models, plus=True), tmp_path / "ckpt.pth")
    foreign = read_foreign(tmp_path / "ckpt.pth")
    for key, value in (("DECODER", "pyramid"), ("NORM", "GN"), ("BINS", (1, 2))):
        cfg = published()
        cfg.MODEL.FX.SEG[key] = value
        result = convert(foreign, meta_model(cfg))
        assert not [n for n in result.weights if n.startswith(("seg_decoder", "heads.seg"))]
        assert "MODEL.FX.SEG.DECODER" in result.mismatched["backbone.0.segmentation_heads.2.bias"]
        assert "heads.cls.rsna.linear.bias" in result.weights


def test_copies_that_differ_are_refused(tmp_path: Path, models):
    content = foundation_x_file(*models, plus=True)
    content["teacher_model"]["backbone.0.segmentation_FPN.smooth_conv.1.bias"] = torch.ones(WIDTH)
    torch.save(content, tmp_path / "ckpt.pth")
    with pytest.raises(CheckpointError, match=r"smooth_conv.1.bias.*copy"):
        convert(read_foreign(tmp_path / "ckpt.pth"), meta_model(published()))


def test_the_result_predicts_by_itself(tmp_path: Path, models):
    torch.save(foundation_x_file(*models, plus=True), tmp_path / "ckpt.pth")
    cfg = published()
    reload(
        convert(read_foreign(tmp_path / "ckpt.pth"), meta_model(cfg)),
        cfg,
        tmp_path / "x.safetensors",
    )
    about = read_description(tmp_path / "x.safetensors")
    assert len(about["sources"]) == 11 and set(about["sources"]["chestx_det"]) == {"cls", "seg"}
    predictor = Predictor(tmp_path / "x.safetensors", device="cpu")
    found = predictor(torch.rand(60, 50).numpy())
    assert set(found["labels"]) == set(CLS_HEADS) and set(found["masks"]["siim_acr"]) == {
        "Pneumothorax"
    }


def swin_b() -> dict[str, torch.Tensor]:
    """All families of section 8 with their documented shapes; one value of memory each."""
    shapes: dict[str, tuple[int, ...]] = {}
    b = "backbone.0."
    for name, shape in (("proj.weight", (128, 3, 4, 4)), ("proj.bias", (128,))):
        shapes[f"{b}patch_embed.{name}"] = shape
    shapes |= {f"{b}patch_embed.norm.{k}": (128,) for k in ("weight", "bias")}
    for s, (depth, heads) in enumerate(zip((2, 2, 18, 2), (4, 8, 16, 32), strict=True)):
        c = 128 * 2**s
        for i in range(depth):
            at = f"{b}layers.{s}.blocks.{i}."
            linear = {"attn.qkv": (3 * c, c), "attn.proj": (c, c)}
            linear |= {"mlp.fc1": (4 * c, c), "mlp.fc2": (c, 4 * c)}
            for name, shape in linear.items():
                shapes |= {f"{at}{name}.weight": shape, f"{at}{name}.bias": shape[:1]}
            for k in ("weight", "bias"):
                shapes |= {f"{at}norm1.{k}": (c,), f"{at}norm2.{k}": (c,)}
            shapes[f"{at}attn.relative_position_bias_table"] = (169, heads)
        if s < 3:
            shapes[f"{b}layers.{s}.downsample.reduction.weight"] = (2 * c, 4 * c)
            shapes |= {f"{b}layers.{s}.downsample.norm.{k}": (4 * c,) for k in ("weight", "bias")}
            shapes |= {f"{b}Locnorm{s + 1}.{k}": (2 * c,) for k in ("weight", "bias")}
    shapes |= {f"{b}norm.{k}": (1024,) for k in ("weight", "bias")}
    for i, n in enumerate(CLASSES):
        at = f"{b}classification_heads.{i}."
        shapes |= {f"{at}weight": (n, 1024), f"{at}bias": (n,)}
    for i, n in enumerate(MASKS):
        at = f"{b}segmentation_heads.{i}."
        shapes |= {f"{at}weight": (n, 128, 3, 3), f"{at}bias": (n,)}
    for i in range(4):
        shapes[f"{b}segmentation_PPN.stages.{i}.1.weight"] = (256, 1024, 1, 1)
        shapes |= {f"{b}segmentation_PPN.stages.{i}.2.{k}": (256,) for k in STATISTICS}
    shapes[f"{b}segmentation_PPN.bottleneck.0.weight"] = (1024, 2048, 3, 3)
    shapes |= {f"{b}segmentation_PPN.bottleneck.1.{k}": (1024,) for k in STATISTICS}
    for i in range(3):
        at = f"{b}segmentation_FPN."
        shapes |= {
            f"{at}conv1x1.{i}.weight": (128, 256 * 2**i, 1, 1),
            f"{at}conv1x1.{i}.bias": (128,),
        }
        shapes |= {
            f"{at}smooth_conv.{i}.weight": (128, 128, 3, 3),
            f"{at}smooth_conv.{i}.bias": (128,),
        }
    shapes[f"{b}segmentation_FPN.conv_fusion.0.weight"] = (128, 512, 3, 3)
    shapes |= {f"{b}segmentation_FPN.conv_fusion.1.{k}": (128,) for k in STATISTICS}
    shapes |= {"label_enc.weight": (16, 256), "transformer.level_embed": (4, 256)}
    state = {k: torch.ones(1).expand(shape) for k, shape in shapes.items()}
    for name in [n for n in state if n.endswith("running_mean")]:
        state[name.replace("running_mean", "num_batches_tracked")] = torch.tensor(3)
    state[f"{b}layers.0.blocks.0.attn.relative_position_index"] = position_index(7)
    return state


STATISTICS = ("weight", "bias", "running_mean", "running_var")


@pytest.mark.parametrize("name", [PUBLISHED, "configs/foundation_x/swin_b_11src_x.yaml"])
def test_the_shapes_of_swin_b(tmp_path: Path, name):
    state = swin_b()
    torch.save({"model": state, "teacher_model": state, "epoch": 930}, tmp_path / "ckpt.pth")
    model = meta_model(load_config(str(ROOT / name)))
    result = convert(read_foreign(tmp_path / "ckpt.pth"), model)
    parts = Counter(re.match(r"heads\.\w+|\w+", n).group() for n in result.missing)
    if name == PUBLISHED:
        assert result.missing == () and set(parts) == set()
        assert sum(result.weights[n].numel() for n in result.weights if "heads.cls" in n) == 70_725
    else:  # its own decoder and detector are not those of the file, but the detector's norms are
        assert set(parts) == {"seg_decoder", "heads.seg", "loc_encoder", "heads.loc"}
        assert "loc_encoder.neck.bottom_up.res5.weight" in result.weights
    assert {n for n in model.state_dict() if n.startswith("trunk.")} <= set(result.weights)
