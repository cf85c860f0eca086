"""Peak memory of a generate run, measured by its steps on torch's meta device, which has shapes but no values."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import turntable
from threedgen.guidance.attention.joined import CAMERA_DIM, has_added_conditioning, split_text
from threedgen.guidance.prior import Prior
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.meta_networks import MetaNetworks, meta_networks
from threedgen.representations.base import Render
from threedgen.representations.volume.render import sample_bytes, samples_that_fit
from threedgen.run.dtypes import compute_dtype
from threedgen.run.memory import GPUS, MAX_REUSED_HEAP, PeakMemory, free_bytes

from .options import GenerateConfig
from .system import GenerateSystem, key_steps, piecewise_constant

META = torch.device("meta")
TOKENS = 77
LIBRARIES = 0.5e9  # resident bytes of a process on Linux after it has imported the libraries of a run
FIRST_STEPS = 50  # number of steps after a change among which the first with a lit (shaded) render is measured


class MetaPrior(Prior):
    """Prior for memory measurements. Its networks have shapes but no values (meta device). It has no text encoder."""

    def __init__(self, networks: MetaNetworks, config: GenerateConfig, device: torch.device) -> None:
        self.meta, self.unet, self.schedule, self.device = networks, networks.unet, Schedule.scaled_linear(), META
        self.factor, self.guide_views, self.views = networks.factor, False, config.views_per_scene
        self.tokenizer: Any = None
        self.image_size = config.prior.image_size or self.unet.config["sample_size"] * self.factor
        half = compute_dtype(config.prior.dtype, device) if device.type in GPUS else torch.float32
        self.half, self.dtype = half, torch.float32
        self.cuda_graph = config.prior.cuda_graph and half != torch.float32 and config.prior.graphs_unet
        self.graph_memory = torch.empty(0, device=META)
        for network in self.networks.values():
            network.requires_grad_(False)
        if not config.prior.alters_weights:
            torch.nn.Module.to(self.unet, half)
            self.dtype = half

    def cast_networks(self, lora: bool = False) -> None:
        self.dtype, self.cuda_graph = self.half, self.cuda_graph and not lora
        vae: Any = self.meta.vae
        encoder = () if vae is None else (vae.encoder, vae.quant_conv)
        for network in (self.unet, self.meta.image_encoder, *encoder):
            if network is not None:
                torch.nn.Module.to(network, self.dtype)
        if vae is not None:
            vae.decoder = vae.post_quant_conv = None

    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        images = self.resized(rgb).to(self.dtype)
        return images.float() if self.meta.vae is None else self.meta.vae.encode(images).latent_dist.mean.float()

    def record_graph(self, images: int) -> None:
        """If the run uses CUDA graphs, add to the simulated memory that of a graph of the UNet for `images` latents."""
        self.graph_memory = torch.empty(0, device=META)
        if self.cuda_graph:
            z = torch.empty(images, *self.latent_shape, device=META)
            with PeakMemory() as memory, FusedAttention(), torch.no_grad():
                self.network(z, torch.empty(images, device=META), z)
            self.graph_memory = torch.empty(memory.peak // 4, device=META)

    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        if self.graph_memory.numel() and not torch.is_grad_enabled():
            return torch.empty_like(x)
        c, images, x = self.unet.config, len(x), x.to(self.dtype)
        if self.meta.image_encoder is not None:  # the image is one more view of each object
            x, t = torch.cat([x, x[: images // self.views]]), t[:1]
        text = x.new_empty(
            len(x), TOKENS + has_added_conditioning(self.unet), c["encoder_hid_dim"] or c["cross_attention_dim"]
        )
        labels = None if self.unet.class_embedding is None else x.new_empty(len(x), CAMERA_DIM)
        more = x.new_empty(len(x), c["in_channels"] - x.shape[1], *x.shape[2:])
        words, added = split_text(self.unet, text, *(self.factor * side for side in x.shape[2:]))
        out = self.unet(torch.cat([x, more], 1), t, words, class_labels=labels, **added).sample
        return out[:images, : x.shape[1]].float()

    def decode_latents(self, z: Tensor) -> Tensor:
        return z if self.meta.vae is None else self.meta.vae.decode(z.float()).sample

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        every: dict[str, torch.nn.Module | None] = {
            "unet": self.unet,
            "vae": self.meta.vae,
            "image_encoder": self.meta.image_encoder,
        }
        return {name: network for name, network in every.items() if network is not None}

    max_tokens = TOKENS
    text_shape = (1, 1)

    def to(self, device: torch.device | str) -> Self:
        return self

    def encode_prompt(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), *self.text_shape)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.image_size // self.factor
        return 3 if self.meta.vae is None else self.unet.config["out_channels"], side, side


class FusedAttention(TorchFunctionMode):
    """Context in which attention takes as much memory as with fused kernels, which store no attention weights."""

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[Tensor, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        if func is F.scaled_dot_product_attention:
            return _Attention.apply(*args[:3])
        return func(*args, **(kwargs or {}))


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


class MeasuredSystem(GenerateSystem):
    """Training module on the meta device, which computes no values, to estimate the memory of a step from tensor sizes.

    Without values no empty space can be skipped, so every ray has `fraction` times `march.samples` samples.
    """

    def __init__(self, config: GenerateConfig, prior: MetaPrior, fraction: float = 1.0) -> None:
        samples = max(1, round(config.march.samples * fraction))
        march = config.march.model_copy(update={"samples": samples, "alpha_threshold": 0.0, "early_stop": 0.0})
        config = config.model_copy(update={"march": march, "occupancy": None})
        super().__init__(config, prior, torch.zeros(6, 1, 1))
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
        """If `march.chunk` is "auto", compute how many samples of rays a render may process at once in `free` bytes.

        The memory per sample is measured by tracing a render without values. Call this while the system is on the CPU.
        """
        scene = self.field, self.background, self.material, self.config.march
        for normals, kind in ((False, "without normals"), (True, "with normals")):
            if (
                self.chunks.chunk == "auto"
                and not self.field.rasterised
                and (self.config.field.has_normals or not normals)
            ):
                self.chunks.measured[kind] = samples_that_fit(int(free), sample_bytes(*scene, normals))

    def peak(self, run: Callable[[], Tensor | None]) -> int:
        """Return the peak memory in bytes of the function `run` and, if it returns a loss, of its backward pass."""
        with PeakMemory() as memory, FusedAttention():
            trained = list(self.parameters())
            memory.add(
                self.measured_prior.graph_memory,
                *trained,
                *self.buffers(),
                *(t for n in self.networks for t in (*n.parameters(), *n.buffers())),
            )
            moments = [torch.empty_like(p) for p in trained for _ in range(2)]  # of Adam
            loss = run()
            if loss is not None:
                loss.backward()
            del moments
            for parameter in trained:
                parameter.grad = None
        self.launches = memory.launches
        return memory.peak


def memory(
    config: GenerateConfig,
    device: torch.device,
    free: float | None = None,
    fraction: float = 1.0,
    launches: dict[str, int] | None = None,
) -> dict[str, float]:
    """Measure the peak memory of a run, without its stages (earlier runs).

    Args:
        device: device of the run; it decides the precision of the prior.
        free: free bytes before the run, for `march.chunk: auto`; None: bytes that are free on `device` now.
        fraction: samples per ray as a fraction of `march.samples`; 1 is the worst case.
        launches: dict that receives the number of kernel launches of each kind of step, by the names of the result.
            Launches in a CUDA graph and in the optimizer do not count. None: they are not counted.

    Returns bytes by phase, such as {"step at 64 px": 5e9}.
    """
    networks = meta_networks(config.prior.weights, config.prior.parts)
    prior = MetaPrior(networks, config, device)
    found = {"loading and preview": float(preview_bytes(prior, config.views_per_scene))}
    system = MeasuredSystem(config, prior, fraction)
    weights = sum(t.numel() * t.element_size() for n in system.networks for t in n.parameters())
    system.choose_chunks((free_bytes(device) if free is None else free) - weights)
    system.to(META)
    for size, step in distinct_steps(system):
        prior.record_graph(2 * len(system.training_rig(step).cameras))
        found[f"step at {size} px"] = system.peak(lambda: system.distillation_loss(step).loss)  # noqa: B023
        if launches is not None:
            launches[f"step at {size} px"] = system.launches
    if (config.warm_steps or config.round_steps) and not system.field.rasterised:
        found["fit to views"] = system.peak(lambda: system.fit_loss(config.fit.rays))
        if launches is not None:
            launches["fit to views"] = system.launches
    found["final images"] = system.peak(system.image)
    if config.round_steps:  # the decoder is kept
        found = {name: size + 4.0 * (networks.parameters - networks.kept) for name, size in found.items()}
    if device.type == "cpu":
        found = {name: size + LIBRARIES + MAX_REUSED_HEAP for name, size in found.items()}
    return found


def preview_bytes(prior: MetaPrior, views: int) -> int:
    """Return the peak memory of loading the prior and sampling `views` images, in bytes."""
    known = [t for network in prior.networks.values() for t in network.parameters()]
    text_encoder = max(0, prior.meta.parameters - sum(t.numel() for t in known))
    with PeakMemory() as tracker, FusedAttention(), torch.no_grad():
        tracker.add(*known)
        z = torch.empty(views, *prior.latent_shape, device=META)
        prior.network(torch.cat([z, z]), torch.empty(2 * views, device=META), z)
        prior.decode_latents(z)
    if prior.meta.vae is None:  # T5 is freed before the UNet is loaded
        return max(tracker.peak, prior.half.itemsize * text_encoder)
    return tracker.peak + 4 * text_encoder


def distinct_steps(system: GenerateSystem) -> Iterator[tuple[int, int]]:
    """Yield the distillation steps to measure: one for each combination of render size and number of scenes.

    Yields pairs (render size in pixels, step). The step is the first with a lit (shaded) render among the FIRST_STEPS
    steps after the change of size or number, because lit renders take more memory. Without lit renders it is the step
    of the change.
    """
    config, end = system.config, system.max_steps
    schedules = [
        value for value in (config.size, config.scenes_per_step, config.loss.orientation) if isinstance(value, dict)
    ]
    changes = [math.ceil(place) for schedule in schedules for place in key_steps(schedule, end).values()]
    distilled, seen = range(config.warm_steps, config.warm_steps + config.distilled_steps), set()
    for first in sorted({*distilled[:1], *(change for change in changes if change in distilled)}):
        kind = system.size(first), piecewise_constant(config.scenes_per_step, first, end)
        after = range(first, min(first + FIRST_STEPS, distilled.stop))
        lit = (s for s in after if system.material.sample_shading(s, True, system.rng(s, "render")).lit)
        if kind not in seen:
            seen.add(kind)
            yield int(kind[0]), next(lit, first)
