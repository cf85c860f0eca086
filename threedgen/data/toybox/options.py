"""Config models of the tasks that show the toybox (no torch here)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from threedgen.config.sections import RunConfig

Count = Annotated[int, Field(ge=0, le=100_000)]


class ToyboxSheetConfig(RunConfig):
    """Contact sheets of the toybox world."""

    size: int = Field(128, ge=16, le=512, description="pixels of a picture")
    columns: int = Field(8, ge=1, le=24, description="samples of each noun, each from another side")
    nouns: tuple[str, ...] = Field((), description="which nouns; none given: all")
    split: Literal["train", "held-out"] = Field("train", description="which combinations may appear")


class ToyboxSubjectsConfig(RunConfig):
    """Photos of toybox things that look like no other, to try personalisation on."""

    subjects: int = Field(10, ge=1, le=1000, description="how many, of different kinds as far as there are")
    first: int = Field(0, ge=0, description="number of the first one")
    photos: int = Field(5, ge=2, le=100, description="pictures of each, from all around")
    size: int = Field(256, ge=16, le=2048, description="pixels of a picture")


class MakeToyboxAssetsConfig(RunConfig):
    """Objects of the toybox as GLB files with captions, in a style of their own."""

    count: int = Field(200, ge=1, le=100_000, description="files")
    first: int = Field(0, ge=0, description="number of the first one; other numbers are other objects")
    style: Literal["plain", "blocks"] = Field("blocks", description="as they are, or each part a block")
    split: Literal["train", "held-out"] = Field("train", description="which combinations may appear")

    def amount(self) -> str:
        return f"{self.count} files"


class MakeToyRoomsConfig(RunConfig):
    """Toy rooms as folders in the layouts of Matterport3D (panoramas) and ScanNet (walks with depth)."""

    train_panoramas: Count = Field(200, description="rooms with a skybox and captions")
    test_panoramas: Count = Field(40, description="the same, other rooms")
    train_walks: Count = Field(40, description="rooms with a walk: pictures, depth, poses, captions")
    test_walks: Count = Field(20, description="the same, other rooms, with their meshes")
    skybox_size: int = Field(256, ge=16, le=4096, description="pixels a side of a face")
    height: int = Field(128, ge=16, le=2048, multiple_of=2, description="pixels of a walk's pictures")
    width: int = Field(128, ge=16, le=2048, multiple_of=2, description="pixels of a walk's pictures")
    fov: float = Field(80.0, gt=0, lt=170, description="horizontal field of view of a walk's pictures, degrees")
    frames: int = Field(120, ge=2, le=10_000, description="pictures of a walk, about three degrees apart")
    overlap: float = Field(0.6, gt=0, lt=1, description="share that a key frame has in common with the next, at least")
    supersample: int = Field(2, ge=1, le=8, description="rays along each side of a pixel")

    @model_validator(mode="after")
    def _something(self) -> MakeToyRoomsConfig:
        if not (self.train_panoramas or self.test_panoramas or self.train_walks or self.test_walks):
            raise ValueError("train_panoramas, test_panoramas, train_walks and test_walks are all 0: nothing to make")
        return self

    def amount(self) -> str:
        return f"{self.train_panoramas + self.test_panoramas} panoramas, {self.train_walks + self.test_walks} walks"
