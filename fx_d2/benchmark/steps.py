"""Training steps of our model beside those of what it stands on: time and peak memory.

Each step is what its own trainer does: ours is :class:`fx_d2.engine.step.TrainStep`, that of
Mask R-CNN is Detectron2's ``SimpleTrainer``, the bare trunk has the plain loop of PyTorch.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import timm
import torch
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone, build_backbone, build_roi_heads
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from fx_d2.engine.optimizer import build_optimizer
from fx_d2.engine.step import TrainStep, precision_of, step_seed
from fx_d2.modeling.backbone.presets import network_name
from fx_d2.modeling.heads.roi import LocEncoder
from fx_d2.modeling.heads.spec import HeadSpec

from .memory import added_in_a_process
from .report import Table
from .setting import Setting, first_spec, make_batch, tasks_of
from .timing import alternate

OURS, TRUNK, MASK_RCNN = "fx_d2", "bare trunk", "Detectron2 Mask R-CNN"
Step = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """What the step of a task is held against.

    Args:
        base: name of the variant.
        bound: largest ratio of the times; None is for information.
    """

    base: str
    bound: float | None


COMPARISONS: Mapping[str, Comparison] = {
    "cls": Comparison(TRUNK, 1.10),
    "loc": Comparison(MASK_RCNN, 1.05),
    "seg": Comparison(TRUNK, None),
}


class TrunkWithNeck(Backbone):
    """Trunk and pyramid as the one backbone that Detectron2's R-CNN takes."""

    def __init__(self, trunk: nn.Module, neck: nn.Module) -> None:
        super().__init__()
        self.trunk, self.neck = trunk, neck

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(N, C, H, W) -> the levels of the pyramid."""
        return self.neck(self.trunk(x))

    def output_shape(self) -> dict[str, ShapeSpec]:
        """Of the pyramid."""
        return self.neck.output_shape()

    @property
    def size_divisibility(self) -> int:
        """Of the trunk."""
        return self.trunk.size_divisibility


def build_mask_rcnn(cfg: CfgNode, spec: HeadSpec) -> GeneralizedRCNN:
    """Detectron2's R-CNN for one source, with trunk, pyramid, RPN and head sizes of the config."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(spec.classes)
    cfg.MODEL.MASK_ON = spec.instance_masks
    trunk = build_backbone(cfg)
    encoder = LocEncoder.from_config(cfg, trunk.output_shape())
    backbone = TrunkWithNeck(trunk, encoder.neck)
    model = GeneralizedRCNN(
        backbone=backbone,
        proposal_generator=encoder.rpn,
        roi_heads=build_roi_heads(cfg, backbone.output_shape()),
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
    return model.to(torch.device(cfg.MODEL.DEVICE))


def copy_weights(ours: nn.Module, theirs: GeneralizedRCNN, source: str) -> None:
    """Give Detectron2's model the weights that ours has for ``source``, so both find the same."""
    theirs.backbone.trunk.load_state_dict(ours.trunk.state_dict())
    theirs.backbone.neck.load_state_dict(ours.loc_encoder.neck.state_dict())
    theirs.proposal_generator.load_state_dict(ours.loc_encoder.rpn.state_dict())
    head = ours.heads["loc"].get_submodule(source)
    weights = dict((head.decoder or ours.loc_decoder).state_dict())
    if head.mask_predictor is None:  # the decoder of X+ has a mask head for others
        weights = {name: v for name, v in weights.items() if not name.startswith("mask_head.")}
    for name, value in head.state_dict().items():
        if not name.startswith("decoder."):
            weights[name.replace("mask_predictor.", "mask_head.predictor.")] = value
    theirs.roi_heads.load_state_dict(weights)


def build_bare_trunk(cfg: CfgNode, classes: int, size_px: int) -> nn.Module:
    """The network of the trunk as timm makes it for this size, with a layer for ``classes``.

    Where a stage is smaller than its window, timm shrinks the window, and our trunk, which takes
    any size, does not: the bare one then does less. At 224 px they are the same.
    """
    node = cfg.MODEL.FX.TRUNK
    options = {"in_chans": len(cfg.MODEL.PIXEL_MEAN), "num_classes": classes, **node.KWARGS}
    name = network_name(node.NAME)
    with torch.device("meta"):
        accepted = inspect.signature(type(timm.create_model(name)).__init__).parameters
    if "img_size" in accepted:
        options.setdefault("img_size", size_px)
    if node.DROP_PATH or "drop_path_rate" in accepted:
        options.setdefault("drop_path_rate", node.DROP_PATH)
    net = timm.create_model(name, **options)
    if cfg.MODEL.FX.CHANNELS_LAST:
        net = net.to(memory_format=torch.channels_last)
    return net.train().to(torch.device(cfg.MODEL.DEVICE))


def _plain_adamw(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        model.parameters(), lr=cfg.SOLVER.BASE_LR, fused=True if cfg.SOLVER.FX.FUSED else None
    )


def our_step(
    cfg: CfgNode, setting: Setting, task: str, model: nn.Module | None = None
) -> tuple[Step, nn.Module]:
    """A step of FoundationX on the task's batch, and the model."""
    model = setting.model(cfg) if model is None else model
    batch = make_batch(first_spec(cfg, task), cfg, setting)
    step = TrainStep(model.train(), itertools.repeat(batch), build_optimizer(cfg, model), cfg)
    step.begin()
    return _with_storage(step.run_step), model


def mask_rcnn_step(
    cfg: CfgNode, setting: Setting, ours: nn.Module | None = None
) -> tuple[Step, nn.Module]:
    """A step of Detectron2's trainer on the same boxes, and the model.

    Args:
        cfg: of our model.
        setting: of the batch.
        ours: whose weights to take; None has its own.
    """
    spec = first_spec(cfg, "loc")
    torch.manual_seed(setting.seed)
    model = build_mask_rcnn(cfg, spec)
    if ours is not None:
        copy_weights(ours, model, spec.source)
    batch = make_batch(spec, cfg, setting)
    trainer = SimpleTrainer(model, itertools.repeat(batch), _plain_adamw(cfg, model))

    def run() -> None:
        torch.manual_seed(step_seed(cfg.SEED, 0, 0))  # as ours: the same regions are sampled
        with precision_of(cfg):
            trainer.run_step()

    return _with_storage(run), model


def bare_trunk_step(cfg: CfgNode, setting: Setting, task: str) -> tuple[Step, nn.Module]:
    """Forward, loss, backward and update of the bare trunk on the task's images, and the model.

    Without image labels in the batch they are zeros: their values do not change the work.
    """
    spec = first_spec(cfg, task)
    batch = make_batch(spec, cfg, setting)
    classes = len(spec.classes) if task == "cls" else 1
    torch.manual_seed(setting.seed)
    model = build_bare_trunk(cfg, classes, setting.size_px)
    optimizer = _plain_adamw(cfg, model)
    images = torch.stack([item["image"] for item in batch])
    if cfg.MODEL.FX.CHANNELS_LAST:
        images = images.contiguous(memory_format=torch.channels_last)
    none = torch.zeros(classes, device=images.device)
    labels = torch.stack([item.get("labels", none) for item in batch])

    def run() -> float:
        with precision_of(cfg):
            logits = model(images)
        loss = F.binary_cross_entropy_with_logits(logits.float(), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run, model


def _with_storage(run: Step) -> Step:
    """Within one of Detectron2's event storages, which trainers write their losses into."""
    storage = EventStorage()

    def inside() -> object:
        with storage:
            return run()

    return inside


def build_step(setting: Setting, task: str, variant: str) -> Step:
    """The step of one variant, built from nothing."""
    cfg = setting.cfg()
    if variant == MASK_RCNN:
        return mask_rcnn_step(cfg, setting)[0]
    if variant == TRUNK:
        return bare_trunk_step(cfg, setting, task)[0]
    return our_step(cfg, setting, task)[0]


def measure_steps(
    setting: Setting, repeats: int, *, clock: Callable[[], float], quiet: bool
) -> Table:
    """Time of a step per task, ours and the other in turns."""
    rows = []
    cfg = setting.cfg()
    for task in tasks_of(cfg):
        rule = COMPARISONS[task]
        ours, model = our_step(cfg, setting, task)
        if rule.base == MASK_RCNN:
            base, _ = mask_rcnn_step(cfg, setting, model)
        else:
            base, _ = bare_trunk_step(cfg, setting, task)
        times = alternate(
            {OURS: ours, rule.base: base},
            repeats,
            device=torch.device(setting.device),
            title=f"{task} step",
            quiet=quiet,
            clock=clock,
        )
        rows.append(
            {
                "task": first_spec(cfg, task).name,
                "ours_ms": times[OURS].median * 1e3,
                "base": rule.base,
                "base_ms": times[rule.base].median * 1e3,
                **_ratio(times[OURS].ratio(times[rule.base]), rule.bound),
                "quartiles": "{:.3f} to {:.3f}".format(*times[OURS].spread(times[rule.base])),
            }
        )
    return Table(
        "Training step",
        {
            "task": ("head", ""),
            "ours_ms": ("fx_d2 ms", ".0f"),
            "base": ("against", ""),
            "base_ms": ("its ms", ".0f"),
            "ratio": ("ratio", ".3f"),
            "quartiles": ("quartiles of the rounds", ""),
            "bound": ("bound", ".2f"),
            "holds": ("holds", ""),
        },
        rows,
        (
            f"Batch {setting.batch} at {setting.size_px} px, fp32, medians of {repeats} alternating"
            " rounds after one that does not count; learning rate 0, the same draws every time.",
        ),
    )


def _ratio(ratio: float, bound: float | None) -> dict[str, Any]:
    if bound is None:
        return {"ratio": ratio}
    return {"ratio": ratio, "bound": bound, "holds": "yes" if ratio <= bound else "no"}


@dataclass(frozen=True)
class TwoSteps:
    """Builds a variant and runs two steps: the second has the optimizer's state beside it."""

    setting: Setting
    task: str
    variant: str

    def __call__(self) -> None:
        """Do it; picklable, for a process of its own."""
        if self.setting.threads:
            torch.set_num_threads(self.setting.threads)
        step = build_step(self.setting, self.task, self.variant)
        step()
        step()


def peak_mib(setting: Setting, task: str, variant: str) -> float:
    """Most memory (MiB) of model, gradients, optimizer and activations in two steps."""
    work = TwoSteps(setting, task, variant)
    if setting.device == "cpu":
        return added_in_a_process(work, start="spawn")
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure_memory(setting: Setting, *, quiet: bool) -> Table:
    """Peak memory of two steps per task, each variant by itself."""
    tasks = tasks_of(setting.cfg())
    jobs = [(task, variant) for task in tasks for variant in (OURS, COMPARISONS[task].base)]
    found = {job: peak_mib(setting, *job) for job in tqdm(jobs, desc="memory", disable=quiet)}
    rows = []
    for task in tasks:
        base = COMPARISONS[task].base
        ours, other = found[task, OURS], found[task, base]
        rows.append(
            {
                "task": task,
                "ours_mib": ours,
                "base": base,
                "base_mib": other,
                "ratio": ours / other,
            }
        )
    how = (
        "Peak resident memory that two steps add to a process of their own. Memory that is freed "
        "but kept by the C library counts, so this is an upper bound."
        if setting.device == "cpu"
        else "Peak of the memory that torch allocates on the GPU in two steps."
    )
    return Table(
        "Peak memory of training",
        {
            "task": ("task", ""),
            "ours_mib": ("fx_d2 MiB", ".0f"),
            "base": ("against", ""),
            "base_mib": ("its MiB", ".0f"),
            "ratio": ("ratio", ".2f"),
        },
        rows,
        (how, "Ours holds the weights of all heads of the config; the others those of one."),
    )
