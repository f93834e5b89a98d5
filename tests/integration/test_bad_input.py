"""Whatever is wrong, train_net.py says it in one line, ends with 2 and destroys nothing.

More of it stands beside what finds it: test_checkpoint.py, test_images_hostile.py and
test_readers_hostile.py.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from fx_d2.engine.checkpoint import FxCheckpointer
from fx_d2.engine.setup import load_config
from fx_d2.engine.weights import digest

ROOT = Path(__file__).resolve().parents[2]
QUICK = ROOT / "configs/quick_schedules/foundation_x_instant_test.yaml"
NIH = ("DATASETS.TRAIN", "('nih14_train',)", "DATASETS.TEST", "('nih14_val',)")
QUICKER = ("SOLVER.MAX_ITER", 3, "TEST.EVAL_PERIOD", 0, "TEST.FX.BOOTSTRAP", 0)
Refused = Callable[..., str]
Train = Callable[..., str]


@pytest.fixture
def train(refused: Refused, tmp_path: Path) -> Train:
    """Training by the quick schedule with further settings is refused; returns the line."""

    def run(*words: object) -> str:
        return refused("--config-file", QUICK, *words, "OUTPUT_DIR", tmp_path / "run")

    return run


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a checkpoint of the quick config's model."""
    folder = tmp_path_factory.mktemp("weights")
    cfg = load_config(str(QUICK), ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(folder)])
    FxCheckpointer(build_model(cfg), str(folder), cfg=cfg).save("model_final", iteration=0)
    return folder


@pytest.fixture
def evaluate(refused: Refused, tmp_path: Path) -> Train:
    """Evaluating a weights file is refused; returns the line."""

    def run(file: Path, *words: object) -> str:
        given = ("--eval-only", "MODEL.WEIGHTS", file, "OUTPUT_DIR", tmp_path / "run")
        return refused("--config-file", QUICK, *given, "TEST.FX.BOOTSTRAP", 0, *words)

    return run


