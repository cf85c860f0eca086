"""What learns in the task "train-own-prior": a prior's UNet, shown beside assets that it does not learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from threedgen.config import registry
from threedgen.data.assets.source import AssetViews
from threedgen.data.bank import LatentBank
from threedgen.geometry.images import grid, to_uint8, write_png
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.systems.train_prior.system import DiffusionSystem


class OwnPriorSystem(DiffusionSystem):
    """MVDream's training, whose sample sheet has held-out assets, each above what is drawn of its caption from the
    cameras of its renders; ``fid`` of all these pictures is logged. It is one of few pictures: a trend within a run."""

    shown: AssetViews | None
    features: Any

    def __init__(self, config: Any, prior: MVDream, shown: AssetViews | None, *banks: tuple[float, LatentBank]) -> None:
        """``shown``: the assets of the sheet; None: all that there is is learnt from, and captions alone are drawn."""
        super().__init__(config, prior, *banks)
        self.set_unregistered(shown=shown, features=registry.build("features", config.features) if shown else None)

    def sheet(self, path: Path) -> None:
        if self.shown is None or self.options.sheet_prompts:
            return super().sheet(path)
        count, size = len(self.shown.entries), self.prior.image_size
        made = self.shown.block(range(count), size)
        c2w = torch.from_numpy(made.c2w).unflatten(0, (count, -1))
        drawn = [self.draw(k, caption, c2w[k]) for k, caption in enumerate(made.captions)]
        views, truth = to_uint8(torch.stack(drawn)), to_uint8(made.rgb).reshape(count, -1, size, size, 3)
        pictures = [torch.from_numpy(found).flatten(0, 1) for found in (views, truth)]
        self.metrics["fid"] = self.features.fid(*pictures)
        strips = [grid(found[k], self.shown.n_view) for k in range(count) for found in (truth, views)]
        labels = [text for caption in made.captions for text in (caption, "drawn")]
        write_png(path, grid(strips, 2, labels))
