"""Config models of the Janus meter and benchmark. This module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.errors import did_you_mean, nearest, short
from threedgen.config.registry import Component
from threedgen.config.sections import RunConfig
from threedgen.data.options import MESHES
from threedgen.evaluation.options import FRONT_THRESHOLD
from threedgen.run.folder import user_path
from threedgen.run.options import WorkersConfig, format_product

from .plan import Plan, front_objects, make_plan

METHODS = ("mvdream-toybox", "sds-toybox", "dreamfusion-toybox")
ViewClassifier = Annotated[Any, Component("view-classifier", default="probe")]
UNREADABLE = tuple(".3ds .abc .blend .dae .fbx .off .stl .usd .usda .usdc .usdz .wrl .x3d".split())
"""Suffixes of mesh formats that the meter cannot read."""
CLIP = "openai/clip-vit-large-patch14"
WITHOUT_CLIP = "meter.classifier.name=probe needs no CLIP, for assets that look like those of the toybox"


class CLIPSidesConfig(Config):
    """Zero-shot classification by CLIP, for objects beyond the toybox."""

    name: Literal["clip"] = Field("clip", description="zero-shot CLIP, for anything that photos show")
    weights: str = Field(CLIP, min_length=1, description="folder or hub id; not one that assets were optimised with")

    def check(self) -> None:
        from threedgen.guidance.weights.hub import cached, is_hub_id, reachable
        from threedgen.guidance.weights.loading import existing

        local = existing(self.weights) is not None or cached(self.weights, "config.json") is not None
        if not local and not (is_hub_id(self.weights) and reachable()):
            raise ConfigError(
                f"CLIP is neither a local folder nor in the hub's cache, and the hub is unreachable: {self.weights!r}. "
                f"Run `hf download {CLIP}` where there is a network; {WITHOUT_CLIP}.",
                "weights",
            )


class MeterConfig(Config):
    """Ring of cameras around an object and classifier of the single views."""

    classifier: ViewClassifier = Field({}, description="classifier of the side that a view shows")
    n_view: int = Field(8, ge=8, le=360, description="number of evenly spaced views")
    elevation: float = Field(15.0, ge=-90, le=90, description="elevation of the cameras, degrees")
    distance: float = Field(2.6, gt=1, description="distance of the cameras; objects lie in the unit sphere")
    fov: float = Field(40.0, gt=0, lt=180, description="vertical field of view, degrees")
    size: int = Field(128, ge=16, le=2048, description="side of a view, pixels")
    background: float = Field(0.5, ge=0, le=1, description="grey value of the background")
    threshold: float | None = Field(
        FRONT_THRESHOLD, gt=0, lt=1, description="minimum probability of a front; null: that of equal error rates"
    )


class TruthConfig(Config):
    """Objects with known fronts: each unchanged, and with its front half twice."""

    objects: int = Field(300, ge=0, le=100_000, description="objects that the meter's errors are measured on")
    calibration: int = Field(200, ge=1, le=100_000, description="further objects for meter.threshold=null")
    rough: float = Field(0.0, ge=0, le=10, description="strength of smooth noise on surfaces and colours; typical: 1")
    assets: str | None = Field(None, description="folder of meshes that face +z (y up); null: toybox objects")

    def check(self) -> None:
        if self.assets is not None:
            folder_of_assets(self.assets, "assets")
        super().check()


class MeteredConfig(RunConfig):
    """Meter and ground truth of all Janus evaluations."""

    meter: MeterConfig = MeterConfig()
    truth: TruthConfig = TruthConfig()

    @model_validator(mode="after")
    def _threshold(self) -> MeteredConfig:
        if self.meter.threshold is None and not self.truth.objects:
            raise ValueError("meter.threshold=null needs truth.objects to choose a threshold on")
        return self


class JanusMeterConfig(MeteredConfig):
    """Measure the errors of the Janus meter on objects with known fronts."""


class JanusScoreConfig(MeteredConfig):
    """Measure the Janus rate of existing meshes."""

    assets: str = Field("", description="folder of GLB, glTF, OBJ and PLY files; a folder in it is a method")
    up: Literal["y", "z"] = Field("y", description="up axis of the files; y-up files face +z, z-up files +x")
    orientation: Literal["free", "known"] = Field("free", description="free: files may face any way around")
    prompts: dict[str, str] = Field({}, description="prompt of a file by its stem; default: the stem itself")

    def check(self) -> None:
        if not self.assets.strip():
            raise ConfigError("is missing. Give a folder, such as assets=results.", "assets")
        names = {path.stem for path in asset_files(folder_of_assets(self.assets, "assets"))}
        for name in self.prompts:
            if name not in names:
                guess = did_you_mean(nearest(name, names))
                raise ConfigError(f"no file in {self.assets} is called {short(name)}{guess}", "prompts")
        super().check()


def folder_of_assets(text: str, key: str) -> Path:
    """Return the folder that ``text`` names. Raises ConfigError for ``key`` unless it contains a mesh file."""
    folder = user_path(text, key)
    if not folder.is_dir() or not asset_files(folder):
        raise ConfigError("should be a folder with GLB, glTF, OBJ or PLY files", key, text)
    return folder


def asset_files(folder: Path, suffixes: tuple[str, ...] = MESHES) -> list[Path]:
    """List the files at any depth that have one of the suffixes, sorted."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)


class JanusBenchmarkConfig(MeteredConfig, WorkersConfig):
    """Make objects of prompts x methods x seeds and measure the Janus rate of each method."""

    methods: tuple[str, ...] = Field(
        METHODS, min_length=1, description="configs that make an object of a prompt, each with optional overrides"
    )
    overrides: tuple[str, ...] = Field((), description="key=value overrides of all methods")
    prompts: tuple[str, ...] = Field((), description="objects with one clear front; default: held-out toybox prompts")
    toybox: int = Field(36, ge=1, le=1000, description="number of held-out toybox prompts if `prompts` is empty")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field(
        (0, 1, 2), min_length=1, description="seeds of each prompt and method"
    )
    mesh: str = Field("mesh.glb", min_length=1, description="file of a run to evaluate; checkpoints: its field")

    @field_validator("mesh")
    @classmethod
    def _inside_the_run(cls, value: str) -> str:
        if Path(value).is_absolute() or ".." in Path(value).parts:
            raise ValueError("should be a file in the folder of a run, such as mesh.glb")
        return value

    @model_validator(mode="after")
    def _unique(self) -> JanusBenchmarkConfig:
        for key in ("methods", "prompts", "seeds"):
            values = getattr(self, key)
            if repeated := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{key} should name each one once (got {repeated[0]!r} twice)")
        return self

    def plan(self) -> Plan:
        """Return the jobs of the benchmark. Raises ConfigError for invalid methods, overrides or prompts."""
        prompts = self.prompts or front_objects().prompts(self.toybox, self.seed)
        return make_plan(self.methods, self.overrides, prompts, self.seeds)

    def amount(self) -> str:
        plan = self.plan()
        methods = len(self.methods) - len(plan.refused)
        return format_product(prompt=len(plan.prompts), method=methods, seed=len(self.seeds))

    def notes(self) -> list[str]:
        return [*super().notes(), *self.plan().notes()]

    def check(self) -> None:
        super().check()
        self.plan()
