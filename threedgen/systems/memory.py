"""Peak memory of a step of each kind of task, measured on torch's meta device, which has shapes but no values.

The tasks here sample or train diffusion models, so a step only calls networks (`meta_prior.py`). A step of the task
"generate" also renders; `generate/memory.py` measures it. --dry-run prints the results.
"""

from collections.abc import Sequence
from math import pi, radians
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from threedgen.geometry import panorama
from threedgen.guidance.attention.decoupled import Branch
from threedgen.guidance.novel_view.xunet import XUNet
from threedgen.guidance.options import PriorConfig
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet
from threedgen.guidance.priors.mvdiffusion.geometry import DepthGeometry, Geometry, PanoramaGeometry, Scenes
from threedgen.guidance.priors.mvdiffusion.unet import MultiviewUNet
from threedgen.guidance.weights.meta_networks import meta_networks
from threedgen.run.dtypes import compute_dtype
from threedgen.run.memory import GPUS, PeakMemory
from threedgen.systems.dreambooth.system import preservation
from threedgen.systems.meta_prior import META, MetaPrior, measure, measure_sampling, measure_training

SIDES = 6  # views of an object that MV-Adapter samples together


def branches(options: Any, image: bool = False) -> tuple[Branch, ...]:
    """Return the kinds of attention that MV-Adapter adds, for the config section `options` of a prior.

    "mv": views attend to the other views. "ref": views attend to a reference image; only if the run has an image, that
    is, if `image` is True or `options.image` is set. Without an adapter the result is ().
    """
    if getattr(options, "adapter", None) is None:
        return ()
    return ("mv", "ref") if image or options.image is not None else ("mv",)


def geometry(views: int, size: Sequence[int], fov: float = pi / 2, depth: bool = False) -> Geometry:
    """Return cameras with which the memory of MVDiffusion is measured.

    In MVDiffusion, a pixel attends to pixels of other views that show the same place.

    Args:
        views: number of cameras.
        size: (H, W) of their images in pixels.
        fov: horizontal field of view in radians.
        depth: False: cameras of a panorama. True: cameras that all have the same pose and the same depth map. All views
            then show the same places, so each view attends to all others, the case with the highest memory use.
    """
    height, width = size
    K = panorama.intrinsics(fov, height, width)
    if not depth:
        return PanoramaGeometry(K, panorama.ring(views), (height, width))
    return DepthGeometry(torch.full((views, height, width), 2.0), torch.eye(4).repeat(views, 1, 1), K)


def measure_sampling_task(config: Any, device: torch.device) -> PeakMemory | None:
    """Return the peak memory (in bytes: `peak`) of a run of the task "sample" or "texture" with `config`.

    It is the largest of the peaks of loading the networks, of a denoising step of all views, and of decoding them.
    Returns None if a run of "texture" samples nothing. `device` only decides the precision.
    """
    if config.prior is None:
        return None
    rig, options = config.rig, config.prior
    views = getattr(rig, "n_view", getattr(rig, "views", None))
    views = max(1, views) if isinstance(views, int) else len(views or range(SIDES))
    networks = meta_networks(options.weights, options.parts)
    plain = options.image_size or networks.unet.config["sample_size"] * networks.factor
    default = getattr(rig, "size", None) or plain
    own = rig.name in ("angles", "path")
    size = [(getattr(rig, side) if own else None) or default for side in ("height", "width")]
    scene = None
    if getattr(options, "blocks", None) is not None:
        scene = geometry(views, size, radians(rig.fov), depth=rig.name == "path")
    prior = MetaPrior(networks, options, device, views, branches(options, config.image is not None), scene)
    return measure_sampling(prior.compact(), size, graphed=True)


