from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.errors import refused
from tests.support.flax_threedim import network_of
from tests.support.parity_files import parted, recorded
from tests.support.tiny_threedim import TINY, Inputs, inputs, poses, tiny_network
from threedgen.geometry.poses import opencv_axes, pixel_rays
from threedgen.guidance.novel_view.blocks import MAX_EXPLICIT_TOKENS, attend
from threedgen.guidance.novel_view.options import XUNetConfig
from threedgen.guidance.novel_view.xunet import XUNet

BOTH = pytest.mark.parametrize("architecture", ["xunet", "concat"])


@torch.no_grad()
def influence(network: XUNet, batch: Inputs, **changed: Tensor) -> list[bool]:
    difference = network(*batch) - network(*batch._replace(**changed))
    return [bool(d.abs().max() > 1e-6) for d in difference]


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {"image_size": (16, 24), "channel_mult": (1, 2, 2), "attn_resolutions": (4, 8)},
        {"image_size": 4, "channel_mult": (3,), "num_res_blocks": 2},
        {"origin_degrees": 4, "direction_degrees": 0},
    ],
)
def test_output_has_shape_of_target(architecture: str, options: dict[str, Any]) -> None:
    network = tiny_network(architecture=architecture, **options)
    batch = inputs(network, batch=3)
    with torch.no_grad():
        out = network(*batch)
    assert out.shape == batch.z.shape and out.isfinite().all()
    assert influence(network, batch, z=batch.z.roll(1, 0)) == [True] * 3


@BOTH
def test_dropped_condition_hides_all_poses(architecture: str) -> None:
    network = tiny_network(architecture=architecture)
    batch = inputs(network)._replace(has_condition=torch.tensor([True, False]))
    other = poses(4, torch.Generator().manual_seed(7)).unflatten(0, (2, 2))
    zoomed = batch.K * torch.tensor([[2.0, 1, 1], [1, 2, 1], [1, 1, 1]])
    assert influence(network, batch, c2w=other) == [True, False] == influence(network, batch, K=zoomed)
    if architecture == "xunet":  # `predict` takes a dropped condition as noise
        levels, level = torch.tensor([[20.0, 1.5], [-20.0, 1.5]]), torch.full((2,), 1.5)
        with torch.no_grad():
            found = network.predict(batch.x, batch.z, level, batch.c2w, batch.K, batch.has_condition)
            assert torch.equal(found, network(*batch._replace(logsnr=levels)))


@pytest.mark.parametrize("length", [7, MAX_EXPLICIT_TOKENS + 1])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_attend_matches_fused_attention_and_gradient(length, dtype, tolerance, monkeypatch) -> None:
    gen = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, length, 4, generator=gen).to(dtype).requires_grad_() for _ in range(3)]
    fused, calls = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args: calls.append(1) or fused(*args))
    found, expected = attend(*parts), fused(*parts)
    assert bool(calls) != (dtype == torch.bfloat16 and length == 7)  # there explicit softmax is faster
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    probe = torch.randn(found.shape, generator=gen).to(dtype)
    for a, b in zip(torch.autograd.grad(found, parts, probe), torch.autograd.grad(expected, parts, probe), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=tolerance)
    with torch.no_grad():
        attend(*parts)
    assert calls


@BOTH
def test_gradients_reach_all_weights_and_both_images(architecture: str) -> None:
    network = tiny_network(architecture=architecture)
    batch = inputs(network)
    x, z = batch.x.requires_grad_(), batch.z.requires_grad_()
    network(*batch).square().mean().backward()
    for name, tensor in [*network.named_parameters(), ("x", x), ("z", z)]:
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0, name


@BOTH
def test_autocast_is_close_to_float32(architecture: str) -> None:
    network = tiny_network(architecture=architecture)
    batch = inputs(network)
    exact = network(*batch)
    with torch.autocast("cpu", torch.bfloat16):
        half = network(*batch)
    assert half.dtype == torch.bfloat16
    assert (half - exact).abs().max() < 0.1 * exact.abs().max()
    half.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize(
    "options, values",
    [
        ({"image_size": 9}, ["image_size", "9 x 9", 2]),
        ({"channel_mult": ()}, ["channel_mult"]),
        ({"attn_heads": 3}, [16, "attn_heads", 3]),
        ({"channels": 6, "channel_mult": (2, 2)}, [6, "groups", 4]),
    ],
)
def test_xunet_config_refuses_sizes_that_do_not_fit(options: dict[str, Any], values: list[Any]) -> None:
    with refused(None, *values, kind=ValueError):
        XUNetConfig(**(TINY | options))


def c2w_of(rotation: Tensor, translation: Tensor) -> Tensor:
    """Convert rotation and position of cameras in OpenCV axes to poses in OpenGL axes."""
    c2w = torch.eye(4).repeat(*translation.shape[:-1], 1, 1)
    c2w[..., :3, :3], c2w[..., :3, 3] = rotation, translation
    return opencv_axes(c2w)


def recorded_outputs(network: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """Return a dict that holds the outputs of the named modules, by key, after the next call."""
    found: dict[str, Tensor] = {}
    for key, name in names.items():
        network.get_submodule(name).register_forward_hook(lambda _m, _i, out, key=key: found.update({key: out}))
    return found


def pose_maps(rest: dict[str, Tensor]) -> dict[str, str]:
    levels = [int(name.rpartition("_")[2]) for name in rest if name.startswith("mid/pose_emb_")]
    return {f"mid/pose_emb_{level}": f"conditioning.poses.{level}" for level in levels}


@torch.no_grad()
def run(network: XUNet, rest: dict[str, Tensor]) -> Tensor:
    x, z = (rest[f"in/{name}"].permute(0, 3, 1, 2) for name in "xz")
    c2w = c2w_of(rest["in/R"], rest["in/t"])
    return network(x, z, rest["in/logsnr"], c2w, rest["in/K"], rest["in/cond_mask"])


def close(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@recorded("xunet_jax")
def test_network_matches_recorded_jax_listing(path: Path) -> None:
    weights, rest, meta = parted(path, "w/")
    height, width = rest["in/x"].shape[1:3]
    network = network_of(meta, weights, (height, width))
    names = {"mid/logsnr_emb": "conditioning.logsnr", "mid/XUNetBlock_0": "unet.down.0.0"} | pose_maps(rest)
    names |= {"mid/ResnetBlock_0": "unet.downsample.0"} if "mid/ResnetBlock_0" in rest else {}
    found = recorded_outputs(network, names)
    eps = run(network, rest).permute(0, 2, 3, 1)
    origins, directions = pixel_rays(c2w_of(rest["in/R"], rest["in/t"]), rest["in/K"][:, None], height, width)
    close(origins.expand_as(directions), rest["mid/ray_pos"], 0)
    close(directions, rest["mid/ray_dir"], 1e-6)
    for key, tensor in found.items():
        frames = tensor if key == "mid/logsnr_emb" else tensor.unflatten(0, (-1, 2)).permute(0, 1, 3, 4, 2)
        # the highest octave of the encoded rays turns one rounding error into 1e-3
        close(frames, rest[key], 1e-4 if "emb" in key else 5e-3)
    error = (eps - rest["out/eps"]).abs()
    assert error.max() < 5e-3 and error.mean() < 5e-4
