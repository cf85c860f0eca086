"""The marcher and the compositor: kernels against the torch twin, against nerfacc, and against geometry."""

from __future__ import annotations

import math
from types import ModuleType

import nerfacc
import numba
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

from tests.support.interpreted import BACKENDS, KERNELS, needs_triton
from tests.support.nerfacc_stand_in import nerfacc_on_a_cpu  # noqa: F401
from threedgen.representations.march import (
    composite,
    depth_variance,
    march,
    numba_kernels,
    pack,
    step_size,
    torch_twin,
    visible,
)
from threedgen.representations.options import MarchConfig

pytestmark = pytest.mark.usefixtures("nerfacc_on_a_cpu")
ALL = [*BACKENDS, "nerfacc"]
OTHERS = [*KERNELS, "nerfacc"]
"""Those that are compared with the torch twin."""
RAYS = {"triton": 60}
"""Its interpreter is slow; the others are given 300."""


def rays(n: int, seed: int, distance: float = 2.5) -> tuple[Tensor, Tensor]:
    """Rays from a shell around the cube towards points in and near it; some miss, some run along an axis."""
    g = torch.Generator().manual_seed(seed)
    origins = normalize(torch.randn(n, 3, generator=g), dim=-1) * distance
    directions = normalize(torch.randn(n, 3, generator=g) * 0.6 - origins, dim=-1)
    directions[: n // 8] = torch.eye(3)[torch.arange(n // 8) % 3]
    return origins, directions


def blobs(size: int, seed: int, part: float = 0.1) -> Tensor:
    return torch.rand(size, size, size, generator=torch.Generator().manual_seed(seed)) < part


def packed(counts: list[int], seed: int, channels: int = 3):
    """Samples with the given counts, with random densities and values."""
    g = torch.Generator().manual_seed(seed)
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long))
    edges = torch.cat([torch.linspace(1, 2, n + 1)[:-1] for n in counts if n] or [torch.empty(0)])
    samples = pack(index, edges, edges + 0.05, len(counts))
    sigma = torch.rand(len(index), generator=g) * 20
    return samples, sigma, torch.randn(len(index), channels, generator=g)


@pytest.mark.parametrize("kernels", OTHERS)
@pytest.mark.parametrize("sampler", ["occupancy", "stratified"])
@pytest.mark.parametrize("bound", ["box", "sphere"])
@pytest.mark.parametrize(("radius", "jittered", "size"), [(1.0, True, 32), (2.0, False, 7), (0.7, True, 0)])
def test_backends_place_the_same_samples(sampler, bound, radius, jittered, size, kernels):
    many = RAYS.get(kernels, 300)
    origins, directions = rays(many, seed=size)
    jitter = torch.rand(many, generator=torch.Generator().manual_seed(1)) if jittered else None
    grid = blobs(size, 3) if size else None
    found = []
    for name in (kernels, "torch"):
        options = MarchConfig(sampler=sampler, bound=bound, radius=radius, samples=60, backend=name)
        found.append(march(origins, directions, options, grid, jitter))
    for name in ("ray_index", "t_start", "t_end", "start", "count"):
        assert torch.equal(getattr(found[0], name), getattr(found[1], name)), name
    assert len(found[0]) > 0
    assert (found[0].positions(origins, directions).abs() <= radius * (1 + 1e-5)).all()


SCENES = {
    "seed": st.integers(0, 10**6),
    "distance": st.floats(0.0, 20.0),
    "samples": st.integers(1, 700),
    "size": st.integers(1, 40),
    "part": st.sampled_from([0.0, 0.02, 0.5, 1.0]),
}


def assert_skips_as_the_twin(kernels, seed, distance, samples, size, part, many=16):
    origins, directions = rays(many, seed, distance)
    grid = blobs(size, seed, part)
    pair = [
        march(origins, directions, MarchConfig(samples=samples, bound="box", backend=name), grid)
        for name in (kernels, "torch")
    ]
    assert torch.equal(pair[0].ray_index, pair[1].ray_index)
    assert torch.equal(pair[0].t_start, pair[1].t_start)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(**SCENES)
def test_skipping_drops_empty_cells_and_nothing_else(**scene):
    assert_skips_as_the_twin("numba", **scene)


@needs_triton
@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(**SCENES)
def test_triton_skips_the_same_cells(**scene):
    assert_skips_as_the_twin("triton", **scene, many=8)


