"""The field of a run, from its checkpoint, without its prior."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from threedgen import __version__
from threedgen.config import config_hash, load, registry
from threedgen.representations import shading
from threedgen.representations.march import step_size
from threedgen.representations.options import MarchConfig
from threedgen.representations.volume.occupancy import OccupancyGrid
from threedgen.run import folder as runs
from threedgen.run.seeding import generator
from threedgen.run.torch_file import compare, require_finite
from threedgen.train.checkpoint_file import latest

from .options import no_checkpoint
from .shape.from_field import FieldView
from .surface.pictures import field_pictures


@dataclass(frozen=True)
class RunField:
    """A run's field as it is now, its config and the number of steps it has been trained."""

    view: FieldView
    config: Any
    steps: int


def open_run(folder: Path, device: str = "cpu") -> RunField:
    """The newest readable state of the generate run in `folder`. Raises ConfigError for one that does not fit."""
    config, field, grid, checkpoint = open_field(folder, device)
    return RunField(
        view_of(field, grid, config.march, device, config.camera.elevation_range),
        config,
        int(checkpoint["global_step"]),
    )


def open_field(folder: Path, device: str = "cpu") -> tuple[Any, Any, OccupancyGrid | None, dict[str, Any]]:
    """Config, field, occupancy grid and checkpoint of the generate run in `folder`. Raises ConfigError."""
    config = load((folder / runs.CONFIG).resolve())
    found = latest(folder / runs.CHECKPOINTS)
    if found is None:
        raise no_checkpoint(folder, config.trainer.max_steps)
    state = found[1]["state_dict"]
    field: Any = registry.build("representation", config.field, generator=generator(config.seed, 0, "field"))
    own = {name.removeprefix("field."): value for name, value in state.items() if name.startswith("field.")}
    compare(own, field.state_dict(), f"the field in {found[0]}")
    require_finite({name: own[name] for name, _ in field.named_parameters()}, f"the weights in {found[0]}")
    field.load_state_dict(own)
    field.to(device).eval()
    grid = None
    if config.occupancy is not None and "occupancy.binary" in state:
        grid = OccupancyGrid(config.occupancy, config.march.radius, step_size(config.march))
        cells = {name: state[key] for name in grid.state_dict() if (key := f"occupancy.{name}") in state}
        compare(cells, grid.state_dict(), f"the occupancy grid in {found[0]}")
        grid.load_state_dict(cells)
        grid.to(device)
    return config, field, grid, found[1]


def view_of(
    field: Any,
    occupancy: OccupancyGrid | None,
    march: MarchConfig,
    device: torch.device | str,
    elevations: tuple[float, float] | None = None,
) -> FieldView:
    """A representation and its occupancy grid, if it has one, as what a mesh is made of; see FieldView."""
    return FieldView(
        getattr(field, "density", lambda x: field(x)[0]),
        lambda x: shading.albedo(field(x)[1][:, :3]),
        march.radius,
        None if occupancy is None else occupancy.binary.cpu().numpy(),
        device,
        field_pictures(field, occupancy, march, device),
        getattr(field, "mesh", None),
        elevations,
    )


def provenance(config: Any, steps: int) -> dict[str, Any]:
    """Where an asset comes from, for its file."""
    return {
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "seed": config.seed,
        "steps": steps,
        "config_hash": config_hash(config),
        "version": __version__,
    }
