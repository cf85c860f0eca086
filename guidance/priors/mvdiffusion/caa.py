"""Correspondence-aware attention: a token attends to the positions in other views that show the same 3D point.

Implements Tang et al. 2023 (MVDiffusion), section 4, equation 2. New blocks start as the identity. Modules have the
names that they have in MVDiffusion's published weights; modules named `bn` are group norms.
"""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from diffusers.models.attention import FeedForward
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from threedgen.geometry.warp import sample
from threedgen.run.memory import to_device

from .geometry import KeyPositions

Encoding = Literal["reference", "capped"]
HEAD = 32  # channels of an attention head
CHUNK = {"cpu": 1 << 21, "cuda": 1 << 26}
"""Largest number of elements (tokens x keys per token x channels) of the keys of a chunk, by device. A chunk is a set
of tokens whose attention is computed in one call; on a CPU, its keys should fit into the cache."""
MAX_KEPT = 1 << 25
"""Number of elements of all keys (tokens x keys per token x channels) above which the backward pass recomputes
activations instead of storing them."""
FEED_FACTOR = 8
"""Elements that a feed-forward layer holds in memory per element of its input; limits the size of its chunks."""


def frequencies(count: int, encoding: Encoding) -> Tensor:
    """Return the (count,) float32 frequencies of the positional encoding of displacements or depth differences.

    Units are radians per token for displacements, radians per unit of length for depth differences. "reference", the
    encoding of MVDiffusion's published weights: base ** n for n = 0, 1, ..., count - 1, where base is 2, or
    5000 ** (2.5 / count) if count > 80. "capped": a geometric series from 1/4 to 64.
    """
    if encoding == "capped":
        return torch.logspace(-2, 6, count, base=2.0)
    base = 2.0 if count <= 80 else 5000.0 ** (2.5 / count)
    return base ** torch.arange(count, dtype=torch.float32)


