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

from tests.support.tiny_prior import TEXT_WIDTH, tiny_prior, tiny_unet
from threedgen.guidance.attention.joined import (
    MIN_TOKENS,
    SEPARATE_LEVELS,
    FlashAttention,
    make_multiview,
    self_attention,
    set_attention,
    unet_output,
)
from threedgen.guidance.priors.mvdream import MVDream

FLAT: dict[str, Any] = {"class_embed_type": None, "projection_class_embeddings_input_dim": None}


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_unet()


def inputs(batch: int = 8) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(batch, 4, 8, 8, generator=g)
    text = torch.randn(batch, 5, TEXT_WIDTH, generator=g)
    return x, torch.full((batch,), 300), text, torch.randn(batch, 16, generator=g)


@torch.no_grad()
def test_one_view_equals_stock_network_with_and_without_camera(unet: UNet2DConditionModel) -> None:
    flat = UNet2DConditionModel.from_config(dict(unet.config) | FLAT).eval()
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


def test_gradients_reach_all_weights_and_skip_camera_in_2d_mode(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs()
    unet.zero_grad()
    unet_output(unet, x, t, text, camera, 4).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())
    unet.zero_grad()
    unet_output(unet, x, t, text).square().mean().backward()
    assert all((p.grad is None) == n.startswith("class_embedding") for n, p in unet.named_parameters())


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


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


@pytest.mark.parametrize("shape", [(2, 1, 70, 16), (1, 3, 33, 8)])
def test_flash_attention_matches_explicit_softmax(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(shape, generator=rng).requires_grad_() for _ in range(3))
    weight = torch.randn(shape, generator=rng)
    ours, theirs = FlashAttention.apply(q, k, v), explicit(q, k, v)
    assert torch.allclose(ours, theirs, atol=1e-5)
    for a, b in zip(*(torch.autograd.grad((out * weight).sum(), (q, k, v)) for out in (ours, theirs)), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("length", [40, MIN_TOKENS])
def test_self_attention_matches_diffusers_block(length: int) -> None:
    torch.manual_seed(2)
    attn, tokens = Attention(32, heads=2, dim_head=16), torch.randn(1, length, 32)
    assert torch.allclose(self_attention(attn, tokens), AttnProcessor()(attn, tokens), atol=1e-5)


def test_joined_attention_gives_same_output_in_training(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs()
    trained = unet_output(unet, x, t, text, camera, 4)
    with torch.no_grad():
        sampled = unet_output(unet, x, t, text, camera, 4)
        alone = unet_output(unet, x, t, text, camera)
    assert trained.requires_grad and torch.allclose(trained, sampled, atol=1e-4)
    assert (trained - sampled).abs().max() < 0.1 * (alone - sampled).abs().max()


def test_config_entry_is_saved_and_loads_without_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prior = tiny_prior()
    prior.unet.register_to_config(**{SEPARATE_LEVELS: True})
    prior.save(tmp_path / "prior")
    with caplog.at_level(logging.WARNING):
        again = MVDream.load(str(tmp_path / "prior"))
    assert again.unet.config[SEPARATE_LEVELS] and SEPARATE_LEVELS not in caplog.text


@torch.no_grad()
def test_views_influence_only_views_of_the_same_object(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs()
    changed = x.clone()
    changed[2] += 1  # third view of the first object

    def influence(n_view: int) -> list[bool]:
        a, b = (unet_output(unet, z, t, text, camera, n_view) for z in (x, changed))
        return [bool((u - v).abs().max() > 1e-6) for u, v in zip(a, b, strict=True)]

    assert influence(4) == [True] * 4 + [False] * 4
    assert influence(2) == [False] * 2 + [True] * 2 + [False] * 4
    assert influence(1) == [False] * 2 + [True] + [False] * 5
