"""Initial UNets of the trainings: new ones, and trained ones with added camera branch, input channels or attention."""

from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from threedgen.guidance.attention.joined import CAMERA_DIM, WORLD_ROTARY, unet_from_config
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.mvdiffusion.difference import widened
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.guidance.schedule import Schedule

from .options import NetworkConfig

HEAD_WIDTH = 64
"""Channels per attention head in added attention layers."""


def base_model(
    options: NetworkConfig,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    image_size: int,
) -> StableDiffusion:
    """Build a 2D model of an untrained UNet, and of a trained autoencoder and text encoder.

    The time embedding includes the pooled caption, and scales and shifts features. The model predicts v, which weights
    all noise levels equally. At the last time step the noise is stronger than in Stable Diffusion, because latents of
    this small size would still be visible at its noise level.
    """
    channels = int(vae.config["latent_channels"])
    unet = UNet2DConditionModel(
        addition_embed_type="text",
        addition_embed_type_num_heads=options.text_heads,
        resnet_time_scale_shift="scale_shift",
        sample_size=image_size // 2 ** (len(vae.config["block_out_channels"]) - 1),
        in_channels=channels,
        out_channels=channels,
        layers_per_block=1,
        block_out_channels=options.channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in options.attention),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(options.attention)),
        attention_head_dim=options.heads,  # diffusers' name for the number of heads
        cross_attention_dim=options.text_width,
        norm_num_groups=options.groups,
        use_linear_projection=True,
    )
    return StableDiffusion(unet, vae, text_encoder, tokenizer, Schedule.linear(prediction="v_prediction"))


def multiview_model(
    base: LatentDiffusion, coarse: CoarsePredictor | None, attention: bool = False, rotary: bool = False
) -> MVDream:
    """Build a multi-view prior from the networks of `base`, which are not copied.

    Args:
        base: a 2D model or a multi-view prior.
        coarse: predictor whose latents become an input of the UNet; None: no such input.
        attention: add attention to the UNet levels that have none.
        rotary: rotate queries and keys by the world positions of their pixels (rotary embedding).

    Except for `rotary`, the additions do not change the output before training, because some of their weights are zero.
    """
    unet: Any = base.unet
    if coarse is not None and base.coarse is None:
        unet = widened(unet, coarse.config["latent_channels"])
    if attention:
        unet = with_attention(unet)
    if rotary:
        unet.register_to_config(**{WORLD_ROTARY: True})
    return MVDream(with_camera(unet), base.vae, base.text_encoder, base.tokenizer, base.schedule, coarse)


@torch.no_grad()
def with_camera(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a copy of the UNet with a camera branch whose last layer is zero, or `unet` itself if it has a branch."""
    if unet.class_embedding is not None:
        return unet
    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA_DIM}
    found: Any = unet_from_config(unet.config, **camera)
    found.load_state_dict(found.state_dict() | unet.state_dict())
    for parameter in found.class_embedding.linear_2.parameters():
        parameter.zero_()
    return found


@torch.no_grad()
def with_attention(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a copy of the UNet with attention at all levels. The output of the added layers is zero."""
    config: Any = unet.config
    widths, heads = config["block_out_channels"], list(config["attention_head_dim"])  # numbers of heads
    for level, kind in enumerate(config["down_block_types"]):
        if "CrossAttn" not in kind:
            heads[level] = max(1, widths[level] // HEAD_WIDTH)
    found: Any = unet_from_config(
        config,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        attention_head_dim=heads,
    )
    trained = unet.state_dict()
    found.load_state_dict(found.state_dict() | trained)
    for name, parameter in found.named_parameters():
        if name not in trained and ".proj_out." in name:
            parameter.zero_()
    return found
