"""LightningModule and loss of the task mvdreambooth, and random changes of its photos.

The UNet trains on the photos of a subject in its 2D mode, without cameras. The same weights then sample multi-view
images of the subject, if they stay near the original weights theta_0. With x_t the noisy latents of a photo at time
step t, c its prompt, and target the noise or v (as the UNet predicts), the loss for preservation=l1 or l2 is

    loss = mean |target - UNet(x_t, t, c)|^2 + lambda |theta - theta_0| / N

where |.| is the sum of absolute (l1) or squared (l2) differences over the N weights theta of the UNet, and lambda the
option tuning.weight. With preservation=images the second term is lambda times the denoising loss of class images. With
preservation=lora or none there is no second term; with lora, the UNet is frozen and a LoRA trains.
"""

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.func import functional_call
from torch.nn import functional as F

from threedgen.geometry.images import enlarge_small, grid, write_png
from threedgen.geometry.rigs import orbit
from threedgen.guidance.losses.lora import LoRA
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights import subject_weights
from threedgen.guidance.weights.tokens import token_ids
from threedgen.run.memory import to_device
from threedgen.run.seeding import generator
from threedgen.systems.train.denoising import Batch, DenoisingSystem

from .options import MVDreamBoothConfig

LORA_RANK = 8
N_VIEW = 4
ELEVATION, AZIMUTH = math.radians(15.0), math.radians(20.0)
"""Elevation of the cameras of the sample sheet, and azimuth of the first one, in radians."""


def preservation(weights: Mapping[str, Tensor], originals: Mapping[str, Tensor], norm: str) -> Tensor:
    """Return the mean absolute (`norm` "l1") or squared ("l2") difference of weights to their originals, a scalar.

    `weights` and `originals` are {parameter name: tensor}. The mean is over all elements of the tensors in `originals`.
    """
    total: Tensor = WeightDistance.apply(norm, list(originals.values()), *(weights[name] for name in originals))
    return total / sum(before.numel() for before in originals.values())


class _Context(FunctionCtx):
    norm: str
    originals: list[Tensor]
    saved_tensors: tuple[Tensor, ...]


