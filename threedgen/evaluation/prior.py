"""Base class of evaluations that sample a prior, and the task "evaluate-own-prior" on user assets.

RUN/samples/00003.safetensors   batch 3 of the samples; a killed run resumes after its last batch
RUN/report.json, .md            FID and likeness with intervals, for the samples and for other renders of the assets
RUN/drawn.png                   renders and samples of the first assets
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from threedgen.config import registry
from threedgen.data.assets.make import render
from threedgen.data.assets.shards import Shards
from threedgen.data.assets.source import AssetViews
from threedgen.data.bank import Captioned
from threedgen.geometry.images import to_uint8
from threedgen.guidance.prior import Prior
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.run.arrays import Array
from threedgen.run.cache import digest
from threedgen.run.interrupts import Interrupts
from threedgen.run.progress import Count
from threedgen.run.seeding import generator
from threedgen.train.task import Task

from .features import FeatureNetwork
from .metrics.distributions import fid
from .metrics.figures import Estimate, Json, jackknife_estimate, mean_estimate
from .options import EvaluateOwnPriorConfig, SamplingConfig
from .report import figure_table, rounded, thumbnails, write_report, write_strips
from .runner import Evaluation, evaluation_task
from .samples import kept_views, sample_objects
from .view_use import Objects, view_use, view_use_table

SHEET_ASSETS = 24
"""Maximum number of assets on the contact sheet."""
P = TypeVar("P", bound=SamplingConfig)
Row = TypeVar("Row")


class PriorEvaluation(Evaluation[P, int, Row]):
    """Base class of evaluations that sample a diffusion prior. An item is the index of an object."""

    def load_prior(self) -> None:
        """Load the prior of the config as ``self.prior``, and the hash of its weights as ``self.weights``."""
        self.prior: Prior = self.task.load_prior()
        self.weights = digest(self.prior.networks)

    def sample(
        self,
        prompts: Sequence[str],
        c2w: Tensor,
        numbers: Sequence[int],
        purpose: str,
        metadata: Callable[[range], dict[str, str]],
        folder: str = "samples",
        from_noise: bool = False,
    ) -> Array:
        """Sample V views of each of N prompts in batches, or read the batches that an earlier run has written.

        Args:
            c2w: camera-to-world poses (N, V, 4, 4).
            numbers: one number per prompt, which seeds its noise together with ``purpose`` and the seed of the config.
            metadata: function from the prompt indices of a batch to everything that determines its samples. A file
                with other metadata is sampled again.
            folder: subfolder of the run for the batches.
            from_noise: start from noise, even if the prior has a coarse prediction to start from.

        Returns:
            Samples (N, V, H, W, 3), uint8.
        """
        c, count, found = self.config, len(prompts), list[Array]()
        with Interrupts() as interrupts, Count("sampling", count, self.task.quiet) as progress:
            for start in range(0, count, c.batch):
                interrupts.raise_if_stopped()
                indices = range(start, min(start + c.batch, count))

                def sample_batch(indices: range = indices) -> Array:
                    rngs = [generator(c.seed, numbers[k], purpose) for k in indices]
                    options = c.steps, c.guidance_scale, c.negative_prompt, from_noise
                    return sample_objects(self.prior, [prompts[k] for k in indices], c2w[list(indices)], rngs, *options)

                path = self.folder / folder / f"{start // c.batch:05d}.safetensors"
                found.append(kept_views(path, metadata(indices), sample_batch))
                progress.add(len(indices))
        return np.concatenate(found)

    def view_use(self, objects: Captioned) -> tuple[str, Json]:
        """Measure how much an MVDream prior uses the other views of an object (`view_use.py`).

        Returns:
            Section of the report in Markdown, and the same numbers as JSON.
        """
        assert isinstance(self.prior, MVDream)
        figures = view_use(self.prior, Objects.encoded(self.prior, objects), self.config.seed)
        return view_use_table(figures), figures


AssetFeatures = tuple[Array, Array, Array]
"""Features (V, D) of one asset, in this order: true renders, samples, true renders from other cameras."""


class OwnPrior(PriorEvaluation[EvaluateOwnPriorConfig, AssetFeatures]):
    """Task "evaluate-own-prior": compare samples of the captions of user assets with renders of these assets.

    Samples and renders have the same cameras. A row holds the features of one asset.
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
        self.renders = self.views.block(range(count), self.prior.image_size)
        c2w = torch.from_numpy(self.renders.c2w).unflatten(0, (count, -1))
        metadata = {"prior": self.weights, "truth": self.views.describe(), "size": str(self.prior.image_size)}
        options = ("steps", "guidance_scale", "negative_prompt", "seed", "batch")
        metadata |= {key: str(getattr(config, key)) for key in options}
        captions = self.renders.captions
        self.samples = self.sample(captions, c2w, range(count), "drawing an asset", lambda indices: metadata)
        self.truth = to_uint8(self.renders.rgb).reshape(self.samples.shape)
        other = self.other_views.block(range(count), self.samples.shape[2])
        self.other = to_uint8(other.rgb).reshape(self.samples.shape)

    def measure(self, item: int) -> AssetFeatures:
        truth, samples, other = (
            self.features(torch.from_numpy(views[item])).features for views in (self.truth, self.samples, self.other)
        )
        return truth, samples, other

    def report(self, rows: list[AssetFeatures]) -> None:
        config = self.config
        section, use = self.view_use(self.renders)
        truth, samples, other = (np.stack(column) for column in zip(*rows, strict=True))
        figures = {"drawn": compare(samples, truth), "other renders": compare(other, truth)}
        text = f"""# Samples of assets

{len(rows)} assets, {config.n_view} views each from the cameras of their renders, DDIM {config.steps} steps, \
guidance {config.guidance_scale:g}, prior {config.prior.weights}. Features: {self.features.description}.

{figure_table("", figures, {"fid": "FID", "likeness": "likeness"})}

Likeness: cosine between the mean features of an asset's samples and of its renders. In brackets 95 % intervals over
the assets: jackknife for FID, bootstrap for the likeness. Other renders of the same assets are the upper bound.

{section}
"""
        shown = self.entries[:SHEET_ASSETS]
        strips = [thumbnails(views[k]) for k in range(len(shown)) for views in (self.truth, self.samples)]
        labels = [label for entry in shown for label in (entry.caption, "sample")]
        write_strips(self.folder / "drawn.png", strips, labels, columns=2)
        write_report(
            self.task, "report", rounded(figures | {"view_use": use}), text, text, summary={"assets": len(rows)}
        )


def compare(ours: Array, truth: Array) -> dict[str, Estimate]:
    """Compare two sets of features (N, V, D) of V views of N objects.

    Returns:
        fid: FID with its jackknife interval; likeness: mean cosine between the mean features of the same object in both
        sets, with its bootstrap interval. Both intervals are over the N objects.
    """

    def distance(kept: Array) -> float:
        return fid(*(np.concatenate(list(features[kept])) for features in (ours, truth)))

    means = [features.mean(1) for features in (ours, truth)]
    units = [mean / np.linalg.norm(mean, axis=-1, keepdims=True) for mean in means]
    likeness = (units[0] * units[1]).sum(-1).tolist()
    return {"fid": jackknife_estimate(distance, len(truth)), "likeness": mean_estimate(likeness)}


run = evaluation_task(OwnPrior)
