"""What makes a stock diffusers UNet multi-view: joined self-attention, and a camera in the time embedding.

MVDream (arXiv 2308.16512, section 3.1 and 3.2): the self-attention of each transformer block sees the tokens of all
views of an object at once, with the weights of the 2D model; the camera is embedded by a small MLP whose output is
added to that of the time step. So one network is a multi-view model (n_view = 4, camera given) and an ordinary 2D one
(n_view = 1, no camera); both are arguments of a call and no state of the network.

Batch layout everywhere: (objects x views), the views of one object consecutive.
"""

from __future__ import annotations

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
"""Entry of a UNet's config: its self-attention takes a `WorldRotary`."""
Kind = Literal["sdpa", "xformers"]
"""Who computes softmax(q k) v: torch's scaled_dot_product_attention, or xformers' memory_efficient_attention."""


class MultiviewAttnProcessor(AttnProcessor2_0):
    """Scaled dot-product attention in which self-attention joins the tokens of ``n_view`` consecutive images.

    One instance serves a whole network: cross-attention (text) passes through unchanged. The number of views
    comes with the call (see :func:`predict`); 1 is the 2D model.
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
        """hidden_states (B F, L, C) -> (B F, L, C); joined, the tokens of an object are one sequence (B, F L, C)."""
        joined = n_view > 1 and encoder_hidden_states is None
        tokens = hidden_states.unflatten(0, (-1, n_view)).flatten(1, 2) if joined else hidden_states
        training = learns_on_cpu(tokens) and attention_mask is None
        if encoder_hidden_states is None and (training or rotary is not None):
            out = self_attention(attn, tokens, n_view, rotary)
        else:
            process = self.plain if training else self.xformers or super().__call__
            out = process(attn, tokens, encoder_hidden_states, attention_mask, temb)
        return out.reshape(hidden_states.shape) if joined else out


def self_attention(attn: Attention, tokens: Tensor, n_view: int = 1, rotary: WorldRotary | None = None) -> Tensor:
    """Self-attention (B, F L, C) -> (B, F L, C) by the layers of a diffusers attention block.

    Args:
        attn: a block without norms and residual of its own, as in the transformers of a UNet.
        n_view: F, images in a sequence.
        rotary: rotates queries and keys by the positions of their pixels; None: not rotated.
    """
    layers = (attn.to_q, attn.to_k, attn.to_v)
    q, k, v = (layer(tokens).unflatten(-1, (attn.heads, -1)).transpose(1, 2) for layer in layers)
    if rotary is not None:
        q, k = rotary(q, n_view), rotary(k, n_view)
    if not learns_on_cpu(tokens):
        out = F.scaled_dot_product_attention(q, k, v)
    elif tokens.shape[1] >= MIN_TOKENS:
        out = FlashAttention.apply(q, k, v)
    else:
        out = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1).to(v.dtype) @ v
    out = out.transpose(1, 2).flatten(2)
    for layer in attn.to_out:  # linear, dropout
        out = layer(out)
    return out


def learns_on_cpu(tokens: Tensor) -> bool:
    """Are plain products to be taken for attention, and not torch's fused kernel?

    In bf16 on a CPU torch 2.13 takes five times as long for the backward of the latter.
    """
    return torch.is_grad_enabled() and tokens.device.type == "cpu"


class CameraEmbedding(TimestepEmbedding):
    """diffusers' two-layer embedding with the same tensor names; an empty camera (B, 0) means "no camera".

    Without a camera the branch adds exactly zero, whatever its weights (a camera of zeros would add its biases).
    """

    def forward(self, sample: Tensor, condition: Tensor | None = None) -> Tensor:
        """(B, 16) -> (B, E); (B, 0) -> zeros (B, 1), which broadcast."""
        if sample.shape[-1] == 0:
            return sample.new_zeros(sample.shape[0], 1)
        return super().forward(sample, condition)


def make_multiview(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """Install the joined attention, and the optional camera if the network has a camera branch; returns ``unet``.

    Tensor names, shapes and the saved config stay those of the stock network. Idempotent; what `set_attention` chose
    stays.
    """
    if not any(isinstance(processor, MultiviewAttnProcessor) for processor in unet.attn_processors.values()):
        set_attention(unet, "sdpa")
    embedding: Any = unet.class_embedding
    if isinstance(embedding, TimestepEmbedding) and not isinstance(embedding, CameraEmbedding):
        # Same tensors under another forward: a new module would lose dtype, device, hooks and LoRA layers.
        embedding.__class__ = CameraEmbedding
    return unet


def set_attention(unet: UNet2DConditionModel, kind: Kind) -> None:
    """Who computes the attention; "xformers" has to be installed."""
    unet.set_attn_processor(dict.fromkeys(unet.attn_processors, MultiviewAttnProcessor(kind)))


def unet_from_config(config: Any, **changes: Any) -> UNet2DConditionModel:
    """A new UNet of a config with changes; `WORLD_ROTARY` is kept, which diffusers would warn of."""
    entries = {**config, **changes}
    own = {name: entries.pop(name) for name in (WORLD_ROTARY,) if name in entries}
    unet: Any = UNet2DConditionModel.from_config(entries)
    unet.register_to_config(**own)
    return unet


def multiview_unet(**config: Any) -> UNet2DConditionModel:
    """A new multi-view UNet with random weights; ``config`` as for UNet2DConditionModel (camera branch included)."""
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
    **views: Any,
) -> Tensor:
    """The network's output (eps or v) for noisy latents.

    Args:
        unet: a network prepared by :func:`make_multiview`, or with other processors in the place of its own.
        x: noisy latents (B F, C, h, w), views fastest.  t: time steps (B F,) or ().  text: (B F, L, D).
        camera: (B F, 16), see ``mvdream.camera_vector``; None skips the camera branch altogether (2D mode).
        n_view: F, how many consecutive images attend to each other; 1 is the 2D model.
        features: what is added in each block on the way down, as from a T2I-Adapter (Mou et al. 2023).
        factor: pixels per latent and axis, as SDXL is told the size of a picture.
        views: what else the attention processors are told in this call, such as poses or corresponding pixels. Like
            ``n_view`` it reaches each processor as the argument of that name.

    Raises ValueError when F does not divide the batch, or a camera is given to a network without a camera branch.
    """
    if len(x) % n_view:
        raise ValueError(f"a batch of {len(x)} images is not a multiple of n_view = {n_view}")
    if unet.class_embedding is None:
        if camera is not None:
            raise ValueError("this UNet has no camera branch, so it cannot be given a camera")
        labels = None
    else:
        labels = x.new_zeros(x.shape[0], 0) if camera is None else camera.to(x.dtype)
    text, added = sdxl.taken_apart(unet, text, *(factor * side for side in x.shape[-2:]))
    if unet.config.get(WORLD_ROTARY):
        views["rotary"] = WorldRotary(camera, len(x), x.device)
    more: dict[str, Any] = added | {"class_labels": labels, "cross_attention_kwargs": {"n_view": n_view, **views}}
    if features is not None:
        more["down_intrablock_additional_residuals"] = list(features)  # which the network empties
    return unet(x, t, text, **more, return_dict=False)[0]
