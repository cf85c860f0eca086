"""Config model of the evaluation of a prior on users' own assets (no torch here)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from threedgen.config.registry import Component
from threedgen.data.assets.options import AssetsConfig


class EvaluateOwnPriorConfig(AssetsConfig):
    """Draw assets by their captions, and compare with their renders from the same cameras."""

    prior: Annotated[Any, Component("prior", default="mvdream", only=("mvdream",))] = Field({}, description="who draws")
    count: int = Field(200, ge=2, le=100_000, description="assets at most, the first ones")
    n_view: int = Field(4, ge=2, le=16, description="views of each, drawn together")
    steps: int = Field(30, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float = Field(4.0, ge=0)
    negative_prompt: str = ""
    batch: int = Field(8, ge=1, le=1024, description="assets denoised together; one file for each batch")
    features: Annotated[Any, Component("features", default="probe")] = Field({}, description="what compares pictures")
    drawn: int = Field(24, ge=0, le=1000, description="assets on the sheet of truth and drawings")