class WeightDistance(torch.autograd.Function):
    """Sum of absolute ("l1") or squared ("l2") differences of two lists of tensors, as an autograd function.

    The call is `WeightDistance.apply(norm, originals, *weights)`. `norm` is "l1" or "l2", `originals` a list of
    tensors, and `weights` are as many tensors of the same shapes, each an argument of its own. The result is a scalar.
    Gradients flow to `weights` only.

    The differences take as much memory as the weights, so the forward pass does not store them, and the backward pass
    computes them again. torch's functions on lists of tensors (foreach) need few kernel launches.
    """

    @staticmethod
    def forward(ctx: _Context, norm: str, originals: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.norm, ctx.originals = norm, originals
        ctx.save_for_backward(*weights)
        terms = torch._foreach_sub(weights, originals)
        terms = terms if norm == "l1" else torch._foreach_mul(terms, terms)
        return torch.stack(torch._foreach_norm(terms, 1)).sum()

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        change = torch._foreach_sub(ctx.saved_tensors, ctx.originals)
        if ctx.norm == "l1":
            torch._foreach_sign_(change)
        else:
            torch._foreach_mul_(change, 2.0)
        torch._foreach_mul_(change, grad)
        return None, None, *change


def augment(images: Tensor, rng: torch.Generator) -> Tensor:
    """Return images (B, H, W, 3) in [0, 1] with random changes of zoom, position and brightness of each image.

    The zoom changes by up to 8 %, the position by up to 4 % of the image side, and all colours are multiplied by a
    factor of 0.95 to 1.05. Images are never mirrored, since the subject need not be symmetric. Pixels from outside an
    image repeat its edge.
    """
    factors = 2 * torch.rand(len(images), 4, generator=rng) - 1
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 + 0.08 * factors[:, 0]
    theta[:, :, 2] = 0.08 * factors[:, 1:3]  # in grid units; the image is 2 wide
    x = images.permute(0, 3, 1, 2)
    place = F.affine_grid(theta, list(x.shape), align_corners=False)
    moved = F.grid_sample(x, place, padding_mode="border", align_corners=False)
    return (moved * (1 + 0.05 * factors[:, 3, None, None, None])).clamp(0, 1).permute(0, 2, 3, 1)


def sheet_path(folder: Path, step: int) -> Path:
    return folder / "samples" / f"{step:06d}.png"


def token_embeddings(prior: MVDream) -> Tensor:
    return prior.text_encoder.get_input_embeddings().weight


class DreamBoothSystem(DenoisingSystem):
    """LightningModule that trains the UNet, and the embedding of the identifier (the subject's word).

    With tuning.preservation=lora, it trains a LoRA on the UNet instead of the UNet.

    Args:
        prior: model to tune; its tokenizer already has the identifier as a token (`subject_weights.add_word`).
        photos: (N, S, S, 3) in [0, 1], N photos of the subject.
        base: SHA-256 of the original weights, written to the result, which fits only these weights.
        class_images: (M, S, S, 3) in [0, 1], images of the subject's class that the original prior sampled. The loss
            includes them, so that the prior keeps the class. Image k has prompt k % n of the n prompts in
            `config.class_prompts`. None: no class images are used.
    """

    stage = "subject"
    model: MVDream

    def __init__(
        self, config: MVDreamBoothConfig, prior: MVDream, photos: Tensor, base: str, class_images: Tensor | None = None
    ) -> None:
        super().__init__(config, prior, base=base)
        self.config, self.options, self.base = config, config.tuning, base
        self.token = prior.tokenizer.get_vocab()[config.identifier]
        self.word = nn.Parameter(token_embeddings(prior)[self.token].detach().clone())
        self.originals: dict[str, Tensor] = {}
        self.lora: LoRA | None = None
        if self.options.preservation == "lora":
            prior.unet.requires_grad_(False)
            # the standard deviation of torch's own linear layers, as in peft
            rng = generator(self.seed, 0, "lora")
            lora = LoRA(prior.unet, LORA_RANK, rng, lambda width: (3 * width) ** -0.5)
            self.lora = lora.to(prior.device)  # the first sheet is sampled before Lightning moves this module
            self.lora.attach(prior.unet)
        else:
            prior.unet.requires_grad_(True)
            self.originals = {name: p.detach().clone() for name, p in prior.unet.named_parameters()}
        self.unet = prior.unet.train()
        self.photos, self.class_images = photos, class_images

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.originals = {name: value.to(self.device) for name, value in self.originals.items()}

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Trained parameters by name: those of the LoRA or, without a LoRA, those of the UNet.

        The embedding of the identifier (the subject's word, such as "[v]") is trained too, but not included.
        """
        if self.lora is not None:
            return dict(self.lora.named_parameters())
        return {name: p for name, p in self.unet.named_parameters() if p.requires_grad}

    def encode_prompt(self, prompt: str) -> Tensor:
        """Return the embedding (1, L, D) of a prompt, L rows of D numbers, as `prior.encode_prompt` does.

        In contrast to `prior.encode_prompt`, gradients flow to the embedding of the subject's word, such as "[v]".
        """
        prior = self.model
        prompt = prior.read_prompt(prompt).text
        table = token_embeddings(prior)
        name = next(name for name, p in prior.text_encoder.named_parameters() if p is table)
        trained = table.detach().index_copy(0, to_device(torch.tensor([self.token]), table.device), self.word[None])
        encoded = list[Tensor]()
        for variant in prior.prompt_variants([prompt]):
            ids = to_device(token_ids(prior.tokenizer, variant, prior.max_tokens), table.device)
            encoded.append(functional_call(prior.text_encoder, {name: trained}, (ids,)).last_hidden_state)
        return prior.without_code(torch.cat(encoded, dim=1))

    def image_loss(self, images: Tensor, prompt: str, rng: torch.Generator) -> Tensor:
        """Return the denoising loss of images (B, S, S, 3) in [0, 1] with one prompt, without cameras; a scalar."""
        with torch.no_grad():
            z = self.model.encode_images(images, rng)
        t, noise = (x.flatten(0, 1) for x in self.sample_noise(0, z[:, None].shape, rng))
        with self.model.autocast():
            text = self.encode_prompt(prompt)
        return self.denoising_loss(Batch(z, t, noise, text.expand(len(z), -1, -1)))

    def predict(self, x: Tensor, t: Tensor, batch: Batch) -> Tensor:
        with self.model.autocast():
            return self.model.predict(x, t, batch.text).float()

    def training_step(self, batch: int, index: int) -> Tensor:
        o, photos, class_images = self.options, self.photos, self.class_images
        rng = self.rng(int(batch), "subject")
        chosen = photos[torch.randint(len(photos), (o.batch,), generator=rng)]
        loss = self.image_loss(augment(chosen, rng), self.config.prompt, rng)
        self.metrics = {"loss_subject": loss.detach()}
        if class_images is not None:
            prompts = self.config.class_prompts
            count = len(prompts)
            number = int(torch.randint(count, (1,), generator=rng))
            indices = number + count * torch.randint(len(class_images[number::count]), (o.batch,), generator=rng)
            class_loss = self.image_loss(class_images[indices], prompts[number], rng)
            self.metrics["loss_class"] = class_loss.detach()
            loss = loss + o.weight * class_loss
        elif o.preservation in ("l1", "l2"):
            drift = preservation(self.trained, self.originals, o.preservation)
            self.metrics["drift"] = drift.detach()
            loss = loss + o.weight * drift
        return loss

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        o, groups = self.options, [{"params": list(self.trained.values())}, {"params": [self.word]}]
        return self.adamw(groups, o.learning_rate, o.word_learning_rate)

    @torch.no_grad()
    def sample_views(self, prompt: str) -> Tensor:
        """Sample four views (4, S, S, 3) in [0, 1] around an object of `prompt`; S is the prior's image size in pixels.

        Each call starts from the same noise.
        """
        prior, o = self.model, self.config.sheet
        token_embeddings(prior)[self.token] = self.word
        c2w = orbit(N_VIEW, ELEVATION, 1.0, 1.0, 1, 1, azimuth=AZIMUTH).c2w
        return prior.sample(prompt, c2w, o.steps, o.guidance_scale, generator=self.rng(0, "sheet"))

    def validate(self, step: int, folder: Path) -> None:
        """Write samples/STEP.png: four views of the subject and four of its class, sampled from the same noise."""
        prompts = self.config.prompt, self.config.class_prompt
        labels = [prompt for prompt in prompts for _ in range(N_VIEW)]
        rows = torch.cat([self.sample_views(prompt) for prompt in prompts])
        write_png(sheet_path(folder, step), grid(enlarge_small(rows), 2 * N_VIEW, labels))

    def write(self, path: Path) -> None:
        """Write the embedding of the subject's word, and the changes of the UNet, to the safetensors file `path`.

        The changes are the LoRA or, without a LoRA, the differences of the trained weights from the original ones.
        """
        card = {"identifier": self.config.identifier, "prompt": self.config.prompt, "base": self.base}
        if self.lora is not None:
            card |= {"kind": "lora", "scale": "1.0"}
            changes = subject_weights.low_rank(self.lora.names, self.lora.down, self.lora.up)
        else:
            card["kind"] = "difference"
            changes = subject_weights.difference(self.trained, self.originals)
        subject = None if self.model.coarse is None else self.model.coarse.subject
        subject_weights.write(path, changes, self.word, card, subject)
