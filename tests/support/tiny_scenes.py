"""Scenes for tests: panoramas of coloured faces, and walks along a striped wall, a few pixels large; mean colours as
features."""

from math import pi
from pathlib import Path
from typing import ClassVar, Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.tiny_mvdiffusion import tiny_model, wall
from threedgen.config import Config, registry
from threedgen.data.scene_views import SceneViews
from threedgen.evaluation.features import FeatureNetwork, NetworkOutput
from threedgen.geometry import panorama
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import opencv_axes
from threedgen.geometry.views import Views
from threedgen.geometry.warp import pixel_grid, unproject
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.guidance.priors.options import MVDiffusionConfig
from threedgen.guidance.weights.loading import Identity


class TinyScenesConfig(Config):
    has_depth: ClassVar[bool] = False

    name: Literal["tiny"] = "tiny"
    depth: bool = False
    views: int = 8
    count: int = 20
    size: int = 16


class TinyScenes:
    """``count`` scenes, each another one in each split."""

    def __init__(self, config: TinyScenesConfig, seed: int = 0, split: str = "train") -> None:
        self.options, self.n_view, self.first = config, config.views, 1000 * (split == "test") + seed

    def __len__(self) -> int:
        return self.options.count

    def describe(self) -> str:
        return "tiny scenes"

    def scene(self, index: int) -> SceneViews:
        rng = torch.Generator().manual_seed(self.first + index)
        images, K, c2w, depth = (self._walk if self.options.depth else self._panorama)(rng)
        K = K.expand(len(c2w), 3, 3).float().clone()
        K[:, :2, 2] += 0.5
        at = Cameras(opencv_axes(c2w.float()), Projection(K), *images.shape[1:3])
        return SceneViews(Views(images, at), ("a red dog",) * len(images), depth)

    def _panorama(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, None]:
        size = self.options.size
        K, R = panorama.intrinsics(pi / 2, size, size), panorama.ring(self.n_view)
        faces = F.interpolate(torch.rand(6, 3, 3, 3, generator=rng), 64, mode="bilinear")
        c2w = F.pad(R, (0, 1, 0, 1))
        c2w[:, 3, 3] = 1
        return panorama.skybox_views(faces, K, R, size, size).permute(0, 2, 3, 1), K, c2w, None

    def _walk(self, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        walk, pixels = wall(self.n_view, 16, 24), pixel_grid(16, 24).flatten(0, 1)
        phase = 6 * torch.rand(3, generator=rng)
        points = [unproject(pixels, walk.depth[n].flatten(), walk.K[n], walk.c2w[n]) for n in range(self.n_view)]
        images = torch.stack([0.5 + 0.4 * torch.sin(2 * p + phase).view(16, 24, 3) for p in points]).float()
        return images, walk.K, walk.c2w, walk.depth.float()


class MeansConfig(Config):
    name: Literal["means"] = "means"


class Means(FeatureNetwork):
    description = "means"

    def __init__(self, config: MeansConfig) -> None:
        pass

    def __call__(self, images: Tensor) -> NetworkOutput:
        means = F.adaptive_avg_pool2d(images.permute(0, 3, 1, 2) / 255, 2).flatten(1).numpy()
        return NetworkOutput(means, 8 * means)


def build(options: MVDiffusionConfig, device: str = "cpu") -> MVDiffusion:
    """A random model of the kind that the name of its blocks says."""
    return tiny_model(str(options.blocks).removeprefix("toybox-"))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The registry has them: scenes "tiny" and features "means"; the prior "mvdiffusion" is random."""
    monkeypatch.setattr(registry, "TABLE", {kind: dict(table) for kind, table in registry.TABLE.items()})
    here = "tests.support.tiny_scenes"
    registry.register("scene-source", "tiny", f"{here}:TinyScenes", f"{here}:TinyScenesConfig")
    registry.register("features", "means", f"{here}:Means", f"{here}:MeansConfig")
    registry.register("prior", "mvdiffusion", f"{here}:build", "threedgen.guidance.priors.options:MVDiffusionConfig")
    monkeypatch.setattr(MVDiffusionConfig, "identify", lambda prior: {"weights": Identity(Path("random"), 0, "0" * 64)})
