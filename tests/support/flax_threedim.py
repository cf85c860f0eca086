"""Convert weights with names and layouts of the paper's JAX listing to ours."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from threedgen.guidance.novel_view.blocks import Block, ResBlock
from threedgen.guidance.novel_view.options import XUNetConfig
from threedgen.guidance.novel_view.xunet import XUNet

OPTIONS = {
    "ch": "channels", "ch_mult": "channel_mult", "emb_ch": "emb_channels", "num_res_blocks": "num_res_blocks",
    "attn_resolutions": "attn_resolutions", "attn_heads": "attn_heads",
}  # fmt: skip
RESIDUAL = {
    "Conv_0": "conv1", "Conv_1": "conv2", "GroupNorm_0": "norm1", "GroupNorm_1": "norm2", "FiLM_0/Dense_0": "film",
    "Dense_0": "shortcut",
}  # fmt: skip
LAYERS = {
    "ConditioningProcessor_0/Dense_0": "conditioning.logsnr.0", "Conv_0": "unet.conv_in",
    "ConditioningProcessor_0/Dense_1": "conditioning.logsnr.2", "Conv_1": "unet.conv_out",
    "GroupNorm_0": "unet.norm_out",
}  # fmt: skip
"""Their names -> ours: of options, of the layers of a residual block, of single layers."""


def network_of(meta: Mapping[str, Any], weights: Mapping[str, Tensor], size: tuple[int, int]) -> XUNet:
    """Return the network of a recording, with its weights."""
    options = {OPTIONS[name]: value for name, value in meta.items() if name in OPTIONS}
    network = XUNet(XUNetConfig(**options, image_size=size))
    network.load_state_dict(converted(network, weights))
    return network.eval()


def converted(network: XUNet, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    names = {module: name for name, module in network.named_modules()}
    found = dict[str, Tensor]()

    def layer(theirs: str, ours: str) -> None:
        norm = f"{theirs}/GroupNorm_0/"
        if norm + "scale" in weights:
            weight, bias = weights[norm + "scale"], weights[norm + "bias"]
        else:
            kernel, bias = weights[theirs + "/kernel"], weights[theirs + "/bias"]
            weight = kernel.T if kernel.ndim == 2 else kernel[0].permute(3, 2, 0, 1)
        found[ours + ".weight"] = weight.reshape(shapes[ours + ".weight"])  # some dense layers are convolutions here
        found[ours + ".bias"] = bias

    def residual(theirs: str, ours: str) -> None:
        for name, part in RESIDUAL.items():
            if f"{ours}.{part}.weight" in shapes:
                layer(f"{theirs}/{name}", f"{ours}.{part}")

    def attention(theirs: str, ours: str) -> None:
        parts = [f"{theirs}/AttnLayer_0/DenseGeneral_{k}/" for k in range(3)]
        found[ours + ".qkv.weight"] = torch.cat([weights[part + "kernel"].flatten(1).T for part in parts])
        found[ours + ".qkv.bias"] = torch.cat([weights[part + "bias"].flatten() for part in parts])
        layer(theirs + "/GroupNorm_0", ours + ".norm")
        layer(theirs + "/DenseGeneral_0", ours + ".out")

    for theirs, ours in LAYERS.items():
        layer(theirs, ours)
    for level in range(len(network.conditioning.poses)):
        layer(f"ConditioningProcessor_0/Conv_{level}", f"conditioning.poses.{level}")
    found["conditioning.pos_emb"] = weights["ConditioningProcessor_0/pos_emb"].permute(2, 0, 1)
    if network.conditioning.frame_emb is not None:
        rows = [weights[f"ConditioningProcessor_0/ref_pose_emb_{name}"] for name in ("first", "other")]
        found["conditioning.frame_emb"] = torch.stack(rows)
    unet: Any = network.unet
    called = [
        *sum(map(list, unet.down), []),
        *unet.downsample,
        unet.middle,
        *sum(map(list, unet.up), []),
        *unet.upsample,
    ]
    for number, block in enumerate(module for module in called if isinstance(module, Block)):
        residual(f"XUNetBlock_{number}/ResnetBlock_0", names[block] + ".residual")
        for k, part in enumerate((block.self_attention, block.cross_attention)):
            if part is not None:
                attention(f"XUNetBlock_{number}/AttnBlock_{k}", names[part])
    for number, block in enumerate(module for module in called if isinstance(module, ResBlock)):
        residual(f"ResnetBlock_{number}", names[block])
    return found
