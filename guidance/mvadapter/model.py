"""MV-Adapter (Huang et al. 2024, arXiv 2412.03632): views of an object by a frozen 2D model and a plug-in.

model = MVAdapter.load("stabilityai/stable-diffusion-2-1-base", camera=False).with_adapter("mvadapter.safetensors")
pictures = model.draw("a red car", model.camera(cameras.c2w))
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from threedgen.config import ConfigError
from threedgen.config.errors import called
from threedgen.geometry.foreground import read_cut_out
from threedgen.geometry.views import resize
from threedgen.guidance.coarse import CoarsePredictor
from threedgen.guidance.diffusion import Conditions, Features, Generators, Reference, guided
from threedgen.guidance.draft import ALONE, Begun, Size, Synchronised, before_each, ddim, in_both_sizes
from threedgen.guidance.inpainting import ddim_inpaint
from threedgen.guidance.options import MVAdapterConfig
from threedgen.guidance.prior import GUESS_NOISE
from threedgen.guidance.priors.mvdream import MVDream, load_as
from threedgen.guidance.priors.stable_diffusion import StableDiffusion
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.plugins import locate
from threedgen.run.arrays import Array

from .cameras import GEOMETRY_VIEWS, RAISED, RAY_VIEWS, ray_maps, towards_middle, untrained
from .form import Form
from .network import AdaptedUNet
from .pictures import framed
from .weights import load_adapter

logger = logging.getLogger(__name__)

NEGATIVE = "watermark, ugly, deformed, noisy, blurry, low contrast"
"""What pictures are usually not to be."""


def build(options: MVAdapterConfig, device: torch.device | str = "cpu") -> MVAdapter:
    """The prior that a config describes. Raises ConfigError."""
    o = options
    cut = None if o.image is None else read_cut_out(o.image)
    model: MVAdapter = load_as(MVAdapter, o, device, camera=False)
    model.guide_views = o.guide_views
    if o.guess is not None:
        model.with_guess(o.guess)
    if o.adapter is None:
        return model
    form = {name: getattr(o, name) for name in ("layout", "control", "shift", "shift_mode", "timestep")}
    model.with_adapter(o.adapter, o.mv_scale, o.ref_scale, **form)
    return model if cut is None else model.with_picture(cut, o.image_scale)


class MVAdapter(StableDiffusion):
    """A Stable Diffusion whose UNet has an adapter, ``adapted``; without one it is None, and each picture alone.

    As a prior it is told of cameras what its guider is shown, maps (B,6,1,1) or (B,6,H,W) in [0,1]. base_schedule: the
    noise that the 2D model was trained with; ``schedule`` is shifted from it, and its timesteps are
    ``known`` to the 2D model as these, if not as the same. One view without a camera is the 2D
    model's, but with that schedule. picture: a reference (h,w,3) in [0,1] for all that is asked of it as a prior.
    expects: says of words and cameras what samples begin with.
    """

    adapted: AdaptedUNet | None = None
    base_schedule: Schedule
    known: Tensor | None = None
    picture: Tensor | None = None
    expects: CoarsePredictor | None = None
    image_scale: float | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.coarse is not None:
            raise ConfigError(
                "an adapter draws by a 2D model, and these are the weights of a multi-view one; toybox-base is a 2D "
                "model of the toybox",
                "weights",
            )
        self.base_schedule = self.schedule

    def with_adapter(self, adapter: str | Path, mv_scale: float = 1.0, ref_scale: float = 1.0, **form: Any) -> Self:
        """Draws by the adapter of a file. ``form``: see ``Form``, instead of what the file says. Raises ConfigError."""
        found = load_adapter(locate("adapter", str(adapter)), self.unet, self.factor, **form)
        if found.network.form.layout == "rowcol" and found.network.form.control == "rays":
            raise ConfigError("rowcol is of six sides of a mesh, control=geometry; of rays take row or full", "layout")
        if found.ignored:
            names = ", ".join(repr(name[:80]) for name in found.ignored[:3])
            logger.warning("%s: %d tensors have no place here (first %s)", adapter, len(found.ignored), names)
        found.network.mv_scale, found.network.ref_scale = mv_scale, ref_scale
        return self.with_network(found.network)

    def with_network(self, network: AdaptedUNet) -> Self:
        """Draws by this network from now on, with the noise that it is for."""
        self.unet, self.adapted = network.unet, network
        self.schedule = self.base_schedule.shifted(network.form.shift, network.form.shift_mode)
        matched = network.form.timestep == "matched"
        self.known = self.schedule.timesteps_in(self.base_schedule) if matched else None
        return self.to(self.device)

    def with_picture(self, cut: Array, image_scale: float | None = None) -> Self:
        """Has the thing of a picture (h,w,4), cut out, before its eyes from now on. Raises ConfigError for an adapter
        without attention to pictures."""
        self.require_ref()
        self.picture = framed(torch.from_numpy(cut), self.image_size, self.image_size)
        self.image_scale = image_scale
        return self

    def with_guess(self, weights: str) -> Self:
        """Begins samples from words, as far as they are told rays, with what the coarse predictor of a multi-view prior
        expects, whose text encoder and autoencoder are the same. Raises ConfigError."""
        with called("guess"):
            other = MVDream.load(weights, self.device)
            if other.coarse is None:
                raise ConfigError(f"{weights!r} has no coarse predictor; toybox-prior has one", "guess")
            for name in ("text_encoder", "vae"):
                own, its = self.networks[name].state_dict(), other.networks[name].state_dict()
                if own.keys() != its.keys() or any(not torch.equal(own[key], its[key]) for key in own):
                    raise ConfigError(
                        f"the coarse predictor of {weights!r} is of another {name.replace('_', ' ')} than the 2D model "
                        "has; with null, samples begin as noise",
                        "guess",
                    )
        self.expects = other.coarse
        return self

    def guess(self, text: Tensor, c2w: Tensor | None) -> Tensor | None:
        of_mesh = self.adapted is not None and self.adapted.form.control == "geometry"
        if c2w is None or of_mesh or self.picture is not None:  # a mesh or a picture says more
            return None
        return self.expected(self.expects, text, c2w)

    def reference(self, text: Tensor) -> Reference | None:
        if self.picture is None:
            return None
        return Reference(self.look_at(self.picture[None], text), self.image_scale)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        adapted = self.adapted
        guiders = {} if adapted is None else {"guider": adapted.guider, "fine": adapted.fine}
        more = guiders | {"expects": self.expects}
        return super().networks | {name: network for name, network in more.items() if network is not None}

    def camera(self, c2w: Tensor) -> Tensor:
        """Poses (B,4,4) -> maps of rays (B,6,1,1), of an adapter in perspective (B,6,H,W). Raises ConfigError if the
        adapter asks for the maps of a mesh."""
        if self.adapted is not None and self.adapted.form.control == "geometry":
            raise ConfigError(
                "this adapter is told the geometry of a mesh, and here is none; use one that is told rays of cameras",
                "adapter",
            )
        return ray_maps(towards_middle(c2w, self.image_size, self.image_size, self.fov)).to(c2w)

    @property
    def fov(self) -> float:
        """Of its cameras, in degrees; 0: they are orthographic."""
        return 0.0 if self.adapted is None else self.adapted.form.fov

    def note_views(self, c2w: Tensor) -> None:
        """Warns of poses (B,4,4) from where the adapter was not trained to look."""
        form = Form() if self.adapted is None else self.adapted.form
        trained = GEOMETRY_VIEWS if form.control == "geometry" else RAY_VIEWS
        if found := untrained(c2w, trained, form.anywhere > 0):
            known = ", ".join(f"{azimuth:g}/{elevation:.0f}" for elevation, azimuth in trained)
            known += f", any/{RAISED[0]:g} to {RAISED[1]:g}" if form.anywhere else ""
            logger.warning(
                "views %s look from where the adapter was not trained to (trained azimuths/elevations: %s)",
                ", ".join(map(str, found)),
                known,
            )

    def network(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        camera: Tensor | None = None,
        n_view: int = 1,
        reference: Features | None = None,
    ) -> Tensor:
        """``reference``: what was seen of pictures, see ``look_at``; the rest as of every prior."""
        known = t if self.known is None else self.known.to(t.device)[t]
        return self._network(x, known, text, camera, n_view, reference)

    def _network(self, x: Tensor, t: Tensor, text: Tensor, *told: Any) -> Tensor:
        """The same of timesteps of the 2D model."""
        if self.adapted is None:
            return super().network(x, t, text)
        with self.autocast():
            return self.adapted(x.float(), t, text, *told).float()

    def denoise(
        self,
        x: Tensor,
        t: Tensor,
        text: Tensor,
        camera: Tensor | None = None,
        n_view: int = 1,
        reference: Features | None = None,
    ) -> Tensor:
        return self.schedule.eps_from_output(x, self.network(x, t, text, camera, n_view, reference), t)

    def look_at(self, pictures: Tensor, text: Tensor) -> Features:
        """What the UNet sees of reference pictures (R,H,W,3) in [0,1], with text (R,L,D). Raises ConfigError for an
        adapter without attention to pictures."""
        adapted, latents = self.require_ref(), self.encode_views(pictures)
        with self.autocast():
            return adapted.look_at(latents, text)

    @property
    def unit(self) -> int:
        return super().unit if self.adapted is None else self.adapted.multiple

    def require_ref(self) -> AdaptedUNet:
        """Gives the network. Raises ConfigError if it has no attention to pictures."""
        if self.adapted is None or "ref" not in self.adapted.branches:
            raise ConfigError(
                "this one was not trained to look at a picture; say it in words, or take one for image to views",
                "adapter",
            )
        return self.adapted

    @torch.no_grad()
    def draw(
        self,
        prompt: str,
        control: Tensor,
        picture: Tensor | None = None,
        size: tuple[int, int] | None = None,
        steps: int = 50,
        guidance_scale: float | None = None,
        image_scale: float | None = None,
        negative_prompt: str = NEGATIVE,
        generator: Generators = None,
        eta: float = 0.0,
        on_step: Callable[[], None] = lambda: None,
        synchronised: Synchronised = ALONE,
        guess: Begun | None = None,
    ) -> Tensor:
        """Samples the V views of an object by DDIM -> (V,H,W,3) in [0,1], on the CPU.

        Args:
            control: what the guider is shown, (V,6,1,1) or (V,6,H,W): of ``camera``, or ``cameras.geometry_maps``.
            picture: a reference (h,w,3) in [0,1], sides multiples of ``factor``, see ``framed``.
            size: (H,W), multiples of ``unit``; by default that of ``image_size``.
            guidance_scale: for text and picture together; by default 7, with a picture 3.  image_scale: for the picture
                apart, and then the other is for the text alone.
            eta: 0 is DDIM, 1 like DDPM.  on_step: called before each step; may raise.  synchronised: see
                ``in_both_sizes``.  guess: what they go on from, see ``begun``; None: noise.
        """
        n_view, texts = len(control), self.encode_prompt([prompt, negative_prompt]).split(1)
        whole = size or (self.image_size, self.image_size)
        scale = guidance_scale if guidance_scale is not None else 7.0 if picture is None else 3.0

        def draw(size: Size, start: Tensor, begun: Begun | None) -> Tensor:
            shown = control if control.shape[-2:] == (1, 1) else interpolate(control, size, mode="nearest")
            seen = None
            if picture is not None:
                less = whole[0] // size[0]
                look = resize(picture[None], picture.shape[0] // less, picture.shape[1] // less)
                seen = Reference(self.look_at(look, texts[0]), image_scale)
            given = Conditions(texts, shown.to(self.device), n_view, reference=seen, alone=self.guide_views)
            how = (self.schedule, steps, eta, generator, begun, before_each(on_step))
            return ddim(guided(self.denoise, scale), start, given, *how)

        return in_both_sizes(self, n_view, whole, draw, generator, synchronised, guess=guess)

    def begun(self, prompt: str, c2w: Tensor, size: Size | None = None) -> Begun | None:
        """What the views of a prompt from poses (V,4,4) go on from instead of noise, if it has a guess of pictures of
        this size (H,W)."""
        if size not in (None, (self.image_size, self.image_size)):
            return None
        expected = self.guess(self.encode_prompt([prompt] * len(c2w)), c2w)
        return None if expected is None else Begun(expected, GUESS_NOISE)

    @torch.no_grad()
    def inpaint(
        self,
        prompt: str,
        picture: Tensor,
        hole: Tensor,
        steps: int = 50,
        guidance_scale: float = 7.0,
        negative_prompt: str = NEGATIVE,
        repeats: int = 1,
        generator: torch.Generator | None = None,
        on_step: Callable[[], None] = lambda: None,
    ) -> Tensor:
        """A picture (H,W,3) in [0,1] of the 2D model, on the CPU: like ``picture``, but where its ``hole`` is (H,W).

        Sides are multiples of ``factor``.  repeats: see ``ddim_inpaint``.  on_step: called before each step; may raise.
        """

        def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
            on_step()
            return schedule.eps_from_output(x, self._network(x, t, text), t)

        schedule, z = self.base_schedule, self.encode_views(picture[None])
        where = max_pool2d(hole.float()[None, None], self.factor).to(z)
        given = Conditions(self.encode_prompt([prompt, negative_prompt]).split(1))
        z = ddim_inpaint(guided(denoise, guidance_scale), z, where, given, schedule, steps, repeats, generator)
        return self.decode_latents(z)[0].float().cpu()
