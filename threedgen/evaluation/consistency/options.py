"""Config models of the consistency score: samplers, scenes, the task (no torch here)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.fields import component
from threedgen.config.registry import Component
from threedgen.config.sections import RunConfig
from threedgen.data.srn.layout import scenes, split_folder
from threedgen.evaluation.toybox.options import ProbeConfig
from threedgen.representations.options import PaperProtocolConfig, SubsampledProtocolConfig
from threedgen.run.folder import existing_folder

ORIGINAL = "original"
"""The row of the original data."""
LEAST = 4
"""Views that a scene must have: some to fit, some to hold out."""


class MVDreamSamplerConfig(Config):
    """The 4-view prior, asked for many views of what a text says."""

    name: Literal["mvdream"] = Field("mvdream", description="a multi-view diffusion prior; draws from words alone")
    prior: Annotated[Any, Component("prior", default="mvdream", only=("mvdream",))] = Field({}, description="who draws")
    together: int = Field(
        0, ge=0, le=1024, description="views denoised together, evenly spread; 0: all. Each group shows another object"
    )
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float = Field(5.0, ge=0)
    negative_prompt: str = ""


class MVAdapterSamplerConfig(Config):
    """A 2D model with an adapter, asked for many views of the object of a picture, or of what a text says."""

    name: Literal["mvadapter"] = Field("mvadapter", description="draws from the view that is given, else from words")
    prior: Annotated[Any, Component("prior", default="mvadapter", only=("mvadapter",))] = Field(
        {}, description="who draws"
    )
    together: int = Field(
        6, ge=0, le=1024, description="views denoised together, evenly spread; 0: all. Groups may differ"
    )
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float | None = Field(None, ge=0, description="null: 7, with a picture 3")
    negative_prompt: str = ""
    image_prompt: str = Field("", description="text beside a picture; released adapters learnt 'high quality'")


class FolderSamplerConfig(Config):
    """Views that are on the disk already, whoever drew them: PATH/SCENE/{rgb,pose,intrinsics.txt}."""

    name: Literal["folder"] = Field("folder", description="pictures and poses in the layout of the SRN archives")
    path: str = Field(min_length=1, description="folder with a folder for each scene")
    up: Literal["z", "y"] = Field("z", description="which axis of its world points up")

    def check(self) -> None:
        from threedgen.data.srn.scene_files import read_scene

        for scene in self.folders():
            read_scene(scene, LEAST, allow_gaps=True)

    def folders(self) -> list[Path]:
        """Lists those of its scenes. Raises ConfigError if there are none."""
        folder = existing_folder(self.path, "path")
        if not (found := scenes(folder)):
            inside = next((path for path in sorted(folder.iterdir()) if scenes(path)), None)
            hint = f"; did you mean {inside}, which has?" if inside else ""
            lacking = f"{self.path} has no scenes in it, folders with rgb/, pose/ and intrinsics.txt in each{hint}"
            raise ConfigError(lacking, "path")
        return found


class ToyboxScenesConfig(Config):
    """Held-out captions of the toybox, its objects on rings of cameras as original data."""

    name: Literal["toybox"] = "toybox"
    count: int = Field(40, ge=1, le=10_000)
    views: int = Field(60, ge=4, le=10_000, description="evenly around the object")
    elevation: float = Field(15.0, gt=-90, lt=90, description="degrees")
    fov: float = Field(40.0, gt=0, lt=180, description="degrees")
    relative_distance: float = Field(0.95, gt=0, le=100, description="of the cameras, in 1 / tan(fov / 2)")
    size: int = Field(64, ge=8, le=2048, description="pixels a side")


class SRNScenesConfig(Config):
    """Scenes of an archive: one view is given, all others are to be drawn."""

    name: Literal["srn"] = "srn"
    path: str = Field(min_length=1, description="folder that holds the split, or its scenes")
    split: Literal["cars_train", "cars_val", "cars_test", "chairs_train", "chairs_val", "chairs_test"] = "cars_test"
    count: int = Field(40, ge=1, le=100_000, description="scenes, evenly chosen from all; as many as there are")
    condition: int = Field(64, ge=0, description="number of the given view")
    views: int | None = Field(None, ge=4, description="views of each scene, evenly chosen; null: all")
    size: int | None = Field(None, ge=8, le=2048, description="pixels a side; null: as they are")
    up: Literal["z", "y"] = Field("z", description="which axis of its world points up")

    def check(self) -> None:
        from threedgen.data.srn.scene_files import condition_and_targets, read_scene

        for scene in self.folders():
            condition_and_targets(read_scene(scene, LEAST), self.condition)

    def folders(self) -> list[Path]:
        """Lists those of the chosen scenes. Raises ConfigError if there are none."""
        from threedgen.run.arrays import evenly_spaced  # NumPy: questions on the command line do without it

        found = scenes(split_folder(self.path, self.split))
        return [found[k] for k in evenly_spaced(len(found), self.count)]


class SampledScenesConfig(Config):
    """The scenes that a folder of samples has; there is no original data to compare with."""

    name: Literal["sampled"] = "sampled"


class TSEDConfig(Config):
    """Thresholded symmetric epipolar distance of neighbouring views (Yu et al. 2023)."""

    pairs: int = Field(24, ge=0, le=100_000, description="neighbouring views of a scene, evenly chosen; 0: none")
    size: int = Field(256, ge=16, le=2048, description="pixels a side at which features are looked for")
    t_error: float = Field(2.0, gt=0, description="median distance below which a pair is consistent, in pixels of 256")
    t_matches: int = Field(10, ge=1, description="least number of matches of a consistent pair")
    ratio: float = Field(0.8, gt=0, le=1, description="Lowe's ratio test")


class ConsistencyConfig(RunConfig):
    """Score how well the views of a sampler fit one object."""

    sampler: Annotated[Any, Component("sampler", default="mvdream", path_of="folder")] = Field(
        {}, description="who draws; the name of a sampler or the path of a folder may be given alone"
    )
    samplers: dict[str, Annotated[Any, Component("sampler", default="mvdream", path_of="folder")]] = Field(
        {}, description="several by names, in the place of `sampler`; the first is compared with each of the others"
    )
    scenes: Annotated[Any, Component("scenes", default="toybox")] = Field(
        {}, description="what is drawn; with a folder of samples: its own scenes, unless others are named"
    )
    protocol: Annotated[PaperProtocolConfig | SubsampledProtocolConfig, Field(discriminator="name")] = (
        SubsampledProtocolConfig()
    )
    held_out: float = Field(0.1, gt=0, lt=0.9, description="share of the views that the field does not see")
    tsed: TSEDConfig = TSEDConfig()
    features: ProbeConfig | None = Field(None, description="a probe, for FID and KID on its features; null: neither")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="of the fits; auto: a GPU if there is one")
    batch: int = Field(1, ge=1, le=1024, description="scenes that the sampler is asked for together")
    workers: int = Field(1, ge=1, le=256, description="fields fitted side by side, each with its share of the threads")
    sheet: int = Field(8, ge=0, le=1000, description="scenes on the sheet of pictures")
    bootstrap: int = Field(2000, ge=100, le=1_000_000, description="resamples of the scenes for the intervals")

    @property
    def contestants(self) -> dict[str, Any]:
        """The configs of the samplers by the names of their rows."""
        return self.samplers or {self.sampler.name: self.sampler}

    @model_validator(mode="before")
    @classmethod
    def _own_scenes(cls, data: Any) -> Any:
        """Folders alone bring their own scenes."""
        if not isinstance(data, dict) or data.get("scenes"):
            return data
        several = data.get("samplers") or {"": data.get("sampler")}
        if not isinstance(several, dict):
            return data
        mark = component(cls.model_fields["sampler"])
        own = all(mark is not None and mark.model(one) is FolderSamplerConfig for one in several.values())
        return data | {"scenes": {"name": "sampled"}} if own else data

    @model_validator(mode="after")
    def _agree(self) -> ConsistencyConfig:
        """Rows have names that files can have, and what is drawn suits who draws."""
        for name in self.samplers:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) or name == ORIGINAL:
                raise ValueError(
                    f"samplers: {name!r} is no name for a row; letters, digits, - and _ make one, and {ORIGINAL!r} is "
                    "taken"
                )
        first = next(iter(self.contestants.values()))
        if self.scenes.name == "sampled" and first.name != "folder":
            raise ValueError(f"scenes 'sampled' are those of a folder of samples, but the sampler is {first.name!r}")
        return self
