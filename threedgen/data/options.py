"""Config models of multi-view data sets: Matterport3D, ScanNet, mesh folders. Imports no torch."""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from threedgen.config import Config
from threedgen.config.errors import ConfigError, did_you_mean, nearest, short
from threedgen.config.plain_file import parse_json, read_text
from threedgen.run.folder import existing_folder

from .assets.listing import Asset, Listing, list_assets, mesh_files

SceneSplit = Literal["train", "test"]
ObjectSplit = Literal["train", "held-out"]
OBJECT_RADIUS = 0.85
"""Radius of the ball around the origin into which training objects are scaled. Fields have radius 1."""


class WalksConfig(Config):
    """Base class of the options of data sets of camera paths through scenes: frames with poses and depth maps.

    A training example (an entry) has several views of one camera path. Options: number of views per entry, and share of
    entries whose first and last views are given to the network.
    """

    has_depth: ClassVar[bool] = True

    views: int = Field(12, ge=2, le=64, description="views per entry")
    between: float = Field(
        0.5, ge=0, le=1, description="share of interpolation entries, whose first and last views are conditions"
    )


class _Folder(Config):
    path: str = Field(min_length=1, description="folder of the data set")

    def check(self) -> None:
        existing_folder(self.path, "path")


class MatterportConfig(_Folder):
    """Panoramas of Matterport3D, or other cube maps in the same layout.

    Options: folder of the data, number of entries, cameras of the views.
    """

    has_depth: ClassVar[bool] = False

    name: Literal["matterport"] = "matterport"
    count: int | None = Field(
        None, ge=1, le=10_000_000, description="number of entries, repeats start at another yaw; null: one per panorama"
    )
    views: int = Field(8, ge=1, le=64, description="views per panorama, evenly spaced in azimuth")
    size: int = Field(512, ge=8, le=2048, description="side of a view, pixels; best that of the 2D model")
    fov: float = Field(90.0, gt=0, lt=170, description="field of view, degrees")


class ScanNetConfig(_Folder, WalksConfig):
    """Camera paths (walks) of ScanNet, or other posed RGB-D images in the same layout.

    Options: folder of the data, number of entries, image size, whether poses are camera-to-world or world-to-camera.
    """

    name: Literal["scannet"] = "scannet"
    count: int | None = Field(
        None, ge=1, le=10_000_000, description="number of entries, repeats take other frames; null: one per scene"
    )
    height: int = Field(192, ge=8, le=2048, description="image height, pixels")
    width: int = Field(256, ge=8, le=2048, description="image width, pixels")
    poses: Literal["c2w", "w2c"] = Field("c2w", description="meaning of pose/N.txt: camera-to-world or world-to-camera")


class MeshFolderConfig(_Folder):
    """Views of meshes in a folder of the user, rendered on first use, as training data of MV-Adapter.

    Options: folder, captions, up axis and shading of the meshes, reference images, held-out meshes.
    """

    name: Literal["meshes"] = "meshes"
    path: str = Field(min_length=1, description="folder of GLB, glTF, OBJ, PLY or OFF files, searched recursively")
    captions: str | None = Field(
        None, description='CSV file of make-asset-views, or JSON file {"1.glb": "a wooden chair"}; null: file names'
    )
    up: Literal["y", "z"] = Field("y", description="up axis of the files; glTF uses y")
    light: bool = Field(True, description="toybox shading; false: unlit colours")
    pictures: int = Field(5, ge=1, le=1000, description="reference images per mesh for the adapter")
    held_out: int = Field(8, ge=1, description="last meshes of the list, used for the sample sheet only")

    def listing(self) -> Listing:
        """List the meshes with their captions, sorted by file.

        The lines of a CSV file select the meshes. Otherwise all meshes are listed, and one without a caption gets the
        words of its file name. Raises ConfigError if the captions file is unreadable, if a JSON file has a caption of a
        missing mesh, or unless there are more than `held_out` meshes.
        """
        folder = existing_folder(self.path, "path")
        files, captions = mesh_files(folder), dict[str, str]()
        if files and self.captions is not None and self.captions.lower().endswith(".csv"):
            found = list_assets(folder, self.captions, self.up)
        else:
            captions = {} if self.captions is None else _read_captions(Path(self.captions).expanduser())
            texts = {file: captions.get(file) or _words(Path(file).stem) for file in files}
            found = Listing(tuple(Asset(*pair, self.up) for pair in texts.items()), {})
        if (count := len(found.assets)) <= self.held_out:
            raise ConfigError(f"has {count} meshes, of which held_out={self.held_out}. Add some", "path", self.path)
        for name in captions.keys() - set(files):
            hint = did_you_mean(nearest(name, files))
            problem = f"caption for {short(name)}, which is not a mesh in {short(self.path, 300)}{hint}"
            raise ConfigError(problem, "captions")
        return found

    def check(self) -> None:
        super().check()
        self.listing()


def _read_captions(path: Path) -> dict[str, str]:
    try:
        found = parse_json(read_text(path, "captions"))
    except ValueError:
        found = None
    if not isinstance(found, dict) or not all(isinstance(text, str) for text in found.values()):
        raise ConfigError(f'{path} is not a JSON object of the form {{"FILE": "caption"}}', "captions")
    return found


def _words(stem: str) -> str:
    words = stem.replace("_", " ").replace("-", " ").split()
    return " ".join(word for word in words if not word.isdecimal()) or "an object"
