"""Stages of the GPU benchmark: UNet, VAE encoder and DDIM sampling at the size of MVDream's SD-2.1 weights."""

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from threedgen.geometry.rigs import orbit
from threedgen.guidance.attention.joined import camera_vector, unet_output
from threedgen.guidance.cuda_graph import WARM_UP, record
from threedgen.guidance.guidance import Condition, guided
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.sampling import sample_latents
from threedgen.train.loop import determinism

from .gpu_stage import Bench
from .mvdream import TOKENS, UNET, VAE, random_prior

SMALL_UNET = {
    "sample_size": 8, "block_out_channels": (32, 32), "attention_head_dim": 4, "use_linear_projection": True,
    "cross_attention_dim": 64, "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
SMALL_VAE = {
    "block_out_channels": (32, 32), "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}  # fmt: skip

HEAD_SIZES = (40, 64, 80, 160, 512)


def make_prior(bench: Bench, dtype: str, decoder: bool = False) -> MVDream:
    """Return a prior with random weights, of the released architecture, or tiny if `bench.small`.

    `dtype` is the precision of the networks ("fp32" if `bench.small`), and `decoder` whether to keep the VAE decoder.
    """
    torch.manual_seed(0)
    networks = (SMALL_UNET, SMALL_VAE) if bench.small else (UNET, VAE)
    return random_prior("fp32" if bench.small else dtype, bench.device, *networks, decoder=decoder)


def condition(prior: MVDream, views: int) -> Condition:
    """Return a random text condition and cameras of `views` views, a multiple of 4, in groups of four per object."""
    rng, width = torch.Generator().manual_seed(1), prior.unet.config["cross_attention_dim"]
    text = torch.randn(2, TOKENS, width, generator=rng).to(prior.device)
    c2w = orbit(4, 0.2, 2.6, 0.7, 8, 8).c2w.repeat(views // 4, 1, 1).to(prior.device)
    return Condition((text[:1], text[1:]), prior.camera(c2w), 4)


@determinism(False)  # as in a training on a GPU
def unet(bench: Bench) -> None:
    """Record the time of a UNet call on 8 and 16 images, in float32 and for each way to run it in half precision."""
    flash_attention(bench)
    network: Any = make_prior(bench, "fp16").unet
    half = torch.bfloat16 if bench.small else torch.float16
    network.requires_grad_(False)
    cases: dict[str, tuple[torch.dtype, bool, bool]] = {
        "float32": (torch.float32, False, False),
        "float32 weights, autocast": (torch.float32, True, False),
        "half weights": (half, False, False),
        "half weights, channels_last": (half, False, True),
    }
    exact: dict[int, Tensor] = {}
    for name, (dtype, autocast, last) in cases.items():
        network.to(dtype=dtype)
        if last:
            network.to(memory_format=torch.channels_last)
        for batch in (8, 16):
            with bench.case(f"{name}, batch {batch}"), torch.no_grad(), bench.peak() as peak:
                run = unet_call(
                    network, batch, bench.device, dtype, torch.autocast(bench.device.type, half, enabled=autocast)
                )
                out = run().float()
                exact.setdefault(batch, out)
                error = float((out - exact[batch]).norm() / exact[batch].norm())
                bench.record(
                    f"{name}, batch {batch}",
                    ms=bench.milliseconds(run),
                    error=error,
                    finite=bool(out.isfinite().all()),
                    peak_gb=peak(),
                )
                if bench.device.type == "cuda" and dtype == half:
                    bench.record(f"{name}, CUDA graph, batch {batch}", **captured(bench, run, out))


@torch.no_grad()
def flash_attention(bench: Bench) -> None:
    """Record whether torch's flash attention accepts the head sizes of SD 1.5 and 2.1, and of the VAE's one head (512).

    Above 256 channels torch refuses it on CUDA, so only the others count as failures.
    """
    half, found = torch.bfloat16 if bench.small else torch.float16, dict[str, str]()
    tokens = 64 if bench.small else 1024
    for width in HEAD_SIZES:
        q = torch.randn(2, 1 if width == HEAD_SIZES[-1] else 8, tokens, width, device=bench.device, dtype=half)
        try:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                finite = bool(F.scaled_dot_product_attention(q, q, q).isfinite().all())
            found[f"heads_{width}"] = "ok" if finite else "not finite"
        except RuntimeError as error:
            found[f"heads_{width}"] = f"refused: {str(error)[:100]}"
    bench.record("flash attention", ok=all(found[f"heads_{width}"] == "ok" for width in HEAD_SIZES[:-1]), **found)


def unet_call(network: Any, batch: int, device: torch.device, dtype: torch.dtype, context: Any) -> Callable[[], Tensor]:
    """Return a function that runs the UNet on `batch` random latents of the type `dtype`, in groups of four views.

    `context` is the autocast context of the call.
    """
    rng, side = torch.Generator().manual_seed(batch), network.config["sample_size"]
    x = torch.randn(batch, 4, side, side, generator=rng).to(device, dtype)
    text = torch.randn(batch, TOKENS, network.config["cross_attention_dim"], generator=rng).to(device, dtype)
    camera = camera_vector(orbit(4, 0.2, 2.6, 0.7, 8, 8).c2w).repeat(batch // 4, 1).to(device, dtype)
    t = torch.full((batch,), 500, device=device)

    def run() -> Tensor:
        with context:
            return unet_output(network, x, t, text, camera, 4)

    return run


def captured(bench: Bench, run: Callable[[], Tensor], expected: Tensor) -> dict[str, object]:
    """Capture a call as a CUDA graph. Return the time of a replay in ms ("ms") and its relative error ("error").

    The error is the difference of the replayed output to `expected`.
    """
    replay, out = record(run)
    ms = bench.milliseconds(replay)
    return {"ms": ms, "error": float((out.float() - expected).norm() / expected.norm())}


@determinism(False)  # as in a training on a GPU
def vae(bench: Bench) -> None:
    """Record the time and memory of the VAE encoder, for a forward pass and for one with the gradient of the images."""
    network: Any = make_prior(bench, "fp16").vae
    half, size = torch.bfloat16 if bench.small else torch.float16, 16 if bench.small else 256
    cases = {
        "float32 weights, autocast": (torch.float32, False),
        "half weights": (half, False),
        "half weights, channels_last": (half, True),
    }
    for name, (dtype, last) in cases.items():
        part = copy.deepcopy(network).to(dtype=dtype)
        if last:
            part.to(memory_format=torch.channels_last)
        for batch in (4, 8):
            with bench.case(f"{name}, batch {batch}"), bench.peak() as peak:
                images = torch.rand(batch, 3, size, size, device=bench.device, dtype=dtype).requires_grad_()
                context = torch.autocast(bench.device.type, half, enabled=dtype == torch.float32)

                def forward() -> Tensor:
                    with context:  # noqa: B023
                        return part.encode(images).latent_dist.mean.float()  # noqa: B023

                def both() -> Tensor:
                    return torch.autograd.grad(forward().square().sum(), images)[0]  # noqa: B023

                with torch.no_grad():
                    ms = bench.milliseconds(forward, 5)
                finite = bool(both().isfinite().all())
                bench.record(
                    f"{name}, batch {batch}",
                    forward_ms=ms,
                    both_ms=bench.milliseconds(both, 5),
                    finite_gradient=finite,
                    peak_gb=peak(),
                )


@torch.no_grad()
def sampling(bench: Bench) -> None:
    """Record the time of sampling four views by DDIM in 50 steps with guidance, and the time of decoding the views.

    As in a run of the task "sample", the weights are in half precision, and the UNet is a CUDA graph.
    """
    prior, steps = make_prior(bench, "fp16", decoder=True).compact(), 2 if bench.small else 50
    predicted, (channels, *side) = guided(prior.denoise, condition(prior, 4), 10.0), prior.latent_shape
    noise = torch.randn(4, channels, *side, generator=torch.Generator().manual_seed(0)).to(prior.device)
    with bench.peak() as peak:
        sample_latents(predicted, noise, prior.schedule, WARM_UP + 1)  # captures the CUDA graph
        seconds = []
        for _ in range(2):
            bench.synchronise()
            start = time.perf_counter()
            z = sample_latents(predicted, noise, prior.schedule, steps)
            bench.synchronise()
            seconds.append(time.perf_counter() - start)
        decode = bench.milliseconds(lambda: prior.decode_latents(z), 3)
        bench.record(
            "DDIM, 4 views",
            steps=steps,
            seconds=min(seconds),
            decode_ms=decode,
            ok=bool(z.isfinite().all()),
            graph=prior.graph is not None and not prior.graph.failed,
            peak_gb=peak(),
        )
