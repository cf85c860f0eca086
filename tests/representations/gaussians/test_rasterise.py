import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.parity_files import close, options, recorded, tensors
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.rigs import orbit
from threedgen.representations import gaussians

NAMES = ("means", "quaternions", "scales", "opacities", "values")
Inputs = dict[str, Tensor]


def cloud(count: int, views: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0) -> Inputs:
    """Return random anisotropic Gaussians around the origin, some of them almost opaque."""
    rng = torch.Generator().manual_seed(seed)
    parts = {
        "means": 0.3 * torch.randn(count, 3, generator=rng),
        "quaternions": torch.randn(count, 4, generator=rng),
        "scales": 0.02 + 0.1 * torch.rand(count, 3, generator=rng),
        "opacities": 0.05 + 0.95 * torch.rand(count, generator=rng),
        "values": torch.rand(views, count, gaussians.CHANNELS, generator=rng),
    }
    return {name: part.to(dtype).requires_grad_() for name, part in parts.items()}


def cameras(views: int = 2, height: int = 40, width: int = 50) -> Cameras:
    return orbit(views, 0.3, 2.6, math.radians(40), height, width)


def image(inputs: Inputs, at: Cameras, backend: str = "torch", **more: Any) -> Tensor:
    splats = gaussians.project(*(inputs[name] for name in NAMES), at, **more)
    return gaussians.composite(splats, at.height, at.width, backend)


def gradients(inputs: Inputs, at: Cameras, backend: str, seed: int = 5) -> tuple[Tensor, Inputs]:
    """Return the image, and the gradients of a random linear function of it."""
    for tensor in inputs.values():
        tensor.grad = None
    out = image(inputs, at, backend)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(seed))).sum().backward()
    return out.detach(), {name: tensor.grad.clone() for name, tensor in inputs.items() if tensor.grad is not None}


@recorded("gsplat")
@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_images_and_gradients_equal_gsplat(path: Path, backend: str) -> None:
    """gsplat's `_fully_fused_projection` and `accumulate` of gsplat/cuda/_torch_impl.py, in float64.

    Recorded once by importing that file at the commit in the metadata, with its CUDA modules replaced by empty ones.
    The pairs of pixels and Gaussians, which gsplat finds with CUDA, were all pairs with alpha >= 1/255 of visible
    Gaussians (both radii above 0) in depth order. nerfacc's packed functions, which need CUDA too, were its dense ones
    on the same pairs. One Gaussian is behind a camera, one beyond the margin in which the projection is linearised in
    place.
    """
    data, meta = tensors(path), options(path)
    dtype = torch.float64 if backend == "torch" else torch.float32
    inputs = {name: data[name].to(dtype).requires_grad_() for name in NAMES}
    at = Cameras(data["c2w"].to(dtype), Projection(data["K"].to(dtype)), meta["height"], meta["width"])
    splats = gaussians.project(*(inputs[name] for name in NAMES), at)
    tolerance = 1e-10 if backend == "torch" else 2e-5
    seen = data["visible"]
    assert not (splats.extents[..., 0] > 0)[~seen].any() and (~seen).any()
    for found, name in ((splats.means, "means2d"), (splats.conics, "conics"), (splats.depths, "depths")):
        close(found.detach()[seen], data[name][seen], tolerance)
    out = gaussians.composite(splats, at.height, at.width, backend)
    close(out.detach(), data["image"], tolerance)
    (out * data["weights"].to(dtype)).sum().backward()
    for name, tensor in inputs.items():
        assert tensor.grad is not None
        close(tensor.grad, data[f"g_{name}"], 10 * tolerance)


@pytest.mark.parametrize(("height", "width"), [(40, 50), (16, 8), (5, 3), (33, 17)])
def test_numba_equals_the_twin(height: int, width: int) -> None:
    inputs, at = cloud(150, dtype=torch.float32), cameras(2, height, width)
    one, g_one = gradients(inputs, at, "numba")
    other, g_other = gradients(inputs, at, "torch")
    close(one, other, 1e-5)
    for name in NAMES:
        close(g_one[name], g_other[name], 1e-4)


def test_opaque_layers_end_the_pixels() -> None:
    """Behind many opaque Gaussians, others have no influence and no gradient, in both back ends."""
    inputs = cloud(60, 1, torch.float32)
    with torch.no_grad():
        inputs["means"][:] = torch.tensor([[1.0, 0.0, 0.0]]) * torch.linspace(0.9, -0.9, 60)[:, None]
        inputs["scales"][:], inputs["opacities"][:] = 0.5, 0.9
    at = orbit(1, 0.0, 2.6, math.radians(20), 16, 16)
    for backend in ("torch", "numba"):
        out, found = gradients(inputs, at, backend)
        assert out[..., -1].min() > 0.998 and found["means"][0].abs().max() > 0
        assert found["means"][30:].abs().max() == 0 and found["values"][0, 30:].abs().max() == 0


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_nothing_in_view_is_transparent(backend: str) -> None:
    inputs, at = cloud(8, 1, torch.float32), cameras(1)
    with torch.no_grad():
        inputs["means"] += 100.0
    out, found = gradients(inputs, at, backend)
    assert out.abs().max() == 0 and all(g.abs().max() == 0 for g in found.values())
