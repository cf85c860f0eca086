from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.errors import refused
from tests.support.interpreted import BACKENDS, KERNELS
from tests.support.parity_files import close, recorded, tensors
from threedgen.representations.hashgrid import numba_kernels, torch_twin
from threedgen.representations.hashgrid.encoding import HashGrid, encode, position_gradient
from threedgen.representations.hashgrid.torch_twin import grid_levels
from threedgen.representations.options import HashGridConfig

SMALL = HashGridConfig(n_levels=6, log2_hashmap_size=9, base_resolution=4, per_level_scale=1.6)  # dense and hashed
SIZES = ("n_levels", "log2_hashmap_size", "base_resolution", "per_level_scale")


def filled(options: HashGridConfig) -> HashGrid:
    grid = HashGrid(options, torch.Generator().manual_seed(0))
    grid.table.data.mul_(0.5e4)
    return grid


@pytest.fixture(params=BACKENDS)
def grid(request: pytest.FixtureRequest) -> HashGrid:
    return filled(SMALL.model_copy(update={"backend": request.param}))


def points(n: int, seed: int = 1) -> Tensor:
    x = torch.rand(n, 3, generator=torch.Generator().manual_seed(seed))
    x[:3] = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.5]])[: len(x)]
    x[3:5] = torch.tensor([[-0.3, 0.2, 0.7], [0.4, 1.7, 2.0]])[: max(0, len(x) - 3)]
    return x


def rand_like(x: Tensor, seed: int) -> Tensor:
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))


@recorded("hashgrid")
def test_grid_levels_equal_tiny_cuda_nn(path: Path) -> None:
    data = tensors(path)
    levels = grid_levels(*(data[name].item() for name in SIZES))
    np.testing.assert_array_equal(levels.offset, data["level_offsets"])
    np.testing.assert_array_equal(levels.resolution, data["level_resolution"])
    np.testing.assert_allclose(levels.scale, data["level_scale"], rtol=2e-7)


@pytest.mark.parametrize("backend", BACKENDS)
@recorded("hashgrid")
def test_features_and_gradients_equal_tiny_cuda_nn(path: Path, backend: str) -> None:
    data = tensors(path)
    values = {name: data[name].item() for name in SIZES} | {"n_features": data["table"].shape[1]}
    grid = HashGrid(HashGridConfig(backend=backend, **values))
    grid.table.data = data["table"]
    x = data["positions"].requires_grad_()
    encoded = grid(x)
    close(encoded.detach(), data["encoded"], 1e-3)
    columns_used = slice(None, None, 11 if backend == "triton" else 1)  # slow interpreter
    columns = encoded.unbind(dim=1)[columns_used]
    gradients = [torch.autograd.grad(column.sum(), x, retain_graph=True)[0] for column in columns]
    close(torch.stack(gradients, dim=1), data["d_encoded_d_pos"][:, columns_used], 1e-3)


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize(("n_features", "n_points"), [(2, 300), (3, 300), (2, 1)])
def test_kernels_equal_torch_to_second_order(n_features: int, n_points: int, name: str) -> None:
    grid = filled(HashGridConfig(**{**SMALL.model_dump(), "n_features": n_features, "backend": name}))
    results = []
    for module in (torch_twin, grid.backend()):
        x, table = points(n_points).requires_grad_(), grid.table.detach().clone().requires_grad_()
        grad = rand_like(torch.empty(n_points, grid.output_dim), 2).requires_grad_()
        out = encode(x, table, grid.levels, module)
        to_x, to_table = torch.autograd.grad(out, (x, table), grad, create_graph=True)
        weights = rand_like(to_x, 3), rand_like(to_table, 4)
        loss = (weights[0] * to_x).sum() + (weights[1] * to_table).sum()
        second = torch.autograd.grad(loss, (x, table, grad))
        results.append([out.detach(), to_x.detach(), to_table.detach(), *second])
    for expected, actual in zip(*results, strict=True):
        close(actual, expected, 1e-5)


@pytest.mark.parametrize("backend", KERNELS)
def test_gradients_do_not_depend_on_memory_order(backend: str) -> None:
    grid, x = filled(SMALL.model_copy(update={"backend": backend})), points(500)
    grad = rand_like(torch.empty(500, grid.output_dim), 6)
    (rows,) = torch.autograd.grad(grid(x), grid.table, grad)
    (columns,) = torch.autograd.grad(grid(x), grid.table, grad.t().contiguous().t())
    (part,) = torch.autograd.grad(grid(x), grid.table, torch.stack([grad, grad], dim=-1)[..., 0])
    assert torch.equal(rows, columns) and torch.equal(rows, part)
    (scattered,) = torch.autograd.grad(grid(x.t().contiguous().t()), grid.table, grad)
    assert torch.equal(rows, scattered)


def test_run_in_threads_reports_the_error_of_a_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    def kernel(share: int, shares: int) -> None:
        if share == shares - 1:
            raise MemoryError(f"share {share}")

    with pytest.raises(MemoryError, match="share 1"):
        numba_kernels.run_in_threads(kernel, 3 * numba_kernels.BLOCK)


def test_points_outside_and_nan_are_clamped(grid: HashGrid) -> None:
    x = torch.tensor([[-0.5, 0.2, 0.3], [0.1, 7.0, 0.6], [0.4, 0.5, float("inf")]], requires_grad=True)
    encoded = grid(x)
    assert torch.equal(encoded, grid(x.detach().clamp(0, 1)))
    (gradient,) = torch.autograd.grad(encoded, x, torch.ones_like(encoded))
    outside = torch.tensor([[True, False, False], [False, True, False], [False, False, True]])
    assert (gradient[outside] == 0).all() and (gradient[~outside] != 0).all()
    nan = torch.tensor([[float("nan"), 0.2, 0.3]])
    assert torch.equal(grid(nan), grid(torch.nan_to_num(nan))), "NaN must not read outside the table"


def test_empty_input_gives_empty_output(grid: HashGrid) -> None:
    x = torch.empty(0, 3, requires_grad=True)
    encoded = grid(x)
    assert encoded.shape == (0, grid.output_dim)
    to_x, to_table = torch.autograd.grad(encoded.sum(), (x, grid.table), create_graph=True)
    assert to_x.shape == (0, 3) and not to_table.any()
    assert position_gradient(grid, x, encoded).shape == (0, 3)


def test_config_refuses_grids_finer_than_float32() -> None:
    with refused(None, "per_level_scale", 16, 2.09, kind=ValueError):
        HashGridConfig(per_level_scale=4.0)
