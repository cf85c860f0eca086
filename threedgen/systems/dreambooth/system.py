"""Learning one subject (DreamBooth, arXiv 2208.12242) without losing the other views (MVDream, arXiv 2308.16512).

The photos are plain pictures without cameras, so the UNet learns from them in its 2D mode: each by itself, no camera
given. The same weights draw the four views, and what was learnt shows there as long as they stay near those of the
base. With x_t the noisy latents of a photo and c its prompt,

    loss = mean |target - UNet(x_t, t, c)|^2 + lambda |theta - theta_0| / N

where |.| is the sum of absolute differences (l1) or of squares (l2) over the N weights of the UNet.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from threedgen.geometry.images import enlarge_small, grid, write_png
from threedgen.geometry.rigs import orbit
from threedgen.guidance.distillation.lora import LoRA
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights import subject_weights
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.seeding import generator
from threedgen.train.system import System, sample_timesteps

from .options import MVDreamBoothConfig

VIEWS = 4


def preservation(weights: Mapping[str, Tensor], originals: Mapping[str, Tensor], norm: str) -> Tensor:
    """|theta - theta_0| / N: the mean absolute ("l1") or squared ("l2") difference of all weights; a scalar."""
    distance = torch.abs if norm == "l1" else torch.square
    total = torch.stack([distance(weights[name] - before).sum() for name, before in originals.items()]).sum()
    return total / sum(before.numel() for before in originals.values())


def augment(pictures: Tensor, rng: torch.Generator, strength: float) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1], each zoomed by up to 8 %, moved by up to 4 % and lit by up to 5 % more or less.

    Never mirrored: marks sit on one side. What comes in from outside repeats the edge.
    """
    if strength == 0:
        return pictures
    draws = (2 * torch.rand(len(pictures), 4, generator=rng) - 1) * strength
    theta = torch.zeros(len(pictures), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + 0.08 * draws[:, 0]
    theta[:, :, 2] = 0.08 * draws[:, 1:3]  # the picture is 2 wide
    x = pictures.permute(0, 3, 1, 2)
    place = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, place, padding_mode="border", align_corners=False)
    return (moved * (1 + 0.05 * draws[:, 3, None, None, None])).clamp(0, 1).permute(0, 2, 3, 1)


def sheet(folder: Path, step: int) -> Path:
    return folder / "samples" / f"{step:06d}.png"


def table_of(prior: MVDream) -> Tensor:
    """The text encoder's rows of its tokens: (words, D)."""
    embeddings: Any = prior.text_encoder.get_input_embeddings()
    return embeddings.weight


