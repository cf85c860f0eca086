"""The task mvdreambooth: tunes a multi-view prior on photos of one subject.

RUN/photos.png                    the photos after cropping and resizing; photos.safetensors has their exact values
RUN/class.safetensors             class images sampled from the original prior, with preservation=images
RUN/samples/000100.png            at step 100, four views of the subject and four of its class
RUN/checkpoints/
RUN/personalisation.safetensors   result; the option `prior.personalisation` takes this file
"""

from functools import partial
from pathlib import Path

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
from .system import DreamBoothSystem, sheet_path

RESULT = "personalisation.safetensors"
FILES = (RESULT, "photos.png")


def run_status(config: MVDreamBoothConfig, resume: Path | None = None, quiet: bool = False) -> Status:
    """Run a config without output on stdout, and return how the run ended."""
    return execute(train, Task(config, resume, quiet, FILES))


def train(task: Task) -> Status:
    """Train the prior on the photos, and write the tuned weights to personalisation.safetensors."""
    config, folder = task.config, task.folder
    prior: MVDream = task.load_prior()
    subject_weights.check_identifier(prior.tokenizer, config.identifier)
    images = load_photos(config, folder, prior.image_size)
    base = subject_weights.checksum(prior.unet, prior.text_encoder)
    subject_weights.add_word(prior.tokenizer, prior.text_encoder, config.identifier, like=config.tuning.like)
    notes = prompt_warnings(config.prompt, prior, config.prompt_notes())
    system = DreamBoothSystem(config, prior, images, base, sample_class_images(config, folder, prior, task.quiet))
    if not sheet_path(folder, 0).exists():
        with isolated_eval(system), writing(folder):
            system.validate(0, folder)

    def finish() -> dict[str, object]:
        system.write(folder / RESULT)
        return {"notes": notes, "base": base, "photos": len(images)}

    return task.train(system, metrics=("loss_subject", "loss_class", "drift"), finish=finish)


def load_photos(config: MVDreamBoothConfig, folder: Path, size: int) -> Tensor:
    """Load the photos as (N, size, size, 3) in [0, 1]. A resumed run uses the copy in `folder`. Raises ConfigError."""

    def read() -> Tensor:
        images = photos.read(photos.find(config.photos), size, config.fill)
        with writing(folder):
            write_png(folder / "photos.png", grid(enlarge_small(images), 6))
        return torch.from_numpy(images).float() / 255

    return cached_tensor(folder / "photos.safetensors", "photos", (None, size, size, 3), read)


def sample_class_images(config: MVDreamBoothConfig, folder: Path, prior: MVDream, quiet: bool) -> Tensor | None:
    """Sample class images (M, S, S, 3) in [0, 1] from the prior before tuning; None unless preservation=images."""
    o = config.tuning
    if o.preservation != "images":
        return None

    def sample() -> Tensor:
        images = []
        with Count("class images", o.class_images, quiet) as count:
            for k in range(o.class_images):
                prompt, rng = config.class_prompts[k % len(config.class_prompts)], generator(config.seed, k, "class")
                images.append(prior.sample(prompt, None, o.class_steps, o.class_guidance, generator=rng))
                count.add(1)
        return torch.cat(images)

    shape = (o.class_images, prior.image_size, prior.image_size, 3)
    return cached_tensor(folder / "class.safetensors", "pictures", shape, sample)


run = partial(run_task, train, result=RESULT, files=FILES)
