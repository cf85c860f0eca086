"""MVDream as a diffusers pipeline.

pipe = MVDreamPipeline.from_pretrained("folder or hub id", dtype=torch.float16).to("cuda")
pipe = MVDreamPipeline.from_single_file("sd-v2.1-base-4view.pt")        # a checkpoint of the authors
images = pipe("an astronaut riding a horse, 3d asset", guidance_scale=10.0).images
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor
from transformers import CLIPTextModel, PreTrainedTokenizerBase

from threedgen.config import ConfigError
from threedgen.geometry.rigs import orbit
from threedgen.guidance.attention.joined import has_added_conditioning, make_multiview
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.sampling import Generators, before_steps
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import saving
from threedgen.run.dtypes import DTYPES

from .mvdream import MVDream


class MVDreamPipeline(DiffusionPipeline):
    """Diffusers pipeline that samples several views of one object from text by DDIM (MVDream, arXiv 2308.16512).

    It has the components of a Stable Diffusion pipeline and, optionally, `coarse`: a network that predicts latents from
    text and camera, which the UNet takes as further input. The scheduler only provides the noise schedule.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    scheduler: Any
    coarse: CoarsePredictor | None
    model_cpu_offload_seq: Any = "text_encoder->unet->vae"
    _optional_components = ["coarse"]
    _exclude_from_cpu_offload = ["coarse"]  # small, and object codes are sampled by a part of it, without its hook

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: Any,
        coarse: CoarsePredictor | None = None,
    ) -> None:
        """Build the pipeline from its components. Raises ConfigError for the UNet of SDXL."""
        super().__init__()
        if has_added_conditioning(unet):
            raise ConfigError("MVDreamPipeline does not sample SDXL; use the method `sample` of a prior", "weights")
        self.register_modules(
            unet=make_multiview(unet),
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            coarse=coarse,
        )
        self.precision: str | None = None
        """Precision in which a UNet with float32 weights computes, such as "bf16"; None: the dtype of the weights."""
        self.image_size: int | None = None
        """Pixels per side of the samples; None: the size that the UNet was trained on."""
        self.guide_views = False
        """Whether the unconditional branch denoises each view separately, without its camera (see `Prior`)."""

    @classmethod
    def from_prior(cls, prior: MVDream) -> "MVDreamPipeline":
        """Return a pipeline that shares the networks of `prior`.

        The CUDA graph of `prior` is removed, since it would use old memory after a move of the pipeline. After such a
        move, call `prior.to` with the new device before you use `prior`.
        """
        prior.graph = None
        scheduler = saving.scheduler(prior.schedule)
        found = cls(prior.unet, prior.vae, prior.text_encoder, prior.tokenizer, scheduler, prior.coarse)
        found.precision, found.image_size, found.guide_views = prior.precision, prior.image_size, prior.guide_views
        return found

    @classmethod
    def from_single_file(cls, weights: str, tokenizer: str | None = None) -> "MVDreamPipeline":
        """Return a pipeline with float32 networks, loaded from `weights`.

        `weights` is a checkpoint file, a diffusers folder, a hub id, or "toybox-prior" (comes with threedgen).
        `tokenizer` is a folder or hub id; None: the tokenizer of the weights, or CLIP's for a single file. Raises
        ConfigError if files are missing or damaged.
        """
        return cls.from_prior(MVDream.load(weights, dtype="fp32", tokenizer=tokenizer))

    @property
    def prior(self) -> MVDream:
        """A new `MVDream`, the diffusion model class of threedgen, that shares the networks of this pipeline."""
        names = {dtype: name for name, dtype in DTYPES.items()}
        prior = MVDream(
            self.unet,
            self.vae,
            self.text_encoder,
            self.tokenizer,
            Schedule.from_diffusers(self.scheduler.config),
            self.coarse,
            image_size=self.image_size,
            dtype=self.precision or names[self.unet.dtype],
            device=None,
        )
        prior.device = torch.device(self._execution_device)
        prior.guide_views = self.guide_views
        return prior

    def __call__(
        self,
        prompt: str | Sequence[str],
        negative_prompt: str = "",
        n_view: int = 4,
        elevation: float = 15.0,
        azimuth: float = 0.0,
        c2w: Tensor | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 10.0,
        eta: float = 0.0,
        generator: Generators = None,
        output_type: Literal["pil", "np", "pt"] = "pil",
        return_dict: bool = True,
    ) -> ImagePipelineOutput | tuple[object]:
        """Sample V views of each of P prompts from noise, n = P V images; the views of a prompt are consecutive.

        Args:
            prompt: one prompt, or a list of P prompts.
            negative_prompt: text of the unconditional branch, for all prompts.
            n_view: number of views per prompt, equally spaced around the object; 0: one image per prompt, for which the
                UNet gets no camera.
            elevation: elevation of all views in degrees, positive for views from above.
            azimuth: azimuth of the first view in degrees; 0 is the front. Azimuths grow counter-clockwise, seen from
                above.
            c2w: camera-to-world poses (V, 4, 4), OpenGL axes, z up, instead of n_view, elevation and azimuth. Their
                distances to the origin are ignored.
            num_inference_steps: number of DDIM steps.
            guidance_scale: s in eps_u + s (eps_c - eps_u), with (c) and without (u) the prompt.
            eta: amount of fresh noise in each step; 0: deterministic DDIM; 1: as in DDPM.
            generator: generator of all noise, or one per prompt; None: torch's global one. A CPU generator gives the
                same noise on all devices.
            output_type: "pil", "np" (n, H, W, 3) in [0, 1], or "pt" (n, 3, H, W) in [0, 1].
            return_dict: return an `ImagePipelineOutput`; False: a tuple (images,).
        """
        if c2w is None and n_view > 0:
            c2w = orbit(n_view, math.radians(elevation), 1.0, 1.0, 1, 1, azimuth=math.radians(azimuth)).c2w
        with self.progress_bar(total=num_inference_steps) as bar:
            found = self.prior.sample(
                prompt,
                c2w,
                steps=num_inference_steps,
                guidance_scale=guidance_scale,
                negative_prompt=negative_prompt,
                generator=generator,
                on_step=before_steps(bar.update),
                init_strength=1.0,
                eta=eta,
            )
        images: Any = VaeImageProcessor(do_normalize=False).postprocess(found.permute(0, 3, 1, 2), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
