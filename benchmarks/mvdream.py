"""Steps of the MVDream configs at full size: seconds, peak memory and where they go, against plain torch.

The weights are random, since time does not depend on their values, and so is the prompt: nothing is downloaded. A new
field is a ball of half the scene's radius. Both ways are given the same prior, cameras and precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from diffusers.models import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from threedgen.config import load
from threedgen.config.errors import ConfigError
from threedgen.guidance.multiview.joined import multiview_unet
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights import known_checkpoints as released
from threedgen.systems.generate.plan import TOKENS, Stage, stages_of
from threedgen.systems.generate.system import GenerateSystem
from threedgen.train.loop import set_threads
from threedgen.train.task import device

from .breakdown import Watch
from .scene import Stepper
from .table import Row, Table

CONFIGS = ("mvdream-sd21", "mvdream-sd21-shading")
OURS, PLAIN = "as configured", "plain torch, one pass"
VARIANTS: dict[str, list[str]] = {
    OURS: [],
    PLAIN: ["field.encoding.backend=torch", "march.backend=torch", "march.chunk=null"],
}
PARTS = ("occupancy grid", "render", "VAE encoder", "UNet", "backward: VAE", "backward: render", "optimiser", "rest")
COLUMNS = ("config", "step", "seconds", *(f"{part}, ms" for part in PARTS), "peak GB")
UNET: dict[str, Any] = released.UNETS["sd-v2.1-base-4view.pt"]
VAE: dict[str, Any] = released.VAE


def networks() -> tuple[Any, Any]:
    """UNet and VAE with random weights, frozen, on torch's default device."""
    unet, vae = multiview_unet(**UNET), AutoencoderKL(**VAE)
    return unet.requires_grad_(False).eval(), vae.requires_grad_(False).eval()


def random_prior(dtype: str, where: torch.device) -> MVDream:
    """A prior that distils as one from the authors' checkpoint does; its text encoder is a stand-in, never asked."""
    with where:
        unet, vae = networks()
    text = CLIPTextModel(
        CLIPTextConfig(vocab_size=8, hidden_size=UNET["cross_attention_dim"], num_hidden_layers=0)
    )
    prior = MVDream(unet, vae, text, [], dtype=dtype, device=where)
    prior.release()
    return prior


def stage_of(config: Any, size: int) -> Stage:
    """The part of a config's run that renders at this size. Raises ConfigError if there is none."""
    stages = {stage.size: stage for stage in stages_of(config)}
    if size not in stages:
        raise ConfigError(f"--size: the config renders at {', '.join(map(str, stages))} pixels, not at {size}")
    return stages[size]


def step_dtype(precision: str, device: torch.device) -> torch.dtype:
    """In what the VAE computes: Lightning's precision of the training step (which has no float16 on a CPU)."""
    if precision == "16-mixed" and device.type != "cpu":
        return torch.float16
    return torch.bfloat16 if precision.endswith("-mixed") else torch.float32


def step_by_parts(stepper: Stepper, scaler: Any, number: int) -> dict[str, float]:
    """Seconds of one step as Lightning makes it, by part; the device is waited for at the end of each part."""
    system, watch = stepper.system, Watch(stepper.system.device)
    dtype = step_dtype(system.config.trainer.precision, system.device)

    def learnt(seen: Any) -> None:
        watch.when_reached(seen.rgb, "backward: render")

    with ExitStack() as stack:
        targets: list[tuple[Any, str, str, Any]] = [
            (system, "render", "render", learnt),
            (system.prior, "encode_images", "VAE encoder", None),
            (system.prior, "denoise", "UNet", None),
        ]
        if system.occupancy is not None:
            targets.append((system.occupancy, "update", "occupancy grid", None))
        for owner, name, part, after in targets:
            stack.enter_context(patch.object(owner, name, watch.around(part, getattr(owner, name), after)))
        begun = watch.now()
        stepper.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(system.device.type, dtype, enabled=dtype != torch.float32):
            loss = scaler.scale(system.training_step(number, number))
        watch.switch("backward: VAE")
        loss.backward()
        watch.switch("")
        watch.around("optimiser", scaler.step)(stepper.optimizer)
        scaler.update()
        total = watch.now() - begun
    parts = {name: watch.seconds.get(name, 0.0) for name in PARTS}
    parts["rest"] = total - sum(watch.seconds.values())
    return parts | {"seconds": total}


@contextmanager
def as_trained(deterministic: Any) -> Iterator[None]:
    """Deterministic algorithms as Lightning sets them for a run."""
    torch.use_deterministic_algorithms(bool(deterministic), warn_only=deterministic == "warn")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def measure(name: str, variant: str, size: int, rounds: int, overrides: list[str], prior: MVDream) -> Row:
    """A row: seconds of a step, of its parts, and peak memory on a GPU; medians over rounds of the occupancy grid."""
    config = load(name, ["prompt=nothing", *overrides, *VARIANTS[variant]])
    stage, where = stage_of(config, size), prior.device
    text = torch.randn(2, TOKENS, prior.unet.config["cross_attention_dim"], generator=torch.Generator().manual_seed(0))
    system = GenerateSystem(config, prior, text).to(where).train()
    interval = 1 if config.occupancy is None else config.occupancy.interval
    begin = stage.first if config.occupancy is None else max(stage.first, config.occupancy.warmup)
    stepper = Stepper(system, frozen=True)
    half = step_dtype(config.trainer.precision, where) == torch.float16
    scaler = torch.amp.GradScaler(where.type, enabled=half)
    first = -(-begin // interval) * interval  # the grid is updated at multiples of its interval
    for number in (first, first + 1):  # kernels are compiled, and the chunk is chosen
        step_by_parts(stepper, scaler, number)
    if where.type == "cuda":
        torch.cuda.reset_peak_memory_stats(where)
    turns = []
    for _ in range(rounds):
        steps = [step_by_parts(stepper, scaler, first + k) for k in range(interval)]
        turns.append({key: sum(step[key] for step in steps) / interval for key in steps[0]})
    middle = {key: median(turn[key] for turn in turns) for key in turns[0]}
    peak = torch.cuda.max_memory_allocated(where) / 1e9 if where.type == "cuda" else 0.0
    cells = (name, variant, middle["seconds"], *(1e3 * middle[part] for part in PARTS), peak or "not measured")
    return dict(zip(COLUMNS, cells, strict=True))


def tables(size: int, rounds: int, overrides: list[str]) -> list[Table]:
    """Steps of both configs in both ways. Raises ConfigError."""
    config = load(CONFIGS[0], ["prompt=nothing", *overrides])
    set_threads(config.threads)
    where = torch.device(device(config.trainer.accelerator))
    stage = stage_of(config, size)
    prior = random_prior(config.prior.dtype, where)
    rows: list[Row] = []
    for name in CONFIGS:
        for variant in VARIANTS:
            try:
                with as_trained(config.trainer.deterministic):
                    rows.append(measure(name, variant, size, rounds, overrides, prior))
            except torch.OutOfMemoryError:
                rows.append(dict.fromkeys(COLUMNS, "out of memory") | {"config": name, "step": variant})
            if where.type == "cuda":
                torch.cuda.empty_cache()
    notes = [
        f"{stage.images} views of {size} x {size}, {where}, prior {prior.dtype}, step {config.trainer.precision}; the "
        f"median of {rounds} rounds, each from one update of the occupancy grid to the next.",
    ]
    return [Table(f"Steps at full size, {size} px", rows, notes)]
