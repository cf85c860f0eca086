"""SDXL's conditioning (Podell et al. 2023, arXiv 2307.01952, section 2.2 and table 1).

SDXL concatenates the features of two text encoders. Its UNet also takes the pooled text of the second encoder, the
image size and the crop. The pooled text is stored as one more token after the words.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models import UNet2DConditionModel
from torch import Tensor

SIZE_NUMBERS = 6
"""Number of values in the size conditioning: original height, width, crop top, left, target height, width in pixels."""


def has_added_conditioning(unet: UNet2DConditionModel) -> bool:
    """Return whether a UNet takes SDXL's added conditioning."""
    return unet.config.get("addition_embed_type") == "text_time"


def pooled_width(unet: UNet2DConditionModel) -> int:
    """Return the number of features of the pooled text that a UNet with added conditioning takes."""
    c = unet.config
    return int(c["projection_class_embeddings_input_dim"]) - SIZE_NUMBERS * int(c["addition_time_embed_dim"])


def encode_both(encoders: Sequence[Any], ids: Sequence[Tensor]) -> Tensor:
    """Encode n prompts, given as token numbers (n, L) for each of the two encoders, as text (n, L + 1, D).

    The first L tokens are the penultimate hidden states of both encoders, concatenated. The last token is the pooled
    text of the second encoder, padded with zeros to D features.
    """
    encoded = [encoder(numbers, output_hidden_states=True) for encoder, numbers in zip(encoders, ids, strict=True)]
    words = torch.cat([part.hidden_states[-2].float() for part in encoded], dim=-1)
    pooled = encoded[1].text_embeds.float()[:, None]
    return torch.cat([words, F.pad(pooled, (0, words.shape[-1] - pooled.shape[-1]))], dim=1)


def split_text(unet: UNet2DConditionModel, text: Tensor, height: int, width: int) -> tuple[Tensor, dict[str, Any]]:
    """Split text (B, L + 1, D) from `encode_both` into its tokens (B, L, D) and keyword arguments of the UNet.

    The keyword arguments hold the pooled text and the image size in pixels, `height` x `width`, without a crop. For a
    UNet without added conditioning, the text is returned unchanged, with {}.
    """
    if not has_added_conditioning(unet):
        return text, {}
    numbers = text.new_tensor([height, width, 0, 0, height, width]).expand(len(text), SIZE_NUMBERS)
    more = {"text_embeds": text[:, -1, : pooled_width(unet)], "time_ids": numbers}
    return text[:, :-1], {"added_cond_kwargs": more}
