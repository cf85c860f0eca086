"""Text of --dry-run: weights, device, steps and memory of a run.

Nothing is trained and no weights are loaded. The networks of the prior are built on PyTorch's meta device, which has
shapes but no values. The memory of a render is measured on the untrained field.
"""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from threedgen.guidance.attention.joined import has_added_conditioning, split_text
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.meta_networks import MetaNetworks, meta_networks
from threedgen.representations.volume.render import BACKWARD_FACTOR, sample_bytes
from threedgen.run.memory import MAX_REUSED_HEAP, free_bytes, graph_bytes
from threedgen.run.seeding import generator
from threedgen.run.threads import set_threads
from threedgen.systems.generate.options import GenerateConfig
from threedgen.train.plan import END, device_line, notes
from threedgen.train.task import device as device_name

from .scene import EVAL_CHUNK
from .system import GenerateSystem, key_steps, piecewise_constant
from .task import check_backends

STATE = 4
"""Numbers in memory per trained parameter: its value, its gradient and the two moments of Adam."""
TOKENS = 77
LIBRARIES = 0.5e9
"""Resident bytes of a process on Linux after it has imported the libraries of a run."""


def plan(config: GenerateConfig) -> str:
    """Return the text of a dry run. Raises ConfigError if the run or one of its stages could not start."""
    parts = [*map(config.stage, config.stages), config]
    weights = dict.fromkeys(line for part in parts for line in part.prior.describe())
    lines = [f"would generate: {config.object_text() or config.image}", f"folder: {config.out}", *weights]
    if config.stages:
        lines.append(f"stages: {', '.join(config.stages)}, then the run itself; memory: the largest of them")
    lines += [f"steps: {steps(part)}" for part in parts]
    set_threads(config.threads)
    for part in parts:
        check_backends(part)
    device = torch.device(device_name(config.trainer.accelerator))
    lines += [*notes(config), device_line(config)]
    estimates = [memory(part, device) for part in parts if part.prior.describe()]  # a plug-in may have no weights
    if estimates:
        needed = max(estimates, key=lambda estimate: sum(estimate.values()))
        total = sum(needed.values())
        by_purpose = ", ".join(f"{name} {size / 1e9:.1f}" for name, size in needed.items())
        lines.append(f"memory: about {total / 1e9:.1f} GB ({by_purpose})")
        if total > free_bytes(device):
            lines.append("memory: more than is free. Reduce march.chunk, scenes_per_step or size")
    return "\n".join([*lines, END])


def steps(config: GenerateConfig) -> str:
    """Return a text with the total number of steps of a run or stage, and the number in each phase."""
    refined = config.trainer.max_steps - config.warm_steps - config.distilled_steps
    parts = {"fit the sampled views": config.warm_steps, "distil": config.distilled_steps, "refine": refined}
    return f"{config.trainer.max_steps} ({', '.join(f'{count} {name}' for name, count in parts.items() if count)})"


def memory(config: GenerateConfig, device: torch.device) -> dict[str, float]:
    """Estimate the peak memory of a run without its stages: bytes by purpose, such as {"prior": 2e9}."""
    prior, end = meta_networks(config.prior.weights, config.prior.parts), config.trainer.max_steps
    size = config.prior.image_size or prior.unet.config["sample_size"] * prior.factor
    shapes: Any = SimpleNamespace(schedule=Schedule.scaled_linear(), unet=prior.unet, image_size=size)
    system = GenerateSystem(config, shapes, torch.zeros(2, 1, 1)).to(device)
    n_view = config.camera.n_view
    schedules = [value for value in (config.size, config.scenes_per_step) if isinstance(value, dict)]
    changes = [math.ceil(place) for schedule in schedules for place in key_steps(schedule, end).values()]
    distilled = range(config.warm_steps, config.warm_steps + config.distilled_steps)
    renders = {
        (system.size(s), int(piecewise_constant(config.scenes_per_step, s, end)))
        for s in [*distilled[:1], *changes]
        if s in distilled
    }
    images = n_view * max((scenes for _, scenes in renders), default=0)
    rays = max((n_view * size**2 * scenes for size, scenes in renders), default=0)
    if config.round_steps or config.warm_steps:
        rays = max(rays, config.fit.rays)
    trained = sum(p.numel() * p.element_size() for p in system.parameters())
    found = {
        "prior": 4.0 * (prior.parameters if config.round_steps else prior.kept),
        "field and optimiser": float(STATE * trained),
    }
    if prior.vae:
        found["graph of the VAE"] = images * vae_bytes(prior.vae, size)
    if list(system.distillation.parameters()):
        found["graph of the UNet"] = images * unet_bytes(prior, size)
    if not system.field.rasterised:
        orientation = config.loss.orientation
        oriented = any(orientation.values()) if isinstance(orientation, dict) else orientation
        normals = config.material.name != "none" or config.guidance_input == "normal" or bool(oriented)
        each = sample_bytes(system.field, system.background, system.material, config.march, normals, device)
        full, table = occupied(system), config.result.turntable
        samples = full * rays * config.march.samples
        image = full * table.height * table.width * config.march.for_evaluation().samples
        graph = BACKWARD_FACTOR * min(system.chunk(normals) or samples, samples)
        found["render"] = each * max(graph, min(EVAL_CHUNK, image))  # about the same per sample without a graph
    text_encoder = 4.0 * (prior.parameters - prior.kept)  # freed before the rest is allocated
    found["prior"] += max(0.0, text_encoder - sum(list(found.values())[1:]))
    if device.type == "cpu":
        found["Python and libraries"] = LIBRARIES
        found["kept for reuse"] = float(MAX_REUSED_HEAP)
    return found


def occupied(system: GenerateSystem) -> float:
    """Update the occupancy grid at step 0, and return the fraction of occupied cells in [0, 1]; 1 without a grid."""
    if (grid := system.occupancy) is None:
        return 1.0
    grid.update(system.field.density, 0, generator(system.seed, 0, "occupancy"))
    return float(grid.binary.float().mean())


def unet_bytes(prior: MetaNetworks, size: int) -> float:
    """Return the bytes of the UNet's float32 autograd graph, which VSD needs, for one image of side `size` pixels."""
    c, side = prior.unet.config, size // prior.factor
    width = c["encoder_hid_dim"] or c["cross_attention_dim"]

    def predict(n: int) -> object:
        labels = None if prior.unet.class_embedding is None else torch.empty(n, 16, device="meta")
        text = torch.empty(n, TOKENS + has_added_conditioning(prior.unet), width, device="meta")
        words, more = split_text(prior.unet, text, size, size)
        return prior.unet(_meta(n, c["in_channels"], side, side), _meta(n), words, class_labels=labels, **more).sample

    return per_image(predict)


def vae_bytes(vae: Any, size: int) -> float:
    """Return the bytes of the VAE encoder's float32 autograd graph for one image of side `size` pixels."""
    return per_image(lambda n: vae.encode(_meta(n, 3, size, size)))


def per_image(make: Callable[[int], object]) -> float:
    """Return the bytes per image of the autograd graph of `make(n)`, which runs a network on n images.

    This is the difference between n = 2 and n = 1, so that the saved weights cancel.
    """
    return float(graph_bytes(lambda: make(2)) - graph_bytes(lambda: make(1)))


def _meta(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta", requires_grad=True)
