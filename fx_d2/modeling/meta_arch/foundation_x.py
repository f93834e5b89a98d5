"""Foundation X: one trunk, and a head per task and source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    build_backbone,
    build_roi_heads,
    build_sem_seg_head,
)
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..adapters import add_branches
from ..heads.classifier import build_classifier, build_classifier_encoder
from ..heads.roi import LocEncoder
from ..heads.sampling import SeedPerImage
from ..heads.spec import HeadSpec, head_specs, select_heads
from ..heads.upernet import build_seg_decoder
from ..postprocess import original_instances, original_masks

Batch = list[dict[str, Any]]
Asked = Iterable[str | tuple[str, str]]


@META_ARCH_REGISTRY.register()
class FoundationX(nn.Module):
    """Learns one (source, task) per batch; predicts with any heads at once.

    Parameters are named ``trunk.*``, ``cls_encoder.*``, ``loc_encoder.*``, ``loc_decoder.*``,
    ``seg_decoder.*`` (shared by all sources) and ``heads.<task>.<source>.*``. A batch reaches the
    trunk, the shared parts of its task and its own head; nothing else gets a gradient.
    """

    @configurable
    def __init__(
        self,
        *,
        specs: Sequence[HeadSpec],
        trunk: nn.Module,
        heads: Mapping[str, nn.Module],
        cls_encoder: nn.Module | None = None,
        loc_encoder: nn.Module | None = None,
        loc_decoder: nn.Module | None = None,
        seg_decoder: nn.Module | None = None,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        channels_last: bool = False,
        compile_trunk: bool = False,
        mask_threshold: float = 0.5,
        soft_masks: bool = False,
    ) -> None:
        """Keep the parts.

        Args:
            specs: of all heads.
            trunk: a Detectron2 backbone that also has ``pooled(features)``.
            heads: {task: the heads of all its sources}.
            cls_encoder: what all classifiers share beside the trunk, or None.
            loc_encoder: finds regions; None without loc heads.
            loc_decoder: looks at regions where all sources share it (X+), else None.
            seg_decoder: gives the mask predictors their map; None without seg heads.
            pixel_mean: per channel, of images in [0, 1].
            pixel_std: likewise.
            channels_last: memory format of images and trunk.
            compile_trunk: compile the trunk at its first use.
            mask_threshold: probability from which a pixel belongs to a mask.
            soft_masks: return probabilities in place of masks.
        """
        super().__init__()
        self.specs = tuple(specs)
        self.trunk = trunk
        self.cls_encoder, self.loc_encoder = cls_encoder, loc_encoder
        self.loc_decoder, self.seg_decoder = loc_decoder, seg_decoder
        self.heads = nn.ModuleDict(heads)
        # As buffers they would be in every checkpoint beside the config that states them.
        self.register_buffer("pixel_mean", _per_channel(pixel_mean, "MEAN"), persistent=False)
        self.register_buffer("pixel_std", _per_channel(pixel_std, "STD"), persistent=False)
        self.mask_threshold, self.soft_masks = mask_threshold, soft_masks
        self._asked: tuple[str | tuple[str, str], ...] | None = None
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.to(memory_format=torch.channels_last)
        if compile_trunk:
            self.trunk.compile()

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """The arguments that the config decides."""
        specs = head_specs(cfg)
        trunk = build_backbone(cfg)
        add_branches(trunk, cfg.MODEL.FX.TUNE)
        shapes = trunk.output_shape()
        tasks = {spec.task for spec in specs}
        parts: dict[str, Any] = {}
        heads: dict[str, nn.Module] = {}
        if "cls" in tasks:
            parts["cls_encoder"] = build_classifier_encoder(cfg, shapes)
            heads["cls"] = build_classifier(cfg, shapes)
        if "loc" in tasks:
            parts["loc_encoder"] = LocEncoder.from_config(cfg, shapes)
            levels = parts["loc_encoder"].neck.output_shape()
            heads["loc"] = build_roi_heads(cfg, levels)
            parts["loc_decoder"] = heads["loc"].build_shared_decoder(cfg, levels)
        if "seg" in tasks:
            parts["seg_decoder"] = build_seg_decoder(cfg, shapes)
            heads["seg"] = build_sem_seg_head(cfg, parts["seg_decoder"].output_shape())
        return {
            "specs": specs,
            "trunk": trunk,
            "heads": heads,
            **parts,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "channels_last": cfg.MODEL.FX.CHANNELS_LAST,
            "compile_trunk": cfg.MODEL.FX.COMPILE,
            "mask_threshold": cfg.MODEL.FX.SEG.THRESHOLD,
            "soft_masks": cfg.MODEL.FX.SEG.SOFT_MASKS,
        }

    @property
    def device(self) -> torch.device:
        """Where the model is; batches are moved there."""
        return self.pixel_mean.device

    @contextmanager
    def asking(self, heads: Asked | None) -> Iterator[FoundationX]:
        """Within this context, ``model(batch)`` runs only these heads, see :meth:`inference`."""
        select_heads(self.specs, heads)
        before, self._asked = self._asked, None if heads is None else _as_tuple(heads)
        try:
            yield self
        finally:
            self._asked = before

    def forward(self, batch: Batch, heads: Asked | None = None) -> Any:
        """Losses in training, predictions in evaluation.

        Args:
            batch: one dict per image, as :class:`fx_d2.data.mapper.FxMapper` makes them. Always
                ``image``, float32 (C, H, W) in [0, 1]. In training ``source`` and ``task``, the
                same in the whole batch, and of the task: ``labels`` (C,), NaN unknown; or
                ``instances``, absent where boxes are not annotated, and ``draw_seed``, which its
                regions are sampled from (without it torch's state decides); or ``sem_masks``
                (C, H, W) and ``sem_known`` (C,). In evaluation ``height`` and ``width`` of the
                original and ``content_size``, all three defaulting to the image's own size.
            heads: in evaluation, see :meth:`inference`.

        Returns:
            In training ``{"loss_<task>_<part>": scalar}``; what is not annotated contributes
            exactly zero. In evaluation what :meth:`inference` returns.
        """
        if not batch:
            raise ValueError("an empty batch")
        if not self.training:
            return self.inference(batch, heads)
        return self._learn(batch, self._route(batch))[0]

    def _learn(self, batch: Batch, spec: HeadSpec) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The losses, and what :meth:`seen` gives for this batch."""
        if spec.task == "loc":
            return self._loc_losses(batch, spec)
        images = self._images(batch)
        features = self.trunk(images.tensor)
        if spec.task == "cls":
            pooled = self._pooled(images, features)
            logits = self._label_logits(batch, images, features, pooled, [spec])[spec.source]
            labels = torch.stack([item["labels"] for item in batch]).to(self.device)
            losses = self.heads["cls"].losses(logits, labels, spec.source)
            return losses, {"pooled": pooled}
        return self._seg_losses(batch, features, spec)

    def seen(self, batch: Batch, task: str) -> dict[str, Tensor]:
        """What the heads of a task look at, for models that compare it with another's.

        Args:
            batch: as in :meth:`forward`, targets not needed.
            task: ``cls`` gives ``pooled`` (N, D); ``loc`` the levels of the pyramid, each
                (N, C, h, w), of the images it learns from; ``seg`` ``decoded`` (N, C, h, w).
        """
        images = self._images(_learned_from(batch) if task == "loc" else batch)
        features = self.trunk(images.tensor)
        if task == "cls":
            return {"pooled": self._pooled(images, features)}
        if task == "loc":
            return self.loc_encoder.levels(features)
        return {"decoded": self.seg_decoder(features)}

    def _route(self, batch: Batch) -> HeadSpec:
        """The one head that a training batch is for."""
        found = {(item["source"], item["task"]) for item in batch}
        if len(found) != 1:
            raise ValueError(
                f"a training batch is of one source and one task; this one has {sorted(found)}"
            )
        source, task = found.pop()
        if not isinstance(task, str):
            raise ValueError(f"a training batch is of one task; this one is of {task}")
        (spec,) = select_heads(self.specs, [(source, task)])
        return spec

    def _images(self, batch: Batch) -> ImageList:
        """Normalised images (N, C, H, W); their sizes are those of the content, not the padding."""
        images = [item["image"].to(self.device, non_blocking=True) for item in batch]
        channels = len(self.pixel_mean)
        for item, image in zip(batch, images, strict=True):
            if image.dim() != 3 or image.shape[0] != channels or not image.is_floating_point():
                raise ValueError(
                    f"image {item.get('image_id', '')!r} is {image.dtype} {tuple(image.shape)}; "
                    f"expected float32 ({channels}, height, width) in [0, 1]"
                )
        # Padded before it is normalised: padding is black in both.
        padded = _padded(images, self.trunk.size_divisibility)
        tensor = ((padded - self.pixel_mean) / self.pixel_std).contiguous(
            memory_format=self._format
        )
        return ImageList(tensor, [_content_size(item) for item in batch])

    def _pooled(self, images: ImageList, features: Mapping[str, Tensor]) -> Tensor:
        # Places that are only padding have no say.
        sizes = images.image_sizes
        full = all(size == tuple(images.tensor.shape[-2:]) for size in sizes)
        return self.trunk.pooled(features, None if full else sizes)

    def _label_logits(
        self,
        batch: Batch,
        images: ImageList,
        features: Mapping[str, Tensor],
        pooled: Tensor,
        specs: Sequence[HeadSpec],
    ) -> dict[str, Any]:
        sizes = images.image_sizes
        local = None if self.cls_encoder is None else self.cls_encoder(features, sizes, batch)
        return {s.source: self.heads["cls"](pooled, local, s.source) for s in specs}

    def _loc_losses(
        self, batch: Batch, spec: HeadSpec
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        used = _learned_from(batch)
        images = self._images(used)
        targets = [self._boxes(item, spec) for item in used]
        annotated = "instances" in used[0]
        seeds = [item["draw_seed"] for item in used if "draw_seed" in item]
        for part in (self.loc_encoder.rpn, self.heads["loc"].get_submodule(spec.source)):
            if isinstance(part, SeedPerImage):
                part.seed_images(seeds)
                seeds = [seed ^ 1 for seed in seeds]  # other draws, not the same again
        features = self.trunk(images.tensor)
        levels, proposals, losses = self.loc_encoder(images, features, targets, annotated=annotated)
        losses |= self.heads["loc"](
            levels, proposals, targets, spec.source, self.loc_decoder, annotated=annotated
        )
        return losses, levels

    def _boxes(self, item: dict[str, Any], spec: HeadSpec) -> Instances:
        if "instances" in item:
            return item["instances"].to(self.device)
        none = Instances(tuple(item["image"].shape[-2:]))
        none.gt_boxes = Boxes(torch.zeros(0, 4, device=self.device))
        none.gt_classes = torch.zeros(0, dtype=torch.int64, device=self.device)
        return none

    def _seg_losses(
        self, batch: Batch, features: Mapping[str, Tensor], spec: HeadSpec
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        masks = ImageList.from_tensors(
            [item["sem_masks"].to(self.device) for item in batch], self.trunk.size_divisibility
        ).tensor
        known = torch.stack([item["sem_known"] for item in batch]).to(self.device)
        decoded = self.seg_decoder(features)
        logits = self.heads["seg"](decoded, spec.source, masks.shape[-2:])
        return self.heads["seg"].losses(logits, masks, known), {"decoded": decoded}

    @property
    def answerer(self) -> FoundationX:
        """The network whose predictions this model gives."""
        return self

    def label_logits(self, batch: Batch, source: str) -> Tensor:
        """Logits (N, C) of the image labels of one source, with a graph where gradients are on.

        Args:
            batch: as in :meth:`forward` in evaluation.
            source: whose head.
        """
        specs = select_heads(self.specs, [(source, "cls")])
        images = self._images(batch)
        features = self.trunk(images.tensor)
        pooled = self._pooled(images, features)
        found = self._label_logits(batch, images, features, pooled, specs)
        return self.heads["cls"].fused(found[source])

    @torch.no_grad()
    def inference(self, batch: Batch, heads: Asked | None = None) -> list[dict[str, Any]]:
        """Predictions of the asked heads, the trunk computed once.

        Args:
            batch: as in :meth:`forward`.
            heads: each ``"source/task"``, ``(source, task)``, a source or a task; None is what
                :meth:`asking` says, by default all.

        Returns:
            Per image, in pixels of the original: ``labels`` {source: {class: probability}};
            ``instances`` {source: Instances with pred_boxes, scores, pred_classes and, where the
            source has them, pred_masks, see :class:`fx_d2.modeling.postprocess.BoxMasks`};
            ``masks`` {source: {class: bool (height, width)}}. Sources without an asked head of a
            task are absent there.
        """
        specs = select_heads(self.specs, self._asked if heads is None else heads)
        by_task = {task: [s for s in specs if s.task == task] for task in ("cls", "loc", "seg")}
        images = self._images(batch)
        features = self.trunk(images.tensor)
        results: list[dict[str, Any]] = [
            {"labels": {}, "instances": {}, "masks": {}} for _ in batch
        ]
        if by_task["cls"]:
            pooled = self._pooled(images, features)
            found = self._label_logits(batch, images, features, pooled, by_task["cls"])
            for source, logits in found.items():
                predicted = self.heads["cls"].inference(logits, source)
                for result, labels in zip(results, predicted, strict=True):
                    result["labels"][source] = labels
        if by_task["loc"]:
            self._find(images, features, by_task["loc"], batch, results)
        if by_task["seg"]:
            self._paint(images, features, by_task["seg"], batch, results)
        return results

    def _find(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        specs: Sequence[HeadSpec],
        batch: Batch,
        results: list[dict[str, Any]],
    ) -> None:
        levels, proposals, _ = self.loc_encoder(images, features)
        sources = [spec.source for spec in specs]
        found = self.heads["loc"].inference(levels, proposals, sources, self.loc_decoder)
        for source, per_image in found.items():
            for item, result, instances in zip(batch, results, per_image, strict=True):
                result["instances"][source] = original_instances(
                    instances, *_original_size(item), threshold=self.mask_threshold
                )

    def _paint(
        self,
        images: ImageList,
        features: Mapping[str, Tensor],
        specs: Sequence[HeadSpec],
        batch: Batch,
        results: list[dict[str, Any]],
    ) -> None:
        decoded = self.seg_decoder(features)
        for spec in specs:
            logits = self.heads["seg"](decoded, spec.source, images.tensor.shape[-2:])
            rows = zip(batch, results, logits.sigmoid(), images.image_sizes, strict=True)
            for item, result, probabilities, content_size in rows:
                result["masks"][spec.source] = original_masks(
                    probabilities,
                    spec.classes,
                    content_size,
                    *_original_size(item),
                    threshold=self.mask_threshold,
                    soft=self.soft_masks,
                )


def _padded(images: Sequence[Tensor], unit: int) -> Tensor:
    """Images (N, C, H, W) with zeros at the right and the bottom up to multiples of ``unit``."""
    if not any(image.requires_grad for image in images):
        return ImageList.from_tensors(images, unit).tensor
    # Detectron2 copies in place, which no gradient of the images passes.
    sizes = [image.shape[-2:] for image in images]
    unit = max(unit, 1)
    height, width = (-(-max(sides) // unit) * unit for sides in zip(*sizes, strict=True))
    return torch.stack(
        [F.pad(x, (0, width - x.shape[-1], 0, height - x.shape[-2])) for x in images]
    )


def _learned_from(batch: Batch) -> Batch:
    """The images of a loc batch that count: all where none has boxes annotated.

    Where boxes are not annotated nothing is known about any region.
    """
    return [item for item in batch if "instances" in item] or batch


def _as_tuple(heads: Asked) -> tuple[str | tuple[str, str], ...]:
    return (heads,) if isinstance(heads, str) else tuple(heads)


def _content_size(item: Mapping[str, Any]) -> tuple[int, int]:
    height, width = item.get("content_size", item["image"].shape[-2:])
    return int(height), int(width)


def _original_size(item: Mapping[str, Any]) -> tuple[int, int]:
    height, width = _content_size(item)
    return int(item.get("height", height)), int(item.get("width", width))


def _per_channel(values: Sequence[float], name: str) -> Tensor:
    if not values or any(value > 1 for value in values):
        raise ValueError(
            f"MODEL.PIXEL_{name} is {list(values)}; images are in [0, 1] here, one value per "
            "channel (configs/Base-FX.yaml has them)"
        )
    return torch.tensor(values, dtype=torch.float32).view(-1, 1, 1)
