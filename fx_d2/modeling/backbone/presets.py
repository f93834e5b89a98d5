"""Trunks with a short name: one row each. Any other network of timm is named as timm names it."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

import timm


@dataclass(frozen=True)
class Preset:
    """A trunk of the published systems.

    Attributes:
        network: name in timm with the tag of the published weights.
        used_by: which system has it, in words.
    """

    network: str
    used_by: str


PRESETS: dict[str, Preset] = {
    "swin_t": Preset("swin_tiny_patch4_window7_224.ms_in1k", "small runs"),
    "swin_b": Preset("swin_base_patch4_window7_224.ms_in22k", "Foundation X and X+, all results"),
    "swin_l": Preset("swin_large_patch4_window12_384.ms_in22k", "X+ at 768 px"),
    "tresnet_m": Preset("tresnet_m.miil_in21k_ft_in1k", "FPSM"),
    "tresnet_l": Preset("tresnet_l.miil_in1k", "FPSM, larger"),
    # coatnet_0_224, the paper's layout, has no published weights.
    "coatnet_0": Preset("coatnet_0_rw_224.sw_in1k", "hybrid multi-stage"),
    "xception": Preset("legacy_xception.tf_in1k", "hybrid multi-stage, comparison"),
    "inception_resnet_v2": Preset("inception_resnet_v2.tf_in1k", "hybrid multi-stage, comparison"),
    "convnext_t": Preset("convnext_tiny.fb_in22k", "comparison"),
    "resnet50": Preset("resnet50.a1_in1k", "comparison; Detectron2's usual trunk"),
}

# Networks of timm whose convolutions have no padding and shrink their maps by a rim; as trunks they
# get it. The weights are the same.
UNPADDED = ("legacy_xception", "inception_resnet_v2")


def network_name(name: str) -> str:
    """The timm name of a preset, or a timm name itself; otherwise a ValueError with suggestions."""
    if name in PRESETS:
        return PRESETS[name].network
    arch, _, tag = name.partition(".")
    if not timm.is_model(arch):
        close = difflib.get_close_matches(name, [*PRESETS, *timm.list_models()], n=3, cutoff=0.5)
        hint = f"did you mean {', '.join(close)}? " if close else ""
        raise ValueError(
            f"MODEL.FX.TRUNK.NAME {name!r} is no known trunk; {hint}"
            f"It is one of {', '.join(PRESETS)}, or a network of timm."
        )
    tags = [n.partition(".")[2] for n in timm.list_pretrained(f"{arch}.*")]
    if tag and tag not in tags:
        raise ValueError(
            f"MODEL.FX.TRUNK.NAME {name!r}: timm has no weights {tag!r} of {arch}; "
            f"it has {', '.join(tags) or 'none'}."
        )
    return name
