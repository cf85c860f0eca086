"""The frozen UNet with an adapter: which forms it has, and what of it is trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel

from tests.support.tiny_mvadapter import TOYBOX, awaken
from tests.support.tiny_mvdiffusion import inputs, tiny_base
from threedgen.guidance.diffusion import Reference
from threedgen.guidance.mvadapter.network import AdaptedUNet, make_guider
from threedgen.guidance.mvadapter.weights import convert_adapter

SD: dict[str, Any] = {"block_out_channels": (320, 640, 1280, 1280)}
SDXL: dict[str, Any] = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "cross_attention_dim": 2048,
}


def control(views: int, height: int = 1, width: int = 1) -> torch.Tensor:
    return torch.rand(views, 6, height, width, generator=torch.Generator().manual_seed(2))


def millions(*modules: torch.nn.Module) -> float:
    return sum(p.numel() for module in modules for p in module.parameters()) / 1e6


@pytest.mark.parametrize(("config", "attention", "guider"), [(SD, 49.574, 77.922), (SDXL, 409.683, 81.240)])
def test_released_bases_get_adapters_of_the_published_size(config: Any, attention: float, guider: float) -> None:
    with torch.device("meta"):
        network = AdaptedUNet(UNet2DConditionModel(**config), branches=("mv",))
    *processors, found = network.new_parts
    assert len(processors) == (16 if config is SD else 70)
    assert millions(*processors) == pytest.approx(attention, abs=1e-3)
    assert millions(found) == pytest.approx(guider, abs=1e-3)


@pytest.mark.parametrize(("config", "multiple"), [({}, 8), (TOYBOX, 16)])
def test_features_of_the_guider_arrive_in_every_block(config: Any, multiple: int) -> None:
    network = AdaptedUNet(tiny_base(**config), branches=("mv",))
    assert network.multiple == multiple
    x, t, text = inputs(3, size=(4, 10))
    found = network.guide(control(3), 32, 80)
    assert found is not None and len(found) == len(network.unet.down_blocks) + (config is TOYBOX)
    without = network(x, t, text, None, 3)
    for block in network.guider.adapter.body:
        for parameter in block.parameters():
            parameter.data.zero_()
    network.guider.adapter.body[-1].resnets[-1].block2.bias.data.fill_(1.0)  # of the last feature alone
    network.guider.adapter.conv_in.weight.data.zero_()
    network.guider.adapter.conv_in.bias.data.zero_()
    assert (network(x, t, text, control(3, 32, 80), 3) - without).abs().max() > 1e-3


@torch.no_grad()
def test_smaller_maps_say_the_same_where_pixels_agree() -> None:
    base = tiny_base(**TOYBOX)
    whole, less = make_guider(base), make_guider(base, downscale=4)
    weight: torch.Tensor = whole.adapter.conv_in.weight  # type: ignore[assignment]
    summed = weight.unflatten(1, (6, 4, 4, 4, 4)).sum((3, 5)).flatten(1, 3)
    less.load_state_dict(whole.state_dict() | {"adapter.conv_in.weight": summed})
    network = AdaptedUNet(base, branches=())
    blocks = control(2, 8, 12).repeat_interleave(4, 2).repeat_interleave(4, 3)
    found = []
    for network.guider in (whole, less):
        assert network.multiple == 16
        found.append([network.guide(maps, 32, 48) for maps in (control(2), blocks)])
    torch.testing.assert_close(*found)
    with pytest.raises(ValueError, match="feature for each 16 pixels, which 5 does not divide"):
        make_guider(base, downscale=5)


@pytest.mark.parametrize("config", [{}, TOYBOX])
def test_a_fine_guider_is_heard_in_the_first_layer(config: Any) -> None:
    network = AdaptedUNet(tiny_base(**config), branches=("mv",))
    x, t, text = inputs(3, size=(4, 10))
    shown = control(3, 32, 80)
    before = network(x, t, text, shown, 3)
    network.refine()
    assert network.fine is not None
    assert torch.equal(network(x, t, text, shown, 3), before), "it changes nothing until it is trained"
    assert len(network.new_parts) == len(AdaptedUNet(tiny_base(**config), branches=("mv",), fine=True).new_parts)
    network.fine[-1].weight.data.fill_(0.01)
    assert (network(x, t, text, shown, 3) - before).abs().max() > 1e-4
    assert torch.equal(network(x, t, text, None, 3), network(x, t, text, None, 3))
    assert not network.unet.conv_in._forward_hooks
    back = convert_adapter(network.adapter_state(), tiny_base(**config)).network
    torch.testing.assert_close(back(x, t, text, shown, 3), network(x, t, text, shown, 3))


def test_maps_have_to_be_of_the_pictures() -> None:
    network = AdaptedUNet(tiny_base(**TOYBOX))
    x, t, text = inputs(2, size=(4, 6))
    with pytest.raises(ValueError, match="maps of .*16, 16.* are not of pictures of 32 x 48"):
        network(x, t, text, control(2, 16, 16), 2)
    with pytest.raises(ValueError, match="multiples of 16"):
        network(*inputs(2, size=(4, 5)), control(2), 2)
    with pytest.raises(ValueError, match="not a multiple of n_view = 3"):
        network(x, t, text, None, 3)


def test_other_networks_are_refused() -> None:
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    with pytest.raises(ValueError, match="no guider fits"):
        make_guider(tiny_base(**blocks))


def test_only_the_adapter_is_trained() -> None:
    network = AdaptedUNet(tiny_base())
    awaken(network)
    x, t, text = inputs(3)
    features = network.look_at(x[:1], text[:1])
    network(x, t, text, control(3), 3, features).square().mean().backward()
    new = {id(parameter) for parameter in network.new_parts.parameters()}
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)) == (id(parameter) in new), name
    assert new == {id(parameter) for parameter in network.parameters() if parameter.requires_grad}


@torch.no_grad()
def test_objects_and_halves_of_a_batch_stay_apart() -> None:
    network = AdaptedUNet(tiny_base())
    awaken(network)
    x, t, text = inputs(6, size=(4, 6))
    maps, features = control(6), network.look_at(x[:2], text[:2])
    both = Reference(features).shown(True, False)
    together = network(torch.cat([x, x]), t[0], torch.cat([text, text]), torch.cat([maps, maps]), 3, both)
    first = {name: tensor[:1] for name, tensor in features.items()}
    torch.testing.assert_close(network(x[:3], t[0], text[:3], maps[:3], 3, first), together[:3], atol=1e-5, rtol=0)
    torch.testing.assert_close(network(x, t[0], text, maps, 3), together[6:], atol=1e-5, rtol=0)
