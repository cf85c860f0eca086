"""What learns in MVDiffusion (arXiv 2307.01097, section 5): first, where the base is to be told more than it was, from
single views; then, around the frozen base, the attention between views and the branch for given ones.

All views of a scene share a noise level; the loss is the mean square over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from threedgen.data.bank import available_entries, choose_by_share, sample_entries
from threedgen.data.scene_bank import SceneBank
from threedgen.geometry.images import grid, write_png
from threedgen.guidance.coarse_to_fine import Size
from threedgen.guidance.distillation.lora import LoRA
from threedgen.guidance.mvdiffusion.geometry import Geometry, Scenes
from threedgen.guidance.mvdiffusion.inputs import depth_channels, given_condition
from threedgen.guidance.mvdiffusion.model import MVDiffusion
from threedgen.guidance.mvdiffusion.weights import save_blocks
from threedgen.train.system import AveragedSystem, System, sample_timesteps

from .masks import MaskBank
from .options import TrainMVDiffusionConfig, Variant

RESULT = "blocks.safetensors"
LEARNT: dict[Variant, tuple[str, ...]] = {
    "panorama": ("k", "neighbours"),
    "outpaint": ("k", "neighbours", "mask"),
    "depth": ("overlap",),
}
"""Options that decide how views correspond, which a result says of itself."""
KEPT = 64
"""Scenes whose correspondences are kept."""


def denoising_loss(
    model: MVDiffusion,
    z: Tensor,
    captions: list[str],
    t: Tensor,
    noise: Tensor,
    geometry: Geometry | None = None,
    extra: Tensor | None = None,
    condition: Tensor | None = None,
) -> Tensor:
    """mean |target - network(x_t, t, c)|^2 of latents (B,C,h,w) at time steps t (B,), on the model's device."""
    device = model.device
    z, t, noise = z.to(device), t.to(device), noise.to(device)
    extra, condition = (None if part is None else part.to(device) for part in (extra, condition))
    schedule = model.schedule.to(device)
    text = model.encode_prompt(captions)
    out = model.output(schedule.add_noise(z, noise, t), t, text, geometry, extra, condition)
    return F.mse_loss(out, schedule.target(z, noise, t))


@dataclass(frozen=True)
class Seen:
    """Scenes in one size.

    masks: for a model that is told masks, their views with a part left out; else it is told depth if ``bank`` has it.
    photos: the same of the first view of each scene.
    """

    bank: SceneBank
    masks: MaskBank | None = None
    photos: MaskBank | None = None


class SingleViewSystem(System):
    """The first layer of a UNet that was widened, and additions to other layers (all of it without ``lora``).

    seen: what is learnt from, with the share of the steps that see it.
    """

    stage = "single views"
    model: MVDiffusion

    def __init__(
        self,
        config: TrainMVDiffusionConfig,
        model: MVDiffusion,
        seen: Sequence[tuple[float, Seen]],
        lora: LoRA | None,
    ) -> None:
        o = config.single_view
        assert o is not None
        super().__init__(o, config.seed, o.max_steps)
        self.options, self.growth, self.seen = o, config.training, seen
        model.unet.requires_grad_(lora is None)
        model.unet.conv_in.requires_grad_(True)
        self.learning = nn.ModuleDict({"conv_in": model.unet.conv_in, "lora": lora} if lora else {"unet": model.unet})
        self.learning.train()
        self.set_unregistered(model=model)

    def setup(self, stage: str) -> None:
        self.model.to(self.device)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, model = int(batch), self.options, self.model
        rng = self.numpy_rng(step, "choices")
        share, seen = choose_by_share(self.seen, self.numpy_rng(step, "size").random())
        known = available_entries(int(step * share), seen.bank.count, self.growth.first, self.growth.fresh)
        if seen.masks is None:
            z, extra, captions = self.draw(seen.bank, rng, known, o.batch)
        else:
            z, extra, captions = seen.masks.draw(rng, known * seen.bank.n_view, o.batch)
        gen = self.rng(step, "diffusion")
        t, noise = sample_timesteps(len(z), model.schedule.T, 1.0, gen), torch.randn(z.shape, generator=gen)
        loss = denoising_loss(model, z, captions, t, noise, None, extra)
        self.metrics = {"loss": float(loss.detach())}
        return loss

    def draw(self, bank: SceneBank, rng: Any, known: int, count: int) -> tuple[Tensor, Tensor | None, list[str]]:
        """``count`` single views of the first ``known`` scenes: latents, inverse depth if there is any, captions."""
        scenes, views = rng.integers(0, known, count), rng.integers(0, bank.n_view, count)
        z = bank.latents(scenes)[range(count), views]
        captions = [texts[v] for texts, v in zip(bank.captions(scenes), views, strict=True)]
        depth = bank.depth(scenes)[range(count), views] if bank.has_depth else None
        return z, None if depth is None else depth_channels(depth, *z.shape[-2:]), captions


