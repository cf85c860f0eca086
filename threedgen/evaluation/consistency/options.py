"""Config models of the consistency score: samplers, scenes, task. This module does not import torch."""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.errors import short
from threedgen.config.registry import Component, config_model
from threedgen.config.sections import RunConfig
from threedgen.data.posed.options import PoseConvention
from threedgen.data.srn.scene_files import Split, scenes, split_folder
from threedgen.evaluation.options import MultiviewPrior
from threedgen.representations.volume.options import Protocol, SubsampledProtocolConfig
from threedgen.run.disk import Tree
from threedgen.run.folder import existing_folder, user_path

AdapterPrior = Annotated[Any, Component("prior", default="mvadapter", only=("mvadapter",))]
SAMPLER = Component("sampler", default="mvdream", component_for_paths="folder")
Sampler = Annotated[Any, SAMPLER]
Scenes = Annotated[Any, Component("scenes", default="toybox")]
PHOTO_SIZE = 256  # default longer side of photos with poses in pixels
ORIGINAL = "original"  # name of the table row for the original views of the scenes
SCORE_ANGLES = "docs/your-files.md shows how to write a transforms.json for elevations and azimuths"
MIN_VIEWS = 4  # minimum number of views of a scene: the field is fitted to some, and the others are held out


class MVDreamSamplerConfig(Config):
    """Sampler with a multi-view diffusion model (prior), which samples many views of an object from a prompt.

    Options of the sampler "mvdream" of the task "consistency": the prior, DDIM steps and guidance scale.
    """

    together: ClassVar[int] = 0  # number of views that are denoised together; 0: all views

    name: Literal["mvdream"] = Field("mvdream", description="multi-view diffusion prior, conditioned on text only")
    prior: MultiviewPrior = Field({}, description="multi-view prior to evaluate")
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float = Field(5.0, ge=0, description="scale of classifier-free guidance")


class MVAdapterSamplerConfig(Config):
    """Sampler with a 2D diffusion model and MV-Adapter, which samples views of an object from an image or a prompt.

    Options of the sampler "mvadapter" of the task "consistency": the model with its adapter, number of views that are
    denoised together, DDIM steps and guidance scale.
    """

    name: Literal["mvadapter"] = Field("mvadapter", description="conditioned on the given view, else on text")
    prior: AdapterPrior = Field({}, description="2D model with an adapter to evaluate")
    together: int = Field(6, ge=0, le=1024, description="evenly spread views denoised together; 0: all")
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float | None = Field(None, ge=0, description="null: 7, or 3 with a given view")


class FolderSamplerConfig(Config):
    """Existing views: photos with poses (transforms.json, COLMAP), or PATH/SCENE/{rgb,pose,intrinsics.txt}.

    Options of the sampler "folder" of the task "consistency". It samples nothing: it reads existing views, such as
    photos or the samples of another program, so that the task can score them. PATH is the option ``path``; the others
    are the up axis and pose convention of the files and the maximum size of photos.
    """

    name: Literal["folder"] = Field("folder", description="posed photos, or images in the layout of the SRN archives")
    path: str = Field(min_length=1, description="transforms.json, folder of a scene, or folder of scenes")
    up: Literal["z", "y"] = Field("z", description="up axis of the poses of an SRN scene")
    size: int = Field(PHOTO_SIZE, ge=16, le=4096, description="longer side of photos, pixels; larger ones are reduced")
    poses: PoseConvention | None = Field(None, description="convention of photo poses; null: of the file format")

    def check(self) -> None:
        from threedgen.data.posed.reader import posed_source, read_posed
        from threedgen.data.srn.scene_files import read_scene

        for scene in self.folders():
            if posed_source(scene):
                read_posed(scene)
            else:
                read_scene(scene, MIN_VIEWS)

    def folders(self) -> list[Path]:
        """Return the paths of all scenes at ``path``: scene folders of both layouts, or one transforms.json.

        Raises ConfigError if there is no scene.
        """
        from threedgen.data.posed.reader import posed_scenes, posed_source

        path = user_path(self.path, "path")
        if posed_source(path):
            return [path]
        if (path / "rgb").is_dir() and (path / "pose").is_dir():
            return [path.absolute()]  # so that "." has a name
        folder = existing_folder(self.path, "path")
        if not (found := sorted({*posed_scenes(folder), *scenes(folder)})):
            wanted = "a transforms.json, a COLMAP model (sparse/0), or folders with rgb/, pose/ and intrinsics.txt"
            raise ConfigError(f"has no scenes: {wanted}. {SCORE_ANGLES}", "path", self.path)
        return found

    def left_out(self) -> list[str]:
        """Return a note for each folder beside the scenes that holds images, but is no scene."""
        from threedgen.geometry.image_file import SUFFIXES

        folder, found = user_path(self.path, "path"), self.folders()
        others = sorted(folder.iterdir()) if found[0].parent == folder else []
        return [
            f"left out: {path}. It has images, but no transforms.json, COLMAP model, or rgb/ and pose/."
            for path in others
            if path not in found and path.is_dir() and not path.name.startswith(".")
            if any(file.suffix.lower() in SUFFIXES for file in path.rglob("*"))
        ]


