import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.errors import refused
from tests.support.script_poses import script_poses
from tests.support.tiny_prior import TEXT_WIDTH, coarse_prior, cpu, tiny_coarse
from threedgen.guidance import object_code
from threedgen.guidance.coarse import TEXT_GUIDANCE, camera_harmonics
from threedgen.guidance.object_code import CodeSampler
from threedgen.guidance.priors import latent_diffusion
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.schedule import Schedule


@torch.no_grad()
def test_each_image_depends_on_its_own_text_camera_and_code() -> None:
    coarse, text = tiny_coarse(), torch.randn(3, 5, TEXT_WIDTH, generator=cpu())
    camera, code = camera_vector(script_poses(3)), torch.randn(3, TEXT_WIDTH, generator=cpu(1))
    whole, plain = coarse(text, camera, code), coarse(text, camera)
    assert whole.shape == (3, 4, 8, 8)
    single = torch.cat([coarse(text[i : i + 1], camera[i : i + 1], code[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, single)
    moved = (text.roll(1, 0), camera, code), (text, camera.roll(1, 0), code), (text, camera, code.roll(1, 0))
    for other in (*(coarse(*inputs) for inputs in moved), coarse(text, None, code), plain):
        assert ((other - whole).flatten(1).abs().amax(1) > 1e-3).all()
    torch.testing.assert_close(coarse(text, camera, torch.zeros_like(code)), plain, msg="zeros are no code")
    torch.testing.assert_close(*coarse(text[:1].repeat(2, 1, 1), None), msg="without a camera images are equal")


@torch.no_grad()
def test_code_is_encoded_from_views_in_any_order_and_number() -> None:
    coarse, z, camera = (tiny_coarse(), torch.randn(2, 3, 4, 8, 8, generator=cpu()), camera_vector(script_poses(6)))
    camera = camera.unflatten(0, (2, 3))
    code = coarse.encode(z, camera)
    torch.testing.assert_close(code.square().mean(1), torch.ones(2))
    torch.testing.assert_close(coarse.encode(z.flip(1), camera.flip(1)), code, atol=1e-5, rtol=1e-4)
    assert (coarse.encode(z.flip(1), camera) - code).abs().max() > 1e-3, "a view belongs to its camera"
    assert coarse.encode(z[:, :1], camera[:, :1]).shape == (2, TEXT_WIDTH)


@torch.no_grad()
def test_fitted_codes_predict_known_views_better() -> None:
    coarse, text, camera = tiny_coarse(), torch.randn(2, 5, TEXT_WIDTH, generator=cpu()), camera_vector(script_poses(6))
    coarse.code_width.weight.mul_(10)
    camera, codes = camera.unflatten(0, (2, 3)), torch.randn(2, TEXT_WIDTH, generator=cpu(1))
    z = coarse(text.repeat_interleave(3, 0), camera.flatten(0, 1), codes.repeat_interleave(3, 0)).unflatten(0, (2, 3))

    def errors(code: torch.Tensor) -> torch.Tensor:
        words, codes = (x.repeat_interleave(3, 0) for x in (text, code))
        return (coarse(words, camera.flatten(0, 1), codes).view_as(z) - z).square().flatten(1).mean(1)

    start = torch.randn(2, TEXT_WIDTH, generator=cpu(2))
    found = coarse.fit_code(start, text, z[:, :2], camera[:, :2])
    assert (errors(found) < 0.8 * errors(start)).all()
    alone = coarse.fit_code(start[1:], text[1:], z[1:, :2], camera[1:, :2])
    torch.testing.assert_close(alone, found[1:], atol=1e-4, rtol=1e-3, msg="objects are separate")
    assert torch.equal(coarse.fit_code(start, text, z, camera, steps=0), start)
    assert all(parameter.grad is None for parameter in coarse.parameters())


@torch.no_grad()
@pytest.mark.parametrize(("alpha_bar", "level"), [(1.0, 0.0), (0.5, 0.5), (0.0, 1.0), (0.75, 1 / 3)])
def test_noise_level_is_an_angle(alpha_bar: float, level: float) -> None:
    schedule = Schedule.scaled_linear()
    schedule = Schedule(schedule.betas, torch.full_like(schedule.alpha_bar, alpha_bar), schedule.prediction)
    torch.testing.assert_close(schedule.noise_level(torch.tensor([[3], [999]])), torch.full((2, 1), level))


def test_sampled_codes_follow_the_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_code, "GUIDANCE", 1.0)  # the empty prompt is not trained
    torch.manual_seed(0)
    sampler, text = CodeSampler(8, 8), torch.eye(8)[:2, None] * 3
    targets = torch.tensor([[1.0, -1.0] * 4, [1.0] * 4 + [-1.0] * 4])
    optimizer = torch.optim.Adam(sampler.parameters(), 3e-3)
    for _ in range(150):
        row, noise, t = torch.randint(2, (32,)), torch.randn(32, 8), torch.rand(32)
        velocity = sampler(torch.lerp(noise, targets[row], t[:, None]), t, sampler.encode_text(text[row]))
        optimizer.zero_grad()
        (velocity - targets[row] + noise).square().mean().backward()
        optimizer.step()
    texts, empty = text.repeat_interleave(32, 0), torch.zeros(1, 1, 8)
    samples = sampler.sample(texts, empty, torch.randn(64, 8, generator=cpu())).unflatten(0, (2, 32))
    assert (samples.mean(1) - targets).abs().max() < 0.4


@torch.no_grad()
def test_seed_chooses_one_code_for_all_views_of_a_prompt() -> None:
    prior, c2w = coarse_prior(), script_poses(2)
    text = prior.encode_prompt(["a dog", "a cat"])
    assert text.shape == (2, *prior.text_shape) and not text[:, -1].any()
    rngs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = prior.sample_code(text, rngs)
    assert torch.equal(both[:, :-1], text[:, :-1]) and both[:, -1].any(1).all()
    torch.testing.assert_close(prior.sample_code(text[1:], torch.Generator().manual_seed(2)), both[1:])
    assert (prior.sample_code(text[1:], torch.Generator().manual_seed(3)) - both[1:]).abs().max() > 1e-3
    prior.coarse.code_width.weight.mul_(10)
    first, second = (prior.sample("a dog", c2w, steps=1, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    coarse = [prior.coarse_latents(one.expand(2, -1, -1), c2w) for one in (text[:1], both[:1])]
    assert (coarse[0] - coarse[1]).abs().max() > 1e-3 and (first - second).abs().max() > 1e-3
    views = torch.randn(1, 2, *prior.latent_shape, generator=cpu())
    assert torch.equal(
        prior.encode_code(text[:1], views, c2w[None])[:, -1], prior.coarse.encode(views, camera_vector(c2w)[None])
    )


@torch.no_grad()
def test_predictions_with_a_code_are_guided_away_from_the_empty_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, c2w = coarse_prior(), script_poses(2)
    text = prior.encode_prompt(["a dog"] * 2)
    plain = prior.predict_coarse(text, c2w)
    text = prior.sample_code(text[:1], cpu()).expand(2, -1, -1)
    guided = prior.predict_coarse(text, c2w)
    empty = torch.cat([prior.encode_prompt([""])[:, :-1], text[:1, -1:]], 1).expand(2, -1, -1)
    monkeypatch.setattr(latent_diffusion, "TEXT_GUIDANCE", 0.0)
    single, other = prior.predict_coarse(text, c2w), prior.predict_coarse(empty, c2w)
    torch.testing.assert_close(guided, single + TEXT_GUIDANCE * (single - other))
    torch.testing.assert_close(prior.predict_coarse(prior.encode_prompt(["a dog"] * 2), c2w), plain, msg="no code")
    monkeypatch.undo()
    prior.free_text_encoder()
    torch.testing.assert_close(prior.predict_coarse(text, c2w), guided)


@pytest.mark.parametrize("elevation", [-30.0, 0.0, 45.0])
def test_camera_harmonics_turn_with_the_azimuth(elevation: float) -> None:
    """A quarter turn multiplies the k-th pair by i^k; the distance has no effect."""
    poses = script_poses(4, elevation)
    found = camera_harmonics(camera_vector(poses))
    numbers = torch.complex(found[:, :4], found[:, 4:8])
    turned = numbers * torch.tensor([1j, -1, -1j, 1])
    torch.testing.assert_close(turned, numbers.roll(-1, 0), atol=1e-5, rtol=0)
    poses[:, :3, 3] *= 7
    torch.testing.assert_close(camera_harmonics(camera_vector(poses)), found)


def test_samples_may_have_another_size_than_the_coarse_prediction() -> None:
    prior = coarse_prior()
    parts = prior.unet, prior.vae, prior.text_encoder, prior.tokenizer
    large = MVDream(*parts, coarse=prior.coarse, image_size=32, dtype="fp32")
    assert large.sample("a dog", script_poses(2), steps=2, generator=cpu()).shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    "options", [{"size": 6, "channels": (8, 8, 8), "blocks": (0, 1, 1)}, {"blocks": (1,)}, {"volume": (8, 8, 8)}]
)
def test_coarse_predictor_refuses_sizes_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        tiny_coarse(**options)


def test_load_refuses_changed_or_missing_coarse_predictor(tmp_path: Path) -> None:
    coarse_prior().save(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    config = tmp_path / "coarse" / "config.json"
    entries = json.loads(config.read_text())
    for change, values in (({"width": 64}, ["coarse predictor"]), ({"_class_name": "Sketch"}, ["coarse", "Sketch"])):
        config.write_text(json.dumps(entries | change))
        with refused(None, *values):
            MVDream.load(str(tmp_path))
    shutil.rmtree(tmp_path / "coarse")
    with refused(None, 4, 8):
        MVDream.load(str(tmp_path))
