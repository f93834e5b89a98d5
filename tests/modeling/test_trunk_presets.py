"""The presets at their real size, as docs/backbones.md says."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from fx_d2.modeling.backbone import TimmBackbone
from fx_d2.modeling.backbone.presets import PRESETS, UNPADDED

ROOT = Path(__file__).resolve().parents[2]


def real_size(preset: str) -> tuple[TimmBackbone, dict[str, torch.Size], torch.Size]:
    """Shapes at 64 x 96 px, without weights and without computing anything."""
    drop_path = 0.0 if PRESETS[preset].network.startswith(UNPADDED) else 0.2
    with torch.device("meta"):
        backbone = TimmBackbone(name=preset, img_size=(64, 96), drop_path=drop_path)
        features = backbone(torch.zeros(2, 3, 64, 96))
    pooled = backbone.pooled(features)
    return backbone, {k: v.shape for k, v in features.items()}, pooled.shape


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_at_their_real_size_and_as_documented(preset):
    """Strides, channels, size and licence of every preset are what docs/backbones.md says."""
    backbone, shapes, pooled = real_size(preset)
    channels = [s.channels for s in backbone.output_shape().values()]
    strides = (4, 8, 16, 32)
    assert list(shapes.values()) == [
        (2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)
    ]
    assert pooled == (2, channels[-1])

    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{preset}` "))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    facts = timm.models.get_pretrained_cfg(backbone.network)
    assert cells[1] == f"`{backbone.network}`"
    assert cells[2] == " / ".join(map(str, channels))
    assert cells[3] == f"{sum(p.numel() for p in backbone.parameters()) / 1e6:.1f}"
    assert cells[4] == getattr(backbone.net, "output_fmt", "NCHW")
    assert cells[5].startswith("fixed at build" if backbone.built_size else "any")
    assert cells[6] == f"{facts.mean[0]:g}.. / {facts.std[0]:g}.."
    assert cells[7].lower() == facts.license


@pytest.mark.parametrize("preset", PRESETS)
@torch.no_grad()
def test_presets_compute_at_their_real_size(preset):
    backbone = TimmBackbone(name=preset, img_size=(64, 64)).eval()
    features = backbone(torch.randn(1, 3, 64, 64))
    assert all(f.isfinite().all() and f.std() > 0 for f in features.values())
    assert backbone.pooled(features).isfinite().all()


@pytest.mark.parametrize("network", UNPADDED)
def test_unpadded_networks_are_padded_and_keep_their_weights(network):
    with torch.device("meta"):
        backbone, own = TimmBackbone(name=network), timm.create_model(network, num_classes=0)
    kernels = {
        name: m
        for name, m in own.named_modules()
        if isinstance(m, torch.nn.Conv2d | torch.nn.MaxPool2d)
    }
    sides = {
        n: m.kernel_size if isinstance(m.kernel_size, int) else max(m.kernel_size)
        for n, m in kernels.items()
    }
    without = [n for n, m in kernels.items() if sides[n] > 1 and m.padding in (0, (0, 0))]
    assert without  # else there is nothing to do for it
    for name in without:
        padding = backbone.net.get_submodule(name).padding
        assert (padding if isinstance(padding, int) else max(padding)) == sides[name] // 2
    shapes = {name: value.shape for name, value in own.state_dict().items()}
    assert {n: v.shape for n, v in backbone.net.state_dict().items()}.items() <= shapes.items()
    with pytest.raises(ValueError, match=r"DROP_PATH \(0 if it has none\)"):
        TimmBackbone(name=network, drop_path=0.2)