@pytest.mark.parametrize(
    ("words", "told"),
    [
        # sources
        (("MODEL.FX.SOURCES", "('rnsa',)"), ("'rnsa'", "Did you mean 'rsna'", "chexpert, nih14")),
        (("DATASETS.EXTRA_TASKS", "('nih15/loc',)"), ("Did you mean 'nih14'", "Known: ")),
        (("DATASETS.EXTRA_TASKS", "('nih14/lok',)"), ("nih14/lok", "cls, loc")),
        (("INPUT.FX.UNKNOWN_BY", "('chexprt=zeros',)"), ("Did you mean 'chexpert'", "Known: ")),
        (("TEST.FX.GROUP_BY", "('rsnaa=study_id',)"), ("Did you mean 'rsna'", "Known: ")),
        (("MODEL.FX.CLS.PREVALENCE", "{'rnsa': [0.1]}"), ("Did you mean 'rsna'", "Known: ")),
        (("DATASETS.ROOTS.rnsa", "/data"), ("Did you mean 'rsna'", "Known: ")),
        # heads
        (
            ("TEST.EXPECTED_RESULTS", "[['rsnaa/cls','AUC',1.0,0.1]]"),
            ("did you mean rsna/cls", "nih14/cls, rsna/cls"),
        ),
        (
            ("DATALOADER.FX.DATASET_RATIO", "('rnsa/cls=2',)"),
            ("'rnsa/cls'", "Did you mean 'rsna/cls'", "nih14/cls, rsna/cls"),
        ),
        (("MODEL.FX.SOURCES", "('rsna',)", "DATASETS.TEST", "()"), ("nih14/cls", "rsna/loc")),
        # metrics
        (
            ("SOLVER.FX.BEST_METRIC", "('*/cls/AUCC',)"),
            ("SOLVER.FX.BEST_METRIC has '*/cls/AUCC'", "did you mean */cls/AUC", "cls/ with AP, "),
        ),
        (("SOLVER.FX.BEST_METRIC", "('*/cls/AUC','rnsa/loc/AP40')"), ("mean */loc/AP40",)),
        (("SOLVER.FX.BEST_METRIC", "('*/cls/AUC-Edemaa',)"), ("did you mean */cls/AUC-Edema",)),
        (("SOLVER.FX.BEST_METRIC", "('siim_acr/seg/Dice',)"), ("no metric of this run", "*/loc/")),
        (
            ("SOLVER.FX.EARLY_STOP.METRIC", "('*/cls/AUCC',)", "SOLVER.FX.EARLY_STOP.PATIENCE", 1),
            ("SOLVER.FX.EARLY_STOP.METRIC has '*/cls/AUCC'",),
        ),
        # classes
        (("INPUT.FX.UNCERTAIN_BY", "('nih14/Edemaa=ones',)"), ("Did you mean 'Edema'", "Hernia")),
        (("INPUT.FX.UNCERTAIN_BY", "('nih14/Edema=onez',)"), ("Did you mean 'ones'", "ignore")),
        # registered names
        (
            ("MODEL.META_ARCHITECTURE", "FoundationY"),
            ("did you mean FoundationX", "RetinaNet"),
        ),
        (("MODEL.FX.CLS.NAME", "SourceClassifier"), ("did you mean MultiSourceClassifier",)),
        (("MODEL.ROI_HEADS.NAME", "MultiSourceROIHead"), ("did you mean MultiSourceROIHeads",)),
        (("MODEL.SEM_SEG_HEAD.NAME", "MultiSegHead"), ("did you mean MultiSourceSegHead",)),
        (("MODEL.BACKBONE.NAME", "build_tim_backbone"), ("did you mean build_timm_backbone",)),
        (("MODEL.FX.TRUNK.NAME", "swim_t"), ("did you mean swin_t", "resnet50")),
        # settings and what they may be
        (("MODEL.FX.CLS.LOSS", "bcee"), ("'bcee'", "asymmetric")),
        (("MODEL.FX.SEG.LOSS", "dise"), ("'dise'", "bce_dice")),
        (("MODEL.FX.SEG.NORM", "QN"), ("MODEL.FX.SEG.NORM", "'QN'", "'GN'")),
        (("SOLVER.LR_SCHEDULER_NAME", "Cosine"), ("LR_SCHEDULER_NAME", "'WarmupCosineLR'")),
        (("DATALOADER.FX.LAST_BATCH", "all"), ("DATALOADER.FX.LAST_BATCH", "'fill'")),
        (("INPUT.FX.INTENSITY.MODE", "x"), ("INPUT.FX.INTENSITY.MODE", "'percentile'")),
        (("TEST.FX.COCO_BACKEND", "coco"), ("TEST.FX.COCO_BACKEND", "'pycocotools'")),
        (("TEST.EXPECTED_RESULTS", "[['rsna/cls','AUC']]"), ("['source/task', metric, value",)),
        (("MODEL.FX.CLS.PREVALENCE", "{'rsna': 0.1}"), ("PREVALENCE.rsna", "3 shares", "Normal")),
        (("SOLVER.IMS_PER_BATCH", 0), ("SOLVER.IMS_PER_BATCH is 0", "1 or more")),
        (("SOLVER.MAX_ITER", -3), ("SOLVER.MAX_ITER is -3",)),
        (("SOLVER.CHECKPOINT_PERIOD", 0), ("SOLVER.CHECKPOINT_PERIOD is 0",)),
        (("SOLVER.FX.KEEP_LAST", -1), ("SOLVER.FX.KEEP_LAST is -1",)),
        (("INPUT.FX.SIZE", 0), ("INPUT.FX.SIZE is 0",)),
        (("DATALOADER.NUM_WORKERS", -1), ("DATALOADER.NUM_WORKERS is -1",)),
        (("SOLVER.BASE_LR", "1e999"), ("SOLVER.BASE_LR is inf",)),
        (("MODEL.DEVICE", "tpu"), ("MODEL.DEVICE", "'tpu'", "cuda")),
        # types, and what is no setting
        (("SOLVER.BASE_LR", "fast"), ("SOLVER.BASE_LR", "'fast'", "float")),
        (("DATASETS.TRAIN", "rsna_train"), ("'rsna_train'", "tuple", "('nih14_train', 'rsna_")),
        (("SOLVER", "1"), ("SOLVER is a group of keys",)),
        (("SOLVER.BASE_LRR", "1"), ("SOLVER.BASE_LRR", "SOLVER.BASE_LR")),
        (("DATASETS.OPTIONS.vindr_locl.fuse_iou", "0.4"), ("vindr_local.fuse_iou",)),
        (
            ("DATASETS.OPTIONS.vindr_local.fuse_iuo", "0.4"),
            ("vindr_local", "no option 'fuse_iuo'. Did you mean 'fuse_iou'", "min_readers"),
        ),
        (("MODEL.FX.TRUNK.KWARGS", "{'embed_dimm': 24}"), ("embed_dimm", "MODEL.FX.TRUNK.KWARGS")),
        (("MODEL.FX.TRUNK.PRETRAINED", "/nowhere.pth"), ("PRETRAINED", "/nowhere.pth")),
    ],
    ids=lambda value: value[0] if isinstance(value[0], str) and value[0].isupper() else "",
)
def test_names_and_settings(train: Train, tmp_path: Path, words, told):
    line = train(*words)
    for part in told:
        assert part in line, line
    assert not list(tmp_path.glob("run/*.safetensors"))


