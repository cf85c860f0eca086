"""What --dry-run says: which weights, on what, how much memory and time, from shapes and some short measurements.

Counted, on networks without numbers: parameters, operations and the graph of the prior. Measured here: the rate of
matrix products, samples of the field, and what one of them takes. Networks reach only a part of that rate, so a time is
what is possible at best; the field is as dense as at the beginning, and its share shrinks when it has become an object.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from threedgen.geometry.cameras import sample_multiview
from threedgen.guidance import diffusion
from threedgen.guidance.dtypes import compute_dtype
from threedgen.guidance.multiview.joined import make_multiview, predict
from threedgen.guidance.weights.meta_networks import Outline, outline
from threedgen.representations.volume.render import BACKWARD, sample_bytes
from threedgen.run.memory import free_bytes, graph_bytes
from threedgen.run.prompts import tidy
from threedgen.run.seeding import generator
from threedgen.systems.generate.options import GenerateConfig
from threedgen.train.loop import set_threads
from threedgen.train.task import device as device_name

from .system import GenerateSystem, jump
from .task import check_backends

STATE = 4
"""Copies of a number that is learnt: itself, its gradient and Adam's two moments."""
TOKENS = 77
GLANCE = 16
"""Pixels of the renders from which the number of samples is extrapolated."""


@dataclass(frozen=True)
class Stage:
    """The steps first ... last, which draw `images` of `size` pixels."""

    first: int
    last: int
    size: int
    images: int

    def __str__(self) -> str:
        return f"steps {self.first} to {self.last}: {self.images} views of {self.size} px"

    @property
    def steps(self) -> int:
        return self.last - self.first + 1


def plan(config: GenerateConfig) -> str:
    """The text of a dry run, its stages first. Raises ConfigError for what would stop the run at its beginning."""
    parts = [f"stage {name}\n{_plan(config.stage(name))}" for name in config.stages]
    last = _plan(config)
    return "\n".join([*parts, f"then\n{last}" if parts else last, "nothing was run or written"])


def _plan(config: GenerateConfig) -> str:
    """The text of one run."""
    prompt = tidy(config.prompt)
    set_threads(config.threads)
    check_backends(config)
    weights = config.prior.describe(fetch=False)
    device = torch.device(device_name(config.trainer.accelerator))
    prior = outline(config.prior.weights, config.prior.parts)
    size = config.prior.image_size or prior.unet.config["sample_size"] * prior.factor
    dtype = compute_dtype(config.prior.dtype, device)

    system = _system(config, prior.unet).to(device)
    normals = config.material.name != "none" or config.judged == "normal" or _ever(config.loss.orientation)
    parts = (system.field, system.background, system.material, config.march)
    rays = not system.field.rasterised  # a mesh is rasterised, whose share is small
    each = sample_bytes(*parts, normals, device) if rays else 0.0
    seconds_each = sample_seconds(system, normals) if rays else 0.0
    rates = matmul_rate(device, dtype), matmul_rate(device, step_dtype(config.trainer.precision, device))
    stages = stages_of(config)
    samples = [samples_of(system, stage) if rays else 0 for stage in stages]
    calls = system.distill.calls + 2 * config.view_prompts.perp_neg
    seconds: float = 0
    for stage, many in zip(stages, samples, strict=True):
        to_unet, to_vae = operations(prior, size, stage.images, config.joined)
        seconds += stage.steps * (calls / 2 * to_unet / rates[0] + to_vae / rates[1] + many * seconds_each)

    chunk, largest = system.chunk(normals), max(samples, default=0)
    held = largest if chunk is None else min(chunk, largest)
    images = max((stage.images for stage in stages), default=0)
    learning = sum(1 for _ in system.distill.parameters()) > 0
    bytes_of = {
        "prior": 4.0 * prior.kept,
        "field and optimiser": STATE * sum(p.numel() * p.element_size() for p in system.parameters()),
        **({"graph of the VAE": images * vae_bytes(prior.vae, size)} if prior.vae else {}),
        **({"graph of the UNet": images * unet_bytes(prior, size)} if learning else {}),
        "graph of the render": BACKWARD * each * held,
    }
    total, free = max(4.0 * prior.parameters, sum(bytes_of.values())), free_bytes(device)
    passes = "one pass" if held == largest else f"two passes, {chunk} samples at a time"
    lines = [
        f"would generate: {prompt}",
        f"weights: {weights}",
        f"prior: {prior.parameters / 1e6:.1f} million parameters, pictures of {size} px, "
        + str(dtype).removeprefix("torch."),
        f"device: {_name(device)}, {free / 1e9:.1f} GB free",
        *(
            f"{stage}, {many:,} samples as the field begins" if rays else str(stage)
            for stage, many in zip(stages, samples, strict=True)
        ),
        f"render: {passes}; {each:.0f} bytes of graph for a sample" if rays else "render: a mesh, not counted",
        f"memory: about {total / 1e9:.1f} GB ({', '.join(f'{k} {v / 1e9:.1f}' for k, v in bytes_of.items())})",
        f"time: {_duration(seconds)} at best, with {rates[0] / 1e12:.2f} TFLOP/s in the UNet, {rates[1] / 1e12:.2f} in "
        "the VAE",
    ]
    if total > free:
        lines.append("memory: more than is free; march.chunk makes the render smaller, groups and size the rest")
    return "\n".join(lines)


