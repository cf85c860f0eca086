"""What the 3DiM network may see and what it may not, its options, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.tiny_threedim import TINY, Inputs, inputs, poses, shaken, tiny_network
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import opencv_axes, pixel_rays
from threedgen.guidance.threedim.blocks import PLAIN_TOKENS, Attention, attend
from threedgen.guidance.threedim.options import XUNetConfig
from threedgen.guidance.threedim.rays import noise_level_encoding, posenc
from threedgen.guidance.threedim.xunet import XUNet

BOTH = pytest.mark.parametrize("architecture", ["xunet", "concat"])


@pytest.fixture(scope="module")
def network() -> XUNet:
    return tiny_network()


@torch.no_grad()
def influence(network: XUNet, given: Inputs, **changed: Tensor) -> list[bool]:
    """For each scene: does the change reach the output?"""
    difference = network(*given) - network(*given._replace(**changed))
    return [bool(d.abs().max() > 1e-6) for d in difference]


# ---------------------------------------------------------------- shapes and options


@BOTH
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"image_size": (16, 24), "channel_mult": (1, 2, 2), "attn_resolutions": (4, 8)},
        {"image_size": 16, "channel_mult": (1, 1, 1, 2), "attn_resolutions": (), "attn_middle": True},
        {"image_size": 4, "channel_mult": (3,), "num_res_blocks": 2, "use_pos_emb": False, "use_ref_pose_emb": False},
        {"image_channels": 4, "origin_degrees": 4, "direction_degrees": 0},
        {"poses": "relative", "prediction": "v_prediction", "variant": "port"},
    ],
)
def test_output_is_a_picture_of_the_target(architecture: str, options: dict[str, Any]) -> None:
    network = tiny_network(architecture=architecture, **options)
    given = inputs(network, batch=3)
    with torch.no_grad():
        out = network(*given)
    assert out.shape == given.z.shape and out.isfinite().all()
    assert influence(network, given, z=given.z.roll(1, 0)) == [True] * 3


@BOTH
def test_fresh_networks_predict_zeros_and_start_as_flax_does(architecture: str) -> None:
    network = XUNet(XUNetConfig(**(TINY | {"architecture": architecture, "channels": 32})))
    assert not network(*inputs(network)).any()
    film = network.unet.middle.residual.film.weight
    assert film.std().item() == pytest.approx(film.shape[1] ** -0.5, rel=0.1)
    assert not network.unet.middle.residual.conv2.weight.any() and not network.unet.conv_in.bias.any()


def test_blocks_resample_at_their_end(network: XUNet) -> None:
    sizes: list[int] = []
    hooks = [
        block.conv1.register_forward_hook(lambda _m, i, _o: sizes.append(i[0].shape[-1]))
        for block in (network.unet.downsample[0], network.unet.upsample[0])
    ]
    with torch.no_grad():
        network(*inputs(network))
    for hook in hooks:
        hook.remove()
    assert sizes == [8, 4]  # of what the convolutions see, going down and up


def test_paper_sizes() -> None:
    """Counted by an abstract initialisation of the JAX listing; without cross-attention, about the paper's 421 M."""
    with torch.device("meta"):
        sizes = {
            name: count(XUNet(XUNetConfig(**options)))
            for name, options in {
                "128": {},
                "64": {"image_size": 64},
                "concat": {"architecture": "concat"},
            }.items()
        }
    assert sizes["128"] == pytest.approx(461.66e6, abs=5e3)
    assert sizes["64"] == pytest.approx(474.62e6, abs=5e3)
    assert sizes["concat"] == pytest.approx(421e6, rel=0.02)


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# ---------------------------------------------------------------- who sees what


def test_the_condition_reaches_the_target_only_by_cross_attention() -> None:
    for attends, expected in (((4,), True), ((), False)):
        network = tiny_network(attn_resolutions=attends)
        given = inputs(network)
        assert influence(network, given, x=given.x + 1) == [expected] * 2
        moved = given.c2w.clone()
        moved[:, 0, :3, 3] += 1  # the condition's camera
        assert influence(network, given, c2w=moved) == [expected] * 2


def test_the_concatenating_baseline_sees_the_condition_without_attention() -> None:
    network = tiny_network(architecture="concat", attn_resolutions=())
    given = inputs(network)
    moved = given.c2w.clone()
    moved[:, 0, :3, 3] += 1
    assert influence(network, given, x=given.x + 1) == [True] * 2 == influence(network, given, c2w=moved)


