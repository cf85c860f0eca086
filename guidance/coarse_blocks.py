"""Layers of the coarse predictor: residual blocks for feature maps and feature volumes, cross-attention to a text."""

import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 8  # of the group norms


class Block(nn.Module):
    """Residual block: cross-attention to a text, then two convolutions with kernels of side 3.

    `forward` maps a feature map (B, C, h, w) or volume (B, C, n, n, n) to the same shape. Each position attends to the
    tokens of the text. The input of the first convolution is normalised, then scaled and shifted (FiLM) by values
    computed from a feature vector of the text and, for feature maps, the camera.
    """

    def __init__(
        self,
        channels: int,
        text_width: int,
        heads: int,
        width: int,
        conv: type[nn.Conv2d] | type[nn.Conv3d] = nn.Conv2d,
        attend: bool = True,
    ) -> None:
        """Build the block.

        Args:
            channels: channels C of input and output.
            text_width: features D per token of the text.
            heads: number of attention heads.
            width: length of the feature vector from which scale and shift are computed.
            conv: nn.Conv2d for feature maps, nn.Conv3d for volumes.
            attend: whether the block has cross-attention.
        """
        super().__init__()
        self.heads, self.attend = heads, attend
        if attend:
            self.norm_words = nn.GroupNorm(GROUPS, channels)
            self.query = nn.Linear(channels, channels)
            self.key_value = nn.Linear(text_width, 2 * channels)
            self.words = nn.Linear(channels, channels)
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.first = conv(channels, channels, 3, padding=1)
        self.second = conv(channels, channels, 3, padding=1)
        nn.init.zeros_(self.second.weight)
        self.modulation = nn.Linear(width, 2 * channels)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, text: Tensor, features: Tensor) -> Tensor:
        """Return the block's output for `x`, a feature map (B, C, h, w) or volume (B, C, n, n, n); same shape.

        Args:
            text: tokens (B, L, D) of the caption and of the object code (a vector for what the caption leaves
                unspecified). Each position of `x` attends to them. A block without cross-attention (constructor
                argument `attend`) ignores them.
            features: vectors (B, width) that summarise caption and object code and, for feature maps, the camera. Scale
                and shift of the channels are computed from them.
        """
        if self.attend:
            query = self.query(self.norm_words(x).flatten(2).transpose(1, 2))
            words = self.words(cross_attend(query, self.key_value(text), self.heads))
            x = x + words.transpose(1, 2).unflatten(2, x.shape[2:])
        scale, shift = self.modulation(features).unflatten(1, (-1,) + (1,) * (x.ndim - 2)).chunk(2, 1)
        normed = self.norm(x) * (1 + scale) + shift
        return x + self.second(F.silu(self.first(F.silu(normed))))


def cross_attend(query: Tensor, key_value: Tensor, heads: int) -> Tensor:
    """Compute multi-head attention from queries (B, N, C) to L keys and values; return (B, N, C).

    `key_value` (B, L, 2 C) holds the keys in its first C channels, the values in the others. Plain matrix products are
    used, because L is short (a caption) and torch's fused backward pass is five times slower on a CPU. The scores
    are stored as (L, N), so that the softmax over L runs over columns: twice as fast as over short rows of (N, L).
    """
    parts = (query.to(key_value.dtype), *key_value.chunk(2, -1))
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts)
    weights = (k @ (q * q.shape[-1] ** -0.5).mT).softmax(dim=-2)
    return (weights.to(v.dtype).mT @ v).transpose(1, 2).flatten(2)
