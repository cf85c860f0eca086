from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.errors import refused
from tests.support.tiny_mvdiffusion import awaken, ring, tiny_model, tiny_weights, wall
from tests.support.tiny_prior import cpu
from threedgen.guidance.losses.lora import ATTENTION, CONVOLUTIONS, LoRA
from threedgen.guidance.priors.mvdiffusion.inputs import (
    depth_channels,
    given_condition,
    mask_channels,
    masked_images,
    unknown_channels,
)
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.guidance.priors.mvdiffusion.unet import MultiviewUNet
from threedgen.guidance.priors.mvdiffusion.weights import difference, save_blocks, widened, with_difference

PROMPTS = ["a red dog", "a blue cat"] * 4


def sample(model: MVDiffusion, geometry: Any, prompts: list[str] = PROMPTS, **options: Any) -> Tensor:
    return model.sample_views(prompts, geometry, (16, 16), steps=2, generator=cpu(), **options)


def trained_model() -> MVDiffusion:
    """With attention between views that is not zero."""
    model = tiny_model()
    model = model.with_network(MultiviewUNet(model.unet))
    awaken(model.multiview)
    return model


def test_views_are_sampled_jointly_or_independently() -> None:
    model, geometry = tiny_model(), ring(8, 16)
    single = sample(model, None)
    assert single.shape == (8, 16, 16, 3)
    untrained = model.with_network(MultiviewUNet(model.unet))
    torch.testing.assert_close(sample(untrained, geometry), single)
    awaken(untrained.multiview)
    assert (sample(untrained, geometry) - single).abs().max() > 1e-3


def test_eta_adds_noise_from_generator() -> None:
    plain, noisy, again = (sample(tiny_model(), None, eta=eta) for eta in (0.0, 1.0, 1.0))
    assert torch.equal(noisy, again) and (noisy - plain).abs().max() > 1e-3


def test_hold_keeps_given_view_of_inpainting_model() -> None:
    model, geometry = tiny_model("outpaint"), ring(8, 16)
    views = torch.rand(8, 16, 16, 3, generator=cpu())
    conditions = model.masked_extra(views, torch.arange(8) == 0), None
    free, held = (sample(model, geometry, conditions=lambda size: conditions) for model.hold in (False, True))
    torch.testing.assert_close(held[0], model.decode_latents(model.encode_views(views[:1]))[0].float())
    assert (free[0] - held[0]).abs().max() > 1e-3
    assert all((free[view] - held[view]).abs().max() > 1e-5 for view in (1, 7)), "neighbours follow the held view"


@pytest.mark.parametrize("kind", ["depth", "keys"])
def test_given_frames_enter_by_branch_or_are_held(kind: str) -> None:
    """The model of kind "keys", which has no branch for known views, keeps their latents unchanged."""
    model, latents = tiny_model(kind), torch.randn(3, 4, 16, 24, generator=cpu())
    extra = depth_channels(torch.full((3, 32, 48), 2.0), 16, 24)
    free, held = (
        model.sample_views(PROMPTS[:3], wall(3, 32, 48), (32, 48), lambda size, c=c: (extra, c), 2, generator=cpu())
        for c in (None, given_condition(latents, torch.tensor([True, False, False])))
    )
    same = torch.allclose(held[0], model.decode_latents(latents[:1])[0].float(), atol=1e-5)
    assert same == (kind == "keys")
    assert all((free[view] - held[view]).abs().max() > 1e-5 for view in range(3))


def test_given_views_are_held_without_attention_between_views() -> None:
    model, latents = tiny_model(), torch.randn(8, 4, 8, 8, generator=cpu())
    known = given_condition(latents, torch.arange(8) == 0)
    held = sample(model, None, conditions=lambda size: (None, known))
    torch.testing.assert_close(held[0], model.decode_latents(latents[:1])[0].float(), atol=1e-5, rtol=0)


def test_compact_halves_memory_and_keeps_samples() -> None:
    model, geometry = trained_model(), ring(8, 16)
    model.dtype = torch.bfloat16

    def size() -> int:
        return sum(tensor.nbytes for tensor in model.multiview.parameters())

    before, expected = size(), sample(model, geometry)
    assert torch.equal(sample(model.compact(), geometry), expected) and size() < 0.6 * before


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_widened_unet_starts_as_its_base(extra: int) -> None:
    model = tiny_model()
    x, t, text = torch.randn(2, 4, 8, 8, generator=cpu()), torch.full((2,), 300), model.encode_prompt(PROMPTS[:2])
    before = model.denoise_views(x, t, text)
    model.unet = widened(model.unet, extra)
    torch.testing.assert_close(model.denoise_views(x, t, text), before)
    assert unknown_channels(model.extra, x).shape[1] == extra