@BOTH
def test_scenes_of_a_batch_do_not_see_each_other(architecture: str) -> None:
    network = tiny_network(architecture=architecture)
    given = inputs(network, batch=3)
    for name, tensor in given._asdict().items():
        changed = tensor.clone()
        if name == "cond_mask":
            changed[1] = False
        else:
            changed[1] = tele(tensor[1]) if name == "K" else tensor[1] * 0.5
        assert influence(network, given, **{name: changed}) == [False, True, False], name


@BOTH
def test_a_dropped_condition_hides_all_poses(architecture: str) -> None:
    network = tiny_network(architecture=architecture)
    given = inputs(network)._replace(cond_mask=torch.tensor([True, False]))
    other = poses(4, torch.Generator().manual_seed(7)).unflatten(0, (2, 2))
    assert influence(network, given, c2w=other) == [True, False] == influence(network, given, K=tele(given.K))


def tele(K: Tensor) -> Tensor:
    """The intrinsics with twice the focal length."""
    return K * torch.tensor([[2.0, 1, 1], [1, 2, 1], [1, 1, 1]])


def test_without_a_frame_embedding_the_frames_are_interchangeable() -> None:
    def both_frames(network: XUNet, given: Inputs) -> Tensor:
        found: list[Tensor] = []
        hook = network.unet.register_forward_hook(lambda _m, _i, out: found.append(out))
        with torch.no_grad():
            network(*given)
        hook.remove()
        return found[0].unflatten(0, (-1, 2))

    for embedded in (False, True):
        network = tiny_network(use_ref_pose_emb=embedded)
        given = inputs(network)
        swapped = Inputs(given.z, given.x, given.logsnr.flip(1), given.c2w.flip(1), given.K, given.cond_mask)
        error = (both_frames(network, swapped).flip(1) - both_frames(network, given)).abs().max()
        assert (error < 1e-4) != embedded


def test_relative_poses_do_not_depend_on_the_world() -> None:
    turn = poses(1, torch.Generator().manual_seed(3))[0]
    turn[:3, 3] = torch.tensor([0.3, -0.2, 0.5])
    # few octaves: a rounding error of a pose should stay one
    for kind, moves in (("relative", False), ("absolute", True)):
        network = tiny_network(poses=kind, origin_degrees=3)
        given = inputs(network)
        with torch.no_grad():
            error = (network(*given._replace(c2w=turn @ given.c2w)) - network(*given)).abs().max()
        assert (error > 1e-3) == moves


@pytest.mark.parametrize("cross", [False, True])
def test_attention_between_frames(cross: bool) -> None:
    """One changed pixel of frame 0 of scene 0 changes itself, and all of the frame that attends to it."""
    torch.manual_seed(0)
    layer = shaken(Attention(8, heads=2, groups=8, cross=cross))
    layer.norm = torch.nn.Identity()  # whose statistics would spread the change
    h = torch.randn(4, 8, 3, 3)
    changed = h.clone()
    changed[0, :, 1, 1] += 1
    with torch.no_grad():
        seen = ((layer(changed) - layer(h)).abs().amax(1) > 1e-7).flatten(1).sum(1)
    assert seen.tolist() == ([1, 9, 0, 0] if cross else [9, 0, 0, 0])


# ---------------------------------------------------------------- numbers


@pytest.mark.parametrize("length", [7, PLAIN_TOKENS + 1])
@pytest.mark.parametrize("dtype, most", [(torch.float32, 1e-5), (torch.bfloat16, 0.05)])
def test_attention_is_the_fused_one_with_its_gradient(
    length: int, dtype: torch.dtype, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    gen = torch.Generator().manual_seed(0)
    parts = [torch.randn(2, 3, length, 4, generator=gen).to(dtype).requires_grad_() for _ in range(3)]
    fused, asked = F.scaled_dot_product_attention, []
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args: asked.append(1) or fused(*args))
    found, expected = attend(*parts), fused(*parts)
    assert bool(asked) != (dtype == torch.bfloat16 and length == 7)  # which takes plain products
    torch.testing.assert_close(found, expected, rtol=0, atol=most)
    probe = torch.randn(found.shape, generator=gen).to(dtype)
    for a, b in zip(torch.autograd.grad(found, parts, probe), torch.autograd.grad(expected, parts, probe), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=most)
    with torch.no_grad():
        attend(*parts)
    assert asked