class DreamBoothSystem(System):
    """The UNet (or its low-rank terms) and the identifier's row learn; the networks around them are no part of it.

    ``photos`` (N, S, S, 3) in [0, 1]; ``others``, if any, are pictures like these that the base drew of the class
    prompts, of each in turn; ``base``: its check sum.
    The prior knows the identifier already (``subject_weights.add_word``).
    """

    stage = "subject"
    prior: MVDream

    def __init__(
        self, config: MVDreamBoothConfig, prior: MVDream, photos: Tensor, base: str, others: Tensor | None = None
    ) -> None:
        super().__init__(config, base=base)
        self.config, self.options = config, config.tuning
        self.base = base
        self.number = prior.tokenizer.get_vocab()[config.identifier]
        self.word = nn.Parameter(table_of(prior)[self.number].detach().clone())
        self.originals: dict[str, Tensor] = {}
        self.lora: LoRA | None = None
        if self.options.preservation == "lora":
            prior.unet.requires_grad_(False)
            rank, scale = self.options.lora.rank, self.options.lora.alpha / self.options.lora.rank
            # the deviation of torch's own linear layers, as that of peft's
            rng = generator(self.seed, 0, "lora")
            self.lora = LoRA(prior.unet, rank, rng, scale, lambda wide: (3 * wide) ** -0.5)
            self.lora.attach(prior.unet)
        else:
            prior.unet.requires_grad_(True)
            self.originals = {name: p.detach().clone() for name, p in prior.unet.named_parameters()}
        self.unet = prior.unet.train()
        self.photos, self.others = photos, others
        self.set_unregistered(prior=prior)

    def setup(self, stage: str) -> None:
        self.prior.to(self.device)
        self.originals = {name: value.to(self.device) for name, value in self.originals.items()}

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """The weights of the UNet that learn, or its low-rank terms."""
        if self.lora is not None:
            return dict(self.lora.named_parameters())
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    def text(self, prompt: str) -> Tensor:
        """Encodes a prompt as ``prior.encode_prompt`` does, (1, L, D), with a gradient to the identifier's row."""
        prior = self.prior
        table = table_of(prior)
        name = next(name for name, p in prior.text_encoder.named_parameters() if p is table)
        learnt = table.detach().index_copy(0, torch.tensor([self.number], device=table.device), self.word[None])
        ids = [
            token_ids(prior.tokenizer, read, prior.max_tokens).to(table.device)
            for read in prior.prompt_variants([prompt])
        ]
        read = [functional_call(prior.text_encoder, {name: learnt}, (one,)).last_hidden_state for one in ids]
        return torch.cat(read, dim=1)

    def denoising(self, pictures: Tensor, prompt: str, rng: torch.Generator) -> Tensor:
        """mean |target - UNet(x_t, t, c)|^2 of pictures (B, S, S, 3), each by itself and without a camera."""
        prior, count = self.prior, len(pictures)
        schedule = prior.schedule.to(self.device)
        with torch.no_grad():
            z = prior.encode_images(pictures, rng)
        t = sample_timesteps(count, schedule.T, 1.0, rng).to(z.device)
        noise = torch.randn(z.shape, generator=rng).to(z.device)
        with prior.autocast():
            text = self.text(prompt)
            out = prior.predict(schedule.add_noise(z, noise, t), t, text.expand(count, -1, -1)).float()
        return F.mse_loss(out, schedule.target(z, noise, t))

    def training_step(self, batch: int, index: int) -> Tensor:
        o, photos, others = self.options, self.photos, self.others
        rng = self.rng(int(batch), "subject")
        shown = photos[torch.randint(len(photos), (o.batch,), generator=rng)]
        loss = self.denoising(augment(shown, rng, o.augment), self.config.prompt, rng)
        self.metrics = {"loss_subject": float(loss.detach())}
        if others is not None:
            prompts = self.config.class_prompts
            count = len(prompts)
            drawn = int(torch.randint(count, (1,), generator=rng))
            chosen = drawn + count * torch.randint(len(others[drawn::count]), (o.batch,), generator=rng)
            kept = self.denoising(others[chosen], prompts[drawn], rng)
            self.metrics["loss_class"] = float(kept.detach())
            loss = loss + o.weight * kept
        elif o.preservation in ("l1", "l2"):
            drift = preservation(self.trained, self.originals, o.preservation)
            self.metrics["drift"] = float(drift.detach())
            loss = loss + o.weight * drift
        return loss

    def configure_optimizers(self):
        o, groups = self.options, [{"params": list(self.trained.values())}, {"params": [self.word]}]
        return self.adamw(groups, o.learning_rate, o.word_learning_rate)

    @torch.no_grad()
    def views(self, prompt: str) -> Tensor:
        """(4, S, S, 3): what the prior draws now, always from the same noise."""
        prior, o = self.prior, self.config.sheet
        table_of(prior)[self.number] = self.word
        c2w = orbit(VIEWS, math.radians(o.elevation), 1.0, 1.0, 1, 1, azimuth=math.radians(o.azimuth)).c2w
        return prior.sample(prompt, c2w, o.steps, o.guidance_scale, generator=self.rng(0, "sheet"))

    def validate(self, step: int, folder: Path) -> None:
        """samples/000100.png: four views of the subject, then four of its class from the same noise."""
        prompts = self.config.prompt, self.config.class_prompt
        labels = [prompt for prompt in prompts for _ in range(VIEWS)]
        rows = torch.cat([self.views(prompt) for prompt in prompts])
        write_png(sheet(folder, step), grid(enlarge_small(rows), 2 * VIEWS, labels))

    def remove_validation(self, step: int, folder: Path) -> None:
        sheet(folder, step).unlink(missing_ok=True)

    def write(self, path: Path) -> None:
        """The difference from the base, or the low-rank terms, and the identifier."""
        card = {"identifier": self.config.identifier, "prompt": self.config.prompt, "base": self.base}
        if self.lora is not None:
            card |= {"kind": "lora", "scale": repr(self.lora.scale)}
            changes = subject_weights.low_rank(self.lora.names, self.lora.down, self.lora.up)
        else:
            card["kind"] = "difference"
            changes = subject_weights.difference(self.trained, self.originals)
        subject_weights.write(path, changes, self.word, card)
