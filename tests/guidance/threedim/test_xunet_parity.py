"""3DiM network against recordings of the paper's JAX listing (repaired) and of the public PyTorch port."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.errors import refused
from tests.support.flax_threedim import network_of
from tests.support.parity_files import parity_files, parted, recorded
from tests.support.tiny_threedim import inputs, tiny_network
from threedgen.geometry.poses import opencv_axes, pixel_rays
from threedgen.guidance.threedim.port import CONDITIONING, ENDS, RESIDUAL, convert_port, load_port
from threedgen.guidance.threedim.xunet import XUNet


def c2w_of(rotation: Tensor, translation: Tensor) -> Tensor:
    """Convert rotation and position of cameras in OpenCV axes to poses in OpenGL axes."""
    c2w = torch.eye(4).repeat(*translation.shape[:-1], 1, 1)
    c2w[..., :3, :3], c2w[..., :3, 3] = rotation, translation
    return opencv_axes(c2w)


def recorded_outputs(network: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """Return a dict that holds the outputs of the named modules, by key, after the next call."""
    found: dict[str, Tensor] = {}
    for key, name in names.items():
        network.get_submodule(name).register_forward_hook(lambda _m, _i, out, key=key: found.update({key: out}))
    return found


def pose_maps(rest: dict[str, Tensor]) -> dict[str, str]:
    levels = [int(name.rpartition("_")[2]) for name in rest if name.startswith("mid/pose_emb_")]
    return {f"mid/pose_emb_{level}": f"conditioning.poses.{level}" for level in levels}


@torch.no_grad()
def run(network: XUNet, rest: dict[str, Tensor], channels_last: bool) -> Tensor:
    x, z = rest["in/x"], rest["in/z"]
    if channels_last:
        x, z = x.permute(0, 3, 1, 2), z.permute(0, 3, 1, 2)
    c2w = c2w_of(rest["in/R"], rest["in/t"])
    return network(x, z, rest["in/logsnr"], c2w, rest["in/K"], rest["in/cond_mask"])


def close(found: Tensor, expected: Tensor, atol: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@recorded("xunet_jax")
def test_network_matches_recorded_jax_listing(path: Path) -> None:
    weights, rest, meta = parted(path, "w/")
    height, width = rest["in/x"].shape[1:3]
    network = network_of(meta, weights, (height, width))
    names = {"mid/logsnr_emb": "conditioning.logsnr", "mid/XUNetBlock_0": "unet.down.0.0"} | pose_maps(rest)
    names |= {"mid/ResnetBlock_0": "unet.downsample.0"} if "mid/ResnetBlock_0" in rest else {}
    found = recorded_outputs(network, names)
    eps = run(network, rest, channels_last=True).permute(0, 2, 3, 1)
    origins, directions = pixel_rays(c2w_of(rest["in/R"], rest["in/t"]), rest["in/K"][:, None], height, width)
    close(origins.expand_as(directions), rest["mid/ray_pos"], 0)
    close(directions, rest["mid/ray_dir"], 1e-6)
    for key, tensor in found.items():
        frames = tensor if key == "mid/logsnr_emb" else tensor.unflatten(0, (-1, 2)).permute(0, 1, 3, 4, 2)
        # the highest octave of the encoded rays turns one rounding error into 1e-3
        close(frames, rest[key], 1e-4 if "emb" in key else 5e-3)
    error = (eps - rest["out/eps"]).abs()
    assert error.max() < 5e-3 and error.mean() < 5e-4


@recorded("xunet_a6o")
def test_port_weights_give_recorded_output(path: Path, tmp_path: Path) -> None:
    weights, rest, meta = parted(path, "w/")
    file = tmp_path / "latest.pt"
    optimiser = {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-4}]}
    saved = {f"module.{name}": tensor for name, tensor in weights.items()}
    torch.save({"optim": optimiser, "model": saved, "step": 3, "epoch": 0}, file)
    network = load_port(file, attn_heads=meta["attn_heads"])
    assert network.config.variant == "port" and network.config.dropped_logsnr == 20
    assert not any(parameter.requires_grad for parameter in network.parameters())
    found = recorded_outputs(network, {"mid/logsnr_emb": "conditioning.logsnr"} | pose_maps(rest))
    error = (run(network, rest, channels_last=False) - rest["out/eps"]).abs()
    for key, tensor in found.items():
        close(tensor if key == "mid/logsnr_emb" else tensor.unflatten(0, (-1, 2)), rest[key], 5e-4)
    assert error.max() < 5e-3 and error.mean() < 5e-4


def as_port(network: XUNet) -> dict[str, Tensor]:
    """Return our weights under the port's names; its second linear layer after attention is the identity."""
    last, per_level = len(network.config.channel_mult) - 1, network.config.num_res_blocks
    theirs = {ours: name for name, ours in RESIDUAL.items()}
    ends = {ours: name for name, ours in ENDS.items()}
    found: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        part, _, leaf = name.rpartition(".")
        place = part.split(".")
        if part in ends:
            found[f"{ends[part]}.{leaf}"] = tensor
        elif place[0] == "conditioning":
            short = name.removeprefix("conditioning.")
            found[CONDITIONING + short.replace("logsnr.", "logsnr_emb_emb.").replace("poses.", "convs.")] = tensor
        else:
            side, *rest = place[1:]
            if side == "middle":
                before = "middle"
            elif side in ("down", "up"):
                level, index, *rest = rest
                before = f"xunetblocks.{level}.{index}" if side == "down" else f"upsample.{last - int(level)}.{index}"
            else:
                level, *rest = rest
                down = f"xunetblocks.{level}.{per_level}"
                before = down if side == "downsample" else f"upsample.{last - int(level)}.{per_level + 1}"
            found |= {f"{before}.{key}": value for key, value in layer_as_port(rest, leaf, tensor, theirs).items()}
    first, other = found.pop(CONDITIONING + "frame_emb")[None, :, None, :, None, None].unbind(1)
    return found | {CONDITIONING + "first_emb": first, CONDITIONING + "other_emb": other}


