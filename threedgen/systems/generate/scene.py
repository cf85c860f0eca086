"""Base LightningModule of text to 3D: has the object and the prior (diffusion model), and renders the object.

Renders are computed in chunks of ray samples that fit the memory.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property

import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from threedgen.config import ConfigError, registry
from threedgen.config.command import command
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import Rig
from threedgen.guidance.guidance import Condition, Features
from threedgen.guidance.matte import Matte
from threedgen.guidance.prior import Prior
from threedgen.guidance.priors.view_prompts import view_text
from threedgen.representations.base import Render, Representation
from threedgen.representations.march import step_size
from threedgen.representations.shading import Material, Shading
from threedgen.representations.volume.render import OccupancyGrid, render, sample_bytes, samples_that_fit
from threedgen.run.memory import explain_out_of_memory, free_bytes, to_device
from threedgen.run.seeding import generator
from threedgen.train.checkpoint_file import CheckpointData
from threedgen.train.system import System

from .options import GenerateConfig

logger = logging.getLogger(__name__)

OOM_FALLBACK_SAMPLES = 1 << 18
"""Chunk size assumed for a render that ran out of memory before its real chunk size was known."""
OOM_FACTOR = 4  # divisor of the chunk size after a step that ran out of memory


class RenderChunks:
    """Chunk size of training renders: how many samples of the rays are rendered at a time, to limit the memory.

    `chunk` is the option `march.chunk`: a number of samples, None (no limit), or "auto" (computed from the free
    memory).

    Attributes:
        measured: chunk sizes computed for "auto", with the keys "with normals" and "without normals" for renders that
            do or do not compute normals; saved in checkpoints.
        limit: maximum chunk size in samples, set when a step ran out of memory; None before.
        last: number of samples in the largest chunk of the last render, or None before the first render.
    """

    def __init__(self, chunk: int | str | None) -> None:
        self.chunk = chunk
        # saved because the chunk size determines the order of summation, and so the last bits of a gradient
        self.measured: dict[str, int] = {}
        self.limit: int | None = None
        self.last: int | None = None

    def chunk_size(self, normals: bool, device: torch.device, sample_bytes: Callable[[], float]) -> int | None:
        """Return how many samples of its rays a training render processes at a time; None: all samples.

        The result is the option `march.chunk`, a number or None. If the option is "auto", the result is computed from
        the free memory, once for renders with normals and once for those without, and stays the same. After a step ran
        out of memory (see `shrink`), the result is reduced to the attribute `limit` if it is larger or None.

        Args:
            normals: whether the render also computes normals, which need more memory.
            device: device of the render, whose free memory counts.
            sample_bytes: function that returns the bytes that each sample adds to the autograd graph of this render. It
                is called only when the result is computed.
        """
        chunk = self.chunk
        if isinstance(chunk, str):  # auto
            kind = "with normals" if normals else "without normals"
            if kind not in self.measured:
                self.measured[kind] = samples_that_fit(free_bytes(device), sample_bytes())
            chunk = self.measured[kind]
        return chunk if self.limit is None else min(self.limit, chunk or self.limit)

    def shrink(self) -> int:
        """Reduce the number of ray samples that later training renders process at a time, and return the new maximum.

        The maximum, the attribute `limit`, is set to a quarter of the number in the last render. `Scene` calls this
        method after a step ran out of memory, before it repeats the step.
        """
        self.limit = max(1, (self.last or OOM_FALLBACK_SAMPLES) // OOM_FACTOR)
        return self.limit


EVAL_CHUNK = 1 << 20  # ray samples per chunk of renders without gradients
WITHOUT_VARIANCE = {"distillation", "orientation", "sparsity", "opaque", "eikonal"}
"""Names of the loss terms that do not use the depth variance of a render."""
NEW_RUN = "or start a new run with scenes_per_step=1, a smaller size, or prior.dtype=bf16"  # a resumed run keeps them


class Scene(System):
    """Base class of the LightningModules that optimise one object for one prompt. It has no training step.

    Attributes:
        field: representation that is optimised, such as a hash grid or a mesh.
        occupancy: grid of the cells with density, so that rays skip empty space; None for meshes or if disabled.
        text_embeddings: (2, L, D) embeddings, with L rows of D numbers each, of prompt and negative prompt. With the
            option `view_prompts` (6, L, D): these two, then the prompts of the side, front, back and overhead view,
            such as "PROMPT, side view".
        prior: frozen diffusion model; not a registered submodule, so checkpoints do not contain it.
        matte: frozen network that predicts the opacity of the object in images; None: not used. Not a registered
            submodule.
        reference: features of the image on which the prior is conditioned, {name: tensor (1, ...)}, computed in
            `setup`; None before that, or if the prior has no such image.
        from_nothing: True for a new object, False if an earlier run or a point cloud file initialised the object.
        old_prompt_embedding: with the option `edit`, which changes the object of an earlier run to fit a new prompt:
            embedding (1, L, D) of the prompt of the earlier run. None without this option.
        chunks: how many samples of its rays a training render processes at a time, to limit the memory.
    """

    field: Representation
    background: nn.Module
    material: Material
    occupancy: OccupancyGrid | None
    prior: Prior
    matte: Matte | None
    text_embeddings: Tensor

    def __init__(self, config: GenerateConfig, prior: Prior, text_embeddings: Tensor) -> None:
        super().__init__(config)
        self.config = config
        init_rng = generator(config.seed, 0, "field")
        self.field = registry.build("representation", config.field, generator=init_rng)
        self.background = registry.build("background", config.background, generator=init_rng)
        self.material = registry.build("material", config.material)
        self.occupancy, march = None, config.march
        if config.occupancy is not None and not self.field.rasterised:
            self.occupancy = OccupancyGrid(config.occupancy, march.radius, step_size(march))
        self.register_buffer("text_embeddings", text_embeddings, persistent=False)
        matte = None if config.fit.matte is None else Matte.load(config.fit.matte)
        self.set_unregistered(prior=prior, matte=matte)
        self.reference: Features | None = None
        self.from_nothing = True
        self.old_prompt_embedding: Tensor | None = None
        self.chunks = RenderChunks(march.chunk)
        self.repeating = False  # True while a step is repeated after it ran out of memory

    def setup(self, stage: str) -> None:
        if self.field.variable_shapes and self.trainer.world_size > 1:
            problem = f"field.name={self.config.field.name} changes its parameters, which several devices cannot share"
            raise ConfigError(f"{problem}. Set trainer.devices=1", "trainer.devices", self.config.trainer.devices)
        self.prior.to(self.device)
        if self.matte is not None:
            self.matte.to(self.device)
        self.reference = self.prior.reference(self.text_embeddings[:1].to(self.device))

    def condition(self, rig: Rig, background: Tensor | None = None) -> Condition:
        """Return the condition of the prior (text, cameras, reference image) for the views of the cameras in `rig`.

        `background` (R, 3) in [0, 1] is the colour behind the object at each of the R pixels of the rendered views.
        Only priors that adapt their reference image to the renders, such as ImageDream, use it: they show the object of
        the reference image on plain grey. The grey level is the mean of `background`; None: 0.5.
        """
        n_view, c2w = self.config.views_per_scene, to_device(rig.cameras.c2w, self.device)
        reference = self.reference
        if self.prior.composites_reference and background is not None:
            reference = self.prior.reference(self.text_embeddings[:1], background.detach().mean())
        return replace(
            view_text(self.text_embeddings, rig, self.config.view_prompts),
            camera=self.prior.camera(c2w) if n_view > 1 else None,
            n_view=n_view,
            c2w=c2w,
            plain_text=self.text_embeddings[:1],
            reference=reference,
            single_view_uncond=self.prior.guide_views and n_view > 1,
        )

    # --- rendering

    def render(
        self, cameras: Cameras, step: int, *, training: bool, normals: bool = False, light: Tensor | None = None
    ) -> Render:
        """Render all pixels of B cameras with H x W pixels.

        The tensors of the result, such as rgb (R, 3), opacity (R, 1) and depth (R, 1), have R = B H W rows, ordered by
        camera, row and column of the image.

        Args:
            step: step of the run; it seeds the random numbers and selects the shading.
            training: True: random shading, background and shift of the ray samples. False: no random numbers.
            normals: compute normals even if the shading does not need them.
            light: (B, 3) world position of the point light of each view; None: at the camera.
        """
        rng = self.rng(step, "render")
        shading = self.material.sample_shading(step, training, rng)
        if self.field.rasterised:
            parts = (cameras, self.background, self.material)
            return self.field.render(*parts, generator=rng, training=training, light=light, shading=shading)
        origins, directions = (rays.reshape(-1, 3) for rays in cameras.to(self.device).rays())
        if light is not None:
            light = to_device(light, self.device).repeat_interleave(cameras.height * cameras.width, 0)
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
        """Render R rays by marching through the field.

        The result has, among others, rgb (R, 3) in [0, 1], opacity (R, 1), and depth (R, 1), the sum of weight *
        distance over the samples of a ray.

        Args:
            origins, directions: (R, 3) in world coordinates; directions have unit length.
            shading: shading mode and intensities of the lights.
            rng: generator of the random numbers.
            training: True: random background, and random shift of the samples along the rays. False: neither.
            normals: compute normals even if the shading does not need them.
            light: (R, 3) world position of the point light of each ray; None: at the ray origin.
        """
        chunk = self.chunks.last = self.chunk(normals or shading.lit) if torch.is_grad_enabled() else EVAL_CHUNK
        result = render(
            self.field,
            self.background,
            self.material,
            self.occupancy,
            self.config.march,
            origins,
            directions,
            generator=rng,
            training=training,
            light=origins if light is None else light,
            need_normals=normals,
            shading=shading,
            chunk=chunk,
            need_variance=not training or self.needs_variance,
        )
        self.chunks.last = min(chunk or result.n_samples, result.n_samples)
        return result

    @cached_property
    def needs_variance(self) -> bool:
        """Whether a loss with nonzero weight may use the variance of the depth along a ray.

        The losses "distillation", "orientation", "sparsity", "opaque" and "eikonal" do not use it (WITHOUT_VARIANCE).
        All others ("z_variance", and losses and training steps of plug-ins) may use it.
        """
        loss = self.config.loss
        if self.config.system.name != "generate":
            return True
        return any(getattr(loss, name) != 0 for name in type(loss).model_fields if name not in WITHOUT_VARIANCE)

    def chunk(self, normals: bool) -> int | None:
        """Return how many samples of its rays a training render processes at a time; None: all.

        `normals`: whether the render also computes surface normals, which need more memory per sample.
        """
        scene = (self.field, self.background, self.material, self.config.march)
        return self.chunks.chunk_size(normals, self.device, lambda: sample_bytes(*scene, normals, self.device))

    @torch.no_grad()
    def images(self, cameras: Cameras) -> Tensor:
        """Render images (B, H, W, 3) in [0, 1] for B cameras, shaded as at the end of the run, without random numbers.

        The result is on the CPU, whatever the device of the object.
        """
        shape, one_by_one = (1, cameras.height, cameras.width, 3), (cameras.select([k]) for k in range(len(cameras)))
        renders = (self.render(one, self.max_steps, training=False) for one in one_by_one)
        return torch.cat([result.rgb.view(shape).cpu() for result in renders])

    def before_step(self, step: int) -> None:
        """Set scheduled options of the field to their values at `step`, and update the occupancy grid.

        The grid marks the cells with density. A step that is repeated after it ran out of memory does not update it
        again.
        """
        self.field.before_step(step, self.max_steps)
        if self.occupancy is not None and not self.repeating:
            self.occupancy.update(self.field.density, step, generator(self.seed, step, "occupancy"))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        """Take an optimizer step. If memory runs out, repeat the step once with smaller chunks and the same seeds.

        With several devices the step is not repeated, because the other devices are still waiting in the first attempt.
        Raises OutOfMemory, whose message names options to change, if memory runs out again or with several devices.
        """
        step = self.global_step
        name = f"step {step} on {self.device}"
        remedy = f"go on with {command('--resume', 'RUN', 'march.chunk=65536')} or less, {NEW_RUN}"
        with explain_out_of_memory(name, remedy):
            try:
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
                out_of_memory = False
            except torch.OutOfMemoryError:
                if self.trainer.world_size > 1:
                    raise
                out_of_memory = True
            if out_of_memory:  # not in the except block, where the traceback keeps the autograd graph in memory
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                limit = self.chunks.shrink()
                logger.warning("%s ran out of memory: from now on march.chunk=%d samples at a time", name, limit)
                self.repeating = True
                super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
                self.repeating = False
        self.field.after_step(step, optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer)

    def clear_optimizer_state(self) -> None:
        optimizer = self.optimizers()
        if isinstance(optimizer, LightningOptimizer):
            optimizer.optimizer.state.clear()

    def resize(self, state: dict[str, Tensor]) -> None:
        self.field.resize(part_of(state, "field"))

    def on_save_checkpoint(self, checkpoint: CheckpointData) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["chunks"] = self.chunks.measured

    def on_load_checkpoint(self, checkpoint: CheckpointData) -> None:
        super().on_load_checkpoint(checkpoint)
        self.chunks.measured |= checkpoint.get("chunks", {})
        self.field.before_step(max(0, checkpoint["global_step"] - 1), self.max_steps)  # if no step follows


def part_of(state: dict[str, Tensor], name: str) -> dict[str, Tensor]:
    """Return the tensors of the submodule `name` from a state dict. The prefix "NAME." is removed from the keys."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
