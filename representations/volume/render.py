"""Volume rendering of a field along rays (Mildenhall et al. 2020, "NeRF"). An occupancy grid skips empty cells."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from threedgen.representations.backends import choose
from threedgen.representations.base import Render, Representation
from threedgen.representations.losses import orientation_terms
from threedgen.representations.march import Samples, composite, groups, join, march, pack, visible
from threedgen.representations.shading import ALBEDO, Material, Shading
from threedgen.representations.volume.options import MarchConfig, OccupancyConfig
from threedgen.run.memory import graph_bytes, to_device

from .two_pass import two_pass


def render(
    field: Representation,
    background: nn.Module,
    material: Material,
    occupancy: "OccupancyGrid | None",
    options: MarchConfig,
    origins: Tensor,
    directions: Tensor,
    *,
    generator: torch.Generator | None = None,
    training: bool = False,
    light: Tensor | None = None,
    need_normals: bool = False,
    shading: Shading = ALBEDO,
    chunk: int | None = None,
    need_variance: bool = True,
) -> Render:
    """Render R rays through a field by volume rendering; return colour, opacity and depth per ray, and more (`Render`).

    Args:
        field: the object: a function from points to densities and features.
        background: module that maps unit directions (R, 3) to colours (R, 3) in [0, 1]. It is called with the keyword
            arguments `training` and `generator`; its colours are random only in training.
        material: function that maps the features of points to colours.
        occupancy: grid whose empty cells are skipped, or None.
        options: bounding volume, number of samples per ray, back end, and which samples are skipped.
        origins, directions: (R, 3) each, in world units; directions have unit length.
        generator: CPU generator for the random shift of the samples and a random background. Required in training.
        training: if False, use no random numbers, and `options.eval_samples` samples per ray (None: `options.samples`).
        light: (3,) or (R, 3) world positions of point lights; None only if `shading` is unlit.
        need_normals: if True, compute normals even if the shading is unlit.
        shading: shading mode and light intensities.
        chunk: maximum number of samples whose autograd graph is kept at a time; the backward pass recomputes chunk by
            chunk (`two_pass`). None: one chunk.
        need_variance: whether to compute `z_variance`, the sum of compositing weight * (distance - depth)^2 over the
            samples of a ray; if False, it is 0.

    Raises:
        ValueError: if `training` is True and `generator` is None.
    """
    if training and generator is None:
        raise ValueError("missing generator for training=True. Pass a CPU generator.")
    if not training and options.eval_samples is not None:
        options = options.model_copy(update={"samples": options.eval_samples})
    background_rgb = background(directions, training=training, generator=generator)
    jitter = to_device(torch.rand(len(origins), generator=generator), origins.device) if training else None
    rays = _Rays(origins, directions, jitter, None if light is None else light.expand(len(origins), 3))
    samples = _sample_rays(field, occupancy, options, rays, chunk)

    def shade(part: slice) -> tuple[Tensor | None, ...]:
        selected = rays.select(part), samples.select_rays(part)
        return _shade(field, material, options, *selected, shading, need_normals, need_variance)

    parts = samples.split(chunk)
    if len(parts) == 1:
        columns = shade(parts[0])
    else:
        columns = two_pass(lambda part: shade(part)[:-2], parts, field.parameters())
    shaded: dict[str, Any] = dict(zip(_SHADED, columns, strict=False))
    rgb = shaded["rgb_fg"] + background_rgb * (1 - shaded["opacity"])
    return Render(rgb=rgb, background=background_rgb, shading=shading, samples=samples, **shaded)


class _Rays(NamedTuple):
    """R rays: origins and directions (R, 3), shift of samples (R,) in steps or None, light positions (R, 3) or None."""

    origins: Tensor
    directions: Tensor
    jitter: Tensor | None
    light: Tensor | None

    def select(self, part: slice) -> "_Rays":
        jitter, light = (None if value is None else value[part] for value in (self.jitter, self.light))
        return _Rays(self.origins[part], self.directions[part], jitter, light)


_SHADED = ("rgb_fg", "opacity", "depth", "z_variance", "normal", "orientation", "eikonal", "weights", "normals")
"""Attributes of `Render` that `_shade` returns, in this order. The last two have a row per sample, others per ray."""
NO_GRAD_FACTOR = 4  # chunk size of passes without a graph, as a multiple of the training chunk
MARCH_FACTORS = {"triton": 16, "meta": 1 << 40}
"""Back end -> number of chunks whose rays are marched together, in passes without a graph; 1 for other back ends."""


@torch.no_grad()
def _sample_rays(
    field: Representation, occupancy: "OccupancyGrid | None", options: MarchConfig, rays: "_Rays", chunk: int | None
) -> Samples:
    # Dropping samples is off by default: it costs one density evaluation per sample, and saves time if it removes over
    # 40 % of them. As in nerfacc, the alpha threshold is at most the mean of the occupancy grid, so that a scene of
    # uniform low density keeps samples. With `chunk`, a few rays are marched at a time to save memory. On a GPU more
    # rays are marched at a time, since each march waits for its visible samples; densities are computed in chunks.
    grid, threshold = (None if occupancy is None else occupancy.binary), options.alpha_threshold
    drop = threshold > 0 or options.early_stop > 0
    if occupancy is not None and drop:
        threshold = min(threshold, occupancy.mean())
    limit = max(1, len(rays.origins) * options.samples) if chunk is None else NO_GRAD_FACTOR * chunk
    factor = MARCH_FACTORS.get(choose(options.backend, rays.origins.device), 1)
    found = []
    for part, total in groups(rays.origins, rays.directions, options, grid, rays.jitter, factor * limit):
        group = rays.select(part)
        samples = march(group.origins, group.directions, options, grid, group.jitter, total)
        if drop and len(samples):
            sigma = _density(field, group, samples, limit if factor > 1 else len(samples))
            samples = samples.select(visible(sigma, samples, threshold, options.early_stop, options.backend))
        found.append(samples)
    return join(found)


def _density(field: Representation, rays: _Rays, samples: Samples, limit: int) -> Tensor:
    columns = zip(samples.ray_index.split(limit), samples.t_start.split(limit), samples.t_end.split(limit), strict=True)
    parts = (Samples(index, start, end, samples.start, samples.count) for index, start, end in columns)
    return torch.cat([field.density(part.positions(rays.origins, rays.directions)) for part in parts])


def _shade(
    field: Representation,
    material: Material,
    options: MarchConfig,
    rays: _Rays,
    samples: Samples,
    shading: Shading,
    need_normals: bool,
    need_variance: bool,
) -> tuple[Tensor | None, ...]:
    # returns the values of `_SHADED`; deterministic, as `two_pass` requires
    if len(samples) == 0:  # one sample of length 0 on the first ray keeps the graph
        zero = rays.origins.new_zeros(1)
        samples = pack(zero.long(), zero, zero, len(rays.origins))
        points = rays.origins[:1].detach().clamp(-options.radius, options.radius)
    else:
        points = samples.positions(rays.origins, rays.directions)
    normals = eikonal = None
    if field.along_ray is not None:
        directions = rays.directions.index_select(0, samples.ray_index)
        lengths = samples.t_end - samples.t_start
        sigma, features, normals, gradient_norm = field.along_ray(points, directions, lengths)
        eikonal = samples.sum((gradient_norm - 1).square())[:, None]
    elif need_normals or shading.lit:
        sigma, features, normals = field.with_normal(points)
    else:
        sigma, features = field(points)
    light = None if rays.light is None else rays.light.index_select(0, samples.ray_index)
    colours = material(features, normals, points, light, shading)
    values = colours if normals is None else torch.cat([colours, normals], dim=-1)
    result = composite(sigma, values, samples, options.backend)
    rgb_fg, normal, orientation = result.values, None, None
    if normals is not None:
        rgb_fg, normal_sum = result.values.split(3, dim=-1)
        normal = result.opacity * (normalize(normal_sum, dim=-1) + 1) / 2
        directions = rays.directions.index_select(0, samples.ray_index)
        orientation = samples.sum(orientation_terms(result.weights, normals, directions))[:, None]
    variance = torch.zeros_like(result.depth)
    if need_variance:
        from_depth = samples.t_mid - result.depth[:, 0].index_select(0, samples.ray_index)
        variance = samples.sum(result.weights * from_depth * from_depth)[:, None]
    return rgb_fg, result.opacity, result.depth, variance, normal, orientation, eikonal, result.weights, normals


class OccupancyGrid(nn.Module):
    """Occupancy grid of G cells per axis over [-radius, radius]^3, indexed [x, y, z]. Rays skip its empty cells.

    G is the option `resolution`, `step_size` the length of a ray step in world units. The buffer `binary` is True for
    occupied cells, at first all. The buffer `values` has each cell's optical depth, density * step_size. `update`
    changes `binary` and `values`.
    """

    values: Tensor  # (G, G, G) float32 buffer, decaying maximum of density * step size (optical depth of one ray step)
    binary: Tensor  # (G, G, G) bool buffer, True for occupied cells

    def __init__(self, options: OccupancyConfig, radius: float, step_size: float) -> None:
        super().__init__()
        self.options, self.radius, self.step_size = options, radius, step_size
        self._known: tuple[Tensor | None, int, float] = None, 0, 0.0  # `values`, its version, its mean
        shape = (options.resolution,) * 3
        self.register_buffer("values", torch.zeros(shape))
        self.register_buffer("binary", torch.ones(shape, dtype=torch.bool))

    @torch.no_grad()
    def update(self, density: Callable[[Tensor], Tensor], step: int, generator: torch.Generator) -> None:
        """Update the grid with densities at random points. Call it at every step; most calls do nothing.

        At steps that are multiples of the option `interval`:

        1. Choose cells. Below the step `warmup` (an option): all N cells of the grid. Later: N / 4 random cells and the
           occupied cells, or N / 4 random ones of them if there are more.
        2. Compute density * `step_size`, the optical depth of one ray step, at a random point of each chosen cell. The
           value of the cell becomes this number, or its old value * `decay` (an option) if that is larger.
        3. Mark as occupied all cells whose value is above the option `threshold`, or above the mean of all values if
           that is lower. All others are empty.

        Args:
            density: maps points (M, 3) in world units to densities (M,) in 1 / world unit.
            step: training step.
            generator: CPU generator, so that the random points do not depend on the device.
        """
        if step % self.options.interval:
            return
        values, size = self.values.view(-1), self.options.resolution
        total, device = len(values), values.device
        if step < self.options.warmup:
            cells = torch.arange(total, device=device)
        else:
            count = total // 4
            uniform = to_device(torch.randint(total, (count,), generator=generator), device)
            occupied = self.binary.view(-1).nonzero()[:, 0]
            if len(occupied) > count:
                chosen = torch.randint(len(occupied), (count,), generator=generator)
                occupied = occupied[to_device(chosen, device)]
            cells = torch.cat([uniform, occupied])
        corner = torch.stack([cells // (size * size), cells // size % size, cells % size], dim=-1)
        offset = to_device(torch.rand(len(cells), 3, generator=generator), device)
        points = ((corner + offset) * (2 / size) - 1) * self.radius
        new = density(points).reshape(-1).float() * self.step_size
        decayed = values[cells] * self.options.decay
        # a cell may occur twice: the larger value wins, in any order
        updated = torch.zeros_like(values).scatter_reduce(0, cells, torch.maximum(decayed, new), "amax")
        values[cells] = updated[cells]
        self.binary.copy_(self.values > self._mean().clamp(max=self.options.threshold))

    def _mean(self) -> Tensor:
        return self.values.mean(-1).mean()  # by rows: bit-identical for any number of threads

    def mean(self) -> float:
        """Return the mean over all cells of the optical depth of one ray step (`values`).

        The result is cached until `values` changes, because reading a number from a GPU waits for the GPU.
        """
        values, version, mean = self._known
        if values is not self.values or version != self.values._version:
            mean = float(self._mean())
            self._known = self.values, self.values._version, mean
        return mean


# --- chunk size

MEMORY_FRACTION = 0.25  # fraction of the free memory for the graph of a chunk; the rest is for prior and optimiser
BACKWARD_FACTOR = 2.0  # peak memory of a forward and backward pass, as a multiple of the graph's memory


def sample_bytes(
    field: Representation,
    background: nn.Module,
    material: Material,
    options: MarchConfig,
    normals: bool,
    device: torch.device | str = "cpu",
) -> float:
    """Measure with a few rays on `device` how many bytes a sample adds, on average, to the autograd graph of a render.

    Args:
        field: the object, as in `render`: a function from points to densities and features.
        background: module that maps ray directions to background colours.
        material: function that maps the features of points to colours.
        options: options of the ray marching. Those that drop samples or divide them into chunks are ignored.
        normals: True for a lit render with normals, False for an unlit render.
        device: device of the render.
    """
    shading = Shading("diffuse", 0.5, 0.5) if normals else ALBEDO
    shade_all = options.model_copy(update={"alpha_threshold": 0.0, "early_stop": 0.0, "chunk": None})

    def probe(rays: int) -> Render:
        offset = torch.linspace(-0.9, 0.9, rays, device=device)
        origins = options.radius * torch.stack([torch.full_like(offset, -3.0), offset, offset], dim=-1)
        directions = torch.tensor([[1.0, 0.0, 0.0]], device=device).expand(rays, 3)
        parts = (field, background, material, None, shade_all)
        return render(*parts, origins, directions, light=origins, need_normals=normals, shading=shading)

    with torch.enable_grad():
        samples = probe(32).n_samples - probe(16).n_samples
        return (graph_bytes(lambda: probe(32)) - graph_bytes(lambda: probe(16))) / max(1, samples)


def samples_that_fit(free_bytes: int, bytes_per_sample: float) -> int:
    """Return the number of samples per chunk (computed at a time) that the free memory allows.

    The result is a power of two, at least 1024, so that small changes of the free memory do not change it.
    """
    fitting = MEMORY_FRACTION * free_bytes / (BACKWARD_FACTOR * max(bytes_per_sample, 1.0))
    return 1 << max(10, int(fitting).bit_length() - 1)