def layer_as_port(rest: list[str], leaf: str, tensor: Tensor, theirs: dict[str, str]) -> dict[str, Tensor]:
    inside = "resnetblock." if rest[0] == "residual" else ""
    if rest[0] not in ("self_attention", "cross_attention"):
        flat = rest[-1] == "film" and leaf == "weight"
        return {f"{inside}{theirs[rest[-1]]}.{leaf}": tensor[:, :, 0, 0] if flat else tensor}
    start = f"attnblock_{rest[0].partition('_')[0]}."
    if rest[1] == "norm":
        return {f"{start}groupnorm.gn.{leaf}": tensor}
    if rest[1] == "qkv":
        return {f"{start}attn_layer.attn.in_proj_{leaf}": tensor}
    width, weight = len(tensor), leaf == "weight"
    identity = torch.eye(width) if weight else torch.zeros(width)
    linear = tensor[:, :, None, None] if weight else tensor
    return {f"{start}attn_layer.attn.out_proj.{leaf}": identity, f"{start}linear.{leaf}": linear}


@pytest.mark.parametrize(
    "options",
    [
        {"channel_mult": (1, 2, 3), "num_res_blocks": 2, "attn_resolutions": (4, 2), "attn_middle": True},
        {"channel_mult": (1, 2, 2, 4), "image_size": (8, 16), "attn_resolutions": (2,), "attn_middle": True},
        {"channel_mult": (2,), "attn_resolutions": (), "attn_middle": False},
    ],
)
def test_convert_port_recognises_network_sizes(options: dict[str, Any]) -> None:
    options = {"channels": 32, "groups": 32, "dropout": 0.1, "dropped_logsnr": 20, "variant": "port"} | options
    network = tiny_network(**options)
    found = convert_port(as_port(network), attn_heads=network.config.attn_heads)
    assert (found.config.widths, found.config.size) == (network.config.widths, network.config.size)
    batch = inputs(network)
    with torch.no_grad():
        assert torch.equal(found(*batch), network(*batch))


@pytest.fixture(scope="module")
def port_weights() -> dict[str, Tensor]:
    return parted(parity_files("xunet_a6o")[0], "w/")[0]


@pytest.mark.parametrize(
    "change, values",
    [
        ({"conv.weight": None}, ["conv.weight"]),
        ({"lastgn.gn.bias": None}, [1, "unet.norm_out.bias"]),
        ({"middle.attnblock_self.linear.bias": None}, ["unet.middle.self_attention."]),
        ({"xunetblocks.0.0.resnetblock.conv1.weight": None}, []),
        ({"conditioningprocessor.pos_emb": None}, ["pos_emb"]),
        ({"extra": torch.zeros(2)}, [1, "extra"]),
        ({"extra.deep.bias": torch.zeros(2)}, [1, "extra.deep.bias"]),
        ({"lastconv.bias": torch.zeros(7)}, ["unet.conv_out.bias"]),
        ({"conv.bias": torch.full((32,), torch.nan)}, ["unet.conv_in.bias"]),
        ({"conditioningprocessor.pos_emb": torch.zeros(144, 7, 7)}, ["image_size", "7 x 7"]),
    ],
)
def test_convert_port_refuses_other_weights(
    port_weights: dict[str, Tensor], change: dict[str, Tensor | None], values: list[Any]
) -> None:
    weights = {name: tensor for name, tensor in (port_weights | change).items() if tensor is not None}
    with refused(None, *values) as caught:
        convert_port(weights, attn_heads=2)
    assert "\n" not in str(caught.value)
    with refused(None, "attn_heads", 3):
        convert_port(port_weights, attn_heads=3)


def test_load_port_refuses_pickled_objects(tmp_path: Path) -> None:
    torch.save({"model": {"conv.weight": Path("x")}}, tmp_path / "bad.pt")
    with refused(None, tmp_path / "bad.pt"):
        load_port(tmp_path / "bad.pt")
