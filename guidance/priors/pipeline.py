"""MVDream as a diffusers pipeline.

pipe = MVDreamPipeline.from_pretrained("folder or hub id", dtype=torch.float16).to("cuda")
pipe = MVDreamPipeline.from_single_file("sd-v2.1-base-4view.pt")        # a checkpoint of the authors
images = pipe("an astronaut riding a horse, 3d asset", guidance_scale=10.0).images
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, Self

import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline, ImagePipelineOutput
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedTokenizerBase

from threedgen.geometry.rigs import orbit
from threedgen.guidance.attention.joined import camera_vector, make_multiview
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.cuda_graph import GraphedCalls
from threedgen.guidance.guidance import Condition, guided
from threedgen.guidance.sampling import before_steps, fresh_noise, sample_latents
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import saving
from threedgen.guidance.weights.components import SecondText
from threedgen.run.dtypes import DTYPES

from .latent_diffusion import LatentDiffusion
from .mvdream import MVDream


class MVDreamPipeline(DiffusionPipeline):
    """Diffusers pipeline that samples several views of one object from text by DDIM (MVDream, arXiv 2308.16512).

    It has the components of a Stable Diffusion pipeline and, optionally, `coarse`: a network that predicts latents from
    text and camera, which the UNet takes as further input. SDXL, for single images, also has `text_encoder_2` and
    `tokenizer_2`. The scheduler only provides the noise schedule.
    """

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: PreTrainedTokenizerBase
    scheduler: Any
    coarse: CoarsePredictor | None
    text_encoder_2: CLIPTextModelWithProjection | None
    tokenizer_2: Any
    model_cpu_offload_seq: Any = "text_encoder->text_encoder_2->unet->vae"
    _optional_components = ["coarse", "text_encoder_2", "tokenizer_2"]
    _exclude_from_cpu_offload = ["coarse"]  # small, and object codes are sampled by a part of it, without its hook

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        scheduler: Any,
        coarse: CoarsePredictor | None = None,
        text_encoder_2: CLIPTextModelWithProjection | None = None,
        tokenizer_2: PreTrainedTokenizerBase | None = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            unet=make_multiview(unet),
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            scheduler=scheduler,
            coarse=coarse,
            text_encoder_2=text_encoder_2,
            tokenizer_2=tokenizer_2,
        )
        self.precision: str | None = None
        """Precision in which a UNet with float32 weights computes, such as "bf16"; None: the dtype of the weights."""
        self.image_size: int | None = None
        """Pixels per side of the samples; None: the size that the UNet was trained on."""
        self.guide_views = False
        """Whether the unconditional branch denoises each view separately, without its camera (see `Prior`)."""
        self.graph: GraphedCalls | None = None
        """The UNet as a CUDA graph, for all calls without CPU offload; set it to None before you change the weights."""

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move or cast the networks, as in diffusers."""
        if self.graph is not None:
            self.graph.clear()
        return super().to(*args, **kwargs)

    @classmethod
    def from_prior(cls, prior: LatentDiffusion) -> "MVDreamPipeline":
        """Return a pipeline that shares the networks of `prior`, a loaded diffusion model such as `MVDream`."""
        scheduler = saving.scheduler(prior.schedule)
        parts = (prior.unet, prior.vae, prior.text_encoder, prior.tokenizer, scheduler, prior.coarse)
        found = cls(*parts, *(prior.second or ()))
        found.precision, found.image_size, found.graph = prior.precision, prior.image_size, prior.graph
        found.guide_views = prior.guide_views
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
        second = None if self.text_encoder_2 is None else SecondText(self.text_encoder_2, self.tokenizer_2)
        prior = MVDream(
            self.unet,
            self.vae,
            self.text_encoder,
            self.tokenizer,
            Schedule.from_diffusers(self.scheduler.config),
            self.coarse,
            second,
            image_size=self.image_size,
            dtype=self.precision or names[self.unet.dtype],
            device=None,
        )
        prior.device = torch.device(self._execution_device)
        if not hasattr(self.unet, "_hf_hook"):  # this hook of CPU offload moves the weights in each call
            prior.graph = self.graph
        prior.guide_views = self.guide_views
        return prior

    @torch.no_grad()
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
        generator: torch.Generator | None = None,
        latents: Tensor | None = None,
        output_type: Literal["pil", "np", "pt", "latent"] = "pil",
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
            generator: generator of all noise; None: torch's global one. A CPU generator gives the same noise on all
                devices.
            latents: initial noise (n, 4, h, w); None: it is sampled.
            output_type: "pil", "np" (n, H, W, 3) in [0, 1], "pt" (n, 3, H, W) in [0, 1], or "latent" (n, 4, h, w).
            return_dict: return an `ImagePipelineOutput`; False: a tuple (images,).
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt)
        prior = self.prior
        if c2w is None and n_view > 0:
            c2w = orbit(n_view, math.radians(elevation), 1.0, 1.0, 1, 1, azimuth=math.radians(azimuth)).c2w
        views = 1 if c2w is None else len(c2w)
        camera = None if c2w is None else camera_vector(c2w.to(prior.device).float()).repeat(len(prompts), 1)
        cond, uncond = prior.encode_prompt([*prompts, *[negative_prompt] * len(prompts)]).chunk(2)
        cond = prior.sample_code(cond, generator)
        shape = (len(prompts) * views, self.unet.config["out_channels"], *[prior.image_size // prior.factor] * 2)
        if latents is None:
            latents = fresh_noise(torch.empty(shape, device=prior.device), generator)
        separate = prior.guide_views and views > 1
        condition = Condition((cond, uncond), camera, views, single_view_uncond=separate)
        predict = guided(prior.denoise, condition, guidance_scale)
        noise = latents.to(prior.device, torch.float32)
        with self.progress_bar(total=num_inference_steps) as bar:
            more = before_steps(bar.update)
            x = sample_latents(predict, noise, prior.schedule, num_inference_steps, None, eta, generator, more)
        images: Any = x
        if output_type != "latent":
            decoded = prior.decode_latents(x).float().cpu().permute(0, 3, 1, 2)
            images = VaeImageProcessor(do_normalize=False).postprocess(decoded, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)
