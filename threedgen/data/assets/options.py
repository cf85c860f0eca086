"""Config models of the tasks that read users' own assets (no torch here)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from threedgen.config import Config
from threedgen.config.errors import ConfigError
from threedgen.config.sections import Elevations, Fovs, Positives
from threedgen.run.folder import user_path
from threedgen.run.options import CrewConfig, cores

from .listing import Listing, list_assets

INDEX = "index.json"
"""What says which shards there are, and what is in them."""
SHARDS = "views"
"""The folder of a run that holds the shards."""


class ViewsConfig(Config):
    """How an asset is rendered (arXiv 2308.16512, section 4.1): rings of views, each at one height and distance."""

    azimuths: int = Field(32, ge=4, le=360, description="views of a ring, evenly around; the first shows the front")
    rings: int = Field(1, ge=1, le=16, description="rings of an asset, each of another elevation, fov and distance")
    size: int = Field(256, ge=16, le=2048, description="pixels a side")
    elevation: Elevations = Field((0.0, 30.0), description="degrees above the horizon")
    fov: Fovs = Field((15.0, 60.0), description="vertical field of view, degrees")
    relative_distance: Positives = Field(
        (0.9, 1.1), description="distance in 1 / tan(fov / 2): the asset fills the picture at any fov"
    )
    light: bool = Field(True, description="shaded from the camera and from above; false: base colours as they are")
    per_shard: int = Field(32, ge=1, le=10_000, description="assets in a shard, which is made anew if a run is killed")


class AssetsConfig(CrewConfig):
    """What is read, and how it is rendered."""

    data: str = Field("", description="folder of GLB, glTF, OBJ or PLY files, or a run of make-asset-views")
    captions: str = Field(
        "captions.csv",
        min_length=1,
        description="CSV file with the columns file and caption, and up (y, z) and turn (degrees) if wished; here or "
        "in that folder",
    )
    up: Literal["y", "z"] = Field("y", description="axis that points up in the files; with y they face +z, with z +x")
    views: ViewsConfig = ViewsConfig()
    sheet: int = Field(120, ge=1, le=10_000, description="assets on the contact sheet, spread over all of them")
    engine: Literal["here", "processes", "ray"] = Field(
        "processes", description="who renders: this process, processes of this machine, or a Ray cluster"
    )
    workers: int = Field(default_factory=cores, ge=1, le=10_000, description="of the engines processes and ray")

    @property
    def rendered(self) -> Path | None:
        """The folder with the shards, if ``data`` is a run that has made them already."""
        folder = user_path(self.data, "data")
        return next((place for place in (folder, folder / SHARDS) if (place / INDEX).is_file()), None)

    def listing(self) -> Listing:
        """What there is to be rendered, and what is left out. Raises ConfigError."""
        return list_assets(user_path(self.data, "data"), self.captions, self.up)

    def check(self) -> None:
        super().check()
        if not self.data.strip():
            raise ConfigError("is missing; say which folder, such as data=assets", "data")
        if not user_path(self.data, "data").is_dir():
            raise ConfigError("should be a folder with meshes", "data", self.data)
        if self.rendered is None:
            self.listing()


class MakeAssetViewsConfig(AssetsConfig):
    """Render meshes with captions from all sides, into shards that others can read too."""
