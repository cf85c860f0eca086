"""The task mvdreambooth: DreamBooth (arXiv 2208.12242) for a multi-view prior (MVDream, arXiv 2308.16512).

RUN/photos.png                    the photos after cropping and resizing; photos.safetensors has them as float32
RUN/class.safetensors             class images sampled from the original prior, with preservation=images
RUN/subject.safetensors           class prompt and object code of the subject, if the prior has object codes
RUN/samples/000100.png            at step 100, four views of the subject and four of its class
RUN/personalisation.safetensors   result; the option `prior.personalisation` takes this file
"""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from threedgen.data import photos
from threedgen.geometry.image_file import foreground_mask
from threedgen.geometry.images import enlarge_small, grid, write_png
from threedgen.geometry.rigs import orbit
from threedgen.guidance.matte import remover
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights import subject_weights
from threedgen.run.cache import cached_tensor
from threedgen.run.disk import writing
from threedgen.run.progress import ProgressDisplay
from threedgen.run.prompts import prompt_warnings
from threedgen.run.seeding import generator
from threedgen.train.callbacks import isolated_eval
from threedgen.train.status import Status
from threedgen.train.task import Task, run_prepared, run_task

from .options import MVDreamBoothConfig
from .system import ELEVATION, DreamBoothSystem, sheet_path

CODE_CAMERAS, CODE_ROUNDS = 16, 3
CODE_SHARE = 0.55
"""Length of the longer side of the subject, divided by the image side, in the views from which its code is computed."""
RESULT = "personalisation.safetensors"
FILES = (RESULT, "photos.png")


def run_status(config: MVDreamBoothConfig, resume: Path | None = None, quiet: bool = False) -> Status:
    """Run the task mvdreambooth without printing the path of the result, and return the final status of the run.

    `resume` is the folder of the run to resume; None: a new run. `quiet`: print neither the names of the weight files
    that the run loads nor the progress.
    """
    return run_prepared(train, Task(config, resume, quiet, FILES))


def train(task: Task) -> Status:
    """Train the prior on the photos, and write the tuned weights to RUN/personalisation.safetensors.

    Returns the final status of the training.
    """
    config, folder = task.config, task.folder
    prior: MVDream = task.load_prior()
    subject_weights.check_identifier(prior.tokenizer, config.identifier)
    images = load_photos(config, folder, prior.image_size)
    base = subject_weights.checksum(prior.unet, prior.text_encoder)
    subject = subject_code(config, folder, prior, images)
    subject_weights.add_word(prior.tokenizer, prior.text_encoder, config.identifier, like=config.tuning.like)
    notes = prompt_warnings(config.prompt, prior, config.prompt_notes(), takes_negative=False)
    system = DreamBoothSystem(config, prior, images, base, sample_class_images(config, folder, prior, task.quiet))
    if prior.coarse is not None and subject is not None:
        prior.coarse.set_subject(subject)
    if not sheet_path(folder, 0).exists():
        with isolated_eval(system), writing(folder):
            system.validate(0, folder)

    def finish() -> dict[str, object]:
        system.write(folder / RESULT)
        return {"notes": notes, "base": base, "photos": len(images)}

    return task.train(system, metrics=("loss_subject", "loss_class", "drift"), finish=finish)


def load_photos(config: MVDreamBoothConfig, folder: Path, size: int) -> Tensor:
    """Load N photos as images (N, size, size, 3) in [0, 1], each with the subject cut out and centred on grey.

    A photo whose subject cannot be cut out is cropped to its middle square. `size` is in pixels. A resumed run uses the
    copy photos.safetensors in `folder`.

    Raises ConfigError if a photo is missing or cannot be read.
    """

    def read() -> Tensor:
        opacity = remover(config.matte) or foreground_mask
        images = photos.read(photos.find(config.photos), size, opacity=opacity)
        with writing(folder):
            write_png(folder / "photos.png", grid(enlarge_small(images), 6))
        return torch.from_numpy(images).float() / 255

    return cached_tensor(folder / "photos.safetensors", "photos", (None, size, size, 3), read)


@torch.no_grad()
def subject_code(config: MVDreamBoothConfig, folder: Path, prior: MVDream, images: Tensor) -> Tensor | None:
    """Compute the object code of the subject from its photos `images` (N, S, S, 3) in [0, 1].

    An object code is a vector of what a prompt leaves unspecified, such as colours and the exact shape. It is computed
    from views with known cameras. For each photo, the camera of `CODE_CAMERAS` around the object is taken whose coarse
    prediction is most similar to the photo; the prediction is first for a code sampled for the class prompt, then for
    the code found. Many of these cameras are wrong. With wrong cameras the code still has the colours of the subject.

    Returns the embedding (K + 1, D) of the class prompt with the code as last row, of which a resumed run uses the copy
    subject.safetensors in `folder`. Returns None if the prior samples without object codes.
    """
    if not prior.uses_coarse_predictor:
        return None

    def compute() -> Tensor:
        size = round(CODE_SHARE * prior.image_size / photos.SUBJECT_SHARE)
        before = (prior.image_size - size) // 2
        after = prior.image_size - size - before
        small = F.interpolate(images.permute(0, 3, 1, 2), (size, size), mode="area")
        placed = F.pad(small, (before, after, before, after), value=photos.GREY).permute(0, 2, 3, 1)
        latents = prior.encode_images(placed, generator(config.seed, 0, "photos"))
        c2w = orbit(CODE_CAMERAS, ELEVATION, 1.0, 1.0, 1, 1).c2w.to(prior.device)
        text = prior.sample_code(prior.encode_prompt([config.class_prompt]), generator(config.seed, 0, "code"))
        for _ in range(CODE_ROUNDS):
            coarse = prior.coarse_latents(text.expand(CODE_CAMERAS, -1, -1), c2w)
            assert coarse is not None
            nearest = (latents[:, None] - coarse).square().mean((2, 3, 4)).argmin(1)
            text = prior.encode_code(text, latents[None], c2w[nearest][None])
        return text[0]

    return cached_tensor(folder / "subject.safetensors", "subject", prior.text_shape, compute)


def sample_class_images(config: MVDreamBoothConfig, folder: Path, prior: MVDream, quiet: bool) -> Tensor | None:
    """Sample M images (M, S, S, 3) in [0, 1] of the subject's class from the prior, before it is tuned.

    M is the option `tuning.class_images`, and S the image size of the prior in pixels. The tuning trains on the images,
    so that the prior keeps the class. They are cached in `folder` for a resumed run. `quiet`: show no progress. Returns
    None if tuning.preservation is not "images".
    """
    o = config.tuning
    if o.preservation != "images":
        return None

    def sample() -> Tensor:
        images = []
        with ProgressDisplay("class images", o.class_images, quiet) as count:
            for k in range(o.class_images):
                prompt, rng = config.class_prompts[k % len(config.class_prompts)], generator(config.seed, k, "class")
                images.append(prior.sample(prompt, None, o.class_steps, o.class_guidance, generator=rng))
                count.add(1)
        return torch.cat(images)

    shape = (o.class_images, prior.image_size, prior.image_size, 3)
    return cached_tensor(folder / "class.safetensors", "pictures", shape, sample)


run = partial(run_task, train, result=RESULT, files=FILES)
