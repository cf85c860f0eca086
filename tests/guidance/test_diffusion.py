from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.parity_files import close, parity_files, tensors
from threedgen.guidance.guidance import Condition, Negatives, combine, guided, predict
from threedgen.guidance.sampling import InitLatents, ddim_alphas, ddim_sample, ddim_step, ddim_timesteps, sample_latents
from threedgen.guidance.schedule import Schedule

SD = Schedule.scaled_linear()


@pytest.fixture(params=parity_files("schedule_ddim_"), ids=lambda path: path.stem)
def recorded(request) -> dict[str, Tensor]:
    return tensors(request.param)


def ldm_timesteps(steps: int, T: int = 1000) -> torch.Tensor:
    """The grid of the ldm code base, with an extra step where `steps` does not divide T (30 -> 31)."""
    return torch.arange(0, T, T // steps) + 1


def test_schedule_matches_recorded_tables_and_noising(recorded):
    r = recorded
    close(SD.betas, r["betas"], 1e-5)
    close(SD.alpha_bar, r["alphas_cumprod"], 1e-5)
    close(SD.alpha_bar.double().rsqrt(), r["sqrt_recip_alphas_cumprod"].double(), 1e-5)
    close(SD.add_noise(r["x"], r["q_noise"], r["q_t"]), r["q_sample"], 1e-5)
    close(SD.x0_from_eps(r["x"], r["q_noise"], r["q_t"]), r["x0_from_eps"], 1e-5)


def test_ddim_matches_recorded_tables_and_step(recorded):
    r, eta = recorded, float(recorded["eta"])
    timesteps = ldm_timesteps(int(r["S"]))
    assert torch.equal(timesteps, r["ddim_timesteps"])
    a, a_prev = ddim_alphas(SD, timesteps)
    close(a, r["ddim_alphas"], 1e-5)
    close(a_prev, r["ddim_alphas_prev"], 1e-5)
    eps, i = combine(r["eps_cond"], r["eps_uncond"], float(r["scale"])), int(r["index"])
    x_prev, x0 = ddim_step(r["x"], eps, a[i], a_prev[i], eta, r["step_noise"])
    close(x_prev, r["x_prev"], 1e-5)
    close(x0, r["pred_x0"], 1e-5)


def test_ddim_sample_matches_recorded_loop(recorded):
    r = recorded
    if "loop_out" not in r:
        pytest.skip("this file has no loop")

    def fake(x, t, text, camera, n_view):
        wave = torch.sin(t.float() / 100)[:, None, None, None]
        return torch.einsum("oc,bchw->bohw", r["loop_W"], x) + text.reshape(-1, 1, 1, 1) * wave

    text = (torch.full((1, 1, 1), 0.2), torch.full((1, 1, 1), 0.1))
    predict = guided(fake, Condition(text, None, 4), float(r["scale"]))
    got = ddim_sample(predict, r["loop_xT"], SD, ldm_timesteps(int(r["S"])), float(r["eta"]))
    close(got, r["loop_out"], 1e-4)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(st.integers(1, 1000), st.integers(1, 1000))
def test_ddim_timesteps_returns_requested_count(a, b):
    steps, T = sorted((a, b))
    got = ddim_timesteps(steps, T)
    assert len(got) == steps
    assert got[0] >= 0 and got[-1] < T
    assert steps == 1 or int(got.diff().min()) > 0
    if T % steps == 0 and steps < T:
        assert torch.equal(got, ldm_timesteps(steps, T))


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_ddim_img2img_of_gaussian_data_returns_noisy_latents(strength: float) -> None:
    """For unit Gaussian data the probability flow is the identity."""
    schedule = Schedule.linear()
    z, noise = torch.randn(2, 4, 4, 32, 32, generator=torch.Generator().manual_seed(0))

    def ideal(x: Tensor, t: Tensor) -> Tensor:
        return schedule.alpha_sigma(t, x)[1] * x

    progress: list[tuple[int, int]] = []
    steps = round(20 / strength)  # of which this strength makes 20
    init, on_step = InitLatents(z, strength), lambda *k: progress.append(k)
    sample = sample_latents(ideal, noise, schedule, steps, init, on_step=on_step)
    assert progress == [(k, 20) for k in range(21)]
    alpha_bar = schedule.alpha_bar[int(strength * schedule.T * 19 / 20) + 1]
    assert float((sample * z).mean()) == pytest.approx(float(alpha_bar.sqrt()), abs=0.03)
    assert sample.std() == pytest.approx(1, abs=0.12)


@pytest.mark.parametrize("name", ["linear", "scaled_linear"])
def test_zero_snr_schedule_is_that_of_diffusers(name: str) -> None:
    options = {"beta_schedule": name, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    found, theirs = Schedule.from_diffusers(options), DDIMScheduler(**options)
    torch.testing.assert_close(found.alpha_bar, theirs.alphas_cumprod, atol=1e-6, rtol=1e-4)
    x0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    t = found.T - 1
    x = found.add_noise(x0, noise, t)
    eps = found.eps_from_output(x, found.target(x0, noise, torch.tensor([t])), t)
    torch.testing.assert_close(found.x0_from_eps(x, eps, t), x0, atol=2e-2, rtol=0)


@pytest.mark.parametrize(
    "config, value",
    [
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"prediction_type": "sample"}, "sample"),
        ({"rescale_betas_zero_snr": True}, "v_prediction"),
        ({"num_train_timesteps": 10**8}, ""),
        ({"num_train_timesteps": 0}, ""),
        ({"beta_end": 50}, ""),
        ({"beta_start": float("nan")}, ""),
        ({"beta_schedule": "linear", "beta_end": 0.9}, ""),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
        ({"sigma_data": 0.5}, ""),
    ],
    ids=str,
)
def test_schedule_from_diffusers_refuses_unusable_configs(config, value):
    with pytest.raises(ValueError if value else (ValueError, TypeError, RuntimeError), match=value or None):
        Schedule.from_diffusers({"beta_schedule": "scaled_linear"} | config)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_match_hand_computation(prediction: str) -> None:
    schedule = Schedule.from_betas(torch.tensor([0.1, 0.5, 0.5]), prediction)  # alpha_bar 0.9, 0.45, 0.225
    snr = [9.0, 0.45 / 0.55, 0.225 / 0.775]
    below = [value + (prediction == "v_prediction") for value in snr]
    expected = [5 / below[0], snr[1] / below[1], snr[2] / below[2]]
    assert torch.allclose(schedule.min_snr_weight(torch.arange(3), 5.0), torch.tensor(expected), atol=1e-6)


