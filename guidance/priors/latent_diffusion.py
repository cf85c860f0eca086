"""Latent diffusion (Rombach et al. 2022, arXiv 2112.10752): `LatentDiffusion`, base class of multi-view priors."""

import re
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from diffusers.models import AutoencoderKL, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPVisionModel, PreTrainedTokenizerBase

from threedgen.config import ConfigError
from threedgen.config.errors import one_line, printable, short
from threedgen.guidance.attention import joined
from threedgen.guidance.coarse import TEXT_GUIDANCE, CoarsePredictor
from threedgen.guidance.cuda_graph import GraphedCalls
from threedgen.guidance.object_code import SUBJECT_GUIDANCE, SUBJECT_STRENGTH
from threedgen.guidance.prior import Prior
from threedgen.guidance.sampling import Generators, check_half_size, fresh_noise
from threedgen.guidance.schedule import Prediction, Schedule
from threedgen.guidance.weights import components, ldm, saving, tokens
from threedgen.guidance.weights.components import SecondText
from threedgen.guidance.weights.loading import COARSE, IMAGE_ENCODER, PARTS, SECOND
from threedgen.run.dtypes import cast_weights, compute_dtype, no_autocast
from threedgen.run.memory import GPUS, to_device
from threedgen.run.prompts import remove_words

SAME_CAPTION = 0.1
"""Captions are the same if no number of their embeddings differs by more. Saved weights have half precision."""
CHECK_SIZE = 8
"""Side in latent pixels of the test image for new weights; the coarsest level of a UNet then has at least one pixel."""


