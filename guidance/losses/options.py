"""Config models of distillation losses and of view-dependent prompts; imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled, at

Words = Annotated[str, Field(max_length=200)]
Angle = Annotated[float, Field(ge=0, le=180)]


class ViewPromptsConfig(Config):
    """View-dependent words behind the prompt (DreamFusion, section 3.2), and Perp-Neg."""

    enabled: bool = Field(False, description="use view prompts; the prior must know the words")
    perp_neg: bool = Field(
        False, description="interpolate between the sides by angle, with the neighbouring sides as negatives"
    )
    side: Words = Field(", side view", description="words for side views")
    front: Words = Field(", front view", description="words for front views")
    back: Words = Field(", back view", description="words for back views")
    overhead: Words = Field(", overhead view", description="words for overhead views")
    front_within: Angle = Field(45.0, description="front views: degrees to either side of azimuth 0")
    back_within: Angle = Field(45.0, description="back views: degrees to either side of azimuth 180")
    overhead_above: float = Field(60.0, ge=-90, le=90, description="overhead views: degrees of elevation, at least")

    @model_validator(mode="after")
    def _check_enabled(self) -> ViewPromptsConfig:
        if self.perp_neg and not self.enabled:
            raise ValueError("perp_neg needs view prompts: set enabled=true with it")
        return self


class DistillationConfig(Config):
    """Options of every distillation loss."""

    name: str = Field(description="name of the loss")
    guidance_scale: Scheduled = Field(
        50.0, ge=0, description="classifier-free guidance scale s of eps_u + s (eps_c - eps_u); 1: off"
    )
    min_step_percent: Scheduled = Field(
        {"0%": 0.98, "80%": 0.02}, ge=0, le=1, description="lowest timestep, as a share of all"
    )
    max_step_percent: Scheduled = Field(
        {"0%": 0.98, "80%": 0.5}, ge=0, le=1, description="highest timestep, as a share of all"
    )
    timestep_per: Literal["batch", "group"] = Field(
        "batch", description="one timestep for all images (MVDream), or one for each group of views"
    )

    @model_validator(mode="after")
    def _check_order(self) -> DistillationConfig:
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


class VSDConfig(DistillationConfig):
    """Variational score distillation (ProlificDreamer, arXiv 2305.16213)."""

    name: Literal["vsd"] = Field("vsd", description="against a LoRA of the prior trained on the renders")
    guidance_scale: Scheduled = Field(
        7.5, ge=0, description="classifier-free guidance scale s of eps_u + s (eps_c - eps_u); 1: off"
    )
    min_step_percent: Scheduled = Field(0.02, ge=0, le=1, description="lowest timestep, as a share of all")
    max_step_percent: Scheduled = Field(
        {"0%": 0.98, "20%": 0.98, "20.01%": 0.5}, ge=0, le=1, description="highest timestep, as a share of all"
    )
    rank: int = Field(4, ge=1, le=256, description="rank of the LoRA")
    lora_guidance_scale: float = Field(1.0, ge=0, description="guidance scale of the LoRA towards the pose; 1: off")
    pose_dropout: float = Field(0.1, ge=0, le=1, description="probability of training the LoRA without the pose")


class SDSConfig(DistillationConfig):
    """Score distillation sampling (DreamFusion, arXiv 2209.14988)."""

    name: Literal["sds"] = Field("sds", description="score distillation, d loss / d z = w(t) (eps - noise)")
    weighting: Literal["one_minus_alpha_bar", "uniform"] = Field(
        "one_minus_alpha_bar", description="w(t): 1 - alpha_bar_t, or 1"
    )


class ReconstructionConfig(DistillationConfig):
    """Score distillation as reconstruction of the predicted image (MVDream, arXiv 2308.16512)."""

    name: Literal["reconstruction"] = Field("reconstruction", description="distance to the predicted image")
    recon_std_rescale: Scheduled = Field(
        0.5, ge=0, le=1, description="CFG rescale towards the contrast without guidance; 0: off"
    )
