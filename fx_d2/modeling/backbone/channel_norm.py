"""LayerNorm over the channels of an NCHW map."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ChannelNorm(nn.LayerNorm):
    """``nn.LayerNorm`` over the channels, for ``(N, C, H, W)`` and for ``(N, C)``.

    A subclass, so that whatever treats ``nn.LayerNorm`` in a special way (no weight decay) treats
    this alike; its parameters are those of a channels-last LayerNorm.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every position over its channels; the shape stays."""
        if x.dim() == 2:
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        last = x.permute(0, 2, 3, 1)
        last = F.layer_norm(last, self.normalized_shape, self.weight, self.bias, self.eps)
        return last.permute(0, 3, 1, 2)