def test_groups_of_settings_on_the_command_line():
    """Refused by yacs, but the only way to say some of them."""
    words = ["MODEL.FX.TRUNK.KWARGS", "{'embed_dim': 12, 'window_size': 4}"]
    words += ["DATASETS.OPTIONS.vindr_local", "{'fuse_iou': 0.4}", "SOLVER.BASE_LR", "1"]
    words += ["MODEL.FX.CLS.PREVALENCE.rsna", "[0.1, 0.2, 0.7]"]
    cfg = load_config(str(QUICK), words)
    kwargs = cfg.MODEL.FX.TRUNK.KWARGS
    assert (kwargs.embed_dim, kwargs.window_size) == (12, 4)
    assert kwargs.depths == [1, 1, 1, 1]  # of the file: merged, not replaced
    assert dict(cfg.DATASETS.OPTIONS.vindr_local) == {"fuse_iou": 0.4, "min_readers": 1}
    assert cfg.MODEL.FX.CLS.PREVALENCE.rsna == [0.1, 0.2, 0.7]
    assert cfg.SOLVER.BASE_LR == 1.0 and isinstance(cfg.SOLVER.BASE_LR, float)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "is no config"),
        ("- SOLVER\n", "is no config"),
        ("_BASE_: nothing.yaml\n", "nothing.yaml"),
        ("_BASE_: mine.yaml\n", "leads back to itself"),
        ("SOLVER: 3\n", "SOLVER is a group of keys"),
        ("SOLVER:\n  BASE_LR: fast\n", "expected float"),
        ("SOLVER: [1\n", "line 2"),
        ("\x00", "mine.yaml"),
    ],
)
def test_config_files(refused: Refused, tmp_path: Path, text: str, told: str):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    line = refused("--config-file", file, "OUTPUT_DIR", tmp_path / "run")
    assert "mine.yaml" in line and told in line, line


def _header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


_ENORMOUS = {"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("cut", lambda whole: whole[: len(whole) // 2], "is damaged or not a checkpoint"),
        ("header_only", lambda whole: whole[:60], "is damaged or not a checkpoint"),
        ("empty", lambda whole: b"", "is damaged or not a checkpoint"),
        ("text", lambda whole: b"weights", "is damaged or not a checkpoint"),
        ("huge_header", lambda whole: _header(b"{}", 2**62), "header too large"),
        ("long_header", lambda whole: _header(b"{" * 100, 10**9), "header too large"),
        (
            "enormous_tensor",
            lambda whole: _header(json.dumps(_ENORMOUS).encode()) + bytes(4),
            "is damaged or not a checkpoint",
        ),
    ],
)
def test_weights_files(evaluate: Train, weights: Path, tmp_path: Path, name, content, told):
    """Nothing is allocated by what a header claims."""
    file = tmp_path / f"{name}.safetensors"
    file.write_bytes(content((weights / "model_final.safetensors").read_bytes()))
    line = evaluate(file)
    assert file.name in line and told in line, line


