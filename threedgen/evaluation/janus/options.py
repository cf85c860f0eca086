"""Config models of the Janus meter and of the benchmark (no torch here)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.errors import did_you_mean, nearest, short
from threedgen.config.registry import Component
from threedgen.config.sections import RunConfig
from threedgen.data.options import MESHES
from threedgen.evaluation.toybox.options import FRONT_THRESHOLD, ProbeConfig
from threedgen.run.folder import user_path
from threedgen.run.options import WorkersConfig, format_product

UNREAD = (".3ds", ".abc", ".blend", ".dae", ".fbx", ".off", ".stl", ".usd", ".usda", ".usdc", ".usdz", ".wrl", ".x3d")
"""Endings of meshes that the meter cannot read."""


class ProbeSidesConfig(ProbeConfig):
    """The toybox probe: for objects of the toybox."""

    embedded: ClassVar[str] = "toybox-sides"
    """Trained on with rough and with two-faced objects (``toybox/corruption.py``)."""

    name: Literal["probe"] = Field("probe", description="for objects of the toybox")


CLIP = "openai/clip-vit-large-patch14"
WITHOUT_CLIP = "meter.classifier.name=probe needs no CLIP, for assets that look like those of the toybox"


class CLIPSidesConfig(Config):
    """CLIP, asked which of four sentences a view fits: for everything else."""

    name: Literal["clip"] = Field("clip", description="CLIP zero-shot, for anything that photos show")
    weights: str = Field(CLIP, min_length=1, description="a folder or hub id; not one that assets learnt from")
    sentences: tuple[str, str, str, str] = Field(
        (
            "{prompt}, front view",
            "{prompt}, side view facing left",
            "{prompt}, back view",
            "{prompt}, side view facing right",
        ),
        description="for front, left, back and right, each with {prompt} in it",
    )
    batch: int = Field(16, ge=1, le=4096, description="pictures looked at together")

    @field_validator("sentences")
    @classmethod
    def _hold_the_prompt(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if without := [sentence for sentence in value if "{prompt}" not in sentence]:
            raise ValueError(f"each sentence should have {{prompt}} in it (got {without[0]!r})")
        return value

    def check(self) -> None:
        from threedgen.guidance.weights.loading import cached, existing, is_hub_id, reachable

        here = existing(self.weights) is not None or cached(self.weights, "config.json") is not None
        if not here and not (is_hub_id(self.weights) and reachable()):
            raise ConfigError(
                f"CLIP {self.weights!r} is neither a folder here nor in the hub's cache, and cannot be fetched; where "
                f"there is a network, `hf download {CLIP}` fetches one; {WITHOUT_CLIP}",
                "weights",
            )


class MeterConfig(Config):
    """How an object is looked at: from a ring of cameras, by a classifier of single views."""

    classifier: Annotated[Any, Component("view-classifier", default="probe")] = Field(
        {}, description="who says which side a view shows"
    )
    n_view: int = Field(8, ge=8, le=360, description="views, evenly around")
    elevation: float = Field(15.0, ge=-90, le=90, description="degrees above the horizon")
    distance: float = Field(2.6, gt=1, description="of the cameras to the centre; objects lie in the unit sphere")
    fov: float = Field(40.0, gt=0, lt=180, description="vertical field of view, degrees")
    size: int = Field(128, ge=16, le=2048, description="pixels of a view")
    background: float = Field(0.5, ge=0, le=1, description="grey behind the object")
    threshold: float | None = Field(
        FRONT_THRESHOLD,
        gt=0,
        lt=1,
        description="probability from which a view shows a front; null: chosen on objects whose "
        "truth is known (`calibration`), so that as many good ones are called Janus as two-faced ones are missed",
    )


class TruthConfig(Config):
    """The objects whose truth is known: each as it is, and with two front halves glued together."""

    objects: int = Field(300, ge=0, le=100_000, description="how many, on which the meter's errors are measured")
    calibration: int = Field(200, ge=1, le=100_000, description="others, on which meter.threshold=null is chosen")
    rough: float = Field(
        0.0,
        ge=0,
        le=10,
        description="strength of smooth noise on surfaces and colours; 1: more than methods mostly leave",
    )
    assets: str | None = Field(
        None, description="folder of GLB, OBJ and PLY files that face +z, y up, named by what they show; null: toybox"
    )

    def check(self) -> None:
        if self.assets is not None:
            folder_of_assets(self.assets, "assets")
        super().check()


class MeteredConfig(RunConfig):
    """What looks through the meter."""

    meter: MeterConfig = MeterConfig()
    truth: TruthConfig = TruthConfig()

    @model_validator(mode="after")
    def _threshold(self) -> MeteredConfig:
        if self.meter.threshold is None and not self.truth.objects:
            raise ValueError("meter.threshold should be a number when there are no truth.objects to choose it on")
        return self


class JanusMeterConfig(MeteredConfig):
    """Measure the errors of the Janus meter on objects whose truth is known."""

    sheet: int = Field(12, ge=0, le=1000, description="objects on the contact sheet, those it errs about first")


class JanusScoreConfig(MeteredConfig):
    """Look at GLB, OBJ and PLY files that somebody made."""

    assets: str = Field(
        "", description="folder with GLB, glTF, OBJ and PLY files, at any depth; a folder in it is a method"
    )
    up: Literal["y", "z"] = Field("y", description="axis that points up in the files; with y they face +z, with z +x")
    orientation: Literal["free", "known"] = Field(
        "free", description="free: the files may face any way, and directions are judged up to a turn"
    )
    prompts: dict[str, str] = Field({}, description="what a file shows, by its name without the end; else its name")

    def check(self) -> None:
        if not self.assets.strip():
            raise ConfigError("is missing; say which folder, such as assets=results", "assets")
        names = {path.stem for path in asset_files(folder_of_assets(self.assets, "assets"))}
        for name in self.prompts:
            if name not in names:
                guess = did_you_mean(nearest(name, names))
                raise ConfigError(f"no file in {self.assets} is called {short(name)}{guess}", "prompts")
        super().check()


def folder_of_assets(text: str, key: str) -> Path:
    """Finds a folder of meshes. Raises ConfigError if there is none, or no mesh in it."""
    folder = user_path(text, key)
    if not folder.is_dir():
        raise ConfigError("should be a folder with GLB, glTF, OBJ or PLY files", key, text)
    if not asset_files(folder):
        raise ConfigError("there is no GLB, glTF, OBJ or PLY file in this folder", key, text)
    return folder


def asset_files(folder: Path, endings: tuple[str, ...] = MESHES) -> list[Path]:
    """Lists GLB, glTF, OBJ and PLY files at any depth, in order; or those of other ``endings``."""
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)


class JanusBenchmarkConfig(MeteredConfig, WorkersConfig):
    """Prompts x methods x seeds become objects, and the meter counts those with two fronts."""

    methods: tuple[str, ...] = Field(
        ("mvdream-toybox", "sds-toybox", "dreamfusion-toybox"),
        min_length=1,
        description="configs that make an object of a prompt, each with key=value changes of its own behind it if "
        "wished",
    )
    overrides: tuple[str, ...] = Field((), description="key=value changes of all of them")
    prompts: tuple[str, ...] = Field((), description="things with one clear front; none given: held-out toybox ones")
    toybox: int = Field(36, ge=1, le=1000, description="how many held-out toybox prompts, where none are given")
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**63)], ...] = Field((0, 1, 2), min_length=1)
    mesh: str = Field("mesh.glb", min_length=1, description="file of a run to look at; checkpoints: the field in them")

    @field_validator("mesh")
    @classmethod
    def _inside(cls, value: str) -> str:
        if Path(value).is_absolute() or ".." in Path(value).parts:
            raise ValueError("should be a file in the folder of a run, such as mesh.glb")
        return value

    @model_validator(mode="after")
    def _fit(self) -> JanusBenchmarkConfig:
        for key in ("methods", "prompts", "seeds"):
            values = getattr(self, key)
            if len(set(values)) < len(values):
                twice = next(value for value in values if values.count(value) > 1)
                raise ValueError(f"{key} should name each one once (got {twice!r} twice)")
        return self

    def amount(self) -> str:
        from .jobs import make_plan

        plan = make_plan(self)
        methods = len(self.methods) - len(plan.refused)
        return format_product(prompt=len(plan.prompts), method=methods, seed=len(self.seeds))

    def notes(self) -> list[str]:
        from .jobs import make_plan

        return [*super().notes(), *make_plan(self).notes()]

    def check(self) -> None:
        from .jobs import make_plan

        super().check()
        make_plan(self)
