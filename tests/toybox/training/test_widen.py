"""A widened UNet computes what the narrow one does; copies of a channel get different gradients."""

from typing import Any

import pytest
import torch
from diffusers.models import UNet2DConditionModel

from tests.support.errors import refused
from threedgen.toybox.training.networks import widen


def network(widths: tuple[int, int] = (8, 16)) -> Any:
    """Build a UNet with the parts of the toybox's: attention in one level, a pooled caption, scale and shift."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=widths,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(1, 2),
        cross_attention_dim=12,
        norm_num_groups=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        resnet_time_scale_shift="scale_shift",
        use_linear_projection=True,
    )


def output(unet: Any) -> torch.Tensor:
    rng = torch.Generator().manual_seed(1)
    z, text = torch.randn(3, 4, 8, 8, generator=rng), torch.randn(3, 5, 12, generator=rng)
    return unet(z, torch.tensor([20.0, 400.0, 900.0]), text).sample


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


@pytest.mark.parametrize("channels", [(16, 32), (24, 48)])
@torch.no_grad()
def test_all_levels_wider_give_the_same_output(channels: tuple[int, int]) -> None:
    narrow = network()
    wide = widen(narrow, channels, generator())
    assert wide.config["block_out_channels"] == channels
    # sines of a longer row have the frequencies of the shorter one and others between them
    torch.testing.assert_close(output(wide), output(narrow), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("channels", [(24, 16), (8, 48)])
@torch.no_grad()
def test_one_level_wider_gives_almost_the_same_output(channels: tuple[int, int]) -> None:
    """Norms over two levels weigh the wider one more."""
    narrow = network()
    before, after = output(narrow), output(widen(narrow, channels, generator()))
    assert (after - before).norm() < 0.25 * before.norm()  # in a trained network far less


def test_copies_get_different_gradients() -> None:
    wide = widen(network(), (16, 32), generator())
    output(wide).square().mean().backward()
    grad = wide.conv_in.weight.grad
    assert torch.equal(wide.conv_in.weight[0], wide.conv_in.weight[1])
    assert torch.cosine_similarity(grad[0::2].flatten(1), grad[1::2].flatten(1)).max() < 0.99


@pytest.mark.parametrize("channels", [(12, 16), (16,), (4, 16), (0, 16)])
def test_widths_that_are_no_multiples_are_refused(channels: tuple[int, ...]) -> None:
    with refused("widen", "[8, 16]"):
        widen(network(), channels, generator())


def test_equal_levels_must_stay_equal() -> None:
    with refused("widen", "[8, 8]", "[8, 16]"):
        widen(network((8, 8)), (8, 16), generator())
