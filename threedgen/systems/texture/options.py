"""Config model of the task that draws a scene and textures its mesh (no torch here)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from threedgen.config import ConfigError
from threedgen.config.plain_file import read_text
from threedgen.config.registry import Component
from threedgen.run.folder import user_path
from threedgen.run.prompts import EXAMPLE_ROOM, normalise_prompt
from threedgen.systems.prompted import WordedConfig

MESHES = (".glb", ".gltf", ".obj", ".ply", ".off", ".stl")
AUTO = "auto"


class TextureConfig(WordedConfig):
    """Draw a scene of known shape from words, along a path, and texture its mesh with the pictures."""

    prompt: str = Field("", description="what the scene looks like; taken as it is, for all frames")
    prompts: str | None = Field(None, description="instead: a text file with a line for each camera of the path")
    negative_prompt: str = ""
    prior: Annotated[Any, Component("prior", default="mvdiffusion", only=("mvdiffusion",))] = Field(
        {}, description="who draws: a model that is told the depth"
    )
    mesh: str | None = Field(
        None, description=f"file with the scene ({', '.join(MESHES)}), any number of pieces; it gets the texture"
    )
    up: Literal["auto", "y", "z"] = Field(
        "auto", description="axis of the mesh's file that points upwards; auto: y of GLB, glTF and OBJ, else z"
    )
    scale: float = Field(1.0, gt=0, le=1e6, description="metres to a unit of the mesh's file; 0.01: centimetres")
    path: str = Field(
        AUTO,
        min_length=1,
        description="file of cameras, as the cameras.json of a run, or auto: from the middle of the scene's free "
        "interior all around; the file has c2w (a list of 4 x 4 matrices in the mesh's coordinates), axes (opengl or "
        "opencv), and fov (vertical, degrees), or K (3 x 3, or a list) with height and width",
    )
    scannet: str | None = Field(
        None,
        description="instead of a path: a scene's folder in ScanNet's layout (depth/N.png in mm, pose/N.txt, "
        "intrinsic/intrinsic_depth.txt, prompt/N.txt); with mesh=FILE, in the same coordinates, it is textured",
    )
    poses: Literal["c2w", "w2c"] = Field(
        "c2w", description="what the matrices of path or scannet are: camera-to-world, or its inverse"
    )
    every: int | None = Field(
        None, ge=1, description="use each frame of this number; null: all of a path, each 20th of a ScanNet folder"
    )
    height: int = Field(192, ge=8, le=2048, description="pixels of a frame; released weights know 192 x 256")
    width: int = Field(256, ge=8, le=2048, description="pixels of a frame")
    fov: float = Field(60.0, ge=5, le=150, description="vertical angle of view where the path says none, degrees")
    frames: int = Field(72, ge=2, le=10_000, description="cameras of an automatic path")
    turns: float = Field(2.0, gt=0, le=20, description="how often an automatic path turns around")
    tilt: float = Field(15.0, ge=0, le=60, description="degrees by which it looks down in the beginning, up in the end")
    key_overlap: float = Field(
        0.65, gt=0, lt=1, description="common part of the pictures of one key frame and the next; more: more of them"
    )
    views: int = Field(12, ge=2, le=64, description="frames drawn together")
    shared: int = Field(
        4, ge=1, le=63, description="of these, key frames that were drawn before, if there are more than views"
    )
    interpolate: bool = Field(True, description="draw the frames between key frames too, from both")
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    eta: float = Field(0.0, ge=0, le=1, description="fresh noise of a step: 0 none, 1 as much as DDPM's")
    guidance_scale: float = Field(9.0, ge=0)
    synchronise: int = Field(
        0,
        ge=0,
        le=100,
        description="times that frames are put on the mesh, and what is then seen of it is drawn again from some noise "
        "(prior.draft, else 0.3, and less each time), so that they agree",
    )
    texture: int = Field(2048, ge=64, le=8192, description="texels along an edge, a power of two")
    uv: Literal["auto", "own", "unwrap"] = Field(
        "auto", description="texture coordinates: the mesh's own, new ones, or auto: its own if no two places share one"
    )
    tolerance: float = Field(
        0.02, gt=0, le=1, description="a frame sees what is at most this share farther than the depth it has there"
    )

    @model_validator(mode="after")
    def _fit(self) -> TextureConfig:
        if self.shared >= self.views:
            raise ValueError(f"shared {self.shared} should be less than views {self.views}; try {self.views // 3}")
        power_of_two(self.texture)
        if self.synchronise and self.mesh is None and self.scannet is not None:
            raise ValueError(f"synchronise {self.synchronise} needs a mesh, on which frames agree; try 0")
        if self.prompt and self.prompts:
            raise ValueError("prompt and prompts cannot both be given: one text for all frames, or a line for each")
        if self.scannet is not None and self.path != AUTO:
            raise ValueError("path and scannet cannot both be given: each says where the cameras are")
        return self

    def texts(self) -> list[str]:
        """Of all frames together; none if they are those of a scan, which is read later. Raises ConfigError."""
        if self.prompts is not None:
            return lines_of(self.prompts)
        return [normalise_prompt(self.prompt, example=EXAMPLE_ROOM)] if self.prompt or self.scannet is None else []

    def check(self) -> None:
        if self.mesh is None and self.scannet is None:
            raise ConfigError("there is none: give a scene, mesh=room.glb, or scannet=FOLDER", "mesh")
        if self.mesh is not None:
            check_mesh(user_path(self.mesh, "mesh"))
        if self.scannet is not None and not (user_path(self.scannet, "scannet") / "depth").is_dir():
            raise ConfigError(f"should be the folder of one scene, with depth/ in it (got {self.scannet!r})", "scannet")
        if self.path != AUTO:
            read_text(user_path(self.path, "path"), "path")
        self.texts()
        super().check()


def check_mesh(path: Path) -> None:
    """Raises ConfigError for what cannot be the file of a mesh."""
    if path.suffix.lower() not in MESHES:
        raise ConfigError(f"should be a file of one of the kinds {', '.join(MESHES)} (got {str(path)!r})", "mesh")
    if not path.is_file():
        raise ConfigError(f"there is no file {str(path)!r}", "mesh")


def power_of_two(texture: int) -> None:
    """Raises ValueError for texels along an edge that are not."""
    if texture & (texture - 1):
        raise ValueError(f"texture {texture} should be a power of two; try {1 << texture.bit_length() - 1}")


def lines_of(name: str) -> list[str]:
    """The prompts of a file, one a line; empty lines at its end do not count. Raises ConfigError."""
    lines = read_text(user_path(name, "prompts"), "prompts").rstrip().splitlines()
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise ConfigError(f"line {number} of {name!r} is empty; there is one for each camera", "prompts")
    if not lines:
        raise ConfigError(f"{name!r} is empty; it has a line for each camera", "prompts")
    return [normalise_prompt(line, "prompts") for line in lines]
