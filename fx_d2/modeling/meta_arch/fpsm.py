"""FPSM: image labels from a feature pyramid, and nothing else."""

from __future__ import annotations

from typing import Any

from detectron2.modeling import META_ARCH_REGISTRY

from ..heads.pyramid import PyramidClassifier
from ..heads.spec import head_specs
from .foundation_x import FoundationX


@META_ARCH_REGISTRY.register()
class FPSM(FoundationX):
    """A :class:`FoundationX` whose only heads are those of a :class:`PyramidClassifier`.

    The same classifier works in a FoundationX with boxes and masks: there ``MODEL.FX.CLS.NAME``
    names it. A checkpoint of one loads into the other.
    """

    @classmethod
    def from_config(cls, cfg: Any) -> dict[str, Any]:
        """The arguments that the config decides."""
        name = PyramidClassifier.__name__
        if name != cfg.MODEL.FX.CLS.NAME:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE FPSM has MODEL.FX.CLS.NAME {cfg.MODEL.FX.CLS.NAME!r}; "
                f"expected {name!r} (configs/fpsm/Base-FPSM.yaml)"
            )
        others = [spec.name for spec in head_specs(cfg) if spec.task != "cls"]
        if others:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE FPSM learns image labels, not {', '.join(others)}; set "
                "DATASETS.TASKS to [cls]"
            )
        return super().from_config(cfg)
