import nerfacc
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from tests.support.interpreted import BACKENDS, KERNELS, interprets_triton
from tests.support.nerfacc_stand_in import nerfacc_on_a_cpu  # noqa: F401
from threedgen.representations.march import composite, groups, join, march, pack, step_size, visible
from threedgen.representations.volume.options import MarchConfig

pytestmark = pytest.mark.usefixtures("nerfacc_on_a_cpu")
ALL = [*BACKENDS, "nerfacc"]
OTHERS = [*KERNELS, "nerfacc"]  # back ends that are compared with torch
RAYS = {"triton": 60}  # number of test rays; 300 for the other back ends, whose kernels are not interpreted


def rays(n: int, seed: int, distance: float = 2.5) -> tuple[Tensor, Tensor]:
    """Return rays from a sphere towards points in and near the cube; some miss, some are parallel to an axis."""
    g = torch.Generator().manual_seed(seed)
    origins = normalize(torch.randn(n, 3, generator=g), dim=-1) * distance
    directions = normalize(torch.randn(n, 3, generator=g) * 0.6 - origins, dim=-1)
    directions[: n // 8] = torch.eye(3)[torch.arange(n // 8) % 3]
    return origins, directions


def random_grid(size: int, seed: int, fraction: float = 0.1) -> Tensor:
    return torch.rand(size, size, size, generator=torch.Generator().manual_seed(seed)) < fraction


def packed(counts: list[int], seed: int, channels: int = 3):
    """Return samples with these counts per ray, random densities and random values."""
    g = torch.Generator().manual_seed(seed)
    index = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.long))
    edges = torch.cat([torch.linspace(1, 2, n + 1)[:-1] for n in counts if n] or [torch.empty(0)])
    samples = pack(index, edges, edges + 0.05, len(counts))
    sigma = torch.rand(len(index), generator=g) * 20
    return samples, sigma, torch.randn(len(index), channels, generator=g)


@pytest.mark.parametrize("kernels", OTHERS)
@pytest.mark.parametrize(
    ("bound", "radius", "jittered", "size"),
    [("box", 1.0, True, 32), ("sphere", 2.0, False, 7), ("sphere", 0.7, True, 0)],
)
def test_march_is_equal_in_all_backends(bound, radius, jittered, size, kernels):
    n = RAYS.get(kernels, 300)
    origins, directions = rays(n, seed=size)
    jitter = torch.rand(n, generator=torch.Generator().manual_seed(1)) if jittered else None
    grid = random_grid(size, 3) if size else None
    results = []
    for name in (kernels, "torch"):
        options = MarchConfig(bound=bound, radius=radius, samples=60, backend=name)
        results.append(march(origins, directions, options, grid, jitter))
    for name in ("ray_index", "t_start", "t_end", "start", "count"):
        assert torch.equal(getattr(results[0], name), getattr(results[1], name)), name
    assert len(results[0]) > 0
    assert (results[0].positions(origins, directions).abs() <= radius * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["numba", pytest.param("triton", marks=interprets_triton)])
def test_groups_of_rays_have_the_samples_of_all_rays(name: str) -> None:
    (origins, directions), grid, limit = rays(40, 5), random_grid(16, 3, 0.2), 100
    options, jitter = MarchConfig(samples=60, backend=name), torch.rand(40, generator=torch.Generator().manual_seed(1))
    found, parts = groups(origins, directions, options, grid, jitter, limit), []
    for part, total in found:
        parts.append(march(origins[part], directions[part], options, grid, jitter[part], total))
        assert len(parts[-1]) <= limit and total in (None, len(parts[-1]))
    whole, joined = march(origins, directions, options, grid, jitter), join(parts)
    for column in ("ray_index", "t_start", "t_end", "start", "count"):
        assert torch.equal(getattr(joined, column), getattr(whole, column)), column
    if name == "triton":  # the groups are filled, as far as whole rays allow
        assert 1 < len(found) <= len(whole) // (limit - int(whole.count.max())) + 1 < 40 * 60 // limit
    assert groups(origins, directions, options, grid, jitter, 40 * 60) == [(slice(0, 40), None)]


@pytest.mark.parametrize("name", ALL)
def test_march_gives_no_samples_in_empty_grids_and_for_misses(name):
    options = MarchConfig(samples=40, backend=name)
    origins, directions = rays(50, seed=6)
    empty = march(origins, directions, options, torch.zeros(4, 4, 4, dtype=torch.bool))
    outward = march(origins, normalize(origins, dim=-1), options)
    for samples in (empty, outward):
        assert len(samples) == 0 and samples.n_rays == 50 and int(samples.count.sum()) == 0
    beside = march(torch.tensor([[2.0, 1.5, 0.0]]), torch.tensor([[-1.0, 0.0, 0.0]]), options)
    assert len(beside) == 0
    assert march(torch.empty(0, 3), torch.empty(0, 3), options).n_rays == 0


def test_step_size_divides_the_longest_chord() -> None:
    ball, box = (MarchConfig(radius=2.0, samples=16, bound=bound) for bound in ("sphere", "box"))
    assert step_size(ball) == pytest.approx(4 / 16) and step_size(box) == pytest.approx(4 * 3**0.5 / 16)


@pytest.mark.parametrize("name", ALL)
def test_march_from_inside_starts_at_near(name):
    origins, directions = torch.zeros(1, 3), torch.tensor([[0.0, 0.6, 0.8]])
    samples = march(origins, directions, MarchConfig(samples=100, near=0.5, backend=name))
    assert float(samples.t_start.min()) == 0.5
    assert float(samples.t_end.max()) == pytest.approx(1.25, abs=0.02)


@pytest.mark.parametrize("kernels", OTHERS)
@pytest.mark.parametrize("counts", [[5, 0, 3, 1], [0, 0], [], [40, 64, 65, 200]])
def test_composite_and_gradients_equal_torch(counts, kernels):
    samples, sigma, values = packed(counts, seed=11, channels=4)
    g = torch.Generator().manual_seed(12)
    weights = [
        torch.randn(s, generator=g) for s in ((len(counts), 4), (len(counts), 1), (len(counts), 1), (len(sigma),))
    ]
    results, grads = [], []
    for name in (kernels, "torch"):
        s, v = sigma.clone().requires_grad_(), values.clone().requires_grad_()
        out = composite(s, v, samples, name)
        loss = sum((a * b).sum() for a, b in zip(out, weights, strict=True)) + (out.opacity * out.depth).sum()
        grads.append(torch.autograd.grad(loss, (s, v)))
        results.append(out)
    for a, b in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(grads[0], grads[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_composite_equals_nerfacc(name):
    n_rays, n = 6, 20
    samples, sigma, values = packed([n] * n_rays, seed=31)
    start, end = samples.t_start.view(n_rays, n), samples.t_end.view(n_rays, n)
    weights, _, _ = nerfacc.render_weight_from_density(start, end, sigma.view(n_rays, n))
    out = composite(sigma, values, samples, name)
    torch.testing.assert_close(out.weights.view(n_rays, n), weights)
    torch.testing.assert_close(out.values, nerfacc.accumulate_along_rays(weights, values.view(n_rays, n, 3)))
    depth = nerfacc.accumulate_along_rays(weights, ((start + end) / 2)[..., None])
    torch.testing.assert_close(out.depth, depth)
    expected = nerfacc.render_visibility_from_density(
        start, end, sigma.view(n_rays, n), early_stop_eps=1e-2, alpha_thre=0.2
    )
    assert torch.equal(visible(sigma, samples, 0.2, 1e-2, name).view(n_rays, n), expected)
    assert 0 < int(expected.sum()) < expected.numel()