@pytest.mark.parametrize("bound", ["box", "sphere"])
def test_full_grid_equals_no_grid(bound):
    origins, directions = rays(200, seed=5)
    options = MarchConfig(samples=40, bound=bound)
    full, none = (march(origins, directions, options, grid) for grid in (torch.ones(8, 8, 8, dtype=torch.bool), None))
    assert torch.equal(full.t_start, none.t_start) and torch.equal(full.count, none.count)


@pytest.mark.parametrize("name", ALL)
def test_empty_grid_and_missing_rays_give_no_samples(name):
    options = MarchConfig(samples=40, backend=name)
    origins, directions = rays(50, seed=6)
    empty = march(origins, directions, options, torch.zeros(4, 4, 4, dtype=torch.bool))
    away = march(origins, normalize(origins, dim=-1), options)
    for samples in (empty, away):
        assert len(samples) == 0 and samples.n_rays == 50 and int(samples.count.sum()) == 0
    beside = march(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([[-1.0, 0.0, 0.0]]), options)
    assert len(beside) == 0
    assert march(torch.empty(0, 3), torch.empty(0, 3), options).n_rays == 0


@pytest.mark.parametrize("kernels", [torch_twin, numba_kernels])
def test_positions_are_the_middles_on_the_rays(kernels: ModuleType) -> None:
    origins, directions = rays(20, seed=7)
    samples = march(origins, directions, MarchConfig(samples=16))
    index = samples.ray_index
    wanted = origins[index] + (samples.t_start + samples.t_end)[:, None] / 2 * directions[index]
    torch.testing.assert_close(kernels.positions(samples, origins, directions), wanted)


def test_a_step_is_a_share_of_the_longest_chord() -> None:
    ball, box = (MarchConfig(radius=2.0, samples=16, bound=bound) for bound in ("sphere", "box"))
    assert step_size(ball) == pytest.approx(4 / 16) and step_size(box) == pytest.approx(4 * 3**0.5 / 16)


def test_samples_are_sorted_packed_and_of_one_step():
    origins, directions = rays(100, seed=7)
    options = MarchConfig(samples=64)
    samples = march(origins, directions, options, blobs(16, 2, 0.3))
    assert (samples.ray_index.diff() >= 0).all()
    assert torch.equal(torch.bincount(samples.ray_index, minlength=100), samples.count)
    assert torch.equal(samples.start, samples.count.cumsum(0) - samples.count)
    torch.testing.assert_close(
        samples.t_end - samples.t_start, torch.full((len(samples),), step_size(options)), rtol=0, atol=1e-6
    )
    same = samples.ray_index.diff() == 0
    assert (samples.t_start.diff()[same] > 0).all()


def test_stratified_parts_fill_the_chord():
    samples = march(
        torch.tensor([[3.0, 0.2, 0.1]]),
        torch.tensor([[-1.0, 0.0, 0.0]]),
        MarchConfig(sampler="stratified", samples=10),
    )
    torch.testing.assert_close(samples.t_start, 2 + 0.2 * torch.arange(10.0))
    torch.testing.assert_close(samples.t_end[:-1], samples.t_start[1:])


@pytest.mark.parametrize("name", ALL)
def test_near_and_inside(name):
    origins, directions = torch.zeros(1, 3), torch.tensor([[0.0, 0.6, 0.8]])
    samples = march(origins, directions, MarchConfig(samples=100, near=0.5, backend=name))
    assert float(samples.t_start.min()) == 0.5
    assert float(samples.t_end.max()) == pytest.approx(1.25, abs=0.02)


