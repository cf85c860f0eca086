"""Base class of evaluations that sample a diffusion prior, and task "evaluate-own-prior" for priors that users trained.

The module also measures view use: how much a prior uses the other views of an object when it denoises one view. The
task samples views for the captions of user assets and compares the samples with renders of the assets:

RUN/samples/00003.safetensors   batch 3 of the samples; a killed run resumes after its last batch
RUN/report.json, .md            FID and likeness (cosine of mean features) with intervals, for the samples and for
                                renders of the assets from other cameras
RUN/samples.png                 renders and samples of the first assets
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from threedgen.config import registry
from threedgen.data.assets.make import render
from threedgen.data.assets.shards import Shards
from threedgen.data.assets.source import AssetViews
from threedgen.data.latent_cache import Captioned, encode
from threedgen.geometry.images import to_uint8
from threedgen.guidance.prior import Prior
from threedgen.run.arrays import Array
from threedgen.run.cache import digest
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import ProgressDisplay
from threedgen.run.seeding import generator
from threedgen.train.task import Task

from .existing import read_existing
from .features import FeatureNetwork
from .metrics.distributions import fid
from .metrics.figures import Estimate, Json, bootstrap_ratio, estimate, jackknife_estimate, mean_estimate
from .options import EvaluateOwnPriorConfig, SamplingConfig
from .report import figure_table, format_estimate, rounded, thumbnails, write_report, write_strips
from .runner import Evaluation, cached_views, evaluation_task, sample_objects

SHEET_ASSETS = 24
EXISTING_SIZE = 64  # side of the renders whose cameras existing views should have, pixels
LEVELS = (350, 500, 650, 800, 950)
"""Diffusion time steps of view 0 at which `measure_view_use` measures the use of the other views."""
CLEAN = 100
"""Diffusion time step, with little noise, of views 1 to V - 1 in the cases "clean" and "completed" of
`measure_view_use`."""
BATCH = 16
P = TypeVar("P", bound=SamplingConfig)
Row = TypeVar("Row")


class PriorEvaluation(Evaluation[P, int, Row]):
    """Base class of evaluations that sample a diffusion prior. An item is the index of an object: 0, 1, ...

    A subclass implements `measure(item)`, which returns the result of one object, and `report(rows)`, which writes the
    report of all results. For this it can call `load_prior`, `sample`, which samples views of prompts, and `view_use`.
    Type variables: P is the class of the config, Row the class of the result of one item.
    """

    prior: Prior | None = None  # None: existing views are measured

    def load_prior(self) -> None:
        if self.config.existing is not None:
            self.weights = f"views in {self.config.existing}"
            return
        self.prior = self.task.load_prior()
        self.weights = digest(self.prior.networks)

    def sample(
        self,
        prompts: Sequence[str],
        c2w: Tensor,
        numbers: Sequence[int],
        purpose: str,
        metadata: Callable[[range], dict[str, str]],
        folder: str = "samples",
    ) -> Array:
        """Sample V views of each of N prompts, in batches. Return images (N, V, H, W, 3), uint8.

        Each batch is written to a file, and a resumed run reads the file. If the option `existing` names a folder, its
        views are read instead (`read_existing`).

        Args:
            prompts: N prompts.
            c2w: camera-to-world poses (N, V, 4, 4), OpenGL axes, z up.
            numbers: one integer per prompt. With ``purpose`` and the config's seed it determines the prompt's noise.
            purpose: text such as "drawing an asset"; calls with different purposes get different noise.
            metadata: function from the prompt indices of a batch to a dict that identifies everything that determines
                the samples of the batch. A file with another dict is replaced.
            folder: subfolder of the run for the batches.
        """
        c, count, found, prior = self.config, len(prompts), list[Array](), self.prior
        if prior is None:
            return read_existing(str(c.existing), self.folder, prompts, c2w, "" if folder == "samples" else folder)
        with Interrupts() as interrupts, ProgressDisplay("sampling", count, self.task.quiet) as progress:
            for start in range(0, count, c.batch):
                interrupts.raise_if_stopped()
                indices = range(start, min(start + c.batch, count))

                def sample_batch(indices: range = indices) -> Array:
                    rngs = [generator(c.seed, numbers[k], purpose) for k in indices]
                    options = c.steps, c.guidance_scale, c.negative_prompt
                    return sample_objects(prior, [prompts[k] for k in indices], c2w[list(indices)], rngs, *options)

                path = self.folder / folder / f"{start // c.batch:05d}.safetensors"
                found.append(cached_views(path, metadata(indices), sample_batch))
                progress.add(len(indices))
        return np.concatenate(found)

    def view_use(self, objects: Captioned) -> tuple[str, Json]:
        """Measure how much the prior uses the other views of an object when it denoises one view.

        ``objects`` has images, camera poses and captions of N objects, V views each. Return a Markdown section and the
        dict of `measure_view_use`: errors of the predicted latents for true, wrong and very noisy other views. The
        prior must accept a different timestep for each view, so its attribute `timestep_per_view` must be True.
        """
        assert self.prior is not None
        figures = measure_view_use(self.prior, Objects.encoded(self.prior, objects), self.config.seed)
        return view_use_table(figures), figures


class Objects(NamedTuple):
    """Views of N objects, V per object, encoded by the VAE of a prior.

    Attributes:
        z: clean latents (N, V, C, h, w), without diffusion noise.
        c2w: camera-to-world poses (N, V, 4, 4), OpenGL axes, z up.
        captions: N captions.
        opposite: latents (N, C, h, w) of view V // 2, opposite to view 0, after mirroring its image left to right.
    """

    z: Tensor
    c2w: Tensor
    captions: list[str]
    opposite: Tensor

    @classmethod
    def encoded(cls, prior: Prior, views: Captioned) -> "Objects":
        """Encode ``views``, the images of N captioned objects with V views per object, with the VAE of a prior."""
        rgb, count = torch.from_numpy(views.rgb), len(views.captions)
        mirrored = rgb.unflatten(0, (count, -1))[:, len(rgb) // count // 2].flip(2)
        z, opposite = (encode(prior.networks["vae"], images).to(prior.device) for images in (rgb, mirrored))
        c2w = torch.from_numpy(views.c2w).float().to(prior.device)
        return cls(z.unflatten(0, (count, -1)), c2w.reshape(count, -1, 4, 4), views.captions, opposite)


@torch.no_grad()
def x0_errors(
    prior: Prior,
    objects: Objects,
    z: Tensor,
    t: Tensor,
    noise: Tensor,
    captions: Sequence[str] | None = None,
    fit_code: bool = False,
) -> np.ndarray:
    """Predict the clean latents of view 0 in one step from noisy latents of all V views of each of N objects.

    Return the mean squared errors (N,) of the predictions, float64.

    Args:
        prior: multi-view diffusion model.
        objects: cameras, and the true latents of view 0.
        z: clean latents (N, V, C, h, w) that noise is added to. View 0 is equal to view 0 of ``objects``.
        t: diffusion time steps (N, V), integers from 0 (little noise) to ``prior.schedule.T`` - 1.
        noise: Gaussian noise (N, V, C, h, w).
        captions: N prompts; None: the empty prompt for all objects.
        fit_code: whether to condition the prior also on an object code (vector of what a caption leaves unspecified),
            fitted to the clean views 1 to V - 1.
    """
    n_view, errors = z.shape[1], []
    for part in torch.arange(len(z)).split(BATCH):
        texts = prior.encode_prompt([""] if captions is None else [captions[k] for k in part])
        texts = texts.expand(len(part), -1, -1)
        if fit_code:
            texts = prior.encode_code(texts, z[part, 1:], objects.c2w[part, 1:], fit=True)
        text = texts.repeat_interleave(n_view, 0)
        camera = prior.camera(objects.c2w[part].flatten(0, 1))
        steps = t[part].flatten().to(z.device)
        x = prior.schedule.add_noise(z[part].flatten(0, 1), noise[part].flatten(0, 1), steps)
        x0 = prior.schedule.x0_from_eps(x, prior.denoise(x, steps, text, camera, n_view), steps)
        miss = x0.unflatten(0, (-1, n_view))[:, 0] - objects.z[part, 0]
        errors.append(miss.square().flatten(1).mean(1).cpu())
    return torch.cat(errors).numpy().astype(float)


def measure_view_use(prior: Prior, objects: Objects, seed: int) -> Json:
    """Measure how much a multi-view prior uses the other views of an object when it denoises one view.

    Noise is added to view 0, and the prior predicts its clean latents in one step. Views 1 to V - 1 of the input, here
    called companions, differ between the cases:

        true         companions are the other views of the same object, with the same noise level as view 0
        wrong        companions are views of another object, with the same noise level as view 0
        alone        companions are the other views at the last time step, which are almost pure noise
        caption      as true, but with the caption of the object; all other cases have the empty prompt
        clean        companions are the other views with little noise (t = 100), and view 0 is at the last time step
        completed    as clean, and the prior is also conditioned on an object code (vector of what a caption leaves
                     unspecified) fitted to the companions; only for priors with object codes

    A prior that ignores the companions has equal errors in the cases true, wrong and alone. The result has mean squared
    errors of the predictions with 95 % intervals. The list "levels" has one dict per time step of view 0 (350, 500, ...
    950), with the errors of true, wrong, alone and caption and the ratios true / alone and wrong / alone. "clean" and
    "completed" are one error each. "copied" is the error if the mirrored view opposite to view 0 is the prediction.
    """
    z, last = objects.z, prior.schedule.T - 1
    noise = torch.randn(z.shape, generator=generator(seed, 0, "view use")).to(z)
    wrong = torch.cat([z[:, :1], z.roll(1, 0)[:, 1:]], 1)
    rows = []
    for level in LEVELS:
        t = torch.full(z.shape[:2], level)
        far = t.clone()
        far[:, 1:] = last
        found = {
            "true": x0_errors(prior, objects, z, t, noise),
            "wrong": x0_errors(prior, objects, wrong, t, noise),
            "alone": x0_errors(prior, objects, z, far, noise),
            "caption": x0_errors(prior, objects, z, t, noise, objects.captions),
        }
        row: Json = {"t": level} | {name: mean_estimate(list(errors)) for name, errors in found.items()}
        for name in ("true", "wrong"):
            ratio = float(found[name].mean() / found["alone"].mean())
            row[f"{name}_over_alone"] = estimate(ratio, bootstrap_ratio(list(found[name]), list(found["alone"])))
        rows.append(row)
    t = torch.full(z.shape[:2], CLEAN)
    t[:, 0] = last
    clean = mean_estimate(list(x0_errors(prior, objects, z, t, noise)))
    copied = mean_estimate((objects.opposite - z[:, 0]).square().flatten(1).mean(1).tolist())
    figures: Json = {"objects": len(z), "variance": float(z.var()), "levels": rows, "clean": clean, "copied": copied}
    if prior.has_code:
        figures["completed"] = mean_estimate(list(x0_errors(prior, objects, z, t, noise, fit_code=True)))
    return rounded(figures)


def view_use_table(figures: Json) -> str:
    heads = {
        "true": "true companions", "wrong": "another object's", "alone": "alone", "true_over_alone": "true / alone",
        "wrong_over_alone": "another's / alone", "caption": "with the caption",
    }  # fmt: skip
    completed = format_estimate(figures["completed"]) if "completed" in figures else "-"
    return f"""## Use of the other views

