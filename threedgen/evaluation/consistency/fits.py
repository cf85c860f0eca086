"""Consistency score of one scene: fit a neural field to most of its views, and compare renders with the held-out views.

RUN/scores/SCENE.SAMPLER.json   metrics, with a hash of everything that determines them
RUN/scores/SCENE.SAMPLER.npz    held-out views and renders of the field from the same cameras, uint8

SAMPLER is the name of a sampler, or "original" for the original views.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from kornia.metrics import ssim

from threedgen.config import config_hash
from threedgen.config.plain_file import read_json
from threedgen.evaluation.metrics.figures import Floats, Json, mean
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.images import psnr, to_uint8
from threedgen.geometry.views import Views
from threedgen.representations.fit import Bounds, fit
from threedgen.run.arrays import Array
from threedgen.run.disk import atomic_file, write_json
from threedgen.run.threads import set_threads

from .options import ConsistencyConfig
from .tsed import tsed

SSIM_WINDOW = 11
"""Side in pixels of the Gaussian window of SSIM, whose sigma is 1.5 (Wang et al. 2004)."""


@dataclass(frozen=True)
class Job:
    """V views of one scene to score: target views, which a sampler made, and the views that were given to the sampler.

    Attributes:
        config: config of the run.
        scene: name of the scene.
        sampler: name of the sampler, or "original" for the original views.
        images: all views (V, H, W, 3), uint8.
        cameras: V cameras of ``images``.
        held_out: indices into ``images`` of the views that the neural field is not fitted to; none of them
            was given to the sampler.
        truth: original views (V, H, W, 3), uint8, to compare the target views with; None: no comparison.
        targets: indices into ``images`` and ``truth`` of the target views.
        bounds: (radius, near, far) in world units: radius of the ball around the origin that the neural field covers,
            and distances from a camera to the two ends of its rays; None: computed from the cameras.
    """

    config: ConsistencyConfig
    scene: str
    sampler: str
    images: Array
    cameras: Cameras
    held_out: list[int]
    truth: Array | None = None
    targets: Sequence[int] = ()
    bounds: Bounds | None = None

    @property
    def views(self) -> Views:
        return Views(torch.from_numpy(self.images).float() / 255, self.cameras)

    @property
    def path(self) -> Path:
        return Path(str(self.config.out)) / "scores" / f"{self.scene}.{self.sampler}.json"

    def key(self) -> str:
        """Return a hash of images, cameras, options and all else that determines the score.

        A stored score with another hash is outdated.
        """
        digest, c = hashlib.sha256(), self.config
        truth = () if self.truth is None else (self.truth,)
        for array in (self.images, self.cameras.c2w.numpy(), self.cameras.K.numpy(), *truth):
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        options = [c.seed, self.held_out, list(self.targets), config_hash(c.protocol), config_hash(c.tsed)]
        options += [] if self.bounds is None else [list(self.bounds)]
        digest.update(json.dumps(options).encode())
        return digest.hexdigest()[:16]


def stored_or_scored(job: Job, threads: int) -> Json:
    """Return the metrics of a job (views of one scene to score), read from the run folder or computed by `score`.

    They are computed if they are missing or outdated. The dict has keys such as "psnr" (dB), "ssim" and "tsed".
    ``threads`` is the number of CPU threads for the computation.
    """
    found = read_json(job.path)
    if found.get("key") != job.key() or "mean_psnr" not in found or not job.path.with_suffix(".npz").is_file():
        set_threads(threads)
        found = score(job)
    return found


def score(job: Job) -> Json:
    """Fit a neural field to the views of a job that are not held out, and compare its renders with the held-out views.

    Returns the metrics as a JSON dict, such as "psnr" and "ssim" (means over the held-out views; PSNR in dB) and "tsed"
    (fraction of pairs of consecutive views that obey epipolar geometry). Also writes the dict to ``job.path``, that is
    RUN/scores/SCENE.SAMPLER.json, and the held-out views and renders to an .npz file of the same name.
    """
    start, views, config = time.monotonic(), job.views, job.config
    kept = [k for k in range(len(views)) if k not in job.held_out]
    bounds = job.bounds or Bounds.from_cameras(views.cameras)
    scene = fit(views.select(kept), bounds, config.protocol, config.seed, "auto")
    fit_seconds = time.monotonic() - start
    held = views.select(job.held_out)
    render = scene.render_images(held.cameras).clamp(0, 1).cpu().numpy()
    each = compare(held.images.numpy(), render)
    mean_image = views.images[kept].mean(0).numpy()
    to_truth: dict[str, list[float] | list[None]] = {}
    if job.truth is not None:
        chosen = list(job.targets)
        to_truth = compare(job.truth[chosen] / 255, job.images[chosen] / 255)
    epipolar = tsed(views, config.tsed.pairs)
    found: Json = {
        "key": job.key(), "scene": job.scene, "row": job.sampler,
        "psnr": mean(each["psnr"]), "ssim": mean(each["ssim"]), "tsed": epipolar.share,
        "mean_psnr": mean([psnr(image, mean_image) for image in held.images.numpy()]),
        "true_psnr": mean(to_truth.get("psnr", ())), "true_ssim": mean(to_truth.get("ssim", ())),
        "consistent_pairs": epipolar.consistent, "pairs": epipolar.total, "matches": mean(epipolar.matches),
        "held_out": job.held_out, "each": each, "fit_seconds": round(fit_seconds, 2),
    }  # fmt: skip
    job.path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(job.path.with_suffix(".npz")) as file:
        np.savez_compressed(file, held=job.images[job.held_out], render=to_uint8(render))
    write_json(job.path, found)
    return found


def compare(truth: Floats, images: Floats) -> dict[str, list[float] | list[None]]:
    """Compute PSNR and SSIM between image k of ``truth`` and image k of ``images``, both (N, H, W, 3) in [0, 1].

    Returns N values under "psnr", in dB, and N values under "ssim", which are None if a side of the images is smaller
    than 11 pixels (`SSIM_WINDOW`).
    """
    similarity: list[float] | list[None] = [None] * len(truth)
    if min(truth.shape[1:3]) >= SSIM_WINDOW:
        one, other = (torch.from_numpy(stack).double().permute(0, 3, 1, 2) for stack in (truth, images))
        similarity = ssim(one, other, SSIM_WINDOW, padding="valid").mean((1, 2, 3)).tolist()
    return {"psnr": [psnr(*pair) for pair in zip(truth, images, strict=True)], "ssim": similarity}


def held_out_images(folder: Path, metrics: Json) -> tuple[Array, Array]:
    """Read the V held-out views of a scene and the renders of its neural field from ``folder``.

    `score` has stored them there. ``metrics`` is the result of `score`: its entries "scene" and "row" (name of the
    sampler) give the name of the file. Returns two arrays (V, H, W, 3), uint8: views, then renders.
    """
    with np.load(folder / f"{metrics['scene']}.{metrics['row']}.npz", allow_pickle=False) as file:
        return file["held"], file["render"]
