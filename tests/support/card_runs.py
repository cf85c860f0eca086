"""Runs of configs for a GPU on the simulated one (card.py): whole commands, and training steps without a command."""

import json
from collections import Counter
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from tests.support.card import Simulation, current, register

STEPS = [0, 1]  # training steps of a command; the last one is counted
sampled: list[tuple[Counter[str], Counter[str]]] = []  # launches and synchronisations of the step that is counted


class Counted(BaseException):
    """End of a command whose step has been counted."""


def train_steps(system: Any, config: Any, steps: list[int]) -> None:
    """Train steps of a system on the device; the simulation then has the counts of the last one."""
    from threedgen.train.callbacks import FiniteGuard

    simulation, mixed = current[-1], config.trainer.precision == "16-mixed"
    system.to("card:0").train()
    object.__setattr__(system, "_device", torch.device("card:0"))
    scaler = torch.amp.GradScaler("card", enabled=mixed)
    trainer: Any = SimpleNamespace(
        world_size=1, accumulate_grad_batches=1, global_rank=0, is_global_zero=True, global_step=len(steps),
        precision_plugin=SimpleNamespace(scaler=scaler if mixed else None),
        strategy=SimpleNamespace(_lightning_optimizers=[]),
    )  # fmt: skip
    object.__setattr__(system, "_trainer", trainer)
    system.setup("fit")
    optimizer = system.configure_optimizers()["optimizer"]
    guard = FiniteGuard()
    for step in steps:
        simulation.clear()
        optimizer.zero_grad()
        with torch.autocast("card", torch.bfloat16, enabled=mixed):
            loss = system.training_step(step, step)
        guard.on_before_backward(trainer, system, loss)
        scaler.scale(loss).backward()
        guard.on_before_optimizer_step(trainer, system, optimizer)
        scaler.step(optimizer)
        scaler.update()


def run_steps(config: str, words: list[str], steps: list[int], stage: str | None = None, image: bool = False) -> None:
    """Run training steps of a config for 3D objects. `image`: fit views that are sampled before."""
    from threedgen.config import load, registry
    from threedgen.guidance.priors.view_prompts import prompts
    from threedgen.systems.generate.system import GenerateSystem
    from threedgen.systems.generate.views import sample_views

    options = load(config, ["prompt=a red dog", *words])
    options = options if stage is None else options.stage(stage)
    prior = registry.build("prior", options.prior)
    texts = prompts("a red dog", options.negative_prompt, options.view_prompts)
    text = prior.encode_prompt(texts + [""] * options.empty_prompt)
    folder = Path.cwd()
    views = sample_views(options, prior.to("card:0"), text, None, folder, quiet=True) if image else (None, None)
    if not options.round_steps:
        prior.free_text_encoder()
    train_steps(GenerateSystem(options, prior.to("card:0"), text, *views), options, steps)


def run_command(words: list[str]) -> None:
    """Run a command on the simulated GPU, until its last denoising step or its last training step of `STEPS`."""
    from threedgen import cli
    from threedgen.guidance import sampling
    from threedgen.train import loop, task

    denoise: Any = sampling.ddim_sample

    def ddim_sample(*args: Any, on_step: Any = sampling.no_callback, **kwargs: Any) -> Any:
        if len(args) > 6:
            args, on_step = args[:6], args[6]

        def counted(done: int, steps: int) -> None:
            if done == steps - 1:
                current[-1].clear()
            elif done == steps:
                sampled.append((current[-1].launches.copy(), current[-1].syncs.copy()))
                raise Counted
            on_step(done, steps)

        return denoise(*args, on_step=counted, **kwargs)

    def fit(system: Any, config: Any, *_: Any, **__: Any) -> None:
        train_steps(system, config, STEPS)
        sampled.append((current[-1].launches.copy(), current[-1].syncs.copy()))
        raise Counted

    sampling.ddim_sample, loop.fit = ddim_sample, fit
    task.device = lambda accelerator="auto": "card:0"
    sampled.clear()
    with suppress(Counted):
        cli.main(words)
    sampling.ddim_sample = denoise
    current[-1].launches, current[-1].syncs = sampled[-1]


def main(cases: dict[str, dict[str, Any]], folder: str) -> int:
    """Run cases, each with the arguments of `run_steps` or `run_command`.

    Writes launches and synchronisations of their last steps to steps.json, and how long each case took.
    """
    import time
    import traceback

    register()
    found = {}
    for name, case in cases.items():
        start, problem = time.process_time(), ""
        with Simulation() as simulation:
            try:
                run_steps(**case) if "config" in case else run_command(**case)
            except Exception:
                problem = traceback.format_exc()
        seconds = time.process_time() - start
        found[name] = {
            "launches": simulation.launches, "syncs": simulation.syncs, "seconds": seconds, "problem": problem
        }  # fmt: skip
    Path("steps.json").write_text(json.dumps(found))
    return 0


def offload(folder: str) -> int:
    """Sample with diffusers' CPU offload, and compare images and devices with those of the CPU."""
    from tests.support.tiny_prior import coarse_prior, cpu, tiny_prior
    from threedgen.guidance.priors.pipeline import MVDreamPipeline

    register()
    how: Any = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}
    for make in (tiny_prior, coarse_prior):
        expected = MVDreamPipeline.from_prior(make())("a red dog", generator=cpu(), **how).images
        with Simulation() as simulation:
            pipeline = MVDreamPipeline.from_prior(make())
            pipeline.enable_model_cpu_offload(device="card:0")
            found = pipeline("a red dog", generator=cpu(), **how).images
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert simulation.launches["convolution"] and pipeline.unet.device.type == "cpu"
    return 0
