"""A stock UNet with blocks between its own: nothing changes before training, nothing stays behind after a call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_mvdiffusion import awaken, inputs, ring, tiny_base, wall
from threedgen.guidance.mvdiffusion import parts
from threedgen.guidance.mvdiffusion.geometry import Scenes
from threedgen.guidance.mvdiffusion.unet import Kind, MultiviewUNet

THREE_LEVELS: dict[str, Any] = {
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


def condition(views: int, *given: int) -> Tensor:
    found = torch.zeros(views, 5, 4, 6)
    for view in given:
        found[view] = 1
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", ["panorama", "depth"])
@pytest.mark.parametrize("levels", [{}, THREE_LEVELS], ids=["two", "three"])
def test_untrained_it_is_the_base(kind: Kind, levels: dict[str, Any]) -> None:
    network = MultiviewUNet(tiny_base(**levels), kind, "capped", condition=True).eval()
    given = inputs(3, size=(4, 6))
    expected = network.unet(*given, return_dict=False)[0]
    geometry = ring(3) if kind == "panorama" else wall()
    torch.testing.assert_close(network(*given, geometry), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(network(*given, geometry, condition(3, 0, 2)), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_one_view_is_the_base_and_several_are_not() -> None:
    network = awaken(MultiviewUNet(tiny_base())).eval()
    given = inputs(8)
    expected = network.unet(*given, return_dict=False)[0]
    assert torch.equal(network(*given), expected)
    assert torch.equal(network(*given, ring(1)), expected)
    assert (network(*given, ring(8)) - expected).abs().max() > 1e-2


@torch.no_grad()
def test_no_hook_stays_behind() -> None:
    network = awaken(MultiviewUNet(tiny_base(), "depth", condition=True)).eval()
    x, t, text = inputs(3, size=(4, 6))
    expected = network.unet(x, t, text, return_dict=False)[0]
    network(x, t, text, wall(), condition(3, 1))
    with pytest.raises(RuntimeError):
        network(x, t, text[..., 1:], wall(), condition(3, 1))
    hooks = [m._forward_hooks or m._forward_pre_hooks for m in network.modules()]
    assert not any(hooks)
    assert torch.equal(network.unet(x, t, text, return_dict=False)[0], expected)


@torch.no_grad()
def test_both_halves_of_guidance_share_a_geometry() -> None:
    network = awaken(MultiviewUNet(tiny_base())).eval()
    x, t, text = inputs(8)
    twice = network(torch.cat([x, x]), torch.cat([t, t]), torch.cat([text * 0, text]), ring(8))
    torch.testing.assert_close(twice[:8], network(x, t, text * 0, ring(8)), rtol=0, atol=1e-5)
    torch.testing.assert_close(twice[8:], network(x, t, text, ring(8)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_scenes_have_geometries_of_their_own() -> None:
    network = awaken(MultiviewUNet(tiny_base(), "depth")).eval()
    x, t, text = inputs(6, size=(4, 6))
    near, far = wall(), wall(step=0.5)
    both = network(x, t, text, Scenes([near, far]))
    alone = [network(x[part], t[part], text[part], at) for part, at in ((slice(3), near), (slice(3, 6), far))]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=1e-5)


@torch.no_grad()
def test_given_pictures_matter() -> None:
    network = awaken(MultiviewUNet(tiny_base(), "depth", condition=True)).eval()
    given = inputs(3, size=(4, 6))
    without, none, first = (network(*given, wall(), c) for c in (None, condition(3), condition(3, 0)))
    assert (first - none).abs().max() > 1e-2 and (none - without).abs().max() > 1e-3


@pytest.mark.parametrize(("kind", "levels"), [("panorama", {}), ("depth", THREE_LEVELS)])
def test_gradients_reach_all_new_blocks_and_nothing_else(kind: Kind, levels: dict[str, Any]) -> None:
    network = awaken(MultiviewUNet(tiny_base(**levels), kind, "capped", condition=True)).train()
    geometry = ring(3) if kind == "panorama" else wall()
    network(*inputs(3, size=(4, 6)), geometry, condition(3, 0)).square().mean().backward()
    assert all(parameter.grad is None for parameter in network.unet.parameters())
    new = {f"{name}.{k}": p for name, block in network.new_blocks.items() for k, p in block.named_parameters()}
    assert len(new) + len(list(network.unet.parameters())) == len(list(network.parameters()))
    assert [name for name, p in new.items() if p.grad is None or not p.grad.any()] == []


def test_what_does_not_fit_is_said() -> None:
    network = MultiviewUNet(tiny_base())
    with pytest.raises(ValueError, match="scenes of 3 views"):
        network(*inputs(8), ring(3))
    with pytest.raises(ValueError, match="no branch"):
        network(*inputs(3, size=(4, 6)), wall(), condition(3, 0))


def test_parts_of_a_batch_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    network, given = awaken(MultiviewUNet(tiny_base())).eval(), inputs(16)
    seen: list[int] = []
    network.unet.mid_block.resnets[0].norm1.register_forward_hook(lambda _m, args, _out: seen.append(len(args[0])))
    with torch.no_grad():
        whole = network(*given, ring())
        monkeypatch.setitem(parts.PART, "cpu", 32 * 4 * 4 * 3)
        torch.testing.assert_close(network(*given, ring()), whole)
    assert seen == [16, 3, 3, 3, 3, 3, 1]
    assert "forward" not in vars(network.unet.mid_block.resnets[0])
    assert network(*given, ring()).shape == whole.shape and seen[-1] == 16, "with gradients in one part"
