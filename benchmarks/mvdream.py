"""Compare steps of the full-size MVDream configs with plain PyTorch code that renders all rays at once.

The metrics are time and, on a GPU, peak memory. Weights and text embedding are random and nothing is downloaded,
because the time does not depend on their values. The field is untrained: a ball of half the scene's radius. Both
variants use the same prior, cameras and precision.
"""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers.models import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModel

from threedgen.config import load
from threedgen.config.errors import ConfigError
from threedgen.guidance.attention.joined import multiview_unet
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights.files import Json
from threedgen.guidance.weights.meta_networks import RELEASED_UNETS, RELEASED_VAE
from threedgen.run.threads import set_threads
from threedgen.systems.generate.system import GenerateSystem, piecewise_constant
from threedgen.train.task import device

from .clock import Case, paired
from .scene import step_case
from .table import Row, Table

CONFIGS = ("mvdream-sd21", "mvdream-sd21-shading")
PLAIN, OURS = "plain torch, one pass", "as configured"
VARIANTS: dict[str, list[str]] = {
    PLAIN: ["field.encoding.backend=torch", "march.backend=torch", "march.chunk=null"],
    OURS: [],
}
TOKENS = 77
UNET, VAE = RELEASED_UNETS["sd-v2.1-base-4view.pt"], RELEASED_VAE


def table(rounds: int, size: int, overrides: list[str]) -> Table:
    """Return a row per variant for each config. `overrides` are changes of the configs, as "key=value".

    Raises ConfigError if an override is invalid, or if a config never renders at `size` pixels.
    """
    configs = {
        (name, variant): load(name, ["prompt=nothing", *overrides, *extra])
        for name in CONFIGS
        for variant, extra in VARIANTS.items()
    }
    first = configs[CONFIGS[0], OURS]
    set_threads(first.threads)
    prior = random_prior(first.prior.dtype, torch.device(device(first.trainer.accelerator)), UNET, VAE)
    rows: list[Row] = []
    for name in CONFIGS:
        cases = {variant: case(configs[name, variant], prior, size) for variant in VARIANTS}
        rows += [{"config": name} | row for row in paired(cases, PLAIN, rounds)]
    notes = [
        f"{size} x {size} pixels, {prior.device}, prior {prior.dtype}, step {first.trainer.precision}; {rounds} "
        "interleaved rounds, each from one update of the occupancy grid to the next."
    ]
    return Table(f"Steps at full size, {size} px", rows, notes)


def random_prior(dtype: str, where: torch.device, unet: Json, vae: Json, decoder: bool = False) -> MVDream:
    """Return an MVDream prior with random weights and without text encoder.

    `unet` and `vae` are arguments of UNet2DConditionModel and AutoencoderKL. `decoder` is whether to keep the decoder
    of the VAE.
    """
    with where:
        networks = (
            multiview_unet(**unet).eval().requires_grad_(False),
            AutoencoderKL(**vae).eval().requires_grad_(False),
        )
    text = CLIPTextModel(CLIPTextConfig(vocab_size=8, hidden_size=unet["cross_attention_dim"], num_hidden_layers=0))
    tokenizer: Any = SimpleNamespace(get_vocab=dict)
    prior = MVDream(*networks, text, tokenizer, dtype=dtype, device=where)
    if decoder:
        prior.text_encoder = None
    else:
        prior.free_text_encoder()
    return prior


def case(config: Any, prior: MVDream, size: int) -> Case:
    """Return a case of the first steps that render images of `size` pixels, after the warm-up of the occupancy grid.

    Raises ConfigError if the config never renders at `size` pixels.
    """
    begin = first_step(config, size)
    width = prior.unet.config["cross_attention_dim"]
    text = torch.randn(2, TOKENS, width, generator=torch.Generator().manual_seed(0))
    system = GenerateSystem(config, prior, text).to(prior.device).train()
    system.before_step(0)  # updates all cells of the occupancy grid
    return step_case(system, begin)


def first_step(config: Any, size: int) -> int:
    """Return the number of the first step that renders at `size` pixels after the warm-up of the occupancy grid.

    Raises ConfigError if the config never renders at `size` pixels.
    """
    steps = config.trainer.max_steps
    sizes = {k: int(piecewise_constant(config.size, k, steps)) for k in range(steps)}
    begin = next((step for step, pixels in sizes.items() if pixels == size), None)
    if begin is None:
        known = ", ".join(map(str, sorted(set(sizes.values()))))
        raise ConfigError(f"the config renders at {known} pixels, not at {size}", "--size")
    return begin if config.occupancy is None else max(begin, config.occupancy.warmup)
