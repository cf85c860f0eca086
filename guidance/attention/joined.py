"""Joined self-attention and camera embedding, which turn a UNet of diffusers into a multi-view model (MVDream).

Self-attention attends to the tokens of all views of an object, with the weights of the 2D model. An MLP embeds the
camera, and its output is added to the time embedding (arXiv 2308.16512, sections 3.1 and 3.2). Called with n_view = 1
and no camera, the network is a 2D model. In a batch, the views of an object are consecutive.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor
from torch.autograd.function import once_differentiable

from .image_tokens import IMAGE_TOKENS, add_image_tokens, attend_to_image

CAMERA_DIM = 16
SEPARATE_LEVELS = "separate_levels"
"""Key of a UNet's config. The value tells whether the views of an object had separate noise levels in training. Such a
network can sample new views beside known ones (`completion.py`), and its prediction for a single view can serve as the
unconditional branch of classifier-free guidance."""
THREEDGEN_KEYS = (SEPARATE_LEVELS, IMAGE_TOKENS)
Kind = Literal["sdpa", "xformers"]
"""Attention backend: torch's scaled_dot_product_attention or xformers' memory_efficient_attention."""
MIN_TOKENS = 512  # sequence length from which on `FlashAttention` is faster than attention with an explicit softmax


class FlashAttention(torch.autograd.Function):
    """Attention softmax(q k^T / sqrt(D)) v for training on a CPU: q, k, v (B, H, L, D) -> (B, H, L, D).

    An explicit softmax would keep 4 L^2 bytes per head for the backward pass, and the fused backward pass of torch 2.13
    is slow in bf16 on a CPU. This backward pass recomputes the attention weights, one head at a time (FlashAttention,
    Dao et al. 2022, arXiv 2205.14135, algorithm 4, with one tile).
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out, log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v)
        ctx.save_for_backward(q, k, v, out, log_sum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out, log_sum = ctx.saved_tensors
        grad, scale = grad.to(q.dtype), q.shape[-1] ** -0.5
        delta = (grad.float() * out.float()).sum(-1)
        # Two more columns subtract `log_sum` and `delta` inside the matrix products, before their rounding to bf16.
        ones = k.new_ones(*k.shape[:-1], 2)
        q_less, k_ones = torch.cat([q * scale, _minus(log_sum, q)], -1), torch.cat([k, ones], -1)
        grad_less, v_ones = torch.cat([grad, _minus(delta, q)], -1), torch.cat([v, ones], -1)
        grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        for b in range(q.shape[0]):
            for h in range(q.shape[1]):
                weights = (q_less[b, h] @ k_ones[b, h].T).exp_()
                slope = (grad_less[b, h] @ v_ones[b, h].T).mul_(weights)
                grads[0][b, h] = slope @ k[b, h]
                grads[1][b, h] = slope.T @ q[b, h]
                grads[2][b, h] = weights.T @ grad[b, h]
        return grads[0].mul_(scale), grads[1].mul_(scale), grads[2]


def _minus(x: Tensor, like: Tensor) -> Tensor:
    # -x (..., L) as two columns (..., L, 2) in the dtype of `like`; their sum has twice the precision of that dtype
    high = (-x).to(like.dtype)
    return torch.stack([high, (-x - high.float()).to(like.dtype)], dim=-1)


class MultiviewAttnProcessor(AttnProcessor2_0):
    """Attention processor of MVDream: in self-attention, all tokens of the views of an object attend to each other.

    The `n_view` views of an object are consecutive in the batch. Cross-attention is as in diffusers.
    """

    def __init__(self, kind: Kind = "sdpa") -> None:
        super().__init__()
        self.kind, self.plain = kind, AttnProcessor()
        self.xformers = XFormersAttnProcessor() if kind == "xformers" else None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        n_view: int = 1,
        image_tokens: Tensor | None = None,
    ) -> Tensor:
        """Return the layer's output (B F, L, C) for hidden_states (B F, L, C), of B objects with F = `n_view` views.

        Without `encoder_hidden_states`, the layer is self-attention over the F L tokens of an object. With text
        embeddings `encoder_hidden_states` (B F, S, D), it is cross-attention to the S text tokens; separate
        cross-attention to N `image_tokens` (B F, N, D) is added to it, unless they are None. `attn`, `attention_mask`
        and `temb` are the usual arguments of diffusers' attention processors.
        """
        if image_tokens is not None and encoder_hidden_states is not None:
            return attend_to_image(attn, hidden_states, encoder_hidden_states, image_tokens)
        joined = n_view > 1 and encoder_hidden_states is None
        tokens = hidden_states.unflatten(0, (-1, n_view)).flatten(1, 2) if joined else hidden_states
        training = trains_on_cpu(tokens) and attention_mask is None
        if encoder_hidden_states is None and training:
            out = self_attention(attn, tokens)
        else:
            process = self.plain if training else self.xformers or super().__call__
            out = process(attn, tokens, encoder_hidden_states, attention_mask, temb)
        return out.reshape(hidden_states.shape) if joined else out


