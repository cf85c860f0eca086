"""Config models of data in the layout of Scene Representation Networks (no torch here)."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from threedgen.config import Config
from threedgen.config.sections import Elevations, RunConfig

from .layout import split_folder

Count = Annotated[int, Field(ge=0, le=100_000)]


class MakeSRNToyboxConfig(RunConfig):
    """Cars and chairs of the toybox with marks on their four sides, as folders in the layout of the SRN archives."""

    renamed: ClassVar[dict[str, str | None]] = {"sheet": None}

    families: tuple[Literal["cars", "chairs"], ...] = Field(("cars", "chairs"), min_length=1)
    train: Count = Field(200, description="scenes of each family with random views")
    val: Count = Field(10, description="scenes of each family on the spiral")
    test: Count = Field(40, description="the same, other scenes")
    size: int = Field(64, ge=8, le=1024, description="pixels a side; the archives have 128")
    supersample: int = Field(3, ge=1, le=8, description="rays along each side of a pixel")
    train_views: int = Field(50, ge=1, le=10_000, description="random views of a training scene")
    test_views: int = Field(251, ge=2, le=10_000, description="views on the spiral of a val or test scene")
    fov: float = Field(40.0, gt=0, lt=180, description="field of view, degrees")
    relative_distance: float = Field(
        0.95, gt=0, le=100, description="distance in 1 / tan(fov / 2): at 0.95 the object fills the picture"
    )
    train_elevation: Elevations = Field((-10.0, 80.0), description="degrees; random views are uniform on this zone")
    test_elevation: Elevations = Field((0.0, 45.0), description="degrees, where the spiral begins and ends")
    turns: float = Field(3.2, gt=0, le=100, description="times that the spiral goes round")

    @model_validator(mode="after")
    def _something(self) -> MakeSRNToyboxConfig:
        if not (self.train or self.val or self.test):
            raise ValueError("train, val and test are all 0: there is nothing to make")
        if len(set(self.families)) < len(self.families):
            raise ValueError(f"families should not repeat: {list(self.families)}")
        return self

    def amount(self) -> str:
        return f"{len(self.families) * (self.train + self.val + self.test)} scenes"


class SRNPairsConfig(Config):
    """Training pairs from a split in the layout of the SRN archives."""

    name: Literal["srn"] = "srn"
    path: str = Field(min_length=1, description="folder that holds the split, or its scenes")
    split: Literal["cars_train", "cars_val", "cars_test", "chairs_train", "chairs_val", "chairs_test"] = "cars_train"
    held_out: int = Field(64, ge=2, description="last scenes, which only the gap test and the sheet see")
    up: Literal["z", "y"] = Field("z", description="which axis of its world points up")

    def check(self) -> None:
        split_folder(self.path, self.split)


class ToyboxPairsConfig(Config):
    """Training pairs of marked toybox objects, rendered when they are wanted first."""

    name: Literal["toybox"] = "toybox"
    families: tuple[Literal["cars", "chairs"], ...] = Field(("cars", "chairs"), min_length=1, max_length=2)
    scenes: int = Field(1000, ge=4, le=100_000, description="in all, the held-out ones included")
    views: int = Field(50, ge=2, le=10_000, description="random views of a scene")
    held_out: int = Field(64, ge=2, description="last scenes, which only the gap test and the sheet see")

    @model_validator(mode="after")
    def _room(self) -> ToyboxPairsConfig:
        if self.held_out >= self.scenes:
            raise ValueError(f"held_out {self.held_out} should be less than scenes {self.scenes}")
        if self.held_out < 2 * len(self.families):
            raise ValueError(f"held_out {self.held_out} should be at least 2 of each of the families")
        return self
