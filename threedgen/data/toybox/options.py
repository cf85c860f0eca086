"""Config models of the tasks that render or export the toybox; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from threedgen.config.sections import RunConfig

Count = Annotated[int, Field(ge=0, le=100_000)]


class ToyboxSheetConfig(RunConfig):
    """Contact sheets of toybox objects, one row per noun."""

    size: int = Field(128, ge=16, le=512, description="side of an image, pixels")
    columns: int = Field(8, ge=1, le=24, description="samples per noun, each at another azimuth")
    nouns: tuple[str, ...] = Field((), description="nouns to render; empty: all")
    split: Literal["train", "held-out"] = Field("train", description="split of (noun, colour, part) combinations")


class ToyboxSubjectsConfig(RunConfig):
    """Photos of unusual toybox objects as test data for personalisation (DreamBooth)."""

    subjects: int = Field(10, ge=1, le=1000, description="number of subjects; nouns repeat only after all are used")
    first: int = Field(0, ge=0, description="index of the first subject")
    photos: int = Field(5, ge=2, le=100, description="photos per subject, spread over all azimuths")
    size: int = Field(256, ge=16, le=2048, description="side of a photo, pixels")


class MakeToyboxAssetsConfig(RunConfig):
    """Toybox objects as GLB files with captions."""

    count: int = Field(200, ge=1, le=100_000, description="number of files")
    first: int = Field(0, ge=0, description="index of the first object")
    style: Literal["plain", "blocks"] = Field(
        "blocks", description="plain: original solids; blocks: each solid replaced by its box"
    )
    split: Literal["train", "held-out"] = Field("train", description="split of (noun, colour, part) combinations")

    def amount(self) -> str:
        return f"{self.count} files"


class MakeToyRoomsConfig(RunConfig):
    """Toy rooms in the folder layouts of Matterport3D (panoramas) and ScanNet (walks with depth)."""

    train_panoramas: Count = Field(200, description="training rooms with a skybox and captions")
    test_panoramas: Count = Field(40, description="test rooms with a skybox and captions")
    train_walks: Count = Field(40, description="training rooms with a walk: images, depth, poses, captions")
    test_walks: Count = Field(20, description="test rooms with a walk and a room mesh")
    skybox_size: int = Field(256, ge=16, le=4096, description="side of a skybox face, pixels")
    height: int = Field(128, ge=16, le=2048, multiple_of=2, description="height of walk images, pixels")
    width: int = Field(128, ge=16, le=2048, multiple_of=2, description="width of walk images, pixels")
    fov: float = Field(80.0, gt=0, lt=170, description="horizontal field of view of walk images, degrees")
    frames: int = Field(120, ge=2, le=10_000, description="frames per walk, about three degrees apart")
    overlap: float = Field(0.6, gt=0, lt=1, description="minimum overlap of consecutive key frames, as a fraction")
    supersample: int = Field(2, ge=1, le=8, description="supersampling: n x n rays per pixel")

    @model_validator(mode="after")
    def _something(self) -> MakeToyRoomsConfig:
        if not (self.train_panoramas or self.test_panoramas or self.train_walks or self.test_walks):
            raise ValueError("no rooms to make: set train_panoramas, test_panoramas, train_walks or test_walks above 0")
        return self

    def amount(self) -> str:
        return f"{self.train_panoramas + self.test_panoramas} panoramas, {self.train_walks + self.test_walks} walks"