def self_attention(attn: Attention, tokens: Tensor) -> Tensor:
    """Return the output (B, L, C) of the self-attention layer `attn` of diffusers for `tokens` (B, L, C) on a CPU.

    The result equals that of the layer's standard processor up to rounding, but the backward pass is faster on a CPU.
    `attn` must have no norm layers.
    """
    layers = (attn.to_q, attn.to_k, attn.to_v)
    q, k, v = (layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in layers)
    if tokens.shape[1] >= MIN_TOKENS:
        out = FlashAttention.apply(q, k, v)
    else:
        out = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1).to(v.dtype) @ v
    out = out.transpose(1, 2).flatten(2)
    for layer in attn.to_out:  # linear, dropout
        out = layer(out)
    return (out + tokens if attn.residual_connection else out) / attn.rescale_output_factor


def trains_on_cpu(tokens: Tensor) -> bool:
    """Return whether `tokens` are on a CPU and gradients are enabled.

    torch's fused attention has a slow backward pass on a CPU, so callers then use an explicit softmax or
    `FlashAttention`, this module's own autograd function for CPUs (not the CUDA library).
    """
    return torch.is_grad_enabled() and tokens.device.type == "cpu"


class CameraEmbedding(TimestepEmbedding):
    """MLP of two linear layers (diffusers) from camera vectors (B, 16) to vectors (B, E), added to the time embedding.

    E is the width of the time embedding. An input (B, 0) means no camera; the output then is zeros (B, 1), which add
    nothing.
    """

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        if sample.shape[-1] == 0:
            return sample.new_zeros(sample.shape[0], 1)
        return super().forward(sample, condition)


