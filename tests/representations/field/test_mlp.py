import pytest
import torch
from torch import Tensor

from tests.support.interpreted import interprets_triton
from threedgen.representations.field.mlp import MLP

pytestmark = interprets_triton


def network(inputs: int, width: int, outputs: int, backend: str) -> MLP:
    return MLP(inputs, outputs, width, 1, torch.Generator().manual_seed(0), backend)


def rows(n: int, columns: int, seed: int) -> Tensor:
    """Return (n, columns) random numbers in the memory order of the hash grid's features."""
    return torch.randn(columns, n, generator=torch.Generator().manual_seed(seed)).t()


@pytest.mark.parametrize(("n", "inputs", "width", "outputs"), [(70, 32, 64, 3), (1, 20, 48, 1), (33, 64, 16, 16)])
def test_kernels_equal_float64(n: int, inputs: int, width: int, outputs: int) -> None:
    found = []
    for backend, dtype in (("triton", torch.float32), ("torch", torch.float64)):
        mlp = network(inputs, width, outputs, backend).to(dtype)
        x = rows(n, inputs, 1).to(dtype).requires_grad_()
        y = mlp(x)
        found.append((y, *torch.autograd.grad(y, (x, *mlp.parameters()), rows(n, outputs, 2).to(dtype))))
    for ours, exact in zip(*found, strict=True):
        torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-5)


def test_second_derivatives_and_frozen_weights_equal_torch() -> None:
    found = []
    for backend in ("triton", "torch"):
        mlp = network(8, 16, 2, backend)
        hidden, output = mlp.parameters()
        output.requires_grad_(False)
        x = rows(40, 8, 1).requires_grad_()
        slope = torch.autograd.grad(mlp(x, n_out=1).sum(), x, create_graph=True)[0]
        found.append((slope, *torch.autograd.grad(slope.square().sum(), (hidden,)), mlp(x[:0]), mlp(x, n_out=1)))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("inputs", "width", "outputs"), [(65, 64, 3), (32, 128, 3), (32, 64, 17)])
def test_larger_networks_are_computed_by_torch(inputs: int, width: int, outputs: int) -> None:
    x = rows(5, inputs, 1)
    assert torch.equal(network(inputs, width, outputs, "triton")(x), network(inputs, width, outputs, "torch")(x))


def test_nan_stays_nan() -> None:
    mlp = network(4, 16, 1, "triton")
    mlp.layers[0].weight.data[3, 1] = float("nan")
    assert mlp(rows(3, 4, 1)).isnan().all()
