"""Networks with the names and the maths of other projects, written from their description.

Attention is dense over the whole map with a mask of who may see whom, so that nothing is shared
with the implementation that is tested: no windows are cut and no map is rolled.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, DEPTHS, HEADS, WINDOW, SIDE = 24, (2, 2, 2, 2), (1, 2, 4, 8), 4, 128
CLASSES = (1, 1, 1, 3, 13, 1, 14, 14, 6, 1, 14)  # of the eleven classifiers in a checkpoint
MASKS = (1, 1, 1, 1, 13, 1)


class Attention(nn.Module):
    """Windowed self-attention with a table of relative positions."""

    def __init__(self, dim: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.heads, self.window, self.shift = heads, window, shift
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", self._index())
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def _index(self) -> Tensor:
        """Row of the table by (query, key) of a window, as Microsoft stores it."""
        w = self.window
        index = torch.zeros(w * w, w * w, dtype=torch.int64)
        for q in range(w * w):
            for k in range(w * w):
                dy, dx = q // w - k // w, q % w - k % w
                index[q, k] = (dy + w - 1) * (2 * w - 1) + (dx + w - 1)
        return index

    def forward(self, x: Tensor, shift: int) -> Tensor:
        """(N, H, W, C) -> the same."""
        n, height, width, dim = x.shape
        y, z = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        y, z = y.flatten(), z.flatten()
        sy, sz = (y - shift) % height, (z - shift) % width
        place = torch.stack([sy // self.window, sz // self.window, (y < shift), (z < shift)])
        same = (place[:, :, None] == place[:, None, :]).all(0)
        cell = (sy % self.window) * self.window + sz % self.window
        rows = self.relative_position_index[cell[:, None], cell[None, :]]
        bias = self.relative_position_bias_table[rows].permute(2, 0, 1)
        q, k, v = (
            self.qkv(x.flatten(1, 2)).reshape(n, -1, 3, self.heads, dim // self.heads).unbind(2)
        )
        scores = torch.einsum("nqhd,nkhd->nhqk", q * (dim // self.heads) ** -0.5, k) + bias
        scores = scores.masked_fill(~same, -torch.inf).softmax(-1)
        return self.proj(torch.einsum("nhqk,nkhd->nqhd", scores, v).flatten(2)).view_as(x)


class Mlp(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, shift: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn, self.mlp = Attention(dim, heads, WINDOW, shift), Mlp(dim)
        if shift:
            self.register_buffer("attn_mask", torch.zeros(1, WINDOW**2, WINDOW**2))

    def forward(self, x: Tensor, always_shift: bool) -> Tensor:
        shift = self.attn.shift if always_shift or x.shape[1] > WINDOW else 0
        x = x + self.attn(self.norm1(x), shift)
        return x + self.mlp(self.norm2(x))


class Reduction(nn.Module):
    """Four neighbours become one place: rows vary faster than columns."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        four = [x[:, dy::2, dx::2] for dx in (0, 1) for dy in (0, 1)]
        return self.reduction(self.norm(torch.cat(four, -1)))


