"""A small task with a section of every sort, for the tests of configs, command line and run folders."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled, registry
from threedgen.config.sections import CheckpointConfig, RunConfig, TrainerConfig
from threedgen.run.text import say

YAML = "task: toy\nprompt: a cat\nprior:\n  name: big\n  weights: here\n"


class BigPrior(Config):
    name: Literal["big"] = "big"
    weights: str = Field("embedded", description="folder or hub id")
    guidance_scale: Scheduled = Field(7.5, ge=0, le=100, description="classifier-free guidance")


class SmallPrior(Config):
    """A prior without."""

    name: Literal["small"] = "small"
    width: int = Field(8, ge=1)


class RoundShape(Config):
    name: Literal["round"] = "round"
    radius: float = Field(1.0, gt=0)


class SquareShape(Config):
    name: Literal["square"] = "square"
    side: float = Field(1.0, gt=0)


class ToyConfig(RunConfig):
    prompt: str = Field(description="what to draw")
    prior: Annotated[Any, registry.Component("toy-prior", default="big")] = Field({}, description="the prior")
    shape: Annotated[RoundShape | SquareShape, Field(discriminator="name")] = RoundShape()
    trainer: TrainerConfig = Field(TrainerConfig(log_every_n_steps=7), description="Lightning's Trainer")
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)
    elevation: tuple[float, float] = Field((0.0, 30.0), description="range in degrees")
    mode: Literal["fast", "exact"] = "fast"
    note: str | None = None
    kinds: tuple[Literal["round", "flat"], ...] | None = Field(None, min_length=1, examples=[["round", "flat"]])
    pairs: tuple[tuple[int, int], ...] = ()
    lambdas: dict[str, float] = Field({"a": 1.0}, min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> ToyConfig:
        if self.elevation[0] > self.elevation[1]:
            raise ValueError("elevation should rise")
        return self


def run(config: ToyConfig, resume: Path | None, quiet: bool) -> int | None:
    say(f"prompt={config.prompt!a} resume={resume is not None} torch={'torch' in sys.modules}")
    return None


def register() -> None:
    registry.register("task", "toy", "tests.support.toy_task:run", "tests.support.toy_task:ToyConfig")
    registry.register("toy-prior", "big", "tests.support.toy_task:BigPrior", "tests.support.toy_task:BigPrior")
    registry.register("toy-prior", "small", "tests.support.toy_task:SmallPrior", "tests.support.toy_task:SmallPrior")


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with a toy config; the working directory is its folder, and the registry is put back after."""
    monkeypatch.setattr(registry, "TABLE", {kind: dict(table) for kind, table in registry.TABLE.items()})
    register()
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "toy.yaml"
    path.write_text(YAML, encoding="utf-8")
    return path
