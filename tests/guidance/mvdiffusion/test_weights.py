"""Checkpoints of the reference implementation, with what else lies in them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.support.tiny_mvdiffusion import awaken, inputs, tiny_base, wall
from threedgen.config import ConfigError
from threedgen.guidance.mvdiffusion.unet import MultiviewUNet
from threedgen.guidance.mvdiffusion.weights import convert_released, save_blocks
from threedgen.guidance.weights.files import read_tensors


@pytest.fixture(scope="module")
def network() -> MultiviewUNet:
    return awaken(MultiviewUNet(tiny_base(), "depth", condition=True)).eval()


def released(network: MultiviewUNet) -> dict[str, Tensor]:
    ours = {f"mv_base_model.{name}": tensor for name, tensor in network.state_dict().items()}
    return ours | {"vae.encoder.conv_in.weight": torch.ones(2), "text_encoder.a": torch.ones(1), "vae.b": torch.ones(1)}


@torch.no_grad()
def test_a_checkpoint_file_gives_its_network(network: MultiviewUNet, tmp_path: Path) -> None:
    file = tmp_path / "depth.ckpt"
    torch.save({"state_dict": released(network), "epoch": 4, "optimizer_states": [{"lr": 1e-4}]}, file)
    loaded = convert_released(read_tensors(file), tiny_base())
    assert loaded.ignored_parts == {"text_encoder": 1, "vae": 2}
    given = inputs(3, size=(4, 6))
    torch.testing.assert_close(loaded.network(*given, wall()), network(*given, wall()))


def test_the_base_may_be_elsewhere(network: MultiviewUNet) -> None:
    weights = {name: tensor for name, tensor in released(network).items() if ".unet." not in name}
    loaded = convert_released(weights, tiny_base())
    assert not loaded.network.training
    torch.testing.assert_close(loaded.network.state_dict(), network.state_dict())


def test_encoding_is_known_by_its_frequencies() -> None:
    capped = MultiviewUNet(tiny_base(), encoding="capped")
    found = convert_released(released(capped), tiny_base()).network
    assert torch.equal(found.cp_blocks_mid.pe.freq_bands, capped.cp_blocks_mid.pe.freq_bands)
    assert found.kind == "panorama"


def test_frequencies_beyond_float16_are_kept(tmp_path: Path) -> None:
    wide = MultiviewUNet(tiny_base(block_out_channels=(64, 64)), "depth")  # up to 2^31
    save_blocks(tmp_path / "blocks.safetensors", wide, None)
    weights = read_tensors(tmp_path / "blocks.safetensors")
    found = convert_released(weights, tiny_base(block_out_channels=(64, 64))).network
    assert found.encoding == "reference"
    assert torch.equal(found.cp_blocks_mid.attn1.pe.freq_bands, wide.cp_blocks_mid.attn1.pe.freq_bands)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mv_base_model.cp_blocks_mid.resnet.bn1.weight": None}, "1 tensors are missing .*'cp_blocks_mid.resnet.bn1"),
        ({"mv_base_model.unet.conv_in.weight": torch.ones(32, 9, 3, 3)}, "another shape .*'unet.conv_in.weight'"),
        ({"mv_base_model.cp_blocks_encoder.0.new": torch.ones(1)}, "1 are unknown"),
        ({"mv_base_model.unet.conv_in.bias": torch.full((32,), torch.nan)}, "not finite"),
        ({"mv_base_model.cp_blocks_mid.attn1.pe.freq_bands": torch.ones(1, 1, 16)}, "positional encoding"),
    ],
)
def test_what_matters_has_to_fit(network: MultiviewUNet, change: dict[str, Tensor | None], message: str) -> None:
    weights = {name: tensor for name, tensor in (released(network) | change).items() if tensor is not None}
    with pytest.raises(ConfigError, match=message):
        convert_released(weights, tiny_base())


def test_other_weights_are_refused(network: MultiviewUNet) -> None:
    with pytest.raises(ConfigError, match="no correspondence-aware blocks"):
        convert_released(tiny_base().state_dict(), tiny_base())
    odd = tiny_base(block_out_channels=(48, 48))
    with pytest.raises(ConfigError, match="multiple of 32"):
        convert_released(released(network), odd)
