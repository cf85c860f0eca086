"""Config models of what several captioned views are made of: toy rooms, Matterport3D, ScanNet; toys, folders of meshes
(no torch here)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from threedgen.config import Config
from threedgen.config.errors import ConfigError, did_you_mean, nearest, short
from threedgen.config.plain_file import parse_json, read_text
from threedgen.run.folder import existing_folder

SceneSplit = Literal["train", "test"]
ObjectSplit = Literal["train", "held-out"]


Clutter = Annotated[float, Field(ge=0, le=1, description="things in a room, as a share of those that the 2D model saw")]
FEW = 0.4
"""So much clutter that captions, of three things in a view, name most of what is there."""


class RoomPanoramasConfig(Config):
    """Panoramas of toy rooms, rendered when they are wanted first."""

    shows_depth: ClassVar[bool] = False

    name: Literal["toy-panoramas"] = "toy-panoramas"
    count: int = Field(4000, ge=1, le=1_000_000, description="rooms")
    clutter: Clutter = FEW
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
    clutter: Clutter = FEW
    height: int = Field(128, ge=8, le=2048, multiple_of=2, description="pixels")
    width: int = Field(128, ge=8, le=2048, multiple_of=2, description="pixels")
    fov: float = Field(80.0, gt=0, lt=170, description="horizontal field of view, degrees")
    overlap: float = Field(0.6, gt=0, lt=1, description="share that a key frame has in common with the next, at least")
    supersample: int = Field(2, ge=1, le=8, description="rays along each side of a pixel")


class _Folder(Config):
    """Scenes that lie in a folder."""

    path: str = Field(min_length=1, description="folder of the data set")

    def check(self) -> None:
        existing_folder(self.path, "path")


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


MESHES = (".glb", ".gltf", ".obj", ".ply")


class ToyboxObjectsConfig(Config):
    """Objects of the toybox from several sides, rendered when they are wanted first."""

    name: Literal["toybox"] = "toybox"
    count: int = Field(40_000, ge=1, le=10_000_000, description="objects")
    luck: float = Field(
        1.0, ge=0, le=1, description="how much of what captions leave open is drawn; 0: always the middle of its range"
    )


class MeshFolderConfig(_Folder):
    """Your own meshes from several sides, rendered when they are wanted first."""

    name: Literal["meshes"] = "meshes"
    path: str = Field(min_length=1, description="folder of GLB, glTF, OBJ or PLY files, also in folders within it")
    captions: str | None = Field(
        None, description='JSON file, {"chairs/1.glb": "a wooden chair"}; without a caption: the name of the file'
    )
    up: Literal["y", "z"] = Field("y", description="the axis that points upwards in the files, y as glTF has it")
    light: bool = Field(True, description="shaded as the toybox is; false: colours as they are")
    pictures: int = Field(5, ge=1, le=1000, description="pictures of each mesh for the adapter to look at")
    held_out: int = Field(8, ge=1, description="meshes at the end of the list that are for the sample sheet alone")

    def files(self) -> list[str]:
        """Paths below the folder, in their order. Raises ConfigError if there are none."""
        folder = existing_folder(self.path, "path")
        found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in MESHES)
        if len(found) <= self.held_out:
            raise ConfigError(
                f"the folder {self.path!r} has {len(found)} meshes ({', '.join(MESHES)}) and {self.held_out} are held "
                "out of training (held_out): it should have more",
                "path",
            )
        return found

    def texts(self) -> dict[str, str]:
        """Captions by path. Raises ConfigError, also for those of files that are not there."""
        files = self.files()
        told = {} if self.captions is None else _captions(Path(self.captions).expanduser())
        for name in told.keys() - set(files):
            guess = did_you_mean(nearest(name, files))
            said = f"there is a caption for {short(name)}, and no such mesh in {self.path!r}{guess}"
            raise ConfigError(said, "captions")
        return {name: told.get(name) or _words(Path(name).stem) for name in files}

    def check(self) -> None:
        super().check()
        self.texts()


def _captions(path: Path) -> dict[str, str]:
    try:
        found = parse_json(read_text(path, "captions"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ConfigError(f'{path} should be JSON of the form {{"FILE": "caption"}}', "captions")
    return found


def _words(stem: str) -> str:
    """red_chair-2 -> red chair"""
    words = stem.replace("_", " ").replace("-", " ").split()
    return " ".join(word for word in words if not word.isdecimal()) or "an object"
