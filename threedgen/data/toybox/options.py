"""Config models of the tasks that show the toybox (no torch here)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from threedgen.config.sections import RunConfig


class ToyboxSheetConfig(RunConfig):
    """Contact sheets of the toybox world."""

    size: int = Field(128, ge=16, le=512, description="pixels of a picture")
    columns: int = Field(8, ge=1, le=24, description="samples of each noun, each from another side")
    nouns: tuple[str, ...] = Field((), description="which nouns; none given: all")
    split: Literal["train", "held-out"] = Field("train", description="which combinations may appear")


class ToyboxSubjectsConfig(RunConfig):
    """Photos of toybox things that look like no other, to try personalisation on."""

    subjects: int = Field(10, ge=1, le=1000, description="how many, of different kinds as far as there are")
    first: int = Field(0, ge=0, description="number of the first one")
    photos: int = Field(5, ge=2, le=100, description="pictures of each, from all around")
    size: int = Field(256, ge=16, le=2048, description="pixels of a picture")
