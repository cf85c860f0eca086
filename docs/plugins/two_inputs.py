"""Training step with two inputs of the prior: the colours, and the normals of the same object from other cameras.

    python launch.py --plugin docs/plugins/two_inputs.py system.name=two-inputs prompt="a red penguin"

Also a metric and an exporter: `metrics=[mean_radius]`, `result.exporters=[depth-maps]`.
"""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from threedgen.config import Scheduled, at
from threedgen.config.registry import register
from threedgen.geometry.rigs import turntable
from threedgen.systems.generate.phases import StepResult
from threedgen.systems.generate.sections import SystemConfig
from threedgen.systems.generate.system import GenerateSystem


class TwoInputsConfig(SystemConfig):
    """Distillation from colours and from normals."""

    name: Literal["two-inputs"] = "two-inputs"
    normals: Scheduled = Field({"0%": 0.5, "100%": 0.1}, ge=0, description="weight of the loss of the normals, by step")
    image_interval: int = Field(50, ge=1, description="steps between logged images of the normals")


class TwoInputsSystem(GenerateSystem):
    """Adds the distillation loss of a second render, of normals."""

    def distillation_loss(self, step: int) -> StepResult:
        """Return the loss of the colours plus that of the normals."""
        result, options = super().distillation_loss(step), self.config.system
        rig = self.training_rig(step + self.max_steps)  # other cameras than those of the colours
        render = self.render(rig.cameras, step, training=True, normals=True)
        views = self.rendered_views(render, rig)
        views = replace(views, images=views.normals)
        if step % options.image_interval == 0:
            self.log_image("normals", views.images[0])
        latents = self.prior.encode_images(views.images, self.rng(step, "posterior of normals"))
        rng = self.rng(step, "distillation of normals")
        loss, _ = self.distillation(latents, self.prior.denoise, self.condition(rig), step, rng, views)
        total = result.loss + at(options.normals, step, self.max_steps) * loss
        return StepResult(total, result.terms | {"normals": loss.item()}, result.metrics)


def mean_radius(system: GenerateSystem, step: int) -> float:
    """Measure the mean distance of the visible surface to the origin."""
    cameras = turntable(system.config.result.turntable, 4).with_size(32, 32)
    render = system.render(cameras, step, training=False)
    origins, directions = (rays.reshape(-1, 3).to(render.depth) for rays in cameras.rays())
    points = origins + directions * render.depth / render.opacity.clamp(min=1e-3)
    return float((points.norm(dim=-1) * render.opacity[:, 0]).sum() / render.opacity.sum().clamp(min=1e-3))


@torch.no_grad()
def depth_maps(system: GenerateSystem, folder: Path) -> dict[str, int]:
    """Write depths (V, H, W) of the turntable to depth.npz; return figures for summary.json."""
    cameras = turntable(system.config.result.turntable, 4)
    renders = [system.render(cameras.select([k]), system.max_steps, training=False) for k in range(len(cameras))]
    depth = torch.cat([render.depth.view(1, cameras.height, cameras.width) for render in renders])
    np.savez_compressed(folder / "depth.npz", depth=depth.cpu().numpy())
    return {"depth_maps": len(depth)}


register("system", "two-inputs", f"{__name__}:TwoInputsSystem", f"{__name__}:TwoInputsConfig")
register("metric", "mean_radius", f"{__name__}:mean_radius")
register("exporter", "depth-maps", f"{__name__}:depth_maps")