Squared error of the predicted clean latents of one view, empty prompt, {figures["objects"]} objects; the variance of
the latents is {figures["variance"]:.2f}.

{figure_table("t", {str(row["t"]): row for row in figures["levels"]}, heads)}

Companions nearly clean (t = {CLEAN}), the view itself at the last time step: {format_estimate(figures["clean"])};
with an object code fitted to the companions, as when views are completed: {completed};
copying the mirrored opposite view: {format_estimate(figures["copied"])}."""


AssetFeatures = tuple[Array, Array, Array]
"""Features (V, D) of one asset, in this order: true renders, samples, true renders from other cameras."""


class OwnPrior(PriorEvaluation[EvaluateOwnPriorConfig, AssetFeatures]):
    """Task "evaluate-own-prior": evaluate a prior that was trained on a user's assets (meshes with captions).

    For the caption of each asset it samples views, which are compared with renders of the asset from the same cameras,
    by FID and by the cosine of mean features. An item, the argument of `measure`, is the index of an asset; the result
    is its features (V, D): of V renders, of V samples, and of V renders from other cameras.
    """

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        config = self.config
        shards = Shards(config.rendered) if config.rendered else render(config, self.folder, task.quiet)
        self.entries = shards.entries[: config.count]
        self.features: FeatureNetwork = registry.build("features", config.features)
        self.views, self.other_views = (
            AssetViews(shards, self.entries, seed, config.n_view) for seed in (config.seed, config.seed + 1)
        )
        self.items = range(len(self.entries))
        self.load_prior()

    def prepare(self) -> None:
        config, count = self.config, len(self.entries)
        size = EXISTING_SIZE if self.prior is None else self.prior.image_size
        self.renders = self.views.render_examples(range(count), size)
        c2w = torch.from_numpy(self.renders.c2w).unflatten(0, (count, -1))
        metadata = {"prior": self.weights, "truth": self.views.describe(), "size": str(size)}
        options = ("steps", "guidance_scale", "negative_prompt", "seed", "batch")
        metadata |= {key: str(getattr(config, key)) for key in options}
        captions = self.renders.captions
        self.samples = self.sample(captions, c2w, range(count), "drawing an asset", lambda indices: metadata)
        if self.prior is None:
            self.renders = self.views.render_examples(range(count), self.samples.shape[2])
        self.truth = to_uint8(self.renders.rgb).reshape(self.samples.shape)
        other = self.other_views.render_examples(range(count), self.samples.shape[2])
        self.other = to_uint8(other.rgb).reshape(self.samples.shape)

    def measure(self, item: int) -> AssetFeatures:
        truth, samples, other = (
            self.features(torch.from_numpy(views[item])).features for views in (self.truth, self.samples, self.other)
        )
        return truth, samples, other

    def report(self, rows: list[AssetFeatures]) -> None:
        config = self.config
        truth, samples, other = (np.stack(column) for column in zip(*rows, strict=True))
        compared = {"samples": compare(samples, truth), "other renders": compare(other, truth)}
        section, use = "", Json()
        if self.prior is not None and self.prior.timestep_per_view and config.n_view > 1:
            section, use = self.view_use(self.renders)
        sampled = f"DDIM {config.steps} steps, guidance {config.guidance_scale:g}, prior {config.prior.weights}"
        text = f"""# Samples of assets

