"""Config classes of the export of game assets. This module does not import torch."""

import re
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from threedgen.config import Config, Layer, load, plain, validate
from threedgen.config.command import command
from threedgen.config.errors import ConfigError, short
from threedgen.config.optional import require
from threedgen.config.sections import TaskConfig
from threedgen.run import folder as runs
from threedgen.run.disk import Tree
from threedgen.run.prompts import PREPOSITIONS

from .asset_folder import FOLDER, asset_name, check_overwrite, read_manifest
from .palette import Palette

ENGINES = {"unreal": "UCX_{name}_{number:02d}", "godot": "{name}_{number:02d}-convcolonly"}
"""Engine -> pattern of node names. The engine's importer turns nodes with such a name into convex colliders."""


class Preset(NamedTuple):
    """Default sizes for one kind of asset, such as "prop".

    The sizes are the triangle budget, the texture edge in texels, the triangles of each further level of detail, and
    the grid points per edge of the cube in which the surface is extracted.
    """

    budget: int  # maximum number of triangles
    texture: int  # texture edge in texels
    lods: tuple[int, ...]  # number of triangles of each further level of detail, decreasing
    resolution: int  # grid points per edge of the cube in which the surface is extracted


PRESETS = {
    "mobile": Preset(3000, 512, (1000,), 128),
    "prop": Preset(15_000, 1024, (5000, 1500), 192),
    "character": Preset(30_000, 2048, (10_000, 3000), 256),
    "hero": Preset(50_000, 4096, (16_000, 5000, 1500), 320),
}


class Material(NamedTuple):
    """Roughness and metallic value in [0, 1] of a whole surface, as glTF defines them."""

    roughness: float
    metallic: float


MATERIALS = {
    "matte": Material(0.6, 0),
    "shiny": Material(0.2, 0),
    "glass": Material(0.05, 0),
    "metal": Material(0.3, 1),
    "plastic": Material(0.4, 0),
    "wooden": Material(0.75, 0),
}
MATERIAL_WORDS = {name: name for name in MATERIALS} | {
    "glossy": "shiny", "polished": "shiny", "metallic": "metal", "steel": "metal", "iron": "metal", "brass": "metal",
    "copper": "metal", "bronze": "metal", "chrome": "metal", "wood": "wooden",
}  # fmt: skip


def material_word(prompt: str) -> str:
    """Return the first word of a prompt that names the material of the object, such as "steel"; "" if there is none.

    Words after "with", "wearing", "in", "and" or a preposition, such as "under", belong to a part or to another object
    and do not count, but those after "out of" and "from" and one directly after "and" do. Neither do words after a
    negation, such as "without", and "metal" in "metal-free".
    """
    others = "|".join(sorted(PREPOSITIONS - {"out", "from"}))
    adjective = rf"(?:{'|'.join(MATERIAL_WORDS)})\b"  # "a red and shiny car"
    words = rf"with|wearing|in|inside|and(?!\s+{adjective})|{others}|without|no|not|never|w/o"
    ends = rf"(?<![\w-])(?:{words})(?![\w-])|\b\w+n['’]t\b"
    head = re.split(ends, prompt.lower())[0]
    return next((word for word in re.findall(r"\w+(?!\w|-free)", head) if word in MATERIAL_WORDS), "")


def material_of(prompt: str) -> str:
    """Return the material of the object in a prompt, such as "metal"; "matte" if no word names a material."""
    return MATERIAL_WORDS.get(material_word(prompt), "matte")


Texels = Literal[64, 128, 256, 512, 1024, 2048, 4096, 8192]