def make_multiview(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Convert a UNet in place to self-attention across views and an optional camera input, and return it.

    A UNet that is already converted stays unchanged.
    """
    if not any(isinstance(processor, MultiviewAttnProcessor) for processor in unet.attn_processors.values()):
        set_attention(unet, "sdpa")
    embedding: Any = unet.class_embedding
    if isinstance(embedding, TimestepEmbedding) and not isinstance(embedding, CameraEmbedding):
        # Change the class: a new module would lose dtype, device, hooks and LoRA layers.
        embedding.__class__ = CameraEmbedding
    return unet


def set_attention(unet: UNet2DConditionModel, kind: Kind) -> None:
    """Install self-attention across views in `unet`, with the backend "sdpa" (torch) or "xformers" (if installed)."""
    unet.set_attn_processor(dict.fromkeys(unet.attn_processors, MultiviewAttnProcessor(kind)))


def unet_from_config(config: Any, **changes: Any) -> UNet2DConditionModel:
    """Build a UNet from a diffusers config; `changes` override entries of the config.

    The config may also have two keys of threedgen:

    - "separate_levels": whether the views of an object had different noise levels in training.
    - "image_tokens": arguments of `add_image_tokens`. If present, the UNet gets layers for cross-attention to image
      tokens.
    """
    stock = {name: value for name, value in config.items() if name not in THREEDGEN_KEYS}
    unet: Any = UNet2DConditionModel.from_config(stock, **changes)
    unet.register_to_config(**{name: config[name] for name in THREEDGEN_KEYS if name in config})
    if IMAGE_TOKENS in config:
        add_image_tokens(unet, **config[IMAGE_TOKENS])
    return unet


def multiview_unet(**config: Any) -> UNet2DConditionModel:
    """Build a multi-view UNet with random weights and a camera input. `config`: arguments of UNet2DConditionModel."""
    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA_DIM}
    return make_multiview(UNet2DConditionModel(**(camera | config)))


def unet_output(
    unet: UNet2DConditionModel,
    x: Tensor,
    t: Tensor,
    text: Tensor,
    camera: Tensor | None = None,
    n_view: int = 1,
    features: Sequence[Tensor] | None = None,
    factor: int = 8,
    **views: object,
) -> Tensor:
    """Return the network's output (B F, C, h, w), noise or v, for noisy latents of B objects with F views each.

    Args:
        unet: a network prepared by `make_multiview`, or with other attention processors that take `n_view`.
        x: noisy latents (B F, C, h, w); the views of an object are consecutive.
        t: timesteps (B F,) or ().
        text: embeddings (B F, L, D).
        camera: camera vectors (B F, 16) from `camera_vector`; None: no camera (2D mode).
        n_view: F, number of consecutive images that attend to each other; 1: 2D model.
        features: one tensor per down block, added to the block's features of the same shape, as in a T2I-Adapter (Mou
            et al. 2023); None: nothing is added.
        factor: image pixels per latent pixel along each axis, for SDXL's size conditioning.
        views: further keyword arguments of the attention processors, such as `image_tokens`.
    """
    labels = None
    if unet.class_embedding is not None:
        labels = x.new_zeros(x.shape[0], 0) if camera is None else camera.to(x.dtype)
    text, added = split_text(unet, text, *(factor * side for side in x.shape[-2:]))
    more: dict[str, Any] = added | {"class_labels": labels, "cross_attention_kwargs": {"n_view": n_view, **views}}
    if features is not None:
        more["down_intrablock_additional_residuals"] = list(features)  # a copy, because the network empties the list
    return unet(x, t, text, **more, return_dict=False)[0]


def has_added_conditioning(unet: UNet2DConditionModel) -> bool:
    """Return whether a UNet takes SDXL's added conditioning (pooled text and image size)."""
    return unet.config.get("addition_embed_type") == "text_time"


def split_text(unet: UNet2DConditionModel, text: Tensor, height: int, width: int) -> tuple[Tensor, dict[str, Any]]:
    """Split SDXL's text embeddings (B, L + 1, D) into L token embeddings (B, L, D) and keyword arguments of the UNet.

    The last of the L + 1 vectors is the pooled embedding of the second text encoder, padded with zeros to D values. The
    keyword arguments are {"added_cond_kwargs": {"text_embeds": pooled embeddings (B, width), "time_ids": (B, 6)}}; the
    six values are original size, crop offset (0, 0) and target size, both sizes (`height`, `width`) in pixels (Podell
    et al. 2023, arXiv 2307.01952, section 2.2). A UNet without added conditioning gets the text unchanged, and {}.
    """
    if not has_added_conditioning(unet):
        return text, {}
    sizes = text.new_zeros(len(text), 6)  # filled there: a CUDA graph would refuse a copy from the host
    sizes[:, ::4], sizes[:, 1::4] = height, width
    c = unet.config
    pooled = int(c["projection_class_embeddings_input_dim"]) - 6 * int(c["addition_time_embed_dim"])
    return text[:, :-1], {"added_cond_kwargs": {"text_embeds": text[:, -1, :pooled], "time_ids": sizes}}


def camera_vector(c2w: Tensor) -> Tensor:
    """Convert camera-to-world matrices (B, 4, 4), OpenGL axes, world z up, to camera vectors (B, 16).

    A camera vector holds the 4 x 4 matrix row by row, with its translation (the camera position) scaled to length 1, so
    the network receives directions only, neither distance nor field of view.
    """
    unit = F.normalize(c2w[:, :3, 3:], dim=1, eps=1e-8)
    top = torch.cat([c2w[:, :3, :3], unit], dim=2)
    return torch.cat([top, c2w[:, 3:]], dim=1).flatten(1)
