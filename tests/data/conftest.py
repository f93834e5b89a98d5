"""A small source made on the spot, for the tests of the mapper and the loaders."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from detectron2.config import CfgNode, get_cfg

from fx_d2.config import add_fx_config
from fx_d2.data.masks import encode_mask
from fx_d2.data.source import Source, carved
from fx_d2.data.sources import SOURCES
from fx_d2.phantom.world import make_world

sys.path.insert(0, str(Path(__file__).parent))  # for the modules beside that are no tests

TOY = Source(
    key="toy_chest",
    title="Toy",
    folder="toy",
    reader="toy",
    splits=carved("all"),
    tasks=("cls", "loc", "seg"),
    cls_classes=("Left Nodule", "Right Nodule", "Edema"),
    thing_classes=("Edema", "Left Nodule", "Right Nodule"),
    instance_masks=True,
    seg_classes=("Left Lung", "Right Lung", "Heart"),
    licence="none",
    homepage="none",
    citation="none",
    access="open",
)


@dataclass
class ToyWorld:
    """Files in a folder, the row they belong to and their records."""

    folder: Path
    source: Source
    records: list[dict[str, Any]]


def _image(rng: np.random.Generator, height: int, width: int, depth: int) -> np.ndarray:
    smooth = cv2.GaussianBlur(rng.random((height, width), dtype=np.float32), (0, 0), 4)
    smooth = (smooth - smooth.min()) / (smooth.max() - smooth.min())
    smooth = 0.8 * smooth + 0.2 * np.linspace(0, 1, width, dtype=np.float32)
    kind = np.uint8 if depth == 8 else np.uint16
    return np.round(smooth * (2**depth - 1)).astype(kind)


def _ellipse(height: int, width: int, cx: float, cy: float, rx: float, ry: float) -> np.ndarray:
    y, x = np.mgrid[:height, :width] + 0.5
    return ((x / width - cx) / rx) ** 2 + ((y / height - cy) / ry) ** 2 <= 1


def _box(mask: np.ndarray) -> list[float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return [float(v) for v in (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)]


def _record(folder: Path, number: int, rng: np.random.Generator) -> dict[str, Any]:
    height, width = int(rng.integers(70, 130)), int(rng.integers(70, 130))
    name = folder / f"{number:03d}.png"
    assert cv2.imwrite(str(name), _image(rng, height, width, 16 if number % 3 == 0 else 8))
    # On a film the patient's left is on the right.
    left = _ellipse(height, width, 0.72, 0.45, 0.18, 0.3)
    right = _ellipse(height, width, 0.3, 0.42, 0.2, 0.32)
    nodule = _ellipse(height, width, rng.uniform(0.6, 0.8), rng.uniform(0.3, 0.7), 0.1, 0.12)
    record: dict[str, Any] = {
        "file_name": str(name),
        "image_id": f"toy{number}",
        "height": height,
        "width": width,
        "source": TOY.key,
        "patient_id": f"p{number // 2}",
        "view": "PA",
        "labels": np.array([number % 2, 0, np.nan if number % 5 else -1], dtype=np.float32),
        "masks": {"Left Lung": encode_mask(left), "Right Lung": encode_mask(right)},
    }
    if number % 4 != 3:
        record["annotations"] = []
    if number % 2 == 1 and number % 4 != 3:
        note = {"bbox": _box(nodule), "bbox_mode": 0, "category_id": 1}
        record["annotations"] = [{**note, "segmentation": encode_mask(nodule)}]
    return record


@pytest.fixture(scope="session")
def _toy_files(tmp_path_factory: pytest.TempPathFactory) -> ToyWorld:
    folder = tmp_path_factory.mktemp("toy")
    rng = np.random.default_rng(7)
    return ToyWorld(folder, TOY, [_record(folder, i, rng) for i in range(13)])


@pytest.fixture
def toy(_toy_files: ToyWorld, monkeypatch: pytest.MonkeyPatch) -> ToyWorld:
    """13 images with labels, boxes and masks; the row is known while the test runs."""
    monkeypatch.setitem(SOURCES, TOY.key, TOY)
    records = [dict(r) for r in _toy_files.records]
    return ToyWorld(_toy_files.folder, _toy_files.source, records)


@pytest.fixture
def fx_cfg() -> CfgNode:
    """Detectron2's defaults with ours, on the CPU, at a small size."""
    cfg = get_cfg()
    add_fx_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.INPUT.FX.SIZE = 64
    cfg.SEED = 5
    return cfg


def strong_augmentations(cfg: CfgNode) -> None:
    """Every augmentation on, for all tasks."""
    for task in ("CLS", "LOC", "SEG"):
        node = cfg.INPUT.FX.AUG[task]
        node.CROP_SCALE, node.FLIP, node.GEOMETRY_PROB, node.GREY_PROB = (0.5, 1.0), 0.5, 0.8, 0.8
        node.ROTATE_DEG, node.SHIFT, node.SCALE = 10.0, 0.1, 0.1
        node.BRIGHTNESS, node.CONTRAST, node.GAMMA, node.NOISE, node.BLUR_PX = (
            0.2,
            0.2,
            0.3,
            0.05,
            1.0,
        )


@pytest.fixture
def augmented_cfg(fx_cfg: CfgNode) -> CfgNode:
    """As ``fx_cfg``, with every augmentation on."""
    strong_augmentations(fx_cfg)
    return fx_cfg


@pytest.fixture(scope="session")
def lesion_files(tmp_path_factory) -> Path:
    """A small synthetic world with long-tailed labels and two sources with boxes."""
    root = tmp_path_factory.mktemp("lesions")
    sources = ["cxr_lt", "chestx_det", "vindr_local", "nih14"]
    make_world(root / "world", patients=16, seed=3, sources=sources, size_px=128)
    return root


@pytest.fixture(scope="module")
def lesion_world(lesion_files: Path) -> Iterator[Path]:
    """Where sources are looked for is that world, for one module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(lesion_files / "world"))
        yield lesion_files
