"""Config models of the task "texture". The module does not import torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.plain_file import read_text
from threedgen.config.registry import Component
from threedgen.data.posed.options import PoseConvention
from threedgen.run.folder import user_path
from threedgen.systems.sample.options import SAMPLERS, SIDES, SamplingConfig

AUTO = "auto"
Poses = Literal["c2w", "w2c"]


class SidesConfig(Config):
    """Options of texturing an object from six orthographic views: front, right, back, left, top, bottom.

    This rig (set of cameras) belongs to the task "texture". Its option is the size of the views in pixels; it is also
    the maximum size of photos that the user gives instead of the views.
    """

    name: Literal["sides"] = Field("sides", description="six orthographic sides of an object")
    size: int = Field(768, ge=64, le=2048, description="side of the maps and of a sampled view in pixels")


class PathConfig(Config):
    """Options of perspective cameras along a path in a scene.

    This rig (set of cameras) belongs to the task "texture". The cameras are those of a file, of a ScanNet folder, or of
    an automatic path. Other options are the image size, and the number of frames that are sampled together.
    """

    name: Literal["path"] = Field("path", description="perspective cameras along a path in a scene")
    file: str = Field(AUTO, min_length=1, description="cameras.json in mesh coordinates; auto: around in the room")
    scannet: str | None = Field(None, description="scene folder in ScanNet's layout, instead of file")
    poses: Poses = Field("c2w", description="convention of the matrices: camera-to-world, or inverse")
    every: int | None = Field(None, ge=1, description="frame step; null: 1 for a path, 20 for a ScanNet folder")
    height: int = Field(192, ge=8, le=2048, description="frame height in pixels; released weights: 192 x 256")
    width: int = Field(256, ge=8, le=2048, description="frame width in pixels")
    fov: float = Field(60.0, ge=5, le=150, description="vertical field of view if the file has none, degrees")
    frames: int = Field(72, ge=2, le=10_000, description="cameras of an automatic path")
    views: int = Field(12, ge=2, le=64, description="frames sampled together")

    @model_validator(mode="after")
    def _consistent(self) -> "PathConfig":
        if self.scannet is not None and self.file != AUTO:
            raise ValueError("file and scannet cannot both be given: each has the cameras")
        return self


class TextureConfig(SamplingConfig):
    """Texturing of the mesh of an object or a scene, from text or images.

    Options of the task "texture".
    """

    prior: Annotated[Any, Component("prior", "mvadapter", SAMPLERS[2:])] = Field({}, description="diffusion prior")
    scale: float = Field(1.0, gt=0, le=1e6, description="metres per unit of a scene's file; 0.01: centimetres")
    rig: Annotated[SidesConfig | PathConfig, Field(discriminator="name")] = SidesConfig()
    views: str | None = Field(None, description="your square images front.png, right.png, ..., or photos with poses")
    poses: PoseConvention | None = Field(None, description="convention of photo poses; null: of the file format")
    texture: int = Field(1024, ge=64, le=8192, description="side of the texture in pixels, a power of two")
    uv: Literal["auto", "own", "unwrap"] = Field("auto", description="texture coordinates; auto: own if usable")

    @model_validator(mode="after")
    def _consistent(self) -> "TextureConfig":
        sides = "image image_prompt matte views poses budget"
        self.check_rig(self.rig.name, sides=sides, path="prompts scale")
        if self.texture & (self.texture - 1):
            below = 1 << self.texture.bit_length() - 1
            raise ValueError(f"texture {self.texture} should be a power of two. Try {below}")
        if self.synchronise and self.mesh is None and isinstance(self.rig, PathConfig) and self.rig.scannet is not None:
            raise ValueError(f"synchronise {self.synchronise} needs a mesh, on which frames agree. Try 0")
        return self

    @property
    def samples(self) -> bool:
        """Whether the prior (diffusion model) samples the images for the texture.

        The images of a scene are always sampled. Those of an object are sampled if there is a prompt or an image, and
        the user gives no views. Without prompt, image and views there is no texture: only position and normal maps of
        the mesh are written.
        """
        condition = self.prompt.strip() or self.image is not None
        return self.rig.name == "path" or self.views is None and bool(condition)

    def without_unused_sections(self) -> Self:
        return self if self.samples else self.model_copy(update={"prior": None})

    def texts(self) -> list[str]:
        if isinstance(self.rig, SidesConfig):
            return [self.prompt]
        from_scan = self.rig.scannet is not None and not self.prompt and not self.prompts
        return [] if from_scan else self.scene_texts()

    def check(self) -> None:
        if isinstance(self.rig, PathConfig):
            self._check_path(self.rig)
        else:
            self._check_sides()
        if self.samples:  # else the prior is not used
            super().check()

    def _check_sides(self) -> None:
        from threedgen.data.posed.reader import posed_source

        if self.mesh is None:
            raise ConfigError("is missing. Give the object, mesh=chair.glb", "mesh")
        self.check_mesh()
        if self.views is not None and not user_path(self.views, "views").exists():
            raise ConfigError("should be a folder with images of six sides, or with posed photos", "views", self.views)
        if self.views is not None and (self.image is not None or self.prompt.strip()):
            raise ConfigError("has no effect together with a prompt or an image. Give one of them", "views")
        if self.matte is not None and self.image is None:
            raise ConfigError("has no effect without image. Remove it", "matte", self.matte)
        if self.poses is not None and (self.views is None or posed_source(user_path(self.views, "views")) is None):
            raise ConfigError("has no effect without photos with poses in views. Remove it", "poses", self.poses)
        if self.views is not None and posed_source(folder := user_path(self.views, "views")) is None:
            sides = [f"{side}.png" for side in SIDES]
            if not any((folder / name).is_file() for name in sides):
                problem = f"has neither images of sides ({', '.join(sides)}) nor poses of photos"
                advice = "Give photos with a transforms.json or a COLMAP model; ns-process-data converts raw scans"
                raise ConfigError(f"{problem}. {advice} of Polycam and RealityCapture", "views", self.views)
        if self.samples:
            self.check_adapter("geometry")

    def _check_path(self, rig: PathConfig) -> None:
        if self.mesh is None and rig.scannet is None and (rig.file != AUTO or self.vocabulary() is None):
            raise ConfigError("is missing. Give a scene, mesh=room.glb, or rig.scannet=FOLDER", "mesh")
        if self.mesh is not None:
            self.check_mesh()
        if rig.scannet is not None and not (user_path(rig.scannet, "rig.scannet") / "depth").is_dir():
            raise ConfigError("should be the folder of one scene, with depth/ in it", "rig.scannet", rig.scannet)
        if rig.file != AUTO:
            read_text(user_path(rig.file, "rig.file"), "rig.file")
        self.texts()
        self.check_prompt()
