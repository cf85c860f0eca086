"""The Lightning system of text to 3D: cameras -> render -> the prior's opinion -> loss -> step.

It knows no prior, field or loss by name: the config names them, the registry builds them.  Every random draw is keyed
by (seed, step, purpose), so a resumed run goes on exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.config import at, registry
from threedgen.config.command import command
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import grid, write_png
from threedgen.geometry.rigs import orbit, ring_rig, sample_multiview
from threedgen.geometry.views import Pixels, Views
from threedgen.guidance.guidance import Reference
from threedgen.guidance.matte import Matte
from threedgen.guidance.prior import Prior
from threedgen.guidance.priors.view_prompts import view_text
from threedgen.representations import losses
from threedgen.representations.march import step_size
from threedgen.representations.mesh import losses as mesh_losses
from threedgen.representations.shading import Shading
from threedgen.representations.volume.occupancy import OccupancyGrid
from threedgen.representations.volume.render import Render, render, sample_bytes, samples_that_fit
from threedgen.run.memory import explain_out_of_memory, free_bytes
from threedgen.run.seeding import generator
from threedgen.systems.generate.options import GenerateConfig
from threedgen.train.system import System

from .fitting import dents, redrawn

logger = logging.getLogger(__name__)

EVAL_CHUNK = 1 << 20
"""Samples rendered at a time where no gradient is needed."""
SOME = 1 << 18
"""Samples assumed to be too many where chunks are off and the render itself ran out of memory."""
ALIKE = 0.1
"""Up to this difference of colours the error of a fit is quadratic; beyond, where drawn views disagree, most win."""


class GenerateSystem(System):
    """Optimises one field for one prompt.

    ``text`` (2 or 6, L, D): embeddings of ``view_prompts.prompts``.  ``views`` (V, H, W, 3): sampled pictures for a
    warm start, seen by ``view_cameras``.  The prior is frozen, not registered and in no checkpoint; what a
    distillation trains beside the object is registered, and saved.
    """

    prior: Any
    matte: Matte | None
    text: Tensor
    views: Tensor
    drawn: Tensor
    reference: Reference | None = None  # what the prior saw of a picture of the thing, once it is on its device

    def __init__(
        self,
        config: GenerateConfig,
        prior: Prior,
        text: Tensor,
        views: Tensor | None = None,
        view_cameras: Cameras | None = None,
    ) -> None:
        super().__init__(config)
        self.config = config
        start = generator(config.seed, 0, "field")
        self.field: Any = registry.build("representation", config.field, generator=start)
        self.background: Any = registry.build("background", config.background, generator=start)
        self.material: Any = registry.build("material", config.material)
        march = config.march
        grid = None if self.field.rasterised else config.occupancy
        self.occupancy = None if grid is None else OccupancyGrid(grid, march.radius, step_size(march))
        self.register_buffer("text", text, persistent=False)
        self.register_buffer("views", views, persistent=False)
        self.view_cameras: Any = view_cameras
        if config.round_steps:
            table, side = config.result.turntable, prior.image_size
            refine, n_view = config.refine, config.views_per_scene
            self.rig = ring_rig(table, refine.groups, n_view, refine.elevation_range, side)
            # in checkpoints: a resumed round must be fitted to the very same pictures
            self.register_buffer("drawn", torch.zeros(len(self.rig.cameras), side, side, 3, dtype=torch.float16))
        self.set_unregistered(prior=prior, matte=None if config.fit.matte is None else Matte.load(config.fit.matte))
        learning = (prior.schedule, self.max_steps, prior, generator(config.seed, 0, "distillation parameters"))
        self.distill: Any = registry.build("distillation", config.distillation, *learning)
        self.blank = True  # no other run's object is what this one begins with
        self.fitted: tuple[int, Pixels] | None = None  # the first step of a fit, and its pixels
        self.chunks: dict[str, int] = {}
        self.again = False
        self.held: int | None = None  # samples whose graph the last render held
        self.most: int | None = None  # a bound on chunks, since memory ran out

    @property
    def stage(self) -> str:  # type: ignore[override]
        """What the progress bar says."""
        if self.global_step < self.config.warm_steps:
            return "fitting the sampled views"
        if (number := self.round(self.global_step)) is not None:
            return f"refining, {self.round_name(number)}"
        return f"distilling at {self.size(self.global_step)} px"

    def setup(self, stage: str) -> None:
        self.prior.to(self.device)
        if self.matte is not None:
            self.matte.to(self.device)
        self.reference = self.prior.reference(self.text[:1].to(self.device))

    # -- one step -----------------------------------------------------------------------------------------------
    def size(self, step: int) -> int:
        """Pixels of the renders of a step.  A schedule changes at its keys, not in between."""
        return int(jump(self.config.size, step, self.max_steps))

    def training_step(self, batch: int, index: int) -> Tensor:
        step = int(batch)
        self.field.at_step(step, self.max_steps)
        if self.occupancy is not None and not self.again:  # a step that is repeated finds it up to date
            self.occupancy.update(self.field.density, step, generator(self.config.seed, step, "occupancy"))
        if step < (length := self.config.warm_steps):
            self.terms, loss = self.fit(self.view_cameras, self.views, step, 0, length)
        elif (number := self.round(step)) is not None:
            self.terms, loss = self.refine(number, step)
        else:
            self.terms, loss = self.distillation_loss(step)
        return loss

    def begin(self, number: int) -> int:
        """The first step of a round of refinement; they are at the end of the run."""
        return self.max_steps - (len(self.config.refine.strengths) - number) * self.config.round_steps

    def round(self, step: int) -> int | None:
        """Which round of refinement a step belongs to."""
        length, rounds = self.config.round_steps, len(self.config.refine.strengths)
        return min((step - self.begin(0)) // length, rounds - 1) if length and step >= self.begin(0) else None

    def round_name(self, number: int) -> str:
        return f"round {number + 1} of {len(self.config.refine.strengths)}"

    def refine(self, number: int, step: int) -> tuple[dict[str, float], Tensor]:
        """Renders should equal the pictures that the prior drew over those at the beginning of the round."""
        begin = self.begin(number)
        if step == begin:  # also if the step is repeated: the pictures are the same
            self.draw_again(number, generator(self.seed, step, "drawing"), blank=self.blank and step == 0)
            optimizer: Any = self.optimizers()
            optimizer.optimizer.state.clear()  # moments of the gradients of another loss, a thousand times as large
        return self.fit(self.rig.cameras, self.drawn.float(), step, begin, self.config.round_steps)

    def fit(
        self, cameras: Cameras, images: Tensor, step: int, begin: int, length: int
    ) -> tuple[dict[str, float], Tensor]:
        """Renders should equal pictures (V, H, W, 3); so many steps from ``begin`` on.

        Of a volume some thousand rays of all pictures are looked at in a step, of a mesh some whole pictures.
        """
        o, rng, cameras = self.config.fit, self.rng(step, "pixels"), cameras.with_size(*images.shape[1:3])
        weights = (o.opaque, o.sparsity, o.smooth, o.distortion)
        opaque, sparsity, smooth, distortion = (at(value, step - begin, length) for value in weights)
        if self.fitted is None or self.fitted[0] != begin:
            known = None if self.matte is None else self.matte.opacity(images)
            self.fitted = begin, Pixels(Views(images, cameras), known)
        pixels = self.fitted[1]
        if self.field.rasterised:
            each = cameras.height * cameras.width
            chosen = torch.randperm(len(cameras), generator=rng)[: max(1, o.rays // each)]
            picked = (chosen[:, None] * each + torch.arange(each)).flatten()
            result = self.render(cameras.select(chosen), step, training=False)
            bumps = [mesh_losses.normal_consistency(*result.surface)] if smooth and result.surface is not None else []
        else:
            picked = pixels.sample(o.rays, rng)
            rays = (pixels.origins[picked].to(self.device), pixels.directions[picked].to(self.device))
            result = self.render_rays(*rays, self.material.sample_shading(step, False, rng), rng, training=True)
            bumps = [dents(self.field, self.config.march, result, *rays, rng)] if smooth else []
        colours, behind = (part.to(self.device) for part in pixels.composite(picked, rng))
        error = F.smooth_l1_loss(result.rgb_fg + behind * (1 - result.opacity), colours, beta=ALIKE)
        clear = opaque * losses.opaque(result.opacity) + sparsity * losses.sparsity(result.opacity)
        # fog in the colour that is behind it fits as well as nothing does
        clear = clear + result.opacity[pixels.empty[picked].to(self.device)].sum() / len(colours)
        if distortion and (spread := result.distortion(2 * self.config.march.radius)) is not None:
            clear = clear + distortion * spread
        self.metrics = {"opacity": float(result.opacity.detach().mean())}
        return {"loss_views": 10 * error.item()}, 10 * error + clear + smooth * sum(bumps)

    def draw_again(self, number: int, rng: torch.Generator, blank: bool) -> None:
        """Fills ``drawn`` for a round; the same on all devices. ``blank``: there is no object to see yet."""
        c, views = self.config, []
        strength = c.refine.strengths[number]
        with self.track_progress(f"drawing views, {self.round_name(number)}", len(self.rig.cameras)) as count:
            for rig in self.rig.groups():
                pictures = None if blank else self.pictures(rig.cameras).to(self.device)
                given = replace(view_text(self.text, rig, c.view_prompts), reference=self.reference)
                views.append(redrawn(self.prior, pictures, rig, given, c.refine, strength, rng))
                count.add(len(rig.cameras))
        self.drawn.copy_(torch.cat(views))

    def distillation_loss(self, step: int) -> tuple[dict[str, float], Tensor]:
        """Score distillation of freshly rendered views, and the regularisers."""
        c, size = self.config, self.size(step)
        scenes = int(jump(c.scenes_per_step, step, self.max_steps))
        rig = sample_multiview(c.camera, self.rng(step, "cameras"), step, n_groups=scenes, height=size, width=size)
        weights = {name: at(getattr(c.loss, name), step, self.max_steps) for name in type(c.loss).model_fields}
        shape = c.guidance_input == "normal"
        normals = shape or weights["orientation"] > 0
        result = self.render(rig.cameras, step, light=rig.light, training=True, normals=normals)
        rgb: Any = result.normal if shape else result.rgb
        latents = self.prior.encode_images(rgb.view(len(rig.cameras), size, size, 3), self.rng(step, "posterior"))
        c2w = rig.cameras.c2w.to(self.device)
        camera = self.prior.camera(c2w) if c.views_per_scene > 1 else None
        poses: Any = {"camera": camera, "n_view": c.views_per_scene, "c2w": c2w}
        told: Any = {"plain_text": self.text[:1], "reference": self.reference}
        given = replace(view_text(self.text, rig, c.view_prompts), **told, **poses)
        distilled, logs = self.distill(latents, self.prior.denoise, given, step, self.rng(step, "distillation"))
        terms = {"distillation": distilled} | self.regularisers(result, weights)
        loss = sum(weights[name] * value for name, value in terms.items())
        self.metrics = {name: float(value) for name, value in logs.items()}
        self.metrics["opacity"] = float(result.opacity.detach().mean())
        return {name: value.item() for name, value in terms.items()}, loss

    def regularisers(self, result: Any, weights: dict[str, float]) -> dict[str, Tensor]:
        """The terms of a ``Render`` whose weight is not zero at this step."""
        terms: dict[str, Callable[[], Tensor]] = {
            "orientation": lambda: losses.orientation(result.orientation, result.opacity),
            "sparsity": lambda: losses.sparsity(result.opacity),
            "opaque": lambda: losses.opaque(result.opacity),
            "z_variance": lambda: losses.z_variance(result.z_variance, result.opacity),
            "eikonal": lambda: losses.eikonal(result.eikonal, len(result.samples)),
        }
        if result.surface is not None:  # else nothing of the mesh is left
            for name in ("normal_consistency", "laplacian"):
                terms[name] = partial(getattr(mesh_losses, name), *result.surface)
        return {name: term() for name, term in terms.items() if weights[name]}

    def render(
        self, cameras: Cameras, step: int, *, training: bool, normals: bool = False, light: Tensor | None = None
    ) -> Render:
        """All pixels of all cameras as rays (B H W, ...); ``light`` (B, 3) is the point light of each view, else it is
        at the camera."""
        rng = self.rng(step, "render")
        shading = self.material.sample_shading(step, training, rng)
        if self.field.rasterised:
            options: Any = {"generator": rng, "training": training, "shading": shading}
            return self.field.render(cameras, self.background, self.material, light=light, **options)
        origins, directions = (rays.reshape(-1, 3).to(self.device) for rays in cameras.rays())
        if light is not None:
            light = light.to(self.device).repeat_interleave(cameras.height * cameras.width, 0)
        return self.render_rays(origins, directions, shading, rng, training=training, normals=normals, light=light)

    def render_rays(
        self,
        origins: Tensor,
        directions: Tensor,
        shading: Shading,
        rng: torch.Generator,
        *,
        training: bool,
        normals: bool = False,
        light: Tensor | None = None,
    ) -> Render:
        """Rays (R, 3) through a volume; ``light`` (R, 3), else it is at the camera."""
        light = origins if light is None else light
        chunk = self.held = self.chunk(normals or shading.lit) if torch.is_grad_enabled() else EVAL_CHUNK
        scene = (self.field, self.background, self.material, self.occupancy, self.config.march)
        options: Any = {"generator": rng, "training": training, "shading": shading, "need_normals": normals}
        result = render(*scene, origins, directions, light=light, chunk=chunk, **options)
        self.held = min(chunk or len(result.samples), len(result.samples))
        return result

    def chunk(self, normals: bool) -> int | None:
        """Samples whose graph is held at a time, as the config says or as the free memory is when it is first asked.

        A resumed run keeps what was chosen: the number decides the last bits of a gradient.
        """
        chunk = self.config.march.chunk
        if chunk == "auto":
            kind = "with normals" if normals else "without normals"
            if kind not in self.chunks:
                scene = (self.field, self.background, self.material, self.config.march)
                self.chunks[kind] = samples_that_fit(
                    free_bytes(self.device), sample_bytes(*scene, normals, self.device)
                )
            chunk = self.chunks[kind]
        return chunk if self.most is None else min(self.most, chunk or self.most)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """A step that does not fit into the memory of a GPU is made once more in smaller chunks.

        Its random numbers are the same again. Raises ConfigError, which says what to set, if that is not enough, and
        at once with several devices, which wait for each other within a step.
        """
        remedy = (
            "set march.chunk=65536 or less, scenes_per_step=1, a smaller size, or prior.dtype=bf16, and go on with "
            + command("--resume", "RUN")
        )
        step = f"step {self.global_step} on {self.device}"
        with explain_out_of_memory(step, remedy):
            try:
                return super().optimizer_step(*args, **kwargs)
            except torch.OutOfMemoryError:
                if self.trainer.world_size > 1:
                    raise
            # after the handler nothing holds the graph any more
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.most = max(1, (self.held or SOME) // 4)
            words = "%s ran out of memory: from now on %d samples are rendered at a time (march.chunk)"
            logger.warning(words, step, self.most)
            self.again = True
            super().optimizer_step(*args, **kwargs)
        self.again = False

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["chunks"] = self.chunks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.chunks |= checkpoint.get("chunks", {})

    @torch.no_grad()
    def pictures(self, cameras: Cameras) -> Tensor:
        """Renders as the result will be seen: (B, H, W, 3) in [0, 1], on the CPU."""
        shape, one_by_one = (1, cameras.height, cameras.width, 3), (cameras.select([k]) for k in range(len(cameras)))
        renders = (self.render(one, self.max_steps, training=False) for one in one_by_one)
        return torch.cat([result.rgb.view(shape).cpu() for result in renders])

    # -- the optimiser ------------------------------------------------------------------------------------------
    def configure_optimizers(self):
        o = self.config.optimizer
        encoding = list(self.field.encoding.parameters())
        geometry = [] if o.geometry is None else self.field.geometry()
        known = {id(p) for p in (*encoding, *geometry)}
        groups = {
            "encoding": encoding,
            "geometry": geometry,
            "networks": [p for p in self.field.parameters() if id(p) not in known],
            "background": list(self.background.parameters()),
            "distillation": list(self.distill.parameters()),
        }
        used = {name: parameters for name, parameters in groups.items() if parameters}
        kind = torch.optim.Adam if o.kind == "adam" else torch.optim.AdamW
        optimizer = kind(
            [{"params": parameters} for parameters in used.values()],
            lr=1.0,
            betas=o.betas,
            eps=o.eps,
            fused=True,
            weight_decay=0.0 if o.kind == "adam" else o.weight_decay,
        )
        return self.scheduled(optimizer, *(getattr(o, name) for name in used))

    def validate(self, step: int, folder: Path) -> None:
        """Four sides of the object as it is now."""
        table = self.config.result.turntable
        size = min(table.height, 128)
        angle = torch.deg2rad(torch.tensor([table.elevation, table.fov]))
        cameras = orbit(4, float(angle[0]), table.distance, float(angle[1]), size, size, azimuth=0.35)
        (folder / "validation").mkdir(exist_ok=True)
        write_png(folder / "validation" / f"{step:06d}.png", grid(self.pictures(cameras), 4))


def jump(schedule: float | dict, step: int, max_steps: int) -> float:
    """A schedule read as steps: the value of the last key that has been reached."""
    if not isinstance(schedule, dict):
        return schedule
    reached = [key for key, place in places(schedule, max_steps).items() if place <= step]
    return schedule[reached[-1] if reached else next(iter(schedule))]


def places(schedule: dict, max_steps: int) -> dict[int | str, float]:
    """Where the keys of a schedule are, in steps."""
    return {k: float(k[:-1]) / 100 * max_steps if isinstance(k, str) else k for k in schedule}
