from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.support.errors import refused
from tests.support.tiny_mvdiffusion import awaken, inputs, ring, tiny_base, tiny_model, tiny_weights, wall
from tests.support.tiny_prior import cpu
from threedgen.guidance.losses.lora import ATTENTION, CONVOLUTIONS, LoRA
from threedgen.guidance.priors.mvdiffusion.geometry import Scenes
from threedgen.guidance.priors.mvdiffusion.inputs import (
    depth_channels,
    given_condition,
    mask_channels,
    masked_images,
    unknown_channels,
)
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.guidance.priors.mvdiffusion.unet import Kind, MultiviewUNet
from threedgen.guidance.priors.mvdiffusion.weights import (
    build_network,
    difference,
    save_blocks,
    widened,
    with_difference,
)
from threedgen.guidance.weights.files import read_tensors

PROMPTS = ["a red dog", "a blue cat"] * 4


def sample(model: MVDiffusion, geometry: Any, prompts: list[str] = PROMPTS, **options: Any) -> Tensor:
    return model.sample_views(prompts, geometry, (16, 16), steps=2, generator=cpu(), **options)


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
    # without attention between views
    model, latents = tiny_model(), torch.randn(8, 4, 8, 8, generator=cpu())
    known = given_condition(latents, torch.arange(8) == 0)
    held = sample(model, None, conditions=lambda size: (None, known))
    torch.testing.assert_close(held[0], model.decode_latents(latents[:1])[0].float(), atol=1e-5, rtol=0)


def test_compact_halves_memory_and_keeps_samples() -> None:
    model, geometry = tiny_model(), ring(8, 16)
    model = model.with_network(awaken(MultiviewUNet(model.unet)))
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
    with refused("weights", 7, 1, 5):
        tiny_model(in_channels=11, out_channels=4).extra  # noqa: B018


def test_blocks_file_stores_unet_as_difference(tmp_path: Path) -> None:
    model, file = tiny_model(), tmp_path / "blocks.safetensors"
    before = {name: tensor.clone() for name, tensor in model.unet.state_dict().items()}
    unet = widened(model.unet, 1)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:] += 0.1
    lora = LoRA(unet, 2, cpu(), targets=ATTENTION + CONVOLUTIONS)
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


