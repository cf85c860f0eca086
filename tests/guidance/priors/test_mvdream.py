"""The multi-view prior as one object: prompts, images, noise, sampling, files, cameras."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from tests.support.parity_files import recorded, tensors
from tests.support.script_poses import script_poses
from tests.support.tiny_prior import TEXT_WIDTH, coarse_prior, cpu, output, tiny_prior
from threedgen.config import ConfigError
from threedgen.config import optional as extras
from threedgen.geometry.poses import opengl_to_blender
from threedgen.guidance.options import MVDreamConfig
from threedgen.guidance.priors import mvdream
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.schedule import Schedule
from threedgen.run import dtypes as precision


@pytest.fixture(scope="module")
def prior() -> MVDream:
    return tiny_prior()


# ---------------------------------------------------------------- cameras


@recorded("camera", "cfg0", "cam0", "c2w_in")
def test_cameras_match_the_reference(path: Path) -> None:
    arrays = tensors(path)
    for name in (n for n in arrays if n.startswith("cfg")):
        n, elevation, start, span, blender = arrays[name].tolist()
        found = camera_vector(script_poses(int(n), elevation, start, span, bool(blender)))
        torch.testing.assert_close(found, arrays[name.replace("cfg", "cam")], rtol=0, atol=1e-6)
    c2w, before = arrays["c2w_in"], arrays["c2w_in"].clone()
    torch.testing.assert_close(opengl_to_blender(c2w), arrays["opengl_to_blender"], rtol=0, atol=1e-6)
    torch.testing.assert_close(camera_vector(c2w), arrays["normalized16"], rtol=0, atol=1e-6)
    assert torch.equal(c2w, before)


def test_camera_vector_knows_directions_only() -> None:
    c2w = torch.eye(4).repeat(3, 1, 1)
    c2w[:, :3, 3] = torch.tensor([[3.0, 0, 4], [0.3, 0, 0.4], [0, 0, 0]])
    found = camera_vector(c2w).view(3, 4, 4)
    assert torch.allclose(found[0], found[1])
    assert torch.allclose(found[0, :3, 3], torch.tensor([0.6, 0, 0.8]))
    assert torch.equal(found[2], torch.eye(4))  # a camera at the origin stays there, without NaN
    assert torch.equal(found[:, :3, :3], c2w[:, :3, :3])


# ---------------------------------------------------------------- prompts


def test_prompts_are_encoded_to_a_fixed_length(prior: MVDream) -> None:
    text = prior.encode_prompt(["a red dog", ""])
    assert text.shape == (2, 16, TEXT_WIDTH) and not text.requires_grad
    torch.testing.assert_close(text[:1], prior.encode_prompt(["A  red dog"]))
    assert (text[0] - prior.encode_prompt(["a blue dog"])[0]).abs().max() > 1e-3


def test_words_cut_off_are_named(prior: MVDream, caplog: pytest.LogCaptureFixture) -> None:
    fits = " ".join(["red"] * 14)  # 16 tokens with start and end
    assert prior.tokens_cut(fits) == "" and prior.tokens_cut("") == ""
    assert prior.tokens_cut(fits + " blue Dog") == "blue Dog"
    with caplog.at_level("INFO", logger="threedgen"):
        text = prior.encode_prompt([fits])
        assert not caplog.records
        torch.testing.assert_close(text, prior.encode_prompt([fits + " blue Dog"]))
    assert "these words have no effect: 'blue Dog'" in caplog.text
    assert prior.unknown_words("a red dgo")[0][0] == "dgo"


# ---------------------------------------------------------------- images


def test_images_become_posterior_samples(prior: MVDream) -> None:
    rgb = torch.rand(2, 16, 16, 3, generator=cpu())
    with torch.no_grad():
        z = prior.encode_images(rgb, cpu(1))
        posterior = prior.vae.encode(rgb.permute(0, 3, 1, 2) * 2 - 1).latent_dist
        noise = torch.randn(2, 4, 8, 8, generator=cpu(1))
        expected = 0.18215 * (posterior.mean + posterior.std * noise)
        torch.testing.assert_close(z, expected)
        assert torch.equal(z, prior.encode_images(rgb, cpu(1)))
        assert not torch.equal(z, prior.encode_images(rgb, cpu(2)))


def test_gradients_reach_the_picture_through_the_resize(prior: MVDream) -> None:
    rgb = torch.rand(1, 10, 12, 3, generator=cpu()).requires_grad_()
    z = prior.encode_images(rgb, cpu())
    assert z.shape == (1, 4, 8, 8)
    z.square().sum().backward()
    assert rgb.grad is not None and (rgb.grad != 0).all()


@torch.no_grad()
def test_latents_become_images(prior: MVDream) -> None:
    z = torch.randn(2, 4, 8, 8, generator=cpu())
    image = prior.decode_latents(z)
    assert image.shape == (2, 16, 16, 3) and image.min() >= 0 and image.max() <= 1
    raw = prior.vae.decode(z / 0.18215).sample.permute(0, 2, 3, 1)
    torch.testing.assert_close(image, ((raw + 1) / 2).clamp(0, 1))


def test_what_distillation_does_not_need_is_given_up() -> None:
    whole, part = tiny_prior(), tiny_prior()
    size = sum(p.numel() for network in part.networks.values() for p in network.parameters())
    gone = sum(p.numel() for p in [*part.text_encoder.parameters(), *part.vae.decoder.parameters()])
    gone += sum(p.numel() for p in part.vae.post_quant_conv.parameters())
    text, rgb = whole.encode_prompt(["a red dog"]).repeat(4, 1, 1), torch.rand(4, 16, 16, 3, generator=cpu())
    part.release()
    left = sum(p.numel() for network in part.to("cpu").networks.values() for p in network.parameters())
    assert left == size - gone and set(part.networks) == {"unet", "vae"}
    x, t = torch.randn(4, 4, 8, 8, generator=cpu()), torch.full((4,), 500)
    camera = camera_vector(script_poses(4))
    found, wanted = ([prior.encode_images(rgb, cpu()), prior.denoise(x, t, text, camera, 4)] for prior in (part, whole))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_xformers_is_asked_for_only_where_it_can_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    options = MVDreamConfig(attention="xformers")
    with pytest.raises(ConfigError, match="attention: 'xformers' computes on a CUDA device, not on cpu"):
        mvdream.build(options, "cpu")
    monkeypatch.setattr(extras, "installed", lambda module: False)
    with pytest.raises(ConfigError, match=r"attention: xformers needs the package xformers: pip install -e '.\["):
        options.check()


# ---------------------------------------------------------------- noise and samples


@torch.no_grad()
def test_v_prediction_is_turned_into_noise(prior: MVDream) -> None:
    schedule = Schedule.scaled_linear(prediction="v_prediction")
    parts = (prior.unet, prior.vae, prior.text_encoder, prior.tokenizer)
    other = MVDream(*parts, schedule, dtype="fp32")
    x, a = torch.randn(4, 4, 8, 8, generator=cpu()), schedule.alpha_bar[500]  # as `output` draws it
    torch.testing.assert_close(output(other), a.sqrt() * output(prior) + (1 - a).sqrt() * x, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_half_precision_is_close_and_returns_float32(prior: MVDream) -> None:
    rough = MVDream(prior.unet, prior.vae, prior.text_encoder, prior.tokenizer, dtype="bf16")
    assert rough.dtype == torch.bfloat16 and prior.dtype == torch.float32
    found, exact = output(rough), output(prior)
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert (found - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize(("fast", "name"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_does_not_emulate_fp16_and_that_is_said_once(
    fast: bool, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, prior: MVDream
) -> None:
    monkeypatch.setattr(precision, "bf16_cpu", lambda: fast)
    precision._say_once.cache_clear()
    half = MVDream(prior.unet, prior.vae, prior.text_encoder, prior.tokenizer, dtype="fp16").to("cpu")
    assert half.dtype == precision.DTYPES[name]
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"dtype fp16 would be emulated on a CPU, so it computes in {name}"]


def test_sampling_is_repeatable_and_follows_prompt_and_cameras(prior: MVDream) -> None:
    poses = script_poses(4)

    def draw(prompt: str = "a red dog", c2w: Tensor | None = poses, seed: int = 0, **options: Any) -> Tensor:
        return prior.sample(prompt, c2w, steps=3, generator=cpu(seed), **options)

    first, global_state = draw(), torch.get_rng_state()
    assert first.shape == (4, 16, 16, 3) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, draw()) and torch.equal(torch.get_rng_state(), global_state)
    far = poses.clone()
    far[:, :3, 3] *= 2  # distance is not a condition
    assert torch.equal(first, draw(c2w=far))
    others = [draw("a blue cat"), draw(seed=1), draw(c2w=poses.roll(1, 0)), draw(negative_prompt="a hat")]
    others.append(draw(guidance_scale=2.0))
    assert all((first - other).abs().max() > 1e-6 for other in others)
    assert draw(c2w=None).shape == (1, 16, 16, 3)
    assert torch.equal(poses, script_poses(4))


def test_samples_begin_from_what_the_prior_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, poses = coarse_prior(), script_poses(4)
    monkeypatch.setattr(prior, "decode_latents", lambda z: z)  # its pictures would enlarge small differences
    text = prior.encode_prompt(["a red dog"]).expand(4, -1, -1)
    guess = prior.guess(text, poses)
    assert guess is not None and guess.shape == (4, *prior.latent_shape)

    def error(noise: float) -> float:
        drawn = prior.sample("a red dog", poses, steps=1, guidance_scale=1, generator=cpu(), guess_noise=noise)
        return float((drawn - guess).abs().mean())

    assert error(0.001) < 0.2 * error(1.0)
    assert tiny_prior().guess(text, poses) is None
    assert prior.guess(text, None) is None, "a mean over all cameras is no picture"


def test_sampling_is_the_published_ddim(prior: MVDream) -> None:
    """Against diffusers' own scheduler and the guidance formula written out."""
    found = prior.sample("a red dog", script_poses(4), steps=5, guidance_scale=4, generator=cpu())
    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    scheduler.set_timesteps(5)
    cond, uncond = (prior.encode_prompt([p]).repeat(4, 1, 1) for p in ("a red dog", ""))
    x = torch.randn(4, 4, 8, 8, generator=cpu())
    with torch.no_grad():
        for t in scheduler.timesteps:
            c, u = (prior.denoise(x, t, text, camera_vector(script_poses(4)), 4) for text in (cond, uncond))
            x = scheduler.step(u + 4 * (c - u), t, x).prev_sample
        torch.testing.assert_close(found, prior.decode_latents(x), rtol=0, atol=1e-4)