class ViewsSystem(AveragedSystem):
    """The blocks between views, and the branch for given views where there is one; the base is frozen.

    seen: as in the first stage.  own: how the UNet differs from the base, None: by all of its weights.  lora: what the
    first stage added to it.
    """

    stage = "views"
    model: MVDiffusion
    own: Mapping[str, Tensor] | None
    lora: LoRA | None

    def __init__(
        self,
        config: TrainMVDiffusionConfig,
        model: MVDiffusion,
        seen: Sequence[tuple[float, Seen]],
        own: Mapping[str, Tensor] | None,
        lora: LoRA | None = None,
        **facts: Any,
    ) -> None:
        super().__init__(config, **facts)
        assert model.multiview is not None
        self.config, self.options, self.seen = config, config.training, seen
        model.unet.requires_grad_(False)
        self.blocks = nn.ModuleDict(model.multiview.new_blocks)
        self.keep_average(self.blocks, self.options.ema)
        self.known: dict[int, Geometry] = {}
        self.blank: dict[tuple[int, int], Tensor] = {}
        self.set_unregistered(model=model, own=own, lora=lora)

    def setup(self, stage: str) -> None:
        self.model.to(self.device)
        if self.lora is not None:  # the first stage left it on the CPU
            self.lora.to(self.device)

    def training_step(self, batch: int, index: int) -> Tensor:
        step, o, model = int(batch), self.options, self.model
        share, seen = choose_by_share(self.seen, self.numpy_rng(step, "size").random())
        chosen = self.scenes(step, share)
        z = seen.bank.latents(chosen)
        n, n_view = z.shape[:2]
        extra, condition = self.known_of(seen, chosen, z)
        gen = self.rng(step, "diffusion")
        t = sample_timesteps(n, model.schedule.T, o.timestep_power, gen).repeat_interleave(n_view)
        captions = [text for scene in seen.bank.captions(chosen) for text in scene]
        geometry = Scenes([self.geometry(int(k)) for k in chosen])
        z = z.flatten(0, 1)
        noise = torch.randn(z.shape, generator=gen)
        loss = denoising_loss(
            model, z, captions, t, noise, geometry, extra, condition if model.has_condition_branch else None
        )
        self.metrics = {"loss": float(loss.detach())}
        return loss

    def scenes(self, step: int, share: float = 1.0) -> Any:
        """The newest ``fresh`` scenes of a size that a share of the steps sees, and others among all before them."""
        o, rng = self.options, self.numpy_rng(step, "scenes")
        return sample_entries(rng, int(step * share), o.batch, self.bank.count, o.first, o.fresh)

    @property
    def bank(self) -> SceneBank:
        """The scenes as large as they are."""
        return self.seen[0][1].bank

    def unknown(self, seen: Seen) -> Tensor:
        """What a model of masks is told (E,h,w) of a view of which nothing is given."""
        if (size := seen.bank.encoded_size) not in self.blank:
            view, given = torch.zeros(1, *size, 3), torch.zeros(1, dtype=torch.bool)
            self.blank[size] = self.model.masked_extra(view, given, self.config.mask)[0].cpu()
        return self.blank[size]

    def known_of(self, seen: Seen, chosen: Any, z: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """What the UNet is told of scenes with latents (n,F,C,h,w), and the condition, of n F views; None: nothing."""
        if seen.photos is not None:
            extra = self.unknown(seen).repeat(len(chosen), seen.bank.n_view, 1, 1, 1)
            extra[:, 0] = seen.photos.extra(chosen)
            return extra.flatten(0, 1), None
        if not seen.bank.has_depth:
            return None, None
        z, depth, given = (
            part.flatten(0, 1) for part in (z, seen.bank.depth(chosen), seen.bank.condition_mask(chosen))
        )
        return depth_channels(depth, *z.shape[-2:]), given_condition(z, given) if given.any() else None

    def geometry(self, scene: int) -> Geometry:
        """How its views correspond; kept. Panoramas of the same rig share it, wherever it begins."""
        if self.config.variant != "depth":
            scene = 0
        if scene not in self.known:
            if len(self.known) == KEPT:
                self.known.pop(next(iter(self.known)))
            cameras = self.bank.cameras(scene)
            depth = self.bank.depth([scene])[0] if self.config.variant == "depth" else None
            self.known[scene] = self.model.geometry(cameras, depth, self.config)
        return self.known[scene]

    def validate(self, step: int, folder: Path) -> None:
        """Saves the averaged blocks and draws samples.png: of each scene the truth, then what is drawn for it."""
        model, o, multiview = self.model, self.options, self.model.multiview
        assert multiview is not None
        rows, labels = [], []
        sizes = {seen.bank.encoded_size: seen for _, seen in self.seen}

        def known(scene: int, size: Size) -> tuple[Tensor | None, Tensor | None]:
            return self.known_of(sizes[size], [scene], sizes[size].bank.latents([scene]))

        with self.average.applied(self.blocks):
            learnt = {name: getattr(self.config, name) for name in LEARNT[self.config.variant]}
            save_blocks(folder / RESULT, multiview, self.own, learnt)
            for scene in range(min(o.sheet_scenes, self.bank.count)):
                z, captions, rng = self.bank.latents([scene]), self.bank.captions([scene])[0], self.rng(scene, "sheet")
                how = (self.geometry(scene), self.bank.size, partial(known, scene))
                drawn = model.sample_views(captions, *how, o.sheet_steps, o.guidance_scale, generator=rng)
                rows += [model.decode_latents(z[0]).float().cpu(), drawn]
                labels += [*captions, *captions]
        if rows:
            write_png(folder / "samples.png", grid(torch.cat(rows), self.bank.n_view, labels))
