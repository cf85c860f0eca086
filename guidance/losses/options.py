"""Config models of distillation losses and of view-dependent prompts; imports no torch."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from threedgen.config import Config, Scheduled

GUIDANCE = "classifier-free guidance scale s of eps_u + s (eps_c - eps_u); 1: off"
Angle = Annotated[float, Field(ge=0, le=180)]


class ViewPromptsConfig(Config):
    """Options of view-dependent prompts ("a dog, front view"; DreamFusion, section 3.2) and of Perp-Neg.

    Both make objects with several fronts rarer. View-dependent prompts (`enabled`) give a view the prompt of its side:
    front, side, back, or overhead for an elevation over 60 degrees. Perp-Neg (`perp_neg`; Armandpour et al. 2023)
    changes this for all views but the overhead ones:

    - The text embedding of a view is interpolated by azimuth: between the front and the side prompt for views nearer to
      the front than to the back, else between the side and the back prompt.
    - The front and the side prompt are also negative prompts of every view. The weight of each is 0 for a camera that
      looks straight at that side, and grows with the angle from there. Guidance subtracts only the component of a
      negative prompt's noise that is perpendicular to that of the view's own embedding. So it cannot cancel the
      embedding, which may contain the same prompt.
    """

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
    """Options that all distillation losses have: guidance scale and range of the sampled timesteps.

    Class attributes:
        needs_views: whether the loss needs several views of an object in each step, and a multi-view prior.
        empty_prompt: whether the loss needs the embedding of the empty prompt in addition to a negative prompt.
    """

    needs_views: ClassVar[bool] = False
    empty_prompt: ClassVar[bool] = False

    name: str = Field(description="name of the loss")
    guidance_scale: Scheduled = Field(50.0, ge=0, description=GUIDANCE)
    min_step_percent: Scheduled = Field({"0%": 0.98, "80%": 0.02}, ge=0, le=1, description="lowest timestep, fraction")
    max_step_percent: Scheduled = Field({"0%": 0.98, "80%": 0.5}, ge=0, le=1, description="highest timestep, fraction")
    timestep_per: Literal["batch", "group"] = Field(
        "batch", description="one timestep for all images (MVDream), or one for each group of views"
    )


class VSDConfig(DistillationConfig):
    """Options of the loss VSD (variational score distillation, ProlificDreamer, arXiv 2305.16213).

    They set guidance, timesteps and the rank of the LoRA that is trained on the renders.
    """

    name: Literal["vsd"] = Field("vsd", description="against a LoRA of the prior trained on the renders")
    guidance_scale: Scheduled = Field(7.5, ge=0, description=GUIDANCE)
    min_step_percent: Scheduled = Field(0.02, ge=0, le=1, description="lowest timestep, fraction")
    max_step_percent: Scheduled = Field(
        {"0%": 0.98, "20%": 0.98, "20.01%": 0.5}, ge=0, le=1, description="highest timestep, fraction"
    )
    rank: int = Field(4, ge=1, le=256, description="rank of the LoRA")


class WeightedConfig(DistillationConfig):
    """Options of losses whose factor w(t) of the gradient at timestep t can be chosen: 1 - alpha_bar_t, or 1."""

    weighting: Literal["one_minus_alpha_bar", "uniform"] = Field(
        "one_minus_alpha_bar", description="w(t): 1 - alpha_bar_t, or 1"
    )


class SDSConfig(WeightedConfig):
    """Options of the loss SDS (score distillation sampling, DreamFusion, arXiv 2209.14988), such as the weight w(t)."""

    name: Literal["sds"] = Field("sds", description="score distillation, d loss / d z = w(t) (eps - noise)")


class ReconstructionConfig(DistillationConfig):
    """Options of the loss that compares latents with their predicted clean version (MVDream, arXiv 2308.16512).

    In addition to guidance and timesteps, they set how far the contrast of the prediction is moved towards that of the
    prediction without guidance (`recon_std_rescale`).
    """

    name: Literal["reconstruction"] = Field("reconstruction", description="distance to the predicted image")
    recon_std_rescale: Scheduled = Field(
        0.5, ge=0, le=1, description="CFG rescale towards the contrast without guidance; 0: off"
    )


class ISMConfig(DistillationConfig):
    """Options of interval score matching (ISM, LucidDreamer, arXiv 2311.11284), a loss with steps of DDIM inversion."""

    name: Literal["ism"] = Field("ism", description="between two timesteps of a DDIM inversion")
    guidance_scale: Scheduled = Field(7.5, ge=0, description=GUIDANCE)
    min_step_percent: Scheduled = Field(0.02, ge=0, le=1, description="lowest timestep, fraction")
    max_step_percent: Scheduled = Field({"0%": 0.98, "30%": 0.5}, ge=0, le=1, description="highest timestep, fraction")
    interval: Scheduled = Field({"0%": 100, "30%": 80}, ge=1, description="timesteps between the two predictions")
    inversion_interval: int = Field(200, ge=1, description="timesteps of an inversion step before that interval")
    inversion_steps: int = Field(5, ge=0, description="largest number of these steps; they start from added noise")


class CSDConfig(WeightedConfig):
    """Options of the loss CSD (classifier score distillation, arXiv 2310.19415).

    They set guidance scale, timesteps and the factor w(t) of the gradient at timestep t. In addition, `negative_weight`
    is the share of a negative prompt in the noise predicted without the prompt; the rest is predicted with the empty
    prompt.
    """

    empty_prompt: ClassVar[bool] = True
    name: Literal["csd"] = Field("csd", description="guidance part of SDS alone, against a negative prompt")
    guidance_scale: Scheduled = Field(2.0, ge=1.01, description="scale s of the gradient (s - 1) (eps_c - eps_u)")
    min_step_percent: Scheduled = Field(0.02, ge=0, le=1, description="lowest timestep, fraction")
    max_step_percent: Scheduled = Field(
        {"0%": 0.98, "50%": 0.98, "50.01%": 0.5}, ge=0, le=1, description="highest timestep, fraction"
    )
    negative_weight: Scheduled = Field(
        {"0%": 0, "50%": 1}, ge=0, le=1, description="share of the negative prompt in eps_u; the rest: an empty prompt"
    )


class SDIConfig(DistillationConfig):
    """Options of the loss SDI (score distillation via inversion, arXiv 2405.15891), such as its inversion steps."""

    name: Literal["sdi"] = Field("sdi", description="distance to the predicted image, noise from DDIM inversion")
    guidance_scale: Scheduled = Field(8.5, ge=0, description=GUIDANCE)
    min_step_percent: Scheduled = Field({"0%": 0.98, "100%": 0.25}, ge=0, le=1, description="lowest timestep, fraction")
    max_step_percent: Scheduled = Field(
        {"0%": 0.98, "100%": 0.25}, ge=0, le=1, description="highest timestep, fraction"
    )
    inversion_steps: int = Field(10, ge=1, description="inversion steps for the whole range of timesteps")
    inversion_guidance_scale: float = Field(-6.5, description="guidance scale during inversion")
    inversion_eta: float = Field(0.3, ge=0, le=1, description="fresh noise in the inversion; 0: deterministic")


class JSDConfig(WeightedConfig):
    """Options of the loss JSD (joint score distillation, JointDreamer, arXiv 2407.12291).

    They set guidance scale, timesteps and the factor w(t) of the gradient at timestep t. The loss is SDS of single
    views, plus a term that moves them towards the clean latents which the prior predicts for all views together.
    `view_weight` is the weight of this term. `view_guidance_scale` is the guidance scale of the joint prediction.
    `recon_std_rescale` moves its contrast towards that of the prediction without guidance; 0: not at all, 1: fully.
    """

    needs_views: ClassVar[bool] = True
    name: Literal["jsd"] = Field("jsd", description="SDS of single views, coupled by the multi-view prediction")
    guidance_scale: Scheduled = Field(31.0, ge=0, description="guidance scale of the single-view prediction")
    min_step_percent: Scheduled = Field({"0%": 0.98, "60%": 0.02}, ge=0, le=1, description="lowest timestep, fraction")
    max_step_percent: Scheduled = Field({"0%": 0.98, "60%": 0.5}, ge=0, le=1, description="highest timestep, fraction")
    view_weight: Scheduled = Field(
        {"0%": 0, "12%": 0, "12.01%": 5}, ge=0, description="weight of the energy that couples the views"
    )
    view_guidance_scale: Scheduled = Field(50.0, ge=0, description="guidance scale of the multi-view prediction")
    recon_std_rescale: Scheduled = Field(
        0.5, ge=0, le=1, description="CFG rescale of the multi-view prediction; 0: off"
    )
