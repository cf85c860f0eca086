"""Correspondence-aware attention: each token of a view attends to the places of other views that show the same thing
(Tang et al. 2023, section 4, equation 2). New blocks change nothing until they are trained.

Modules are named as in the released weights, also those whose names say otherwise: ``bn`` are group norms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from threedgen.geometry.warp import sample

from .by_token import Places, attend
from .geometry import Keys

Encoding = Literal["reference", "capped"]
HEAD = 32
"""Channels of an attention head."""
CHUNK = {"cpu": 1 << 21, "cuda": 1 << 24}
"""So many numbers of keys are held at a time, several times over: memory goes to them. Caches like few, GPUs many."""
TABLES = 1 << 25
"""So many numbers the tables of ``by_token.py`` may hold."""
FEED = 8
"""Numbers that a feed-forward layer holds for each one that it is given."""


def frequencies(count: int, encoding: Encoding) -> Tensor:
    """Lists ``count`` frequencies of the positional encoding, float32.

    reference: powers of two, or from 81 on of a number that takes 40 % of them to 5000. In float32 most of the
    higher ones turn rounding into noise, which released weights have learned to live with. capped: from 1/4 to 64 in
    equal ratios, periods from 25 down to a tenth of a token (or metre), all of which float32 can tell apart.
    """
    if encoding == "capped":
        return torch.logspace(-2, 6, count, base=2.0)
    base = 2.0 if count <= 80 else 5000.0 ** (2.5 / count)
    return base ** torch.arange(count, dtype=torch.float32)


class PositionalEncoding(nn.Module):
    """Sines, then cosines, of displacements or depth differences at many frequencies: ``dim`` channels.

    relation_dim: 2 for displacements: dim / 4 frequencies, [sin x, sin y, cos x, cos y].  1 for depths: dim / 2
    frequencies; then ``reference`` takes tokens in pairs (a, b), of which a gets [sin a, sin b] and b gets
    [cos a, cos b], as released weights have it; ``capped`` gives each its own [sin, cos].
    """

    freq_bands: Tensor

    def __init__(self, dim: int, relation_dim: int, encoding: Encoding = "reference") -> None:
        super().__init__()
        self.paired = relation_dim == 1 and encoding == "reference"
        self.register_buffer("freq_bands", frequencies(dim // (2 * relation_dim), encoding)[None, None])

    def forward(self, relation: Tensor) -> Tensor:
        """(T, S, relation_dim) -> (T, S, dim). Raises ValueError for an odd number T S of tokens that form pairs."""
        if self.paired and relation.numel() % 2:
            raise ValueError("depth differences are encoded in pairs, so the tokens of a map should be even in number")
        tokens = relation.reshape(-1, 2) if self.paired else relation.flatten(0, 1)
        angles = (tokens[:, :, None] * self.freq_bands[0]).flatten(1)
        return torch.cat([angles.sin(), angles.cos()], dim=1).reshape(*relation.shape[:2], -1)


class Attention(nn.Module):
    """Multi-head attention in which each query (T,1,d) has keys of its own (T,S,d)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.to_out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """(T,d), (T,S,d) -> (T,d)."""
        return self.output((self.queries(query) @ keys.mT).softmax(-1) @ keys)

    def queries(self, query: Tensor) -> Tensor:
        """(...,d) -> (...,H,d), of each head, in the space of the keys.

        q (W n) = (W^T q) n: with one query for S keys the layers are about S times cheaper on the query's side.
        """
        queries = self.to_q(query).unflatten(-1, (-1, HEAD)) * HEAD**-0.5
        return torch.einsum("...hc,hcd->...hd", queries, self.to_k.weight.view(-1, HEAD, query.shape[-1]))

    def output(self, found: Tensor) -> Tensor:
        """Sums of keys (...,H,d) -> (...,d)."""
        values = torch.einsum("...hd,hcd->...hc", found, self.to_v.weight.view(-1, HEAD, found.shape[-1]))
        return self.to_out(values.flatten(-2))


