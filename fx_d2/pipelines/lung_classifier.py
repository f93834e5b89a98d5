"""Any fx_d2 checkpoint with image labels as a classifier of crops, and where it looks."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from detectron2.data import transforms as T
from torch import Tensor, nn

from fx_d2.data.errors import did_you_mean
from fx_d2.data.intensity import IntensityConfig
from fx_d2.data.lung_masks import LungInput
from fx_d2.data.transforms import build_augmentations
from fx_d2.engine.checkpoint import CheckpointError
from fx_d2.engine.ensemble import Trained, load_trained
from fx_d2.engine.step import precision_of
from fx_d2.explain import class_activation
from fx_d2.modeling.heads.spec import HeadSpec

from .stages import Crop, HeatMap, Scores

PathLike = str | os.PathLike[str]


class LungClassifier:
    """A trained model with image labels, shown crops instead of whole films.

    Args:
        trained: the model.
        name: of it; default the name of its folder.
        head: its source, where it has labels of several.

    Attributes:
        classes: of the head.
        intensity: how grey values of a film become [0, 1].
        lung_input: what it was shown in training.

    Raises:
        CheckpointError: it has no image labels; or of several sources and none is named.
    """

    def __init__(self, trained: Trained, *, name: str = "", head: str = "") -> None:
        self.trained, self.model, self.cfg = trained, trained.model, trained.cfg
        self.name = name or trained.weights.parent.name
        self.spec = _label_head(trained, head)
        self.classes = self.spec.classes
        fx = self.cfg.INPUT.FX
        self.intensity = IntensityConfig.from_dict({k.lower(): v for k, v in fx.INTENSITY.items()})
        node = fx.LUNGS  # its masks come from the pipeline, not from where they were in training
        self.lung_input = LungInput(
            node.MODE, margin=node.MARGIN, fill=node.FILL, min_side_px=node.MIN_SIDE_PX
        )
        self._resize = T.AugmentationList(build_augmentations(self.cfg, "cls", False))
        self._default_layer = ""

    @classmethod
    def load(
        cls, weights: PathLike, device: torch.device, *, name: str = "", head: str = ""
    ) -> LungClassifier:
        """From a ``.safetensors`` file or the output folder of a run.

        Raises:
            CheckpointError: it cannot be read, or is no classifier.
        """
        return cls(load_trained(weights, device), name=name, head=head)

    def origin(self) -> dict[str, Any]:
        """What a result says about it."""
        return {"name": self.name, "head": self.spec.name, **self.trained.origin()}

    def input_of(self, crop: Crop) -> tuple[Tensor, tuple[int, int]]:
        """What the network sees, as in its training without augmentation.

        Returns:
            (C, H, W) in [0, 1], and the (h, w) of the crop within it; the rest is padding.
        """
        given = T.AugInput(np.ascontiguousarray(crop.shown.image, dtype=np.float32))
        applied = self._resize(given)
        image = np.clip(given.image, 0, 1)
        first = applied.transforms[0]  # the resize; what follows pads
        tensor = torch.from_numpy(np.repeat(image[None], self.cfg.INPUT.FX.CHANNELS, axis=0))
        return tensor, (int(first.new_h), int(first.new_w))

    def scores(self, crop: Crop) -> Scores:
        """Probabilities of all classes."""
        image, content = self.input_of(crop)
        with torch.inference_mode(), precision_of(self.cfg):
            logits = self._logits(image[None], content)
        (labels,) = cast(Any, self.model).heads["cls"].inference(logits, self.spec.source)
        return Scores(self.spec.source, labels, exclusive=self.spec.kind == "multiclass")

    def heat(
        self, crop: Crop, classes: Sequence[str], method: str, layer: str
    ) -> tuple[HeatMap, ...]:
        """A map of each class, in pixels of the film.

        Args:
            crop: what the classifier is shown.
            classes: of :attr:`classes`.
            method: of :data:`fx_d2.explain.CAM_METHODS`.
            layer: as :meth:`checked_layer` gives it.
        """
        image, content = self.input_of(crop)
        places = [self.classes.index(name) for name in classes]
        # In full precision: gradients of a half-precision forward pass are coarse.
        found = class_activation(
            self.model,
            lambda images: self._logits(images, content),
            image[None].to(self._device),
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
        """``name`` if the network has such a layer; by default the last stage of the trunk.

        Raises:
            KeyError: there is no such layer; the message has near names.
        """
        if not name:
            self._default_layer = self._default_layer or self._last_stage()
            return self._default_layer
        known = [known for known, _ in self.model.named_modules() if known]
        if name not in known:
            raise KeyError(
                f"the classifier has no layer {name!r}.{did_you_mean(name, known)} Its last stage "
                f"is {self.checked_layer()!r}"
            )
        return name

    @property
    def _device(self) -> torch.device:
        return torch.device(self.cfg.MODEL.DEVICE)

    def _logits(self, images: Tensor, content: tuple[int, int]) -> Tensor:
        batch = [{"image": image, "content_size": content} for image in images]
        return cast(Any, self.model).label_logits(batch, self.spec.source)

    def _last_stage(self) -> str:
        """The module of the trunk that is done last and gives a map: found by looking."""
        seen: list[str] = []
        names = {module: name for name, module in self.model.named_modules()}

        def note(module: nn.Module, _: object, output: object) -> None:
            if isinstance(output, Tensor) and output.dim() == 4:
                seen.append(names[module])

        trunk = cast(Any, self.model).trunk
        side, channels = self.cfg.INPUT.FX.SIZE, self.cfg.INPUT.FX.CHANNELS
        handles = [part.register_forward_hook(note) for part in trunk.modules()]
        try:
            with torch.inference_mode():
                trunk(torch.zeros(1, channels, side, side, device=self._device))
        finally:
            for handle in handles:
                handle.remove()
        if not seen:
            raise ValueError("no layer of the trunk gives a map; name one with --layer")
        return seen[-1]


def _label_head(trained: Trained, wanted: str) -> HeadSpec:
    specs: Sequence[HeadSpec] = cast(Any, trained.model).specs
    having = [spec for spec in specs if spec.task == "cls"]
    names = [spec.name for spec in having]
    if not having:
        raise CheckpointError(
            f"this is no classifier: its heads are {', '.join(s.name for s in specs)}",
            file=trained.weights,
            expected="a head of image labels",
            fix="name a model trained on labels as classifier",
        )
    chosen = [spec for spec in having if wanted in (spec.source, spec.name)] if wanted else having
    if len(chosen) != 1:
        problem = f"has no label head {wanted!r}" if wanted else "has labels of several sources"
        raise CheckpointError(
            problem,
            file=trained.weights,
            expected=f"one of {', '.join(names)}",
            fix="name it with --classifier PATH@SOURCE",
        )
    return chosen[0]
