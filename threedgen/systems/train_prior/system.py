"""Learning the latents of the toybox: a stock UNet on single pictures, as Stable Diffusion did, then on four views.

The second is MVDream's training (arXiv 2308.16512, section 3): one network learns views of an object with joined
attention and cameras, and in a ``two_d`` share of the steps single pictures without, which keeps what it knew.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models import UNet2DConditionModel
from torch import Tensor
from torch.nn import functional as F

from threedgen.config import at
from threedgen.data.bank import LatentBank, choose_by_share, sample_entries
from threedgen.data.toybox.words import vocabulary_digest
from threedgen.geometry.images import grid, write_png
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.multiview.joined import CAMERA_DIM, WORLD_ROTARY, camera_vector, unet_from_config
from threedgen.guidance.mvdiffusion.difference import widened
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.dtypes import autocast_bf16
from threedgen.run.seeding import generator, numpy_generator
from threedgen.train.system import AveragedSystem

from .noise_levels import view_timesteps
from .options import DiffusionConfig, NetworkConfig, ViewNoiseConfig

HEAD_WIDTH = 64
"""Channels of an attention head that is added."""


def base_model(options: NetworkConfig, vae: Any, text: Any, tokenizer: Any, image_size: int) -> StableDiffusion:
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


def multiview_model(
    base: LatentDiffusion, coarse: CoarsePredictor | None, attention: bool = False, rotary: bool = False
) -> MVDream:
    """A multi-view prior around the networks of ``base``, which are shared, with what it lacks added to the UNet.

    Args:
        base: a 2D model or a multi-view prior.
        coarse: its prediction becomes an input of the UNet; None: no such input.
        attention: add attention to the levels that have none.
        rotary: rotate queries and keys by the world positions of their pixels.

    All additions but ``rotary`` have no effect at first: their last or first weights are zero.
    """
    unet: Any = base.unet
    if coarse is not None and base.coarse is None:
        unet = widened(unet, coarse.config["latent_channels"])
    if attention:
        unet = with_attention(unet)
    if rotary:
        unet.register_to_config(**{WORLD_ROTARY: True})
    if unet.class_embedding is None:
        unet = with_camera(unet)
    return MVDream(unet, base.vae, base.text_encoder, base.tokenizer, base.schedule, coarse)


def with_camera(wide: Any) -> Any:
    """A UNet with the weights of another one and a camera branch, which says nothing yet: its last weights are zero."""
    camera = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": CAMERA_DIM}
    unet: Any = unet_from_config(wide.config, **camera)
    unet.load_state_dict(unet.state_dict() | wide.state_dict())
    with torch.no_grad():
        for parameter in unet.class_embedding.linear_2.parameters():
            parameter.zero_()
    return unet


def with_attention(plain: Any) -> Any:
    """A UNet with the weights of another one and attention at all levels; the output of what is new is zero."""
    widths, heads = plain.config["block_out_channels"], list(plain.config["attention_head_dim"])  # numbers of heads
    for k, kind in enumerate(plain.config["down_block_types"]):
        heads[k] = heads[k] if "CrossAttn" in kind else max(1, widths[k] // HEAD_WIDTH)
    unet: Any = unet_from_config(
        plain.config,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        attention_head_dim=heads,
    )
    own = plain.state_dict()
    unet.load_state_dict(unet.state_dict() | own)
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if name not in own and ".proj_out." in name:
                parameter.zero_()
    return unet


def whole(pictures: int, n_view: int) -> int:
    """How many objects of ``n_view`` pictures each so many pictures are, rounded up."""
    return -(-pictures // n_view)


class DiffusionSystem(AveragedSystem):
    """A UNet with its running average. ``prior``, the frozen networks around it, is not part of the module.

    All processes of a training draw the same batch, and each learns from its part of it: their number changes nothing
    but rounding.
    """

    stage = "UNet"
    prior: LatentDiffusion

    def __init__(self, config: Any, prior: LatentDiffusion, *banks: tuple[float, LatentBank]) -> None:
        """``config``: of a whole run, whose section ``training`` says how the UNet learns.  ``banks``: what it learns
        from, each with the share of the steps that see it: single pictures, several views of objects, other sizes."""
        super().__init__(config, vocabulary=vocabulary_digest(prior.tokenizer))
        self.options: DiffusionConfig = config.training
        self.view_noise: ViewNoiseConfig = getattr(self.options, "view_noise", ViewNoiseConfig())
        self.banks = banks
        self.unet = prior.unet.requires_grad_(True).train()
        self.keep_average(self.unet, self.options.ema)
        self.set_unregistered(prior=prior)

    def setup(self, stage: str) -> None:
        self.prior.to(self.device)

    def elementwise(self) -> Iterable[Tensor]:
        """Those of the last layer, whose rows are latents and no features."""
        return (self.unet.conv_out.weight,)

    @property
    def place(self) -> tuple[int, int]:
        """Number of this process, and of how many."""
        return (self.global_rank, self.trainer.world_size) if getattr(self, "_trainer", None) else (0, 1)

    def mean_of_all(self, loss: Tensor) -> float:
        """The mean over all processes."""
        one = loss.detach().clone()
        return float(one if self.place[1] == 1 else self.trainer.strategy.reduce(one, reduce_op="mean"))

    def rng(self, step: int, purpose: str) -> torch.Generator:
        return generator(self.seed, step, purpose)  # equal in all processes

    def numpy_rng(self, step: int, purpose: str) -> np.random.Generator:
        return numpy_generator(self.seed, step, purpose)

    def entries(self, step: int, n_view: int, share: float) -> np.ndarray:
        """Those of a step, of ``n_view`` pictures each: the newest ``fresh`` ones, and others among all before them.

        ``share``: of the steps that see the bank they are in.
        """
        o, rng = self.options, self.numpy_rng(step, "pictures")
        numbers = (whole(number, n_view) for number in (o.batch, o.pictures, o.first, o.fresh))
        return sample_entries(rng, int(step * share), *numbers)

    def make_together(self, bank: LatentBank, chosen: np.ndarray) -> None:
        """Makes what is lacking of these entries, each process other blocks."""
        if self.place[1] > 1:
            self.trainer.strategy.barrier()  # all see the same ones lacking
            bank.prepare(chosen, self.place)
            self.trainer.strategy.barrier()

    def bank(self, step: int) -> tuple[float, LatentBank]:
        """What a step learns from, and the share of the steps that do."""
        return choose_by_share(self.banks, self.numpy_rng(step, "mode").random())

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, prior = int(batch), self.options, self.prior
        rng, gen = self.numpy_rng(step, "choices"), self.rng(step, "diffusion")
        share, bank = self.bank(step)
        n_view, mine = bank.source.n_view, slice(self.place[0], None, self.place[1])
        chosen = self.entries(step, n_view, share)
        self.make_together(bank, chosen)
        told = [rng.random() >= o.no_text for _ in chosen][mine]
        power = float(at(o.timestep_power, step, self.max_steps))
        t = view_timesteps(len(chosen), n_view, prior.schedule.T, power, self.view_noise, gen)[mine].flatten()
        noise = torch.randn(len(chosen), *bank.latent_shape, generator=gen)[mine].flatten(0, 1)
        chosen = chosen[mine]
        captions = [text if kept else "" for text, kept in zip(bank.captions(chosen), told, strict=True)]
        z = bank.latents(chosen).flatten(0, 1)
        camera = camera_vector(bank.c2w(chosen).flatten(0, 1)).to(self.device) if n_view > 1 else None
        z, t, noise = z.to(self.device), t.to(self.device), noise.to(self.device)
        schedule = prior.schedule.to(self.device)
        with autocast_bf16(self.device, o.bf16):
            with torch.no_grad():  # as for Stable Diffusion's, the text encoder has learnt its words before
                ids = token_ids(prior.tokenizer, captions, prior.max_tokens).to(self.device)
                text = prior.text_encoder(ids).last_hidden_state.repeat_interleave(n_view, 0)
            out = prior.predict(schedule.add_noise(z, noise, t), t, text, camera, n_view).float()
        loss = F.mse_loss(out, schedule.target(z, noise, t))
        losses = {"loss_2d" if camera is None else "loss_3d": self.mean_of_all(loss)}
        self.metrics = {name: value for name, value in self.metrics.items() if "loss" not in name} | losses
        return loss

    @property
    def n_view(self) -> int:
        """How many views the UNet draws together."""
        return max(bank.source.n_view for _, bank in self.banks)

    def validate(self, step: int, folder: Path) -> None:
        """Saves the averaged weights as a diffusers folder and draws its sample sheet."""
        with self.average.applied(self.unet):
            self.prior.save(folder / ("prior" if self.n_view > 1 else "base"))
            self.sheet(folder / "samples.png")

    def sheet(self, path: Path) -> None:
        """Draws the prompts of the sheet, those of a multi-view prior from all around."""
        prompts, n_view, c2w = self.options.sheet_prompts, self.n_view, None
        if n_view > 1:
            azimuth = torch.deg2rad(20 + torch.arange(n_view) * 360 / n_view)
            c2w = orbit_c2w(torch.full((n_view,), 0.26), azimuth, torch.full((n_view,), 2.6))
        drawn = [self.draw(k, prompt, c2w) for k, prompt in enumerate(prompts)]
        write_png(path, grid(torch.cat(drawn), 4, [prompt for prompt in prompts for _ in range(n_view)]))

    def draw(self, number: int, prompt: str, c2w: Tensor | None) -> Tensor:
        """Draws picture, or views (V, H, W, 3), ``number`` of the sheet, the same noise each time."""
        rng = self.rng(number, "sheet")
        return self.prior.sample(prompt, c2w, steps=30, guidance_scale=4.0, generator=rng)
