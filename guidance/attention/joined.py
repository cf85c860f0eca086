"""Joined self-attention and camera embedding: they turn a UNet of diffusers into a multi-view model (MVDream).

The self-attention of each transformer block attends to the tokens of all views of an object, with the weights of the 2D
model. A small MLP embeds the camera, and its output is added to the time embedding (arXiv 2308.16512, sections 3.1 and
3.2). The same network is a multi-view model when called with n_view = 4 and cameras, and a 2D model when called with
n_view = 1 and no camera. In a batch, the views of one object are consecutive.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from diffusers.models import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0, XFormersAttnProcessor
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor

from threedgen.guidance import sdxl

from .flash import MIN_TOKENS, FlashAttention
from .rotary import WorldRotary

CAMERA_DIM = 16
WORLD_ROTARY = "world_rotary"
"""Key of a UNet's config. If true, `predict` passes a `WorldRotary` to the self-attention."""
SEPARATE_LEVELS = "separate_levels"
"""Key of a UNet's config. It is true if the views of an object had separate noise levels in training, so that known
views can be completed (`completion.py`) and the single view is a fair unconditional branch (`prior.guide_views`)."""
OWN_KEYS = (WORLD_ROTARY, SEPARATE_LEVELS)
Kind = Literal["sdpa", "xformers"]
"""Attention backend: torch's scaled_dot_product_attention, or xformers' memory_efficient_attention."""


class MultiviewAttnProcessor(AttnProcessor2_0):
    """Attention processor whose self-attention attends to the tokens of `n_view` consecutive images.

    Cross-attention is unchanged. All layers of a network share one instance. `n_view` is an argument of each call, see
    `predict`.
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
        rotary: WorldRotary | None = None,
    ) -> Tensor:
        """Return the layer's output (B F, L, C) for hidden_states (B F, L, C) of B objects with F = `n_view` views.

        Self-attention runs on sequences of F L tokens. `rotary` rotates its queries and keys.
        """
        joined = n_view > 1 and encoder_hidden_states is None
        tokens = hidden_states.unflatten(0, (-1, n_view)).flatten(1, 2) if joined else hidden_states
        training = trains_on_cpu(tokens) and attention_mask is None
        if encoder_hidden_states is None and (training or rotary is not None):
            out = self_attention(attn, tokens, n_view, rotary)
        else:
            process = self.plain if training else self.xformers or super().__call__
            out = process(attn, tokens, encoder_hidden_states, attention_mask, temb)
        return out.reshape(hidden_states.shape) if joined else out


def self_attention(attn: Attention, tokens: Tensor, n_view: int = 1, rotary: WorldRotary | None = None) -> Tensor:
    """Compute self-attention (B, F L, C) -> (B, F L, C) with the layers of a diffusers attention block.

    Args:
        attn: an attention block without normalisation layers, as in the transformers of a UNet.
        tokens: (B, F L, C).
        n_view: F, number of images in a sequence.
        rotary: position embedding that rotates queries and keys; None: no rotation.
    """
    layers = (attn.to_q, attn.to_k, attn.to_v)
    q, k, v = (layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in layers)
    if rotary is not None:
        q, k = rotary(q, n_view), rotary(k, n_view)
    if not trains_on_cpu(tokens):
        out = F.scaled_dot_product_attention(q, k, v)
    elif tokens.shape[1] >= MIN_TOKENS:
        out = FlashAttention.apply(q, k, v)
    else:
        out = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1).to(v.dtype) @ v
    out = out.transpose(1, 2).flatten(2)
    for layer in attn.to_out:  # linear, dropout
        out = layer(out)
    return (out + tokens if attn.residual_connection else out) / attn.rescale_output_factor


def trains_on_cpu(tokens: Tensor) -> bool:
    """Return whether gradients are enabled on a CPU, where torch's fused backward pass is slow (five times in bf16)."""
    return torch.is_grad_enabled() and tokens.device.type == "cpu"


class CameraEmbedding(TimestepEmbedding):
    """Embedding of camera vectors: diffusers' two-layer MLP, which also accepts "no camera" as a tensor (B, 0).

    Without a camera the embedding is zero. A camera of zeros would give the biases instead.
    """

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        """Return embeddings (B, E) of camera vectors (B, 16), or zeros (B, 1), which broadcast, for (B, 0)."""
        if sample.shape[-1] == 0:
            return sample.new_zeros(sample.shape[0], 1)
        return super().forward(sample, condition)