def test_predict_guides_by_text_and_reference_image() -> None:
    """MV-Adapter, equation 6 with equal scales, also with a single-view unconditional branch."""
    x, t, calls = torch.zeros(4, 1, 2, 2), torch.tensor([5]), list[int]()
    text = torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 1.0)
    features = {"a": torch.full((1, 3, 1), 0.3)}
    both, none = 2 + 3.0, 1.0  # eps with text and image, with neither

    def denoise(x, t, text, camera, n_view, reference=None):
        """Return mean(text) + 10 mean(reference) per image, and mean(text) - 100 in calls without a reference."""
        calls.append(len(x))
        assert reference is not None or (camera is None and n_view == 1)
        means = None if reference is None else reference["a"].mean((1, 2))
        image = -100 if means is None else 10 * means.repeat_interleave(len(x) // len(means))
        return (text.mean((1, 2)) + image).reshape(-1, 1, 1, 1).expand_as(x)

    def guided_by(text_scale: float, **more: Any) -> tuple[float, int]:
        calls.clear()
        eps, cond = predict(denoise, x, t, Condition(text, None, 2, reference=features, **more), text_scale)
        torch.testing.assert_close(cond, torch.full_like(x, both))
        assert (eps == eps[0, 0, 0, 0]).all()
        return float(eps[0, 0, 0, 0]), calls[0] // len(x)

    guided = pytest.approx(none + 7 * (both - none))
    assert guided_by(7) == (guided, 2)
    assert guided_by(1) == (pytest.approx(both), 1)
    single = -100 + 1.0  # unconditional eps of one image, without camera
    found = pytest.approx(single + 7 * (both - single))
    assert guided_by(7, single_view_uncond=True) == (found, 1)
    negatives = Negatives(torch.full((1, 4, 1, 1), 3.0), torch.zeros(1, 4))
    assert guided_by(7, negatives=negatives, single_view_uncond=True) == (found, 2)
    assert guided_by(7, negatives=negatives) == (guided, 3)
