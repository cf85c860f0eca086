"""Initial UNets of the trainings: new ones, and trained UNets with added inputs, channels or cameras."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerFast

from threedgen.config.errors import ConfigError
from threedgen.guidance.attention.joined import CAMERA_DIM, unet_from_config
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.mvdiffusion.weights import widened
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.schedule import Schedule

from .options import GROUPS
from .text_encoder import TEXT_HEADS, TEXT_WIDTH

BASE_HEAD_WIDTH = 56
"""Minimum number of channels per attention head of the 2D model, whose first level has no attention."""
SINUSOIDS = "time_embedding.linear_1.weight"
"""Name of the UNet weight whose inputs are sines and cosines of the time step, one for each channel of level 0."""
QUERIES = ".to_q.weight"
Parts = Sequence[tuple[int, int]]
"""Pairs (old width, new width), one for each of the feature maps that are concatenated as the input of a layer."""


def base_model(
    channels: tuple[int, ...],
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: PreTrainedTokenizerFast,
    image_size: int,
) -> LatentDiffusion:
    """Build a 2D latent diffusion model: a new, untrained UNet, a trained autoencoder and a trained text encoder.

    `channels` are the numbers of channels of the UNet's levels, and `image_size` is the side of an image in pixels. The
    sum of the time embedding and a pooled caption embedding scales and shifts the features of residual blocks.

    The model predicts v (v-prediction, Salimans and Ho 2022). At its highest noise level, alpha_bar is 4e-5. At 5e-3,
    the value of Stable Diffusion, the noise would not hide the image in small latents (16 x 16 for images of 128 x 128
    pixels).
    """
    latent_channels, levels = int(vae.config["latent_channels"]), len(channels) - 1
    unet = UNet2DConditionModel(
        addition_embed_type="text",
        addition_embed_type_num_heads=TEXT_HEADS,
        resnet_time_scale_shift="scale_shift",
        sample_size=image_size // 2 ** (len(vae.config["block_out_channels"]) - 1),
        in_channels=latent_channels,
        out_channels=latent_channels,
        layers_per_block=1,
        block_out_channels=channels,
        down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * levels),
        up_block_types=(*["CrossAttnUpBlock2D"] * levels, "UpBlock2D"),
        attention_head_dim=tuple(
            max(1, width // BASE_HEAD_WIDTH) for width in channels
        ),  # diffusers' name for the number of heads
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=GROUPS,
        use_linear_projection=True,
    )
    return LatentDiffusion(unet, vae, text_encoder, tokenizer, Schedule.linear(prediction="v_prediction"))


def multiview_model(base: LatentDiffusion, coarse: CoarsePredictor | None) -> MVDream:
    """Build a multi-view prior from the networks of `base`, a 2D model (single images) or a multi-view prior.

    `coarse` is a network that predicts latents in one step, which become an input of the UNet; None: no predictor. The
    UNet gets a camera input if it has none. If an input is added, the UNet is a copy, with the same output before
    training; the other networks are those of `base`.
    """
    unet: Any = base.unet
    if coarse is not None and base.coarse is None:
        unet = widened(unet, coarse.config["latent_channels"])
    return MVDream(with_camera(unet), base.vae, base.text_encoder, base.tokenizer, base.schedule, coarse)


@torch.no_grad()
def with_camera(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return a copy of the UNet with a camera embedding as a further input, or `unet` itself if it has one.

    The last layer of the embedding is zero, so the output of the UNet does not change before training.
    """
    if unet.class_embedding is not None:
        return unet
    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA_DIM}
    found: Any = unet_from_config(unet.config, **camera)
    found.load_state_dict(found.state_dict() | unet.state_dict())
    for parameter in found.class_embedding.linear_2.parameters():
        parameter.zero_()
    return found


