"""Boxes and instance masks: proposals shared by all sources, classification of regions per source.

Built from the parts of Detectron2's Mask R-CNN. The paper's names: the *localization encoder* finds
regions (norms, feature pyramid, RPN) and is shared; the *localization decoder* looks at each region
(box head, mask head). X has a decoder per source, X+ one for all; the predictors on top are always
a source's own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, build_proposal_generator
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import (
    FastRCNNOutputLayers,
    ROIHeads,
    build_box_head,
    build_mask_head,
    select_foreground_proposals,
)
from detectron2.modeling.roi_heads.mask_head import mask_rcnn_inference, mask_rcnn_loss
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ..neck import build_norm_fpn
from ..whole_batch import share
from .sampling import SeedPerImage
from .spec import HeadSpec, specs_of

Features = Mapping[str, Tensor]
# Detectron2's names of the losses -> ours.
_LOSS_NAMES = {
    "loss_rpn_cls": "loss_loc_rpn_cls",
    "loss_rpn_loc": "loss_loc_rpn_box",
    "loss_cls": "loss_loc_cls",
    "loss_box_reg": "loss_loc_box",
    "loss_mask": "loss_loc_mask",
}


def _renamed(losses: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {_LOSS_NAMES[name]: value for name, value in losses.items()}


class LocEncoder(nn.Module):
    """The shared part: normalised stages, feature pyramid, region proposals.

    Args:
        neck: stages of the trunk -> levels of a pyramid.
        rpn: a proposal generator of Detectron2 on these levels.
    """

    def __init__(self, neck: nn.Module, rpn: nn.Module) -> None:
        super().__init__()
        self.neck, self.rpn = neck, rpn

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> LocEncoder:
        """The encoder of ``MODEL.FPN``, ``MODEL.ANCHOR_GENERATOR`` and ``MODEL.RPN``."""
        neck = build_norm_fpn(cfg, input_shape)
        return cls(neck, build_proposal_generator(cfg, neck.output_shape()))

    def levels(self, features: Features) -> dict[str, Tensor]:
        """The pyramid of the trunk's stages, float32."""
        # Coordinates are cast to the type of the features they index: in bf16 they would be off by
        # up to a pixel in 256.
        return {name: level.float() for name, level in self.neck(features).items()}

    def forward(
        self,
        images: ImageList,
        features: Features,
        targets: list[Instances] | None = None,
        *,
        annotated: bool = True,
    ) -> tuple[dict[str, Tensor], list[Instances], dict[str, Tensor]]:
        """Find regions.

        Args:
            images: their sizes clip the regions.
            features: stages of the trunk.
            targets: true boxes per image, in training.
            annotated: whether they are known; else the losses are exactly 0, with the same graph.

        Returns:
            The levels of the pyramid (float32), the proposals per image, the losses.
        """
        levels = self.levels(features)
        proposals, losses = self.rpn(images, levels, targets)
        if losses:
            part = share(len(images) if annotated else 0, images.tensor)
            losses = {name: value * part for name, value in losses.items()}
        return levels, proposals, _renamed(losses)


class LocDecoder(nn.Module):
    """The layers that look at one region: box head, and mask head without its predictor.

    Args:
        box_head: pooled regions -> vectors.
        mask_head: pooled regions -> maps, or None.
    """

    def __init__(self, box_head: nn.Module, mask_head: nn.Module | None) -> None:
        super().__init__()
        self.box_head, self.mask_head = box_head, mask_head

    @classmethod
    def from_config(cls, cfg: Any, channels: int, masks: bool) -> LocDecoder:
        """The decoder of ``MODEL.ROI_BOX_HEAD`` and, with ``masks``, ``MODEL.ROI_MASK_HEAD``."""

        def region(side: int) -> ShapeSpec:
            return ShapeSpec(channels=channels, height=side, width=side)

        box_head = build_box_head(cfg, region(cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION))
        if not masks:
            return cls(box_head, None)
        mask_head = build_mask_head(cfg, region(cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION))
        del mask_head.predictor  # every source has its own
        return cls(box_head, mask_head)

    def mask_features(self, pooled: Tensor) -> Tensor:
        """(R, C, m, m) -> (R, D, 2m, 2m)."""
        assert self.mask_head is not None
        return self.mask_head.layers(pooled)


