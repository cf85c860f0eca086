from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from tests.support.errors import refused
from tests.support.tiny_mvadapter import awaken
from tests.support.tiny_mvdiffusion import inputs, tiny_base
from threedgen.guidance.attention.decoupled import DecoupledAttnProcessor, decouple, token_grid
from threedgen.guidance.attention.joined import MultiviewAttnProcessor, set_attention, unet_output

WIDTH, HEADS = 12, 3


def layer(**options: Any) -> Attention:
    torch.manual_seed(0)
    processor = DecoupledAttnProcessor(MultiviewAttnProcessor(), "a", WIDTH, ("mv", "ref"), **options)
    return Attention(WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, processor=processor)


def test_references_may_have_another_size_and_be_shared() -> None:
    attn = layer()
    tokens, features = torch.randn(6, 4, WIDTH), {"a": torch.randn(2, 9, WIDTH)}
    found = attn(tokens, use_mv=False, ref_hidden_states=features)
    each = {"a": features["a"].repeat_interleave(3, 0)}
    assert torch.equal(found, attn(tokens, use_mv=False, ref_hidden_states=each))
    assert (found - attn(tokens, use_mv=False)).abs().max() > 1e-3


def test_missing_reference_equals_zeros_and_adds_only_bias() -> None:
    attn = layer()
    tokens = torch.randn(2, 4, WIDTH)
    found = attn(tokens, use_mv=False)
    zeros = attn(tokens, use_mv=False, ref_hidden_states={"a": torch.zeros(1, 9, WIDTH)})
    torch.testing.assert_close(found, zeros)
    bias = attn.processor.to_out_ref[0].bias
    torch.testing.assert_close(found, attn(tokens, use_mv=False, use_ref=False) + bias)


def test_serial_branches_take_sum_of_input_and_base() -> None:
    attn, parallel = layer(arrangement="serial"), layer()  # with equal weights
    tokens, views = torch.randn(3, 4, WIDTH), {"n_view": 3, "latent_size": (2, 2)}
    first = attn(tokens, use_mv=False, use_ref=False)
    branch = parallel(tokens + first, use_ref=False, **views) - parallel(tokens + first, use_mv=False, use_ref=False)
    torch.testing.assert_close(attn(tokens, use_ref=False, **views), first + branch, atol=1e-5, rtol=0)


def test_branches_follow_rescale_factor_and_residual_of_layer() -> None:
    attn, tokens, views = layer(), torch.randn(3, 4, WIDTH), {"n_view": 3, "latent_size": (2, 2)}
    whole = attn(tokens, **views)
    attn.residual_connection, attn.rescale_output_factor = True, 2.0
    torch.testing.assert_close(attn(tokens, **views), (whole + tokens) / 2, atol=1e-6, rtol=0)


def test_rowcol_refuses_other_numbers_of_views() -> None:
    with refused(None, 3, kind=ValueError):
        layer(layout="rowcol")(torch.randn(6, 6, WIDTH), n_view=3, latent_size=(2, 3))


@pytest.mark.parametrize(("size", "levels"), [((8, 12), [(8, 12), (4, 6), (2, 3)]), ((5, 7), [(5, 7), (3, 4), (2, 2)])])
def test_token_grid_finds_level_of_latents(size: tuple[int, int], levels: list[tuple[int, int]]) -> None:
    for height, width in levels:
        assert token_grid(height * width, size) == (height, width)


@pytest.mark.parametrize(
    ("layout", "n_view", "arrangement", "training"),
    [("row", 3, "parallel", False), ("row", 3, "serial", True), ("rowcol", 6, "parallel", True)],
)
def test_untrained_branches_change_nothing(layout: Any, n_view: int, arrangement: Any, training: bool) -> None:
    unet = tiny_base()
    set_attention(unet, "sdpa")
    x, t, text = inputs(n_view, size=(6, 10))
    with torch.set_grad_enabled(training):
        before = unet_output(unet, x, t, text)
        decouple(unet, ("mv", "ref"), layout, arrangement)
        features: dict[str, Tensor] = {}
        unet_output(unet, x[:1], t[:1], text[:1], cache_hidden_states=features, use_mv=False, use_ref=False)
        views = {"latent_size": (6, 10), "ref_hidden_states": features}
        assert torch.equal(unet_output(unet, x, t, text, None, n_view, **views), before)
        awaken(unet)
        assert (unet_output(unet, x, t, text, None, n_view, **views) - before).abs().max() > 1e-3
        base = unet_output(unet, x, t, text, None, n_view, use_mv=False, use_ref=False, **views)
        assert torch.equal(base, before)
