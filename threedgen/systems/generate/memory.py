"""Peak memory of a generate run, measured by its steps on torch's meta device, which has shapes but no values."""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import turntable
from threedgen.guidance.weights.meta_networks import meta_networks
from threedgen.representations.backends import choose
from threedgen.representations.base import Render
from threedgen.representations.field.mlp import MLP
from threedgen.representations.volume.render import sample_bytes, samples_that_fit
from threedgen.run.memory import free_bytes, process_bytes
from threedgen.systems.memory import branches
from threedgen.systems.meta_prior import META, MetaPrior, measure, measure_sampling, weights

from .options import GenerateConfig
from .system import GenerateSystem, key_steps, piecewise_constant

FIRST_STEPS = 50  # number of steps after a change in which the first step with a lit (shaded) render is searched


class MeasuredSystem(GenerateSystem):
    """Variant of `GenerateSystem`, the LightningModule of text to 3D, that measures the memory of its steps.

    It is on the meta device, where tensors have shapes but no values. Without values, empty space is unknown, so every
    ray has the maximum number of samples, `march.samples`. `device` is the device of the run. If a run on this device
    computes an MLP by the Triton kernel, the memory of the kernel is measured, else that of torch's layers.
    """

    def __init__(self, config: GenerateConfig, prior: MetaPrior, device: torch.device) -> None:
        march = config.march.model_copy(update={"alpha_threshold": 0.0, "early_stop": 0.0})
        config = config.model_copy(update={"march": march, "occupancy": None})
        super().__init__(config, prior, torch.zeros(6 + config.empty_prompt, 1, 1))
        for part in self.modules():
            if isinstance(part, MLP):
                part.fusable &= part.backend in ("auto", "triton") and choose("auto", device) == "triton"
        self.to(META)
        self.networks, self.measured_prior, self.launches = list(prior.networks.values()), prior, 0

    def render(
        self, cameras: Cameras, step: int, *, training: bool, normals: bool = False, light: Tensor | None = None
    ) -> Render:
        if not self.field.rasterised:
            return super().render(cameras, step, training=training, normals=normals, light=light)
        rays = len(cameras) * cameras.height * cameras.width  # the rasteriser needs values: only its images count
        colours = torch.empty(rays, 3, device=META, requires_grad=True)
        grey = colours[:, :1]
        return Render(colours, colours, colours, grey, depth=grey, z_variance=grey, normal=colours)

    def fit_loss(self, rays: int) -> Tensor:
        shading = self.material.sample_shading(self.max_steps, False)
        parts = torch.zeros(rays, 3, device=META), torch.zeros(rays, 3, device=META), shading
        return self.render_rays(*parts, self.rng(0, "pixels"), training=True).rgb.sum()

    @torch.no_grad()
    def image(self) -> None:
        self.render(turntable(self.config.result.turntable, 1), self.max_steps, training=False)

    def choose_chunks(self, free: float) -> None:
        """Compute the chunk sizes for `free` bytes of memory if the option `march.chunk` is "auto"; else do nothing.

        A chunk size is the number of ray samples that a render processes at a time; they have to fit this memory. There
        is one for renders without normals and, if the object has normals, a second one for renders with normals. They
        are stored in the dict `self.chunks.measured` with the keys "without normals" and "with normals". For rasterised
        objects (meshes and 3D Gaussians), which have no ray samples, nothing is stored.
        """
        scene = self.field, self.background, self.material, self.config.march
        for normals, kind in ((False, "without normals"), (True, "with normals")):
            if (
                self.chunks.chunk == "auto"
                and not self.field.rasterised
                and (self.config.field.has_normals or not normals)
            ):
                self.chunks.measured[kind] = samples_that_fit(int(free), sample_bytes(*scene, normals, META))

    def peak(self, run: Callable[[], Tensor | None]) -> int:
        """Return the peak memory in bytes of the function `run` and, if it returns a loss, of its backward pass."""
        kept = [self.measured_prior.graph_memory, *self.buffers(), *weights(*self.networks)]
        memory = measure(list(self.parameters()), kept, run)
        self.launches = memory.launches
        return memory.peak


