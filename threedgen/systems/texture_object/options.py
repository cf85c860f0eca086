"""Config model of the task that textures the mesh of a thing (no torch here)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from threedgen.config import ConfigError
from threedgen.config.sections import RunConfig
from threedgen.run.folder import user_path
from threedgen.systems.texture.options import MESHES, check_mesh, power_of_two

Axis = Literal["auto", "+x", "-x", "+y", "-y", "+z", "-z"]


class TextureObjectConfig(RunConfig):
    """Texture the mesh of a thing with pictures of its six sides."""

    mesh: str | None = Field(None, description=f"file with the thing ({', '.join(MESHES)}), any number of pieces")
    front: Axis = Field(
        "auto", description="axis of the file that the front faces; auto: +z if y points upwards, -y if z does"
    )
    up: Axis = Field("auto", description="axis of the file that points upwards; auto: +y of GLB, glTF and OBJ, else +z")
    views: str | None = Field(
        None,
        description="folder with pictures of the sides, square and of one size: front.png, right.png, back.png, "
        "left.png, top.png, bottom.png, as preview.png of a run shows them; what is transparent is not the thing; "
        "none: only preview.png and the maps are made",
    )
    size: int = Field(768, ge=64, le=2048, description="pixels of a side's maps")
    texture: int = Field(1024, ge=64, le=8192, description="texels along an edge, a power of two")
    uv: Literal["auto", "own", "unwrap"] = Field(
        "auto", description="texture coordinates: the mesh's own, new ones, or auto: its own if no two places share one"
    )
    budget: int = Field(100_000, ge=4, le=2_000_000, description="triangles at most; a mesh with more is simplified")

    @model_validator(mode="after")
    def _fit(self) -> TextureObjectConfig:
        power_of_two(self.texture)
        return self

    def check(self) -> None:
        if self.mesh is None:
            raise ConfigError("there is none: give the thing, mesh=chair.glb", "mesh")
        check_mesh(user_path(self.mesh, "mesh"))
        if self.views is not None and not user_path(self.views, "views").is_dir():
            raise ConfigError(f"should be a folder with pictures of six sides (got {self.views!r})", "views")
        super().check()
