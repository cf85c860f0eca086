"""What --dry-run says: which weights, on what device, and how much memory a run takes.

Nothing is computed: of the prior only shapes are known, and of a render how many samples meet what there is to see at
the beginning.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from threedgen.guidance import sdxl
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.meta_networks import MetaNetworks, meta_networks
from threedgen.representations.volume.render import BACKWARD_FACTOR, sample_bytes
from threedgen.run.memory import MAX_REUSED_HEAP, free_bytes, graph_bytes
from threedgen.run.prompts import normalise_prompt
from threedgen.run.seeding import generator
from threedgen.run.threads import set_threads
from threedgen.systems.generate.options import GenerateConfig
from threedgen.train.plan import END, device_line, notes
from threedgen.train.task import device as device_name

from .system import EVAL_CHUNK, GenerateSystem, jump, places
from .task import check_backends

STATE = 4
"""Copies of a number that is learnt: itself, its gradient and Adam's two moments."""
TOKENS = 77
LIBRARIES = 0.5e9
"""Bytes of a process that has imported all that a run uses, and done nothing, as Linux counts them."""


def plan(config: GenerateConfig) -> str:
    """The text of a dry run. Raises ConfigError for what would stop the run, or a stage of it, at its beginning."""
    parts = [*map(config.stage, config.stages), config]
    weights = dict.fromkeys(line for part in parts for line in part.prior.describe())
    lines = [
        f"would generate: {normalise_prompt(config.prompt)}",
        f"folder: {config.out}",
        *weights,
    ]
    if config.stages:
        lines.append(f"stages: {', '.join(config.stages)}, then the run itself; memory is that of the largest")
    lines += [f"steps: {steps(part)}" for part in parts]
    set_threads(config.threads)
    for part in parts:
        check_backends(part)
    device = torch.device(device_name(config.trainer.accelerator))
    needed, free = max((memory(part, device) for part in parts), key=lambda m: sum(m.values())), free_bytes(device)
    total = sum(needed.values())
    lines += [
        *notes(config),
        device_line(config),
        f"memory: about {total / 1e9:.1f} GB ({', '.join(f'{k} {v / 1e9:.1f}' for k, v in needed.items())})",
    ]
    if total > free:
        lines.append(
            "memory: more than is free; march.chunk makes the render smaller, scenes_per_step and size the rest"
        )
    return "\n".join([*lines, END])


def steps(config: GenerateConfig) -> str:
    """How many there are, and what for; of a stage, or of the run itself."""
    refined = config.trainer.max_steps - config.warm_steps - config.distilled_steps
    parts = {"fit the sampled views": config.warm_steps, "distil": config.distilled_steps, "refine": refined}
    return f"{config.trainer.max_steps} ({', '.join(f'{count} {name}' for name, count in parts.items() if count)})"


def memory(config: GenerateConfig, device: torch.device) -> dict[str, float]:
    """Bytes that a run takes in its largest step, by what they are for; stages apart."""
    prior, end = meta_networks(config.prior.weights, config.prior.parts), config.trainer.max_steps
    size = config.prior.image_size or prior.unet.config["sample_size"] * prior.factor
    shapes: Any = SimpleNamespace(schedule=Schedule.scaled_linear(), unet=prior.unet, image_size=size)
    system = GenerateSystem(config, shapes, torch.zeros(2, 1, 1)).to(device)
    n_view = config.camera.n_view
    schedules = [value for value in (config.size, config.scenes_per_step) if isinstance(value, dict)]
    changes = [math.ceil(place) for schedule in schedules for place in places(schedule, end).values()]
    distilled = range(config.warm_steps, config.warm_steps + config.distilled_steps)
    drawn = {
        (system.size(s), int(jump(config.scenes_per_step, s, end)))
        for s in [*distilled[:1], *changes]
        if s in distilled
    }
    images = n_view * max((scenes for _, scenes in drawn), default=0)
    rays = max((n_view * size**2 * scenes for size, scenes in drawn), default=0)
    if config.round_steps or config.warm_steps:
        rays = max(rays, config.fit.rays)
    learnt = sum(p.numel() * p.element_size() for p in system.parameters())
    found = {
        "prior": 4.0 * (prior.parameters if config.round_steps else prior.kept),
        "field and optimiser": float(STATE * learnt),
    }
    if prior.vae:
        found["graph of the VAE"] = images * vae_bytes(prior.vae, size)
    if list(system.distill.parameters()):
        found["graph of the UNet"] = images * unet_bytes(prior, size)
    if not system.field.rasterised:
        orientation = config.loss.orientation
        oriented = any(orientation.values()) if isinstance(orientation, dict) else orientation
        normals = config.material.name != "none" or config.guidance_input == "normal" or bool(oriented)
        each = sample_bytes(system.field, system.background, system.material, config.march, normals, device)
        full, table = occupied(system), config.result.turntable
        samples = full * rays * config.march.samples
        picture = full * table.height * table.width * config.march.for_evaluation().samples
        graph = BACKWARD_FACTOR * min(system.chunk(normals) or samples, samples)
        found["render"] = each * max(graph, min(EVAL_CHUNK, picture))  # without a graph about as much for each
    text_encoder = 4.0 * (prior.parameters - prior.kept)  # it is gone before the rest is there
    found["prior"] += max(0.0, text_encoder - sum(list(found.values())[1:]))
    if device.type == "cpu":  # a GPU's memory holds none of it
        found["Python and libraries"] = LIBRARIES
        found["kept for reuse"] = float(MAX_REUSED_HEAP)
    return found


def occupied(system: GenerateSystem) -> float:
    """The share of the cube in which a new field is sampled."""
    if (grid := system.occupancy) is None:
        return 1.0
    grid.update(system.field.density, 0, generator(system.seed, 0, "occupancy"))
    return float(grid.binary.float().mean())


def unet_bytes(prior: MetaNetworks, size: int) -> float:
    """Bytes of graph that the UNet keeps for a picture when a copy of it learns, in float32, on the meta device."""
    c, side = prior.unet.config, size // prior.factor
    width = c["encoder_hid_dim"] or c["cross_attention_dim"]

    def predict(n: int) -> Any:
        labels = None if prior.unet.class_embedding is None else torch.empty(n, 16, device="meta")
        text = torch.empty(n, TOKENS + sdxl.has_added_conditioning(prior.unet), width, device="meta")
        words, more = sdxl.split_text(prior.unet, text, size, size)
        return prior.unet(_meta(n, c["in_channels"], side, side), _meta(n), words, class_labels=labels, **more).sample

    return a_picture(predict)


def vae_bytes(vae: Any, size: int) -> float:
    """Bytes of graph that encoding one picture keeps, in float32, on the meta device."""
    return a_picture(lambda n: vae.encode(_meta(n, 3, size, size)))


def a_picture(make: Callable[[int], Any]) -> float:
    """Bytes by which the graph of two pictures is larger than that of one."""
    return float(graph_bytes(lambda: make(2)) - graph_bytes(lambda: make(1)))


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta", requires_grad=True)
