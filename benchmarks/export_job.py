"""One line of figures for the acceptance table: python -m benchmarks.export_job JSON makes an asset and measures it."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from threedgen.config.errors import ConfigError
from threedgen.export.asset import ExportedAsset, make_asset
from threedgen.export.files.read_glb import read_glb
from threedgen.export.options import AssetConfig
from threedgen.export.run_field import open_run, provenance
from threedgen.export.shape.from_field import FieldView, dense_surface
from threedgen.export.surface.pictures import FOV, Shots, around
from threedgen.export.task import export_view
from threedgen.run.folder import write_atomic
from threedgen.run.metrics import peak_memory

from .creature import Creature
from .export import FAILED, Job
from .export_figures import at_home, of_asset, of_rule, v_up
from .likeness import likeness
from .voxels import Voxels


class Watch:
    """Sums up the seconds that a field takes to answer."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def over(self, view: FieldView) -> FieldView:
        """The same field, watched."""
        pictures = None if view.pictures is None else self._timed(view.pictures)
        return replace(view, density=self._timed(view.density), colour=self._timed(view.colour), pictures=pictures)

    def _timed(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        def asked(where: Any) -> Any:
            begun = time.perf_counter()
            answer = function(where)
            self.seconds += time.perf_counter() - begun
            return answer

        return asked


def measure(job: Job) -> dict[str, Any]:
    """All figures of one asset, or the hashes of its files alone. Raises ConfigError for a field that makes none."""
    creature = None if job.run else Creature(job.shape, job.seed)
    voxels = None if creature is None else Voxels(creature, job.grid)
    metadata: dict[str, Any] = {"seed": job.seed}
    if voxels is None:
        source = open_run(Path(str(job.run)))
        view, metadata = source.view, provenance(source.config, source.steps)
    else:
        view = voxels.view()
    config = AssetConfig(budget=job.triangles, texture=job.texture, lods=job.levels, height=job.height,
                         refine=job.pictures, resolution=job.grid)  # fmt: skip
    warm_up()
    watch = Watch()
    watched = watch.over(view)
    reset_peak()
    held, begun = peak_memory() or 0.0, time.perf_counter()
    dense, _ = dense_surface(watched, job.grid)
    surface = time.perf_counter() - begun
    asset = export_view(watched, dense, config, job.name, metadata)
    seconds = time.perf_counter() - begun - watch.seconds
    figures: dict[str, Any] = {"made": 1, "seconds": seconds, "memory": (peak_memory() or 0.0) - held}
    figures["parts"] = {"surface": surface} | asset.seconds
    figures["hashes"] = {name: hashlib.sha256(data).hexdigest() for name, data in asset.files.items()}
    if job.bytes_only:
        return figures
    if job.out is not None:
        Path(job.out).mkdir(parents=True, exist_ok=True)
        for name, data in asset.files.items():
            write_atomic(Path(job.out) / name, data)
    baked = export_view(view, dense, config.model_copy(update={"refine": 0}), job.name, metadata)
    figures |= of_asset(asset, dense, job.triangles, job.height) | _likeness(job, view, asset, baked)
    if creature is not None and voxels is not None:
        figures |= of_rule(creature, voxels.sigma[0, 0].numpy(), job.coarse)
    if job.out is not None:
        write_atomic(Path(job.out) / f"{job.name}.json", json.dumps(figures, indent=1, default=float) + "\n")
    return figures


def _likeness(job: Job, view: FieldView, asset: ExportedAsset, baked: ExportedAsset) -> dict[str, float]:
    """Mesh against field, before and after the texture was refined: the two assets differ in nothing else."""
    assert view.pictures is not None
    file = read_glb(asset.files[f"{job.name}.glb"])
    before = read_glb(baked.files[f"{job.name}.glb"])
    textures = {"baked": before.images["baseColorTexture"], "refined": file.images["baseColorTexture"]}
    figures = likeness(
        view.pictures, view.radius, *at_home(file, asset), v_up(file),
        {name: pixels.astype(np.float32) / 255 for name, pixels in textures.items()}, job.views, job.pixels,
    )  # fmt: skip
    return figures | {"gain": figures["inside refined"] - figures["inside baked"]}


def warm_up() -> None:
    """A small asset, so that compiling is neither in the seconds nor in the memory of the next one."""
    ball = FieldView(lambda x: 60 * torch.sigmoid((0.5 - x.norm(dim=-1)) / 0.02), lambda x: 0 * x + 0.5, 1.0)
    dense, _ = dense_surface(ball, 24)
    poses = around(1, 16).c2w.numpy()
    shots = Shots(poses, FOV, np.full((1, 16, 16, 3), 0.5), np.ones((1, 16, 16)))
    make_asset(dense, AssetConfig(budget=100, texture=64, lods=(50,)), shoot=lambda: shots)


def reset_peak() -> None:
    """Begins the count of the peak memory anew, where the system can do that."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


def main(words: list[str]) -> int:
    """Measure and print."""
    metadata = json.loads(words[0])
    try:
        figures = measure(Job(**metadata | {"levels": tuple(metadata["levels"])}))
    except ConfigError as error:
        print(error, file=sys.stderr)
        return FAILED
    print(json.dumps(figures, default=float))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