@BOTH
def test_gradients_reach_every_weight_and_both_pictures(architecture: str) -> None:
    network = tiny_network(architecture=architecture)
    given = inputs(network)
    x, z = given.x.requires_grad_(), given.z.requires_grad_()
    network(*given).square().mean().backward()
    for name, tensor in [*network.named_parameters(), ("x", x), ("z", z)]:
        assert tensor.grad is not None and tensor.grad.abs().sum() > 0, name


@BOTH
@pytest.mark.parametrize("learning", [False, True])
def test_autocast_is_close_to_float32(architecture: str, learning: bool) -> None:
    network = tiny_network(architecture=architecture)
    given = inputs(network)
    with torch.set_grad_enabled(learning):
        exact = network(*given)
        with torch.autocast("cpu", torch.bfloat16):
            rough = network(*given)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()
    if learning:
        rough.float().square().mean().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


def test_rays_are_those_of_the_projects_cameras_also_under_autocast() -> None:
    c2w, fov = poses(3, torch.Generator().manual_seed(0)), torch.tensor([0.5, 0.8, 1.1])
    cameras = Cameras(c2w, Projection.perspective(fov, 6, 9), 6, 9)
    origins, directions = cameras.rays()
    with torch.autocast("cpu", torch.bfloat16):
        found = pixel_rays(c2w[:, None], cameras.K[:, None], 6, 9)
    torch.testing.assert_close(found[0][:, 0].expand_as(origins), origins, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[1][:, 0], directions, rtol=0, atol=1e-6)
    assert torch.equal(opencv_axes(opencv_axes(c2w)), c2w)


def test_encodings_by_hand() -> None:
    x = torch.tensor([0.1, -0.2, 0.3])
    expected = torch.cat([x, x.sin(), (2 * x).sin(), x.cos(), (2 * x).cos()])
    torch.testing.assert_close(posenc(x, 2), expected)
    assert torch.equal(posenc(x, 0), x)
    clean, noise, middle = noise_level_encoding(torch.tensor([20.0, -20.0, 0.0]), 4)
    torch.testing.assert_close(clean, torch.tensor([0.0, 0, 1, 1]), rtol=0, atol=0.03)  # u = 3e-5, not 0
    torch.testing.assert_close(middle[1], torch.tensor(0.05).sin())  # u = 1/2 at the frequency 1e-4
    torch.testing.assert_close(noise[3], torch.tensor(0.1).cos(), rtol=0, atol=1e-4)


def test_dropped_conditions_are_told_as_trained() -> None:
    for level in (-20.0, 20.0):
        network = tiny_network(dropped_logsnr=level)
        given = inputs(network)
        keep = torch.tensor([True, False])
        levels = torch.tensor([[20.0, 1.5], [level, 1.5]])
        with torch.no_grad():
            found = network.predict(given.x, given.z, torch.full((2,), 1.5), given.c2w, given.K, keep)
            assert torch.equal(found, network(given.x, given.z, levels, given.c2w, given.K, keep))


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "options, sentence",
    [
        ({"image_size": 9}, r"image_size 9 x 9 should be a multiple of 2"),
        ({"image_size": (8, 0)}, r"image_size 8 x 0 should be"),
        ({"channel_mult": ()}, "should have a number from 1 for each level"),
        ({"groups": 3}, "8 channels wide, which should be a multiple of groups 3"),
        ({"attn_heads": 3}, "16 channels wide, which should be a multiple of attn_heads 3"),
        ({"emb_channels": 7}, "emb_channels 7 should be even"),
    ],
)
def test_sizes_that_do_not_fit_are_named(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        XUNetConfig(**(TINY | options))


@pytest.mark.parametrize(
    "name, tensor, sentence",
    [
        ("z", torch.zeros(2, 3, 8, 9), r"z has the shape \(2, 3, 8, 9\); this network needs \(2, 3, 8, 8\)"),
        ("x", torch.zeros(2, 1, 8, 8), "x has the shape"),
        ("logsnr", torch.zeros(2), "logsnr has the shape"),
        ("c2w", torch.zeros(2, 4, 4), "c2w has the shape"),
        ("K", torch.zeros(2, 2, 3, 3), "K has the shape"),
        ("K", torch.stack([torch.eye(3), torch.zeros(3, 3)]), "intrinsics K number 1 have no inverse"),
        ("cond_mask", torch.zeros(3, dtype=torch.bool), "cond_mask has the shape"),
        ("cond_mask", torch.ones(2), "cond_mask should be bool"),
    ],
)
def test_inputs_that_do_not_fit_are_named(network: XUNet, name: str, tensor: Tensor, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        network(*inputs(network)._replace(**{name: tensor}))
