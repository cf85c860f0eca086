"""Config model of the task that samples views (no torch here)."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, model_validator

from threedgen.config.registry import Component
from threedgen.run.prompts import normalise_prompt
from threedgen.systems.prompted import PromptedConfig


class SampleConfig(PromptedConfig):
    """Sample views of one object from a prior, without any 3D work."""

    negative_prompt: str = ""
    suffix: str = Field("", description="added to a prompt that does not say 3d, such as ', 3d asset' for MVDream")
    prior: Annotated[Any, Component("prior", default="mvdream", only=("mvdream", "stable-diffusion"))] = Field(
        {}, description="who draws"
    )
    n_view: int = Field(4, ge=0, le=64, description="views around the object; 0: one picture of the 2D model")
    samples: int = Field(1, ge=1, le=64, description="how many different objects, a row each")
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    guidance_scale: float = Field(5.0, ge=0)
    elevation: float = Field(15.0, ge=-90, le=90, description="degrees")
    azimuth: float = Field(0.0, ge=-360, le=360, description="degrees, of the first view; 0 is the front")

    @model_validator(mode="after")
    def _able(self) -> SampleConfig:
        if self.n_view and not self.prior.multiview:
            raise ValueError(
                f"n_view {self.n_view}: the prior {self.prior.name} knows no cameras, so it cannot draw several views "
                "of one object; try n_view=0 with samples=4"
            )
        return self

    def check(self) -> None:
        normalise_prompt(self.prompt)
        super().check()
        self.check_prompt()