def test_unknown_number_of_input_channels_is_refused() -> None:
    with refused("weights", 7, 1, 5):
        tiny_model(in_channels=11, out_channels=4).extra  # noqa: B018


@pytest.mark.parametrize("targets", [ATTENTION, ATTENTION + CONVOLUTIONS])
def test_blocks_file_stores_unet_as_difference(targets: tuple[str, ...], tmp_path: Path) -> None:
    model, file = tiny_model(), tmp_path / "blocks.safetensors"
    before = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    unet = widened(model.unet, 1)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:] += 0.1
    lora = LoRA(unet, 2, cpu(), targets=targets)
    for up in lora.up:
        up.data.normal_(std=0.05, generator=cpu())
    network = awaken(MultiviewUNet(unet, "depth", "capped", condition=True)).half().float()
    save_blocks(file, network, difference(network.unet, lora))
    lora.half().float().attach(network.unet)
    x, t, text = torch.randn(2, 5, 8, 8, generator=cpu()), torch.full((2,), 300), model.encode_prompt(PROMPTS[:2])
    loaded = tiny_model().with_multiview_attention(file)
    with torch.no_grad():
        torch.testing.assert_close(loaded.multiview(x, t, text), network(x, t, text), atol=2e-2, rtol=0)
    assert loaded.extra == "depth" and loaded.multiview.has_condition
    assert sum("unet." in name for name in load_file(file)) == 2
    reused = with_difference(tiny_model().unet, load_file(file))  # as a training that continues these blocks
    assert torch.equal(reused.conv_in.weight, network.unet.conv_in.weight)
    assert all(torch.equal(model.unet.state_dict()[name], tensor) for name, tensor in before.items())


def test_blocks_of_another_base_are_refused(tmp_path: Path) -> None:
    unet, file = widened(tiny_model().unet, 1), tmp_path / "blocks.safetensors"
    save_blocks(file, MultiviewUNet(unet, "depth", "capped"), difference(unet, LoRA(unet, 2)))
    other = tiny_model(block_out_channels=(32, 96))
    with refused("blocks"):
        other.with_multiview_attention(file)
    tiny_model().save(tmp_path / "base")
    with refused("blocks", "cp_blocks_mid"):
        other.with_multiview_attention(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("change", [Tensor.flatten, lambda t: t.reshape(-1, 1), lambda t: t.T, lambda t: t.sum()])
def test_reshaped_low_rank_changes_are_refused(tmp_path: Path, change: Callable[[Tensor], Tensor]) -> None:
    tensors = load_file(tiny_weights() / "depth.safetensors")
    lora = [name for name in tensors if ".lora." in name and name.endswith("down")]
    tensors |= {name: change(tensors[name].flatten(1)).contiguous() for name in lora}
    save_file(tensors, tmp_path / "blocks.safetensors")
    with refused("blocks", tmp_path / "blocks.safetensors", "lora."):
        tiny_model().with_multiview_attention(tmp_path / "blocks.safetensors")


def test_depth_channels_scale_inverse_depth() -> None:
    depth = torch.tensor([[[1.0, 2.0], [4.0, 0.0]]])
    torch.testing.assert_close(depth_channels(depth, 2, 2)[0, 0], torch.tensor([[1.0, -1 / 3], [-1.0, -2.0]]))
    assert (depth_channels(torch.zeros(1, 2, 2), 2, 2) == -2).all()
    assert depth_channels(torch.full((1, 2, 2), 3.0), 2, 2).isfinite().all()


def test_mask_channels() -> None:
    views, latents, given = torch.ones(2, 4, 4, 3), torch.ones(2, 4, 2, 2), torch.tensor([True, False])
    assert masked_images(views, given)[1].unique() == 0.5
    assert mask_channels(latents, given)[:, 0, 0, 0].tolist() == [0, 1]
    part = torch.zeros(2, 4, 4, dtype=torch.bool)
    part[0, :, :3] = True  # half of the right latents
    assert mask_channels(latents, part)[:, 0].tolist() == [[[0, 1], [0, 1]], [[1, 1], [1, 1]]]
    assert masked_images(views, part)[0, :, :, 0].tolist() == [[1, 1, 1, 0.5]] * 4
    condition = given_condition(latents, given)
    assert condition.shape == (2, 5, 2, 2) and condition[0].unique() == 1 and condition[1].unique() == 0
