"""Stage `kernels` of the GPU benchmark: kernels of hash grid and ray marching, errors against float64, and times.

The fastest back end of the device is compared with its plain torch twin: Triton on a GPU, numba on a CPU.
"""

from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor
from torch.nn.functional import normalize

from threedgen.representations import march as marching
from threedgen.representations.backends import choose, load
from threedgen.representations.field.mlp import MLP
from threedgen.representations.hashgrid import encoding, torch_twin
from threedgen.representations.hashgrid.torch_twin import Levels, grid_levels
from threedgen.representations.march import Samples, pack
from threedgen.representations.volume.options import MarchConfig

from .gpu_stage import Bench

PER_LEVEL_SCALE = 1.447269237440378
ALLOWED_ERROR = 1e-5
"""Relative error that is always allowed. Up to four times the error of the torch twin in float32 is allowed too."""
MLP_ALLOWED_ERROR = 1e-3
"""The same for the MLP, whose weight gradients are computed in TF32."""
Values = dict[str, Tensor]


def kernels(bench: Bench) -> None:
    name = choose("auto", bench.device)
    bench.record("back end", name=name)
    for case, ok, error, twin in compare(name, bench.device, 500 if bench.small else 20_000):
        bench.record(case, ok=ok, error=error, torch_error=twin)
    for count in (1 << 12,) if bench.small else (1_400_000, 8_000_000):
        for part in (time_grid, time_mlp, time_march):
            with bench.case(f"{part.__name__} {count}"):
                part(bench, name, count)
            bench.empty_cache()


