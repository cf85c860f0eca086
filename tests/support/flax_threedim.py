"""Convert weights with names and layouts of the paper's JAX listing to ours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from threedgen.guidance.novel_view.blocks import Attention, Block, ResBlock
from threedgen.guidance.novel_view.options import XUNetConfig
from threedgen.guidance.novel_view.xunet import XUNet

OPTIONS = {
    "ch": "channels", "ch_mult": "channel_mult", "emb_ch": "emb_channels", "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions", "attn_heads": "attn_heads",
}  # fmt: skip


def network_of(meta: Mapping[str, Any], weights: Mapping[str, Tensor], size: tuple[int, int]) -> XUNet:
    """Return the network of a recording, with its weights."""
    options = {OPTIONS[name]: value for name, value in meta.items() if name in OPTIONS}
    network = XUNet(XUNetConfig(**options, image_size=size))
    network.load_state_dict(converted(network, weights))
    return network.eval()


def converted(network: XUNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    unet, found = network.unet, {}
    conditioning = network.conditioning
    processor = "ConditioningProcessor_0/"
    found |= dense(weights, processor + "Dense_0", "conditioning.logsnr.0")
    found |= dense(weights, processor + "Dense_1", "conditioning.logsnr.2")
    for level in range(len(conditioning.poses)):
        found |= conv(weights, f"{processor}Conv_{level}", f"conditioning.poses.{level}")
    found["conditioning.pos_emb"] = weights[processor + "pos_emb"].permute(2, 0, 1)
    if conditioning.frame_emb is not None:
        rows = [weights[f"{processor}ref_pose_emb_{name}"] for name in ("first", "other")]
        found["conditioning.frame_emb"] = torch.stack(rows)
    found |= conv(weights, "Conv_0", "unet.conv_in") | conv(weights, "Conv_1", "unet.conv_out")
    found |= norm(weights, "GroupNorm_0", "unet.norm_out")
    blocks = [module for module in in_call_order(unet) if isinstance(module, Block)]
    resampling = [module for module in in_call_order(unet) if isinstance(module, ResBlock)]
    names = {module: name for name, module in network.named_modules()}
    for number, block in enumerate(blocks):
        found |= residual(weights, f"XUNetBlock_{number}/ResnetBlock_0", names[block] + ".residual", block.residual)
        for k, layer in enumerate((block.self_attention, block.cross_attention)):
            if layer is not None:
                found |= attention(weights, f"XUNetBlock_{number}/AttnBlock_{k}", names[layer], layer)
    for number, block in enumerate(resampling):
        found |= residual(weights, f"ResnetBlock_{number}", names[block], block)
    return found


def in_call_order(unet: Any) -> list[Any]:
    down = [block for row in unet.down for block in row]
    up = [block for row in unet.up for block in row]
    return [*down, *unet.downsample, unet.middle, *up, *unet.upsample]


def conv(weights: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    kernel = weights[theirs + "/kernel"][0].permute(3, 2, 0, 1)
    return {ours + ".weight": kernel, ours + ".bias": weights[theirs + "/bias"]}


def dense(weights: Mapping[str, Tensor], theirs: str, ours: str, as_conv: bool = False) -> dict[str, Tensor]:
    kernel = weights[theirs + "/kernel"].T
    kernel = kernel[:, :, None, None] if as_conv else kernel
    return {ours + ".weight": kernel, ours + ".bias": weights[theirs + "/bias"]}


def norm(weights: Mapping[str, Tensor], theirs: str, ours: str) -> dict[str, Tensor]:
    inner = theirs + "/GroupNorm_0/"
    return {ours + ".weight": weights[inner + "scale"], ours + ".bias": weights[inner + "bias"]}


def residual(weights: Mapping[str, Tensor], theirs: str, ours: str, block: ResBlock) -> dict[str, Tensor]:
    found = conv(weights, theirs + "/Conv_0", ours + ".conv1") | conv(weights, theirs + "/Conv_1", ours + ".conv2")
    found |= norm(weights, theirs + "/GroupNorm_0", ours + ".norm1")
    found |= norm(weights, theirs + "/GroupNorm_1", ours + ".norm2")
    found |= dense(weights, theirs + "/FiLM_0/Dense_0", ours + ".film", as_conv=True)
    if not isinstance(block.shortcut, torch.nn.Identity):
        found |= dense(weights, theirs + "/Dense_0", ours + ".shortcut", as_conv=True)
    return found


def attention(weights: Mapping[str, Tensor], theirs: str, ours: str, layer: Attention) -> dict[str, Tensor]:
    parts = [f"{theirs}/AttnLayer_0/DenseGeneral_{k}/" for k in range(3)]
    kernels = [weights[part + "kernel"].flatten(1).T for part in parts]
    biases = [weights[part + "bias"].flatten() for part in parts]
    found = {ours + ".qkv.weight": torch.cat(kernels), ours + ".qkv.bias": torch.cat(biases)}
    found |= norm(weights, theirs + "/GroupNorm_0", ours + ".norm")
    return found | dense(weights, theirs + "/DenseGeneral_0", ours + ".out")
