"""Prior (diffusion model) on torch's meta device, which has shapes but no values, and the memory that its steps take.

`MetaPrior` stands for a prior of any kind, and `measure` runs a step of it or of other networks.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode

from threedgen.guidance.attention.decoupled import Branch
from threedgen.guidance.attention.joined import CAMERA_DIM, has_added_conditioning, split_text
from threedgen.guidance.options import PriorConfig
from threedgen.guidance.prior import Prior
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet
from threedgen.guidance.priors.mvdiffusion import caa
from threedgen.guidance.priors.mvdiffusion.geometry import DepthGeometry, Geometry
from threedgen.guidance.priors.mvdiffusion.unet import MultiviewUNet
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.meta_networks import MetaNetworks
from threedgen.run.dtypes import compute_dtype
from threedgen.run.memory import GPUS, PeakMemory

META = torch.device("meta")
TOKENS = 77


class MetaPrior(Prior):
    """Prior (diffusion model) to measure memory. Its networks have shapes but no values. It has no text encoder."""

    def __init__(
        self,
        networks: MetaNetworks,
        options: PriorConfig,
        device: torch.device,
        views: int = 1,
        branches: tuple[Branch, ...] = (),
        geometry: Geometry | None = None,
    ) -> None:
        """Build the prior.

        Args:
            networks: UNet and VAE, on the meta device.
            options: config section of the prior.
            device: device of the run; it decides the precision.
            views: number of views of an object or scene that are sampled together.
            branches: kinds of attention that MV-Adapter adds, "mv" (multi-view) and "ref" (reference image); (): no
                adapter.
            geometry: cameras of the views of a scene, for MVDiffusion's attention; None: no such attention.
        """
        self.meta, self.unet, self.schedule, self.device = networks, networks.unet, Schedule.scaled_linear(), META
        self.factor, self.guide_views, self.views, self.geometry = networks.factor, False, views, geometry
        self.tokenizer: Any = None
        self.image_size = options.image_size or self.unet.config["sample_size"] * self.factor
        half = compute_dtype(options.dtype, device) if device.type in GPUS else torch.float32
        self.half, self.dtype = half, torch.float32
        self.cuda_graph = options.cuda_graph and half != torch.float32 and options.graphs_unet
        self.graph_memory = torch.empty(0, device=META)
        self.denoiser = cast(nn.Module, self.unet)
        self.text_bytes = 4 * max(0, networks.parameters - sum(t.numel() for t in weights(*self.networks.values())))
        caa.CHUNK["meta"] = caa.CHUNK[device.type if device.type in GPUS else "cpu"]
        with META:
            if branches:
                self.denoiser = AdaptedUNet(self.unet, self.factor, branches=branches)
            elif geometry is not None:
                depth = isinstance(geometry, DepthGeometry)
                self.denoiser = MultiviewUNet(self.unet, "depth" if depth else "panorama", condition=depth)
        for network in self.networks.values():
            network.requires_grad_(False)
        if not options.alters_weights:
            self.compact()
        self.loading = self.text_bytes + sum(t.numel() * t.element_size() for t in weights(*self.networks.values()))

    def compact(self) -> Self:
        torch.nn.Module.to(self.denoiser, self.half)
        self.dtype = self.half
        return self

    def cast_networks(self, lora: bool = False) -> None:
        self.compact()
        self.cuda_graph = self.cuda_graph and not lora
        vae: Any = self.meta.vae
        encoder = () if vae is None else (vae.encoder, vae.quant_conv)
        for network in (self.meta.image_encoder, *encoder):
            if network is not None:
                torch.nn.Module.to(network, self.dtype)
        if vae is not None:
            vae.decoder = vae.post_quant_conv = None

    def encode_images(self, rgb: Tensor, generator: torch.Generator | None = None) -> Tensor:
        images = self.to_network_images(rgb).to(self.dtype)
        return images.float() if self.meta.vae is None else self.meta.vae.encode(images).latent_dist.mean.float()

    def measure_graph_memory(self, images: int) -> None:
        """Measure the bytes that a CUDA graph of the UNet allocates; set `graph_memory` to a meta tensor of this size.

        The attribute `graph_memory` stands for the graph when a step is measured: it is passed to the function
        `measure` in the argument `kept`, the tensors that are in memory during the step. It is an empty tensor if a run
        with this prior uses no CUDA graph (`cuda_graph` is False). `images` is the number of latents in a call of the
        UNet.
        """
        self.graph_memory = torch.empty(0, device=META)
        if self.cuda_graph:
            memory = measure([], [], lambda: self.sample_step(images, self.latent_shape[1:]))
            self.graph_memory = torch.empty(memory.peak // 4, device=META)

    @torch.no_grad()
    def sample_step(self, images: int, size: Sequence[int]) -> None:
        """Call the UNet once on the meta device, without gradients, for `images` latents of `size` (h, w).

        `size` is in latent pixels. Nothing is returned: the call is only measured.
        """
        z = torch.empty(images, self.latent_shape[0], *size, device=META)
        self.network(z, torch.empty(images, device=META), z, n_view=self.views)

    def network(self, x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None = None, n_view: int = 1) -> Tensor:
        if self.graph_memory.numel() and not torch.is_grad_enabled():
            return torch.empty_like(x)
        c, images, x, denoiser = self.unet.config, len(x), x.to(self.dtype), self.denoiser
        if self.meta.image_encoder is not None:  # the image is one more view of each object
            x, t = torch.cat([x, x[: images // self.views]]), t[:1]
        text = x.new_empty(
            len(x), TOKENS + has_added_conditioning(self.unet), c["encoder_hid_dim"] or c["cross_attention_dim"]
        )
        more = x.new_empty(len(x), c["in_channels"] - x.shape[1], *x.shape[2:])
        inputs, size = torch.cat([x, more], 1), [self.factor * side for side in x.shape[2:]]
        if isinstance(denoiser, AdaptedUNet):
            objects = max(1, images // n_view)
            reference = denoiser.reference_features(x[:objects], text[:objects]) if "ref" in denoiser.branches else None
            return cast(Tensor, denoiser(inputs, t, text, x.new_empty(images, 6, *size), n_view, reference)).float()
        if isinstance(denoiser, MultiviewUNet):
            return cast(Tensor, denoiser(inputs, t, text, self.geometry))[:, : x.shape[1]].float()
        labels = None if self.unet.class_embedding is None else x.new_empty(len(x), CAMERA_DIM)
        words, added = split_text(self.unet, text, *size)
        out = self.unet(inputs, t, words, class_labels=labels, **added).sample
        return out[:images, : x.shape[1]].float()

    def decode_latents(self, z: Tensor) -> Tensor:
        return z if self.meta.vae is None else self.meta.vae.decode(z.float()).sample

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        every: dict[str, torch.nn.Module | None] = {
            "unet": self.denoiser,
            "vae": self.meta.vae,
            "image_encoder": self.meta.image_encoder,
        }
        return {name: network for name, network in every.items() if network is not None}

    max_tokens = TOKENS
    text_shape = (1, 1)

    def to(self, device: torch.device | str) -> Self:
        return self

    def encode_prompt(self, prompts: list[str]) -> Tensor:
        return torch.zeros(len(prompts), *self.text_shape)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.image_size // self.factor
        return 3 if self.meta.vae is None else self.unet.config["out_channels"], side, side


HALF = {F.linear, F.conv2d, torch.matmul, torch.bmm, torch.baddbmm}
SINGLE = {F.group_norm, F.layer_norm, F.mse_loss}
"""Functions that autocast computes in half precision (HALF) and in single precision (SINGLE)."""


class Kernels(TorchFunctionMode):
    """Context in which networks on torch's meta device (tensors without values) need as many bytes as on a real device.

    It imitates two things that save memory there:

    - Fused attention kernels: attention weights are not stored.
    - Autocast, which torch does not have for the meta device. The arguments of linear layers, convolutions, matrix
      products and attention are converted to `half`, those of group norms, layer norms and squared errors to float32.
      `half` float32: no autocast.
    """

    def __init__(self, half: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.half = half

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        attention = func is F.scaled_dot_product_attention
        if self.half != torch.float32 and (attention or func in HALF | SINGLE):
            dtype = torch.float32 if func in SINGLE else self.half
            args = tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)
        return _Attention.apply(*args[:3]) if attention else func(*args, **(kwargs or {}))


class _Context(FunctionCtx):
    saved_tensors: tuple[Tensor, ...]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: _Context, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = q.new_empty(*q.shape[:-1], v.shape[-1])
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(saved) for saved in ctx.saved_tensors[:3])


def weights(*networks: nn.Module) -> list[Tensor]:
    return [t for network in networks for t in (*network.parameters(), *network.buffers())]


def measure(
    trained: Sequence[nn.Parameter],
    kept: Iterable[Tensor],
    run: Callable[[], Tensor | None],
    copies: int = 2,
    half: torch.dtype = torch.float32,
) -> PeakMemory:
    """Measure peak memory and kernel launches of the function `run` and, if it returns a loss, of its backward pass.

    They are the attributes `peak` (bytes) and `launches` of the result.

    Args:
        trained: parameters that get gradients.
        kept: other tensors that are in memory during the call, such as frozen weights.
        copies: number of tensors of a parameter's size that are kept for it besides the gradient: 2 for the moments of
            Adam, and 1 more for each further copy, such as the average over the steps.
        half: dtype of autocast; float32: no autocast.
    """
    with PeakMemory() as memory, Kernels(half):
        memory.add(*trained, *kept)
        states = [torch.empty_like(p) for p in trained for _ in range(copies)]
        loss = run()
        if loss is not None:
            loss.backward()
        del states, loss
        for parameter in trained:
            parameter.grad = None
    return memory


def measure_sampling(prior: MetaPrior, size: Sequence[int] | None = None, graphed: bool = False) -> PeakMemory:
    """Measure the peak memory of sampling with a prior, and its kernel launches, without computing any values.

    `prior` stands for a diffusion model, whose networks are on torch's meta device: tensors have shapes but no values.
    What counts are the bytes that they would need on a real device.

    The result has two attributes: `peak` is the highest memory, in bytes, of three phases: loading the prior, a
    denoising step of all views, and decoding them. `launches` is the number of kernel launches of the denoising step.

    Args:
        size: (H, W) of a view in pixels; None: the image size of the prior.
        graphed: whether to measure the UNet as a CUDA graph, if `prior.cuda_graph` allows it. The memory of the graph
            then counts, but the kernel launches of the UNet do not.
    """
    if graphed:
        prior.measure_graph_memory(2 * prior.views)
    z = [side // prior.factor for side in size] if size else prior.latent_shape[1:]
    kept = [prior.graph_memory, *weights(*prior.networks.values())]
    together = prior.denoiser is prior.unet  # else images are decoded one by one

    def step() -> None:
        for images in [prior.views] * 2 if prior.geometry else [2 * prior.views]:
            prior.sample_step(images, z)

    @torch.no_grad()
    def decode() -> None:
        prior.decode_latents(torch.empty(prior.views if together else 1, prior.latent_shape[0], *z, device=META))

    found = measure([], kept, step)
    peak = max(found.peak, measure([], kept, decode).peak)
    if prior.meta.vae is None:  # T5 is freed before the UNet is loaded
        found.peak = max(peak, prior.half.itemsize * prior.text_bytes // 4)
    else:
        found.peak = max(peak + prior.text_bytes, prior.loading)
    return found


def measure_training(
    prior: MetaPrior,
    images: int,
    copies: int,
    size: Sequence[int] | None = None,
    more: Callable[[], Tensor] | None = None,
) -> PeakMemory:
    """Measure a training step of a prior: peak memory (`peak` of the result, bytes) and kernel launches (`launches`).

    Tensors are on torch's meta device, with shapes but no values, so nothing is computed. The step trains the weights
    of `prior` that require gradients. The optimizer's update is not run, but its tensors count (`copies`).

    Args:
        images: number of images that are denoised in a step.
        copies: number of tensors per trained weight besides the gradient, such as 2 for the moments of Adam.
        size: (h, w) of an image in latent pixels; None: the size of the prior's latents.
        more: function that returns a further loss term; None: no further term.
    """
    trained = [p for p in prior.denoiser.parameters() if p.requires_grad]
    z = torch.empty(images, prior.latent_shape[0], *(size or prior.latent_shape[1:]), device=META)

    def run() -> Tensor:
        loss = F.mse_loss(prior.network(z, torch.empty(images, device=META), z, n_view=prior.views), z)
        return loss if more is None else loss + more()

    kept = weights(*prior.networks.values())
    found = measure(trained, kept, run, copies, prior.half)
    found.peak += prior.text_bytes
    return found