class LatentDiffusion(Prior):
    """Latent diffusion model of single images without cameras.

    Weights are float32 unless `cast_networks` or `compact` casts them. UNet and VAE encoder compute in `dtype` under
    autocast, the VAE decoder in float32. `load` freezes the networks; a trainer may pass trainable networks to the
    constructor.
    """

    unet: UNet2DConditionModel
    embedded_words: tuple[str, ...] = ()
    """Words of textual inversions that were added to the tokenizer."""
    needs_camera = False
    """Whether this class uses the UNet's camera branch; weights without that branch are then an error."""
    parts: tuple[str, ...] = PARTS
    """Sub-folder names of the networks that the weights must have."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: PreTrainedTokenizerBase,
        schedule: Schedule | None = None,
        coarse: CoarsePredictor | None = None,
        second: SecondText | None = None,
        image_encoder: CLIPVisionModel | None = None,
        image_size: int | None = None,
        dtype: str = "auto",
        device: torch.device | str | None = "cpu",
    ) -> None:
        """Build the prior from loaded networks. The attention processors of `unet` are replaced, in place.

        The new ones can also attend across the views of an object, which only subclasses with cameras use.

        Args:
            schedule: noise schedule; None: Stable Diffusion's.
            coarse: network that predicts latents from text and camera in one pass, which the UNet takes as additional
                input channels; None: no such channels.
            second: second text encoder of SDXL; None for other models.
            image_encoder: CLIP's image encoder of ImageDream; None for other models.
            image_size: pixels per side; None: the size that the UNet was trained on.
            dtype: precision of the computation, "fp32", "bf16", "fp16" or "auto" (bf16 if the device supports it, else
                fp32).
            device: device to move the networks to; None: keep their device.

        Raises:
            ConfigError: the tokenizer has more tokens than the text encoder has embeddings, or `image_size` is no
                multiple of the VAE's downsampling factor.
        """
        self.schedule = schedule or Schedule.scaled_linear()
        components.check_vocabulary(text_encoder, tokenizer)
        self.unet, self.vae = joined.make_multiview(unet), vae
        self.text_encoder: Any = text_encoder
        self.tokenizer, self.coarse, self.second, self.image_encoder = tokenizer, coarse, second, image_encoder
        self.text_positions = int(text_encoder.config.max_position_embeddings)
        self.factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        side = unet.config["sample_size"] or ldm.LATENT_SIZE[True]
        self.image_size = image_size or (max(side) if isinstance(side, list | tuple) else side) * self.factor
        if self.image_size % self.factor:
            raise ConfigError(f"{self.image_size} is not a multiple of {self.factor}", "image_size")
        self.scaling_factor = float(vae.config["scaling_factor"])
        self.precision = dtype
        self.device = unet.device
        self.dtype = compute_dtype(dtype, self.device)
        if device is not None:
            self.to(device)

    @classmethod
    def load(
        cls,
        weights: str,
        device: torch.device | str = "cpu",
        dtype: str = "auto",
        tokenizer: str | None = None,
        image_size: int | None = None,
        prediction: Prediction | None = None,
        compact: bool = False,
    ) -> Self:
        """Load frozen networks without executing code from the files, run each network once, and return the prior.

        Raises ConfigError if files are missing or damaged, or the networks do not work together.

        Args:
            weights: name of a model that comes with threedgen ("toybox-prior" or "toybox-base"), diffusers folder,
                single-file checkpoint, or hub id "owner/name".
            dtype: precision of the computation, "fp32", "bf16", "fp16" or "auto" (bf16 if the device supports it, else
                fp32).
            tokenizer: folder or hub id; None: the tokenizer of the weights, or CLIP's for a single file.
            image_size: pixels per side; None: the size that the UNet was trained on.
            prediction: output of the UNet, "epsilon" or "v_prediction"; None: as the weights declare, else "epsilon".
            compact: whether to load the linear and convolution layers of the UNet in `dtype`, to save memory; no effect
                on devices other than CUDA.
        """
        target = torch.device(device)
        half = compute_dtype(dtype, target) if compact and target.type in GPUS else None
        found = components.load(weights, tokenizer, cls.needs_camera, prediction, cls.parts, half)
        try:
            prior = cls(*found, image_size=image_size, dtype=dtype, device=device)
            output = prior.check_networks()
        except (ConfigError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a config of another kind of model can cause any exception
            problem = f"{short(weights, 300)} cannot sample ({printable(one_line(error), 120)})"
            raise ConfigError(problem, "weights") from error
        if not output.isfinite().all():
            raise ConfigError(f"{short(weights, 300)} samples NaN: its weights or configs are damaged", "weights")
        return prior

    @torch.no_grad()
    def check_networks(self) -> Tensor:
        """Run every network once on a small image, since networks with correct names and shapes may not work together.

        Returns a tensor (1, C, h, w), computed from all outputs, that contains NaN if an output contains NaN.
        """
        camera = None if self.unet.class_embedding is None else self.camera(torch.eye(4, device=self.device)[None])
        z = torch.zeros(1, self.latent_shape[0], CHECK_SIZE, CHECK_SIZE, device=self.device)
        last = torch.tensor([self.schedule.T - 1], device=self.device)
        noise = self.denoise(z, last, self.encode_prompt(["an unheard-of thing"]), camera)
        image = self.decode_latents(noise)
        with self.encoding():
            return noise + self.vae.encode(2 * image.permute(0, 3, 1, 2) - 1).latent_dist.mean.float()

    def to(self, device: torch.device | str) -> Self:
        if self.graph is not None:
            self.graph.clear()
        self.device = torch.device(device)
        self.schedule = self.schedule.to(self.device)
        for network in self.networks.values():
            network.to(self.device)
        self.dtype = compute_dtype(self.precision, self.device)
        return self

    def compact(self) -> Self:
        """Cast linear and convolution layers of the UNet to `dtype` to save memory, and return self.

        The UNet can then not be trained or saved. On a GPU, with a 16-bit `dtype`, it runs as a CUDA graph, unless
        `cuda_graph` is False.
        """
        for name in {"unet", "multiview"} & self.networks.keys():
            cast_weights(self.networks[name], self.dtype)
        half = self.device.type in GPUS and self.dtype != torch.float32
        self.graph = GraphedCalls() if half and self.cuda_graph else None
        return self

    def cast_networks(self, lora: bool = False) -> None:
        if self.device.type not in GPUS or self.dtype == torch.float32:
            return
        if lora:
            self.compact().graph = None  # the weights of the LoRA change
            return
        encoder = (self.vae.encoder, self.vae.quant_conv) if self.half_vae else ()
        networks: tuple[torch.nn.Module | None, ...] = (self.unet, self.image_encoder, *encoder)
        for network in filter(None, networks):
            torch.nn.Module.to(network, self.dtype)  # diffusers' own method logs a needless warning
        self.half_weights = True
        self.graph = GraphedCalls() if self.cuda_graph else None

    def with_draft(self, draft: float | None) -> Self:
        """Turn coarse-to-fine sampling (first at half the size, then at full size) on or off, and return self.

        `draft` is the img2img strength in (0, 1] of the second pass, at full size; None: one pass, at full size. Raises
        ConfigError if the prior cannot sample at half the size, or has a coarse predictor (the attribute `coarse`).
        """
        if draft is not None and self.coarse is not None:
            raise ConfigError("these weights start from a coarse prediction, not from noise; remove it", "draft")
        check_half_size((self.image_size, self.image_size), draft, self.size_multiple)
        self.draft = draft
        return self

    @property
    def size_multiple(self) -> int:
        """Pixels per side of a cell of the UNet's smallest feature map; must divide the height and width of images."""
        return int(self.factor * 2 ** (len(self.unet.config["block_out_channels"]) - 1))

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        every: dict[str, torch.nn.Module | None] = {
            "unet": self.unet,
            "vae": self.vae,
            "text_encoder": self.text_encoder,
            COARSE: self.coarse,
            SECOND: None if self.second is None else self.second.network,
            IMAGE_ENCODER: self.image_encoder,
        }
        return {name: network for name, network in every.items() if network is not None}

    @cached_property
    def empty_text(self) -> Tensor:
        """Embedding (1, L, D) of the empty prompt. Priors with object codes keep it when the text encoder is freed."""
        return self.encode_prompt([""])

    def free_text_encoder(self) -> None:
        vae: Any = self.vae
        if self.has_code:
            _ = self.empty_text  # computed now, as long as there is a text encoder
        self.text_encoder = self.second = None
        vae.decoder = vae.post_quant_conv = None

    def save(self, folder: Path | str) -> None:
        """Write a diffusers folder with float16 tensors and SHA256SUMS.

        An earlier saved prior is replaced; other files in it, such as README.md, stay. Raises ConfigError if the folder
        has files, but no saved prior, a weight overflows in float16, or the prior is SDXL or ImageDream.
        """
        saving.save(self, Path(folder))

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.image_size // self.factor
        return self.unet.config["out_channels"], side, side

    @property
    def max_tokens(self) -> int:
        return min(self.tokenizer.model_max_length, self.text_positions)

    @property
    def text_shape(self) -> tuple[int, int]:
        more = joined.has_added_conditioning(self.unet) + self.has_code
        count = self.max_tokens * len(self.prompt_variants([""])) + more
        return count, self.unet.config["cross_attention_dim"]

    @property
    def predictor(self) -> CoarsePredictor | None:
        """Network that predicts latents from text and camera, from which samples may start. None: start from noise."""
        return self.coarse

    @property
    def has_code(self) -> bool:
        return self.predictor is not None

    def split_text(self, text: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Split the result (n, L, D) of `encode_prompt` into (UNet text, predictor text, object codes).

        The L rows of a prompt are, in this order:

        - K rows with the text for the UNet
        - K rows with the text for the coarse predictor, only if it takes another text than the UNet
          (`prompt_variants`); without these rows, both texts are equal
        - one row with the object code, a vector that chooses what the prompt leaves unspecified, only if the prior has
          object codes

        Returns:
            The two texts (n, K, D), and the codes (n, D). The codes are None if the prior has none.
        """
        words, code = (text[:, :-1], text[:, -1]) if self.has_code else (text, None)
        first, last = words.chunk(2, 1) if words.shape[1] == 2 * self.max_tokens else (words, words)
        return first, last, code

    @torch.no_grad()
    def sample_code(self, text: Tensor, generator: Generators = None, similar_to: Tensor | None = None) -> Tensor:
        if self.predictor is None:
            return text
        noise = fresh_noise(text[:, -1], generator)
        with self.autocast():
            unet_words, words, _ = self.split_text(text)
            empty = self.split_text(self.empty_text.to(self.device))[1]
            sample = partial(self.predictor.sampler.sample, words, empty, noise)
            start, subject = None if similar_to is None else similar_to[:, -1], self.predictor.subject
            code = sample(start)
            if subject is not None:
                named = (unet_words != words).flatten(1).any(1, keepdim=True)  # only the UNet reads the subject's word
                known = subject[-1].to(noise).expand_as(noise)
                resampled = sample(known if start is None else start, SUBJECT_STRENGTH, SUBJECT_GUIDANCE)
                same = (words - subject[:-1]).abs().amax((1, 2))[:, None] < SAME_CAPTION
                code = torch.where(named, torch.where(same, known, resampled), code)
        return torch.cat([text[:, :-1], code[:, None]], 1)

    @torch.no_grad()
    def encode_code(self, text: Tensor, latents: Tensor, c2w: Tensor, fit: bool = False) -> Tensor:
        if self.predictor is None:
            return text
        camera = joined.camera_vector(c2w.flatten(0, 1).to(self.device).float()).unflatten(0, c2w.shape[:2])
        side = self.predictor.config["size"]
        if latents.shape[-1] != side:  # images of another size than it was trained at
            latents = F.interpolate(latents.flatten(0, 1), (side, side), mode="area").unflatten(0, latents.shape[:2])
        with self.autocast():
            code = self.predictor.encode(latents, camera)
            if fit:
                code = self.predictor.fit_code(code, self.split_text(text)[1], latents, camera)
        return torch.cat([text[:, :-1], code[:, None]], 1)

    @torch.no_grad()
    def encode_prompt(self, prompts: list[str]) -> Tensor:
        """Encode n prompts as float32 text embeddings (n, L, D).

        The L rows of a prompt are, in this order:

        - One row per token: the text encoder's last hidden state after its layer norm. SDXL: the penultimate hidden
          states of both encoders, concatenated along the features.
        - SDXL: one row with the pooled text of the second encoder, padded with zeros.
        - If the coarse predictor takes another text than the UNet (see `prompt_variants`): one row per token of that
          other text.
        - If the prior has object codes (vectors that choose what a prompt leaves unspecified): a row of zeros, which
          means "no code".
        """
        prompts = [self.read_prompt(prompt).text for prompt in prompts]
        self.note_cuts(prompts)
        text = torch.cat([self._encode(variant) for variant in self.prompt_variants(prompts)], dim=1)
        return self.without_code(text)

    def without_code(self, text: Tensor) -> Tensor:
        """Append a row of zeros to text embeddings (n, L, D), which means "no object code"; return (n, L + 1, D).

        An object code is a vector of what a prompt leaves unspecified. A prior that takes no object codes returns
        `text` unchanged.
        """
        return F.pad(text, (0, 0, 0, 1)) if self.has_code else text

    def prompt_variants(self, prompts: list[str]) -> list[list[str]]:
        """Return the texts to encode for n prompts: one or two lists of n texts.

        The first list has the prompts. The second list is for the coarse predictor (a network that predicts latents in
        one pass, as input of the UNet): added words such as that of a DreamBooth subject are removed, because the
        predictor was not trained on these words. A prior without coarse predictor or without added words has the first
        list only.
        """
        added = tokens.added_words(self.tokenizer)
        usual = [[remove_words(prompt, added) for prompt in prompts]]
        return [prompts, *(usual if self.coarse is not None and added else [])]

    def _encode(self, prompts: list[str]) -> Tensor:
        ids = to_device(tokens.token_ids(self.tokenizer, prompts, self.max_tokens), self.device)
        if self.second is None:
            return self.text_encoder(ids).last_hidden_state.float()
        again = to_device(tokens.token_ids(self.second.tokenizer, prompts, self.max_tokens), self.device)
        first = self.text_encoder(ids, output_hidden_states=True)
        second = self.second.network(again, output_hidden_states=True)
        words = torch.cat([part.hidden_states[-2].float() for part in (first, second)], dim=-1)
        pooled = second.text_embeds.float()[:, None]
        return torch.cat([words, F.pad(pooled, (0, words.shape[-1] - pooled.shape[-1]))], dim=1)

    @property
    def identifiers(self) -> list[str]:
        others = [re.escape(word) for word in self.embedded_words]
        added = tokens.added_words(self.tokenizer)
        return [word for word in added if not re.fullmatch(rf"({'|'.join(others)})(_\d+)?", word)] if others else added

    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Encode images (B, H, W, 3) in [0, 1], resized to `image_size`, as latents (B, C, h, w).

        The latents are random samples of the VAE's posterior, multiplied with its scaling factor. They are sampled with
        `generator`; None: torch's global generator.
        """
        mean, std = self.posterior(rgb)
        return self.scaling_factor * (mean + std * fresh_noise(mean, generator))

    @torch.no_grad()
    def encode_views(self, views: Tensor) -> Tensor:
        """Encode F images (F, H, W, 3) in [0, 1] as scaled posterior means (F, C, H/factor, W/factor) of the VAE.

        `factor` is the number of image pixels per latent pixel along each axis. Unlike `encode_images`, this method
        neither resizes the images nor samples the latents.
        """
        images = (2 * views.permute(0, 3, 1, 2) - 1).to(self.device, self.vae.encoder.conv_in.weight.dtype)
        with self.encoding():
            means = [self.vae.encode(image).latent_dist.mean.float() for image in images.split(1)]
        return self.scaling_factor * torch.cat(means)

    def encoding(self) -> torch.autocast:
        return self.autocast() if self.half_vae else torch.autocast(self.device.type, enabled=False)

    @property
    def half_vae(self) -> bool:
        """Whether the VAE encoder computes in `dtype`: always, except in float16 for SDXL.

        SDXL's encoder overflows in float16, so it then computes in float32.
        """
        return self.dtype != torch.float16 or not joined.has_added_conditioning(self.unet)

    def posterior(self, rgb: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of the VAE's latents of images (B, H, W, 3) in [0, 1], each (B, C, h, w).

        The images are resized to `image_size`. The latents are not multiplied with the VAE's scaling factor.
        """
        with self.encoding():
            found = self.vae.encode(self.to_network_images(rgb).to(self.vae.encoder.conv_in.weight.dtype)).latent_dist
        return found.mean.float(), found.std.float()

    def decode_latents(self, z: Tensor) -> Tensor:
        z = z.to(self.device, self.vae.decoder.conv_in.weight.dtype) / self.scaling_factor
        with no_autocast(self.device):  # SDXL's decoder overflows in float16
            image = self.vae.decode(z).sample
        return (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        camera: Tensor | None = None,
        n_view: int = 1,
        coarse: Tensor | None = None,
    ) -> Tensor:
        """Return the output of the UNet (B, C, h, w), noise or v, in the precision of the autocast context.

        If the class attribute `needs_camera` is False (priors of single images), each image is denoised separately, and
        `camera` and `n_view` have no effect.

        Args:
            x, t: noisy latents (B, C, h, w) and timesteps, (B,) or ().
            text: embeddings (B, L, D).
            camera: camera vectors (B, 16), camera-to-world matrices with translations of length 1; None: no cameras.
            n_view: number of consecutive images that are views of one object.
            coarse: latents (B, C, h, w) of the coarse predictor, which are concatenated to `x` as channels; None: they
                are computed here. Not used without a coarse predictor.
        """
        if not self.needs_camera:
            camera, n_view = None, 1
        if self.coarse is not None:
            text, coarse_text, code = self.split_text(text)
            if coarse is None:
                coarse = self.fuse_views(self.coarse(coarse_text, camera, code, n_view), x, t, camera, n_view)
            if coarse.shape[-2:] != x.shape[-2:]:  # images of another size than it was trained at
                coarse = F.interpolate(coarse, x.shape[-2:], mode="bilinear", align_corners=False)
            x = torch.cat([x, coarse.to(x.dtype)], dim=1)
        text = text.to(x.dtype) if self.half_weights else text
        return joined.unet_output(self.unet, x, t, text, camera, n_view, factor=self.factor)

    def fuse_views(self, coarse: Tensor, x: Tensor, t: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
        """Correct coarse predictions `coarse` (B, C, s, s) with the noisy latents of all views; return the same shape.

        The coarse predictor has predicted the latents of each view from text and camera. `coarse` is returned unchanged
        if the predictor has no network for the correction (`ViewFusion`), if `camera` is None, or if `x` has another
        size than `coarse`.

        Args:
            x, t: noisy latents (B, C, h, w) and timesteps, (B,) or ().
            camera: camera vectors (B, 16): camera-to-world matrices with translations of length 1.
            n_view: number of consecutive images that are views of one object.
        """
        fusion = None if self.coarse is None else self.coarse.fusion
        if fusion is None or camera is None or x.shape[-2:] != coarse.shape[-2:]:
            return coarse
        level = self.schedule.noise_level(t.to(x.device)).expand(len(x))
        views = (part.unflatten(0, (-1, n_view)) for part in (x, level, camera, coarse))
        return fusion(*views).flatten(0, 1)

    @torch.no_grad()
    def predict_coarse(self, text: Tensor, c2w: Tensor, text_guidance: bool = True) -> Tensor | None:
        """Predict latents (B, C, h, w) in one pass with the coarse predictor; return None without a predictor.

        h and w are those of latents of images with `image_size` pixels per side. `text` are embeddings (B, L, D), `c2w`
        camera-to-world matrices (B, 4, 4), OpenGL axes, world z up. With `text_guidance`, predictions for texts with an
        object code get classifier-free guidance: they are moved away from the prediction for the empty prompt.
        """
        if self.predictor is None:
            return None
        counts = torch.unique_consecutive(text, dim=0, return_counts=True)[1]
        n_view = int(counts[0]) if (counts == counts[0]).all() else 1  # views of one object have equal texts
        with self.autocast():
            _, words, code = self.split_text(text)
            camera = joined.camera_vector(c2w.to(self.device).float())
            found = self.predictor(words, camera, code, n_view).float()
            if text_guidance and code is not None and code.any():
                empty = self.split_text(self.empty_text.to(self.device))[1].expand_as(words)
                change = found - self.predictor(empty, camera, code, n_view).float()
                found = found + TEXT_GUIDANCE * code.any(1)[:, None, None, None] * change
        return F.interpolate(found, self.latent_shape[1:], mode="bilinear", align_corners=False)

    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        x = x.to(self.dtype if self.half_weights else torch.float32)
        with self.autocast():
            return self.replayed(lambda *inputs: self.predict(*inputs).float(), x, t, text, camera, n_view)
