"""Convolutions in the place of a patch embedding, for trunks that start from random weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

# The sources take turns, and the running statistics are to be those of all of them.
MOMENTUM = 0.02


def _conv_norm(in_dim: int, dim: int, momentum: float, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(in_dim, dim, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(dim, momentum=momentum))


class _Residual(nn.Module):
    def __init__(self, dim: int, momentum: float) -> None:
        super().__init__()
        self.first = _conv_norm(dim, dim, momentum)
        self.second = _conv_norm(dim, dim, momentum)

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
        momentum: weight of a batch in the running statistics.
    """

    def __init__(
        self, in_channels: int, dim: int, blocks: int = 3, momentum: float = MOMENTUM
    ) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"MODEL.FX.TRUNK.STEM_MOMENTUM is {momentum}; it is in (0, 1]")
        widths = ((in_channels, dim // 2), (dim // 2, dim))
        self.down = nn.ModuleList(_conv_norm(*pair, momentum, stride=2) for pair in widths)
        self.blocks = nn.Sequential(*(_Residual(dim, momentum) for _ in range(blocks)))
        self.embed = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, dim, H / 4, W / 4)."""
        for step in self.down:
            x = F.relu(step(x))
        return self.embed(self.blocks(x))
