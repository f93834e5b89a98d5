"""One tiny trunk of each family, and the same network as timm builds it."""

from __future__ import annotations

from typing import Any

import timm
import torch

from fx_d2.modeling.backbone import TimmBackbone
from fx_d2.modeling.backbone.presets import PRESETS

# One tiny variant of each family: (name, kwargs).
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_t", {"embed_dim": 24, "depths": (1, 1, 2, 2)}),
    "tresnet": ("tresnet_m", {"layers": [1, 1, 1, 1], "width_factor": 0.25}),
    "coatnet": (
        "coatnet_0",
        {"embed_dim": (16, 32, 32, 64), "depths": (1, 1, 1, 1), "stem_width": (8, 16)},
    ),
    "convnext": ("convnext_t", {"depths": (1, 1, 1, 1), "dims": (16, 24, 32, 48)}),
    "resnet": ("resnet50", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}),
}


def tiny(family: str, **arguments: Any) -> TimmBackbone:
    name, kwargs = TINY[family]
    torch.manual_seed(0)
    arguments["kwargs"] = {**kwargs, **arguments.get("kwargs", {})}
    return TimmBackbone(name=name, **arguments).eval()


def plain(family: str, backbone: TimmBackbone | None = None, **arguments: Any) -> torch.nn.Module:
    """The same network as timm builds it, with the weights of a trunk."""
    name, kwargs = TINY[family]
    arguments = {"num_classes": 0, **kwargs, **arguments}
    net = timm.create_model(PRESETS[name].network, **arguments).eval()
    if backbone is not None:
        state = backbone.net.state_dict()
        own = {"swin": "norm", "coatnet": "norm", "convnext": "head.norm"}.get(family)
        state |= {f"{own}.{k}": v for k, v in backbone.norm.state_dict().items()}
        net.load_state_dict(state)
    return net


def shake(module: torch.nn.Module) -> None:
    """Weights away from their start values, where a norm or a scale left out would not show."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.add_((0.5 if p.dim() == 1 or "relative" in name else 0.02) * noise)
