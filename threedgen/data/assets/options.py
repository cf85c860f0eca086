"""Config models of the tasks that read user assets. Imports no torch."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from threedgen.config import Config
from threedgen.config.errors import ConfigError, key_prefix
from threedgen.config.sections import Elevations, Fovs, Positives
from threedgen.guidance.weights.tokens import caption_notes
from threedgen.run.folder import user_path
from threedgen.run.options import Engine, WorkersConfig, cores

from .listing import INDEX, SHARDS, Listing, list_assets


class ViewsConfig(Config):
    """Options of the rings of cameras that render an asset, as in MVDream (arXiv 2308.16512), section 4.1.

    The cameras of a ring have the same elevation, field of view and distance.
    """

    azimuths: int = Field(32, ge=4, le=360, description="views per ring, evenly spaced; the first shows the front")
    rings: int = Field(1, ge=1, le=16, description="rings per asset, each with its own elevation, fov and distance")
    size: int = Field(256, ge=16, le=2048, description="side of a view, pixels")
    elevation: Elevations = Field((0.0, 30.0), description="range of elevations above the horizon, degrees")
    fov: Fovs = Field((15.0, 60.0), description="range of vertical fields of view, degrees")
    relative_distance: Positives = Field(
        (0.9, 1.1), description="range of camera distances, in units of 1 / tan(fov / 2)"
    )
    light: bool = Field(True, description="shading from the camera and from above; false: unlit base colours")
    per_shard: int = Field(32, ge=1, le=10_000, description="assets per shard, the unit that a killed run repeats")


class AssetsConfig(WorkersConfig):
    """Base class of the options of tasks that read meshes with captions from the user, and render them if necessary.

    Options: folder and up axis of the meshes, captions file, cameras of the rendered views, parallel workers.
    """

    data: str = Field("", description="folder of GLB, glTF, OBJ, PLY or OFF files, or a run of make-asset-views")
    captions: str = Field(
        "captions.csv",
        min_length=1,
        description="CSV file with columns file, caption and optionally up, turn; in data or else here",
    )
    up: Literal["y", "z"] = Field("y", description="up axis of the files; y-up files face +z, z-up files +x")
    views: ViewsConfig = ViewsConfig()
    sheet: int = Field(120, ge=1, le=10_000, description="number of assets on the contact sheet")
    engine: Engine = Field("processes", description="where to render: this process, local processes, a Ray cluster")
    workers: int = Field(
        default_factory=cores, ge=1, le=10_000, description="number of workers of the engines processes and ray"
    )

    @property
    def rendered(self) -> Path | None:
        """Folder of shards (tar files with rendered views) that the option `data` names; None if it names no shards.

        `data` is either the folder of a finished run of make-asset-views, which has the shards in a subfolder, or this
        subfolder, or a folder of meshes. For meshes the result is None.
        """
        folder = user_path(self.data, "data")
        # a folder of meshes may have an index.json of its own
        folders = (path for path in (folder, folder / SHARDS) if (path / INDEX).is_file())
        return next((path for path in folders if any(path.glob("shard-*.tar"))), None)

    def listing(self) -> Listing:
        return list_assets(user_path(self.data, "data"), self.captions, self.up)

    def asset_captions(self) -> list[str]:
        """Return the captions of all assets, of their shards if they are rendered."""
        if self.rendered is None:
            return [asset.caption for asset in self.listing().assets]
        from .shards import Shards  # imports numpy

        return [entry.caption for entry in Shards(self.rendered).entries]

    def notes(self) -> list[str]:
        prior: Any = getattr(self, "prior", None)
        with key_prefix("prior"):
            vocabulary = None if prior is None else prior.vocabulary()
        return [*super().notes(), *(caption_notes(self.asset_captions(), vocabulary) if vocabulary else [])]

    def check(self) -> None:
        super().check()
        if not self.data.strip():
            raise ConfigError("is missing. Give a folder, such as data=assets.", "data")
        if not user_path(self.data, "data").is_dir():
            raise ConfigError("should be a folder with meshes", "data", self.data)
        if self.rendered is None:
            self.listing()


class MakeAssetViewsConfig(AssetsConfig):
    """Options of the task "make-asset-views", which renders captioned meshes into webdataset shards of views."""
