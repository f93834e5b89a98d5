"""Convolutions in the place of a patch embedding, for trunks that start from random weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# The sources take turns, and the running statistics are to be those of all of them.
_MOMENTUM = 0.02


def _conv_norm(in_dim: int, dim: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(dim, momentum=_MOMENTUM))


class _Residual(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = _conv_norm(dim, dim), _conv_norm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(F.relu(self.first(x))))


class ConvStem(nn.Module):
    """Two steps of stride 2 and residual blocks at stride 4.

    Batch normalisation on purpose: normalising every image or place by itself, as the blocks after
    it do, takes away by how much it differs from other images, and training from random weights
    took many times as long with it.

    Args:
        in_channels: of the images.
        dim: channels of the result.
        blocks: residual blocks.
    """

    def __init__(self, in_channels: int, dim: int, blocks: int = 3) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            [_conv_norm(in_channels, dim // 2, 2), _conv_norm(dim // 2, dim, 2)]
        )
        self.blocks = nn.Sequential(*(_Residual(dim) for _ in range(blocks)))
        self.embed = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, dim, H / 4, W / 4)."""
        for step in self.down:
            x = F.relu(step(x))
        return self.embed(self.blocks(x))
