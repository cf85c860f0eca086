"""The sheet of samples: held-out scenes, the given view, views sampled from it, and the true ones below."""

from __future__ import annotations

from pathlib import Path

import torch

from threedgen.data.srn.pairs import PairBank
from threedgen.geometry.images import grid, readable, write_png
from threedgen.geometry.views import Views
from threedgen.guidance.threedim.model import ViewModel
from threedgen.guidance.threedim.sampler import sample_views
from threedgen.run.seeding import generator

from .options import PairTrainingConfig


def write_sheet(
    path: Path, model: ViewModel, bank: PairBank, options: PairTrainingConfig, seed: int, device: torch.device
) -> None:
    """Two rows for each scene: given and sampled by stochastic conditioning; given and true."""
    scenes = [bank.train + k for k in range(min(options.sheet_scenes, bank.held_out))]
    truth = [once_around(bank.source.scene(scene), options.sheet_views + 1) for scene in scenes]
    count = len(truth[0])
    images = torch.stack([views.images[:1] for views in truth]).to(device)
    x = model.from_pictures(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    c2w = torch.stack([views.at.c2w for views in truth]).to(device)
    K = torch.stack([views.at.K[0] for views in truth]).to(device)
    rngs = [generator(seed, scene, "sheet") for scene in scenes]
    steps = 1 if options.regression else options.sheet_steps
    drawn = sample_views(
        model, x, c2w[:, :1], c2w[:, 1:], K, rngs, steps=steps, guidance_scale=options.sheet_guidance, clip=model.clip
    )
    sampled = [model.to_pictures(one).float().cpu() for one in drawn]
    rows, labels = [], []
    for views, made in zip(truth, sampled, strict=True):
        rows += [views.images[:1], made, views.images]
        labels += ["given", *["sampled"] * (count - 1), "given", *["true"] * (count - 1)]
    write_png(path, grid(readable(torch.cat(rows)), count, labels))


def once_around(views: Views, count: int) -> Views:
    """Some of the views, evenly chosen, in the order of their azimuths."""
    place = views.at.position
    order = torch.atan2(place[:, 1], place[:, 0]).argsort()
    some = torch.linspace(0, len(order) - 1, min(count, len(order))).round().long()
    return views.select(order[some])
