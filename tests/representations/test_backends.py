import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numba
import pytest
import torch
from torch import Tensor, nn

from tests.representations.gaussians.test_rasterise import cameras, cloud, gradients
from tests.representations.test_march import random_grid, rays
from tests.support.errors import refused
from tests.support.interpreted import needs_triton
from threedgen.config import optional as extras
from threedgen.representations import backends
from threedgen.representations.backends import choose
from threedgen.representations.hashgrid import encoding, torch_twin
from threedgen.representations.hashgrid.encoding import HashGrid, position_gradient
from threedgen.representations.hashgrid.numba_kernels import BLOCK
from threedgen.representations.hashgrid.torch_twin import grid_levels
from threedgen.representations.march import composite, march
from threedgen.representations.options import HashGridConfig
from threedgen.representations.volume.options import MarchConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def install_only(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """Pretend that of the optional packages only these are installed; no Triton interpreter."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    for place in (extras, backends):
        monkeypatch.setattr(place, "installed", lambda module: module in ("numba", *modules))


def test_choose_auto_prefers_fast_supported_backends(monkeypatch: pytest.MonkeyPatch) -> None:
    install_only(monkeypatch, "triton", "tinycudann")
    assert (choose("auto", CPU), choose("auto", GPU)) == ("numba", "triton")
    assert choose("auto", GPU, torch.float64) == choose("auto", CPU, torch.bfloat16) == "torch"
    assert choose("auto", torch.device("mps")) == "torch"
    assert choose("auto", GPU) == "triton"
    install_only(monkeypatch)
    assert choose("auto", GPU) == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("auto", CPU) == "numba"


@needs_triton
def test_triton_without_a_compiler_is_replaced_or_refused(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    from triton.runtime.driver import DriverConfig

    def no_compiler(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    install_only(monkeypatch, "triton")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(DriverConfig, "active", property(no_compiler))
    backends.start_triton.cache_clear()
    try:
        assert [choose("auto", GPU) for _ in range(3)] == ["torch"] * 3 and choose("auto", CPU) == "numba"
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        with refused("backend", "C compiler", "triton"):
            choose("triton", GPU)
        monkeypatch.setattr(DriverConfig, "active", property(lambda _: None))
        backends.start_triton.cache_clear()
        assert choose("auto", GPU) == choose("triton", GPU) == "triton"
    finally:
        backends.start_triton.cache_clear()


def test_hash_grid_avoids_triton_for_deterministic_algorithms(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(encoding, "load", lambda modules, name, device, dtype: loaded.append(name) or torch_twin)
    grid = HashGrid(HashGridConfig(n_levels=2, log2_hashmap_size=6))
    del grid._parameters["table"]
    grid.table = SimpleNamespace(is_cuda=True, device=GPU, dtype=torch.float32)  # type: ignore[assignment]
    for deterministic, warn in ((False, False), (True, False), (True, True)):
        monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda value=deterministic: value)
        monkeypatch.setattr(torch, "is_deterministic_algorithms_warn_only_enabled", lambda value=warn: value)
        grid.backend()
    assert loaded == ["auto", "torch", "auto"]


def test_choose_refuses_missing_package_and_wrong_device(monkeypatch: pytest.MonkeyPatch) -> None:
    install_only(monkeypatch, "nerfacc")
    assert choose("nerfacc", GPU) == "nerfacc"
    with refused("backend", "nerfacc", "CUDA", torch.float32, "cpu", "auto"):
        choose("nerfacc", CPU)
    install_only(monkeypatch)
    with refused("backend", "nerfacc", "pip install", "auto"):
        choose("nerfacc", GPU)
    with refused("backend", "numba", torch.float32, "cuda"):
        choose("numba", GPU)
    assert choose("torch", GPU, torch.float64) == "torch"


def encoded_points() -> list[Tensor]:
    grid, x = HashGrid(HashGridConfig(n_levels=6, log2_hashmap_size=9)), torch.rand(3 * BLOCK + 5, 3).requires_grad_()
    out = grid(x)
    return [out, *torch.autograd.grad(out, (x, grid.table), torch.ones_like(out))]


def composited_rays() -> list[Tensor]:
    origins, directions = rays(500, seed=71)
    samples = march(origins, directions, MarchConfig(samples=50), random_grid(16, 1, 0.4))
    sigma = samples.t_mid.clone().requires_grad_()
    out = composite(sigma, samples.positions(origins, directions), samples)
    return [out.values, *torch.autograd.grad(out.values.square().sum() + out.depth.sum(), sigma)]


def rasterised_gaussians() -> list[Tensor]:
    out, found = gradients(cloud(300, 3, torch.float32), cameras(3), "numba")
    return [out, *found.values()]


@pytest.mark.parametrize("compute", [encoded_points, composited_rays, rasterised_gaussians])
def test_numba_results_do_not_depend_on_threads(compute: Callable[[], list[Tensor]]) -> None:
    before, results = (torch.get_num_threads(), numba.get_num_threads()), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            torch.manual_seed(0)
            results.append(compute())
    finally:
        torch.set_num_threads(before[0])
        numba.set_num_threads(before[1])
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


# --- tiny-cuda-nn ---


class Encoding(nn.Module):
    """Stand-in for tinycudann.Encoding with one flat float32 parameter vector `params`."""

    def __init__(
        self, n_input_dims: int, encoding_config: dict[str, Any], seed: int = 1337, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        assert n_input_dims == 3 and dtype == torch.float32 and encoding_config["otype"] == "HashGrid"
        names = ("n_levels", "log2_hashmap_size", "base_resolution", "per_level_scale")
        self.levels = grid_levels(*(encoding_config[name] for name in names))
        self.width = encoding_config["n_features_per_level"]
        self.params = nn.Parameter(torch.full((self.levels.entries * self.width,), float("nan")))

    def forward(self, x: Tensor) -> Tensor:
        assert x.min() >= 0 and x.max() <= 1, "the kernels do not clamp"
        return torch_twin.encode(x, self.params.view(-1, self.width), self.levels)


@pytest.fixture
def tinycudann_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "threedgen.representations.hashgrid.tinycudann_grid"
    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=Encoding))
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(backends.DEVICE_TYPES, "tinycudann", "cpu")
    monkeypatch.setattr(backends, "require_backend", lambda name: None)
    yield
    sys.modules.pop(name, None)


@pytest.mark.usefixtures("tinycudann_on_cpu")
def test_tinycudann_values_and_second_derivatives_equal_torch() -> None:
    options = {"n_levels": 4, "log2_hashmap_size": 8, "base_resolution": 4, "per_level_scale": 1.6}
    tcnn, reference = (HashGrid(HashGridConfig(**options, backend=name)) for name in ("tinycudann", "torch"))
    tcnn.load_state_dict(reference.state_dict())
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    results = []
    for grid in (tcnn, reference):
        features = grid(x)
        slope = position_gradient(grid, x, torch.ones_like(features))
        loss = features.square().sum() + slope.square().sum()  # second order
        results.append([features, slope, *torch.autograd.grad(loss, grid.table)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) and a.abs().max() > 0
    assert tcnn(torch.empty(0, 3)).shape == (0, 8)
    assert list(tcnn.state_dict()) == ["table"]


ROOT = Path(__file__).parents[2]
CAPABILITIES = ("80", "86", "89", "90", "120")


def triton_check(*words: str) -> str:
    """Return the output of triton_check.py, run without the interpreter."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, str(ROOT / "tests" / "support" / "triton_check.py"), *words]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@needs_triton
def test_every_kernel_compiles_for_every_gpu_without_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From A100 (8.0) to the RTX 50 series (12.0), which has the least shared memory per block: 99 KB."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    lines = [line.split() for line in triton_check("compile", *CAPABILITIES).splitlines()]
    assert [line[0] for line in lines] == [capability for capability in CAPABILITIES for _ in range(12)]
    for capability, kernel, _, spilled, shared in lines:
        assert spilled == "0" and int(shared) <= 99 << 10, (capability, kernel)


@needs_triton
@pytest.mark.gpu
def test_triton_on_a_gpu_equals_torch_in_float64() -> None:
    assert len(triton_check("compare").splitlines()) == 19
