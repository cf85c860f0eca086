"""Config models of priors and distillation losses; no torch here."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from threedgen.config import Config, Schedule, at
from threedgen.extras import require


class MVDreamConfig(Config):
    """A multi-view diffusion prior: which weights, and how they run."""

    name: Literal["mvdream"] = Field("mvdream", description="multi-view diffusion (arXiv 2308.16512)")
    weights: str = Field(
        "embedded",
        min_length=1,
        description="'embedded' (the toybox prior that comes with threedgen), a diffusers-format folder, an "
        "id on the Hugging Face hub, or an original checkpoint (sd-v2.1-base-4view.pt, sd-v1.5-4view.pt: a "
        "path, or only the name)",
    )
    tokenizer: str | None = Field(
        None,
        description="folder or hub id of the tokenizer, for checkpoints that hold none (the original .pt "
        "files); default: the one their text encoder was trained with, from the hub or its cache",
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto",
        description="precision of the UNet; auto: bf16 on GPUs and on CPUs with bf16 instructions, else fp32",
    )
    attention: Literal["sdpa", "xformers"] = Field(
        "sdpa", description="who computes the UNet's attention: torch itself, or xformers where it is installed"
    )
    image_size: int | None = Field(
        None,
        ge=8,
        le=2048,
        description="pixels per side that the prior sees; default: what it was trained at",
    )
    personalisation: str | None = Field(
        None,
        description="the file of an mvdreambooth run with these weights: its subject can then be asked for",
    )

    def check(self) -> None:
        from .loading import check, personalisation_card

        if self.attention == "xformers":
            require("xformers", "attention: xformers", "choose attention=sdpa")
        check(self.weights, self.tokenizer)
        if self.personalisation is not None:
            personalisation_card(self.personalisation)

    def describe(self, fetch: bool = True) -> str:
        """Which files these are: place, size and SHA-256; what is only on the hub is fetched. Raises ConfigError.

        fetch False: the released checkpoints are not, but named.
        """
        from .loading import describe

        return describe(self.weights, fetch)


class DistillationConfig(Config):
    """How a prior's opinion becomes a loss: what every distillation has."""

    name: str = Field(description="which loss")
    guidance_scale: Schedule = Field(
        50.0, ge=0, description="classifier-free guidance, eps_u + s (eps_c - eps_u); 1: none"
    )
    min_step_percent: Schedule = Field(
        {"0%": 0.98, "80%": 0.02}, ge=0, le=1, description="least noise, as a share of the timesteps"
    )
    max_step_percent: Schedule = Field(
        {"0%": 0.98, "80%": 0.5}, ge=0, le=1, description="most noise, as a share of the timesteps"
    )
    timestep_per: Literal["batch", "group"] = Field(
        "batch", description="one noise level for all images (MVDream), or one for each group of views"
    )

    @model_validator(mode="after")
    def _in_order(self) -> DistillationConfig:
        schedules = (self.min_step_percent, self.max_step_percent)
        keys = [key for schedule in schedules if isinstance(schedule, dict) for key in schedule] or [0]
        if len({isinstance(key, str) for key in keys}) > 1:
            return self  # steps against percents: only the length of the run could tell
        for key in keys:
            step = round(1000 * float(key[:-1])) if isinstance(key, str) else key
            low, high = (at(schedule, step, max_steps=100_000) for schedule in schedules)
            if low > high:
                where = f"{low:g} > {high:g} at {key}"
                raise ValueError(f"min_step_percent should not exceed max_step_percent ({where})")
        return self


class SDSConfig(DistillationConfig):
    """Score distillation in the noise (DreamFusion, arXiv 2209.14988)."""

    name: Literal["sds"] = Field("sds", description="score distillation, d loss / d z = w(t) (eps - noise)")
    weighting: Literal["one_minus_alpha_bar", "uniform"] = Field(
        "one_minus_alpha_bar", description="w(t): 1 - alpha_bar_t, or 1"
    )


class ReconstructionConfig(DistillationConfig):
    """Score distillation as reconstruction of the predicted image (MVDream, arXiv 2308.16512)."""

    name: Literal["reconstruction"] = Field("reconstruction", description="distance to the predicted image")
    recon_std_rescale: Schedule = Field(
        0.5, ge=0, le=1, description="how far contrast is brought back to the unguided one; 0: off"
    )
