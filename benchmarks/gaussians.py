"""Time the rasteriser of 3D Gaussians, forward and backward to all parameters: numba kernels against PyTorch."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from threedgen.geometry.rigs import orbit
from threedgen.representations import gaussians
from threedgen.representations.gaussians import points

from .clock import Case, paired
from .table import Row, Table

SIZES = [(1000, 1, 64), (20_000, 4, 128)]
"""Number of Gaussians, number of views, image size in pixels. The plain PyTorch version needs memory for all pairs of
pixel and Gaussian, so it is timed only for the first size."""
RADIUS, OPACITY = 0.5, 0.1  # radius of the ball of Gaussians in world units, and opacity of each Gaussian


def table(rounds: int) -> Table:
    """Return a row for each of SIZES and each back end, with the time per pair of a pixel and a Gaussian."""
    rows: list[Row] = []
    for count, views, size in SIZES:
        at, inputs = orbit(views, 0.3, 2.6, math.radians(40), size, size), ball(count, views)
        pairs = pairs_of(gaussians.project(*inputs, at))
        backends = ["torch", "numba"] if (count, views, size) == SIZES[0] else ["numba"]
        cases = {backend: Case(_pass(inputs, at, backend)) for backend in backends}
        head: Row = {"Gaussians": count, "views": views, "pixels": size, "pairs": pairs}
        for row in paired(cases, backends[0], rounds):
            rows.append(head | row | {"ns per pair": 1e6 * float(str(row["median, ms"])) / pairs})
    note = f"{rounds} interleaved rounds, {torch.get_num_threads()} threads; opacity {OPACITY}, all of a ball in view."
    return Table("Rasterisation of 3D Gaussians, forward + backward", rows, [note])


def ball(count: int, views: int) -> list[Tensor]:
    """Return the parameters of n = `count` random Gaussians in a ball, all of which require gradients.

    They are means (n, 3), quaternions (n, 4), scales (n, 3), opacities (n,), and the values (`views`, n, C) that are
    rendered in each view, C = `gaussians.CHANNELS`. The scales are half the local spacing of the Gaussians.
    """
    rng = torch.Generator().manual_seed(0)
    start = points.ball(count, RADIUS, rng)
    parts = [
        start.positions,
        torch.randn(count, 4, generator=rng),
        (start.spacing / 2)[:, None].repeat(1, 3),
        torch.full((count,), OPACITY),
        torch.rand(views, count, gaussians.CHANNELS, generator=rng),
    ]
    return [part.requires_grad_() for part in parts]


def pairs_of(splats: gaussians.ProjectedSplats) -> int:
    """Return the number of pairs of a pixel and a splat whose alpha is at least `gaussians.ALPHA_THRESHOLD` there.

    The number is estimated by the area of the ellipses in pixels.
    """
    a, b, c = splats.conics.detach().unbind(-1)
    reach = 2 * (splats.opacities.detach() / gaussians.ALPHA_THRESHOLD).clamp(min=1).log()
    return int((math.pi * reach / (a * c - b * b).sqrt())[splats.extents[..., 0] > 0].sum())


def _pass(inputs: list[Tensor], at: gaussians.Cameras, backend: str) -> Callable[[], None]:
    shape = (len(at), at.height, at.width, gaussians.CHANNELS + 1)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1))

    def run() -> None:
        for tensor in inputs:
            tensor.grad = None
        gaussians.composite(gaussians.project(*inputs, at), at.height, at.width, backend).backward(grad)

    return run