class Transformer(nn.Module):
    """Attention and a feed-forward layer, both residual; query and keys share a norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn1, self.ff = Attention(dim), FeedForward(dim, activation_fn="geglu")
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        for layer in (self.attn1.to_out, self.ff.net[2]):
            zero(layer)

    def attend(self, x: Tensor, query_encoding: Tensor, keys: Tensor) -> Tensor:
        """Tokens (...,T,d), what is added to queries (T,d), encoded keys (...,T,S,d) -> (...,T,d)."""
        query = self.norm1(x + query_encoding)
        return x + self.attn1(query.flatten(0, -2), self.norm1(keys).flatten(0, -3)).view_as(x)

    def feed(self, x: Tensor) -> Tensor:
        """Tokens (...,d) -> the same."""
        return x + self.ff(self.norm2(x))


class PanoramaBlock(nn.Module):
    """Correspondence-aware attention on feature maps of ``dim`` channels, a multiple of 32.

    by_token: small maps on a CPU are left to ``by_token.py``.  Elsewhere, checkpointing: activations are computed
    again for the gradient; chunk: instead of what ``CHUNK`` says.
    """

    relation_dim = 2

    def __init__(self, dim: int, encoding: Encoding = "reference") -> None:
        super().__init__()
        if dim % HEAD:
            raise ValueError(f"the channels should be a multiple of {HEAD} (got {dim})")
        self.transformer = Transformer(dim)
        self.pe = PositionalEncoding(dim, self.relation_dim, encoding)
        self.by_token = self.checkpointing = True
        self.chunk: int | None = None

    def forward(self, x: Tensor, keys: Sequence[Keys], n_view: int) -> Tensor:
        """(B F, d, h, w) -> the same; ``keys`` of each view of one or more scenes, which the batch repeats."""
        if small := self._is_small(x, keys):
            tokens = self._by_token(x, keys, n_view)
        else:
            maps = x.unflatten(0, (-1, len(keys)))
            attended = (self._view(maps, number, keys[number], n_view) for number in range(len(keys)))
            tokens = torch.stack(tuple(attended), dim=1).flatten(0, 2)  # (no name holds the parts for longer)
        feed = self.transformer.feed if small else partial(self._saving, self.transformer.feed)
        fed = torch.cat([feed(part) for part in tokens.split(self._size(x, FEED))])
        return fed.unflatten(0, (len(x), -1)).mT.reshape(x.shape)

    def _is_small(self, x: Tensor, keys: Sequence[Keys]) -> bool:
        """Is it for ``by_token.py``? Its tables hold as much as all keys of a scene."""
        plain = self.by_token and x.device.type == "cpu" and x.dtype is not torch.float64
        counts = {id(each): each.count for each in keys}.values()
        return plain and sum(counts) * x[0].numel() <= TABLES

    def _by_token(self, x: Tensor, keys: Sequence[Keys], n_view: int) -> Tensor:
        """The tokens (B F T, d) by ``by_token.py``."""
        (height, width), tokens, transformer = x.shape[-2:], x.flatten(2).mT, self.transformer
        different = {id(each): each for each in keys}  # scenes may share a geometry
        places = {name: Places.of(each, self._encoding(each), height, width) for name, each in different.items()}
        queries = transformer.attn1.queries(transformer.norm1(tokens + self._query_encoding(tokens)))
        found = attend(queries, tokens, [places[id(each)] for each in keys], n_view, transformer.norm1)
        return (tokens + transformer.attn1.output(found)).flatten(0, 1)

    def _encoding(self, keys: Keys) -> Tensor:
        """(T, n P, d) of the relation of each token's keys."""
        return self.pe(keys.relation.transpose(0, 1).flatten(1, 2))

    def _query_encoding(self, tokens: Tensor) -> Tensor:
        """What is added to queries (...,T,d): of no displacement, (T,d)."""
        zeros = tokens.new_zeros(tokens.shape[-2], 1, self.relation_dim, dtype=torch.float32)
        return self.pe(zeros)[:, 0].to(tokens)

    def _view(self, maps: Tensor, number: int, keys: Keys, n_view: int) -> Tensor:
        """The tokens (R,T,d) of a view in each of the R repeats (R,V,d,h,w) of the scenes, chunk by chunk."""
        tokens, others = maps[:, number].flatten(2).mT, maps[:, number - number % n_view + keys.views]
        size = self._size(maps[0], len(maps) * keys.count)
        starts = range(0, tokens.shape[1], size)
        attended = [
            self._saving(self._attend, tokens[:, a : a + size], others, keys.tokens(a, a + size)) for a in starts
        ]
        return torch.cat(attended, dim=1)

    def _size(self, x: Tensor, count: int) -> int:
        """The tokens of a chunk, each with ``count`` others (V,d,h,w): even, so that no pair of them is taken apart."""
        return max(2, (self.chunk or CHUNK.get(x.device.type, CHUNK["cpu"])) // (count * x.shape[1]) // 2 * 2)

    def _saving(self, function: Callable[..., Tensor], *given: Any) -> Tensor:
        """Calls a function whose activations are computed again for the gradient."""
        if torch.is_grad_enabled() and self.checkpointing:
            return cast(Tensor, checkpoint(function, *given, use_reentrant=False))
        return function(*given)

    def _attend(self, tokens: Tensor, others: Tensor, keys: Keys) -> Tensor:
        """Tokens (R,T,d) and the maps (R,n,d,h,w) of the other views -> (R,T,d)."""
        places = keys.places.repeat(len(tokens), 1, 1, 1)
        found = sample(others.flatten(0, 1), places).unflatten(0, others.shape[:2])
        found = found.permute(0, 3, 1, 4, 2).flatten(2, 3)  # (R, T, n P, d)
        mask = keys.mask[..., None].transpose(0, 1).flatten(1, 2)
        # what is masked stays a key: a token of zeros, which the norm turns into its bias
        encoded = (found + self._encoding(keys).to(found)) * mask.to(found)
        return self.transformer.attend(tokens, self._query_encoding(tokens), encoded)


class DepthAttention(PanoramaBlock):
    """The same, its keys told apart by the difference of depths."""

    relation_dim = 1


class ResidualConvolution(nn.Module):
    """Two convolutions, each after a norm and ReLU, added to their input."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.GroupNorm(32, dim), nn.GroupNorm(32, dim)
        zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        """(B,d,h,w) -> the same."""
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class DepthBlock(nn.Module):
    """Attention by depth, then a residual convolution, without which it is less than half as large."""

    def __init__(self, dim: int, encoding: Encoding = "reference", convolution: bool = True) -> None:
        super().__init__()
        self.attn1 = DepthAttention(dim, encoding)
        self.resnet = ResidualConvolution(dim) if convolution else nn.Identity()

    def forward(self, x: Tensor, keys: Sequence[Keys], n_view: int) -> Tensor:
        """As ``PanoramaBlock``."""
        return self.resnet(self.attn1(x, keys, n_view))


def zero(layer: nn.Module) -> None:
    """Sets all parameters to zero, so that a residual branch begins as the identity."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
