"""Joined self-attention and the optional camera of a stock UNet."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models import attention_processor
from diffusers.models.attention_processor import Attention
from torch import Tensor

from tests.support.tiny_prior import TEXT_WIDTH, tiny_unet
from threedgen.guidance.multiview.joined import (
    MultiviewAttnProcessor,
    make_multiview,
    predict,
    set_attention,
)


@pytest.fixture(scope="module")
def unet() -> UNet2DConditionModel:
    return tiny_unet()


def inputs(batch: int = 8, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Latents, one time step for all, text, camera."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, 4, 8, 8, generator=g)
    text = torch.randn(batch, 5, TEXT_WIDTH, generator=g)
    return x, torch.full((batch,), 300), text, torch.randn(batch, 16, generator=g)


def joined_by_hand(attn: Attention, tokens: Tensor, n_view: int) -> Tensor:
    """Softmax attention written out, object by object and head by head."""
    out = torch.zeros_like(tokens)
    for start in range(0, len(tokens), n_view):
        group = tokens[start : start + n_view].flatten(0, 1)
        q, k, v = (layer(group).chunk(attn.heads, dim=-1) for layer in (attn.to_q, attn.to_k, attn.to_v))
        heads = [((a @ b.T) / a.shape[-1] ** 0.5).softmax(-1) @ c for a, b, c in zip(q, k, v, strict=True)]
        out[start : start + n_view] = attn.to_out[0](torch.cat(heads, -1)).view_as(out[:n_view])
    return out


@pytest.mark.parametrize("n_view", [1, 2, 3, 6])
def test_self_attention_sees_all_views_of_its_object(n_view: int) -> None:
    torch.manual_seed(0)
    attn = Attention(12, heads=3, dim_head=4, processor=MultiviewAttnProcessor())
    tokens = torch.randn(6, 5, 12)
    torch.testing.assert_close(attn(tokens, n_view=n_view), joined_by_hand(attn, tokens, n_view))


def test_cross_attention_stays_per_view() -> None:
    torch.manual_seed(0)
    attn = Attention(12, cross_attention_dim=7, heads=3, dim_head=4, processor=MultiviewAttnProcessor())
    tokens, text = torch.randn(6, 5, 12), torch.randn(6, 4, 7)
    assert torch.equal(attn(tokens, text, n_view=3), attn(tokens, text, n_view=1))


def test_one_view_without_camera_is_the_stock_2d_network(unet: UNet2DConditionModel) -> None:
    config = dict(unet.config) | {"class_embed_type": None, "projection_class_embeddings_input_dim": None}
    stock = UNet2DConditionModel.from_config(config).eval()
    stock.load_state_dict({k: v for k, v in unet.state_dict().items() if not k.startswith("class_embedding")})
    x, t, text, _ = inputs()
    with torch.no_grad():
        expected = stock(x, t, text).sample
        torch.testing.assert_close(predict(unet, x, t, text), expected, rtol=0, atol=1e-5)
        zeros = predict(unet, x, t, text, torch.zeros(8, 16))
    assert (zeros - expected).abs().max() > 1e-3  # a camera of zeros is not "no camera"


def test_a_camera_works_as_the_stock_class_label(unet: UNet2DConditionModel) -> None:
    stock = UNet2DConditionModel.from_config(unet.config).eval()
    stock.load_state_dict(unet.state_dict())
    x, t, text, camera = inputs()
    with torch.no_grad():
        expected = stock(x, t, text, class_labels=camera).sample
        torch.testing.assert_close(predict(unet, x, t, text, camera), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_views_of_an_object_influence_each_other_and_no_other_object(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs()
    changed = x.clone()
    changed[2] += 1  # third view of the first object

    def influence(n_view: int) -> list[bool]:
        a, b = (predict(unet, z, t, text, camera, n_view) for z in (x, changed))
        return [bool((u - v).abs().max() > 1e-6) for u, v in zip(a, b, strict=True)]

    assert influence(4) == [True] * 4 + [False] * 4
    assert influence(2) == [False] * 2 + [True] * 2 + [False] * 4
    assert influence(1) == [False] * 2 + [True] + [False] * 5


@torch.no_grad()
def test_the_order_of_views_does_not_matter(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs(4)
    order = torch.tensor([2, 0, 3, 1])
    out = predict(unet, x, t, text, camera, 4)
    shuffled = predict(unet, x[order], t, text[order], camera[order], 4)
    torch.testing.assert_close(shuffled, out[order], rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_processor_is_told_what_the_call_says(unet: UNet2DConditionModel) -> None:
    """As the processors of other models need it: poses, corresponding pixels."""
    seen = []

    class Other(MultiviewAttnProcessor):
        def __call__(self, *given: Any, n_view: int = 1, poses: Any = None, **more: Any) -> Tensor:
            seen.append((n_view, poses))
            return super().__call__(*given, n_view=n_view, **more)

    other = copy.deepcopy(unet)
    other.set_attn_processor(Other())
    x, t, text, camera = inputs()
    assert torch.equal(predict(other, x, t, text, camera, 4, poses="here"), predict(unet, x, t, text, camera, 4))
    assert seen and set(seen) == {(4, "here")}


def test_gradients_reach_every_weight_and_skip_the_camera_in_2d_mode(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs()
    unet.zero_grad()
    predict(unet, x, t, text, camera, 4).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in unet.parameters())
    unet.zero_grad()
    predict(unet, x, t, text).square().mean().backward()
    assert all((p.grad is None) == n.startswith("class_embedding") for n, p in unet.named_parameters())


def test_gradient_checkpointing_changes_nothing_in_alternating_modes(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs()

    def gradients(network: UNet2DConditionModel) -> list[Tensor | None]:
        network.train().zero_grad()
        joined = predict(network, x, t, text, camera, 4).square().mean()
        (joined + predict(network, x, t, text).square().mean()).backward()  # recomputed in the other order
        return [p.grad for p in network.parameters()]

    saving = copy.deepcopy(unet)
    saving.enable_gradient_checkpointing()
    for a, b in zip(gradients(copy.deepcopy(unet)), gradients(saving), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


@torch.no_grad()
def test_autocast_is_close_to_float32(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs()
    exact = predict(unet, x, t, text, camera, 4)
    with torch.autocast("cpu", torch.bfloat16):
        rough = predict(unet, x, t, text, camera, 4)
    assert rough.dtype == torch.bfloat16
    assert (rough - exact).abs().max() < 0.1 * exact.abs().max()


def test_threads_may_use_one_network_in_both_modes(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs()

    @torch.no_grad()
    def run(n_view: int) -> Tensor:
        return predict(unet, x, t, text, camera if n_view > 1 else None, n_view)

    alone = {n_view: run(n_view) for n_view in (1, 4)}
    modes = [1, 4] * 6
    with ThreadPoolExecutor(4) as pool:
        for n_view, out in zip(modes, pool.map(run, modes), strict=True):
            torch.testing.assert_close(out, alone[n_view], rtol=0, atol=1e-5)


def test_tensor_names_and_saved_files_stay_stock(unet: UNet2DConditionModel, tmp_path) -> None:
    stock = UNet2DConditionModel.from_config(unet.config)
    assert list(stock.state_dict()) == list(unet.state_dict())
    unet.save_pretrained(tmp_path)
    back = make_multiview(UNet2DConditionModel.from_pretrained(tmp_path)).eval()
    x, t, text, camera = inputs()
    with torch.no_grad():
        assert torch.equal(predict(back, x, t, text, camera, 4), predict(unet, x, t, text, camera, 4))


def test_impossible_calls_are_named(unet: UNet2DConditionModel) -> None:
    x, t, text, camera = inputs(6)
    with pytest.raises(ValueError, match="6 images is not a multiple of n_view = 4"):
        predict(unet, x, t, text, camera, 4)
    plain = tiny_unet(class_embed_type=None, projection_class_embeddings_input_dim=None)
    with pytest.raises(ValueError, match="no camera branch"):
        predict(plain, x, t, text, camera)
    assert predict(plain, x, t, text, None, 2).shape == x.shape


def test_xformers_computes_the_same_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in under xformers' name and signature: tokens joined before it, everything else as ever."""
    lengths = []

    def attend(q: Tensor, k: Tensor, v: Tensor, attn_bias: Any, op: Any, scale: float) -> Tensor:
        assert attn_bias is None and op is None
        lengths.append((q.shape[1], k.shape[1]))
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=scale)

    ops = SimpleNamespace(memory_efficient_attention=attend)
    monkeypatch.setattr(attention_processor, "xformers", SimpleNamespace(ops=ops))
    network, (x, t, text, camera) = tiny_unet(), inputs()
    with torch.no_grad():
        wanted = predict(network, x, t, text, camera, 4)
        assert not lengths
        set_attention(network, "xformers")
        make_multiview(network)  # as a pipeline of the same network does
        torch.testing.assert_close(predict(network, x, t, text, camera, 4), wanted)
    assert (4 * 64, 4 * 64) in lengths and (64, 5) in lengths
    set_attention(network, "sdpa")
    lengths.clear()
    with torch.no_grad():
        assert torch.equal(predict(network, x, t, text, camera, 4), wanted) and not lengths
