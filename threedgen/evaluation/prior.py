"""Base class of evaluations that sample a diffusion prior, and task "evaluate-own-prior" for priors that users trained.

The task samples views for the captions of user assets and compares the samples with renders of the assets:

RUN/samples/00003.safetensors   batch 3 of the samples; a killed run resumes after its last batch
RUN/report.json, .md            FID and likeness (cosine of mean features) with intervals, for the samples and for
                                renders of the assets from other cameras
RUN/samples.png                 renders and samples of the first assets
"""

from collections.abc import Callable, Sequence
from typing import ClassVar, TypeVar

import numpy as np
import torch
from torch import Tensor

from threedgen.config import registry
from threedgen.data.assets.make import render
from threedgen.data.assets.shards import Shards
from threedgen.data.assets.source import AssetViews, split
from threedgen.data.latent_cache import Captioned
from threedgen.geometry.images import to_uint8
from threedgen.guidance.prior import Prior
from threedgen.run.arrays import Array
from threedgen.run.cache import digest
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import ProgressDisplay
from threedgen.run.seeding import generator
from threedgen.train.task import Task

from .existing import plain_background, read_existing
from .features import FeatureNetwork
from .metrics.distributions import fid
from .metrics.figures import Estimate, Json, jackknife_estimate, mean_estimate
from .options import EvaluateOwnPriorConfig, SamplingConfig
from .report import figure_table, rounded, thumbnails, write_report, write_strips
from .runner import FOV, Evaluation, cached_views, evaluation_task, sample_objects
from .view_use import Objects, measure_view_use, view_use_table

SHEET_ASSETS = 24
EXISTING_SIZE = 64  # side of the renders whose cameras existing views should have, pixels
P = TypeVar("P", bound=SamplingConfig)
Row = TypeVar("Row")


class PriorEvaluation(Evaluation[P, int, Row]):
    """Base class of evaluations that sample a diffusion prior. An item is the index of an object: 0, 1, ...

    A subclass implements `measure(item)`, which returns the result of one object, and `report(rows)`, which writes the
    report of all results. It can call these methods:

    - `load_prior()` loads the prior of the config, unless the option `existing` names a folder of existing views.
    - `sample(...)` samples views of prompts with the prior, or reads the existing views.
    - `view_use(objects)` measures how much the prior uses the other views of an object when it denoises one view.

    Type variables: P is the class of the config, Row the class of the result of one item.
    """

    prior: Prior | None = None  # None: existing views are measured
    fov: float | Array = FOV  # vertical field of view in radians, one or (N, V), for the table of wanted views
    grey_truth: ClassVar[bool] = True  # whether the samples are compared with renders on grey

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
            part = "" if folder == "samples" else folder
            return read_existing(str(c.existing), self.folder, prompts, c2w, self.fov, part, self.grey_truth)
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

        View 0 of each object is denoised with the other views of the same object, with those of another object, and
        with almost pure noise in their place. A prior that ignores the other views has equal errors in all three cases.
        The prior must accept a different timestep for each view: `prior.timestep_per_view` must be True.

        ``objects`` has images, camera poses and captions of N objects, V views each. Return a Markdown section with a
        table of the errors (mean squared errors of the predicted latents), and the dict of `measure_view_use`, which
        has the same errors by noise level.
        """
        assert self.prior is not None
        figures = measure_view_use(self.prior, Objects.encoded(self.prior, objects), self.config.seed)
        return view_use_table(figures), figures


AssetFeatures = tuple[Array, Array, Array]
"""Features (V, D) of one asset, in this order: true renders, samples, true renders from other cameras."""


class OwnPrior(PriorEvaluation[EvaluateOwnPriorConfig, AssetFeatures]):
    """Task "evaluate-own-prior": evaluate a prior that was trained on a user's assets (meshes with captions).

    For the caption of each asset it samples V views. FID and the cosine of mean features compare the samples with
    renders of the asset from the same cameras. To show the best values that samples can reach, renders of the asset
    from other cameras are compared with the same renders, if there are enough (two rings, or 2 V views on one ring).

    An item, the argument of `measure`, is the index of an asset. `measure` returns three arrays of features (V, D), one
    row of D numbers per view: of the renders, of the samples, and of the renders from other cameras.
    """

    grey_truth = False  # the renders get the background of existing views

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        config = self.config
        task.log_notes()
        shards = Shards(config.rendered) if config.rendered else render(config, self.folder, task.quiet)
        entries = shards.entries if config.held_out is None else split(shards, config.held_out, "held-out")
        self.entries = entries[: config.count]
        self.features: FeatureNetwork = registry.build("features", config.features)
        self.views, self.other_views = (
            AssetViews(shards, self.entries, config.seed, config.n_view, other) for other in (False, True)
        )
        self.has_others = shards.rings > 1 or shards.azimuths >= 2 * config.n_view
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
        self.fov = np.array([self.views.fov(k) for k in range(count)])
        self.samples = self.sample(captions, c2w, range(count), "drawing an asset", lambda indices: metadata)
        self.truth, self.other = map(self.rendered, (self.views, self.other_views))

    def rendered(self, views: AssetViews) -> Array:
        # one asset after another, because large views of all assets may not fit into memory as floats
        found, size = list[Array](), self.samples.shape[2]
        for k, samples in enumerate(self.samples):
            # existing views on white are compared with renders on white
            background = plain_background(samples[None]) if self.prior is None else None
            found.append(to_uint8(views.render_examples(range(k, k + 1), size, background).rgb))
        return np.stack(found)

    def measure(self, item: int) -> AssetFeatures:
        truth, samples, other = (
            self.features(torch.from_numpy(views[item])).features for views in (self.truth, self.samples, self.other)
        )
        return truth, samples, other

    def report(self, rows: list[AssetFeatures]) -> None:
        config = self.config
        truth, samples, other = (np.stack(column) for column in zip(*rows, strict=True))
        compared = {"samples": compare(samples, truth)}
        compared |= {"other renders": compare(other, truth)} if self.has_others else {}
        section, use = "", Json()
        if self.prior is not None and self.prior.timestep_per_view and len(rows) > 1:  # it needs another object
            section, use = self.view_use(self.renders)
        sampled = f"DDIM {config.steps} steps, guidance {config.guidance_scale:g}, prior {config.prior.weights}"
        text = f"""# Samples of assets

{len(rows)} assets, {config.n_view} views each from the cameras of their renders, \
{sampled if self.prior else self.weights}. Features: {self.features.description}.

{figure_table("", compared, {"fid": "FID", "likeness": "likeness"})}

Likeness: cosine between the mean features of an asset's samples and of its renders. In brackets 95 % intervals over
the assets: jackknife for FID, bootstrap for the likeness. Other renders of the same assets, if there are any, are the
upper bound.

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
