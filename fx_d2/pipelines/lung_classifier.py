"""Any fx_d2 checkpoint with image labels as a classifier of crops, and where it looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from torch import Tensor
from torch.nn import functional as F

from fx_d2.data.errors import did_you_mean
from fx_d2.data.intensity import IntensityConfig
from fx_d2.data.lung_masks import LungInput
from fx_d2.data.transforms import build_augmentations
from fx_d2.engine.ensemble import PathLike
from fx_d2.engine.step import precision_of
from fx_d2.explain import class_activation

from .committee_members import Member, MemberSpec, last_stage, load_members, make_member
from .stages import Crop, HeatMap, Scores

# Of a heat map, along a side, as Grad-CAM had at 224 px. With the four of 128 px it lies less on
# the true lesion than a map that is even over the lungs (docs/systems/hybrid.md, "Measured").
_LEAST_CELLS = 7


class LungClassifier:
    """A trained model with image labels, shown crops instead of whole films.

    Args:
        member: the model, its head and its layer.
        cfg: of its run.

    Attributes:
        classes: of the head.
        intensity: how grey values of a film become [0, 1].
        lung_input: what it was shown in training.
    """

    def __init__(self, member: Member, cfg: CfgNode) -> None:
        self.member, self.cfg = member, cfg
        self.classes = member.classes
        fx = cfg.INPUT.FX
        self.intensity = IntensityConfig.from_dict({k.lower(): v for k, v in fx.INTENSITY.items()})
        node = fx.LUNGS  # its masks come from the pipeline, not from where they were in training
        self.lung_input = LungInput(
            node.MODE, margin=node.MARGIN, fill=node.FILL, min_side_px=node.MIN_SIDE_PX
        )
        self._resize = T.AugmentationList(build_augmentations(cfg, "cls", False))

    @classmethod
    def load(
        cls, weights: PathLike, device: torch.device, *, name: str = "", head: str = ""
    ) -> LungClassifier:
        """From a ``.safetensors`` file or the output folder of a run.

        Args:
            weights: the file or folder.
            device: to run on.
            name: in tables; default the folder's.
            head: source of the labels, where the model has several.

        Raises:
            CheckpointError: it cannot be read.
            CommitteeError: it has no such head of image labels.
        """
        ((spec, trained, found),) = load_members([MemberSpec(weights, head, name=name)], device)
        cfg = trained.cfg.clone()
        cfg.defrost()
        cfg.INPUT.FX.LUNGS.MODE, cfg.INPUT.FX.LUNGS.SOURCE = "none", "record"
        cfg.freeze()
        member = make_member(spec, replace(trained, cfg=cfg), found, found.classes)
        layer = last_stage(member.module, _LEAST_CELLS, int(cfg.INPUT.FX.SIZE))
        if layer in dict(member.module.named_modules()):
            member = replace(member, layer=layer)
        return cls(member, trained.cfg)

    def origin(self) -> dict[str, Any]:
        """What a result says about it."""
        member = self.member
        return {"name": member.name, "head": member.spec.name, **member.origin}

    def input_of(self, crop: Crop) -> tuple[Tensor, tuple[int, int]]:
        """What the network sees, as in its training without augmentation.

        Returns:
            (C, H, W) in [0, 1], and the (h, w) of the crop within it; the rest, at the right and
            the bottom, is padding.
        """
        given = T.AugInput(np.ascontiguousarray(crop.shown.image, dtype=np.float32))
        resize = cast(Any, self._resize(given).transforms[0])  # what follows pads
        image = np.clip(given.image, 0, 1)[None]
        found = torch.from_numpy(np.repeat(image, self.cfg.INPUT.FX.CHANNELS, axis=0))
        # As the network would pad it itself; so a map of it covers what the tensor covers.
        unit = int(cast(Any, self.member.module).trunk.size_divisibility) or 1
        found = F.pad(found, (0, -found.shape[-1] % unit, 0, -found.shape[-2] % unit))
        return found, (int(resize.new_h), int(resize.new_w))

    def scores(self, crop: Crop) -> Scores:
        """Probabilities of all classes."""
        image, content = self.input_of(crop)
        with precision_of(self.cfg):
            found = self.member.answer(image[None].to(self.member.device), content)[1][0]
        spec = self.member.spec
        labels = dict(zip(self.classes, found.tolist(), strict=True))
        return Scores(spec.source, labels, exclusive=spec.kind == "multiclass")

    def heat(
        self, crop: Crop, classes: Sequence[str], method: str, layer: str = ""
    ) -> tuple[HeatMap, ...]:
        """A map of each class, in pixels of the film.

        Args:
            crop: what the classifier is shown.
            classes: of :attr:`classes`.
            method: of :data:`fx_d2.explain.CAM_METHODS`.
            layer: as in :meth:`checked_layer`.
        """
        image, content = self.input_of(crop)
        layer = self.checked_layer(layer)
        places = [self.classes.index(name) for name in classes]
        member = self.member
        # In full precision: gradients of a half-precision pass are coarse.
        found = class_activation(
            member.module,
            member.classifier(content),
            image[None].to(member.device),
            places,
            layer,
            method,
        )
        maps = found.maps[0].cpu().numpy()
        return tuple(
            HeatMap(name, crop.to_film(values, content), method, layer)
            for name, values in zip(classes, maps, strict=True)
        )

    def checked_layer(self, name: str = "") -> str:
        """``name`` if the network has such a layer; by default the last stage that is fine enough.

        Raises:
            ValueError: there is no such layer; the message has a near name.
        """
        if not name:
            return self.member.layer
        known = [known for known, _ in self.member.module.named_modules() if known]
        if name not in known:
            raise ValueError(
                f"the classifier has no layer {name!r}.{did_you_mean(name, known)} Its own choice "
                f"is {self.member.layer}"
            )
        return name
