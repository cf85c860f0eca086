from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor

from tests.support.errors import refused
from tests.support.tiny_mvdiffusion import awaken, inputs, ring, tiny_base, wall
from threedgen.guidance.priors.mvdiffusion.geometry import Scenes
from threedgen.guidance.priors.mvdiffusion.unet import Kind, MultiviewUNet
from threedgen.guidance.priors.mvdiffusion.weights import build_network, save_blocks
from threedgen.guidance.weights.files import read_tensors

THREE_LEVELS: dict[str, Any] = {
    "block_out_channels": (32, 64, 96),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
}


def condition(views: int, *known: int) -> Tensor:
    found = torch.zeros(views, 5, 4, 6)
    for view in known:
        found[view] = 1
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
    torch.testing.assert_close(network(*batch, geometry, condition(3, 0, 2)), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_hooks_are_removed_after_a_call() -> None:
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
    network(*inputs(3, size=(4, 6)), geometry, condition(3, 0)).square().mean().backward()
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


def test_checkpoint_without_base_unet_uses_given_base(network: MultiviewUNet) -> None:
    weights = {name: tensor for name, tensor in released(network).items() if ".unet." not in name}
    loaded = build_network(weights, tiny_base())
    assert not loaded.training
    torch.testing.assert_close(loaded.state_dict(), network.state_dict())


def test_encoding_is_recognised_by_frequencies() -> None:
    capped = MultiviewUNet(tiny_base(), encoding="capped")
    found = build_network(released(capped), tiny_base())
    assert torch.equal(found.cp_blocks_mid.pe.freq_bands, capped.cp_blocks_mid.pe.freq_bands)
    assert found.kind == "panorama"


def test_frequencies_beyond_float16_are_saved_exactly(tmp_path: Path) -> None:
    wide = MultiviewUNet(tiny_base(block_out_channels=(64, 64)), "depth")  # up to 2^31
    save_blocks(tmp_path / "blocks.safetensors", wide, None)
    weights = read_tensors(tmp_path / "blocks.safetensors")
    found = build_network(weights, tiny_base(block_out_channels=(64, 64)))
    assert found.encoding == "reference"
    assert torch.equal(found.cp_blocks_mid.attn1.pe.freq_bands, wide.cp_blocks_mid.attn1.pe.freq_bands)


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
