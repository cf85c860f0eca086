"""Config models of scenes with several captioned views: toy rooms, Matterport3D, ScanNet (no torch here)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from threedgen.config import Config
from threedgen.config.errors import ConfigError

SceneSplit = Literal["train", "test"]


class RoomPanoramasConfig(Config):
    """Panoramas of toy rooms, rendered when they are wanted first."""

    shows_depth: ClassVar[bool] = False

    name: Literal["toy-panoramas"] = "toy-panoramas"
    count: int = Field(4000, ge=1, le=1_000_000, description="rooms")
    views: int = Field(8, ge=1, le=64, description="views of each, evenly around")
    size: int = Field(128, ge=8, le=2048, description="pixels a side")
    fov: float = Field(90.0, gt=0, lt=170, description="field of view, degrees")
    supersample: int = Field(2, ge=1, le=8, description="rays along each side of a pixel")


class _WalksConfig(Config):
    """What is chosen of walks with depth."""

    shows_depth: ClassVar[bool] = True

    views: int = Field(12, ge=2, le=64, description="views of an entry")
    between: float = Field(
        0.5, ge=0, le=1, description="share of entries whose first and last view are given and the others lie between"
    )
    apart: int = Field(2, ge=1, le=10, description="key frames from the first of these to the last (the paper: 1)")


class RoomPathsConfig(_WalksConfig):
    """Walks through toy rooms with depth, rendered when they are wanted first."""

    name: Literal["toy-paths"] = "toy-paths"
    count: int = Field(4000, ge=1, le=1_000_000, description="rooms")
    height: int = Field(96, ge=8, le=2048, multiple_of=2, description="pixels")
    width: int = Field(128, ge=8, le=2048, multiple_of=2, description="pixels")
    fov: float = Field(80.0, gt=0, lt=170, description="horizontal field of view, degrees")
    overlap: float = Field(0.6, gt=0, lt=1, description="share that a key frame has in common with the next, at least")
    supersample: int = Field(2, ge=1, le=8, description="rays along each side of a pixel")


class _Folder(Config):
    """Scenes that lie in a folder."""

    path: str = Field(min_length=1, description="folder of the data set")

    def check(self) -> None:
        if not Path(self.path).expanduser().is_dir():
            raise ConfigError(f"there is no folder {self.path!r}", "path")


class MatterportConfig(_Folder):
    """Panoramas of Matterport3D, or of any skyboxes in the same layout."""

    shows_depth: ClassVar[bool] = False

    name: Literal["matterport"] = "matterport"
    count: int | None = Field(
        None, ge=1, le=10_000_000, description="entries; more than panoramas: other first yaws; null: one of each"
    )
    views: int = Field(8, ge=1, le=64, description="views of each, evenly around")
    size: int = Field(512, ge=8, le=2048, description="pixels a side")
    fov: float = Field(90.0, gt=0, lt=170, description="field of view, degrees")
    prefix: str = Field("This is one view of a scene. ", description="what each caption begins with")


class ScanNetConfig(_Folder, _WalksConfig):
    """Walks of ScanNet, or any posed pictures with depth in the same layout."""

    name: Literal["scannet"] = "scannet"
    count: int | None = Field(
        None, ge=1, le=10_000_000, description="entries; more than scenes: other frames of them; null: one of each"
    )
    height: int = Field(192, ge=8, le=2048, description="pixels")
    width: int = Field(256, ge=8, le=2048, description="pixels")
    poses: Literal["c2w", "w2c"] = Field("c2w", description="what pose/N.txt are: camera-to-world, or the inverse")
    key_frames: str = Field("key_frame_0.6.txt", min_length=1, description="file in each scene with their numbers")
    least_keys: int = Field(10, ge=2, description="scenes with fewer key frames are left out")