class PosedScenesConfig(Config):
    """Photos with poses, or scenes of an SRN archive: one view is given, the others are targets.

    Options of the scenes "posed" and "srn" of the task "consistency": files, number of scenes and views, number of the
    given view, image size, up axis and pose convention. A sampler receives the given view and samples the target views.
    """

    name: Literal["posed", "srn"] = "posed"
    path: str = Field(min_length=1, description="folder of the split, or of its scenes; or photos with poses")
    split: Split = Field("cars_test", description="category and split of the archive")
    count: int = Field(40, ge=1, le=100_000, description="maximum number of scenes, evenly chosen")
    condition: int = Field(64, ge=0, description="number of the given view")
    views: int | None = Field(None, ge=4, description="views per scene, evenly chosen; null: all")
    size: int | None = Field(None, ge=8, le=2048, description="side of a view, pixels; null: unchanged, photos 256")
    up: Literal["z", "y"] = Field("z", description="up axis of the poses of an archive")
    poses: PoseConvention | None = Field(None, description="convention of photo poses; null: of the file format")

    def check(self) -> None:
        from threedgen.data.posed.reader import posed_source, read_posed
        from threedgen.data.srn.scene_files import condition_and_targets, read_scene

        for scene in self.folders():
            if posed_source(scene):
                read_posed(scene)
            else:
                condition_and_targets(read_scene(scene, MIN_VIEWS), self.condition)

    def folders(self) -> list[Path]:
        from threedgen.data.posed.reader import posed_scenes
        from threedgen.run.arrays import evenly_spaced  # NumPy, which --help does without

        found = posed_scenes(user_path(self.path, "path")) or scenes(split_folder(self.path, self.split))
        return [found[k] for k in evenly_spaced(len(found), self.count)]


class SampledScenesConfig(Config):
    """Scenes whose views exist already as files; there are no original views to compare them with.

    Options of the scenes "sampled" of the task "consistency": number of scenes. With other scenes, a sampler makes the
    views. Here the first sampler must be "folder" (`FolderSamplerConfig`), which only reads files. The scenes are those
    in its folder. Original views are not needed: the task fits a field to most views of a scene, and compares
    renders of the field with the other views of the scene.
    """

    name: Literal["sampled"] = "sampled"
    count: int | None = Field(None, ge=1, description="maximum number of scenes, evenly chosen; null: all")


class TSEDConfig(Config):
    """Thresholded symmetric epipolar distance (TSED) of consecutive views (Yu et al. 2023).

    Options of this metric of the task "consistency": number of pairs of views per scene. TSED is the fraction of the
    pairs that obey epipolar geometry.
    """

    pairs: int = Field(24, ge=0, le=100_000, description="pairs of neighbouring views per scene; 0: no TSED")


class ProbeWeightsConfig(Config):
    """Weights of the probe, a classifier of images of toybox objects (procedural 3D objects of this package).

    Options of the feature network of FID and KID in the task "consistency". Both metrics compare hidden features of the
    probe. ``weights`` is "embedded" (weights in this package) or a file that the task "train-probe" wrote.
    """

    weights: str = Field("embedded", min_length=1, description="'embedded', or a train-probe run's .safetensors file")

    def features(self) -> Config:
        config = config_model("features", "probe").model_validate({"weights": self.weights})
        assert isinstance(config, Config)
        return config

    def check(self) -> None:
        self.features().check()


class ConsistencyConfig(RunConfig):
    """3D consistency score of a sampler: renders of fields fitted to its views, compared with held-out views.

    Options of the task "consistency": samplers, scenes, how fields are fitted (``protocol``), metrics, worker
    processes.
    """

    sampler: Sampler = Field({}, description="sampler to score; short form: its name, or the path of a folder")
    samplers: dict[str, Sampler] = Field({}, description="several by name; the first is compared with the others")
    scenes: Scenes = Field({}, description="scenes to sample; default for folders of samples: their own")
    protocol: Protocol = SubsampledProtocolConfig()
    tsed: TSEDConfig = TSEDConfig()
    features: ProbeWeightsConfig | None = Field(None, description="toybox probe for FID and KID; null: neither")
    batch: int = Field(1, ge=1, le=1024, description="scenes that the sampler gets together")
    workers: int = Field(1, ge=1, le=256, description="fields fitted in parallel; they share the threads")

    @property
    def named_samplers(self) -> Tree:
        """Dict of the configs of all samplers to compare. The keys are their names in the result table."""
        return self.samplers or {self.sampler.name: self.sampler}

    def left_out(self) -> list[str]:
        folders = [one for one in self.named_samplers.values() if isinstance(one, FolderSamplerConfig)]
        return [note for folder in folders for note in folder.left_out()]

    def notes(self) -> list[str]:
        return [*super().notes(), *self.left_out()]

    @model_validator(mode="before")
    @classmethod
    def _own_scenes(cls, data: Any) -> Any:
        scenes = data.get("scenes") or {} if isinstance(data, dict) else None
        if not isinstance(scenes, dict) or "name" in scenes:
            return data
        several = data.get("samplers") or {"": data.get("sampler")}
        if not isinstance(several, dict):
            return data
        own = all(SAMPLER.model(one) is FolderSamplerConfig for one in several.values())
        return data | {"scenes": {"name": "sampled"} | scenes} if own else data

    @model_validator(mode="after")
    def _consistent(self) -> "ConsistencyConfig":
        for name in self.samplers:
            if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", name) or name == ORIGINAL:
                raise ValueError(
                    f"samplers: {short(name)} is no valid name. Use letters, digits, - and _, not {ORIGINAL!r}"
                )
        first = next(iter(self.named_samplers.values()))
        if self.scenes.name == "sampled" and first.name != "folder":
            raise ValueError(f"scenes.name=sampled needs a folder of samples, but the sampler is {short(first.name)}")
        return self
