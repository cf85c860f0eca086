"""The 2D model of the toybox: a text encoder, and a stock UNet that learns single captioned pictures, as Stable
Diffusion did."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from threedgen.data.bank import LatentBank
from threedgen.data.toybox.words import vocabulary
from threedgen.geometry.images import grid, write_png
from threedgen.guidance.diffusion import Schedule
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import mixed
from threedgen.systems.train_prior.options import NetworkConfig
from threedgen.train.muon import Muon
from threedgen.train.system import AveragedSystem, System, stratified

from .options import TrainBaseConfig, WordsConfig


def text_encoder(options: NetworkConfig, tokenizer: Any) -> Any:
    """A fresh CLIPTextModel. Its tables are small, so that a caption's words are learnt and not fought."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=options.text_width,
            intermediate_size=4 * options.text_width,
            num_hidden_layers=options.text_layers,
            num_attention_heads=options.text_heads,
            max_position_embeddings=options.max_tokens,
            hidden_act="gelu",
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


# --- what captions mean -------------------------------------------------------------------------------------------


def latent_tower(channels: int, width: int) -> nn.Sequential:
    """(B, C, h, w) latents -> (B, D): the half of CLIP that sees. Its ``body`` (B, 256, h/4, w/4) knows the toybox."""
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


class WordsSystem(System):
    """Matches a text encoder, which is trained in place, with latents (CLIP, Radford et al. 2021).

    Stable Diffusion gets its text encoder from CLIP; this is the same in small. Learnt through the UNet alone, words
    are a faint signal behind the noise, and nouns come many times later than colours.
    """

    stage = "text encoder"

    def __init__(
        self, options: WordsConfig, seed: int, max_steps: int, text_encoder: Any, tokenizer: Any, bank: LatentBank
    ) -> None:
        super().__init__(options, seed, max_steps)
        self.options = options
        self.text_encoder = text_encoder.requires_grad_(True).train()
        width = int(text_encoder.config.hidden_size)
        self.project = nn.Linear(width, width)
        self.tower = latent_tower(int(bank.vae.config["latent_channels"]), width)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.tokenizer, self.max_tokens, self.bank = tokenizer, int(text_encoder.config.max_position_embeddings), bank

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, bank = int(batch), self.options, self.bank
        known = min(o.pictures, bank.count, o.batch + step * o.fresh)
        chosen = self.numpy_rng(step, "captions").choice(known, min(o.batch, known), replace=False)
        z, captions = bank.latents(chosen)[:, 0].to(self.device), bank.captions(chosen)
        ids = token_ids(self.tokenizer, captions, self.max_tokens).to(self.device)
        with mixed(self.device, o.bf16):
            pictures = self.tower(z).float()
            texts = self.text_encoder(ids).pooler_output
        texts = F.normalize(self.project(texts.float()), dim=-1)
        alike = F.normalize(pictures, dim=-1) @ texts.T * self.log_scale.clamp(max=4.6).exp()
        same = torch.arange(len(chosen), device=self.device)
        self.metrics = {"matched": float((alike.detach().argmax(1) == same).float().mean())}
        return (F.cross_entropy(alike, same) + F.cross_entropy(alike.T, same)) / 2

    def configure_optimizers(self):
        o = self.options
        return self.adamw(self.parameters(), o.learning_rate, weight_decay=o.weight_decay)


# --- the UNet -------------------------------------------------------------------------------------------------------


def build(options: NetworkConfig, vae: Any, text: Any, tokenizer: Any, image_size: int) -> StableDiffusion:
    """A fresh UNet around the networks that were trained before it."""
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in options.attention)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(options.attention))
    pooled = {"addition_embed_type": "text", "addition_embed_type_num_heads": options.text_heads}
    channels = int(vae.config.latent_channels)
    unet = UNet2DConditionModel(
        **(pooled if options.pooled_text else {}),
        resnet_time_scale_shift="scale_shift" if options.scale_shift else "default",
        sample_size=image_size // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=channels,
        out_channels=channels,
        layers_per_block=options.layers_per_block,
        block_out_channels=options.channels,
        down_block_types=down,
        up_block_types=up,
        attention_head_dim=options.heads,  # diffusers' name for the number of heads
        cross_attention_dim=options.text_width,
        norm_num_groups=options.groups,
        use_linear_projection=True,
    )
    schedule = Schedule.linear if options.schedule == "linear" else Schedule.scaled_linear
    return StableDiffusion(unet, vae, text, tokenizer, schedule(prediction=options.prediction))


class BaseSystem(AveragedSystem):
    """The UNet with its running average.  ``prior``, the frozen networks around it, is not part of the module."""

    stage = "UNet"
    prior: StableDiffusion

    def __init__(self, config: TrainBaseConfig, prior: StableDiffusion, bank: LatentBank) -> None:
        super().__init__(config, vocabulary=vocabulary(prior.tokenizer))
        self.options, self.bank = config.training, bank
        self.unet = prior.unet.requires_grad_(True).train()
        self.keep_average(self.unet, self.options.ema)
        self.hold(prior=prior)

    def setup(self, stage: str) -> None:
        self.prior.to(self.device)

    def pictures(self, step: int) -> Any:
        """The pictures of a step: the newest ``fresh`` ones, and others among all that came before them."""
        o = self.options
        known = min(o.pictures, o.first + step * o.fresh)
        chosen = self.numpy_rng(step, "pictures").integers(0, known, o.batch)
        fresh = min(o.fresh, o.pictures - known)
        chosen[:fresh] = range(known, known + fresh)
        return chosen

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, prior, bank = int(batch), self.options, self.prior, self.bank
        rng, gen = self.numpy_rng(step, "choices"), self.rng(step, "diffusion")
        chosen = self.pictures(step)
        z = bank.latents(chosen)[:, 0]
        captions = [text if rng.random() >= o.no_text else "" for text in bank.captions(chosen)]
        t = (prior.schedule.T * stratified(len(chosen), gen) ** o.timestep_power).long().clamp(max=prior.schedule.T - 1)
        noise = torch.randn(z.shape, generator=gen)
        z, t, noise = z.to(self.device), t.to(self.device), noise.to(self.device)
        schedule = prior.schedule.to(self.device)
        with mixed(self.device, o.bf16):
            with torch.no_grad():  # as for Stable Diffusion's, the text encoder has learnt its words before
                ids = token_ids(prior.tokenizer, captions, prior.max_tokens).to(self.device)
                text = prior.text_encoder(ids).last_hidden_state
            out = prior.predict(schedule.add_noise(z, noise, t), t, text).float()
        loss = F.mse_loss(out, schedule.target(z, noise, t))
        self.metrics = {"loss_2d": float(loss.detach())}
        return loss

    def configure_optimizers(self):
        o = self.options
        ends = (self.unet.conv_in.weight, self.unet.conv_out.weight)
        optimizer = Muon(self.unet.parameters(), 1.0, weight_decay=o.weight_decay, elementwise=ends)
        return self.scheduled(optimizer, o.learning_rate)

    def validate(self, step: int, folder: Path) -> None:
        """Saves the averaged weights as a diffusers folder and draws its sample sheet."""
        prior, prompts = self.prior, self.options.sheet_prompts
        with self.average.applied(self.unet):
            prior.save(folder / "base")
            drawn = [
                prior.sample(p, None, steps=30, guidance_scale=4.0, generator=self.rng(k, "sheet"))
                for k, p in enumerate(prompts)
            ]
        write_png(folder / "samples.png", grid(torch.cat(drawn), 4, list(prompts)))
