import copy
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from tests.support import tiny_mvdiffusion
from tests.support.errors import refused
from tests.support.tiny_mvadapter import awaken
from tests.support.tiny_prior import NO_CAMERA, TEXT_WIDTH, cpu, tiny_prior, tiny_unet
from threedgen.guidance.attention.decoupled import DecoupledAttnProcessor, decouple, token_grid
from threedgen.guidance.attention.joined import (
    MIN_TOKENS,
    SEPARATE_LEVELS,
    FlashAttention,
    MultiviewAttnProcessor,
    make_multiview,
    self_attention,
    set_attention,
    unet_output,
)
from threedgen.guidance.priors.mvdream import MVDream


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_unet()


def inputs(batch: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = cpu()
    x = torch.randn(batch, 4, 8, 8, generator=g)
    text = torch.randn(batch, 5, TEXT_WIDTH, generator=g)
    return x, torch.full((batch,), 300), text, torch.randn(batch, 16, generator=g)


@torch.no_grad()
def test_one_view_equals_stock_network_with_and_without_camera(unet: UNet2DConditionModel) -> None:
    flat = UNet2DConditionModel.from_config(dict(unet.config) | NO_CAMERA).eval()
    flat.load_state_dict({k: v for k, v in unet.state_dict().items() if not k.startswith("class_embedding")})
    posed = UNet2DConditionModel.from_config(unet.config).eval()
    posed.load_state_dict(unet.state_dict())
    x, t, text, camera = inputs()
    expected = flat(x, t, text).sample
    torch.testing.assert_close(unet_output(unet, x, t, text), expected, rtol=0, atol=1e-5)
    zeros = unet_output(unet, x, t, text, torch.zeros(8, 16))
    assert (zeros - expected).abs().max() > 1e-3  # a camera of zeros is not "no camera"
    expected = posed(x, t, text, class_labels=camera).sample
    torch.testing.assert_close(unet_output(unet, x, t, text, camera), expected, rtol=0, atol=1e-5)


def test_gradient_checkpointing_gives_same_gradients_in_both_modes(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs()

    def gradients(network: UNet2DConditionModel) -> list[Tensor | None]:
        network.train().zero_grad()
        joined = unet_output(network, x, t, text, camera, 4).square().mean()
        (joined + unet_output(network, x, t, text).square().mean()).backward()  # recomputed in the other order
        return [p.grad for p in network.parameters()]

    saving = copy.deepcopy(unet)
    saving.enable_gradient_checkpointing()
    for a, b in zip(gradients(copy.deepcopy(unet)), gradients(saving), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_xformers_gets_joined_tokens_and_gives_same_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in of xformers' name and signature."""
    lengths = []

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any, op: Any, scale: float) -> Tensor:
        assert attn_bias is None and op is None
        lengths.append((q.shape[1], k.shape[1]))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)

    ops = SimpleNamespace(memory_efficient_attention=attend)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops))
    network, (x, t, text, camera) = tiny_unet(), inputs()
    expected = unet_output(network, x, t, text, camera, 4)
    assert not lengths
    set_attention(network, "xformers")
    make_multiview(network)  # as a pipeline of the same network does
    torch.testing.assert_close(unet_output(network, x, t, text, camera, 4), expected)
    assert (4 * 64, 4 * 64) in lengths and (64, 5) in lengths
    set_attention(network, "sdpa")
    lengths.clear()
    assert torch.equal(unet_output(network, x, t, text, camera, 4), expected) and not lengths


@pytest.mark.parametrize("shape", [(2, 1, 70, 16), (1, 3, 33, 8)])
def test_flash_attention_matches_explicit_softmax(shape: tuple[int, ...]) -> None:
    q, k, v, weight = torch.randn(4, *shape, generator=cpu()).requires_grad_()
    ours, theirs = FlashAttention.apply(q, k, v), (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v
    assert torch.allclose(ours, theirs, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("length", [40, MIN_TOKENS])
def test_self_attention_matches_diffusers_block(length: int) -> None:
    torch.manual_seed(2)
    attn, tokens = Attention(32, heads=2, dim_head=16), torch.randn(1, length, 32)
    assert torch.allclose(self_attention(attn, tokens), AttnProcessor()(attn, tokens), atol=1e-5)


def test_config_entry_is_saved_and_loads_without_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prior = tiny_prior()
    prior.unet.register_to_config(**{SEPARATE_LEVELS: True})
    prior.save(tmp_path / "prior")
    with caplog.at_level(logging.WARNING):
        again = MVDream.load(str(tmp_path / "prior"))
    assert again.unet.config[SEPARATE_LEVELS] and SEPARATE_LEVELS not in caplog.text


# --- attention with decoupled branches

WIDTH, HEADS = 12, 3


def layer(**options: Any) -> Attention:
    torch.manual_seed(0)
    processor = DecoupledAttnProcessor(MultiviewAttnProcessor(), "a", WIDTH, ("mv", "ref"), **options)
    return Attention(WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, processor=processor)


def test_branches_follow_arrangement_rescale_factor_and_residual_of_layer() -> None:
    attn, parallel = layer(arrangement="serial"), layer()  # with equal weights
    tokens, views = torch.randn(3, 4, WIDTH), {"n_view": 3, "latent_size": (2, 2)}
    first = attn(tokens, use_mv=False, use_ref=False)
    branch = parallel(tokens + first, use_ref=False, **views) - parallel(tokens + first, use_mv=False, use_ref=False)
    torch.testing.assert_close(attn(tokens, use_ref=False, **views), first + branch, atol=1e-5, rtol=0)
    whole = parallel(tokens, **views)
    parallel.residual_connection, parallel.rescale_output_factor = True, 2.0
    torch.testing.assert_close(parallel(tokens, **views), (whole + tokens) / 2, atol=1e-6, rtol=0)
    with refused(None, 3, kind=ValueError):
        layer(layout="rowcol")(torch.randn(6, 6, WIDTH), n_view=3, latent_size=(2, 3))


def test_token_grid_finds_level_of_latents() -> None:
    for height, width in ((8, 12), (4, 6), (2, 3)):
        assert token_grid(height * width, (8, 12)) == (height, width)


@pytest.mark.parametrize(
    ("layout", "n_view", "arrangement", "training"),
    [("row", 3, "parallel", False), ("row", 3, "serial", True), ("rowcol", 6, "parallel", True)],
)
def test_untrained_branches_change_nothing(layout: Any, n_view: int, arrangement: Any, training: bool) -> None:
    unet = tiny_mvdiffusion.tiny_base()
    set_attention(unet, "sdpa")
    x, t, text = tiny_mvdiffusion.inputs(n_view, size=(6, 10))
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