def make_multiview(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Install joined self-attention in `unet`, in place, and make the camera optional if it has a camera branch.

    Tensor names, shapes and the saved config do not change. A second call has no effect, and the backend chosen by
    `set_attention` stays. Returns `unet`.
    """
    if not any(isinstance(processor, MultiviewAttnProcessor) for processor in unet.attn_processors.values()):
        set_attention(unet, "sdpa")
    embedding: Any = unet.class_embedding
    if isinstance(embedding, TimestepEmbedding) and not isinstance(embedding, CameraEmbedding):
        # Change the class: a new module would lose dtype, device, hooks and LoRA layers.
        embedding.__class__ = CameraEmbedding
    return unet


def set_attention(unet: UNet2DConditionModel, kind: Kind) -> None:
    """Install joined self-attention with the backend `kind` in `unet`; "xformers" must be installed."""
    unet.set_attn_processor(dict.fromkeys(unet.attn_processors, MultiviewAttnProcessor(kind)))


def unet_from_config(config: Any, **changes: Any) -> UNet2DConditionModel:
    """Build a UNet from a config and `changes` of its entries; keep the `OWN_KEYS`, unknown to diffusers."""
    stock = {name: value for name, value in config.items() if name not in OWN_KEYS}
    unet: Any = UNet2DConditionModel.from_config(stock, **changes)
    unet.register_to_config(**{name: config[name] for name in OWN_KEYS if name in config})
    return unet


def multiview_unet(**config: Any) -> UNet2DConditionModel:
    """Build a multi-view UNet with random weights and a camera branch; `config`: arguments of UNet2DConditionModel."""
    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA_DIM}
    return make_multiview(UNet2DConditionModel(**(camera | config)))


def predict(
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
    """Return the network's output (eps or v) for noisy latents, (B F, C, h, w).

    Args:
        unet: a network prepared by `make_multiview`, or with other attention processors that take `n_view`.
        x: noisy latents (B F, C, h, w), F consecutive views of each of B objects.
        t: time steps (B F,) or ().
        text: embeddings (B F, L, D).
        camera: camera vectors (B F, 16), see `camera_vector`; None: no camera (2D mode).
        n_view: F, number of consecutive images that attend to each other; 1: 2D model.
        features: residuals that are added to the down blocks, one tensor per block, as from a T2I-Adapter (Mou et al.
            2023).
        factor: image pixels per latent pixel along each axis, for SDXL's size conditioning.
        views: further arguments of the attention processors, by name.

    Raises:
        ValueError: F does not divide the batch, or the network has no branch for the camera.
    """
    if len(x) % n_view:
        raise ValueError(f"the batch size must be a multiple of n_view: {len(x)} images, n_view={n_view}")
    if unet.class_embedding is None:
        if camera is not None:
            raise ValueError("this UNet has no camera branch; pass camera=None")
        labels = None
    else:
        labels = x.new_zeros(x.shape[0], 0) if camera is None else camera.to(x.dtype)
    text, added = sdxl.split_text(unet, text, *(factor * side for side in x.shape[-2:]))
    if unet.config.get(WORLD_ROTARY):
        views["rotary"] = WorldRotary(camera, len(x), x.device)
    more: dict[str, Any] = added | {"class_labels": labels, "cross_attention_kwargs": {"n_view": n_view, **views}}
    if features is not None:
        more["down_intrablock_additional_residuals"] = list(features)  # a copy, because the network empties the list
    return unet(x, t, text, **more, return_dict=False)[0]


def camera_vector(c2w: Tensor) -> Tensor:
    """Convert camera-to-world matrices (B, 4, 4) with OpenGL axes, world z up, to camera vectors (B, 16).

    A camera vector is the matrix in row-major order with its translation scaled to length 1. The network thus receives
    directions only, neither distance nor field of view. `c2w` is not modified.
    """
    unit = F.normalize(c2w[:, :3, 3:], dim=1, eps=1e-8)
    top = torch.cat([c2w[:, :3, :3], unit], dim=2)
    return torch.cat([top, c2w[:, 3:]], dim=1).flatten(1)
