"""Load the trained field of a run from its checkpoint, without the diffusion model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from threedgen.config import ConfigError, load, registry
from threedgen.config.command import command
from threedgen.representations.base import Field, Representation
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.march import step_size
from threedgen.representations.shading import Material
from threedgen.representations.volume.options import MarchConfig
from threedgen.representations.volume.render import OccupancyGrid
from threedgen.run import folder as runs
from threedgen.run.disk import Tree
from threedgen.run.seeding import generator
from threedgen.run.torch_file import check_architecture, require_finite
from threedgen.train.checkpoint_file import latest, read

from .renders import DEPTH_SIZE, DEPTH_VIEWS, DepthFusion, field_renderer, spiral_cameras
from .shape.from_field import FieldView


@dataclass(frozen=True)
class RunField:
    """Trained field (3D representation) of a run.

    Attributes:
        view: density and colour of the field as functions of points, its renderer, scene radius and occupancy.
        config: config of the run.
        steps: number of training steps of the checkpoint.
    """

    view: FieldView
    config: Any
    steps: int


def load_run_field(folder: Path, device: str = "cpu") -> RunField:
    """Load the trained field from the newest checkpoint in the folder of a run of the task generate.

    Raises ConfigError if there is no checkpoint, or if its weights do not fit the config or are not finite.
    """
    config, field, grid, checkpoint = load_field(folder, device)
    material = registry.build("material", config.material)
    view = field_view(field, grid, config.march, device, config.camera.elevation_range, material)
    return RunField(view, config, int(checkpoint["global_step"]))


def load_field(
    folder: Path, device: str = "cpu", path: Path | None = None
) -> tuple[Any, Any, OccupancyGrid | None, Tree]:
    """Load a trained representation from a checkpoint of the run of the task generate in `folder`.

    `path` is the file of the checkpoint; None: the newest checkpoint in `folder`.

    Returns the run's config, the trained representation in evaluation mode, its occupancy grid or None, and the content
    of the checkpoint. Raises ConfigError if there is no checkpoint, or if its weights do not fit the config or are not
    finite.
    """
    config = load((folder / runs.CONFIG).resolve())
    newest = latest(folder / runs.CHECKPOINTS) if path is None else (path, read(path))
    if newest is None:
        again = command("--resume", str(folder))
        if runs.finished(folder, config.trainer.max_steps):  # a finished run cannot resume
            again = command("--config", str(folder / runs.CONFIG), "out=NEW")
        raise ConfigError(f"{folder} has no checkpoint; make one with {again}", "run")
    path, checkpoint = newest
    state = checkpoint["state_dict"]
    field: Any = registry.build("representation", config.field, generator=generator(config.seed, 0, "field"))
    weights = {name.removeprefix("field."): value for name, value in state.items() if name.startswith("field.")}
    field.before_step(max(0, checkpoint["global_step"] - 1), config.trainer.max_steps)  # scheduled values
    field.resize(weights)
    check_architecture(weights, field.state_dict(), f"the field in {path}")
    require_finite({name: weights[name] for name, _ in field.named_parameters()}, f"the weights in {path}")
    field.load_state_dict(weights)
    field.to(device).eval()
    grid = None
    if config.occupancy is not None and "occupancy.binary" in state:
        grid = OccupancyGrid(config.occupancy, config.march.radius, step_size(config.march))
        cells = {name: state[key] for name in grid.state_dict() if (key := f"occupancy.{name}") in state}
        check_architecture(cells, grid.state_dict(), f"the occupancy grid in {path}")
        grid.load_state_dict(cells)
        grid.to(device)
    return config, field, grid, checkpoint


def field_view(
    field: Any,
    occupancy: OccupancyGrid | None,
    march: MarchConfig,
    device: torch.device | str,
    elevations: tuple[float, float] | None = None,
    material: Material | None = None,
) -> FieldView:
    """Wrap a trained representation for the export, as a `FieldView`.

    The result has functions for density and colour at points, a renderer of unlit images, the radius of the scene
    sphere, the occupancy mask and `elevations`. If the representation has no density (3D Gaussians), density and
    colours are fused from its rendered depth images (`DepthFusion`).

    Args:
        field: trained representation, on `device`.
        occupancy: occupancy grid of the representation; None: all space is occupied.
        march: options of the ray marching, among them the radius of the scene sphere.
        device: device of the points at which the functions are evaluated.
        elevations: lowest and highest elevation of the training cameras in degrees, with which the texture bake finds
            surfaces that they hardly saw; None: unknown.
        material: function that maps features of points to colours; None: the sigmoid (`Material`).
    """
    shade = material or Material()
    density: Field = field.density
    colour: Field = lambda x: shade(field(x)[1])[:, :3]  # noqa: E731
    if type(field).density is Representation.density:
        background = SolidBackground().to(device)
        cameras = spiral_cameras(DEPTH_VIEWS, DEPTH_SIZE, march.radius).to(device)
        fusion = DepthFusion(lambda camera: field.render(camera, background, shade), cameras, march.radius)
        density, colour = fusion.density, fusion.colour
    return FieldView(
        density,
        colour,
        march.radius,
        None if occupancy is None else occupancy.binary.cpu().numpy(),
        device,
        field_renderer(field, occupancy, march, device, material),
        getattr(field, "mesh", None),
        elevations,
    )
