"""What --dry-run says: which weights, on what device, and how much memory a run takes.

Nothing is computed but a small render: of the prior only shapes are known, and the field is as dense as it begins.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import torch

from threedgen.geometry.rigs import sample_multiview
from threedgen.guidance import diffusion
from threedgen.guidance.weights.meta_networks import MetaNetworks, meta_networks
from threedgen.representations.volume.render import BACKWARD, sample_bytes
from threedgen.run.dtypes import compute_dtype
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
    prior = meta_networks(config.prior.weights, config.prior.parts)
    size = config.prior.image_size or prior.unet.config["sample_size"] * prior.factor
    dtype = str(compute_dtype(config.prior.dtype, device)).removeprefix("torch.")

    system, stages = _system(config, prior.unet).to(device), stages_of(config)
    render, graph = _render(system, stages)
    images = max((stage.images for stage in stages), default=0)
    bytes_of = {
        "prior": 4.0 * prior.kept,
        "field and optimiser": STATE * sum(p.numel() * p.element_size() for p in system.parameters()),
        **({"graph of the VAE": images * vae_bytes(prior.vae, size)} if prior.vae else {}),
        **({"graph of the UNet": images * unet_bytes(prior, size)} if list(system.distill.parameters()) else {}),
        "graph of the render": graph,
    }
    total, free = max(4.0 * prior.parameters, sum(bytes_of.values())), free_bytes(device)
    lines = [
        f"would generate: {prompt}",
        f"weights: {weights}",
        f"prior: {prior.parameters / 1e6:.1f} million parameters, pictures of {size} px, {dtype}",
        f"device: {_name(device)}, {free / 1e9:.1f} GB free",
        *map(str, stages),
        f"render: {render}",
        f"memory: about {total / 1e9:.1f} GB ({', '.join(f'{k} {v / 1e9:.1f}' for k, v in bytes_of.items())})",
    ]
    if total > free:
        remedy = "march.chunk makes the render smaller, scenes_per_step and size the rest"
        lines.append(f"memory: more than is free; {remedy}")
    return "\n".join(lines)


def _render(system: GenerateSystem, stages: list[Stage]) -> tuple[str, float]:
    """How the largest render is carried out, in words, and the bytes that it takes forward and backward."""
    config, shown = system.config, system.config.loss.orientation
    if system.field.rasterised:
        return "a mesh, not counted", 0.0
    ever_oriented = any((shown if isinstance(shown, dict) else {0: shown}).values())
    normals = config.material.name != "none" or config.guidance_input == "normal" or ever_oriented
    each = sample_bytes(system.field, system.background, system.material, config.march, normals, system.device)
    largest = max((samples_of(system, stage) for stage in stages), default=0)
    chunk = system.chunk(normals) or largest
    passes = "one pass" if chunk >= largest else f"two passes, {chunk} samples at a time"
    text = f"{passes}; {each:.0f} bytes of graph for a sample, at most {largest:,} samples as the field begins"
    return text, BACKWARD * each * min(chunk, largest)


def stages_of(config: GenerateConfig) -> list[Stage]:
    """The distillation steps, cut where size or number of pictures change."""
    first, end = config.warm_start.steps, config.trainer.max_steps

    def kind(step: int) -> tuple[int, int]:
        return int(jump(config.size, step, end)), int(jump(config.scenes_per_step, step, end)) * config.camera.n_view

    runs = [(made, list(steps)) for made, steps in groupby(range(first, end), kind)]
    return [Stage(steps[0], steps[-1], size, images) for (size, images), steps in runs]


def unet_bytes(prior: MetaNetworks, size: int) -> float:
    """Bytes of graph that the UNet keeps for a picture when a copy of it learns, in float32, on the meta device."""
    c, side = prior.unet.config, size // prior.factor
    width = c["encoder_hid_dim"] or c["cross_attention_dim"]

    def ask(images: int) -> torch.Tensor:
        x = torch.empty(images, c["in_channels"], side, side, device="meta", requires_grad=True)
        t, text = torch.empty(images, device="meta"), torch.empty(images, TOKENS, width, device="meta")
        labels = None if prior.unet.class_embedding is None else torch.empty(images, 16, device="meta")
        return prior.unet(x, t, text, class_labels=labels).sample

    return float(graph_bytes(lambda: ask(2)) - graph_bytes(lambda: ask(1)))


def vae_bytes(vae: Any, size: int) -> float:
    """Bytes of graph that encoding one picture keeps, in float32, on the meta device."""

    def encode(images: int) -> Any:
        return vae.encode(torch.empty(images, 3, size, size, device="meta", requires_grad=True))

    return float(graph_bytes(lambda: encode(2)) - graph_bytes(lambda: encode(1)))


def _system(config: GenerateConfig, unet: Any = None) -> GenerateSystem:
    """A new field and all that renders it; of the prior only its schedule, and the shape of its UNet."""
    prior: Any = SimpleNamespace(schedule=diffusion.Schedule.scaled_linear(), unet=unet)
    system = GenerateSystem(config, prior, torch.zeros(2, 1, 1))
    if system.occupancy is not None:
        system.occupancy.update(system.field.density, 0, generator(config.seed, 0, "occupancy"))
    return system


def samples_of(system: GenerateSystem, stage: Stage) -> int:
    """Samples of a render of this stage, from a small one of the same views."""
    rng, small = generator(system.config.seed, stage.first, "cameras"), min(GLANCE, stage.size)
    scenes = stage.images // system.config.camera.n_view
    rig = sample_multiview(system.config.camera, rng, stage.first, n_groups=scenes, height=small, width=small)
    seen = system.render(rig.cameras, stage.first, training=True, grad=False)
    return len(seen.samples) * stage.size**2 // small**2


def _name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{device}, {torch.cuda.get_device_name(device)}"
    return f"{device}, {torch.get_num_threads()} threads" if device.type == "cpu" else str(device)