def test_weights_that_do_not_belong(evaluate: Train, weights: Path, tmp_path: Path):
    file = tmp_path / "model.safetensors"
    whole = bytearray((weights / "model_final.safetensors").read_bytes())
    whole[-5] ^= 1  # one bit of one value
    file.write_bytes(whole)
    shutil.copy(weights / "model_final.json", tmp_path / "model.json")
    assert "do not belong together, or the weights are damaged" in evaluate(file)
    (tmp_path / "model.json").write_text("{")
    assert "model.json" in evaluate(file)
    (tmp_path / "notes.txt").write_text("accuracy 0.99")
    line = evaluate(tmp_path / "notes.txt")
    assert "is no checkpoint" in line and "trust" not in line
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "resnet.pth")
    line = evaluate(tmp_path / "resnet.pth")
    assert "none of its 1 tensors" in line and "fc.weight" in line
    line = evaluate(weights / "model_finl.safetensors")
    assert "no such checkpoint" in line and "model_final.safetensors" in line
    assert "last_checkpoint" in evaluate(tmp_path)


def test_weights_without_description_are_used(command, weights: Path, tmp_path: Path):
    file = tmp_path / "model.safetensors"
    shutil.copy(weights / "model_final.safetensors", file)
    words = ("--eval-only", "MODEL.WEIGHTS", file, "OUTPUT_DIR", tmp_path / "run", *NIH)
    assert command("--config-file", QUICK, *words, "TEST.FX.BOOTSTRAP", 0)[0] == 0
    assert "nih14/cls" in json.loads((tmp_path / "run/results.json").read_text())["results"]


def test_evaluating_what_was_not_loaded(
    evaluate: Train, refused: Refused, command, weights: Path, tmp_path: Path
):
    """Initial values would give figures like those of a bad model."""
    line = evaluate(weights, "MODEL.FX.SEG.CHANNELS", 16)
    assert "tensors that this evaluation needs are not in it" in line and "[16, " in line
    more = ("DATASETS.TRAIN", "('rsna_train','nih14_train','siim_acr_train')")
    line = evaluate(weights, *more, "DATASETS.TEST", "('siim_acr_val',)")
    assert "heads.cls.siim_acr" in line, line
    # A head that is not evaluated may be new.
    words = ("--eval-only", "MODEL.WEIGHTS", weights, "OUTPUT_DIR", tmp_path / "fine")
    words += (*more, "DATASETS.TEST", "('nih14_val',)", "TEST.FX.BOOTSTRAP", 0)
    assert command("--config-file", QUICK, *words, "DATASETS.TASKS", "('cls','loc')")[0] == 0
    line = refused("--config-file", QUICK, "--eval-only", "--resume", "OUTPUT_DIR", tmp_path)
    assert "no weights to evaluate" in line and str(tmp_path) in line


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("content", "told"),
    [(b"hello", "not an image"), (b"", "0 bytes"), (None, "truncated or damaged")],
)
def test_wrong_images(train: Train, world: Path, tmp_path: Path, content, told: str, workers: int):
    folder = tmp_path / "nih14"
    shutil.copytree(world / "nih14", folder)
    for file in folder.rglob("*.png"):
        file.write_bytes(file.read_bytes()[:300] if content is None else content)
    words = ("DATASETS.ROOTS.nih14", folder, *NIH, *QUICKER, "DATALOADER.NUM_WORKERS", workers)
    line = train(*words)
    assert told in line and str(folder) in line and ".png" in line and "To do" in line, line
    if workers == 0:
        assert "is readable" in train(*words, "DATASETS.ON_ERROR", "skip")


