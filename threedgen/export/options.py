"""Config models of the export. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from threedgen.config import Config, Layer, load, plain, validate
from threedgen.config.command import command
from threedgen.config.errors import ConfigError, short
from threedgen.config.optional import require
from threedgen.config.sections import TaskConfig
from threedgen.run import folder as runs
from threedgen.train.status import finished

from .asset_folder import FOLDER, asset_name, check_overwrite

ENGINES = {"unreal": "UCX_{name}_{number:02d}", "godot": "{name}_{number:02d}-convcolonly"}
"""Engine -> pattern of node names. The engine's importer turns nodes with such a name into convex colliders."""


@dataclass(frozen=True)
class Preset:
    """Default sizes for a kind of asset.

    Attributes:
        budget: maximum number of triangles.
        texture: texture edge in texels.
        lods: number of triangles of each further level of detail, decreasing.
        resolution: grid points per edge of the cube in which the surface is extracted.
    """

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
        description="defaults of the options below; " + "; ".join(f"{name}: {size}" for name, size in PRESETS.items()),
    )
    budget: int | None = Field(None, ge=12, le=1_000_000, description="maximum triangles; null: from the preset")
    texture: int | None = Field(
        None, ge=64, le=8192, description="texture edge in texels, a power of two; null: from the preset"
    )
    lods: tuple[int, ...] | None = Field(
        None,
        examples=[[1000, 300]],
        description="triangles of each further level of detail, decreasing; null: from the preset, below the budget",
    )
    collision: Literal["hull", "parts", "none"] = Field(
        "hull", description="collider: one convex hull, up to eight convex parts (extra 'parts'), or none"
    )
    formats: tuple[Literal["glb", "obj", "usdz"], ...] = Field(
        ("glb",),
        examples=[["glb", "obj"]],
        description="file formats: glb, obj (zip with textures), usdz (extra 'usd')",
    )
    refine: int = Field(
        16, ge=0, le=256, description="number of field renders that the baked texture is fitted to; 0: none"
    )
    height: float | None = Field(
        None, gt=0, description="height in metres; null: usual height of the prompt's object, else 1 field unit = 1 m"
    )
    resolution: int | None = Field(
        None, ge=16, le=512, description="grid points per edge for surface extraction; null: from the preset"
    )
    name: str | None = Field(None, min_length=1, description="name of files and mesh; null: from the prompt")
    strict: bool = Field(False, description="fail and write nothing if the Khronos validator finds a problem")

    @field_validator("texture")
    @classmethod
    def _power_of_two(cls, value: int | None) -> int | None:
        if value is not None and value & (value - 1):
            raise ValueError(f"should be a power of two; try {1 << value.bit_length() - 1}")
        return value

    @model_validator(mode="after")
    def _check_lods(self) -> AssetConfig:
        counts = (self.triangles, *(self.lods or ()))
        for finer, coarser in zip(counts, counts[1:], strict=False):
            if not 12 <= coarser <= finer / 2:
                raise ValueError(
                    f"each of lods needs at least 12 triangles and at most half of the level before: {coarser} "
                    f"follows {finer}"
                )
        return self

    @property
    def triangles(self) -> int:
        """Return the maximum number of triangles: `budget`, or that of the preset if it is unset."""
        return self.budget or PRESETS[self.preset].budget

    @property
    def texels(self) -> int:
        return self.texture or PRESETS[self.preset].texture

    @property
    def levels(self) -> tuple[int, ...]:
        """Return the maximum number of triangles of each level of detail after the finest, decreasing."""
        if self.lods is not None:
            return self.lods
        return tuple(count for count in PRESETS[self.preset].lods if count <= self.triangles / 2)

    @property
    def grid(self) -> int:
        """Return the grid points per edge of the scene's cube: `resolution`, or that of the preset if it is unset."""
        return self.resolution or PRESETS[self.preset].resolution

    def titles(self, name: str) -> list[str]:
        """Return the names of all levels of detail of the asset `name`, finest first: NAME, NAME_LOD1, ..."""
        return [name, *(f"{name}_LOD{number}" for number, _ in enumerate(self.levels, 1))]

    def file_names(self, name: str) -> list[str]:
        """Return the names of the files that an export of the asset `name` writes, without asset.json."""
        by_format = {"glb": [f"{title}.glb" for title in self.titles(name)], "obj": [f"{name}_obj.zip"]}
        by_format["usdz"] = [f"{name}.usdz"]
        colliders = [] if self.collision == "none" else [f"{name}_collision_{engine}.glb" for engine in ENGINES]
        return [file for kind, files in by_format.items() if kind in self.formats for file in files] + colliders

    @field_validator("formats")
    @classmethod
    def _check_formats(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("should have at least one format; try [glb]")
        return value

    def check(self) -> None:
        if "usdz" in self.formats:
            require("pxr", "formats: usdz", "remove usdz")
        if self.collision == "parts":
            require("coacd", "collision: parts", "set collision=hull")
        super().check()


def resize_command(run: Path, preset: object) -> str:
    """Return a shell command that exports a run again with another height. An unknown `preset` is left out."""
    options = [f"preset={preset}"] if isinstance(preset, str) and preset in PRESETS else []
    return command("--config", "export", f"run={run}", *options, "height=METRES")


def no_checkpoint(folder: Path, max_steps: int | None) -> ConfigError:
    """Return the error for the run in `folder` without checkpoint. Its message contains a command that creates one.

    The command resumes the run, or repeats a run that is finished after `max_steps` steps (None: unknown).
    """
    if finished(folder, max_steps):
        repeat = command("--config", str(folder / runs.CONFIG), "out=NEW")
        return ConfigError(f"{folder} is finished, but its checkpoints are deleted; repeat it with {repeat}", "run")
    resume = command("--resume", str(folder))
    return ConfigError(f"{folder} has no checkpoint; make one with {resume}", "run")


class ExportSection(AssetConfig):
    """Export of an asset at the end of a run."""

    enabled: bool = Field(
        True, description=f"export an asset after the run; later: {command('--config', 'export', 'run=FOLDER')}"
    )

    def check(self) -> None:
        if self.enabled:
            super().check()


class ExportConfig(TaskConfig, AssetConfig):
    """Export a game-ready asset from a finished run. Unset options come from the run's `export` section."""

    run: str = Field("", description="folder of a finished run of the task generate")
    out: str | None = Field(None, description="output folder; null: asset in the run's folder")
    threads: int | None = Field(None, ge=1, le=1024, description="number of CPU threads; null: one per core")

    def destination(self) -> Path:
        """Return the output folder: `out`, or asset in the run's folder. Raises ConfigError for an invalid path."""
        folder = runs.run_folder(self.run, "run")
        return folder / FOLDER if self.out is None else runs.user_path(self.out, "out")

    def asset(self) -> AssetConfig:
        """Return the asset options. Options that are unset here come from the run's config. Raises ConfigError."""
        defaults = plain(load(runs.run_folder(self.run, "run") / runs.CONFIG).export)
        overrides = {key: value for key, value in plain(self).items() if key in self.model_fields_set}
        tree = {key: value for key, value in (defaults | overrides).items() if key in AssetConfig.model_fields}
        return validate(AssetConfig, [Layer("export", tree)])

    def check(self) -> None:
        if not self.run.strip():
            example = f"run={runs.ROOT}/mvdream-toybox/a-blue-dog-0123abcd"
            raise ConfigError(f"is missing; set it to a run folder, for example {example}", "run")
        folder = runs.run_folder(self.run, "run")
        stored = runs.flat(runs.stored_config(folder))
        task = stored.get("task", "generate")
        if task != "generate":
            raise ConfigError(f"should be a run of the task generate, but its task is {short(task)}", "run", self.run)
        if not any((folder / runs.CHECKPOINTS).glob("*.ckpt")):
            max_steps = stored.get(runs.MAX_STEPS_KEY)
            raise no_checkpoint(folder, max_steps if isinstance(max_steps, int) else None)
        out = self.destination()
        if out.exists() and not out.is_dir():
            raise ConfigError("should be a folder, but is a file", "out", str(out))
        asset = self.asset()
        check_overwrite(out, asset.file_names(asset_name(asset.name or str(stored.get("prompt", "")))))
        asset.check()