class SourceROIHeads(SeedPerImage, ROIHeads):
    """Sampling and prediction of one source.

    Args:
        spec: classes, and whether boxes have masks.
        box_predictor: scores and box deltas from a region's vector.
        mask_predictor: masks from a region's map, or None.
        decoder: of this source; None where all share one.
        sampling: handed to Detectron2's ROIHeads.
    """

    def __init__(
        self,
        *,
        spec: HeadSpec,
        box_predictor: FastRCNNOutputLayers,
        mask_predictor: nn.Module | None,
        decoder: LocDecoder | None,
        **sampling: Any,
    ) -> None:
        super().__init__(num_classes=len(spec.classes), **sampling)
        self.spec = spec
        self.box_predictor, self.mask_predictor = box_predictor, mask_predictor
        self.decoder = decoder

    @classmethod
    def from_config(cls, cfg: Any, spec: HeadSpec, channels: int) -> SourceROIHeads:
        """The head of one source on a pyramid with ``channels``."""
        roi, num_classes = cfg.MODEL, len(spec.classes)
        shared = cfg.MODEL.FX.LOC.SHARED_DECODER
        # Where it is shared, only the shape of its vectors is needed: no memory, no initialisation.
        with torch.device("meta") if shared else nullcontext():
            decoder = LocDecoder.from_config(cfg, channels, spec.instance_masks)
        mask_predictor = None
        if spec.instance_masks:
            outputs = 1 if roi.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK else num_classes
            mask_predictor = nn.Conv2d(roi.ROI_MASK_HEAD.CONV_DIM, outputs, 1)
            nn.init.normal_(mask_predictor.weight, std=0.001)
            nn.init.zeros_(mask_predictor.bias)
        sampling = ROIHeads.from_config(cfg)
        del sampling["num_classes"]
        return cls(
            spec=spec,
            box_predictor=FastRCNNOutputLayers(
                cfg, decoder.box_head.output_shape, num_classes=num_classes
            ),
            mask_predictor=mask_predictor,
            decoder=None if shared else decoder,
            **sampling,
        )

    def _sample_proposals(self, *matched: Tensor) -> tuple[Tensor, Tensor]:
        self._seed_next()
        return super()._sample_proposals(*matched)

    def targets(self, instances: Sequence[Instances]) -> list[Instances]:
        """True boxes with the classes of this head."""
        if not self.spec.agnostic:
            return list(instances)
        merged = []
        for found in instances:
            fields = dict(found.get_fields())
            fields["gt_classes"] = torch.zeros_like(found.gt_classes)
            merged.append(Instances(found.image_size, **fields))
        return merged