def memory(
    config: GenerateConfig, device: torch.device, free: float | None = None, launches: dict[str, int] | None = None
) -> dict[str, float]:
    """Measure the peak memory of a run, without its stages (earlier runs).

    Args:
        config: config of the run.
        device: device of the run; it decides the precision of the prior and the kernels of the MLPs.
        free: bytes that are free before the run; None: bytes that are free on `device` now. They matter only if the
            option `march.chunk` is "auto": a render then processes as many ray samples at a time as fit this memory.
        launches: dict that receives the number of kernel launches of a training step by phase, for the phases "step at
            N px" and "fit to views" (see Returns). Launches in a CUDA graph and in the optimizer do not count. None: no
            launches are counted.

    Returns:
        Peak memory in bytes by phase of the run: "loading and preview", "step at N px" (distillation step) for each
        render size N, such as "step at 64 px", "fit to views" (only for a ray-marched object that is fitted to views),
        and "final images".
    """
    networks = meta_networks(config.prior.weights, config.prior.parts)
    prior = MetaPrior(networks, config.prior, device, config.views_per_scene, branches(config.prior))
    found = {"loading and preview": float(measure_sampling(prior).peak)}
    system = MeasuredSystem(config, prior, device)
    used = sum(t.numel() * t.element_size() for t in weights(*system.networks))
    system.choose_chunks((free_bytes(device) if free is None else free) - used)
    for size, step in distinct_steps(system):
        prior.measure_graph_memory(2 * len(system.training_rig(step).cameras))
        phase, peak = f"step at {size} px", system.peak(lambda: system.distillation_loss(step).loss)  # noqa: B023
        found[phase] = max(found.get(phase, 0.0), peak)
        if launches is not None:
            launches[phase] = max(launches.get(phase, 0), system.launches)
    if (config.warm_steps or config.round_steps) and not system.field.rasterised:
        found["fit to views"] = system.peak(lambda: system.fit_loss(config.fit.rays))
        if launches is not None:
            launches["fit to views"] = system.launches
    found["final images"] = system.peak(system.image)
    if config.round_steps:  # the decoder is kept
        found = {name: size + 4.0 * (networks.parameters - networks.kept) for name, size in found.items()}
    return {name: size + process_bytes(device) for name, size in found.items()}


def distinct_steps(system: GenerateSystem) -> Iterator[tuple[int, int]]:
    """Yield the distillation steps to measure, as pairs (render size in pixels, step): one step for each kind of step.

    Steps are of the same kind, and need about the same memory, if three properties are equal: the render size, the
    number of scenes (groups of views), and whether normals are needed. Normals are needed for a shaded render, which
    the material can choose at random, and for the orientation loss (penalty on normals that face away from the camera).

    To save time, not all steps are examined. The steps are divided where an option behind these properties changes or
    where shading begins. Of each part, only the first 50 steps (FIRST_STEPS) and the last are examined, and one is
    yielded: the first that needs normals, or else the first of all. It is left out if its kind was yielded before.
    """
    config, end = system.config, system.max_steps
    schedules = [
        value for value in (config.size, config.scenes_per_step, config.loss.orientation) if isinstance(value, dict)
    ]
    changes = [math.ceil(place) for schedule in schedules for place in key_steps(schedule, end).values()]
    changes.append(getattr(config.material, "ambient_only_steps", 0))
    distilled, seen = range(config.warm_steps, config.warm_steps + config.distilled_steps), set()
    starts = sorted({*distilled[:1], *(change for change in changes if change in distilled)})

    def needs_normals(step: int) -> bool:
        lit = system.material.sample_shading(step, True, system.rng(step, "render")).lit
        return lit or system.loss_weights(step)["orientation"] > 0

    for first, following in pairwise([*starts, distilled.stop]):
        steps = [*range(first, min(first + FIRST_STEPS, following)), following - 1]
        step = next(filter(needs_normals, steps), first)
        kind = system.size(step), piecewise_constant(config.scenes_per_step, step, end), needs_normals(step)
        if kind not in seen:
            seen.add(kind)
            yield int(kind[0]), step