def stages_of(config: GenerateConfig) -> list[Stage]:
    """The distillation steps, cut where size or number of pictures change."""
    first, end = config.warm_start.steps, config.trainer.max_steps

    def kind(step: int) -> tuple[int, int]:
        return int(jump(config.size, step, end)), int(jump(config.groups, step, end)) * config.camera.n_view

    runs = [(made, list(steps)) for made, steps in groupby(range(first, end), kind)]
    return [Stage(steps[0], steps[-1], size, images) for (size, images), steps in runs]


# --- the prior ----------------------------------------------------------------------------------------------------


def operations(prior: Outline, size: int, images: int, n_view: int) -> tuple[float, float]:
    """Floating-point operations of a step: UNet and draft on both branches of guidance, the VAE's encoder twice.

    On the meta device. The way back ends at the pictures and not at the weights, so it costs as much as the way there.
    """
    unet, vae, draft = prior[:3]
    empty = partial(torch.empty, device="meta")
    views = n_view if n_view > 1 and unet.class_embedding is not None else 1
    x, t, text = unet_inputs(prior, size, 2 * images)
    camera = empty(2 * images, 16) if views > 1 else None
    with torch.no_grad(), FlopCounterMode(display=False) as judging:
        if vae is None:
            unet(x, t, text)
        else:
            predict(make_multiview(unet), x, t, text, camera, views)
        if draft is not None:
            draft(text, camera)
    if vae is None:
        return float(judging.get_total_flops()), 0.0
    with torch.no_grad(), FlopCounterMode(display=False) as encoding:
        vae.encode(empty(images, 3, size, size))
    return float(judging.get_total_flops()), 2.0 * encoding.get_total_flops()


def unet_inputs(prior: Outline, size: int, images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x, t and text for pictures of so many pixels, on the meta device."""
    c, side, empty = prior.unet.config, size // prior.factor, partial(torch.empty, device="meta")
    width = c["encoder_hid_dim"] or c["cross_attention_dim"]
    return empty(images, c["in_channels"], side, side), empty(images), empty(images, TOKENS, width)


def unet_bytes(prior: Outline, size: int) -> float:
    """Bytes of graph that the UNet keeps for a picture when a copy of it learns, in float32, on the meta device."""

    def ask(images: int) -> torch.Tensor:
        x, t, text = unet_inputs(prior, size, images)
        labels = None if prior.unet.class_embedding is None else torch.empty(images, 16, device="meta")
        return prior.unet(x.requires_grad_(), t, text, class_labels=labels).sample

    return float(graph_bytes(lambda: ask(2)) - graph_bytes(lambda: ask(1)))


def vae_bytes(vae: Any, size: int) -> float:
    """Bytes of graph that encoding one picture keeps, in float32, on the meta device."""

    def encode(images: int) -> Any:
        return vae.encode(torch.empty(images, 3, size, size, device="meta", requires_grad=True))

    return float(graph_bytes(lambda: encode(2)) - graph_bytes(lambda: encode(1)))


# --- the field ----------------------------------------------------------------------------------------------------


def _system(config: GenerateConfig, unet: Any = None) -> GenerateSystem:
    """A new field and all that renders it; of the prior only its schedule, and the shape of its UNet."""
    prior = SimpleNamespace(schedule=diffusion.Schedule.scaled_linear(), unet=unet)
    system = GenerateSystem(config, prior, torch.zeros(2, 1, 1))
    if system.occupancy is not None:
        system.occupancy.update(system.field.density, 0, generator(config.seed, 0, "occupancy"))
    return system


def samples_of(system: GenerateSystem, stage: Stage) -> int:
    """Samples of a render of this stage, from a small one of the same views."""
    rng, small = generator(system.config.seed, stage.first, "cameras"), min(GLANCE, stage.size)
    groups = stage.images // system.config.camera.n_view
    cameras = sample_multiview(system.config.camera, rng, stage.first, n_groups=groups, height=small, width=small)
    seen = system.render(cameras, stage.first, training=True, grad=False)
    return len(seen.samples) * stage.size**2 // small**2


def sample_seconds(system: GenerateSystem, normals: bool) -> float:
    """Seconds that the field takes for a sample, forward and backward, measured."""
    points = torch.rand(1 << 14, 3, generator=generator(0, 0, "plan")).to(system.device) - 0.5

    def learn() -> None:
        out = system.field.with_normal(points) if normals else system.field(points)
        torch.stack([part.sum() for part in out]).sum().backward()
        system.field.zero_grad()

    timed(learn, system.device)  # kernels are compiled
    return timed(learn, system.device) / len(points)


# --- the machine --------------------------------------------------------------------------------------------------


def matmul_rate(device: torch.device, dtype: torch.dtype, at_least: float = 0.2) -> float:
    """Operations a second of large matrix products, measured for that many seconds."""
    n, spent, done = 4096 if device.type == "cuda" else 1024, 0.0, 0
    a = torch.ones(n, n, device=device, dtype=dtype)
    timed(lambda: a @ a, device)
    while spent < at_least:
        spent += timed(lambda: a @ a, device)
        done += 1
    return done * 2.0 * n**3 / spent


def step_dtype(precision: str, device: torch.device) -> torch.dtype:
    """In what the VAE computes: Lightning's precision of the training step (which has no float16 on a CPU)."""
    if precision == "16-mixed" and device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if precision.endswith("-mixed") else torch.float32


def timed(function: Callable[[], object], device: torch.device) -> float:
    """Wall-clock seconds of a call, until its device is done."""
    begun = time.perf_counter()
    function()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _ever(schedule: Any) -> bool:
    """Is it above zero at some step?"""
    return any((schedule if isinstance(schedule, dict) else {0: schedule}).values())