def test_blocks_of_another_base_and_reshaped_ones_are_refused(tmp_path: Path) -> None:
    unet, file = widened(tiny_model().unet, 1), tmp_path / "blocks.safetensors"
    save_blocks(file, MultiviewUNet(unet, "depth", "capped"), difference(unet, LoRA(unet, 2)))
    other = tiny_model(block_out_channels=(32, 96))
    with refused("blocks"):
        other.with_multiview_attention(file)
    tiny_model().save(tmp_path / "base")
    with refused("blocks", "cp_blocks_mid"):
        other.with_multiview_attention(tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors")
    # low-rank differences of other shapes
    read = load_file(tiny_weights() / "depth.safetensors")
    lora = [name for name in read if ".lora." in name and name.endswith("down")]
    for change in (Tensor.flatten, lambda t: t.reshape(-1, 1), lambda t: t.T, lambda t: t.sum()):
        save_file(read | {name: change(read[name].flatten(1)).contiguous() for name in lora}, file)
        with refused("blocks", file, "lora."):
            tiny_model().with_multiview_attention(file)


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


# --- the network and its file


THREE_LEVELS: dict[str, Any] = {
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


def condition(*known: int) -> Tensor:
    found = torch.zeros(3, 5, 4, 6)
    found[list(known)] = 1
    return found


@torch.no_grad()
@pytest.mark.parametrize("kind", ["panorama", "depth"])
@pytest.mark.parametrize("levels", [{}, THREE_LEVELS], ids=["two", "three"])
def test_untrained_network_equals_base(kind: Kind, levels: dict[str, Any]) -> None:
    network = MultiviewUNet(tiny_base(**levels), kind, "capped", condition=True).eval()
    batch = inputs(3, size=(4, 6))
    expected = network.unet(*batch, return_dict=False)[0]
    geometry = ring(3) if kind == "panorama" else wall()
    torch.testing.assert_close(network(*batch, geometry), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(network(*batch, geometry, condition(0, 2)), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_scenes_use_their_own_geometry() -> None:
    network = awaken(MultiviewUNet(tiny_base(), "depth")).eval()
    x, t, text = inputs(6, size=(4, 6))
    near, far = wall(), wall(step=0.5)
    both = network(x, t, text, Scenes([near, far]))
    alone = [network(x[part], t[part], text[part], at) for part, at in ((slice(3), near), (slice(3, 6), far))]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("kind", "levels"), [("panorama", {}), ("depth", THREE_LEVELS)])
def test_gradients_reach_only_new_blocks(kind: Kind, levels: dict[str, Any]) -> None:
    network = awaken(MultiviewUNet(tiny_base(**levels), kind, "capped", condition=True)).train()
    geometry = ring(3) if kind == "panorama" else wall()
    network(*inputs(3, size=(4, 6)), geometry, condition(0)).square().mean().backward()
    assert all(parameter.grad is None for parameter in network.unet.parameters())
    new = {f"{name}.{k}": p for name, block in network.new_blocks.items() for k, p in block.named_parameters()}
    assert len(new) + len(list(network.unet.parameters())) == len(list(network.parameters()))
    assert [name for name, p in new.items() if p.grad is None or not p.grad.any()] == []


@pytest.fixture(scope="module")
def network() -> MultiviewUNet:
    return awaken(MultiviewUNet(tiny_base(), "depth", condition=True)).eval()


def released(network: MultiviewUNet) -> dict[str, Tensor]:
    ours = {f"mv_base_model.{name}": tensor for name, tensor in network.state_dict().items()}
    return ours | {"vae.encoder.conv_in.weight": torch.ones(2), "text_encoder.a": torch.ones(1), "vae.b": torch.ones(1)}


@torch.no_grad()
def test_released_checkpoint_is_converted(network: MultiviewUNet, tmp_path: Path) -> None:
    file = tmp_path / "depth_gen.ckpt"
    callbacks = {ModelCheckpoint: {"best": Path("a")}, "hyper_parameters": Namespace(lr=1e-4)}
    torch.save({"state_dict": released(network), "epoch": 4, "callbacks": callbacks}, file)
    loaded = build_network(read_tensors(file), tiny_base())
    batch = inputs(3, size=(4, 6))
    torch.testing.assert_close(loaded(*batch, wall()), network(*batch, wall()))
    # without the UNet of the base
    weights = {name: tensor for name, tensor in released(network).items() if ".unet." not in name}
    loaded = build_network(weights, tiny_base())
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), network.state_dict())


@pytest.mark.parametrize(
    ("change", "base", "values"),
    [
        ({"mv_base_model.cp_blocks_mid.resnet.bn1.weight": None}, {}, [1, "cp_blocks_mid.resnet.bn1"]),
        ({"mv_base_model.unet.conv_in.weight": torch.ones(32, 9, 3, 3)}, {}, ["unet.conv_in.weight"]),
        ({"mv_base_model.cp_blocks_encoder.0.new": torch.ones(1)}, {}, [1, "cp_blocks_encoder.0.new"]),
        ({"mv_base_model.unet.conv_in.bias": torch.full((32,), torch.nan)}, {}, ["unet.conv_in.bias"]),
        ({"mv_base_model.cp_blocks_mid.attn1.pe.freq_bands": torch.ones(1, 1, 16)}, {}, ["freq_bands"]),
        ({}, {"block_out_channels": (48, 48)}, [32, 48]),
    ],
)
def test_convert_released_refuses_tensors_that_do_not_fit(
    network: MultiviewUNet, change: dict, base: dict, values: list
) -> None:
    weights = {name: tensor for name, tensor in (released(network) | change).items() if tensor is not None}
    with refused(None, *values):
        build_network(weights, tiny_base(**base))
