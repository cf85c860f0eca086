"""Which back end computes, what is said where it cannot, and tiny-cuda-nn's, which is asked under its own names."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.interpreted import needs_triton
from threedgen import cli, config
from threedgen.config import ConfigError
from threedgen.config import optional as extras
from threedgen.representations import backends
from threedgen.representations.backends import choose
from threedgen.representations.hashgrid import torch_twin
from threedgen.representations.hashgrid.encoding import HashGrid, position_gradient
from threedgen.representations.hashgrid.torch_twin import grid_levels
from threedgen.representations.march import backend
from threedgen.representations.options import HashGridConfig
from threedgen.systems.generate import task as generate_run
from threedgen.train.task import Task

CPU, GPU = torch.device("cpu"), torch.device("cuda")


def only(monkeypatch: pytest.MonkeyPatch, *modules: str) -> None:
    """As if these optional packages were installed and no others."""
    for place in (extras, backends):
        monkeypatch.setattr(place, "installed", lambda module: module in ("numba", *modules))


def test_auto_takes_the_fastest_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    only(monkeypatch, "triton", "tinycudann")
    assert (choose("auto", CPU), choose("auto", GPU)) == ("numba", "triton")
    assert choose("auto", GPU, torch.float64) == choose("auto", CPU, torch.bfloat16) == "torch"
    assert choose("auto", torch.device("mps")) == "torch"
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    assert (choose("auto", CPU), choose("auto", GPU), choose("triton", GPU)) == ("numba", "torch", "triton")
    monkeypatch.setattr(torch, "is_deterministic_algorithms_warn_only_enabled", lambda: True)
    assert choose("auto", GPU) == "triton"
    only(monkeypatch)
    assert choose("auto", GPU) == "torch"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("auto", CPU) == "numba"


@pytest.mark.parametrize("name", ["triton", "tinycudann", "nerfacc"])
def test_what_is_asked_for_is_there_or_a_sentence_says_how_to_get_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    only(monkeypatch, name)
    assert choose(name, GPU) == name
    with pytest.raises(ConfigError, match=f"'{name}' computes float32 on a CUDA device, not torch.float32 on cpu"):
        choose(name, CPU)
    only(monkeypatch)
    with pytest.raises(ConfigError, match=rf"backend: {name} needs the package {name}: pip install .*or choose"):
        choose(name, GPU)
    assert choose("torch", GPU, torch.float64) == "torch"


def test_a_march_on_a_gpu_is_not_given_to_numba() -> None:
    like: Any = SimpleNamespace(device=GPU)
    with pytest.raises(ConfigError, match="'numba' computes float32 on a CPU, not torch.float32 on cuda"):
        backend(like, "numba")
    assert backend(like, "torch").__name__.endswith("torch_twin")


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("field.encoding.backend=tinycudann", "field.encoding.backend: tinycudann needs the package tinycudann: pip"),
        ("field.encoding.backend=triton", "pip install -e '.[triton]', or choose backend=auto"),
        ("march.backend=triton", "march.backend: triton needs the package triton"),
        ("march.backend=nerfacc", "march.backend: nerfacc needs the package nerfacc: pip install -e '.[nerfacc]'"),
    ],
)
def test_a_run_says_so_before_it_begins(
    word: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    only(monkeypatch)
    assert cli.main(["prompt=a dog", word]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not list(tmp_path.iterdir())


def test_a_run_says_where_a_back_end_cannot_compute_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(Task, "load_prior", lambda task: pytest.fail("weights were loaded"))
    only(monkeypatch, "triton")
    made = config.load("mvdream-toybox", ["prompt=a dog", "march.backend=triton", "trainer.accelerator=cpu", "out=x"])
    with pytest.raises(ConfigError, match="^march.backend: 'triton' computes float32 on a CUDA device, not .* on cpu"):
        generate_run.run_status(made, quiet=True)


def test_nerfacc_without_its_kernels_is_said_before_weights_are_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Task, "load_prior", lambda task: pytest.fail("weights were loaded"))
    monkeypatch.setitem(backends.PLACES, "nerfacc", "cpu")
    monkeypatch.setitem(sys.modules, "nerfacc.cuda._backend", SimpleNamespace(_C=None))
    monkeypatch.delitem(sys.modules, "threedgen.representations.march.nerfacc_backend", raising=False)
    only(monkeypatch, "nerfacc")
    made = config.load("mvdream-toybox", ["prompt=a dog", "march.backend=nerfacc", "trainer.accelerator=cpu", "out=x"])
    said = "^march.backend: 'nerfacc' is installed but cannot be loaded: its kernels are not built.*; choose 'auto' or"
    with pytest.raises(ConfigError, match=said):
        generate_run.run_status(made, quiet=True)


@needs_triton
def test_a_field_asked_for_triton_uses_it() -> None:
    grid = HashGrid(HashGridConfig(n_levels=2, log2_hashmap_size=6, backend="triton"))
    assert grid.backend().kernels.__name__.endswith("triton_kernels")


# --- tiny-cuda-nn ---


class Encoding(nn.Module):
    """tinycudann.Encoding as far as it is used: one flat float32 vector, `params`, that forward reads."""

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
        assert x.min() >= 0 and x.max() <= 1, "its kernels do not clamp"
        return torch_twin.encode(x, self.params.view(-1, self.width), self.levels)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tinycudann that computes on a CPU."""
    name = "threedgen.representations.hashgrid.tinycudann_grid"
    monkeypatch.setitem(sys.modules, "tinycudann", SimpleNamespace(Encoding=Encoding))
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(backends.PLACES, "tinycudann", "cpu")
    monkeypatch.setattr(backends, "require_backend", lambda name: None)
    yield
    sys.modules.pop(name, None)


def test_tinycudann_reads_our_table_and_teaches_it(fake: None) -> None:
    options = {"n_levels": 4, "log2_hashmap_size": 8, "base_resolution": 4, "per_level_scale": 1.6}
    theirs, ours = (HashGrid(HashGridConfig(**options, backend=name)) for name in ("tinycudann", "torch"))
    theirs.load_state_dict(ours.state_dict())
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    results = []
    for grid in (theirs, ours):
        features = grid(x)
        slope = position_gradient(grid, x, torch.ones_like(features))
        loss = features.square().sum() + slope.square().sum()  # second order
        results.append([features, slope, *torch.autograd.grad(loss, grid.table)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b) and a.abs().max() > 0
    assert theirs(torch.empty(0, 3)).shape == (0, 8)
    assert list(theirs.state_dict()) == ["table"]


def test_tinycudann_has_no_kernels_for_three_features(fake: None) -> None:
    with pytest.raises(ConfigError, match="n_features: backend 'tinycudann' has kernels for 1, 2, 4 and 8, not 3"):
        HashGrid(HashGridConfig(n_levels=2, n_features=3, log2_hashmap_size=6, backend="tinycudann"))(torch.rand(5, 3))
