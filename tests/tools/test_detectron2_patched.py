"""The installed Detectron2 does what the rows of tools/detectron2_patches.py are there for.

Every test names the rows it covers; it fails on a Detectron2 without them.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import detectron2
import numpy as np
import pytest
import torch
from detectron2.data import MapDataset
from detectron2.structures import PolygonMasks

from detectron2_patches import PATCHES

# A user's own Detectron2 may have its compiled operators: then nothing is missing.
_OURS = importlib.metadata.packages_distributions().get("detectron2") == ["pb1-detectron2"]
only_patched_build = pytest.mark.skipif(not _OURS, reason="not the patched build of Detectron2")


def test_every_row_is_covered():
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_detectron2_*.py")]
    marks = [
        mark for text in texts for mark in re.findall(r"@pytest\.mark\.patch\(([^)]*)\)", text)
    ]
    covered = {name for mark in marks for name in re.findall(r'"([\w-]+)"', mark)}
    assert covered == {patch.name for patch in PATCHES}


class NumpyWithoutBool:
    """NumPy as it was from 1.24 to 1.26, for one module: np.bool came back in 2.0."""

    def __getattr__(self, name):
        if name == "bool":
            raise AttributeError("module 'numpy' has no attribute 'bool'")
        return getattr(np, name)


@pytest.fixture
def without_np_bool(monkeypatch):
    def replace(module):
        monkeypatch.setattr(module, "np", NumpyWithoutBool())
        return module

    return replace


def python(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)


# --- what is installed ----------------------------------------------------------------------------


@only_patched_build
@pytest.mark.patch("setup-torch-import", "setup-extension", "setup-packages", "setup-requirements")
def test_distribution_is_pure_python_and_holds_detectron2_only():
    distribution = importlib.metadata.distribution("pb1-detectron2")
    assert "Tag: py3-none-any" in distribution.read_text("WHEEL")
    tops = {file.parts[0] for file in distribution.files}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"detectron2"}
    plain = [text for text in distribution.requires if "extra ==" not in text]
    names = {text.split(">")[0].split("<")[0].split("=")[0] for text in plain}
    assert not names & {"black", "future", "pydot"}
    assert "omegaconf" in names


@pytest.mark.patch("setup-model-zoo-configs")
def test_model_zoo_has_its_config_files():
    from detectron2 import model_zoo

    name = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
    assert model_zoo.get_config(f"{name}.yaml").MODEL.MASK_ON
    assert model_zoo.get_config(f"{name}.py").model is not None
    with pytest.raises(RuntimeError, match="nothing_here.yaml not available in Model Zoo"):
        model_zoo.get_config_file("nothing_here.yaml")


@pytest.mark.patch("pkg-resources-import", "pkg-resources-use")
def test_model_zoo_does_without_pkg_resources():
    run = python(
        "-c",
        "import sys; sys.modules['pkg_resources'] = None\n"
        "from detectron2 import model_zoo; import detectron2.utils.testing\n"
        "print(model_zoo.get_config_file('Base-RCNN-FPN.yaml'))",
    )
    assert run.returncode == 0, run.stderr
    assert Path(run.stdout.strip()).is_file()


# --- compiled operators ---------------------------------------------------------------------------


@only_patched_build
@pytest.mark.patch("nms-rotated")
def test_missing_operators_say_what_to_do():
    from detectron2 import _C
    from detectron2.layers import nms_rotated
    from detectron2.layers.roi_align_rotated import roi_align_rotated
    from detectron2.layers.rotated_boxes import pairwise_iou_rotated

    boxes = torch.tensor([[5.0, 5, 4, 4, 30]])
    with pytest.raises(_C.MissingCompiledOp, match=r"nms_rotated.*--official"):
        nms_rotated(boxes, torch.ones(1), 0.5)
    with pytest.raises(_C.MissingCompiledOp, match=r"box_iou_rotated.*--official"):
        pairwise_iou_rotated(boxes, boxes)
    with pytest.raises(_C.MissingCompiledOp, match=r"roi_align_rotated_forward.*--official"):
        roi_align_rotated(torch.ones(1, 1, 8, 8), torch.ones(1, 6), (2, 2), 1.0, 0)


@only_patched_build
def test_missing_operators_can_be_asked_about():
    from detectron2 import _C

    assert not hasattr(_C, "deform_conv_forward")
    # Introspection asks for such names and expects an ordinary AttributeError.
    with pytest.raises(AttributeError) as caught:
        _C.__wrapped__  # noqa: B018
    assert not isinstance(caught.value, _C.MissingCompiledOp)


def test_operators_of_torchvision_work_on_the_cpu():
    from detectron2.layers import DeformConv, ROIAlign, batched_nms

    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 9]])
    keep = batched_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 1]), 0.5)
    assert keep.tolist() == [0, 2]
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)
    pooled = ROIAlign((1, 2), 1.0, 2, aligned=True)(ramp, torch.tensor([[0.0, 2, 2, 6, 6]]))
    assert torch.allclose(pooled.flatten(), torch.tensor([2.5, 4.5]))
    convolution = DeformConv(1, 1, 3, padding=1)
    torch.nn.init.ones_(convolution.weight)
    assert convolution(torch.ones(1, 1, 5, 5), torch.zeros(1, 18, 5, 5))[0, 0, 2, 2] == 9


@pytest.mark.patch("collect-env")
def test_environment_report():
    from detectron2.utils.collect_env import collect_env_info

    assert f"detectron2             {detectron2.__version__}" in collect_env_info()


# --- data -----------------------------------------------------------------------------------------


@pytest.mark.patch("pillow-linear")
def test_extent_transform_interpolates_by_default():
    from detectron2.data.transforms import ExtentTransform

    ramp = np.tile(np.arange(0, 80, 10, dtype=np.uint8), (8, 1))
    out = ExtentTransform((0, 0, 8, 8), (16, 16)).apply_image(ramp)
    assert out.shape == (16, 16)
    assert np.unique(out).size > 8, "nearest neighbour instead of bilinear"


@pytest.mark.patch("numpy-build", "numpy-build-histogram")
def test_class_histogram():
    from detectron2.data.build import print_instances_class_histogram

    print_instances_class_histogram([{"annotations": [{"category_id": 1}]}], ["a", "b"])
    with pytest.raises(AssertionError, match="invalid category_id=2"):
        print_instances_class_histogram([{"annotations": [{"category_id": 2}]}], ["a", "b"])


@pytest.mark.patch("map-dataset-sample")
def test_map_dataset_replaces_what_the_mapper_refuses():
    dataset = MapDataset(list(range(50)), lambda x: None if x < 10 else x)
    drawn = [dataset[0] for _ in range(20)]
    assert all(x >= 10 for x in drawn)
    assert len(set(drawn)) > 5, "not a random replacement"
    again = MapDataset(list(range(50)), lambda x: None if x < 10 else x)
    assert [again[0] for _ in range(20)] == drawn


def write_voc(root: Path) -> None:
    for folder in ("Annotations", "ImageSets/Main", "JPEGImages"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Main/test.txt").write_text("one\ntwo\n")
    box = "<bndbox><xmin>11</xmin><ymin>11</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    thing = f"<object><name>nodule</name><pose>x</pose><truncated>0</truncated>{box}"
    for name, difficult in (("one", 0), ("two", 1)):
        (root / f"Annotations/{name}.xml").write_text(
            "<annotation><size><width>50</width><height>60</height></size>"
            f"{thing}<difficult>{difficult}</difficult></object></annotation>"
        )


@pytest.mark.patch("numpy-pascal-voc-data")
def test_pascal_voc_is_read(tmp_path):
    from detectron2.data.datasets import load_voc_instances

    write_voc(tmp_path)
    records = load_voc_instances(str(tmp_path), "test", ["nodule"])
    assert [record["image_id"] for record in records] == ["one", "two"]
    assert records[0]["annotations"][0]["bbox"] == [10.0, 10.0, 30.0, 40.0]


@pytest.mark.patch("numpy-pascal-voc-evaluation")
def test_pascal_voc_evaluation_skips_difficult_objects(tmp_path, without_np_bool):
    from detectron2.evaluation import pascal_voc_evaluation

    voc_eval = without_np_bool(pascal_voc_evaluation).voc_eval
    write_voc(tmp_path)
    (tmp_path / "nodule.txt").write_text("one 0.9 11 11 30 40\ntwo 0.8 11 11 30 40\n")
    _, precision, ap = voc_eval(
        str(tmp_path / "{}.txt"),
        str(tmp_path / "Annotations/{}.xml"),
        str(tmp_path / "ImageSets/Main/test.txt"),
        "nodule",
    )
    assert ap == pytest.approx(1.0)
    assert precision.tolist() == [1.0, 1.0]


# --- masks and drawing -----------------------------------------------------------------------


@pytest.mark.patch("numpy-masks-cast", "numpy-masks-dtype")
def test_masks_without_np_bool(without_np_bool):
    from detectron2.structures import masks

    polygons_to_bitmask = without_np_bool(masks).polygons_to_bitmask
    assert polygons_to_bitmask([], 3, 4).dtype == bool
    square = np.array([1.0, 1, 3, 1, 3, 3, 1, 3])
    assert polygons_to_bitmask([square], 4, 4).sum() == 4
    assert PolygonMasks([[square], []]).nonempty().tolist() == [True, False]


@pytest.mark.patch("numpy-visualizer")
def test_panoptic_drawing_without_np_bool(without_np_bool):
    from detectron2.utils import visualizer

    segments = torch.tensor([[0, 1], [2, 2]])
    info = [{"id": 1, "isthing": False}, {"id": 2, "isthing": True}]
    prediction = without_np_bool(visualizer)._PanopticPrediction(segments, info)
    assert prediction.non_empty_mask().tolist() == [[False, True], [True, True]]
    assert [mask.tolist() for mask, _ in prediction.semantic_masks()] == [
        [[False, True], [False, False]]
    ]
    assert [mask.sum() for mask, _ in prediction.instance_masks()] == [2]


@only_patched_build
@pytest.mark.patch("caffe2-names")
def test_names_that_need_caffe2_say_so():
    with pytest.raises(ImportError, match="Caffe2Tracer needs caffe2"):
        from detectron2.export import Caffe2Tracer  # noqa: F401