@pytest.mark.parametrize("kernels", OTHERS)
@pytest.mark.parametrize("counts", [[5, 0, 3, 1], [0, 0], [], [40, 64, 65, 200]])
def test_compositing_and_its_gradients_agree_with_the_twin(counts, kernels):
    samples, sigma, values = packed(counts, seed=11, channels=4)
    g = torch.Generator().manual_seed(12)
    pulls = [torch.randn(s, generator=g) for s in ((len(counts), 4), (len(counts), 1), (len(counts), 1), (len(sigma),))]
    results, grads = [], []
    for name in (kernels, "torch"):
        s, v = sigma.clone().requires_grad_(), values.clone().requires_grad_()
        out = composite(s, v, samples, name)
        loss = sum((a * b).sum() for a, b in zip(out, pulls, strict=True)) + (out.opacity * out.depth).sum()
        grads.append(torch.autograd.grad(loss, (s, v)))
        results.append(out)
    for a, b in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads[0], grads[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernels", OTHERS)
@pytest.mark.parametrize("part", range(4))
def test_gradients_of_one_output_alone(part, kernels):
    samples, sigma, values = packed([7, 2, 9], seed=21)
    grads = []
    for name in (kernels, "torch"):
        s = sigma.clone().requires_grad_()
        grads.append(torch.autograd.grad(composite(s, values, samples, name)[part].square().sum(), s)[0])
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", BACKENDS)
def test_compositing_equals_nerfacc(name):
    rays_, many = 6, 20
    samples, sigma, values = packed([many] * rays_, seed=31)
    start, end = samples.t_start.view(rays_, many), samples.t_end.view(rays_, many)
    weights, _, _ = nerfacc.render_weight_from_density(start, end, sigma.view(rays_, many))
    out = composite(sigma, values, samples, name)
    torch.testing.assert_close(out.weights.view(rays_, many), weights)
    torch.testing.assert_close(out.values, nerfacc.accumulate_along_rays(weights, values.view(rays_, many, 3)))
    depth = nerfacc.accumulate_along_rays(weights, ((start + end) / 2)[..., None])
    torch.testing.assert_close(out.depth, depth)
    seen = nerfacc.render_visibility_from_density(
        start, end, sigma.view(rays_, many), early_stop_eps=1e-2, alpha_thre=0.2
    )
    assert torch.equal(visible(sigma, samples, 0.2, 1e-2, name).view(rays_, many), seen)
    assert 0 < int(seen.sum()) < seen.numel()


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 12), min_size=1, max_size=8),
    scale=st.floats(0, 1e6),
    seed=st.integers(0, 999),
)
def test_weights_are_a_partition_of_at_most_one(counts, scale, seed):
    samples, sigma, values = packed(counts, seed)
    out = composite(sigma * scale, values.clamp(0, 1), samples)
    assert (out.weights >= 0).all() and (out.opacity <= 1 + 1e-6).all()
    assert (out.values <= out.opacity + 1e-5).all()
    torch.testing.assert_close(samples.sum(out.weights)[:, None], out.opacity)


@pytest.mark.parametrize("name", ALL)
def test_a_solid_ball_is_where_it_is(name):
    origins, _ = rays(64, seed=41)
    directions = normalize(-origins, dim=-1)
    samples = march(origins, directions, MarchConfig(samples=400, backend=name))
    sigma = (samples.positions(origins, directions).norm(dim=-1) < 0.5).float() * 1e4
    out = composite(sigma, torch.ones(len(samples), 1), samples, name)
    torch.testing.assert_close(out.opacity, torch.ones(64, 1))
    torch.testing.assert_close(out.depth, torch.full((64, 1), 2.0), rtol=0, atol=2 * math.sqrt(3) / 400)
    assert (depth_variance(out, samples) < 1e-4).all()


def test_depth_variance_is_the_spread_of_the_weights():
    samples, sigma, values = packed([30, 4], seed=51)
    out = composite(sigma * 0.1, values, samples)
    for ray in range(2):
        mine = samples.ray_index == ray
        w, t = out.weights[mine].double(), samples.t_mid[mine].double()
        assert float(depth_variance(out, samples)[ray]) == pytest.approx(
            float((w * (t - (w * t).sum()) ** 2).sum()), rel=1e-3
        )


def test_selecting_samples_keeps_them_packed():
    samples, sigma, values = packed([4, 0, 6], seed=61)
    keep = torch.arange(10) % 3 != 0
    few = samples.select(keep)
    assert few.count.tolist() == [2, 0, 4] and few.start.tolist() == [0, 2, 2]
    assert torch.equal(few.t_start, samples.t_start[keep])


def test_the_number_of_threads_does_not_matter():
    if numba.config.NUMBA_NUM_THREADS < 2:
        pytest.skip("numba may use one thread only")
    origins, directions = rays(500, seed=71)
    before, results = numba.get_num_threads(), []
    try:
        for threads in (1, 2):
            numba.set_num_threads(threads)
            samples = march(origins, directions, MarchConfig(samples=50), blobs(16, 1, 0.4))
            sigma = samples.t_mid.clone().requires_grad_()
            out = composite(sigma, samples.positions(origins, directions), samples)
            results.append((out.values, *torch.autograd.grad(out.values.square().sum() + out.depth.sum(), sigma)))
    finally:
        numba.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_kernels_read_no_random_numbers():
    state = torch.get_rng_state()
    march(*rays(10, seed=1), MarchConfig(samples=10))
    assert torch.equal(torch.get_rng_state(), state)
