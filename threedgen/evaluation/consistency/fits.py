"""Scores single scenes by a field for each, side by side if there are workers, kept on the disk one by one.

RUN/scores/SCENE.ROW.json has the figures, with a key of everything that they depend on, SCENE.ROW.npz the held-out
views and the field's renders of them, uint8. A row is a sampler's name, or "original".
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from kornia.metrics import ssim

from threedgen.config import config_hash
from threedgen.config.plain_file import read_json
from threedgen.evaluation.metrics.figures import Floats, mean
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import psnr, to_uint8
from threedgen.geometry.views import Views
from threedgen.representations.fit import Bounds, fit
from threedgen.run.disk import atomic_file, write_json
from threedgen.run.threads import set_threads

from .options import ConsistencyConfig
from .tsed import tsed

Score = dict[str, Any]
WINDOW = 11
"""Pixels a side of SSIM's Gaussian window of sigma 1.5 (Wang et al. 2004)."""


@dataclass(frozen=True)
class Job:
    """One field to fit: the views of a scene, 8-bit, and all that decides its score. Travels to workers.

    ``truth``: the true views, with which those at the places ``drawn`` are compared besides.
    """

    config: ConsistencyConfig
    scene: str
    row: str
    images: np.ndarray
    c2w: np.ndarray
    K: np.ndarray
    held: list[int]
    truth: np.ndarray | None = None
    drawn: list[int] = field(default_factory=list)

    @classmethod
    def of(cls, config: ConsistencyConfig, scene: str, row: str, views: Views, held: list[int], **more: Any) -> Job:
        """Packs ``views``; ``more``: truth and drawn."""
        return cls(
            config, scene, row, to_uint8(views.images), views.cameras.c2w.numpy(), views.cameras.K.numpy(), held, **more
        )

    @property
    def views(self) -> Views:
        height, width = self.images.shape[1:3]
        at = Cameras(torch.from_numpy(self.c2w), Projection(torch.from_numpy(self.K)), height, width)
        return Views(torch.from_numpy(self.images).float() / 255, at)

    @property
    def path(self) -> Path:
        """The file of the figures; the pictures are beside them."""
        return Path(str(self.config.out)) / "scores" / f"{self.scene}.{self.row}.json"

    def key(self) -> str:
        """Hashes everything that decides the score to 16 hex digits."""
        digest = hashlib.sha256()
        truth = () if self.truth is None else (self.truth,)
        for array in (self.images, self.c2w, self.K, *truth):
            digest.update(str(array.shape).encode() + np.ascontiguousarray(array).tobytes())
        c = self.config
        rest = [c.seed, self.held, self.drawn, config_hash(c.protocol), config_hash(c.tsed)]
        digest.update(json.dumps(rest).encode())
        return digest.hexdigest()[:16]


def stored(job: Job) -> Score | None:
    """Reads the score of a job that was done before; None if there is none, or it is damaged or of other views."""
    found = read_json(job.path)
    return found if found.get("key") == job.key() and job.path.with_suffix(".npz").is_file() else None


def score(job: Job) -> Score:
    """Fits, renders what was held out, compares, and writes it down: the pictures first, so that figures mean both."""
    begun, views, config = time.monotonic(), job.views, job.config
    rest = [k for k in range(len(views)) if k not in job.held]
    scene = fit(views.select(rest), Bounds.from_cameras(views.cameras), config.protocol, config.seed, config.device)
    fitted = time.monotonic() - begun
    truth = views.select(job.held)
    render = scene.render_images(truth.cameras).clamp(0, 1).cpu().numpy()
    each = compared(truth.images.numpy(), render)
    to_truth = {} if job.truth is None else compared(job.truth[job.drawn] / 255, job.images[job.drawn] / 255)
    epipolar = tsed(views, config.tsed)
    found: Score = {
        "key": job.key(), "scene": job.scene, "row": job.row,
        "psnr": mean(each["psnr"]), "ssim": mean(each["ssim"]), "tsed": epipolar.share,
        "true_psnr": mean(to_truth.get("psnr", ())), "true_ssim": mean(to_truth.get("ssim", ())),
        "consistent_pairs": epipolar.consistent, "pairs": epipolar.total,
        "matches": mean([float(n) for n in epipolar.matches]),
        "held_out": job.held, "each": each, "fit_seconds": round(fitted, 2),
    }  # fmt: skip
    job.path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(job.path.with_suffix(".npz")) as file:
        np.savez_compressed(file, held=job.images[job.held], render=to_uint8(render))
    write_json(job.path, found)
    return found


def compared(truth: Floats, images: Floats) -> dict[str, list[float] | list[None]]:
    """Compares the pictures of two stacks (N, H, W, 3) in [0, 1] pair by pair: PSNR, and SSIM unless the pictures are
    smaller than its window."""
    similar: list[float] | list[None] = [None] * len(truth)
    if min(truth.shape[1:3]) >= WINDOW:
        one, other = (torch.from_numpy(stack).double().permute(0, 3, 1, 2) for stack in (truth, images))
        similar = ssim(one, other, WINDOW, padding="valid").mean((1, 2, 3)).tolist()
    return {"psnr": [psnr(*pair) for pair in zip(truth, images, strict=True)], "ssim": similar}


def score_with(threads: int, job: Job) -> Score:
    """``score`` with so many CPU threads, in a worker."""
    set_threads(threads)
    return score(job)
