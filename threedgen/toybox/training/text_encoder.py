"""Tokenizer of the toybox's captions, and contrastive training of its text encoder (CLIP, Radford et al. 2021).

Captions are compared with latents of their images, not with images. If the text encoder were trained by the UNet's loss
alone, it would learn nouns many times more slowly than colours.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from threedgen.data.latent_cache import LatentCache
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import autocast_bf16
from threedgen.toybox.world import nouns, rooms  # noqa: F401  (nouns fills NOUNS)
from threedgen.toybox.world.grammar import ACCESSORIES, COLOURS, NOUNS, SIZES, WORDINGS, Spec, caption
from threedgen.train.system import System

from .options import WordsConfig

PICTURES, FRESH = 16_384, 16
"""Number of distinct images (with captions) in the training, and number of new images per step."""
TEXT_WIDTH, TEXT_LAYERS, TEXT_HEADS, MAX_TOKENS = 128, 3, 4, 32
"""Width, layers and attention heads of the text encoder; maximum tokens of a prompt, including <start> and <end>."""
PAD, START, END, UNKNOWN = "<pad>", "<start>", "<end>", "<unknown>"


def captions() -> Iterator[str]:
    """Yield texts that together contain all words of toybox captions, of objects and of rooms."""
    colours, sizes = list(COLOURS), [s for s in SIZES if s]
    n = 0
    for entry in NOUNS.values():
        for part in ("", *entry.parts, *entry.wears):
            for wording in range(WORDINGS):
                n += 1
                colour, size = colours[n % len(colours)], sizes[n % len(sizes)]
                yield caption(Spec(entry.word, colour, size, part, colours[n % 7] if part else ""), wording)
    yield from ACCESSORIES
    yield from rooms.captions()


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Build a tokenizer with one token per word of toybox captions.

    Token sequences are <start> ... <end>, padded with <pad>. Texts are lowercased, and words that do not occur in
    captions become <unknown>.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # <end> must not have id 2: CLIPTextModel then pools at the largest token id, not at <end>
    special = [PAD, UNKNOWN, START, END]
    tokenizer.train_from_iterator(captions(), trainers.WordLevelTrainer(special_tokens=special))
    ids = [(token, tokenizer.token_to_id(token)) for token in (START, END)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ids)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=MAX_TOKENS,
        pad_token=PAD,
        bos_token=START,
        eos_token=END,
        unk_token=UNKNOWN,
    )


def vocabulary_digest(tokenizer: Any) -> str:
    """Return a hash of all (token, id) pairs of a tokenizer, as text. A run can only be resumed with the same hash."""
    return hashlib.blake2b(repr(sorted(tokenizer.get_vocab().items())).encode(), digest_size=8).hexdigest()


def build(tokenizer: PreTrainedTokenizerFast) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            num_hidden_layers=TEXT_LAYERS,
            num_attention_heads=TEXT_HEADS,
            max_position_embeddings=MAX_TOKENS,
            hidden_act="gelu",
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def latent_tower(channels: int, width: int) -> nn.Sequential:
    """Build a convolutional network that takes the place of CLIP's image encoder.

    It maps latents (B, `channels`, h, w) of images to embeddings (B, `width`), which are not normalised. The output of
    its convolutional part, the submodule `body`, is (B, 256, h / 4, w / 4).
    """
    body = nn.Sequential(
        nn.Conv2d(channels, 64, 3, 1, 1),
        nn.SiLU(),
        nn.Conv2d(64, 128, 3, 2, 1),
        nn.SiLU(),
        nn.Conv2d(128, 192, 3, 2, 1),
        nn.GroupNorm(16, 192),
        nn.SiLU(),
        nn.Conv2d(192, 256, 3, 1, 1),
    )
    head = nn.Sequential(nn.SiLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(1024, width))
    return nn.Sequential(OrderedDict(body=body, head=head))


class TextEncoderSystem(System):
    """LightningModule that trains a text encoder in place by a contrastive loss, as in CLIP.

    `cache` is a disk cache of captions and of latents of their images. The latents take the place of CLIP's images:
    `latent_tower`, which is trained too, maps them to embeddings.
    """

    stage = "text encoder"
    rate, weight_decay = {"0%": 0.0, "5%": 1e-3, "60%": 1e-3, "100%": 2e-5}, 0.05

    def __init__(
        self,
        options: WordsConfig,
        seed: int,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerFast,
        cache: LatentCache,
    ) -> None:
        super().__init__(options, seed, options.max_steps)
        self.options = options
        self.text_encoder = text_encoder.requires_grad_(True).train()
        width = int(text_encoder.config.hidden_size)
        self.project = nn.Linear(width, width)
        self.tower = latent_tower(cache.latent_shape[1], width)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.tokenizer, self.max_tokens, self.cache = tokenizer, int(text_encoder.config.max_position_embeddings), cache

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, cache = int(batch), self.options, self.cache
        available = min(PICTURES, cache.count, o.batch + step * FRESH)
        chosen = self.numpy_rng(step, "captions").choice(available, min(o.batch, available), replace=False)
        z, captions = cache.latents(chosen)[:, 0].to(self.device), cache.captions(chosen)
        ids = token_ids(self.tokenizer, captions, self.max_tokens).to(self.device)
        with autocast_bf16(self.device):
            images = self.tower(z).float()
            texts = self.text_encoder(ids).pooler_output
        texts = F.normalize(self.project(texts.float()), dim=-1)
        logits = F.normalize(images, dim=-1) @ texts.T * self.log_scale.clamp(max=4.6).exp()
        pairs = torch.arange(len(chosen), device=self.device)
        self.metrics = {"matched": float((logits.detach().argmax(1) == pairs).float().mean())}
        return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
