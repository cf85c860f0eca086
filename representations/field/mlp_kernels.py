"""MLP with one hidden layer on GPUs with Triton: hidden values stay on the chip, forward and backward.

One program computes blocks of points. The backward kernel computes the hidden values again; each program adds the
gradients of the weights over its blocks, and the sum over programs has a fixed order, so all results are
deterministic. Products have the accuracy of float32, because each is the sum of three TF32 products on tensor cores;
only the gradients of the weights, sums over many points, are computed in TF32.

Arrays in float32, for N points with I inputs, H hidden values and O outputs each: inputs x (N, I) and outputs (N, O),
with any strides; weights `w` (H, I) of the hidden layer with ReLU and `v` (O, H) of the linear output layer,
contiguous. I and H are at most 64, O is at most 16.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 32  # points per block
SMALLEST = 16  # side of the smallest matrix of `tl.dot`
PROGRAMS_PER_PROCESSOR = 2  # of the backward kernel
WARPS = {"num_warps": 8}  # with 4, the backward kernel would spill registers


@triton.jit
def _load(at, rows, row_stride, row_count, columns, column_stride, column_count):
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    inside = (rows < row_count)[:, None] & (columns < column_count)[None, :]
    return tl.load(at + offsets, mask=inside, other=0.0)


@triton.jit
def _store(at, values, rows, row_stride, row_count, columns, column_stride, column_count):
    offsets = rows.to(tl.int64)[:, None] * row_stride + columns.to(tl.int64)[None, :] * column_stride
    tl.store(at + offsets, values, mask=(rows < row_count)[:, None] & (columns < column_count)[None, :])


@triton.jit
def _product(a, b, PRECISION: tl.constexpr):
    return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def _relu(x):
    return tl.where(x <= 0, 0.0, x)  # NaN stays NaN


@triton.jit
def _forward(
    x, w, v, out, n, x_point, x_feature,
    INPUTS: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr,
    PADDED_INPUTS: tl.constexpr, PADDED_HIDDEN: tl.constexpr, PADDED_OUTPUTS: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    point = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
    i, h, o = tl.arange(0, PADDED_INPUTS), tl.arange(0, PADDED_HIDDEN), tl.arange(0, PADDED_OUTPUTS)
    values = _load(x, i, x_feature, INPUTS, point, x_point, n)
    hidden = _relu(_product(_load(w, h, INPUTS, HIDDEN, i, 1, INPUTS), values, PRECISION))
    result = _product(_load(v, o, HIDDEN, OUTPUTS, h, 1, HIDDEN), hidden, PRECISION)
    _store(out, result, o, 1, OUTPUTS, point, OUTPUTS, n)


@triton.jit
def _backward(
    x, w, v, grad, grad_x, grad_w, grad_v, n, blocks, x_point, x_feature, grad_point, grad_output,
    INPUTS: tl.constexpr, HIDDEN: tl.constexpr, OUTPUTS: tl.constexpr,
    PADDED_INPUTS: tl.constexpr, PADDED_HIDDEN: tl.constexpr, PADDED_OUTPUTS: tl.constexpr,
    SIZE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    i, h, o = tl.arange(0, PADDED_INPUTS), tl.arange(0, PADDED_HIDDEN), tl.arange(0, PADDED_OUTPUTS)
    hidden_weights = _load(w, h, INPUTS, HIDDEN, i, 1, INPUTS)
    output_weights = _load(v, o, HIDDEN, OUTPUTS, h, 1, HIDDEN)
    total_w = tl.zeros((PADDED_HIDDEN, PADDED_INPUTS), tl.float32)
    total_v = tl.zeros((PADDED_OUTPUTS, PADDED_HIDDEN), tl.float32)
    for block in range(program, blocks, tl.num_programs(0)):
        point = block * SIZE + tl.arange(0, SIZE)
        values = _load(x, i, x_feature, INPUTS, point, x_point, n)
        hidden = _relu(_product(hidden_weights, values, PRECISION))
        g = _load(grad, o, grad_output, OUTPUTS, point, grad_point, n)
        total_v += _product(g, tl.trans(hidden), "tf32")
        to_hidden = tl.where(hidden > 0, _product(tl.trans(output_weights), g, PRECISION), 0.0)
        total_w += _product(to_hidden, tl.trans(values), "tf32")
        _store(grad_x, _product(tl.trans(hidden_weights), to_hidden, PRECISION), i, n, INPUTS, point, 1, n)
    _store(grad_w + program.to(tl.int64) * HIDDEN * INPUTS, total_w, h, INPUTS, HIDDEN, i, 1, INPUTS)
    _store(grad_v + program.to(tl.int64) * OUTPUTS * HIDDEN, total_v, o, HIDDEN, OUTPUTS, h, 1, HIDDEN)


# --- tensor interface ------------------------------------------------------------------------------------


def mlp(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
    """Return relu(x @ w.T) @ v.T: outputs (N, O) for inputs x (N, I), with weights w (H, I) and v (O, H)."""
    out = x.new_empty(len(x), len(v))
    inputs = x, w.contiguous(), v.contiguous(), out, len(x), *x.stride()
    _forward[(triton.cdiv(len(x), BLOCK),)](*inputs, **compile_time_arguments(w, v), **WARPS)
    return out


def mlp_gradients(grad: Tensor, x: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x (N, I), w (H, I) and v (O, H), given the gradient `grad` (N, O) of the output of `mlp`.

    The differentiated function is relu(x @ w.T) @ v.T.
    """
    blocks = triton.cdiv(len(x), BLOCK)
    programs = min(blocks, PROGRAMS_PER_PROCESSOR * _processors(x.device))
    grad_x = x.new_empty(x.shape[1], len(x))  # the order in which the hash grid reads it
    grad_w, grad_v = w.new_empty(programs, *w.shape), v.new_empty(programs, *v.shape)
    arrays = x, w.contiguous(), v.contiguous(), grad, grad_x, grad_w, grad_v
    _backward[(programs,)](
        *arrays, len(x), blocks, *x.stride(), *grad.stride(), **compile_time_arguments(w, v), **WARPS
    )
    return grad_x.t(), grad_w.sum(dim=0), grad_v.sum(dim=0)


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def compile_time_arguments(w: Tensor, v: Tensor) -> dict[str, int | str]:
    """Return the compile-time arguments of the Triton kernels of an MLP, for its weights w (H, I) and v (O, H).

    "INPUTS" is I, "HIDDEN" is H, "OUTPUTS" is O. The same names with the prefix "PADDED_" are these sizes, rounded up
    to powers of two of at least 16. "SIZE" is the number of input rows per block, and "PRECISION" is tl.dot's
    `input_precision`.
    """
    sizes = {"INPUTS": w.shape[1], "HIDDEN": w.shape[0], "OUTPUTS": v.shape[0]}
    padded = {f"PADDED_{name}": max(SMALLEST, triton.next_power_of_2(size)) for name, size in sizes.items()}
    return {**sizes, **padded, "SIZE": BLOCK, "PRECISION": "tf32x3"}
