"""Multi-layer perceptron of fields, with kernels for GPUs."""

from itertools import pairwise
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from threedgen.representations.backends import choose, load
from threedgen.run.dtypes import no_autocast

MODULES = {"triton": "threedgen.representations.field.mlp_kernels", "meta": "threedgen.representations.shapes_only"}
"""Back end -> import path of a module with the functions `mlp` and `mlp_gradients`, for an MLP with one hidden layer.

With all other back ends, torch's own layers compute the MLP.
"""
MAX_INPUTS, MAX_WIDTH, MAX_OUTPUTS = 64, 64, 16  # of the kernels


class MLP(nn.Module):
    """MLP without biases: `hidden_layers` layers of `width` units with ReLU, then a linear layer to `n_out` outputs.

    It computes in float32, even under autocast. Initial weights are uniform in +-1/sqrt(fan_in), sampled with the CPU
    generator `generator`. `backend` is the name of a kernel implementation, such as "auto", "torch" or "triton".

    The attribute `fusable` is True if the MLP has one hidden layer, and at most 64 inputs, 64 hidden units and 16
    outputs. A fusable MLP is computed by one kernel if `backend` is "triton", or "auto" selects Triton. Otherwise,
    torch's layers compute the MLP. Torch's meta device (shapes without values) serves to measure the memory of the
    kernel: there, a fusable MLP allocates no hidden layer, whatever `backend` is.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int,
        hidden_layers: int,
        generator: torch.Generator | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise([n_in, *[width] * hidden_layers, n_out]):
            linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=False)
            nn.init.uniform_(linear.weight, -(inputs**-0.5), inputs**-0.5, generator=generator)
            layers += [linear, nn.ReLU(inplace=True)]
        self.layers = nn.Sequential(*layers[:-1])
        self.backend = backend
        self.fusable = hidden_layers == 1 and n_in <= MAX_INPUTS and width <= MAX_WIDTH and n_out <= MAX_OUTPUTS

    def forward(self, x: Tensor, n_out: int | None = None) -> Tensor:
        """Map x (N, n_in) to outputs (N, n_out).

        Only the first `n_out` outputs of the last layer are computed; None: all outputs.
        """
        *hidden, last = self.layers
        assert isinstance(last, nn.Linear)
        output_weight = last.weight if n_out is None else last.weight[:n_out]
        if (kernels := self._kernels(x)) is not None:
            assert isinstance(hidden[0], nn.Linear)
            return Fused.apply(x, hidden[0].weight, output_weight, kernels)
        with no_autocast(x.device):
            for layer in hidden:
                x = layer(x)
            return F.linear(x, output_weight)

    def _kernels(self, x: Tensor) -> ModuleType | None:
        if not self.fusable or len(x) == 0 or choose(self.backend, x.device, x.dtype) not in MODULES:
            return None
        return load(MODULES, "triton", x.device, x.dtype)


class _Context(torch.autograd.function.FunctionCtx):
    saved_tensors: tuple[Tensor, ...]
    kernels: ModuleType


class Fused(Function):
    """Autograd function of an MLP with one hidden layer, computed by kernels: relu(x @ hidden.T) @ output.T.

    It maps N rows of I inputs, x (N, I), to (N, O), with the weights hidden (H, I) and output (O, H). The backward
    kernel computes the hidden values (N, H) again. With create_graph=True, the backward pass uses differentiable torch
    functions instead of this kernel.
    """

    @staticmethod
    def forward(ctx: _Context, x: Tensor, hidden: Tensor, output: Tensor, kernels: ModuleType) -> Tensor:
        ctx.save_for_backward(x, hidden, output)
        ctx.kernels = kernels
        return kernels.mlp(x, hidden, output)

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, output = ctx.saved_tensors
        if not torch.is_grad_enabled():
            return *ctx.kernels.mlp_gradients(grad, x, hidden, output), None
        with no_autocast(grad.device):
            values = F.linear(F.relu(F.linear(x, hidden)), output)
            inputs = [tensor for tensor in ctx.saved_tensors if tensor.requires_grad]
            gradients = iter(torch.autograd.grad(values, inputs, grad, create_graph=True))
        return *(next(gradients) if tensor.requires_grad else None for tensor in ctx.saved_tensors), None
