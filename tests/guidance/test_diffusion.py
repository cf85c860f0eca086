"""Schedules, parameterisations, guidance and DDIM: recorded reference values, inverses, known answers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.models.embeddings import get_timestep_embedding
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.parity_files import close, parity_files, tensors
from threedgen.guidance.diffusion import (
    Conditions,
    Negatives,
    Reference,
    branches,
    combine,
    ddim_alphas,
    ddim_redraw,
    ddim_sample,
    ddim_sigma,
    ddim_step,
    ddim_timesteps,
    fresh_noise,
    guided,
    per_image,
    predict,
)
from threedgen.guidance.schedule import Schedule

FIXED = settings(derandomize=True, deadline=None, max_examples=40)
SD = Schedule.scaled_linear()


@pytest.fixture(params=parity_files("schedule_ddim_"), ids=lambda path: path.stem)
def recorded(request) -> dict[str, Tensor]:
    return tensors(request.param)


def test_parity_tables(recorded):
    close(SD.betas, recorded["betas"], 1e-5)
    close(SD.alpha_bar, recorded["alphas_cumprod"], 1e-5)
    close(SD.alpha_bar.double().rsqrt(), recorded["sqrt_recip_alphas_cumprod"].double(), 1e-5)


def test_parity_ddim_tables(recorded):
    steps, eta = int(recorded["S"]), float(recorded["eta"])
    timesteps = ddim_timesteps(steps, compat=True)
    assert torch.equal(timesteps, recorded["ddim_timesteps"])
    a, a_prev = ddim_alphas(SD, timesteps)
    close(a, recorded["ddim_alphas"], 1e-5)
    close(a_prev, recorded["ddim_alphas_prev"], 1e-5)
    close(ddim_sigma(a, a_prev, eta), recorded["ddim_sigmas"], 1e-5)


def test_parity_one_step(recorded):
    r = recorded
    a, a_prev = ddim_alphas(SD, ddim_timesteps(int(r["S"]), compat=True))
    i = int(r["index"])
    eps = combine(r["eps_cond"], r["eps_uncond"], float(r["scale"]))
    x_prev, x0 = ddim_step(r["x"], eps, a[i], a_prev[i], float(r["eta"]), r["step_noise"])
    close(x_prev, r["x_prev"], 1e-5)
    close(x0, r["pred_x0"], 1e-5)


def test_parity_forward_process(recorded):
    r = recorded
    close(SD.add_noise(r["x"], r["q_noise"], r["q_t"]), r["q_sample"], 1e-5)
    close(SD.x0_from_eps(r["x"], r["q_noise"], r["q_t"]), r["x0_from_eps"], 1e-5)


def test_the_compatible_grid_never_leaves_the_table() -> None:
    """A step for each t: the last one, T + 1, would be one too many."""
    grid = ddim_timesteps(1000, compat=True)
    assert len(grid) == 1000 and int(grid[-1]) == int(grid[-2]) == 999 and int(grid[0]) == 1


def test_each_generator_draws_its_share_of_the_noise() -> None:
    like = torch.zeros(4, 2, 3, dtype=torch.float64)
    both = fresh_noise(like, [torch.Generator().manual_seed(k) for k in (1, 2)])
    apart = [fresh_noise(like[:2], torch.Generator().manual_seed(k)) for k in (1, 2)]
    assert torch.equal(both, torch.cat(apart)) and both.dtype == torch.float64
    with pytest.raises(ValueError, match="4 images cannot be shared by 3 generators evenly"):
        fresh_noise(like, [torch.Generator()] * 3)


def test_parity_timestep_features_are_those_of_stock_diffusers(recorded):
    width = recorded["temb32"].shape[1]
    got = get_timestep_embedding(recorded["temb_t"], width, flip_sin_to_cos=True, downscale_freq_shift=0)
    close(got, recorded["temb32"], 1e-5)


def test_parity_loop(recorded):
    r = recorded
    if "loop_out" not in r:
        pytest.skip("this file has no loop")

    def fake(x, t, text, camera, n_view):
        wave = torch.sin(t.float() / 100)[:, None, None, None]
        return torch.einsum("oc,bchw->bohw", r["loop_W"], x) + text.reshape(-1, 1, 1, 1) * wave

    text = (torch.full((1, 1, 1), 0.2), torch.full((1, 1, 1), 0.1))
    denoise = guided(fake, float(r["scale"]))
    got = ddim_sample(denoise, r["loop_xT"], text, None, 4, SD, int(r["S"]), float(r["eta"]), compat=True)
    close(got, r["loop_out"], 1e-4)


@pytest.mark.parametrize(
    "ours, name, start, end",
    [
        (Schedule.scaled_linear(), "scaled_linear", 0.00085, 0.012),
        (Schedule.linear(), "linear", 1e-4, 0.02),
        (Schedule.cosine(), "squaredcos_cap_v2", 1e-4, 0.02),
    ],
)
def test_schedules_agree_with_diffusers(ours, name, start, end):
    theirs = DDPMScheduler(beta_schedule=name, beta_start=start, beta_end=end)
    close(ours.alpha_bar, theirs.alphas_cumprod, 2e-5)
    assert torch.equal(Schedule.from_diffusers(theirs.config).alpha_bar, ours.alpha_bar)


def test_sampling_agrees_with_diffusers_when_steps_divide_the_table():
    theirs = DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    theirs.set_timesteps(20)
    x = x_T = torch.randn(2, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    for t in theirs.timesteps:
        x = theirs.step(0.3 * x.tanh(), t, x).prev_sample
    got = ddim_sample(lambda x, *_: 0.3 * x.tanh(), x_T, None, None, 1, SD, 20)
    close(got, x, 1e-5)


@FIXED
@given(st.integers(0, 999), st.sampled_from(["scaled_linear", "linear", "cosine"]), st.integers(0, 99))
def test_parameterisations_are_inverses(t, name, seed):
    schedule = getattr(Schedule, name)(prediction="v_prediction")
    x0, noise = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = schedule.add_noise(x0, noise, t)
    v = schedule.target(x0, noise, t)
    alpha, _ = schedule.alpha_sigma(t, x)
    # float32 tables leave an error of 1e-7, which a division by a small alpha enlarges.
    torch.testing.assert_close(schedule.eps_from_output(x, v, t), noise, atol=1e-5, rtol=0)
    torch.testing.assert_close(schedule.x0_from_eps(x, noise, t), x0, atol=1e-6 / float(alpha), rtol=0)


def test_prediction_decides_target_and_reading():
    x0, noise = torch.randn(2, 2, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    t = torch.tensor([10, 700])
    for prediction in ("epsilon", "v_prediction"):
        schedule = Schedule.scaled_linear(prediction=prediction)
        x = schedule.add_noise(x0, noise, t)
        close(schedule.eps_from_output(x, schedule.target(x0, noise, t), t), noise, 1e-5)
    assert not torch.allclose(schedule.target(x0, noise, t), noise, atol=0.1)


def test_each_image_gets_its_own_t():
    x0, noise = torch.zeros(2, 1, 1, 1), torch.ones(2, 1, 1, 1)
    got = SD.add_noise(x0, noise, torch.tensor([0, 999])).flatten()
    assert got[0] == pytest.approx((1 - 0.99915) ** 0.5, rel=1e-3)
    assert got[1] == pytest.approx((1 - 0.0046600983) ** 0.5, rel=1e-5)


@FIXED
@given(st.integers(1, 1000), st.integers(1, 1000))
def test_exactly_the_steps_asked_for(a, b):
    steps, T = sorted((a, b))
    got = ddim_timesteps(steps, T)
    assert len(got) == steps
    assert got[0] >= 0 and got[-1] < T
    assert steps == 1 or int(got.diff().min()) > 0
    if T % steps == 0 and steps < T:
        assert torch.equal(got, ddim_timesteps(steps, T, compat=True))


def test_compat_keeps_the_extra_step_only_when_asked():
    assert len(ddim_timesteps(30)) == 30
    compat = ddim_timesteps(30, compat=True)
    assert len(compat) == 31 and int(compat[-1]) == 991


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_impossible_step_counts_are_named(steps):
    with pytest.raises(ValueError, match=f"steps = {steps} .*1 to 1000"):
        ddim_timesteps(steps)


def gaussian_denoiser(std: float):
    """The exact eps for data ~ N(0, std^2)."""

    def denoise(x, t, text, camera, n_view):
        a = SD.alpha_bar[t].reshape(-1, 1, 1, 1)
        return (1 - a).sqrt() * x / (a * std**2 + 1 - a)

    return denoise


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("std", [0.5, 2.0])
def test_sampling_a_known_gaussian_gives_its_spread(eta, std):
    generator = torch.Generator().manual_seed(0)
    # The start must have the true spread at the last t, or the error stays to the end.
    a_T = float(SD.alpha_bar[ddim_timesteps(250)[-1]])
    x_T = torch.randn(64, 4, 8, 8, generator=generator) * (a_T * std**2 + 1 - a_T) ** 0.5
    x = ddim_sample(gaussian_denoiser(std), x_T, None, None, 1, SD, 250, eta, generator)
    assert float(x.std()) == pytest.approx(std, rel=0.05)


def test_noise_of_a_step_comes_from_the_generator():
    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        x_T = torch.ones(1, 1, 2, 2)
        return ddim_sample(gaussian_denoiser(1.0), x_T, None, None, 1, SD, 5, 1.0, generator)

    assert torch.equal(run(3), run(3))
    assert not torch.equal(run(3), run(4))


def test_a_noisy_step_without_noise_is_refused():
    with pytest.raises(ValueError, match="eta = 1"):
        ddim_step(torch.zeros(1), torch.zeros(1), torch.tensor(0.5), torch.tensor(0.6), eta=1)


def recorder(calls: list):
    def denoise(x, t, text, camera, n_view):
        calls.append((x, t, text, camera, n_view))
        return text.mean(dim=(1, 2))[:, None, None, None].expand_as(x)

    return denoise


def test_guidance_is_one_call_with_the_conditional_half_first():
    calls: list = []
    x, camera = torch.randn(4, 2, 3, 3), torch.randn(4, 16)
    cond, uncond = torch.full((1, 5, 6), 3.0), torch.full((1, 5, 6), 1.0)
    got = guided(recorder(calls), 10.0)(x, torch.tensor(7), (cond, uncond), camera, 4)
    [(xs, ts, texts, cameras, n_view)] = calls
    assert torch.equal(xs, torch.cat([x, x])) and torch.equal(cameras, torch.cat([camera, camera]))
    assert texts[:4].eq(3).all() and texts[4:].eq(1).all() and texts.shape == (8, 5, 6)
    assert ts.shape == (8,) and ts.eq(7).all() and n_view == 4
    torch.testing.assert_close(got, torch.full_like(x, 1 + 10 * (3 - 1)))


def test_scale_one_asks_only_for_the_conditional_half():
    calls: list = []
    x, text = torch.randn(2, 1, 2, 2), (torch.full((1, 1, 1), 3.0), torch.zeros(1, 1, 1))
    got = guided(recorder(calls), 1.0)(x, torch.tensor([1, 2]), text, None, 1)
    assert len(calls) == 1 and len(calls[0][0]) == 2 and calls[0][3] is None
    assert got.eq(3).all()


def test_branches_come_back_in_order_and_in_float32():
    half = torch.zeros(1, 1, 2, 2, dtype=torch.bfloat16)
    texts = (torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 5.0))
    cond, uncond = branches(recorder([]), half, torch.tensor([3]), texts, None, 1)
    assert cond.eq(2).all() and uncond.eq(5).all() and cond.dtype == torch.float32


def test_prompts_are_shared_by_their_consecutive_images():
    got = per_image(torch.tensor([1.0, 2.0]).reshape(2, 1, 1), 4).flatten()
    assert got.tolist() == [1, 1, 2, 2]
    with pytest.raises(ValueError, match="4 images .* 3 prompts"):
        per_image(torch.zeros(3, 1, 1), 4)


@pytest.mark.parametrize(
    "config, word",
    [
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"prediction_type": "sample"}, "sample"),
        ({"rescale_betas_zero_snr": True}, "zero_snr"),
    ],
)
def test_unknown_scheduler_files_are_refused_by_name(config, word):
    with pytest.raises(ValueError, match=word):
        Schedule.from_diffusers(config)


@pytest.mark.parametrize("strength", [0.05, 0.4, 1.0])
def test_drawn_again_latents_keep_what_the_noise_left(strength: float) -> None:
    """Of unit Gaussian data the probability flow is the identity: the result is the noisy latents themselves."""
    schedule = Schedule.linear()
    z, noise = torch.randn(2, 4, 4, 32, 32, generator=torch.Generator().manual_seed(0))

    def ideal(x: Tensor, t: Tensor, text: Tensor, camera: None, n_view: int) -> Tensor:
        return schedule.alpha_sigma(t, x)[1] * x

    given_text = Conditions((torch.zeros(1, 1, 1), torch.zeros(1, 1, 1)))
    told: list[tuple[int, int]] = []
    steps = round(20 / strength)  # of which this strength makes 20
    again = ddim_redraw(
        guided(ideal, 1.0), z, noise, given_text, schedule, steps, strength, lambda *done: told.append(done)
    )
    assert told == [(k, 20) for k in range(21)]
    t = int(strength * schedule.T * 19 / 20) + 1
    left = float(schedule.alpha_bar[t].sqrt())
    assert float((again * z).mean()) == pytest.approx(left, abs=0.03) and again.std() == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize(
    "config",
    [
        {"num_train_timesteps": 10**8},
        {"num_train_timesteps": 0},
        {"beta_end": 50},
        {"beta_start": -1.0},
        {"beta_start": float("nan")},
        {"beta_schedule": "linear", "beta_end": 0.9},
        {"trained_betas": []},
        {"trained_betas": [0.1, float("inf")]},
    ],
    ids=str,
)
def test_schedules_that_would_draw_nothing_are_refused(config):
    with pytest.raises((ValueError, TypeError, RuntimeError)):  # of a negative beta there is no root
        Schedule.from_diffusers({"beta_schedule": "scaled_linear"} | config)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_by_hand(prediction: str) -> None:
    schedule = Schedule.from_betas(torch.tensor([0.1, 0.5, 0.5]), prediction)  # alpha_bar 0.9, 0.45, 0.225
    snr = [9.0, 0.45 / 0.55, 0.225 / 0.775]
    below = [value + (prediction == "v_prediction") for value in snr]
    expected = [5 / below[0], snr[1] / below[1], snr[2] / below[2]]
    assert torch.allclose(schedule.min_snr_weight(torch.arange(3), 5.0), torch.tensor(expected), atol=1e-6)
    shifted = schedule.shifted(8.0, "default").min_snr_weight(torch.tensor([0]), 5.0)  # the SNR is now 9 / 8
    assert torch.allclose(shifted, torch.tensor([1.125 / (1.125 + (prediction == "v_prediction"))]), atol=1e-6)


class Opinion:
    """A denoiser that says of each image: its text, and ten times what it saw; less a hundred of one by itself."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, x, t, text, camera, n_view, reference=None):
        self.calls.append(len(x))
        if reference is None:
            assert camera is None and n_view == 1
            return (text.mean((1, 2)) - 100).reshape(-1, 1, 1, 1).expand_as(x)
        seen = reference["a"].repeat_interleave(len(x) // len(reference["a"]), 0)
        return (text.mean((1, 2)) + 10 * seen.mean((1, 2))).reshape(-1, 1, 1, 1).expand_as(x)


def test_text_and_picture_have_scales_of_their_own() -> None:
    """MV-Adapter, equation 6; with one scale the term between falls out, and at 1 all but the first. What sees nothing
    may be each picture by itself."""
    x, t = torch.zeros(4, 1, 2, 2), torch.tensor([5])
    text = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 1.0)
    features = {"a": torch.full((1, 3, 1), 0.3)}
    both, blind, unasked = 2 + 3.0, 1.0, 1 + 3.0

    def guided_by(scale: float | None, text_scale: float, **more: Any) -> tuple[float, int]:
        denoise, told = Opinion(), Conditions(text, None, 2, reference=Reference(features, scale), **more)
        eps, cond = predict(denoise, x, t, told, text_scale)
        torch.testing.assert_close(cond, torch.full_like(x, both))
        assert (eps == eps[0, 0, 0, 0]).all()
        return float(eps[0, 0, 0, 0]), denoise.calls[0] // len(x)

    assert guided_by(None, 7) == (pytest.approx(blind + 7 * (both - blind)), 2)
    assert guided_by(7, 7) == guided_by(None, 7)
    assert guided_by(2, 7) == (pytest.approx(blind + 2 * (unasked - blind) + 7 * (both - unasked)), 3)
    assert guided_by(None, 1) == (pytest.approx(both), 1)
    assert guided_by(0, 1) == (pytest.approx(blind + both - unasked), 3)
    alone = -100 + 1.0  # what it says of a picture by itself, without camera
    assert guided_by(None, 7, alone=True) == (pytest.approx(alone + 7 * (both - alone)), 1)
    found = alone + 2 * (unasked - alone) + 7 * (both - unasked)
    assert guided_by(2, 7, alone=True) == (pytest.approx(found), 2)
    away = Negatives(torch.full((1, 4, 1, 1), 3.0), torch.zeros(1, 4))
    assert guided_by(2, 7, negatives=away, alone=True) == (pytest.approx(found), 3)
    assert guided_by(2, 7, negatives=away) == (pytest.approx(blind + 2 * (unasked - blind) + 7 * (both - unasked)), 4)
