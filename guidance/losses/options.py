"""Config models of distillation losses and of view-dependent prompts; imports no torch."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled

Angle = Annotated[float, Field(ge=0, le=180)]


class ViewPromptsConfig(Config):
    """Options of view-dependent prompts (words such as "front view", DreamFusion, section 3.2) and of Perp-Neg."""

    enabled: bool = Field(False, description="use view prompts; the prior must know the words")
    perp_neg: bool = Field(False, description="interpolate between sides by angle, with their neighbours as negatives")
    front_within: Angle = Field(45.0, description="front views: degrees to either side of azimuth 0")
    back_within: Angle = Field(45.0, description="back views: degrees to either side of azimuth 180")

    @model_validator(mode="after")
    def _check_enabled(self) -> "ViewPromptsConfig":
        if self.perp_neg and not self.enabled:
            raise ValueError("perp_neg needs view prompts: set enabled=true with it")
        return self


class DistillationConfig(Config):
    """Options that all distillation losses have."""

    name: str = Field(description="name of the loss")
    guidance_scale: Scheduled = Field(
        50.0, ge=0, description="classifier-free guidance scale s of eps_u + s (eps_c - eps_u); 1: off"
    )
    min_step_percent: Scheduled = Field({"0%": 0.98, "80%": 0.02}, ge=0, le=1, description="lowest timestep, fraction")
    max_step_percent: Scheduled = Field({"0%": 0.98, "80%": 0.5}, ge=0, le=1, description="highest timestep, fraction")
    timestep_per: Literal["batch", "group"] = Field(
        "batch", description="one timestep for all images (MVDream), or one for each group of views"
    )


class VSDConfig(DistillationConfig):
    """Options of variational score distillation (ProlificDreamer, arXiv 2305.16213)."""

    name: Literal["vsd"] = Field("vsd", description="against a LoRA of the prior trained on the renders")
    guidance_scale: Scheduled = Field(
        7.5, ge=0, description="classifier-free guidance scale s of eps_u + s (eps_c - eps_u); 1: off"
    )
    min_step_percent: Scheduled = Field(0.02, ge=0, le=1, description="lowest timestep, fraction")
    max_step_percent: Scheduled = Field(
        {"0%": 0.98, "20%": 0.98, "20.01%": 0.5}, ge=0, le=1, description="highest timestep, fraction"
    )
    rank: int = Field(4, ge=1, le=256, description="rank of the LoRA")


class SDSConfig(DistillationConfig):
    """Options of score distillation sampling (DreamFusion, arXiv 2209.14988)."""

    name: Literal["sds"] = Field("sds", description="score distillation, d loss / d z = w(t) (eps - noise)")
    weighting: Literal["one_minus_alpha_bar", "uniform"] = Field(
        "one_minus_alpha_bar", description="w(t): 1 - alpha_bar_t, or 1"
    )


class ReconstructionConfig(DistillationConfig):
    """Options of score distillation as reconstruction of the predicted image (MVDream, arXiv 2308.16512)."""

    name: Literal["reconstruction"] = Field("reconstruction", description="distance to the predicted image")
    recon_std_rescale: Scheduled = Field(
        0.5, ge=0, le=1, description="CFG rescale towards the contrast without guidance; 0: off"
    )
