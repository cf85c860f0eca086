from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support import tiny_mvdiffusion
from tests.support.errors import refused
from tests.support.parity_files import recorded, tensors
from tests.support.script_poses import script_poses
from tests.support.tiny_mvadapter import adapted_model
from tests.support.tiny_prior import cpu, output, tiny_prior
from threedgen.config import load
from threedgen.config import optional as extras
from threedgen.geometry.poses import opengl_to_blender
from threedgen.guidance.priors import mvdream
from threedgen.guidance.priors.mvdiffusion.unet import MultiviewUNet
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.priors.options import MVDreamConfig
from threedgen.guidance.schedule import Schedule


@pytest.fixture(scope="module")
def prior() -> MVDream:
    return tiny_prior()


@recorded("camera", "cfg0", "cam0", "c2w_in")
def test_camera_vectors_match_recording(path: Path) -> None:
    arrays = tensors(path)
    for name in (n for n in arrays if n.startswith("cfg")):
        n, elevation, start, span, blender = arrays[name].tolist()
        found = camera_vector(script_poses(int(n), elevation, start, span, bool(blender)))
        torch.testing.assert_close(found, arrays[name.replace("cfg", "cam")], rtol=0, atol=1e-6)
    c2w, before = arrays["c2w_in"], arrays["c2w_in"].clone()
    torch.testing.assert_close(opengl_to_blender(c2w), arrays["opengl_to_blender"], rtol=0, atol=1e-6)
    torch.testing.assert_close(camera_vector(c2w), arrays["normalized16"], rtol=0, atol=1e-6)
    assert torch.equal(c2w, before)
    assert torch.equal(camera_vector(torch.eye(4)[None]).view(4, 4), torch.eye(4)), "at the origin"


def test_views_are_not_sampled_with_weights_of_a_2d_model() -> None:
    MVDreamConfig(weights="toybox-prior").check_sampling()
    MVDreamConfig(weights="toybox-base").check()  # train-own-prior adds a camera branch
    with refused("prior.weights", "toybox-base", "prior.name=stable-diffusion"):
        load("mvdream-toybox", ["prompt=a dog", "prior.weights=toybox-base"]).check()


@torch.no_grad()
def test_decode_latents_returns_clamped_vae_output(prior: MVDream) -> None:
    z = torch.randn(2, 4, 8, 8, generator=cpu())
    image = prior.decode_latents(z)
    assert image.shape == (2, 16, 16, 3) and image.min() >= 0 and image.max() <= 1
    raw = prior.vae.decode(z / 0.18215).sample.permute(0, 2, 3, 1)
    torch.testing.assert_close(image, ((raw + 1) / 2).clamp(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(prior.decode_latents(z), image)


def test_xformers_needs_cuda_and_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    options = MVDreamConfig(attention="xformers")
    with refused("attention", "xformers", "cpu", "sdpa"):
        mvdream.build(options, "cpu")
    monkeypatch.setattr(extras, "installed", lambda module: False)
    with refused(None, "attention", "xformers", "pip install -e"):
        options.check()


@torch.no_grad()
def test_denoise_converts_v_prediction_to_noise(prior: MVDream) -> None:
    schedule = Schedule.scaled_linear(prediction="v_prediction")
    parts = (prior.unet, prior.vae, prior.text_encoder, prior.tokenizer)
    other = MVDream(*parts, schedule, dtype="fp32")
    x, a = torch.randn(4, 4, 8, 8, generator=cpu()), schedule.alpha_bar[500]  # as `output` draws it
    torch.testing.assert_close(output(other), a.sqrt() * output(prior) + (1 - a).sqrt() * x, rtol=1e-4, atol=1e-5)


def guided(name: str) -> tuple[Any, Any]:
    """Return a model and how it samples for a prompt that is empty."""
    if name == "mvdiffusion":
        views = tiny_mvdiffusion.tiny_model()
        views = views.with_network(tiny_mvdiffusion.awaken(MultiviewUNet(views.unet)))
        return views, partial(views.sample_views, [""] * 8, tiny_mvdiffusion.ring(8, 16), (16, 16))
    model = adapted_model()
    return model, partial(model.sample_views, "", model.camera(script_poses(3)))


@pytest.mark.parametrize("name", ["mvadapter", "mvdiffusion"])
def test_guide_views_guides_towards_other_views(name: str) -> None:
    """The prompt equals the negative prompt, so only guidance towards the views is left."""
    model, sample = guided(name)

    def sampled(guide_views: bool, guidance_scale: float) -> Tensor:
        model.guide_views = guide_views
        return sample(steps=2, guidance_scale=guidance_scale, negative_prompt="", generator=cpu())

    torch.testing.assert_close(sampled(True, 1), sampled(False, 1))
    torch.testing.assert_close(sampled(False, 3), sampled(False, 1), atol=1e-4, rtol=0)
    assert (sampled(True, 3) - sampled(True, 1)).abs().max() > 1e-3
