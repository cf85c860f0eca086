"""Config models of the export (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from threedgen.config import Config, Layer, load, plain, validate
from threedgen.config.command import command
from threedgen.config.errors import ConfigError, short
from threedgen.config.optional import require
from threedgen.config.sections import TaskConfig
from threedgen.run import folder as runs
from threedgen.train.status import finished

from .asset_folder import FOLDER, asset_name, refuse_others

ENGINES = {"unreal": "UCX_{name}_{number:02d}", "godot": "{name}_{number:02d}-convcolonly"}
"""What the nodes of a convex collider of the mesh `name` are called, so that an engine knows them as such."""


@dataclass(frozen=True)
class Preset:
    """What an asset of a kind is made of, where the config does not say it: triangles, texels, grid points."""

    budget: int
    texture: int
    lods: tuple[int, ...]
    resolution: int

    def __str__(self) -> str:
        return f"{self.budget} triangles (levels of detail {', '.join(map(str, self.lods))}), {self.texture} texels"


PRESETS = {
    "mobile": Preset(3000, 512, (1000,), 128),
    "prop": Preset(15_000, 1024, (5000, 1500), 192),
    "character": Preset(30_000, 2048, (10_000, 3000), 256),
    "hero": Preset(50_000, 4096, (16_000, 5000, 1500), 320),
}


class AssetConfig(Config):
    """A game-ready asset: a triangle budget, textures, levels of detail, a collider."""

    preset: Literal["mobile", "prop", "character", "hero"] = Field(
        "prop",
        description="decides what is null below; " + "; ".join(f"{name}: {made}" for name, made in PRESETS.items()),
    )
    budget: int | None = Field(None, ge=12, le=1_000_000, description="triangles at most; null: those of the preset")
    texture: int | None = Field(
        None, ge=64, le=8192, description="texels along an edge of the maps, a power of two; null: as the preset"
    )
    lods: tuple[int, ...] | None = Field(
        None,
        examples=[[1000, 300]],
        description="triangles of further levels of detail, falling; null: as the preset, cut to the budget",
    )
    collision: Literal["hull", "parts", "none"] = Field(
        "hull", description="collider: one convex hull, up to eight convex parts (extra 'parts'), or none"
    )
    formats: tuple[Literal["glb", "obj", "usdz"], ...] = Field(
        ("glb",),
        examples=[["glb", "obj"]],
        description="files to write: glb, obj (a zip with its textures), usdz (extra 'usd')",
    )
    refine: int = Field(
        16, ge=0, le=256, description="pictures of the field that the texture is fitted to after baking; 0: none"
    )
    height: float | None = Field(
        None,
        gt=0,
        description="metres from bottom to top; null: what the prompt names is as tall as it usually is, else a unit "
        "of the field is a metre",
    )
    resolution: int | None = Field(None, ge=16, le=512, description="grid points along an edge; null: as the preset")
    name: str | None = Field(None, min_length=1, description="of the files and the mesh; null: the prompt's words")
    strict: bool = Field(False, description="fail, and write nothing, if the checker or Khronos' finds anything")

    @field_validator("texture")
    @classmethod
    def _power_of_two(cls, value: int | None) -> int | None:
        if value is not None and value & (value - 1):
            raise ValueError(f"should be a power of two; try {1 << value.bit_length() - 1}")
        return value

    @model_validator(mode="after")
    def _falling(self) -> AssetConfig:
        steps = (self.triangles, *(self.lods or ()))
        for before, after in zip(steps, steps[1:], strict=False):
            if not 12 <= after <= before / 2:
                raise ValueError(
                    f"lods should each have 12 triangles or more and at most half of the level before: {after} "
                    f"follows {before}"
                )
        return self

    @property
    def triangles(self) -> int:
        """The budget, that of the preset included."""
        return self.budget or PRESETS[self.preset].budget

    @property
    def texels(self) -> int:
        return self.texture or PRESETS[self.preset].texture

    @property
    def levels(self) -> tuple[int, ...]:
        """Triangles of the levels after the first one."""
        if self.lods is not None:
            return self.lods
        return tuple(count for count in PRESETS[self.preset].lods if count <= self.triangles / 2)

    @property
    def grid(self) -> int:
        """Grid points along an edge of the field's cube."""
        return self.resolution or PRESETS[self.preset].resolution

    def titles(self, name: str) -> list[str]:
        """What the levels of the asset `name` are called, the finest first."""
        return [name, *(f"{name}_LOD{number}" for number, _ in enumerate(self.levels, 1))]

    def file_names(self, name: str) -> list[str]:
        """What the files of the asset `name` will be called."""
        named = {"glb": [f"{title}.glb" for title in self.titles(name)], "obj": [f"{name}_obj.zip"]}
        named["usdz"] = [f"{name}.usdz"]
        colliders = [] if self.collision == "none" else [f"{name}_collision_{engine}.glb" for engine in ENGINES]
        return [file for kind, files in named.items() if kind in self.formats for file in files] + colliders

    @field_validator("formats")
    @classmethod
    def _some(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("should name one format at least; try [glb]")
        return value

    def check(self) -> None:
        if "usdz" in self.formats:
            require("pxr", "formats: usdz", "leave usdz out")
        if self.collision == "parts":
            require("coacd", "collision: parts", "take collision=hull")
        super().check()


def resize(run: Path, preset: Any) -> str:
    """The command that makes the asset of a run, which was made with this preset, as tall as one wants it."""
    kind = [f"preset={preset}"] if isinstance(preset, str) and preset in PRESETS else []
    return command("--config", "export", f"run={run}", *kind, "height=METRES")


def no_checkpoint(folder: Path, max_steps: int | None) -> ConfigError:
    """That the run in `folder` has none, and which command makes one: a finished run does not go on."""
    if finished(folder, max_steps):
        again = command("--config", str(folder / runs.CONFIG), "out=NEW")
        return ConfigError(f"{folder} is finished, and its checkpoints are gone; {again} does the run again", "run")
    again = command("--resume", str(folder))
    return ConfigError(f"{folder} has no checkpoint, which holds the field; {again} makes one", "run")


class ExportSection(AssetConfig):
    """The asset at the end of a run."""

    enabled: bool = Field(True, description=f"make it; later: {command('--config', 'export', 'run=FOLDER')}")

    def check(self) -> None:
        if self.enabled:
            super().check()


class ExportConfig(TaskConfig, AssetConfig):
    """Make a game-ready asset of a finished run. What is not given is as in the section ``export`` of that."""

    run: str = Field("", description="folder of a run of the task generate")
    out: str | None = Field(None, description="folder of the files; null: asset, in the run's folder")
    threads: int | None = Field(None, ge=1, le=1024, description="CPU threads; null: as many as cores")

    def destination(self) -> Path:
        """The folder of the files. Raises ConfigError."""
        folder = runs.run_folder(self.run, "run")
        return folder / FOLDER if self.out is None else runs.user_path(self.out, "out")

    def asset(self) -> AssetConfig:
        """What is asked for here, and for the rest what the run asks for. Raises ConfigError."""
        own = plain(load(runs.run_folder(self.run, "run") / runs.CONFIG).export)
        given = {key: value for key, value in plain(self).items() if key in self.model_fields_set}
        tree = {key: value for key, value in (own | given).items() if key in AssetConfig.model_fields}
        return validate(AssetConfig, [Layer("export", tree)])

    def check(self) -> None:
        if not self.run.strip():
            example = f"run={runs.ROOT}/mvdream-toybox/a-blue-dog-0123abcd"
            raise ConfigError(f"is missing; say which, such as {example}", "run")
        folder = runs.run_folder(self.run, "run")
        stored = runs.flat(runs.stored_config(folder))
        task = stored.get("task", "generate")
        if task != "generate":
            raise ConfigError(f"should be a run of the task generate, not of {short(task)}", "run", self.run)
        if not any((folder / runs.CHECKPOINTS).glob("*.ckpt")):
            length = stored.get(runs.LENGTH)
            raise no_checkpoint(folder, length if isinstance(length, int) else None)
        place = self.destination()
        if place.exists() and not place.is_dir():
            raise ConfigError("should be a folder, but a file has this name", "out", str(place))
        asset = self.asset()
        refuse_others(place, asset.file_names(asset_name(asset.name or str(stored.get("prompt", "")))))
        asset.check()
