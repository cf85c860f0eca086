"""Learning the embedded prior: its networks on latents of the toybox (MVDream, arXiv 2308.16512, section 3).

One network learns two things at once: four views of a scene with joined attention and cameras, and single pictures
without (a ``two_d`` share of the steps), which keeps it usable as an ordinary text-to-image model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel

from threedgen.data.latents import LatentBank
from threedgen.data.toybox.words import train_tokenizer, vocabulary
from threedgen.guidance.diffusion import Schedule
from threedgen.guidance.draft import Draft
from threedgen.guidance.multiview.joined import multiview_unet
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import mixed
from threedgen.train.system import AveragedSystem, stratified

from .options import NetworkConfig, TrainPriorConfig

CAMERA_GAIN = 5.0
"""Makes the camera start about as loud as the time step and the caption, to which its embedding is added."""


def build(options: NetworkConfig, vae: Any, image_size: int) -> MVDream:
    """A fresh prior around an autoencoder: tokenizer learnt, text encoder and UNet random."""
    tokenizer = train_tokenizer(options.max_tokens)
    # position and token tables are small, so that a caption's words are learnt and not fought
    text = CLIPTextModel(
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


class PriorSystem(AveragedSystem):
    """The UNet with its running average.  ``prior``, the frozen networks around it, is not part of the module."""

    stage = "UNet"
    prior: MVDream

    def __init__(self, config: TrainPriorConfig, prior: MVDream, bank: LatentBank) -> None:
        super().__init__(config, vocabulary=vocabulary(prior.tokenizer))
        self.options, self.bank = config.training, bank
        self.unet = prior.unet.requires_grad_(True).train()
        self.keep_average(self.unet, self.options.ema)
        self.hold(prior=prior)

    def setup(self, stage: str) -> None:
        self.prior.to(self.device)

    def scenes(self, step: int, count: int):
        """The ``count`` scenes of a step: the newest ``fresh`` ones, and others among all that came before them."""
        o = self.options
        known = min(o.scenes, o.first + step * o.fresh)
        old = self.numpy_rng(step, "scenes").integers(0, known, count)
        fresh = min(o.fresh, o.scenes - known)
        old[:fresh] = range(known, known + fresh)
        return old

    def text(self, captions: list[str]) -> Tensor:
        """(N, L, D)"""
        ids = token_ids(self.prior.tokenizer, captions, self.prior.max_tokens)
        return self.prior.text_encoder(ids.to(self.device)).last_hidden_state

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, prior, bank = int(batch), self.options, self.prior, self.bank
        rng, gen = self.numpy_rng(step, "choices"), self.rng(step, "diffusion")
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

    def configure_optimizers(self):
        o = self.options
        return self.adamw(self.unet.parameters(), o.learning_rate, weight_decay=o.weight_decay)

    def validate(self, step: int, folder: Path) -> None:
        """Saves the averaged weights as a prior and draws its sample sheet."""
        from threedgen.geometry.images import grid, write_png
        from threedgen.geometry.poses import orbit_c2w

        prior = self.prior
        with self.average.applied(self.unet):
            prior.save(folder / "prior")
            azimuth = torch.deg2rad(torch.tensor([20.0, 110.0, 200.0, 290.0]))
            c2w = orbit_c2w(torch.full((4,), 0.26), azimuth, torch.full((4,), 2.6))
            rows = [
                prior.sample(p, c2w, steps=30, guidance_scale=4.0, generator=self.rng(k, "sheet"))
                for k, p in enumerate(self.options.sheet_prompts)
            ]
        write_png(folder / "samples.png", grid(torch.cat(rows), 4))
