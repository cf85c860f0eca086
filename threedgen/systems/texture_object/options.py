"""Config models of the task that textures the mesh of a thing, and of what others share with it (no torch here)."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.registry import Component
from threedgen.config.sections import RunConfig
from threedgen.run.arrays import Array
from threedgen.run.folder import user_path
from threedgen.run.prompts import normalise_prompt
from threedgen.systems.prompted import PromptedConfig
from threedgen.systems.texture.options import MESHES, check_mesh, power_of_two

Axis = Literal["auto", "+x", "-x", "+y", "-y", "+z", "-z"]


class DrawingConfig(PromptedConfig):
    """What views of a thing show, and who draws them.

    sides: the options that say how high and how wide they are.
    """

    sides: ClassVar[tuple[str, str]]

    negative_prompt: str = Field("", description="what to stay away from")
    image: str | None = Field(
        None,
        min_length=1,
        description="picture of the thing, cut out (PNG with transparency) or before one colour; front within 45 "
        "degrees",
    )
    image_prompt: str = Field(
        "", description="text beside a picture where there is no prompt; released adapters learnt 'high quality'"
    )
    prior: Annotated[Any, Component("prior", default="mvadapter", only=("mvadapter",))] = Field(
        {}, description="who draws"
    )
    steps: int = Field(50, ge=1, le=1000, description="denoising steps")
    guidance_scale: float | None = Field(
        None, ge=0, description="of text and picture together; null: 7, with a picture 3"
    )
    image_scale: float | None = Field(
        None, ge=0, description="of the picture apart, and guidance_scale of the text alone; null: of both together"
    )
    eta: float = Field(0.0, ge=0, le=1, description="fresh noise of a step: 0 is DDIM, 1 as much as DDPM")

    @property
    def draws(self) -> bool:
        """Is there anything to draw?"""
        return bool(self.prompt.strip()) or self.image is not None

    def text(self) -> str:
        """What the model reads; "" only beside a picture. Raises ConfigError."""
        return (
            self.image_prompt if self.image is not None and not self.prompt.strip() else normalise_prompt(self.prompt)
        )

    def check_drawing(self, control: Literal["rays", "geometry"]) -> None:
        """Is there what drawing needs, told such things of the views? Raises ConfigError."""
        self.text()
        if self.prior.image is not None:
            raise ConfigError("is of text to 3D; here the picture of the thing is image=FILE", "prior.image")
        if self.image is None and self.image_scale is not None:
            raise ConfigError("has no effect without a picture of the thing, image=FILE", "image_scale")
        needs = "a mesh" if control == "geometry" else "a picture" if self.image is not None else ""
        if needs and self.prior.adapter is None:
            raise ConfigError(
                f"there is none, and the 2D model alone cannot look at {needs}; give the file of one that was trained "
                "to, such as RUN/adapter.safetensors of train-mvadapter",
                "prior.adapter",
            )
        self.cut_out()
        if self.prompt.strip():
            self.check_prompt()

    def cut_out(self) -> Array | None:
        """The pixels (h,w,4) in [0,1] of the picture, and how opaque the thing is there. Raises ConfigError."""
        from threedgen.geometry.foreground import read_foreground

        return None if self.image is None else read_foreground(str(user_path(self.image, "image")))


class ThingConfig(RunConfig):
    """The mesh of a thing, and how it stands in its file."""

    mesh: str | None = Field(None, description=f"file with the thing ({', '.join(MESHES)}), any number of pieces")
    front: Axis = Field(
        "auto", description="axis of the file that the front faces; auto: +z if y points upwards, -y if z does"
    )
    up: Axis = Field("auto", description="axis of the file that points upwards; auto: +y of GLB, glTF and OBJ, else +z")
    budget: int = Field(100_000, ge=4, le=2_000_000, description="triangles at most; a mesh with more is simplified")

    def check_thing(self) -> None:
        """Is its file there? Raises ConfigError."""
        check_mesh(user_path(str(self.mesh), "mesh"))


class SurfaceConfig(Config):
    """What no side shows gets the colours around it, which diffuse on the surface."""

    name: Literal["surface"] = Field("surface", description="colours diffuse on the surface, from where they are known")


class InpaintConfig(Config):
    """What no side shows is painted by the 2D model, view by view; what is left then gets the colours around it."""

    name: Literal["inpaint"] = Field(
        "inpaint", description="the 2D model paints it, from where most of it is seen, then from the next such place"
    )
    views: int = Field(8, ge=1, le=60, description="views at most")
    least: float = Field(0.02, gt=0, le=1, description="share of a view to be painted, from which on it is")
    guidance_scale: float = Field(7.0, ge=0, description="of the text, for the 2D model")
    repeats: int = Field(
        1, ge=1, le=20, description="times each step is taken; more agree better with what is around, and take longer"
    )


class TextureObjectConfig(ThingConfig, DrawingConfig):
    """Texture the mesh of a thing, from words, from a picture, or with pictures of its six sides."""

    sides: ClassVar[tuple[str, str]] = ("size", "size")

    views: str | None = Field(
        None,
        description="instead of prompt and image: folder with pictures of the sides, square and of one size: "
        "front.png, right.png, back.png, left.png, top.png, bottom.png, as preview.png of a run shows them; what is "
        "transparent is not the thing; none of all three: only preview.png and the maps are made",
    )
    size: int = Field(768, ge=64, le=2048, description="pixels of a side's maps, and of a side that is drawn")
    synchronise: int = Field(
        0,
        ge=0,
        le=100,
        description="times that drawn sides are put on the mesh, and what is then seen of it is drawn again from some "
        "noise (prior.draft, else 0.3, and less each time), so that they agree with each other and with its outline",
    )
    texture: int = Field(1024, ge=64, le=8192, description="texels along an edge, a power of two")
    uv: Literal["auto", "own", "unwrap"] = Field(
        "auto", description="texture coordinates: the mesh's own, new ones, or auto: its own if no two places share one"
    )

    complete: Annotated[SurfaceConfig | InpaintConfig, Field(discriminator="name")] = SurfaceConfig()

    @property
    def draws(self) -> bool:
        return self.views is None and super().draws

    @property
    def paints(self) -> bool:
        """Is there anything that the 2D model completes?"""
        return self.complete.name == "inpaint" and (self.draws or self.views is not None)

    def used(self) -> Self:
        return self if self.draws or self.paints else self.model_copy(update={"prior": None})

    @model_validator(mode="after")
    def _fit(self) -> TextureObjectConfig:
        power_of_two(self.texture)
        return self

    def check(self) -> None:
        if self.mesh is None:
            raise ConfigError("there is none: give the thing, mesh=chair.glb", "mesh")
        self.check_thing()
        if self.views is not None and not user_path(self.views, "views").is_dir():
            raise ConfigError(f"should be a folder with pictures of six sides (got {self.views!r})", "views")
        if self.views is not None and (self.image is not None or self.prompt.strip() and not self.paints):
            raise ConfigError("are given, and there is a prompt or an image to draw others from; give one", "views")
        if self.draws:
            self.check_drawing("geometry")
        if self.paints:
            self.text()
        if self.draws or self.paints:  # else nobody needs the prior
            super().check()
