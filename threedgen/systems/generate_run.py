"""The task "generate": from a checked config to a folder with a turntable and a mesh, also from Python."""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from threedgen import registry, runs
from threedgen.cameras import Cameras, orbit
from threedgen.config import ConfigError, load
from threedgen.images import grid, write_png
from threedgen.interrupts import Interrupts
from threedgen.ledger import write_summary
from threedgen.loop import Status, fit, set_threads
from threedgen.progress import silence_lightning
from threedgen.prompts import tidy, warn_about
from threedgen.seeding import generator

from .generate import GenerateSystem
from .options import GenerateConfig
from .outputs import Run, write_results

logger = logging.getLogger(__name__)


def generate(prompt: str, config: str = "mvdream-toybox", **values: Any) -> Run:
    """A prompt becomes a 3D object; see ``threedgen.generate``."""
    checked = load(config, values=values | {"prompt": prompt})
    if checked.task != "generate":
        raise ConfigError(
            f"config: should be of the task generate (got {config}, which is of {checked.task})"
        )
    checked, resume = runs.begin(checked, Path(config).stem)
    status = run_status(checked, resume, quiet=True)
    return Run(Path(str(checked.out)), status.value)


def run(config: GenerateConfig, resume: Path | None = None, quiet: bool = False) -> int:
    """Carry out a config; returns the exit code.  The results' folder is printed last."""
    status = run_status(config, resume, quiet)
    print(config.out)
    return status.exit_code


def run_status(config: GenerateConfig, resume: Path | None = None, quiet: bool = False) -> Status:
    begun, folder = time.monotonic(), Path(str(config.out))
    prompt = tidy(config.prompt)
    if resume and finished(folder, config):
        logger.warning("%s is finished already; its files are as they were", folder)
        return Status.FINISHED
    silence_lightning()
    set_threads(config.threads)
    prior = registry.build("prior", config.prior)
    notes = warn_about(prompt, prior)
    text = embeddings(folder, prior, prompt, config.negative_prompt)
    views, cameras = preview(config, prior, prompt, folder)
    system = GenerateSystem(config, prior, text, views if config.warm_start.steps else None, cameras)
    with Interrupts() as interrupts:
        prepared = time.monotonic()
        status = fit(
            system, config, folder, resume=resume is not None, quiet=quiet, metrics=("opacity", "t"),
            interrupts=interrupts,
        )  # fmt: skip
        trained = time.monotonic()
        if status is Status.TERMINATED:
            return status
        if status is Status.FAILED:
            raise ConfigError(
                f"the loss was no longer a number; the last good checkpoint is in {folder}/checkpoints"
            )
        figures = write_results(system, folder, notes)
    done = time.monotonic()
    seconds = {"prepare": prepared - begun, "optimise": trained - prepared, "export": done - trained}
    write_summary(
        folder, config, done - begun, status=status.value, steps=system.trainer.global_step,
        seconds_of={k: round(v, 2) for k, v in seconds.items()}, notes=notes, **figures,
    )  # fmt: skip
    return status


def finished(folder: Path, config: GenerateConfig) -> bool:
    """Whether the folder holds the results of this run, with as many steps as are asked for."""
    import json

    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return summary.get("status") == Status.FINISHED.value and summary.get("steps") == config.trainer.max_steps


def embeddings(folder: Path, prior: Any, prompt: str, negative: str) -> Tensor:
    """The two texts as embeddings (2, L, D), kept in the run folder: a resumed run must use the very same."""
    path = folder / "text.safetensors"
    if path.exists():
        return load_file(path)["text"]
    text = prior.encode_prompt([prompt, negative]).float().cpu().contiguous()
    save_file({"text": text}, path)
    return text


def preview(
    config: GenerateConfig, prior: Any, prompt: str, folder: Path
) -> tuple[Tensor | None, Cameras | None]:
    """Views sampled from the prompt and their cameras, written to preview.png; kept for a resumed run."""
    p, n_view = config.preview, config.camera.n_view
    if not (p.enabled or config.warm_start.steps) or n_view < 2:
        return None, None
    table = config.result.turntable
    angles = torch.deg2rad(torch.tensor([p.elevation, p.azimuth, table.fov]))
    elevation, azimuth, fov = (float(a) for a in angles)
    size = prior.image_size
    cameras = orbit(n_view, elevation, table.distance, fov, size, size, azimuth=azimuth)
    path = folder / "preview.safetensors"
    if path.exists():
        return load_file(path)["views"], cameras
    rng = generator(config.seed, 0, "preview")
    views = prior.sample(
        prompt, cameras.c2w, p.steps, p.guidance_scale, config.negative_prompt, generator=rng
    )
    save_file({"views": views.contiguous()}, path)
    write_png(folder / "preview.png", grid(views, n_view))
    return views, cameras
