"""Image tokens in cross-attention: the local controller of ImageDream (Wang and Shi 2023, arXiv 2312.02201).

A resampler (that of IP-Adapter Plus) turns the features of CLIP's image encoder into a few tokens. Each cross-attention
layer attends to the text and, with additional key and value layers (`to_k_ip`, `to_v_ip`), to these tokens; the two
results are added.
"""

import torch.nn.functional as F
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import IPAdapterPlusImageProjection
from torch import Tensor, nn

IMAGE_TOKENS = "image_tokens"
"""Key of a UNet's config whose value is a dict of arguments of `add_image_tokens`; missing without image tokens."""
HEAD_WIDTH = 64  # channels per head of the resampler


def add_image_tokens(unet: UNet2DConditionModel, image_width: int, tokens: int, heads: int) -> None:
    """Add untrained layers to `unet`, in place, with which its cross-attention can also attend to image tokens.

    One of them is the resampler (`unet.image_embed`), a small transformer that turns the features of an image encoder
    into a fixed number of tokens. Each cross-attention layer gets key and value layers for these tokens.

    Args:
        image_width: features per token of the image encoder.
        tokens: number of tokens that the resampler returns.
        heads: attention heads of the resampler, with `HEAD_WIDTH` (64) channels each.
    """
    width = int(unet.config["cross_attention_dim"])
    resampler = IPAdapterPlusImageProjection(
        image_width, width, width, dim_head=HEAD_WIDTH, heads=heads, num_queries=tokens
    )
    for name, layer in [*unet.named_modules()]:
        if isinstance(layer, Attention) and name.endswith(".attn2"):
            for letter in "kv":
                layer.add_module(f"to_{letter}_ip", nn.Linear(width, layer.inner_dim, bias=False))
    unet.add_module("image_embed", resampler)


def attend_to_image(attn: Attention, x: Tensor, text: Tensor, tokens: Tensor) -> Tensor:
    """Return the output (B, L, C) of a cross-attention layer: the sum of attention to text and to image tokens.

    Args:
        attn: attention layer of diffusers, extended by `add_image_tokens`.
        x: input (B, L, C), from which the queries are computed.
        text: text embeddings (B, S, D) of S text tokens.
        tokens: image tokens (B, N, D), N per input. The UNet's resampler, a small transformer, computes them from the
            features of an image encoder.
    """

    def heads(features: Tensor) -> Tensor:
        return features.unflatten(-1, (attn.heads, -1)).transpose(1, 2)

    def attend(context: Tensor, ending: str) -> Tensor:
        k, v = (heads(getattr(attn, f"to_{letter}{ending}")(context)) for letter in "kv")
        return F.scaled_dot_product_attention(q, k, v)

    q = heads(attn.to_q(x))
    out = (attend(text, "") + attend(tokens, "_ip")).transpose(1, 2).flatten(2)
    for layer in attn.to_out:  # linear, dropout
        out = layer(out)
    return out