def compare(name: str, device: torch.device, points: int) -> Iterator[tuple[str, bool, float, float]]:
    """Compare the back end `name` and its plain torch twin, both in float32, with the torch twin in float64.

    Yields name of the quantity, whether the back end is accurate enough, and the relative errors (norm of the
    difference / norm of the values) of back end and twin. `points` is the number of points in the hash grid.
    """
    rng = torch.Generator().manual_seed(0)
    grid = grid_values(rng, points, device)
    reference, twin = grid(torch_twin, torch.float64), grid(torch_twin, torch.float32)
    ours = grid(load(encoding.MODULES, name, device), torch.float32)
    yield from errors(ours, twin, reference)
    if name == "triton":
        network = mlp_values(rng, points, device)
        ours, twin = network("triton", torch.float32), network("torch", torch.float32)
        yield from errors(ours, twin, network("torch", torch.float64), MLP_ALLOWED_ERROR)
    yield from march_errors(name, rng, device)
    composite = composite_values(rng, max(3, points // 60), device)
    reference, twin = (
        composite(marching.backend(torch.empty(0, device=device), "torch"), dtype)
        for dtype in (torch.float64, torch.float32)
    )
    yield from errors(composite(load(marching.MODULES, name, device), torch.float32), twin, reference)


def errors(
    ours: Values, twin: Values, reference: Values, allowed: float = ALLOWED_ERROR
) -> Iterator[tuple[str, bool, float, float]]:
    for case, exact in reference.items():
        error, other = (float((values[case].double() - exact).norm() / exact.norm()) for values in (ours, twin))
        yield case, error <= max(allowed, 4 * other), error, other


def grid_values(rng: torch.Generator, points: int, device: torch.device) -> Callable[[ModuleType, torch.dtype], Values]:
    """Return a function (back end, dtype) -> features of a hash grid and their first and second derivatives by name.

    The features are evaluated at `points` random points.
    """
    levels = grid_levels(16, 14, 16, PER_LEVEL_SCALE)
    x, table = torch.rand(points, 3, generator=rng), torch.randn(levels.entries, 2, generator=rng)
    shapes = (points, 32), (points, 3), (levels.entries, 2)
    grad, to_x, to_table = (torch.randn(shape, generator=rng) for shape in shapes)

    def values(module: ModuleType, dtype: torch.dtype) -> Values:
        leaves = [t.to(device, dtype).requires_grad_() for t in (x, table, grad)]
        features = encoding.encode(leaves[0], leaves[1], levels, module)
        first = torch.autograd.grad(features, leaves[:2], leaves[2], create_graph=True)
        loss = (first[0] * to_x.to(device, dtype)).sum() + (first[1] * to_table.to(device, dtype)).sum()
        found = features, *first, *torch.autograd.grad(loss, leaves[1:])
        return {
            f"grid {n}": v.detach()
            for n, v in zip(("features", "d x", "d table", "d2 table", "d2 grad"), found, strict=True)
        }

    return values


def mlp_values(rng: torch.Generator, points: int, device: torch.device) -> Callable[[str, torch.dtype], Values]:
    """Return a function (back end, dtype) -> outputs of a field's MLP and their first and second derivatives by name.

    The MLP has 32 inputs, 64 hidden values and 3 outputs, and is evaluated at `points` random inputs.
    """
    x, grad, to_x = (torch.randn(points, size, generator=rng) for size in (32, 3, 32))
    network = MLP(32, 3, 64, 1, rng)

    def values(name: str, dtype: torch.dtype) -> Values:
        network.backend = name
        weights = list(network.to(device, dtype).parameters())
        inputs, given = x.to(device, dtype).requires_grad_(), grad.to(device, dtype)
        found = network(inputs), *torch.autograd.grad(network(inputs), [inputs, *weights], given)
        slope = torch.autograd.grad(network(inputs), inputs, given, create_graph=True)[0]
        second = torch.autograd.grad((slope * to_x.to(device, dtype)).sum(), weights)
        names = ("outputs", "d x", "d hidden", "d output", "d2 hidden", "d2 output")
        return {f"mlp {n}": v.detach() for n, v in zip(names, (*found, *second), strict=True)}

    return values


def march_errors(name: str, rng: torch.Generator, device: torch.device) -> Iterator[tuple[str, bool, float, float]]:
    """Compare the ray-marching samples of the back end `name` and of the torch twin on 3000 rays.

    Yields, in the format of `compare`, the name of the case, whether all samples are equal, the share of rays with
    different numbers of samples, and 0 in place of the error of the twin.
    """
    origins = 2.5 * normalize(torch.randn(3000, 3, generator=rng), dim=-1)
    directions = normalize(0.6 * torch.randn(3000, 3, generator=rng) - origins, dim=-1)
    cells, jitter = torch.rand(32, 32, 32, generator=rng) < 0.1, torch.rand(3000, generator=rng)
    rays = origins.to(device), directions.to(device)
    for bound in ("box", "sphere"):
        ours, twin = (
            marching.march(
                *rays, MarchConfig(samples=512, bound=bound, backend=each), cells.to(device), jitter.to(device)
            )  # type: ignore[arg-type]
            for each in (name, "torch")
        )
        share = float((ours.count != twin.count).float().mean())
        same = share == 0 and all(
            torch.equal(getattr(ours, n), getattr(twin, n)) for n in ("ray_index", "t_start", "t_end")
        )
        yield f"march {bound}", same, share, 0.0


def composite_values(
    rng: torch.Generator, rays: int, device: torch.device
) -> Callable[[ModuleType, torch.dtype], Values]:
    """Return a function (back end, dtype) -> composited values of `rays` rays and their gradients, by name."""
    counts = torch.randint(0, 200, (rays,), generator=rng)
    index = torch.repeat_interleave(torch.arange(rays), counts)
    start = torch.rand(len(index), generator=rng)
    sigma, colours = torch.randn(len(index), generator=rng).abs(), torch.randn(len(index), 6, generator=rng)
    given = [torch.randn(shape, generator=rng) for shape in ((rays, 6), (rays, 1), (rays, 1), (len(index),))]

    def values(module: ModuleType, dtype: torch.dtype) -> Values:
        samples = pack(index.to(device), *(t.to(device, dtype) for t in (start, start + 0.05)), rays)
        leaves = [t.to(device, dtype).requires_grad_() for t in (sigma, colours)]
        found = module.composite(*leaves, samples)
        found = *found, *torch.autograd.grad(found, leaves, [t.to(device, dtype) for t in given])
        names = ("rgb", "opacity", "depth", "weights", "d sigma", "d values")
        return {f"composite {n}": v.detach() for n, v in zip(names, found, strict=True)}

    return values


# --- times at the sizes of a training step


def time_grid(bench: Bench, name: str, count: int) -> None:
    """Record the times of the hash grid of mvdream-sd21 at `count` points, for back end `name` and torch twin."""
    levels = grid_levels(16, 19 if count > 1 << 16 else 12, 16, PER_LEVEL_SCALE)
    for each in dict.fromkeys((name, "torch")):
        if each == "torch" and count > 2_000_000:
            continue  # the torch twin would take 40 GB
        with bench.case(f"grid {each} {count}"), bench.peak() as peak:
            module = load(encoding.MODULES, each, bench.device)
            x = ray_points(count, bench.device)
            table = torch.randn(levels.entries, 2, device=bench.device).requires_grad_()
            grad = torch.randn(count, 32, device=bench.device)
            forward = bench.milliseconds(lambda: encoding.encode(x, table.detach(), levels, module), 5)  # noqa: B023

            def both() -> Sequence[Tensor]:
                return torch.autograd.grad(encoding.encode(x, table, levels, module), table, grad)  # noqa: B023

            extra = normals_time(bench, x, table.detach(), grad, levels, module) if each != "torch" else {}
            bench.record(
                f"grid {each}",
                samples=count,
                forward_ms=forward,
                both_ms=bench.milliseconds(both, 5),
                **extra,
                peak_gb=peak(),
            )


def normals_time(
    bench: Bench, x: Tensor, table: Tensor, grad: Tensor, levels: Levels, module: ModuleType
) -> dict[str, float]:
    return {"normals_ms": bench.milliseconds(lambda: module.position_gradient(x, table, grad, levels), 5)}


def time_mlp(bench: Bench, name: str, count: int) -> None:
    """Record the times of both MLPs of mvdream-sd21's field at `count` points, for back end `name` and torch."""
    rng = torch.Generator().manual_seed(3)
    for each in dict.fromkeys((name, "torch")):
        with bench.case(f"mlp {each} {count}"), bench.peak() as peak:
            networks = [MLP(32, outputs, 64, 1, rng, each).to(bench.device) for outputs in (1, 3)]
            x = torch.randn(32, count, device=bench.device).t().requires_grad_()

            def forward() -> Tensor:
                return sum((network(x).sum() for network in networks), start=x.new_zeros(()))  # noqa: B023

            both = bench.milliseconds(lambda: forward().backward(), 5)  # noqa: B023
            with torch.no_grad():
                forward_ms = bench.milliseconds(forward, 5)
            bench.record(f"mlp {each}", samples=count, forward_ms=forward_ms, both_ms=both, peak_gb=peak())


def ray_points(count: int, device: torch.device) -> Tensor:
    """Return points (count, 3) in [0, 1]^3 along rays of 256 samples, in the order of a render."""
    rng = torch.Generator().manual_seed(1)
    rays = -(-count // 256)
    ends = torch.rand(2, rays, 1, 3, generator=rng).to(device)
    weight = torch.linspace(0, 1, 256, device=device)[:, None]
    return (ends[0] + weight * (ends[1] - ends[0])).reshape(-1, 3)[:count].contiguous()


def time_march(bench: Bench, name: str, count: int) -> None:
    """Record the times of placing about `count` samples on rays, and of compositing them forward and backward."""
    rng, rays = torch.Generator().manual_seed(2), -(-count // 256)
    origins = 2.5 * normalize(torch.randn(rays, 3, generator=rng), dim=-1)
    directions = normalize(0.3 * torch.randn(rays, 3, generator=rng) - origins, dim=-1).to(bench.device)
    origins, options = origins.to(bench.device), MarchConfig(samples=512, backend=name)  # type: ignore[arg-type]

    def place() -> Samples:
        return marching.march(origins, directions, options)

    samples = place()
    sigma = torch.rand(len(samples), device=bench.device).requires_grad_()
    values = torch.rand(len(samples), 3, device=bench.device).requires_grad_()

    def composite() -> None:
        found = marching.composite(sigma, values, samples, name)
        (found.values.sum() + found.opacity.sum()).backward()

    with bench.peak() as peak:
        bench.record(
            f"march {name}",
            samples=len(samples),
            place_ms=bench.milliseconds(place, 5),
            composite_ms=bench.milliseconds(composite, 5),
            peak_gb=peak(),
        )
