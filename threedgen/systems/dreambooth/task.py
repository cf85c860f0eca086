"""The task "mvdreambooth": photos of one subject -> the file that ``prior.personalisation`` takes.

RUN/photos.png                    what the prior gets to see of the photos (photos.safetensors: the same, exactly)
RUN/class.safetensors             pictures of the class that the base drew, for preservation=images
RUN/samples/000100.png            four views of the subject and four of its class, every so many steps
RUN/checkpoints/
RUN/personalisation.safetensors   the result
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from threedgen.data import photos
from threedgen.geometry.images import enlarge_small, grid, write_png
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights import subject_weights
from threedgen.run.cache import cached_tensor
from threedgen.run.disk import writing
from threedgen.run.progress import Count
from threedgen.run.prompts import prompt_warnings
from threedgen.run.seeding import generator
from threedgen.train.callbacks import isolated_eval
from threedgen.train.status import Status
from threedgen.train.task import Task, execute, run_task

from .options import MVDreamBoothConfig
from .system import DreamBoothSystem, sheet

RESULT = "personalisation.safetensors"
FILES = (RESULT, "photos.png")


def run_status(config: MVDreamBoothConfig, resume: Path | None = None, quiet: bool = False) -> Status:
    """Carries out a config without a word on stdout; how it ended."""
    return execute(tune, Task(config, resume, quiet, FILES))


def tune(task: Task) -> Status:
    """Everything from the photos to the file of the subject."""
    config, folder = task.config, task.folder
    prior: MVDream = task.load_prior()
    subject_weights.check_identifier(prior.tokenizer, config.identifier)
    pictures = seen_photos(config, folder, prior.image_size)
    base = subject_weights.checksum(prior.unet, prior.text_encoder)
    subject_weights.add_word(prior.tokenizer, prior.text_encoder, config.identifier, like=config.tuning.like)
    notes = prompt_warnings(config.prompt, prior, config.prompt_notes())
    system = DreamBoothSystem(config, prior, pictures, base, class_pictures(config, folder, prior, task.quiet))
    if not sheet(folder, 0).exists():
        with isolated_eval(system), writing(folder):
            system.validate(0, folder)

    def save() -> dict[str, Any]:
        system.write(folder / RESULT)
        return {"notes": notes, "base": base, "photos": len(pictures)}

    return task.train(system, metrics=("loss_subject", "loss_class", "drift"), finish=save)


def seen_photos(config: MVDreamBoothConfig, folder: Path, size: int) -> Tensor:
    """(N, size, size, 3) in [0, 1], read once: a run that goes on finds them as they were. Raises ConfigError."""

    def read() -> Tensor:
        pictures = photos.read(photos.find(config.photos), size, config.fill)
        with writing(folder):
            write_png(folder / "photos.png", grid(enlarge_small(pictures), 6))
        return torch.from_numpy(pictures).float() / 255

    return cached_tensor(folder / "photos.safetensors", "photos", (None, size, size, 3), read)


def class_pictures(config: MVDreamBoothConfig, folder: Path, prior: MVDream, quiet: bool) -> Tensor | None:
    """Pictures (N, S, S, 3) of the class, each drawn by itself by the base; None unless they are asked for."""
    o = config.tuning
    if o.preservation != "images":
        return None

    def draw() -> Tensor:
        drawn = []
        with Count("drawing the class", o.class_images, quiet) as count:
            for k in range(o.class_images):
                prompt, rng = config.class_prompts[k % len(config.class_prompts)], generator(config.seed, k, "class")
                drawn.append(prior.sample(prompt, None, o.class_steps, o.class_guidance, generator=rng))
                count.add(1)
        return torch.cat(drawn)

    shape = (o.class_images, prior.image_size, prior.image_size, 3)
    return cached_tensor(folder / "class.safetensors", "pictures", shape, draw)


run = partial(run_task, tune, result=RESULT, files=FILES)
