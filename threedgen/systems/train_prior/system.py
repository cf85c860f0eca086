"""Learning the embedded prior: its networks on latents of the toybox (MVDream, arXiv 2308.16512, section 3).

One network learns two things at once: four views of a scene with joined attention and cameras, and single pictures
without (a ``two_d`` share of the steps), which keeps it usable as an ordinary text-to-image model.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from threedgen.config import dump
from threedgen.data.latents import LatentBank
from threedgen.data.toybox.words import train_tokenizer
from threedgen.guidance.diffusion import Schedule
from threedgen.guidance.draft import Draft
from threedgen.guidance.multiview.joined import multiview_unet
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import mixed
from threedgen.run.seeding import generator, numpy_generator
from threedgen.systems.shared import adamw
from threedgen.train.ema import EMA

from .options import NetworkConfig, TrainPriorConfig

CAMERA_GAIN = 5.0
"""Makes the camera start about as loud as the time step and the caption, to which its embedding is added."""


def build(options: NetworkConfig, vae: Any, image_size: int) -> MVDream:
    """A fresh prior around an autoencoder: tokenizer learnt, text encoder and UNet random."""
    tokenizer = train_tokenizer(options.max_tokens)
    # position and token tables are small, so that a caption's words are learnt and not fought
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=options.text_width, intermediate_size=4 * options.text_width,
            num_hidden_layers=options.text_layers, num_attention_heads=options.text_heads,
            max_position_embeddings=options.max_tokens, hidden_act="gelu", pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        )
    )  # fmt: skip
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in options.attention)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(options.attention))
    pooled = {"addition_embed_type": "text", "addition_embed_type_num_heads": options.text_heads}
    channels, size = int(vae.config.latent_channels), image_size // factor
    draft = Draft(options.text_width, channels, size, heads=options.text_heads) if options.draft else None
    unet = multiview_unet(
        **(pooled if options.pooled_text else {}),
        resnet_time_scale_shift="scale_shift" if options.scale_shift else "default",
        sample_size=size,
        in_channels=2 * channels if options.draft else channels,
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
    camera: Any = unet.class_embedding
    with torch.no_grad():
        camera.linear_2.weight *= CAMERA_GAIN
    schedule = Schedule.linear if options.schedule == "linear" else Schedule.scaled_linear
    return MVDream(unet, vae, text, tokenizer, schedule(prediction=options.prediction), draft)


def stratified(count: int, gen: torch.Generator) -> Tensor:
    """``count`` numbers in [0, 1), one in each of as many equal intervals, in random order (Kingma et al. 2021, "VDM"):
    the loss of a step then depends less on which noise levels it happened to draw."""
    return (torch.rand(count, generator=gen) + torch.randperm(count, generator=gen)) / count


def vocabulary(prior: MVDream) -> str:
    """A digest of which word has which number: an edit of the grammar moves them, and no run can go on over that."""
    numbers = sorted(prior.tokenizer.get_vocab().items())
    return hashlib.blake2b(repr(numbers).encode(), digest_size=8).hexdigest()


class PriorSystem(pl.LightningModule):
    """The UNet with its running average.  The frozen networks around it are not part of the module."""

    stage = "UNet"

    def __init__(self, config: TrainPriorConfig, prior: MVDream, bank: LatentBank) -> None:
        super().__init__()
        self.options, self.seed, self.max_steps = config.training, config.seed, config.trainer.max_steps
        self.config_yaml = dump(config.model_copy(update={"out": None})) + f"vocabulary: {vocabulary(prior)}\n"
        self.unet = prior.unet.requires_grad_(True).train()
        self.average = EMA(self.unet, self.options.ema)
        self.frozen = (prior, bank)  # in a tuple: no sub-modules, hence in no checkpoint
        self.metrics: dict[str, float] = {}

    def setup(self, stage: str) -> None:
        self.frozen[0].to(self.device)

    def scenes(self, step: int, count: int):
        """The ``count`` scenes of a step: the newest ``fresh`` ones, and others among all that came before them."""
        o = self.options
        known = min(o.scenes, o.first + step * o.fresh)
        rng = numpy_generator(self.seed, step, "scenes", self.global_rank)
        old = rng.integers(0, known, count)
        fresh = min(o.fresh, o.scenes - known)
        old[:fresh] = range(known, known + fresh)
        return old

    def text(self, captions: list[str]) -> Tensor:
        """(N, L, D)"""
        prior = self.frozen[0]
        ids = token_ids(prior.tokenizer, captions, prior.max_tokens)
        return prior.text_encoder(ids.to(self.device)).last_hidden_state

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o = int(batch), self.options
        prior, bank = self.frozen
        rng = numpy_generator(self.seed, step, "choices", self.global_rank)
        gen = generator(self.seed, step, "diffusion", self.global_rank)
        two_d = rng.random() < o.two_d
        # a picture on its own may as well be of a scene of its own: four times as many captions and cameras a step
        alone = two_d or step < o.alone * self.max_steps
        n_view = 1 if alone else o.n_view
        chosen = self.scenes(step, o.batch * o.n_view // n_view)
        captions = [bank.words(i) if rng.random() >= o.no_text else "" for i in chosen]
        z, c2w = bank.scenes(chosen), bank.c2w(chosen)
        if alone:
            one = torch.arange(len(chosen)), torch.from_numpy(rng.integers(0, z.shape[1], len(chosen)))
            z, c2w = z[one][:, None], c2w[one][:, None]
        z, c2w = z.flatten(0, 1), c2w.flatten(0, 1)

        draws = stratified(len(chosen), gen)
        t = (prior.schedule.T * draws**o.timestep_power).long().clamp(max=prior.schedule.T - 1)
        t = t.repeat_interleave(n_view)  # the views of a scene share their noise level
        noise = torch.randn(z.shape, generator=gen)
        z, t, noise = z.to(self.device), t.to(self.device), noise.to(self.device)
        x = prior.schedule.to(self.device).add_noise(z, noise, t)
        camera = None if two_d else camera_vector(c2w).to(self.device)
        with mixed(self.device, o.bf16):
            with torch.no_grad():  # as for Stable Diffusion's, the text encoder has learnt its words before
                text = self.text(captions).repeat_interleave(n_view, 0)
                draft = None if prior.draft is None else prior.draft(text, camera)
            out = prior.predict(x, t, text, camera, n_view, draft).float()
        loss = F.mse_loss(out, prior.schedule.to(self.device).target(z, noise, t))
        self.metrics = {"loss_2d" if two_d else "loss_3d": float(loss.detach())}
        return loss

    def optimizer_step(self, *args, **kwargs) -> None:
        super().optimizer_step(*args, **kwargs)
        self.average.update(self.unet, self.global_step)

    def configure_optimizers(self):
        o = self.options
        return adamw(self.unet.parameters(), o.learning_rate, self.max_steps, o.weight_decay)

    def validate(self, step: int, folder: Path) -> None:
        """Saves the averaged weights as a prior and draws its sample sheet."""
        from threedgen.geometry.images import grid, write_png
        from threedgen.geometry.poses import orbit_c2w

        prior = self.frozen[0]
        with self.average.applied(self.unet):
            prior.save(folder / "prior")
            azimuth = torch.deg2rad(torch.tensor([20.0, 110.0, 200.0, 290.0]))
            c2w = orbit_c2w(torch.full((4,), 0.26), azimuth, torch.full((4,), 2.6))
            rows = [
                prior.sample(p, c2w, steps=30, guidance_scale=4.0, generator=generator(self.seed, k, "sheet"))
                for k, p in enumerate(self.options.sheet_prompts)
            ]
        write_png(folder / "samples.png", grid(torch.cat(rows), 4))