def widen(unet: Any, channels: Sequence[int], rng: torch.Generator) -> Any:
    """Return a copy of a diffusers UNet with `channels` channels per level, or `unet` itself if it has these already.

    The wider UNet starts from the trained one (Net2Net, Chen et al. 2016, arXiv 1511.05641, section 2.2). Each new
    channel is a copy of an old one. `rng` divides each weight that reads an old channel randomly among the copies. The
    parts sum to the old weight, but the copies get different gradients.

    How much the output changes before further training:
    - Not at all, if all levels get wider by the same factor.
    - Slightly, if neighbouring levels get wider by different factors (by 3 to 9 % in the toybox's 2D model with noise
      as the input): the group norms over the concatenated features of both levels then have other groups.
    - More, if neighbouring levels of different widths get equal widths: the trained 1x1 convolution between them
      (`conv_shortcut` of diffusers) is then dropped, because a UNet has none between equal widths.

    Raises:
        ConfigError: `channels` does not have one number per level, a number is not a multiple of the old one, or
            neighbouring levels of equal width would get different widths, which needs a new, untrained `conv_shortcut`.
    """
    old = list(unet.config["block_out_channels"])
    if list(channels) == old:
        return unet
    if len(channels) != len(old) or any(new < width or new % width for new, width in zip(channels, old, strict=True)):
        raise ConfigError(f"{list(channels)} should be multiples of the widths in start, {old}", "widen")
    if any(a == b and new_a != new_b for (a, b), (new_a, new_b) in zip(pairwise(old), pairwise(channels), strict=True)):
        raise ConfigError(f"{list(channels)} and {old}: neighbouring levels of one width must stay equal", "widen")
    embedding = unet.time_embedding.linear_1.out_features
    wide: Any = unet_from_config(unet.config, block_out_channels=tuple(channels), time_embedding_dim=embedding)
    concatenated = _concatenated_inputs(unet, wide)
    state, shapes = unet.state_dict(), {name: weight.shape for name, weight in wide.state_dict().items()}
    wide.load_state_dict({name: _widened(name, state[name], shapes[name], concatenated, rng) for name in shapes})
    wide.set_attn_processor(unet.attn_processors)
    return wide.to(unet.device).train(unet.training)


def _widened(
    name: str, weight: Tensor, shape: torch.Size, concatenated: dict[str, Parts], rng: torch.Generator
) -> Tensor:
    parts = concatenated.get(name.rpartition(".")[0])  # widths of the concatenated inputs of the layer
    if weight.ndim == 1:
        whole = [(len(weight), shape[0])]
        return weight[_sources(parts if parts and sum(new for _, new in parts) == shape[0] else whole)]
    out = weight[_sources([(weight.shape[0], shape[0])])]
    if name == SINUSOIDS:
        return _widened_sinusoids(out, shape[1])
    source = _sources(parts or [(weight.shape[1], shape[1])])
    if len(source) > weight.shape[1]:
        share = torch.rand(out.shape[:1] + source.shape + out.shape[2:], generator=rng).to(out) + 0.1
        total = torch.zeros_like(out).index_add_(1, source, share)
        out = out[:, source] * share / total[:, source]
    if name.endswith(QUERIES):  # products of longer heads are larger, and divided by the root of their length
        out = out * (weight.shape[0] / shape[0]) ** 0.5
    return out


def _sources(parts: Parts) -> Tensor:
    # index (new,) of the old channel that each new channel copies
    starts = [0, *torch.cumsum(torch.tensor([old for old, _ in parts]), 0).tolist()]
    return torch.cat(
        [
            torch.arange(a, b).repeat_interleave(new // old)  # neighbours, so that norms keep their groups
            for (a, b), (old, new) in zip(pairwise(starts), parts, strict=True)
        ]
    )


def _widened_sinusoids(weight: Tensor, n: int) -> Tensor:
    # in diffusers one half of the inputs are sines, the other cosines; frequency k is 10000^(-k / half)
    out = weight.new_zeros(len(weight), n)
    for new, old in zip(out.chunk(2, 1), weight.chunk(2, 1), strict=True):
        new[:, :: n // weight.shape[1]] = old
    return out


def _concatenated_inputs(unet: Any, wide: Any) -> dict[str, Parts]:
    # dict from layer to the (old, new) widths of the two feature maps that are concatenated as its input
    found = dict[str, Parts]()
    for i, block in enumerate(wide.up_blocks):
        for j in range(len(block.resnets)):
            name = f"up_blocks.{i}.resnets.{j}."
            parts = list(zip(_input_widths(unet, i, j), _input_widths(wide, i, j), strict=True))
            found |= {name + layer: parts for layer in ("norm1", "conv1", "conv_shortcut")}
    return found


def _input_widths(unet: Any, i: int, j: int) -> tuple[int, int]:
    # input widths of residual block j in up block i: (map of the level below, skip connection)
    blocks = unet.up_blocks
    before = blocks[i].resnets[j - 1] if j else blocks[i - 1].resnets[-1] if i else unet.mid_block.resnets[-1]
    below = int(before.conv2.out_channels)
    return below, int(blocks[i].resnets[j].conv1.in_channels) - below