class PositionalEncoding(nn.Module):
    """Positional encoding of keys (positions that tokens attend to): sines and cosines, `dim` channels per key.

    `forward` maps relations (T, S, relation_dim), for S keys of each of T tokens, to (T, S, dim). A relation is a
    displacement in tokens (panoramas, relation_dim 2) or a depth difference (relation_dim 1), see `KeyPositions`.
    Below, sin x stands for F channels: the sines of x times each of F = dim / (2 relation_dim) frequencies.

    - A displacement (x, y) becomes [sin x, sin y, cos x, cos y].
    - A depth difference x becomes [sin x, cos x] in the encoding "capped".
    - The encoding "reference" mixes the depth differences of two keys, because MVDiffusion's published weights were
      trained so. Consecutive values a, b of the flattened input form a pair. The first key gets [sin a, sin b], the
      second [cos a, cos b].

    The frequencies of "capped" are a geometric series from 1/4 to 64. Those of "reference" are the powers 0 to F - 1 of
    2, or of 5000^(2.5 / F) if F > 80.
    """

    freq_bands: Tensor

    def __init__(self, dim: int, relation_dim: int, encoding: Encoding = "reference") -> None:
        super().__init__()
        self.paired = relation_dim == 1 and encoding == "reference"
        self.register_buffer("freq_bands", frequencies(dim // (2 * relation_dim), encoding)[None, None])

    def forward(self, relation: Tensor) -> Tensor:
        """Encode the relation of each of T tokens to each of its S keys: (T, S, relation_dim) becomes (T, S, dim).

        A key is a position in another view. For panoramas (relation_dim 2), the relation is the displacement (x, y) in
        tokens from the token to the key. For views with depth (relation_dim 1), it is an absolute depth difference; see
        `KeyPositions`. The encoding "reference" mixes pairs of consecutive depth differences (see the class), so T * S
        must then be even.
        """
        tokens = relation.reshape(-1, 2) if self.paired else relation.flatten(0, 1)
        angles = (tokens[:, :, None] * self.freq_bands[0]).flatten(1)
        return torch.cat([angles.sin(), angles.cos()], dim=1).reshape(*relation.shape[:2], -1)


class Attention(nn.Module):
    """Multi-head attention in which each of T query tokens attends to S keys of its own, which also serve as values.

    `forward` maps queries (T, d) and keys (T, S, d) to outputs (T, d).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.to_out = nn.Linear(dim, dim)

    def forward(self, query: Tensor, keys: Tensor) -> Tensor:
        """Let each of T query tokens (T, d) attend to its own S key tokens (T, S, d); return (T, d)."""
        return self.project_sums((self.project_queries(query) @ keys.mT).softmax(-1) @ keys)

    def project_queries(self, query: Tensor) -> Tensor:
        """Project tokens (..., d) to queries (..., H, d) of H heads, for dot products with keys that are not projected.

        The result for each head is u = W^T q / sqrt(c), which has d channels. Here q (c,) is the usual query of the
        head, with c channels, and W (c, d) is the head's key projection. The dot product u . n with an unprojected key
        n (d,) equals the usual score before the softmax, q . (W n) / sqrt(c). So W is applied once per token instead of
        to each of its keys.
        """
        queries = self.to_q(query).unflatten(-1, (-1, HEAD)) * HEAD**-0.5
        return torch.einsum("...hc,hcd->...hd", queries, self.to_k.weight.view(-1, HEAD, query.shape[-1]))

    def project_sums(self, sums: Tensor) -> Tensor:
        """Return the attention output (..., d): value and output projection of `sums` (..., H, d).

        `sums` holds, for each of H heads, the attention-weighted sum of the unprojected keys, with all d channels. The
        value projection is linear, so it is applied once to the sum instead of to each key.
        """
        values = torch.einsum("...hd,hcd->...hc", sums, self.to_v.weight.view(-1, HEAD, sums.shape[-1]))
        return self.to_out(values.flatten(-2))


class Transformer(nn.Module):
    """Transformer block in two residual steps: attention to keys (`attend`), then a feed-forward layer (`feed`).

    `attend(x, query_encoding, keys)` lets each of the tokens x (..., T, d) attend to its own S keys (..., T, S, d):
    features at the positions that show its 3D point in other views. For the queries, it adds the positional encoding
    `query_encoding` (T, d) to the tokens. The caller adds the keys' positional encoding and sets masked keys to zero;
    there is no other mask. Queries and keys share one layer norm. `feed(x)` takes tokens (..., d). Both steps return
    tokens in the shape of x.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn1, self.ff = Attention(dim), FeedForward(dim, activation_fn="geglu")
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        for layer in (self.attn1.to_out, self.ff.net[2]):
            zero(layer)

    def attend(self, x: Tensor, query_encoding: Tensor, keys: Tensor) -> Tensor:
        """Return `x` (..., T, d) plus the attention of each of its tokens to S keys, without the feed-forward layer.

        `query_encoding` (T, d) is the positional encoding of the tokens. `keys` (..., T, S, d), from which the values
        are computed too, already contain their positional encoding.
        """
        query = self.norm1(x + query_encoding)
        return x + self.attn1(query.flatten(0, -2), self.norm1(keys).flatten(0, -3)).view_as(x)

    def feed(self, x: Tensor) -> Tensor:
        return x + self.ff(self.norm2(x))


Call = Callable[..., Tensor]
"""Function that returns a tensor, or wrapper (function, *arguments) -> tensor, such as `called` and `recomputed`."""


def called(function: Call, *args: object) -> Tensor:
    return function(*args)


def recomputed(function: Call, *args: object) -> Tensor:
    """Call a function under gradient checkpointing: only its arguments stay in memory until the backward pass."""
    return cast(Tensor, checkpoint(function, *args, use_reentrant=False))


class PanoramaBlock(nn.Module):
    """Correspondence-aware attention between the feature maps of the views of a panorama.

    `forward(x, keys, n_view)` maps features x (B F, d, h, w) of B scenes with F = `n_view` views each to the same
    shape. Each token (cell of a feature map) attends to positions in other views, around the place that shows the same
    3D point. `keys` has these positions, one `KeyPositions` per view. The positional encoding says how far a position
    is from that place: the position is projected back into the token's view, and its displacement from the token is
    encoded. A feed-forward layer follows. The block processes the tokens in chunks. For large feature maps, it
    recomputes activations in the backward pass.
    """

    relation_dim = 2

    def __init__(self, dim: int, encoding: Encoding = "reference") -> None:
        super().__init__()
        if dim % HEAD:
            raise ValueError(f"the channels should be a multiple of {HEAD} (got {dim})")
        self.transformer = Transformer(dim)
        self.pe = PositionalEncoding(dim, self.relation_dim, encoding)

    def forward(self, x: Tensor, keys: Sequence[KeyPositions], n_view: int) -> Tensor:
        """Let each token attend to its corresponding positions in other views, then apply the feed-forward layer.

        Args:
            x: features (B F, d, h, w) of B scenes with F views each; each of the h w cells of a view is a token. The
                result has the same shape.
            keys: one `KeyPositions` per view, which holds the positions in other views to which its tokens attend.
                There are F of them if all scenes share the positions, or B F, scene after scene. If the batch repeats
                the same M scenes in the same order, such as with and without prompt, M F are enough.
            n_view: number F of views per scene.
        """
        maps, large = x.unflatten(0, (-1, len(keys))), sum(each.count for each in keys) * x[0].numel() > MAX_KEPT
        call: Call = recomputed if large and torch.is_grad_enabled() else called
        groups = view_groups(keys, x.device)
        order = torch.tensor([number for group in groups for number in group]).argsort()
        attended = (self._views(maps, group, [keys[number] for number in group], n_view, call) for group in groups)
        tokens = torch.cat(tuple(attended), dim=1)  # no variable keeps the parts alive
        tokens = (tokens if len(groups) in (1, len(keys)) else tokens[:, to_device(order, x.device)]).flatten(0, 2)
        fed = torch.cat([call(self.transformer.feed, part) for part in tokens.split(self._size(x, FEED_FACTOR))])
        return fed.unflatten(0, (len(x), -1)).mT.reshape(x.shape)

    def _encoding(self, keys: KeyPositions) -> Tensor:
        relation = keys.relation.transpose(1, 2).flatten(2, 3)  # (G, T, n P, r) for G views, see `KeyPositions`
        return self.pe(relation.flatten(0, 1)).unflatten(0, relation.shape[:2])

    def _query_encoding(self, tokens: Tensor) -> Tensor:
        zeros = tokens.new_zeros(tokens.shape[-2], 1, self.relation_dim, dtype=torch.float32)
        return self.pe(zeros)[:, 0].to(tokens)

    def _views(
        self, maps: Tensor, group: Sequence[int], keys: Sequence[KeyPositions], n_view: int, call: Call
    ) -> Tensor:
        # tokens (R, G, T, d) of the G views in `group`, from features (R, V, d, h, w)
        tokens = torch.stack([maps[:, number] for number in group], dim=1).flatten(3).mT
        others = maps[:, torch.stack([k - k % n_view + each.views for k, each in zip(group, keys, strict=True)])]
        size, table = self._size(maps[0], len(maps) * sum(each.count for each in keys)), KeyPositions.stack(keys)
        starts = range(0, tokens.shape[2], size)
        attended = [call(self._attend, tokens[:, :, a : a + size], others, table.tokens(a, a + size)) for a in starts]
        return torch.cat(attended, dim=2)

    def _size(self, x: Tensor, count: int) -> int:
        # tokens per chunk for `count` keys per token; even, so that no pair is split
        return max(2, CHUNK.get(x.device.type, CHUNK["cpu"]) // (count * x.shape[1]) // 2 * 2)

    def _attend(self, tokens: Tensor, others: Tensor, keys: KeyPositions) -> Tensor:
        # tokens (R, G, T, d) of G views attend to maps (R, G, n, d, h, w) of n other views
        places = keys.places.repeat(len(tokens), 1, 1, 1, 1).flatten(0, 1)
        found = sample(others.flatten(0, 2), places).unflatten(0, others.shape[:3])
        found = found.permute(0, 1, 4, 2, 5, 3).flatten(3, 4)  # (R, G, T, n P, d)
        mask = keys.mask[..., None].transpose(1, 2).flatten(2, 3)
        # a masked key is set to zero but stays in the softmax; the layer norm turns it into the bias of the norm
        encoded = (found + self._encoding(keys).to(found)) * mask.to(found)
        return self.transformer.attend(tokens, self._query_encoding(tokens), encoded)


def view_groups(keys: Sequence[KeyPositions], device: torch.device) -> list[list[int]]:
    """Return groups of views whose attention is computed in one call, as lists of indices into `keys`.

    `keys` has one `KeyPositions` per view: the positions in other views to which the tokens of the view attend. On a
    CPU, each view is a group of its own. On other devices, a group consists of views for which three numbers are equal:
    tokens of the view, other views to which it attends, and positions per token in each other view.
    """
    if device.type == "cpu" or CHUNK.get(device.type) == CHUNK["cpu"]:
        return [[number] for number in range(len(keys))]
    groups: dict[torch.Size, list[int]] = {}
    for number, each in enumerate(keys):
        groups.setdefault(each.places.shape, []).append(number)
    return list(groups.values())


class DepthAttention(PanoramaBlock):
    """Attention between posed views with depth: a token attends to positions in other views that show its 3D point.

    `forward(x, keys, n_view)` maps features x (B F, d, h, w) of B scenes with F = `n_view` views each to the same
    shape. `keys` has the positions, one `KeyPositions` per view, from `DepthGeometry`. A feed-forward layer follows.

    The positional encoding shows whether the other view really sees the token's 3D point. It encodes | z - d |, where z
    is the depth of this point from the other camera, and d is the other view's depth map at the position. For the
    authors' published weights, z is the depth from the token's own camera instead.
    """

    relation_dim = 1


class ResidualConvolution(nn.Module):
    """Residual block of two 3 x 3 convolutions, each after a group norm and ReLU: (N, dim, h, w) -> (N, dim, h, w)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(dim, dim, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.GroupNorm(32, dim), nn.GroupNorm(32, dim)
        zero(self.conv2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class DepthBlock(nn.Module):
    """Attention between posed views with depth, then, if `convolution`, a residual block of two convolutions.

    `forward(x, keys, n_view)` maps features x (B F, dim, h, w) of B scenes with F = `n_view` views each to the same
    shape. Each token (cell of a feature map) attends to the positions in other views that show its 3D point. `keys` has
    these positions, one `KeyPositions` per view, from `DepthGeometry`: F of them if all scenes share the positions, or
    B F, scene after scene. If the batch repeats the same M scenes in the same order, M F are enough.
    """

    def __init__(self, dim: int, encoding: Encoding = "reference", convolution: bool = True) -> None:
        super().__init__()
        self.attn1 = DepthAttention(dim, encoding)
        self.resnet = ResidualConvolution(dim) if convolution else nn.Identity()

    def forward(self, x: Tensor, keys: Sequence[KeyPositions], n_view: int) -> Tensor:
        return self.resnet(self.attn1(x, keys, n_view))


def zero(layer: nn.Module) -> None:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
