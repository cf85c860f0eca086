"""Config models of the tasks that read user assets. Imports no torch."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from threedgen.config import Config
from threedgen.config.errors import ConfigError
from threedgen.config.sections import Elevations, Fovs, Positives
from threedgen.run.folder import user_path
from threedgen.run.options import Engine, WorkersConfig, cores

from .listing import Listing, list_assets

INDEX = "index.json"
"""Name of the file that lists the shards and their content."""
SHARDS = "views"
"""Name of the folder of shards in a run folder."""


class ViewsConfig(Config):
    """Rings of views of an asset, each with one elevation, fov and distance.

    From MVDream (arXiv 2308.16512), section 4.1.
    """

    azimuths: int = Field(32, ge=4, le=360, description="views per ring, evenly spaced; the first shows the front")
    rings: int = Field(1, ge=1, le=16, description="rings per asset, each with its own elevation, fov and distance")
    size: int = Field(256, ge=16, le=2048, description="side of a view, pixels")
    elevation: Elevations = Field((0.0, 30.0), description="range of elevations above the horizon, degrees")
    fov: Fovs = Field((15.0, 60.0), description="range of vertical fields of view, degrees")
    relative_distance: Positives = Field((0.9, 1.1), description="range of distances, in units of 1 / tan(fov / 2)")
    light: bool = Field(True, description="shading from the camera and from above; false: unlit base colours")
    per_shard: int = Field(32, ge=1, le=10_000, description="assets per shard, the unit that a killed run repeats")


class AssetsConfig(WorkersConfig):
    """Base class of the options of tasks that read user assets, and render them if necessary."""

    data: str = Field("", description="folder of GLB, glTF, OBJ or PLY files, or a run of make-asset-views")
    captions: str = Field("captions.csv", min_length=1, description="CSV, columns file, caption, up, turn")
    up: Literal["y", "z"] = Field("y", description="up axis of the files; y-up files face +z, z-up files +x")
    views: ViewsConfig = ViewsConfig()
    sheet: int = Field(120, ge=1, le=10_000, description="number of assets on the contact sheet")
    engine: Engine = Field("processes", description="where to render: this process, local processes, a Ray cluster")
    workers: int = Field(default_factory=cores, ge=1, le=10_000, description="workers of processes and ray")

    @property
    def rendered(self) -> Path | None:
        """Folder of shards if `data` is a finished run of make-asset-views, else None."""
        folder = user_path(self.data, "data")
        return next((path for path in (folder, folder / SHARDS) if (path / INDEX).is_file()), None)

    def listing(self) -> Listing:
        return list_assets(user_path(self.data, "data"), self.captions, self.up)

    def check(self) -> None:
        super().check()
        if not self.data.strip():
            raise ConfigError("is missing. Give a folder, such as data=assets.", "data")
        if not user_path(self.data, "data").is_dir():
            raise ConfigError("should be a folder with meshes", "data", self.data)
        if self.rendered is None:
            self.listing()


class MakeAssetViewsConfig(AssetsConfig):
    """Rendering of captioned meshes from all sides into webdataset shards."""
