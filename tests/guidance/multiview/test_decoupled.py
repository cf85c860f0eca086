"""Attention branches beside the self-attention: against plain loops, and without effect at the beginning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor

from tests.support.tiny_mvadapter import awaken
from tests.support.tiny_mvdiffusion import inputs, tiny_base
from threedgen.guidance.multiview.decoupled import (
    DecoupledAttnProcessor,
    branch_processors,
    decouple,
    token_grid,
)
from threedgen.guidance.multiview.joined import MultiviewAttnProcessor, predict, set_attention

Place = tuple[int, int, int]
WIDTH, HEADS = 12, 3


def seen_from(layout: str, place: Place, n_view: int, height: int, width: int) -> Iterator[tuple[float, list[Place]]]:
    """What the token (view, row, column) attends to, in one or two parts with their shares of the result."""
    view, row, column = place
    if layout == "full":
        yield 1.0, [(v, i, j) for v in range(n_view) for i in range(height) for j in range(width)]
    elif layout == "row":
        yield 1.0, [(v, row, j) for v in range(n_view) for j in range(width)]
    else:
        share = 0.5 if view in (0, 2) else 1.0
        if view < 4:
            yield share, [(v, row, j) for v in range(4) for j in range(width)]
        if view not in (1, 3):
            back = width - 1 - column if view == 0 else column
            of_view = {0: width - 1 - back, 2: back, 4: back, 5: back}
            yield share, [(v, i, j) for v, j in of_view.items() for i in range(height)]


def by_loops(processor: Any, layout: str, tokens: Tensor, n_view: int, height: int, width: int) -> Tensor:
    """What the branch between views adds, token by token."""
    maps = tokens.unflatten(1, (height, width)).unflatten(0, (-1, n_view))
    q, k, v = (getattr(processor, f"to_{letter}_mv")(maps).unflatten(-1, (HEADS, -1)) for letter in "qkv")
    out = torch.zeros_like(maps)
    for b in range(len(maps)):
        for view, row, column in torch.cartesian_prod(*map(torch.arange, (n_view, height, width))).tolist():
            place = view, row, column
            for share, places in seen_from(layout, place, n_view, height, width):
                keys = torch.stack([k[b][at] for at in places])
                values = torch.stack([v[b][at] for at in places])
                weights = (torch.einsum("hd,nhd->hn", q[b][place], keys) / keys.shape[-1] ** 0.5).softmax(-1)
                out[b][place] += share * torch.einsum("hn,nhd->hd", weights, values).flatten()
    return processor.to_out_mv(out).reshape(tokens.shape)


def layer(layout: Any = "row", **options: Any) -> Attention:
    torch.manual_seed(0)
    processor = DecoupledAttnProcessor(MultiviewAttnProcessor(), "a", WIDTH, ("mv", "ref"), layout, **options)
    return Attention(WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, processor=processor)


@pytest.mark.parametrize(
    ("layout", "n_view", "size", "learning"),  # what learns has another attention, whatever the layout
    [
        ("row", 1, (2, 3), False),
        ("row", 3, (4, 2), False),
        ("row", 3, (4, 2), True),
        ("row", 5, (1, 3), False),
        ("full", 3, (2, 3), True),
        ("rowcol", 6, (2, 3), False),
        ("rowcol", 6, (3, 2), True),
    ],
)
def test_tokens_see_what_the_layout_says(layout: Any, n_view: int, size: tuple[int, int], learning: bool) -> None:
    attn = layer(layout)
    tokens = torch.randn(2 * n_view, size[0] * size[1], WIDTH)
    with torch.set_grad_enabled(learning):
        alone = attn(tokens, use_mv=False, use_ref=False)
        found = attn(tokens, n_view=n_view, latent_size=size, use_ref=False, mv_scale=0.5)
    expected = 0.5 * by_loops(attn.processor, layout, tokens, n_view, *size)
    torch.testing.assert_close(found - alone, expected, atol=1e-5, rtol=0)


def test_references_may_have_another_size_and_be_shared() -> None:
    attn = layer()
    tokens, features = torch.randn(6, 4, WIDTH), {"a": torch.randn(2, 9, WIDTH)}
    found = attn(tokens, use_mv=False, ref_hidden_states=features)
    each = {"a": features["a"].repeat_interleave(3, 0)}
    assert torch.equal(found, attn(tokens, use_mv=False, ref_hidden_states=each))
    assert (found - attn(tokens, use_mv=False)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="6 pictures cannot share 4 references"):
        attn(tokens, use_mv=False, ref_hidden_states={"a": torch.zeros(4, 9, WIDTH)})


def test_no_reference_is_one_of_zeros_and_adds_the_bias() -> None:
    attn = layer()
    tokens = torch.randn(2, 4, WIDTH)
    found = attn(tokens, use_mv=False)
    zeros = attn(tokens, use_mv=False, ref_hidden_states={"a": torch.zeros(1, 9, WIDTH)})
    torch.testing.assert_close(found, zeros)
    bias = attn.processor.to_out_ref[0].bias
    torch.testing.assert_close(found, attn(tokens, use_mv=False, use_ref=False) + bias)


def test_serial_branches_see_what_was_added() -> None:
    attn = layer(arrangement="serial")
    tokens, views = torch.randn(3, 4, WIDTH), {"n_view": 3, "latent_size": (2, 2)}
    first = attn(tokens, use_mv=False, use_ref=False)
    second = first + by_loops(attn.processor, "row", tokens + first, 3, 2, 2)
    torch.testing.assert_close(attn(tokens, use_ref=False, **views), second, atol=1e-5, rtol=0)


def test_branches_are_divided_as_the_layer_divides() -> None:
    attn, tokens, views = layer(), torch.randn(3, 4, WIDTH), {"n_view": 3, "latent_size": (2, 2)}
    whole = attn(tokens, **views)
    attn.residual_connection, attn.rescale_output_factor = True, 2.0
    torch.testing.assert_close(attn(tokens, **views), (whole + tokens) / 2, atol=1e-6, rtol=0)


def test_views_and_tokens_have_to_fit() -> None:
    tokens = torch.randn(6, 6, WIDTH)
    with pytest.raises(ValueError, match="six views"):
        layer("rowcol")(tokens, n_view=3, latent_size=(2, 3))
    with pytest.raises(ValueError, match="6 tokens are no level of latents of 5 x 5"):
        layer()(tokens, n_view=3, latent_size=(5, 5))
    with pytest.raises(ValueError, match="latent_size"):
        layer()(tokens, n_view=3)


@pytest.mark.parametrize(("size", "levels"), [((8, 12), [(8, 12), (4, 6), (2, 3)]), ((5, 7), [(5, 7), (3, 4), (2, 2)])])
def test_tokens_are_a_level_of_the_latents(size: tuple[int, int], levels: list[tuple[int, int]]) -> None:
    for height, width in levels:
        assert token_grid(height * width, size) == (height, width)


@pytest.mark.parametrize(
    ("layout", "n_view", "arrangement", "learning"),
    [
        ("row", 3, "parallel", False),
        ("row", 3, "serial", True),
        ("full", 2, "serial", False),
        ("rowcol", 6, "parallel", True),
    ],
)
def test_fresh_branches_change_nothing(layout: Any, n_view: int, arrangement: Any, learning: bool) -> None:
    unet = tiny_base()
    set_attention(unet, "sdpa")
    x, t, text = inputs(n_view, size=(6, 10))
    with torch.set_grad_enabled(learning):
        before = predict(unet, x, t, text)
        decouple(unet, ("mv", "ref"), layout, arrangement)
        kept: dict[str, Tensor] = {}
        predict(unet, x[:1], t[:1], text[:1], cache_hidden_states=kept, use_mv=False, use_ref=False)
        views = {"latent_size": (6, 10), "ref_hidden_states": kept}
        assert torch.equal(predict(unet, x, t, text, None, n_view, **views), before)
        awaken(unet)
        assert (predict(unet, x, t, text, None, n_view, **views) - before).abs().max() > 1e-3
        alone = predict(unet, x, t, text, None, n_view, use_mv=False, use_ref=False, **views)
        assert torch.equal(alone, before)


def test_every_self_attention_has_branches_and_keeps_what_it_sees() -> None:
    unet: UNet2DConditionModel = tiny_base()
    layers = [name for name in unet.attn_processors if name.endswith("attn1.processor")]
    decouple(unet, ("mv",))
    assert list(branch_processors(unet)) == layers
    assert all(f"{name}.to_out_mv.0.bias" in unet.state_dict() for name in layers)
    assert not any("_ref" in name or "attn2.processor" in name for name in unet.state_dict())
    kept: dict[str, Tensor] = {}
    predict(unet, *inputs(1), cache_hidden_states=kept, use_mv=False)
    assert sorted(kept) == sorted(layers)
