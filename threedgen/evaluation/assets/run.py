"""Carries out the task "evaluate-own-prior": has a prior draw assets by their captions, and compares that with their
renders from the same cameras.

RUN/samples/             what was drawn, kept: a run that was killed goes on
RUN/report.json, .md     FID and likeness with intervals, and beside them those of other renders of the same assets
RUN/drawn.png            of the first assets the truth, then what was drawn
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch

from threedgen.config import registry
from threedgen.data.assets.make import render
from threedgen.data.assets.shards import Shards
from threedgen.data.assets.source import AssetViews
from threedgen.data.bank import Captioned
from threedgen.evaluation.metrics.distributions import fid
from threedgen.evaluation.metrics.figures import jackknife_estimate, mean_estimate
from threedgen.evaluation.metrics.view_use import Objects, view_use, view_use_table
from threedgen.evaluation.sampling import drawn_in_batches
from threedgen.evaluation.tables import finish, markdown_table, rounded, thumbnails, with_interval, write_strips
from threedgen.geometry.images import to_uint8
from threedgen.run.arrays import Array
from threedgen.run.cache import digest
from threedgen.run.seeding import generator
from threedgen.train.task import Task, run_task

from .options import EvaluateOwnPriorConfig

SMALL = 96
"""Pixels of a view on the sheet."""


def evaluate(task: Task) -> None:
    """Renders if need be, draws, compares. Raises ConfigError, Stopped."""
    config: EvaluateOwnPriorConfig = task.config
    shards = Shards(config.rendered) if config.rendered else render(config, task.folder, task.quiet)
    entries, look = shards.entries[: config.count], registry.build("features", config.features)
    truth, other = (AssetViews(shards, entries, seed, config.n_view) for seed in (config.seed, config.seed + 1))
    prior = task.load_prior()
    made = truth.block(range(len(entries)), prior.image_size)
    true, drawn = draw_all(task, truth.describe(), prior, made)
    use = view_use(prior, Objects.encoded(prior, made), config.seed)
    size = true.shape[2]
    second = to_uint8(other.block(range(len(entries)), size).rgb).reshape(true.shape)
    features = [np.stack([look(torch.from_numpy(views))[0] for views in row]) for row in (true, drawn, second)]
    figures = {"drawn": compare(features[1], features[0]), "other renders": compare(features[2], features[0])}
    strips = [thumbnails(row[k], SMALL) for k in range(min(config.drawn, len(entries))) for row in (true, drawn)]
    labels = [text for entry in entries[: config.drawn] for text in (entry.caption, "drawn")]
    write_strips(task.folder / "drawn.png", strips, labels, columns=2)
    lines = [[name, *(with_interval(row[key]) for key in ("fid", "likeness"))] for name, row in figures.items()]
    text = f"""# How near a prior comes to assets

{len(entries)} assets, {config.n_view} views each from the cameras of their renders, DDIM {config.steps} steps, \
guidance {config.guidance_scale:g}, prior {config.prior.weights}. Features: {look.about}.

{markdown_table(["", "FID", "likeness"], lines)}

Likeness: the cosine between the mean features of an asset's views and of its renders. In brackets 95 % intervals over
the assets: jackknife of FID, bootstrap of the likeness. Other renders of the same assets are as near as can be.

{view_use_table(use)}
"""
    finish(task, "report", text, rounded(figures | {"view_use": use}), text, assets=len(entries))


def draw_all(task: Task, source: str, prior: Any, made: Captioned) -> tuple[Array, Array]:
    """Renders and samples of all assets, each (N, V, H, W, 3) uint8. Raises Stopped after Ctrl-C."""
    config, count = task.config, len(made.captions)
    c2w = torch.from_numpy(made.c2w).unflatten(0, (count, -1))
    told = {"prior": digest(prior.networks), "truth": source, "size": str(prior.image_size)}
    told |= {key: str(getattr(config, key)) for key in ("steps", "guidance_scale", "negative_prompt", "seed", "batch")}

    def draw(chosen: range) -> Array:
        rngs = [generator(config.seed, k, "drawing an asset") for k in chosen]
        how = config.steps, config.guidance_scale, config.negative_prompt, rngs
        views = prior.sample([made.captions[k] for k in chosen], c2w[list(chosen)], *how)
        return to_uint8(views.unflatten(0, (len(chosen), -1)))

    drawn = drawn_in_batches(task, count, lambda chosen: told, draw)
    return to_uint8(made.rgb).reshape(drawn.shape), drawn


def compare(ours: Array, true: Array) -> dict[str, Any]:
    """Computes FID and likeness of features (N, V, D), with intervals."""

    def distance(kept: Array) -> float:
        return fid(*(np.concatenate(list(row[kept])) for row in (ours, true)))

    middle = [row.mean(1) / np.linalg.norm(row.mean(1), axis=-1, keepdims=True) for row in (ours, true)]
    alike = (middle[0] * middle[1]).sum(-1).tolist()
    return {"fid": jackknife_estimate(distance, len(true)), "likeness": mean_estimate(alike)}


run = partial(run_task, evaluate, result="report.md", again=True)