def training_prior(
    weights: str,
    device: torch.device,
    views: int = 1,
    branches: tuple[Branch, ...] = (),
    geometry: Geometry | None = None,
    size: int | None = None,
) -> MetaPrior:
    """Return the prior that a training on `device` starts from, with shapes but no values (`MetaPrior`).

    Its weights are float32. Its attribute `half` is the dtype of autocast: half precision on a GPU, else float32.

    Args:
        weights: name, path or hub id of the weights from which the training starts. They decide the shapes of the
            networks.
        views: number of views of an object or scene that are denoised together.
        branches: kinds of attention that MV-Adapter adds, such as ("mv", "ref"), see the function `branches`; (): none.
        geometry: cameras of the views of a scene, for MVDiffusion's attention; None: no such attention.
        size: side of the images in pixels; None: the image size in the config file of the weights.
    """
    networks, like = meta_networks(weights), PriorConfig(name="start", weights=weights, dtype="fp32", image_size=size)
    prior = MetaPrior(networks, like, device, views, branches, geometry)
    prior.half = compute_dtype("auto", device) if device.type in GPUS else torch.float32
    return prior


def measure_mvadapter_training(config: Any, device: torch.device) -> PeakMemory:
    """Return the peak memory (in bytes: `peak`) of a training step of the task "train-mvadapter" with `config`.

    The step is simulated on torch's meta device, without values. `device` only decides the precision.
    """
    prior = training_prior(config.start, device, SIDES, config.branches, size=config.image_size)
    assert isinstance(prior.denoiser, AdaptedUNet)
    prior.denoiser.new_parts.requires_grad_(True)
    return measure_training(prior, SIDES * config.training.batch, 2 + bool(config.training.ema))


def measure_mvdiffusion_training(config: Any, device: torch.device) -> PeakMemory:
    """Return the peak memory (in bytes: `peak`) of a training step of the task "train-mvdiffusion" with `config`.

    The step is simulated on torch's meta device, without values. `device` only decides the precision.
    """
    o, s = config.training, config.scenes
    size = (s.height, s.width) if config.variant == "depth" else (s.size, s.size)
    scene = geometry(s.views, size, depth=config.variant == "depth")
    prior = training_prior(config.start, device, s.views, geometry=scene)
    prior.geometry = Scenes([scene] * o.batch)
    assert isinstance(prior.denoiser, MultiviewUNet)
    nn.ModuleDict(prior.denoiser.new_blocks).requires_grad_(True)
    latent = [side // prior.factor for side in size]
    return measure_training(prior, s.views * o.batch, 2 + bool(o.ema), latent)


def measure_dreambooth(config: Any, device: torch.device) -> PeakMemory:
    """Return the peak memory (in bytes: `peak`) of a training step of the task "mvdreambooth" with `config`.

    The step is simulated on torch's meta device, without values. `device` only decides the precision.
    """
    o, prior = config.tuning, training_prior(config.prior.weights, device, size=config.prior.image_size)
    all_weights = o.preservation != "lora"  # a LoRA is small, but all activations are stored for it
    for p in prior.unet.parameters() if all_weights else prior.unet.conv_in.parameters():
        p.requires_grad_(True)
    named = {name: p for name, p in prior.unet.named_parameters() if p.requires_grad}

    def extra() -> Tensor:  # the originals count as copies
        return preservation(named, {name: torch.empty_like(p) for name, p in named.items()}, o.preservation)

    images = o.batch * (2 if o.preservation == "images" else 1)
    return measure_training(prior, images, 2, more=extra if o.preservation in ("l1", "l2") else None)


def measure_threedim_training(config: Any, device: torch.device) -> PeakMemory:
    """Return the peak memory (in bytes: `peak`) of a training step of the task "train-threedim" with `config`.

    The step is simulated on torch's meta device, without values. `device` only decides the precision.
    """
    o, batch = config.model, config.training.batch
    if o.name == "latents":
        prior = training_prior(o.start, device, 2)
        prior.unet.requires_grad_(True)
        return measure_training(prior, 2 * batch, 3)
    with META:
        network = XUNet(o.network)
        x, poses, K = torch.empty(batch, 3, *network.image_size), torch.empty(batch, 2, 4, 4), torch.empty(batch, 3, 3)
        has_condition, logsnr = torch.empty(batch, dtype=torch.bool), torch.empty(batch)
    half = compute_dtype("auto", device) if device.type in GPUS else torch.float32
    trained = list(network.parameters())
    return measure(trained, [], lambda: F.mse_loss(network.predict(x, x, logsnr, poses, K, has_condition), x), 3, half)
