"""A folder of users' meshes from several sides: a source of ``threedgen.data.object_views``."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from threedgen.geometry.cameras import Cameras
from threedgen.guidance.mvadapter.cameras import HALF
from threedgen.guidance.mvadapter.pictures import GREY
from threedgen.guidance.options import Control
from threedgen.run.arrays import Array

from .coloured_mesh import ColouredMesh, fitted, read_mesh
from .object_views import ObjectViews
from .options import MeshFolderConfig, ObjectSplit

KEPT = 32
"""Meshes that are kept in memory."""


class MeshObjects(ObjectViews):
    """Each mesh as often as it has pictures to look at; the last ones of the list are held out."""

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
        """Raises ConfigError for a folder without meshes, and captions of other ones."""
        super().__init__(seed, split, control, reference, anywhere, fov)
        every = list(options.texts().items())
        self.named = every[: -options.held_out] if split == "train" else every[-options.held_out :]
        self.options, self.folder = options, Path(options.path).expanduser()
        self.mesh = lru_cache(KEPT)(self.read)

    def __len__(self) -> int:
        return len(self.named) * (self.options.pictures if self.reference else 1)

    def describe(self) -> str:
        o = self.options
        return f"{super().describe()}, {self.folder.resolve()}, {o.up} up, light {o.light}: {self.named}"

    def caption(self, index: int) -> str:
        return self.named[index % len(self.named)][1]

    def read(self, number: int) -> ColouredMesh:
        """Raises ConfigError."""
        return fitted(read_mesh(self.folder / self.named[number][0], self.options.up), HALF)

    def photograph(self, index: int, at: Cameras) -> Array:
        return self.mesh(index % len(self.named)).photograph(at, GREY, self.options.light)

    def surface(self, index: int, at: Cameras) -> tuple[Array, Array, Array]:
        return self.mesh(index % len(self.named)).surface(at)
