"""Config models of data in the layout of Scene Representation Networks (no torch)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from threedgen.config import Config
from threedgen.config.sections import Elevations, RunConfig

from .layout import split_folder

Count = Annotated[int, Field(ge=0, le=100_000)]


class MakeSRNToyboxConfig(RunConfig):
    """Toybox cars and chairs with marks on their four sides, in the layout of the SRN archives."""

    families: tuple[Literal["cars", "chairs"], ...] = Field(("cars", "chairs"), min_length=1)
    train: Count = Field(200, description="training scenes per family, with random views")
    val: Count = Field(10, description="validation scenes per family, with views on a spiral")
    test: Count = Field(40, description="test scenes per family, with views on a spiral")
    size: int = Field(64, ge=8, le=1024, description="side of a view, pixels; the archives have 128")
    supersample: int = Field(3, ge=1, le=8, description="rays per pixel along each axis")
    train_views: int = Field(50, ge=1, le=10_000, description="random views per training scene")
    test_views: int = Field(251, ge=2, le=10_000, description="spiral views per validation or test scene")
    fov: float = Field(40.0, gt=0, lt=180, description="field of view, degrees")
    relative_distance: float = Field(
        0.95, gt=0, le=100, description="camera distance in units of 1 / tan(fov / 2); 0.95: the object fills the image"
    )
    train_elevation: Elevations = Field((-10.0, 80.0), description="elevation range of the random views, degrees")
    test_elevation: Elevations = Field((0.0, 45.0), description="first and last elevation of the spiral, degrees")
    turns: float = Field(3.2, gt=0, le=100, description="number of turns of the spiral")

    @model_validator(mode="after")
    def _check_counts(self) -> MakeSRNToyboxConfig:
        if not (self.train or self.val or self.test):
            raise ValueError("train, val and test are all 0. Set at least one of them.")
        if len(set(self.families)) < len(self.families):
            raise ValueError(f"families has duplicates: {list(self.families)}")
        return self

    def amount(self) -> str:
        return f"{len(self.families) * (self.train + self.val + self.test)} scenes"


class SRNPairsConfig(Config):
    """Training pairs from a split in the layout of the SRN archives."""

    name: Literal["srn"] = "srn"
    path: str = Field(min_length=1, description="folder of the archives or of one split")
    split: Literal["cars_train", "cars_val", "cars_test", "chairs_train", "chairs_val", "chairs_test"] = "cars_train"
    held_out: int = Field(64, ge=2, description="last scenes, used only for the gap test and sample sheet")
    up: Literal["z", "y"] = Field("z", description="up axis of the world")

    def check(self) -> None:
        split_folder(self.path, self.split)


class ToyboxPairsConfig(Config):
    """Training pairs of marked toybox objects, rendered on first use."""

    name: Literal["toybox"] = "toybox"
    families: tuple[Literal["cars", "chairs"], ...] = Field(("cars", "chairs"), min_length=1, max_length=2)
    scenes: int = Field(1000, ge=4, le=100_000, description="number of scenes, including the held-out ones")
    views: int = Field(50, ge=2, le=10_000, description="random views per scene")
    held_out: int = Field(64, ge=2, description="last scenes, used only for the gap test and sample sheet")

    @model_validator(mode="after")
    def _check_held_out(self) -> ToyboxPairsConfig:
        if self.held_out >= self.scenes:
            raise ValueError(f"held_out {self.held_out} should be less than scenes {self.scenes}")
        if self.held_out < 2 * len(self.families):
            raise ValueError(f"held_out {self.held_out} should be at least 2 of each of {len(self.families)} families")
        return self
