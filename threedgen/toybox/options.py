"""Config models of toybox data sets, and of the tasks that export toybox objects and rooms. Imports no torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from threedgen.config import Config
from threedgen.config.sections import RunConfig
from threedgen.data.options import WalksConfig

Count = Annotated[int, Field(ge=0, le=100_000)]
Families = Annotated[tuple[Literal["cars", "chairs"], ...], Field(min_length=1, max_length=2)]


class ToyboxSheetConfig(RunConfig):
    """Options of the task "toybox-sheet", which writes contact sheets of toybox objects, one row per noun."""

    size: int = Field(128, ge=16, le=512, description="side of an image, pixels")
    columns: int = Field(8, ge=1, le=24, description="samples per noun, each at another azimuth")
    nouns: tuple[str, ...] = Field((), description="nouns to render; empty: all")
    split: Literal["train", "held-out"] = Field("train", description="split of (noun, colour, part) combinations")


class ToyboxSubjectsConfig(RunConfig):
    """Options of the task "toybox-subjects": rendered photos of unusual toybox objects, to test DreamBooth."""

    subjects: int = Field(10, ge=1, le=1000, description="number of subjects; nouns repeat only after all are used")
    size: int = Field(256, ge=16, le=2048, description="side of a photo, pixels")


class MakeToyboxAssetsConfig(RunConfig):
    """Options of the task "make-toybox-assets", which exports toybox objects as GLB files with captions."""

    count: int = Field(200, ge=1, le=100_000, description="number of files")
    first: int = Field(0, ge=0, description="index of the first object")
    style: Literal["plain", "blocks"] = Field(
        "blocks", description="plain: original solids; blocks: each solid replaced by its box"
    )
    split: Literal["train", "held-out"] = Field("train", description="split of (noun, colour, part) combinations")


class MakeToyRoomsConfig(RunConfig):
    """Options of the task "make-toy-rooms": export of toy rooms in the layouts of Matterport3D and ScanNet.

    Matterport3D has panoramas. ScanNet has walks: frames of a camera that moves through a room, with depth maps.
    """

    train_panoramas: Count = Field(200, description="training rooms with a skybox and captions")
    test_panoramas: Count = Field(40, description="test rooms with a skybox and captions")
    train_walks: Count = Field(40, description="training rooms with a walk: images, depth, poses, captions")
    test_walks: Count = Field(20, description="test rooms with a walk and a room mesh")
    height: int = Field(128, ge=16, le=2048, multiple_of=2, description="height of walk images, pixels")
    width: int = Field(128, ge=16, le=2048, multiple_of=2, description="width of walk images, pixels")
    frames: int = Field(120, ge=2, le=10_000, description="frames per walk, about three degrees apart")


# --- data sets ---------------------------------------------------------------------------------------------------

Clutter = Annotated[
    float, Field(ge=0, le=1, description="objects in a room, as a share of those in the 2D model's training rooms")
]
DEFAULT_CLUTTER = 0.4
"""Default of `clutter`, a factor on the number of objects in a room. A caption names up to three objects; at this value
these are most of the visible objects."""


class RoomPanoramasConfig(Config):
    """Data set of panoramas (rings of views from one point) of toy rooms, rendered on first use.

    Options of scenes.name=toy-panoramas in train-mvdiffusion and evaluate-views: number of rooms, amount of furniture,
    and number, size and field of view of the views.
    """

    has_depth: ClassVar[bool] = False

    name: Literal["toy-panoramas"] = "toy-panoramas"
    count: int = Field(4000, ge=1, le=1_000_000, description="number of rooms")
    clutter: Clutter = DEFAULT_CLUTTER
    views: int = Field(8, ge=1, le=64, description="views per panorama, evenly spaced in azimuth")
    size: int = Field(128, ge=8, le=2048, description="side of a view, pixels")
    fov: float = Field(90.0, gt=0, lt=170, description="field of view, degrees")


class RoomPathsConfig(WalksConfig):
    """Data set of camera walks (frames of a moving camera) through toy rooms, with depth maps, rendered on first use.

    Options of scenes.name=toy-paths in train-mvdiffusion and evaluate-views: number of rooms, amount of furniture,
    image size and field of view.
    """

    name: Literal["toy-paths"] = "toy-paths"
    count: int = Field(4000, ge=1, le=1_000_000, description="number of rooms")
    clutter: Clutter = DEFAULT_CLUTTER
    height: int = Field(128, ge=8, le=2048, multiple_of=2, description="image height, pixels")
    width: int = Field(128, ge=8, le=2048, multiple_of=2, description="image width, pixels")
    fov: float = Field(80.0, gt=0, lt=170, description="horizontal field of view, degrees")


class ToyboxObjectsConfig(Config):
    """Data set of toybox objects, each in the six views that the model MV-Adapter generates, rendered on first use.

    Options of objects.name=toybox in the task train-mvadapter: number of objects, and amount of random variation of
    attributes that captions do not state.
    """

    name: Literal["toybox"] = "toybox"
    count: int = Field(40_000, ge=1, le=10_000_000, description="number of objects")
    variation: float = Field(
        1.0, ge=0, le=1, description="random variation of attributes not in the caption, share of full range; 0: none"
    )


class MakeSRNToyboxConfig(RunConfig):
    """Options of the task "make-srn-toybox": export of toybox cars and chairs in the layout of the SRN archives.

    The SRN archives are renders of ShapeNet objects (Scene Representation Networks, Sitzmann et al. 2019). The cars and
    chairs have coloured panels.
    """

    families: Families = ("cars", "chairs")
    train: Count = Field(200, description="training scenes per family, with random views")
    val: Count = Field(10, description="validation scenes per family, with views on a spiral")
    test: Count = Field(40, description="test scenes per family, with views on a spiral")
    size: int = Field(64, ge=8, le=1024, description="side of a view, pixels; the archives have 128")
    train_views: int = Field(50, ge=1, le=10_000, description="random views per training scene")


class ToyboxPairsConfig(Config):
    """Data set of toybox cars and chairs with coloured panels, to train on pairs of views; rendered on first use.

    Options of data.name=toybox in the task train-threedim: families (cars, chairs), number of scenes, views per scene,
    and number of scenes that are held out for validation. A scene has views of one object.
    """

    name: Literal["toybox"] = "toybox"
    families: Families = ("cars", "chairs")
    scenes: int = Field(1000, ge=4, le=100_000, description="number of scenes, including the held-out ones")
    views: int = Field(50, ge=2, le=10_000, description="random views per scene")
    held_out: int = Field(64, ge=2, description="last scenes, used only for validation and the sample sheet")

    @model_validator(mode="after")
    def _check_held_out(self) -> "ToyboxPairsConfig":
        if self.held_out < 2 * len(self.families):
            raise ValueError(f"held_out {self.held_out} should be at least 2 of each of {len(self.families)} families")
        return self
