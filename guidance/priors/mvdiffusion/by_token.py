"""Correspondence-aware attention on a CPU, token by token, so that the keys of a token stay in the cache."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numba
import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from threedgen.run.arrays import Array

from .geometry import Keys


class Places(NamedTuple):
    """Positions in other views that the T tokens of one view attend to: S positions (keys) for each token.

    Attributes:
        image: (S,), index in the scene of the view of each key.
        token: (T, S, 4), indices of the four tokens around each position.
        weight: (T, S, 4), bilinear weights of these tokens; 0 outside the feature map.
        valid: (T, S) bool, False for a masked key.
        encoding: (T, S, d), positional encoding of each key.
    """

    image: Array
    token: Array
    weight: Array
    valid: Array
    encoding: Array

    @classmethod
    def of(cls, keys: Keys, encoding: Tensor, height: int, width: int) -> Places:
        """Build the tables from `keys` on a feature map of height x width tokens; `encoding` is (T, S, d)."""
        places, mask = (table.transpose(0, 1).flatten(1, 2) for table in (keys.places, keys.mask))
        places = places.nan_to_num(nan=-9.0).clamp(-9.0, max(height, width) + 9.0)  # far outside is just outside
        low = places.floor()
        corner = low[:, :, None] + low.new_tensor([[0, 0], [1, 0], [0, 1], [1, 1]])  # (T, S, 4, 2)
        weight = (1 - (places[:, :, None] - corner).abs()).prod(-1)
        limits = low.new_tensor([width - 1, height - 1])
        weight = weight * ((corner >= 0) & (corner <= limits)).all(-1)
        x, y = corner.minimum(limits).clamp(min=0).long().unbind(-1)
        token = (y * width + x).int().contiguous()
        image = keys.views.repeat_interleave(keys.places.shape[2])
        tables = (weight.contiguous(), mask > 0, encoding.float().contiguous())
        return cls(image.numpy(), token.numpy(), *(table.numpy() for table in tables))


def attend(queries: Tensor, tokens: Tensor, places: Sequence[Places], n_view: int, norm: nn.LayerNorm) -> Tensor:
    """Compute softmax(q k) k over the keys k of each token, (B, T, H, d), with gradients.

    A key is `norm` of the bilinearly interpolated tokens plus their positional encoding. A masked key is `norm` of
    zeros, the bias of the norm; it still takes part in the softmax.

    Args:
        queries: (B, T, H, d), one for each of H heads, already multiplied by the key projection.
        tokens: (B, T, d), tokens of B views; the views of a scene are consecutive.
        places: one entry for each view of one or more scenes; the batch may repeat these scenes.
        n_view: number of views per scene.
        norm: layer norm of the keys, over d features.
    """
    inputs = (part.float() for part in (queries, tokens, norm.weight, norm.bias))
    return _Attend.apply(*inputs, places, n_view, norm.eps).to(queries.dtype)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        tokens: Tensor,
        scale: Tensor,
        bias: Tensor,
        places: Sequence[Places],
        n_view: int,
        eps: float,
    ) -> Tensor:
        inputs = [part.detach().contiguous() for part in (queries, tokens, scale, bias)]
        ctx.save_for_backward(*inputs)
        ctx.options = places, n_view, eps
        out = torch.empty_like(inputs[0])
        for number, first, at in _views(len(tokens), places, n_view):
            _forward(number, first, _arrays(inputs), at, eps, out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inputs, (places, n_view, eps), grad = ctx.saved_tensors, ctx.options, grad.contiguous()
        grads = [torch.zeros_like(part) for part in inputs]
        for number, first, at in _views(len(grad), places, n_view):
            _backward(number, first, _arrays(inputs), at, eps, grad.numpy(), _arrays(grads))
        return (*grads, None, None, None)


def _arrays(tensors: Sequence[Tensor]) -> tuple[Array, ...]:
    return tuple(tensor.numpy() for tensor in tensors)


def _views(count: int, places: Sequence[Places], n_view: int) -> list[tuple[int, int, Places]]:
    return [(number, number - number % n_view, places[number % len(places)]) for number in range(count)]


@numba.njit(cache=True, fastmath=True, nogil=True)
def _keys(t, first, tokens, scale, bias, at, eps, key, normal, spread, which):
    """Write the unmasked keys of token t to the buffers; return the number of unmasked and of masked keys.

    Buffers: key and normal (S + 1, d), normalised tokens with and without scale and bias; spread (S,), 1 / standard
    deviation; which (S,), index of each key. The row of `key` after the unmasked keys is that of all masked keys.
    """
    d, count = tokens.shape[2], 0
    for s in range(len(at.image)):
        if not at.valid[t, s]:
            continue
        line, scene_view = normal[count], first + at.image[s]
        for k in range(d):
            line[k] = at.encoding[t, s, k]
        for corner in range(4):
            share, place = at.weight[t, s, corner], at.token[t, s, corner]
            if share != 0:
                for k in range(d):
                    line[k] += share * tokens[scene_view, place, k]
        mean = np.float32(0)
        for k in range(d):
            mean += line[k]
        mean /= d
        square = np.float32(0)
        for k in range(d):
            line[k] -= mean
            square += line[k] * line[k]
        over = np.float32(1) / np.sqrt(square / d + np.float32(eps))
        for k in range(d):
            line[k] *= over
            key[count, k] = line[k] * scale[k] + bias[k]
        spread[count], which[count] = over, s
        count += 1
    masked = len(at.image) - count
    if masked:
        key[count] = bias
    return count, masked


@numba.njit(cache=True, fastmath=True, nogil=True)
def _shares(query, key, count, masked, share):
    """Write the softmax weights of the keys to `share` (S + 1,); entry `count` is the sum for all masked keys."""
    total = count + (masked > 0)
    for s in range(total):
        score = np.float32(0)
        for k in range(len(query)):
            score += query[k] * key[s, k]
        share[s] = score
    most = share[:total].max()
    whole = np.float32(0)
    for s in range(total):
        share[s] = np.exp(share[s] - most) * (np.float32(1) if s < count else np.float32(masked))
        whole += share[s]
    for s in range(total):
        share[s] /= whole
    return total


@numba.njit(cache=True, fastmath=True, nogil=True)
def _forward(number, first, inputs, at, eps, out):
    queries, tokens, scale, bias = inputs
    heads, d, places = queries.shape[2], queries.shape[3], len(at.image)
    key, normal = np.empty((places + 1, d), np.float32), np.empty((places + 1, d), np.float32)
    spread, share, which = np.empty(places, np.float32), np.empty(places + 1, np.float32), np.empty(places, np.int64)
    for t in range(tokens.shape[1]):
        count, masked = _keys(t, first, tokens, scale, bias, at, eps, key, normal, spread, which)
        for h in range(heads):
            total = _shares(queries[number, t, h], key, count, masked, share)
            result = out[number, t, h]
            result[:] = 0
            for s in range(total):
                for k in range(d):
                    result[k] += share[s] * key[s, k]


@numba.njit(cache=True, fastmath=True, nogil=True)
def _backward(number, first, inputs, at, eps, grad, grads):
    """Add the gradients of one view to `grads`, the gradients of the inputs of `_forward`."""
    (queries, tokens, scale, bias), (grad_queries, grad_tokens, grad_scale, grad_bias) = inputs, grads
    heads, d, places = queries.shape[2], queries.shape[3], len(at.image)
    key, normal = np.empty((places + 1, d), np.float32), np.empty((places + 1, d), np.float32)
    spread, share, which = np.empty(places, np.float32), np.empty(places + 1, np.float32), np.empty(places, np.int64)
    grad_key, dots = np.empty((places + 1, d), np.float32), np.empty(places + 1, np.float32)
    for t in range(tokens.shape[1]):
        count, masked = _keys(t, first, tokens, scale, bias, at, eps, key, normal, spread, which)
        grad_key[:] = 0
        for h in range(heads):
            query, above, below = queries[number, t, h], grad[number, t, h], grad_queries[number, t, h]
            total, mean = _shares(query, key, count, masked, share), np.float32(0)
            for s in range(total):
                dot = np.float32(0)
                for k in range(d):
                    dot += above[k] * key[s, k]
                dots[s] = dot
                mean += share[s] * dot
            for s in range(total):
                slope, part = share[s] * (dots[s] - mean), share[s]
                for k in range(d):
                    below[k] += slope * key[s, k]
                    grad_key[s, k] += part * above[k] + slope * query[k]
        if masked:
            for k in range(d):
                grad_bias[k] += grad_key[count, k]
        for s in range(count):
            line, slope = normal[s], grad_key[s]
            mean, along = np.float32(0), np.float32(0)
            for k in range(d):
                grad_bias[k] += slope[k]
                grad_scale[k] += slope[k] * line[k]
                slope[k] *= scale[k]
                mean += slope[k]
                along += slope[k] * line[k]
            mean /= d
            along /= d
            for k in range(d):
                slope[k] = spread[s] * (slope[k] - mean - along * line[k])
            place = which[s]
            for corner in range(4):
                part = at.weight[t, place, corner]
                if part != 0:
                    below = grad_tokens[first + at.image[place], at.token[t, place, corner]]
                    for k in range(d):
                        below[k] += part * slope[k]
