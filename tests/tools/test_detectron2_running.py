"""Detectron2 as installed: drawing, a small model, evaluation, tracing, and resuming a killed run.

The marks name rows of tools/detectron2_patches.py; see test_detectron2_patched.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, BoxMode, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from PIL import Image

_RESUME_RUN = Path(__file__).with_name("resume_run.py")


@pytest.fixture
def dataset_name(request):
    name = f"test_detectron2_running_{request.node.name}"
    yield name
    MetadataCatalog.pop(name, None)
    if name in DatasetCatalog:
        DatasetCatalog.remove(name)


def one_detection(height: int = 32, width: int = 32) -> Instances:
    found = Instances((height, width))
    found.pred_boxes = Boxes(torch.tensor([[4.0, 4, 20, 24]]))
    found.scores = torch.tensor([0.9])
    found.pred_classes = torch.tensor([0])
    found.pred_masks = torch.zeros(1, height, width, dtype=torch.bool)
    found.pred_masks[0, 4:24, 4:20] = True
    return found


@pytest.mark.patch("numpy-video-visualizer")
def test_video_drawing_without_np_bool(dataset_name, monkeypatch):
    from detectron2.utils import video_visualizer as module

    # NumPy as it was from 1.24 to 1.26. The module asks for little else of it.
    names = {name: getattr(np, name) for name in dir(np) if name != "bool"}
    monkeypatch.setattr(module, "np", SimpleNamespace(**names))
    MetadataCatalog.get(dataset_name).thing_classes = ["nodule"]
    visualizer = module.VideoVisualizer(MetadataCatalog.get(dataset_name))
    frame = np.zeros((32, 32, 3), np.uint8)
    for _ in range(2):
        image = visualizer.draw_instance_predictions(frame, one_detection()).get_image()
    assert image.any()


def test_visualizer_draws_truth_and_predictions(dataset_name):
    from detectron2.utils.visualizer import Visualizer

    metadata = MetadataCatalog.get(dataset_name)
    metadata.thing_classes = ["nodule"]
    grey = np.full((64, 64, 3), 60, np.uint8)
    drawn = Visualizer(grey, metadata).draw_instance_predictions(one_detection(64, 64)).get_image()
    assert drawn.shape == grey.shape
    assert (drawn[4:24, 4:20] != 60).mean() > 0.5, "the mask was not drawn"
    record = {"annotations": [{"bbox": [8, 8, 40, 40], "bbox_mode": BoxMode.XYXY_ABS}]}
    record["annotations"][0]["category_id"] = 0
    assert (Visualizer(grey, metadata).draw_dataset_dict(record).get_image() != 60).any()


# --- model, evaluation, export --------------------------------------------------------------------


def tiny_mask_rcnn() -> torch.nn.Module:
    from detectron2 import model_zoo
    from detectron2.modeling import build_model

    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file("Base-RCNN-FPN.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.MASK_ON = "cpu", True
    cfg.MODEL.WEIGHTS, cfg.MODEL.RESNETS.DEPTH = "", 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.FPN.OUT_CHANNELS = 64, 16
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 2, 0.0
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 32, 16
    return build_model(cfg)


@pytest.mark.patch("meshgrid-indexing")
def test_anchors_come_without_a_warning():
    from detectron2.modeling.anchor_generator import DefaultAnchorGenerator

    generator = DefaultAnchorGenerator(sizes=[[8.0]], aspect_ratios=[[1.0]], strides=[4])
    torch.set_warn_always(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            boxes = generator([torch.zeros(1, 1, 2, 3)])[0].tensor
    finally:
        torch.set_warn_always(False)
    assert boxes[:, 0].tolist() == [-2.0, 2.0, 6.0] * 2


def test_mask_rcnn_trains_and_predicts_on_the_cpu():
    torch.manual_seed(0)
    model = tiny_mask_rcnn()
    truth = Instances((64, 64))
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8, 40, 48]]))
    truth.gt_classes = torch.tensor([1])
    truth.gt_masks = PolygonMasks([[np.array([8.0, 8, 40, 8, 40, 48, 8, 48])]])
    image = torch.randint(0, 255, (3, 64, 64)).float()
    with EventStorage():
        losses = model([{"image": image, "instances": truth}])
        sum(losses.values()).backward()
    assert {"loss_mask", "loss_cls", "loss_box_reg", "loss_rpn_cls"} <= set(losses)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert model.backbone.fpn_output2.weight.grad.abs().sum() > 0
    with torch.no_grad():
        found = model.eval()([{"image": image, "height": 128, "width": 128}])[0]["instances"]
    assert len(found) > 0
    assert found.pred_masks.shape[1:] == (128, 128)


@pytest.mark.patch("coco-fast-eval", "coco-fast-eval-import")
@pytest.mark.parametrize("options", [{}, {"use_fast_impl": False}], ids=["default", "official"])
def test_coco_evaluation(dataset_name, tmp_path, options):
    from detectron2.evaluation import COCOEvaluator

    image_path = str(tmp_path / "one.png")
    box = {"bbox": [4, 4, 20, 24], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": 0}
    box["segmentation"] = [[4, 4, 20, 4, 20, 24, 4, 24]]
    record = {"file_name": image_path, "image_id": 1, "height": 32, "width": 32}
    record["annotations"] = [box]
    DatasetCatalog.register(dataset_name, lambda: [record])
    MetadataCatalog.get(dataset_name).thing_classes = ["nodule"]
    evaluator = COCOEvaluator(
        dataset_name, ("bbox", "segm"), False, output_dir=str(tmp_path), **options
    )
    assert not evaluator._use_fast_impl
    evaluator.reset()
    evaluator.process([record], [{"instances": one_detection()}])
    result = evaluator.evaluate()
    assert result["bbox"]["AP"] == pytest.approx(100.0)
    assert result["segm"]["AP"] == pytest.approx(100.0)


@pytest.mark.patch("numpy-sem-seg-int", "numpy-sem-seg-float-dtype", "numpy-sem-seg-float-cast")
def test_semantic_evaluation(dataset_name, tmp_path):
    from detectron2.evaluation import SemSegEvaluator

    truth = np.zeros((4, 4), np.uint8)
    truth[:2] = 1
    Image.fromarray(truth).save(tmp_path / "truth.png")
    record = {"file_name": "one.png", "sem_seg_file_name": str(tmp_path / "truth.png")}
    DatasetCatalog.register(dataset_name, lambda: [record])
    MetadataCatalog.get(dataset_name).set(stuff_classes=["lung", "rest"], ignore_label=255)
    evaluator = SemSegEvaluator(dataset_name, distributed=False)
    evaluator.reset()
    scores = torch.zeros(2, 4, 4)
    scores[1, :1] = 1.0
    evaluator.process([record], [{"sem_seg": scores}])
    result = evaluator.evaluate()["sem_seg"]
    assert result["IoU-lung"] == pytest.approx(100 * 8 / 12)
    assert result["IoU-rest"] == pytest.approx(50.0)


@pytest.mark.patch("caffe2-export")
def test_tracing_adapter_works_without_caffe2():
    from detectron2.export import TracingAdapter
    from detectron2.utils.analysis import flop_count_operators, parameter_count

    layer = torch.nn.Conv2d(1, 1, 3)
    adapter = TracingAdapter(layer, torch.ones(1, 1, 4, 4))
    assert torch.equal(adapter(torch.ones(1, 1, 4, 4))[0], layer(torch.ones(1, 1, 4, 4)))
    assert parameter_count(layer)[""] == 10
    assert callable(flop_count_operators)


# --- resuming -------------------------------------------------------------------------------------


def rates(*arguments: str) -> tuple[int, list[str]]:
    command = [sys.executable, str(_RESUME_RUN), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout.splitlines()


@pytest.mark.patch("lr-scheduler-hook")
@pytest.mark.parametrize("scheduler", ["step", "detectron2"])
def test_killed_and_resumed_run_continues_its_schedule(tmp_path, scheduler):
    code, straight = rates(str(tmp_path / "straight"), scheduler)
    assert code == 0
    assert len(straight) == 13
    assert len({line.split()[1] for line in straight[:-1]}) > 2, "the schedule is flat"
    code, before = rates(str(tmp_path / "killed"), scheduler, "6")
    assert code != 0
    assert before == straight[:7]
    code, after = rates(str(tmp_path / "killed"), scheduler)
    assert code == 0
    # The last checkpoint was written after iteration 3. The final weight is compared too.
    assert after == straight[4:]


@pytest.mark.patch("lr-scheduler-hook")
def test_schedule_state_is_data():
    from detectron2.engine.hooks import LRScheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    state = LRScheduler(optimizer, scheduler).state_dict()
    assert json.loads(json.dumps(state))["T_max"] == 10