def test_an_evaluation_without_a_readable_image(
    evaluate: Train, world: Path, weights: Path, tmp_path: Path
):
    folder = tmp_path / "nih14"
    shutil.copytree(world / "nih14", folder)
    for file in folder.rglob("*.png"):
        file.write_bytes(b"hello")
    line = evaluate(weights, "DATASETS.ROOTS.nih14", folder, *NIH, "DATASETS.ON_ERROR", "skip")
    assert "nothing of nih14_val could be evaluated" in line and "not an image" in line


def test_empty_folders(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "empty").mkdir()
    line = train(*NIH, "DATASETS.ROOTS.nih14", tmp_path / "empty")
    assert "Data_Entry_2017_v2020.csv" in line and "holds []" in line
    for root in (tmp_path / "empty", tmp_path / "nowhere"):
        monkeypatch.setenv("DETECTRON2_DATASETS", str(root))
        line = train(*NIH)
        assert f"{root}/nih14" in line and "DETECTRON2_DATASETS" in line


@pytest.mark.parametrize(
    ("source", "task"), [("nih14", "cls"), ("rsna", "loc"), ("chestx_det", "seg")]
)
def test_a_loss_that_is_not_finite(train: Train, tmp_path: Path, source: str, task: str):
    """Stops, names its images, and leaves the checkpoint before it as it was."""
    line = train(
        *("DATASETS.TRAIN", f"('{source}_train',)", "DATASETS.TEST", "()", *QUICKER),
        *("DATASETS.TASKS", f"('{task}',)", "SOLVER.BASE_LR", "1e30", "SOLVER.WARMUP_ITERS", 0),
        *("SOLVER.CHECKPOINT_PERIOD", 1),
    )
    assert f"iteration 1, {source}/{task}" in line and "SOLVER.BASE_LR" in line
    (file,) = (tmp_path / "run").glob("bad_batch_*.json")
    assert str(file) in line
    saved = json.loads(file.read_text())
    assert len(saved["images"]) == 2 and all(i["image_id"] for i in saved["images"])
    before = tmp_path / "run/model_0000000.safetensors"
    assert json.loads(before.with_suffix(".json").read_text())["weights_sha256"] == digest(before)


def test_places_that_cannot_be_written(train: Train, refused: Refused, tmp_path: Path):
    """Also as root, who may write everywhere: a file stands where a folder is needed, and back."""
    (tmp_path / "file").write_text("mine")
    for place in ("file", "file/run"):
        line = refused("--config-file", QUICK, "OUTPUT_DIR", tmp_path / place)
        assert f"{tmp_path}/{place}" in line and "is a file" in line
    assert (tmp_path / "file").read_text() == "mine"
    assert "OUTPUT_DIR is empty" in refused("--config-file", QUICK, "OUTPUT_DIR", "")
    folder = tmp_path / "run" / "model_final.safetensors"
    folder.mkdir(parents=True)
    line = train(*NIH, *QUICKER, "SOLVER.CHECKPOINT_PERIOD", 2)
    assert "cannot write the checkpoint" in line and "model_final.safetensors" in line
    # What was written before is whole, and nothing half-written lies about.
    before = tmp_path / "run/model_0000001.safetensors"
    assert json.loads(before.with_suffix(".json").read_text())["weights_sha256"] == digest(before)
    assert not list((tmp_path / "run").glob(".*.tmp"))


def test_resuming_with_another_model(train: Train, weights: Path, tmp_path: Path):
    shutil.copytree(weights, tmp_path / "run")
    was = {p.name: digest(p) for p in (tmp_path / "run").glob("model_*")}
    torch.save({"weights_sha256": "0" * 64}, tmp_path / "run/model_final.state.pt")
    assert "of different moments" in train("--resume", *QUICKER)
    (tmp_path / "run/model_final.state.pt").write_bytes(b"PK cut")
    assert "ends too early" in train("--resume", *QUICKER)
    names = {"model_final.safetensors", "model_final.json"}
    assert {n: digest(tmp_path / "run" / n) for n in names} == {n: was[n] for n in names}