class Swin(nn.Module):
    """Microsoft's layout: a stage ends with its reduction.

    With ``always_shift`` as in the networks for detection, which take any size; else as in those
    for classification, which do not shift a map of one window.
    """

    def __init__(self, head: int = 0) -> None:
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, WIDTH, 4, 4)
        self.patch_embed.norm = nn.LayerNorm(WIDTH)
        self.layers = nn.ModuleList()
        for stage, (depth, heads) in enumerate(zip(DEPTHS, HEADS, strict=True)):
            dim, layer = WIDTH * 2**stage, nn.Module()
            layer.blocks = nn.ModuleList(
                Block(dim, heads, WINDOW // 2 * (i % 2)) for i in range(depth)
            )
            if stage < 3:
                layer.downsample = Reduction(dim)
            self.layers.append(layer)
        self.norm = nn.LayerNorm(8 * WIDTH)
        if head:
            self.head = nn.Linear(8 * WIDTH, head)

    def stages(self, x: Tensor, *, always_shift: bool = True) -> list[Tensor]:
        """Images -> the four raw stages (N, C, h, w)."""
        x = self.patch_embed.norm(self.patch_embed.proj(x).permute(0, 2, 3, 1))
        found = []
        for layer in self.layers:
            for block in layer.blocks:
                x = block(x, always_shift)
            found.append(x.permute(0, 3, 1, 2))
            x = layer.downsample(x) if hasattr(layer, "downsample") else x
        return found

    def pooled(self, last: Tensor) -> Tensor:
        """The raw last stage -> (N, C)."""
        return self.norm(last.permute(0, 2, 3, 1)).mean((1, 2))


def _conv(a: int, b: int, kernel: int) -> list[nn.Module]:
    conv = nn.Conv2d(a, b, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(b), nn.ReLU()]


class FoundationX(Swin):
    """The trunk with the classifiers and the segmentation of Foundation X."""

    def __init__(self) -> None:
        super().__init__(head=5)
        last = 8 * WIDTH
        self.classification_heads = nn.ModuleList(nn.Linear(last, n) for n in CLASSES)
        self.segmentation_PPN = nn.Module()
        self.segmentation_PPN.stages = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), *_conv(last, last // 4, 1)) for b in (1, 2, 4, 6)
        )
        self.segmentation_PPN.bottleneck = nn.Sequential(*_conv(2 * last, last, 3))
        fpn = self.segmentation_FPN = nn.Module()
        fpn.conv1x1 = nn.ModuleList(nn.Conv2d(WIDTH * 2**i, WIDTH, 1) for i in (1, 2, 3))
        fpn.smooth_conv = nn.ModuleList([nn.Conv2d(WIDTH, WIDTH, 3, padding=1)] * 3)
        fpn.conv_fusion = nn.Sequential(*_conv(4 * WIDTH, WIDTH, 3))
        self.segmentation_heads = nn.ModuleList(nn.Conv2d(WIDTH, n, 3, padding=1) for n in MASKS)
        for i in (1, 2, 3):
            self.add_module(f"Locnorm{i}", nn.LayerNorm(WIDTH * 2**i))
        for i in range(4):
            self.add_module(f"Segnorm{i}", nn.LayerNorm(WIDTH * 2**i))

    def masks(self, stages: list[Tensor], head: int) -> Tensor:
        """Raw stages -> logits of one head at the size of the images."""

        def to(x: Tensor, like: Tensor) -> Tensor:
            return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=True)

        last, fpn = stages[3], self.segmentation_FPN
        views = [last, *(to(stage(last), last) for stage in self.segmentation_PPN.stages)]
        last = self.segmentation_PPN.bottleneck(torch.cat(views, 1))
        f1 = stages[0]
        f2, f3, f4 = (c(x) for c, x in zip(fpn.conv1x1, (stages[1], stages[2], last), strict=True))
        smooth = fpn.smooth_conv[0]
        p1, p2, p3 = smooth(f1 + to(f2, f1)), smooth(f2 + to(f3, f2)), smooth(f3 + to(f4, f3))
        fused = fpn.conv_fusion(torch.cat([p1, to(p2, p1), to(p3, p1), to(f4, p1)], 1))
        logits = self.segmentation_heads[head](fused)
        return F.interpolate(logits, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


DINO = {  # of X+; X has a number behind "decoder", "tgt_embed", "enc_output" and more aliases
    "input_proj.0.0.weight": (8, 48, 1, 1),
    "label_enc.weight": (16, 8),
    "transformer.level_embed": (4, 8),
    "transformer.encoder.layers.0.self_attn.value_proj.weight": (8, 8),
    "transformer.decoder.layers.0.linear1.weight": (8, 8),
    "transformer.decoder.class_embed.0.0.weight": (14, 8),
    "transformer.enc_out_bbox_embed.0.layers.0.weight": (8, 8),
    "transformer.tgt_embed.0.weight": (9, 8),
    "bbox_embed.0.0.layers.0.weight": (8, 8),
    "class_embed_.0.0.weight": (14, 8),
}


def shaken(model: nn.Module, seed: int = 0) -> Any:
    """Weights and statistics away from their start values, where a mistake would not show."""
    rng = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if value.is_floating_point() and "attn_mask" not in name:
            noise = torch.randn(value.shape, generator=rng)
            value += (0.3 if value.dim() < 2 or "table" in name else 0.02) * noise
            if name.endswith("running_var"):
                value.abs_()
    return model.eval()


def foundation_x_file(student: nn.Module, teacher: nn.Module, *, plus: bool) -> dict[str, Any]:
    """What the released code saves after a slot."""

    def weights(model: nn.Module) -> dict[str, Tensor]:
        dino = {k: torch.ones(shape) for k, shape in DINO.items()}
        if not plus:
            dino = {k.replace("decoder.layers", "decoder.0.layers"): v for k, v in dino.items()}
        return {f"backbone.0.{k}": v for k, v in model.state_dict().items()} | dino

    state = {"state": {0: {"step": torch.tensor(1.0)}}, "param_groups": [{"lr": 1e-4}]}
    both = {"model": weights(student), "teacher_model": weights(teacher)}
    return {**both, "optimizer": state, "epoch": 930}
