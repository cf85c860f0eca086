"""Time denoising steps of MVDiffusion's panorama network, with our implementation and with the reference.

Both use the same random weights. They build the UNet from the same seed. The reference replaces the zero-initialised
layers of its correspondence-aware attention by random ones and saves that attention to a file, which our code reads.
"""

import gc
import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from math import pi
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers.models import UNet2DConditionModel
from safetensors.torch import save_file
from torch import Tensor, nn

from threedgen.config.errors import ConfigError
from threedgen.geometry.panorama import intrinsics, ring
from threedgen.guidance.priors.mvdiffusion.caa import frequencies
from threedgen.guidance.priors.mvdiffusion.geometry import PanoramaGeometry
from threedgen.guidance.priors.mvdiffusion.weights import build_network
from threedgen.guidance.weights.files import read_tensors
from threedgen.run.dtypes import cast_weights
from threedgen.run.metrics import peak_memory, reset_peak_memory

FACTOR, LATENTS, TEXT, TOKENS, HEAD = 8, 4, 1024, 77, 64
"""Stable Diffusion 2: VAE downsampling, latent channels, text embedding width, text tokens, channels per head."""
COMPARED = 128  # image edge in pixels of the views whose outputs are compared
NETWORK = "models.pano.MVGenModel"
Step = Callable[[int], Tensor]


@dataclass(frozen=True)
class Trial:
    """Options of a measurement.

    Attributes:
        views: number of views of the panorama.
        size: side of the images in pixels.
        steps: number of denoising steps.
        widths: channels of each UNet level.
        device: "cpu" or "cuda".
    """

    views: int
    size: int
    steps: int
    widths: tuple[int, ...]
    device: str


@dataclass(frozen=True)
class Measured:
    """Results of a measurement.

    Attributes:
        seconds: wall time of each step.
        cpu: CPU time of each step in seconds, summed over the cores.
        weights: memory of the weights in bytes.
        peak: peak memory of the process or, for "cuda", of the GPU in bytes.
        output: output of the network in a step with images of COMPARED x COMPARED pixels, after `cap`, to compare
            both implementations.
    """

    seconds: list[float]
    cpu: list[float]
    weights: int
    peak: int
    output: Tensor


def measure(trial: Trial, file: Path, reference: Path | None, dtype: torch.dtype = torch.float32) -> Measured:
    """Time the steps of the reference if its folder `reference` is given, else of our implementation in `dtype`.

    `file` is a safetensors file of the attention weights, which the reference writes and our implementation reads.
    """
    network, step = ours(trial, file, dtype) if reference is None else theirs(trial, file, reference)
    seconds: list[float] = []
    cpu: list[float] = []
    reset_peak(trial.device)
    with torch.no_grad(), torch.autocast(trial.device, dtype, enabled=dtype is not torch.float32):
        for _ in range(trial.steps):
            start, cpu_start = time.perf_counter(), time.process_time()
            step(trial.size).cpu()
            seconds.append(time.perf_counter() - start)
            cpu.append(time.process_time() - cpu_start)
        peak = peak_bytes(trial.device)
        cap(network)
        output = step(COMPARED).float().cpu()
    weights = sum(p.nbytes for p in network.parameters())
    return Measured(seconds, cpu, weights, peak, output)


def ours(trial: Trial, file: Path, dtype: torch.dtype) -> tuple[nn.Module, Step]:
    """Return our network in `dtype`, with the attention weights in `file`, and its step function.

    The step function runs a denoising step for an image side in pixels and returns the output of the network.
    """
    network = build_network(read_tensors(file), base(trial.widths)).to(trial.device)
    cast_weights(network, dtype)
    geometries: dict[int, PanoramaGeometry] = {}

    def step(size: int) -> Tensor:
        geometry = geometries.setdefault(size, PanoramaGeometry(*cameras(trial.views, size), (size, size)))
        return network(*inputs(trial, size), geometry)

    return network, step


def theirs(trial: Trial, file: Path, reference: Path) -> tuple[nn.Module, Step]:
    """Return the reference network and its step function, and write its attention weights to `file`.

    The step function runs a denoising step for an image side in pixels and returns the output of the network. Raises
    ConfigError if the folder `reference` is not a clone of the repository.
    """
    model: Any = import_reference(reference).MultiViewBaseModel(base(trial.widths), {"single_image_ft": False})
    g = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if name.startswith("cp_") and not parameter.any():
            nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5, generator=g)
    state = model.state_dict().items()
    save_file({name: tensor.contiguous() for name, tensor in state if name.startswith("cp_")}, file)
    model.eval().requires_grad_(False).to(trial.device)

    def step(size: int) -> Tensor:
        x, t, text = (part.unflatten(0, (2, trial.views)) for part in inputs(trial, size))
        K, R = (part.float().expand(2, trial.views, 3, 3).to(trial.device) for part in cameras(trial.views, size))
        return model(x, t, text, {"K": K, "R": R}).flatten(0, 1)

    return model, step


def import_reference(reference: Path) -> ModuleType:
    """Import the network's module from a clone of the reference. Without einops, use the copy in functorch instead.

    Raises ConfigError if the folder `reference` is not a clone of the repository.
    """
    if not (reference / "src" / (NETWORK.replace(".", "/") + ".py")).is_file():
        raise ConfigError("should be a clone of github.com/Tangshitao/MVDiffusion", "--reference", str(reference))
    try:
        import einops  # noqa: F401
    except ImportError:
        sys.modules["einops"] = importlib.import_module("functorch.einops.rearrange")
    sys.path.insert(0, str(reference / "src"))
    return importlib.import_module(NETWORK)


def base(widths: tuple[int, ...]) -> UNet2DConditionModel:
    """Build a UNet with random weights, like Stable Diffusion 2. All levels except the last have attention."""
    torch.manual_seed(0)
    levels = len(widths) - 1
    unet: Any = UNet2DConditionModel(
        block_out_channels=widths,
        down_block_types=("CrossAttnDownBlock2D",) * levels + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * levels,
        attention_head_dim=tuple(width // HEAD for width in widths),  # diffusers' name for the number of heads
        cross_attention_dim=TEXT,
        use_linear_projection=True,
    )
    return unet.eval().requires_grad_(False)


def inputs(trial: Trial, size: int) -> list[Tensor]:
    """Return latents (2V, 4, h, w), time steps (2V,) and text embeddings (2V, 77, 1024), unconditional half first."""
    g = torch.Generator().manual_seed(2)
    x = torch.randn(trial.views, LATENTS, size // FACTOR, size // FACTOR, generator=g).repeat(2, 1, 1, 1)
    text = torch.randn(2 * trial.views, TOKENS, TEXT, generator=g)
    return [part.to(trial.device) for part in (x, torch.full((len(x),), 500), text)]


def cameras(views: int, size: int) -> tuple[Tensor, Tensor]:
    """Return intrinsics K (3, 3) in pixels and rotations R (V, 3, 3) of V views, 90 degrees wide, along the horizon."""
    return intrinsics(pi / 2, size, size), ring(views)


def cap(network: nn.Module) -> None:
    """Limit the network's positional encodings, in place, to the frequencies that float32 resolves."""
    for name, bands in network.named_buffers():
        if name.endswith("freq_bands"):
            bands.copy_(frequencies(bands.numel(), "capped").view_as(bands))


def reset_peak(device: str) -> None:
    """Reset the peak memory counter of the process or GPU, so that memory used during loading does not count."""
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        reset_peak_memory()


def peak_bytes(device: str) -> int:
    """Return the peak memory in bytes, of the process or on the GPU, since the last `reset_peak`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else int((peak_memory() or 0) * 2**20)