@ROI_HEADS_REGISTRY.register()
class MultiSourceROIHeads(nn.Module):
    """A :class:`SourceROIHeads` per source, as attributes named by source."""

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        box_pooler: ROIPooler,
        mask_pooler: ROIPooler,
        sources: Sequence[SourceROIHeads],
    ) -> None:
        """Keep the parts.

        Args:
            in_features: levels of the pyramid that regions are pooled from.
            box_pooler: regions for boxes; has no parameters.
            mask_pooler: regions for masks; has no parameters.
            sources: the heads.
        """
        super().__init__()
        self.in_features = tuple(in_features)
        self.box_pooler, self.mask_pooler = box_pooler, mask_pooler
        self.specs = {head.spec.source: head.spec for head in sources}
        for head in sources:
            self.add_module(head.spec.source, head)

    @classmethod
    def from_config(cls, cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> dict[str, Any]:
        """The arguments that the config decides."""
        names = list(cfg.MODEL.ROI_HEADS.IN_FEATURES)
        channels = input_shape[names[0]].channels
        scales = tuple(1.0 / input_shape[name].stride for name in names)

        def pooler(node: Any) -> ROIPooler:
            return ROIPooler(
                output_size=node.POOLER_RESOLUTION,
                scales=scales,
                sampling_ratio=node.POOLER_SAMPLING_RATIO,
                pooler_type=node.POOLER_TYPE,
            )

        return {
            "in_features": names,
            "box_pooler": pooler(cfg.MODEL.ROI_BOX_HEAD),
            "mask_pooler": pooler(cfg.MODEL.ROI_MASK_HEAD),
            "sources": [
                SourceROIHeads.from_config(cfg, spec, channels) for spec in specs_of(cfg, "loc")
            ],
        }

    @staticmethod
    def build_shared_decoder(cfg: Any, input_shape: Mapping[str, ShapeSpec]) -> LocDecoder | None:
        """The decoder of X+, with a mask head if any source has masks; None for X."""
        if not cfg.MODEL.FX.LOC.SHARED_DECODER:
            return None
        channels = input_shape[cfg.MODEL.ROI_HEADS.IN_FEATURES[0]].channels
        masks = any(spec.instance_masks for spec in specs_of(cfg, "loc"))
        return LocDecoder.from_config(cfg, channels, masks)

    def _pool(self, pooler: ROIPooler, levels: Features, boxes: list[Boxes]) -> Tensor:
        return pooler([levels[name] for name in self.in_features], boxes)

    def forward(
        self,
        levels: Features,
        proposals: list[Instances],
        targets: Sequence[Instances],
        source: str,
        shared: LocDecoder | None = None,
        *,
        annotated: bool = True,
    ) -> dict[str, Tensor]:
        """The losses of one source.

        Args:
            levels: of the pyramid, (N, C, h, w) each.
            proposals: per image.
            targets: true boxes per image, with the classes of the source.
            source: whose head.
            shared: the decoder of X+.
            annotated: whether true boxes are known; else the losses are exactly 0.
        """
        head: SourceROIHeads = self.get_submodule(source)
        decoder = head.decoder or shared
        regions = head.label_and_sample_proposals(proposals, head.targets(targets))
        pooled = self._pool(self.box_pooler, levels, [r.proposal_boxes for r in regions])
        predictions = head.box_predictor(decoder.box_head(pooled))
        losses = head.box_predictor.losses(predictions, regions)
        # Detectron2 divides by the regions sampled, and by the values of masks on a finding.
        part = share(sum(map(len, regions)) if annotated else 0, pooled)
        losses = {name: value * part for name, value in losses.items()}
        if head.mask_predictor is not None:
            found, _ = select_foreground_proposals(regions, head.num_classes)
            pooled = self._pool(self.mask_pooler, levels, [r.proposal_boxes for r in found])
            logits = head.mask_predictor(decoder.mask_features(pooled))
            part = share(sum(map(len, found)) if annotated else 0, logits)
            losses["loss_mask"] = mask_rcnn_loss(logits, found) * part
        return _renamed(losses)

    def inference(
        self,
        levels: Features,
        proposals: list[Instances],
        sources: Sequence[str],
        shared: LocDecoder | None = None,
    ) -> dict[str, list[Instances]]:
        """{source: detections per image} in pixels of the input; masks are those of the regions.

        The regions are pooled once for all sources, and seen once by a shared decoder.
        """
        pooled = self._pool(self.box_pooler, levels, [p.proposal_boxes for p in proposals])
        common = None if shared is None else shared.box_head(pooled)
        results = {}
        for source in sources:
            head: SourceROIHeads = self.get_submodule(source)
            vectors = head.decoder.box_head(pooled) if common is None else common
            predictions = head.box_predictor(vectors)
            found, _ = head.box_predictor.inference(
                tuple(p.float() for p in predictions), proposals
            )
            if head.mask_predictor is not None:
                self._add_masks(levels, found, head, head.decoder or shared)
            results[source] = found
        return results

    def _add_masks(
        self,
        levels: Features,
        found: list[Instances],
        head: SourceROIHeads,
        decoder: LocDecoder,
    ) -> None:
        """Set ``pred_masks`` (R, 1, m, m) on the detections."""
        pooled = self._pool(self.mask_pooler, levels, [f.pred_boxes for f in found])
        mask_rcnn_inference(head.mask_predictor(decoder.mask_features(pooled)).float(), found)
