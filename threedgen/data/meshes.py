"""Source of multi-view images from a folder of user meshes."""

from functools import lru_cache
from pathlib import Path

from threedgen.geometry.cameras import Cameras
from threedgen.guidance.options import Control
from threedgen.guidance.priors.mvadapter.cameras import HALF
from threedgen.guidance.priors.mvadapter.pictures import GREY
from threedgen.run.arrays import Array

from .coloured_mesh import ColouredMesh, fit_to_cube, read_mesh
from .object_views import ObjectViews
from .options import MeshFolderConfig, ObjectSplit

MAX_CACHED = 32
"""Largest number of meshes kept in memory."""


class MeshObjects(ObjectViews):
    """Source of training views of MV-Adapter from a folder of meshes.

    Each mesh has `options.pictures` entries, which differ in their reference image; without reference images it has one
    entry. The split "held-out" has the last `options.held_out` meshes, the split "train" all others.
    """

    def __init__(
        self,
        options: MeshFolderConfig,
        seed: int,
        split: ObjectSplit = "train",
        control: Control = "rays",
        reference: bool = True,
        anywhere: float = 0.0,
        fov: float = 0.0,
    ) -> None:
        """Raises ConfigError if the folder has too few meshes, or if a caption names a missing mesh."""
        super().__init__(seed, split, control, reference, anywhere, fov)
        every = list(options.texts().items())  # (file, caption)
        self.files = every[: -options.held_out] if split == "train" else every[-options.held_out :]
        self.options, self.folder = options, Path(options.path).expanduser()
        self.mesh = lru_cache(MAX_CACHED)(self.read)

    def __len__(self) -> int:
        return len(self.files) * (self.options.pictures if self.reference else 1)

    def describe(self) -> str:
        o = self.options
        return f"{super().describe()}, {self.folder.resolve()}, {o.up} up, light {o.light}: {self.files}"

    def caption(self, index: int) -> str:
        return self.files[index % len(self.files)][1]

    def read(self, number: int) -> ColouredMesh:
        """Read mesh `number` of the split, scaled into the cube [-HALF, HALF]^3. Raises ConfigError."""
        return fit_to_cube(read_mesh(self.folder / self.files[number][0], self.options.up), HALF)

    def photograph(self, index: int, at: Cameras) -> Array:
        return self.mesh(index % len(self.files)).photograph(at, GREY, self.options.light)

    def surface(self, index: int, at: Cameras) -> tuple[Array, Array, Array]:
        return self.mesh(index % len(self.files)).surface(at)