class AssetConfig(Config):
    """Options of a game-ready asset: a triangle budget, textures, levels of detail, a collider.

    `defaults_of_run` is True in subclasses whose unset options come from a run, and not from the defaults here.
    """

    defaults_of_run: ClassVar[bool] = False

    preset: Literal["mobile", "prop", "character", "hero"] = Field(
        "prop",
        description="default sizes; "
        + "; ".join(f"{name}: {size.budget} triangles, {size.texture} texels" for name, size in PRESETS.items()),
    )
    budget: int | None = Field(None, ge=12, le=1_000_000, description="maximum triangles; null: from the preset")
    texture: Texels | None = Field(None, description="texture edge in texels; null: from the preset")
    lods: tuple[int, ...] | None = Field(
        None, examples=[[1000, 300]], description="triangles of each further level of detail; null: from the preset"
    )
    collision: Literal["hull", "parts", "none"] = Field(
        "hull", description="collider: one convex hull, up to eight convex parts (pip extra [parts]), or none"
    )
    formats: tuple[Literal["glb", "obj", "usdz"], ...] = Field(
        ("glb",), min_length=1, examples=[["glb", "obj"]], description="obj: zip with textures; usdz: pip extra [usd]"
    )
    refine: int = Field(16, ge=0, le=256, description="number of field renders that the texture is fitted to; 0: none")
    height: float | None = Field(
        None, gt=0, description="height in metres; null: usual height of the prompt's object, else 1 world unit = 1 m"
    )
    material: Literal["matte", "shiny", "glass", "metal", "plastic", "wooden"] | None = Field(
        None, description="roughness and metallic value of the surface; null: by the prompt's words, else matte"
    )
    palette: Palette = Field(
        None,
        examples=["#e8d5b0,brown,green"],
        description="colours that the base colour is shifted to: names or hex, or an image; null: as optimised",
    )
    resolution: int | None = Field(
        None, ge=16, le=512, description="grid points per edge for surface extraction; null: from the preset"
    )
    name: str | None = Field(None, min_length=1, description="name of files and mesh; null: from the prompt")

    @model_validator(mode="after")
    def _check_lods(self) -> Self:
        unknown = self.defaults_of_run and self.budget is None  # the budget of the run counts, or of its preset
        counts = [] if unknown else [self.sizes.budget]
        for finer, coarser in pairwise([*counts, *(self.lods or ())]):
            if not 12 <= coarser <= finer / 2:
                raise ValueError(f"lods: {coarser} after {finer} should be at least 12 and at most half of it")
        return self

    @property
    def sizes(self) -> Preset:
        """Sizes of the asset: the options `budget`, `texture`, `lods` and `resolution`, or the preset's value if unset.

        If `lods` is unset, the preset's levels of detail with more triangles than half the budget are left out.
        """
        preset = PRESETS[self.preset]
        budget, lods = self.budget or preset.budget, self.lods
        if lods is None:
            lods = tuple(count for count in preset.lods if count <= budget / 2)
        return Preset(budget, self.texture or preset.texture, lods, self.resolution or preset.resolution)

    def own_options(self) -> Tree:
        """Return the options that are set, by name. If `preset` is one of them, the unset sizes are added as None."""
        options = {key: value for key, value in plain(self).items() if key in self.model_fields_set}
        return (dict.fromkeys(Preset._fields) if "preset" in options else {}) | options

    def titles(self, name: str) -> list[str]:
        """Return the names of the asset's levels of detail, finest first. `name` is the name of the asset.

        For the name "cat" and two further levels in `sizes.lods`, the result is ["cat", "cat_LOD1", "cat_LOD2"].
        """
        return [name, *(f"{name}_LOD{number}" for number, _ in enumerate(self.sizes.lods, 1))]

    def file_names(self, name: str) -> list[str]:
        """Return the names of the files that an export of the asset `name` writes, except asset.json."""
        glbs = [f"{title}.glb" for title in self.titles(name)]
        files = {"glb": glbs, "obj": [f"{name}_obj.zip"], "usdz": [f"{name}.usdz"]}
        colliders = [] if self.collision == "none" else [f"{name}_collision_{engine}.glb" for engine in ENGINES]
        return [file for kind in files if kind in self.formats for file in files[kind]] + colliders

    def check(self) -> None:
        if "usdz" in self.formats:
            require("pxr", "formats: usdz", "remove usdz")
        if self.collision == "parts":
            require("coacd", "collision: parts", "set collision=hull")
        super().check()


def resize_command(run: Path, out: str | None = None) -> str:
    """Return the shell command that exports the run in the folder `run` again with another height.

    The command contains the word METRES, which the user replaces by the height in metres. `out` is the output folder of
    the export; None: the default.
    """
    options = [] if out is None else [f"out={out}"]
    return command("--config", "export", f"run={run}", *options, "height=METRES")


class ExportSection(AssetConfig):
    """Options of the export of an asset at the end of a run.

    This is the section `export` of the config of a run that makes a 3D object: whether to export a game asset
    (`enabled`), and the options of the asset.
    """

    enabled: bool = Field(
        True, description=f"export an asset after the run; later: {command('--config', 'export', 'run=FOLDER')}"
    )

    def check(self) -> None:
        if self.enabled:
            super().check()

    def used_word(self, prompt: str) -> str:
        """Return the word of a prompt that sets the asset's material, such as "steel".

        The result is "" if there is no such word, if the option `material` is set, or if no asset is exported.
        """
        return material_word(prompt) if self.enabled and self.material is None else ""


class ExportConfig(TaskConfig, AssetConfig):
    """Export of a game-ready asset from a finished run. Unset options stay as in the asset that the export replaces.

    At the first export to a folder, they come from the section `export` of the run. If `preset` is set, unset sizes
    come from the preset.

    Options of the task "export": those of a game asset (triangles, textures, formats, ...), run folder, output folder.
    """

    defaults_of_run: ClassVar[bool] = True

    run: str = Field("", description="folder of a finished run of the task generate")
    out: str | None = Field(None, description="output folder; null: asset in the run's folder")

    def destination(self) -> Path:
        folder = runs.run_folder(self.run, "run")
        return folder / FOLDER if self.out is None else runs.user_path(self.out, "out")

    def run_name(self) -> str | None:
        """Return the last two folder names of the run, such as "mvdream-toybox/a-red-penguin-22d56f64".

        asset.json in `out` has this name, so that no asset of another run is replaced there. None: `out` is unset.
        """
        return None if self.out is None else "/".join(runs.run_folder(self.run, "run").resolve().parts[-2:])

    def asset(self) -> AssetConfig:
        """Return the asset options. Options that are not set here come from the earlier export to the same folder.

        asset.json has these options. Without an earlier export of this run, they come from the section `export` of the
        run's config. If `preset` is set, it replaces the earlier sizes.

        Raises ConfigError if the option `run` is not the folder of a run, or if an option is invalid.
        """
        folder, manifest = runs.run_folder(self.run, "run"), read_manifest(self.destination())
        earlier = manifest.get("options") if manifest.get("run") == self.run_name() else None
        defaults = earlier or plain(load(folder / runs.CONFIG).export)
        tree = {key: value for key, value in (defaults | self.own_options()).items() if key in AssetConfig.model_fields}
        return validate(AssetConfig, [Layer("export", tree)])

    def check(self) -> None:
        folder = runs.run_folder(self.run, "run")
        stored = runs.stored_config(folder) or {}
        task = stored.get("task", "generate")
        if task != "generate":
            raise ConfigError(f"should be a run of the task generate, but its task is {short(task)}", "run", self.run)
        out = self.destination()
        if out.exists() and not out.is_dir():
            raise ConfigError("should be a folder, but is a file", "out", str(out))
        asset = self.asset()
        names = asset.file_names(asset_name(asset.name or str(stored.get("prompt", ""))))
        check_overwrite(out, names, self.run_name())
        asset.check()