{len(rows)} assets, {config.n_view} views each from the cameras of their renders, \
{sampled if self.prior else self.weights}. Features: {self.features.description}.

{figure_table("", compared, {"fid": "FID", "likeness": "likeness"})}

Likeness: cosine between the mean features of an asset's samples and of its renders. In brackets 95 % intervals over
the assets: jackknife for FID, bootstrap for the likeness. Other renders of the same assets are the upper bound.

{section}
"""
        shown = self.entries[:SHEET_ASSETS]
        strips = [thumbnails(views[k]) for k in range(len(shown)) for views in (self.truth, self.samples)]
        labels = [label for entry in shown for label in (entry.caption, "sample")]
        write_strips(self.folder / "samples.png", strips, labels, columns=2)
        figures = rounded(compared | {"view_use": use})
        write_report(self.task, "report", figures, text, text, summary={"assets": len(rows)})


def compare(ours: Array, truth: Array) -> dict[str, Estimate]:
    """Compare two sets of features (N, V, D) of V views of N objects. Return a dict with "fid" and "likeness".

    Both metrics have 95 % intervals for the choice of the N objects. Likeness is the cosine between the mean features
    (D,) of an object in the two sets, averaged over the objects.
    """

    def distance(kept: Array) -> float:
        return fid(*(np.concatenate(list(features[kept])) for features in (ours, truth)))

    means = [features.mean(1) for features in (ours, truth)]
    units = [mean / np.linalg.norm(mean, axis=-1, keepdims=True) for mean in means]
    likeness = (units[0] * units[1]).sum(-1).tolist()
    return {"fid": jackknife_estimate(distance, len(truth)), "likeness": mean_estimate(likeness)}


run = evaluation_task(OwnPrior)
