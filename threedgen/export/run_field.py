"""Load the trained field of a run from its checkpoint, without the diffusion model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from threedgen import __version__
from threedgen.config import config_hash, load, registry
from threedgen.representations import shading
from threedgen.representations.base import Representation
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.march import step_size
from threedgen.representations.options import MarchConfig
from threedgen.representations.volume.occupancy import OccupancyGrid
from threedgen.run import folder as runs
from threedgen.run.disk import Tree
from threedgen.run.seeding import generator
from threedgen.run.torch_file import check_architecture, require_finite
from threedgen.train.checkpoint_file import latest

from .options import no_checkpoint
from .shape.from_depth import DepthFusion
from .shape.from_field import FieldView
from .shape.mesh import Field
from .surface.pictures import field_renderer, spiral_cameras

DEPTH_VIEWS, DEPTH_SIZE = 40, 128
"""Number of depth images and their edge in pixels, for a representation without a density."""


@dataclass(frozen=True)
class RunField:
    """Field of a run as the export uses it, the run's config, and the number of training steps of the checkpoint."""

    view: FieldView
    config: Any
    steps: int


def load_run_field(folder: Path, device: str = "cpu") -> RunField:
    """Load the field from the newest valid checkpoint of the generate run in `folder`.

    Raises ConfigError if there is no checkpoint, or if its weights do not fit the config or are not finite.
    """
    config, field, grid, checkpoint = load_field(folder, device)
    return RunField(
        field_view(field, grid, config.march, device, config.camera.elevation_range),
        config,
        int(checkpoint["global_step"]),
    )


def load_field(folder: Path, device: str = "cpu") -> tuple[Any, Any, OccupancyGrid | None, Tree]:
    """Load the newest valid checkpoint of the generate run in `folder`.

    Returns:
        Config; field in evaluation mode on `device`; occupancy grid, or None without one; content of the checkpoint.

    Raises ConfigError if there is no checkpoint, or if its weights do not fit the config or are not finite.
    """
    config = load((folder / runs.CONFIG).resolve())
    newest = latest(folder / runs.CHECKPOINTS)
    if newest is None:
        raise no_checkpoint(folder, config.trainer.max_steps)
    path, checkpoint = newest
    state = checkpoint["state_dict"]
    field: Any = registry.build("representation", config.field, generator=generator(config.seed, 0, "field"))
    weights = {name.removeprefix("field."): value for name, value in state.items() if name.startswith("field.")}
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
) -> FieldView:
    """Return the export interface of a field.

    If the representation has no density, density and colours come from DEPTH_VIEWS rendered depth images.

    Args:
        field: trained representation, on `device`.
        occupancy: occupancy grid of the training; None: all space counts as occupied.
        march: ray marching options of the renders; `march.radius` is the scene radius in world units.
        device: device of the query points and renders.
        elevations: lowest and highest elevation of the training cameras, in degrees; None if unknown.
    """
    density: Field = field.density
    colour: Field = lambda x: shading.albedo(field(x)[1][:, :3])  # noqa: E731
    if type(field).density is Representation.density:
        background, material = SolidBackground().to(device), shading.NoMaterial()
        cameras = spiral_cameras(DEPTH_VIEWS, DEPTH_SIZE, march.radius).to(device)
        fusion = DepthFusion(lambda camera: field.render(camera, background, material), cameras, march.radius)
        density, colour = fusion.density, fusion.colour
    return FieldView(
        density,
        colour,
        march.radius,
        None if occupancy is None else occupancy.binary.cpu().numpy(),
        device,
        field_renderer(field, occupancy, march, device),
        getattr(field, "mesh", None),
        elevations,
    )


def provenance(config: Any, steps: int) -> Tree:
    """Return the origin of an asset for the glTF extras: prompts, seed, number of steps, config hash and version."""
    return {
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "seed": config.seed,
        "steps": steps,
        "config_hash": config_hash(config),
        "version": __version__,
    }
