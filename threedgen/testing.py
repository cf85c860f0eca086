"""Checks that a plug-in's representation, loss or prior follows its interface, and a tiny prior for tests.

    def test_mine():
        threedgen.testing.check_representation(lambda generator: Mine(MineConfig(), generator))

A failed check raises AssertionError. `threedgen.INTERFACE_VERSION` is the version of the interfaces.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast

from threedgen.geometry.cameras import Cameras
from threedgen.geometry.rigs import orbit
from threedgen.guidance.attention.joined import multiview_unet
from threedgen.guidance.guidance import Condition
from threedgen.guidance.losses.sds import Distillation, RenderedViews
from threedgen.guidance.prior import Prior
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.representations.base import Render, Representation
from threedgen.representations.field.background import SolidBackground
from threedgen.representations.shading import Material
from threedgen.representations.volume.options import MarchConfig
from threedgen.representations.volume.render import render
from threedgen.run.disk import Tree

SIZE, N_VIEW = 16, 2  # height and width of the test images in pixels, and number of test cameras


def orbit_cameras(count: int) -> Cameras:
    return orbit(count, 0.3, 2.6, math.radians(40), SIZE, SIZE)


CAMERAS = orbit_cameras(N_VIEW)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_representation(
    build: Callable[[torch.Generator], Representation], steps: int = 6, radius: float = 1.0
) -> None:
    """Assert that a representation (a trainable 3D object) fulfils its interface, by rendering and training it.

    The function checks parameter groups, renders, gradients and regularisers, and that a resumed training gives the
    same parameters as a training without a stop.

    Args:
        build: function that creates the representation from a CPU generator. Equal seeds must give equal parameters.
        steps: number of training steps; the training is resumed after half of them. Use a few steps more than the
            interval at which the representation adds or removes parameters.
        radius: half the side of the representation's cube, world units.
    """
    field = build(seeded(0))
    assert_equal_states(field, build(seeded(0)), "two representations with the same seed")
    grouped = [id(p) for group in field.parameter_groups() for p in group.parameters]
    assert sorted(grouped) == sorted(map(id, field.parameters())), "parameter_groups() must hold every parameter once"
    result = render_views(field, radius, seeded(0))
    for name, channels in (("rgb", 3), ("rgb_fg", 3), ("background", 3), ("opacity", 1), ("depth", 1)):
        values = getattr(result, name)
        assert values.shape == (N_VIEW * SIZE * SIZE, channels), f"Render.{name} has the shape {tuple(values.shape)}"
        assert values.isfinite().all(), f"Render.{name} is not finite"
    assert result.opacity.min() >= 0 and result.opacity.max() <= 1 + 1e-4, "Render.opacity must be in [0, 1]"
    assert result.opacity.max() > 0.01, "the initial object is invisible"
    (result.rgb.square().mean() + result.opacity.mean()).backward()
    for group in field.parameter_groups():
        gradients = [p.grad for p in group.parameters if p.grad is not None]
        assert any(g.abs().sum() > 0 for g in gradients), f"no gradient reaches the group {group.name}"
    for name, loss in field.regularisers().items():
        value = loss(render_views(field, radius, seeded(0)))
        assert value.ndim == 0 and value.isfinite(), f"the loss {name} must be a finite scalar"
    whole, half = build(seeded(0)), build(seeded(0))
    train(whole, optimizer_of(whole), range(steps), steps, radius)
    optimizer = optimizer_of(half)
    train(half, optimizer, range(steps // 2), steps, radius)
    resumed, state = build(seeded(1)), half.state_dict()
    resumed.resize(state)
    resumed.load_state_dict(state)
    restored = optimizer_of(resumed)
    restored.load_state_dict(optimizer.state_dict())
    train(resumed, restored, range(steps // 2, steps), steps, radius)
    assert_equal_states(whole, resumed, "a resumed training and one without a stop")


def optimizer_of(field: Representation) -> torch.optim.Optimizer:
    return torch.optim.Adam([{"params": group.parameters} for group in field.parameter_groups()], lr=0.01)


def train(field: Representation, optimizer: torch.optim.Optimizer, steps: range, max_steps: int, radius: float) -> None:
    """Train a representation so that its renders from the test cameras match random colours.

    The test cameras have 2 views of 16 x 16 pixels. `steps` are the indices of the training steps, in a run of
    `max_steps` steps. `radius` is half the side of the representation's cube, in world units.
    """
    target = torch.rand(N_VIEW * SIZE * SIZE, 3, generator=seeded(7))
    for step in steps:
        field.before_step(step, max_steps)
        optimizer.zero_grad(set_to_none=True)
        result = render_views(field, radius, seeded(step))
        ((result.rgb - target).square().mean() + 0.1 * result.opacity.mean()).backward()
        optimizer.step()
        field.after_step(step, optimizer)


def render_views(field: Representation, radius: float, generator: torch.Generator) -> Render:
    """Render a representation from the test cameras, 2 views of 16 x 16 pixels, in training mode.

    The result has one row for each of the 512 pixels, such as `rgb` (512, 3). `generator` is the CPU generator of the
    random numbers of the render. `radius` is half the side of the representation's cube, in world units.
    """
    background, material = SolidBackground(), Material()
    if field.rasterised:
        return field.render(CAMERAS, background, material, generator=generator, training=True)
    origins, directions = (rays.reshape(-1, 3) for rays in CAMERAS.rays())
    march = MarchConfig(samples=32, radius=radius, chunk=None)
    parts = (field, background, material, None, march, origins, directions)
    return render(*parts, generator=generator, training=True, light=origins)


def assert_equal_states(one: torch.nn.Module, other: torch.nn.Module, what: str) -> None:
    """Assert that two modules have bit-identical state dicts. `what` names the two modules in the error message."""
    a, b = one.state_dict(), other.state_dict()
    different = [name for name in a if name not in b or not torch.equal(a[name], b[name])]
    assert a.keys() == b.keys() and not different, f"{what} differ: {', '.join(different) or 'names'}"


def check_distillation(
    build: Callable[[Prior, torch.Generator], Distillation],
    prior: Prior | None = None,
    step: int = 3,
    n_view: int = N_VIEW,
) -> None:
    """Assert that a distillation loss is a finite scalar, is equal for equal seeds, and has gradients.

    Gradients must reach the images, and the trained parameters of the loss, if any.

    Args:
        build: function that creates the loss from a prior and a CPU generator for the initial parameters of the loss.
        prior: prior of the loss; None: the prior from `tiny_prior`.
        step: training step at which the loss is evaluated.
        n_view: number of images, the views of one object.
    """
    prior, cameras = prior or tiny_prior(), orbit_cameras(n_view)
    loss = build(prior, seeded(0))
    loss.prompt = "a red dog"
    text = prior.encode_prompt([loss.prompt, ""])
    camera = prior.camera(cameras.c2w)
    group = 1 if camera is None else n_view
    condition = Condition((text[:1], text[1:]), camera, group, plain_text=text[:1], c2w=cameras.c2w)

    def evaluate() -> tuple[Tensor, Tensor]:
        images = torch.rand(n_view, SIZE, SIZE, 3, generator=seeded(1)).requires_grad_()
        ones = torch.ones(n_view, SIZE, SIZE, 1)
        views = RenderedViews(images, ones, 2 * ones, images, cameras)
        latents = prior.encode_images(images, seeded(2))
        value, metrics = loss(latents, prior.denoise, condition, step, seeded(3), views)
        assert value.ndim == 0 and value.isfinite(), "the loss must be a finite scalar"
        assert all(math.isfinite(float(number)) for number in metrics.values()), "the metrics must be finite numbers"
        value.backward()
        assert images.grad is not None and images.grad.abs().sum() > 0, "no gradient reaches the images"
        return value.detach(), images.grad

    values = evaluate()
    parameters = [p for p in loss.parameters() if p.requires_grad]
    reached = [p for p in parameters if p.grad is not None]
    assert bool(reached) == bool(parameters), "no gradient reaches the loss's own parameters"
    for one, other in zip(values, evaluate(), strict=True):
        assert torch.equal(one, other), "equal generators must give equal losses and gradients"


def check_prior(prior: Prior, n_view: int = N_VIEW) -> None:
    """Assert that a prior fulfils its interface.

    Prompt embeddings, latents, decoded images and noise predictions must have the shapes that the prior states.
    Gradients must pass through the image encoder, and equal seeds must give equal samples. `n_view` is the number of
    images, the views of one object.
    """
    cameras = orbit_cameras(n_view)
    text, size = prior.encode_prompt(["a red dog", ""]), prior.image_size
    assert text.shape == (2, *prior.text_shape), f"encode_prompt() has the shape {tuple(text.shape)}"
    images = torch.rand(n_view, SIZE, SIZE, 3, generator=seeded(0)).requires_grad_()
    latents = prior.encode_images(images, seeded(0))
    assert latents.shape == (n_view, *prior.latent_shape), f"encode_images() has the shape {tuple(latents.shape)}"
    (gradient,) = torch.autograd.grad(latents.square().mean(), images)
    assert gradient.abs().sum() > 0, "no gradient passes through encode_images()"
    decoded = prior.decode_latents(latents.detach())
    assert decoded.shape == (n_view, size, size, 3), f"decode_latents() has the shape {tuple(decoded.shape)}"
    assert decoded.min() >= 0 and decoded.max() <= 1, "decode_latents() must be in [0, 1]"
    camera = prior.camera(cameras.c2w)
    group, t = 1 if camera is None else n_view, torch.full((n_view,), prior.schedule.T // 2)
    with torch.no_grad():
        eps = prior.denoise(latents, t, text[:1].expand(n_view, -1, -1), camera, group)
    assert eps.shape == latents.shape and eps.dtype == torch.float32, "denoise() must be float32 and like the latents"
    options: Tree = {"steps": 2, "guidance_scale": 2.0}
    c2w = None if camera is None else cameras.c2w
    one, other = (prior.sample("a red dog", c2w, generator=seeded(4), **options) for _ in range(2))
    assert one.shape == (group, size, size, 3) and torch.equal(one, other), "equal generators must give equal samples"


# --- tiny prior: random weights; a training step takes milliseconds on a CPU

WORDS = "a the red blue green dog cat car house hat with wearing on of and 3d asset".split()
TEXT_WIDTH = 24


def tiny_unet(**config: Any) -> UNet2DConditionModel:
    """Build a UNet with random weights for 8 x 8 latents. `config` overrides arguments of UNet2DConditionModel."""
    torch.manual_seed(1)
    default = {
        "sample_size": 8,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_WIDTH,
        "use_linear_projection": True,
    }
    return multiview_unet(**(default | config)).eval()


def tiny_vae(**config: Any) -> AutoencoderKL:
    """Build a VAE with random weights, whose latents have half the image size in each dimension.

    `config` overrides arguments of AutoencoderKL.
    """
    torch.manual_seed(2)
    default = {
        "block_out_channels": (32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "sample_size": 16,
    }
    return AutoencoderKL(**(default | config)).eval()


def tiny_text_encoder(vocab: int = 40, **config: Any) -> CLIPTextModel:
    """Build a CLIP text encoder with random weights for a vocabulary of `vocab` tokens.

    `config` overrides arguments of CLIPTextConfig.
    """
    torch.manual_seed(3)
    default = {
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": 2,
        "eos_token_id": 3,
        "pad_token_id": 0,
    }
    return CLIPTextModel(CLIPTextConfig(vocab_size=vocab, **(default | config))).eval()


def word_tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    """Build a tokenizer whose vocabulary is whole words and four special tokens: padding, unknown word, start and end.

    `words` are the words; None: those of the prompts of the tests, such as "red" and "dog".
    """
    special = ["<pad>", "<unk>", "<start>", "<end>"]
    vocab = {word: i for i, word in enumerate(special + (words or WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 2), ("<end>", 3)]
    )
    names = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<start>", "eos_token": "<end>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=16, **names)


def tiny_prior(**unet: Any) -> MVDream:
    """Build an MVDream prior with random weights for 16 x 16 images. `unet` overrides arguments of its UNet."""
    return MVDream(tiny_unet(**unet), tiny_vae(), tiny_text_encoder(), word_tokenizer(), dtype="fp32")
