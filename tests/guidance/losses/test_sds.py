import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.fixed_noise import reconstruction, sds_eps
from tests.support.parity_files import close, recorded, recorded_network, tensors
from threedgen.guidance.guidance import Condition
from threedgen.guidance.losses.options import ReconstructionConfig, SDSConfig
from threedgen.guidance.losses.sds import SDS, Reconstruction, rescale_std
from threedgen.guidance.priors import latent_diffusion
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.ldm import convert_vae
from threedgen.run import seeding

FIXED = settings(derandomize=True, deadline=None, max_examples=40)
SD = Schedule.scaled_linear()
RESCALE = {"recon05": 0.5, "recon0": 0.0, "recon1": 1.0}
TEXT = (torch.full((1, 2, 3), 1.0), torch.zeros(1, 2, 3))
cases = pytest.mark.parametrize("case", [*RESCALE, "eps"])
losses = pytest.mark.parametrize("function", [sds_eps, reconstruction])


def replay(r: dict[str, Tensor], case: str, latents: Tensor, tolerance: float) -> Tensor:
    """Check loss and logs of a recorded case and return the loss.

    The reference logs the gradient norm with 1/B for the reconstruction and without for SDS; here always with 1/B.
    """
    n_view = int(r["n_view"])
    text = tuple(r["text_embeddings"].chunk(2))
    same = {"schedule": SD, "t": r["t"].reshape(1), "noise": r["noise"], "guidance_scale": float(r["guidance_scale"])}
    same |= {} if case == "eps" else {"recon_std_rescale": RESCALE[case]}
    function = sds_eps if case == "eps" else reconstruction
    loss, logs = function(latents, recorded_network(r), text, r["camera_cond"], n_view, **same)
    close(loss.detach(), r[f"{case}_loss"], tolerance)
    norm = float(r[f"{case}_grad_norm"]) / (len(r["noise"]) if case == "eps" else 1)
    assert float(logs["grad_norm"]) == pytest.approx(norm, rel=tolerance)
    assert float(logs["t"]) == float(r["t"])
    return loss


@cases
@recorded("sds_latent")
def test_loss_and_gradient_match_recording_from_latents(path, case):
    r = tensors(path)
    latents = r["latents"].requires_grad_()
    (grad,) = torch.autograd.grad(replay(r, case, latents, 1e-5), latents)
    close(grad, r[f"{case}_grad_latents"], 1e-4)


@cases
@recorded("sds_rgb")
def test_loss_and_gradient_match_recording_from_images(path, case, monkeypatch):
    r = tensors(path)
    vae = convert_vae({name[4:]: value for name, value in r.items() if name.startswith("vae.")})
    prior = MVDream.__new__(MVDream)  # encoding needs nothing else
    prior.device, prior.dtype, prior.scaling_factor = torch.device("cpu"), torch.float32, 0.18215
    prior.vae = AutoencoderKL(**vae.config).requires_grad_(False).eval()
    prior.vae.load_state_dict(vae.tensors)
    prior.image_size = r["latents"].shape[-1] * 2 ** (len(vae.config["block_out_channels"]) - 1)
    monkeypatch.setattr(latent_diffusion, "fresh_noise", lambda like, generator=None: r["post_noise"])
    rgb = r["x"].requires_grad_()
    latents = prior.encode_images(rgb)
    close(latents.detach(), r["latents"], 1e-3)
    grad_latents, grad_rgb = torch.autograd.grad(replay(r, case, latents, 1e-3), (latents, rgb))
    close(grad_latents, r[f"{case}_grad_latents"], 1e-3)
    close(grad_rgb, r[f"{case}_grad_x"], 1e-3)


@recorded("sds_")
def test_camera_vectors_and_annealing_match_recording(path):
    r = tensors(path)
    close(camera_vector(r["c2w"]), r["camera_cond"], 1e-6)
    low, high = {0: 0.98, 8000: 0.02}, {0: 0.98, 8000: 0.5}
    distil = SDS(SDSConfig(min_step_percent=low, max_step_percent=high), SD, 10_000)
    for step, first, last in r["anneal"].tolist():
        logs = distil.sample_noise(torch.zeros(1, 1, 1, 1), 1, step, torch.Generator())[2]
        assert (logs["t_min"], logs["t_max"]) == (first, last)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def constant(eps: Tensor):
    """A denoiser that always returns ``eps`` (B,...) in both branches."""
    return lambda x, t, text, camera, n_view: eps.repeat(len(x) // len(eps), 1, 1, 1)


def at_timestep(t: int, noise: Tensor, guidance_scale: float = 3.0) -> dict:
    return {"schedule": SD, "t": torch.tensor([t]), "noise": noise, "guidance_scale": guidance_scale}


def gradient(function, latents: Tensor, *arguments, **options) -> Tensor:
    latents = latents.clone().requires_grad_()
    loss, _ = function(latents, *arguments, **options)
    return torch.autograd.grad(loss, latents)[0]


@FIXED
@given(st.integers(0, 999), st.integers(0, 99), st.sampled_from(["one_minus_alpha_bar", "uniform"]))
def test_sds_gradient_is_weighted_noise_error(t, seed, weighting):
    z, noise, eps = normal(seed, 3, 4, 4, 2, 2)
    got = gradient(sds_eps, z, constant(eps), TEXT, None, 1, **at_timestep(t, noise, 7.0), weighting=weighting)
    weight = 1 - float(SD.alpha_bar[t]) if weighting == "one_minus_alpha_bar" else 1.0
    torch.testing.assert_close(got, weight * (eps - noise) / 4, atol=1e-6, rtol=1e-4)


@FIXED
@given(st.integers(0, 99), st.sampled_from([1, 2, 4]), st.floats(0, 1))
def test_rescale_std_scales_each_group_by_one_factor(seed, n_view, share):
    x0, cond = 10 * normal(seed, 4, 3, 4, 4), 2 * normal(seed + 1, 4, 3, 4, 4)
    got = rescale_std(x0, cond, share, n_view)

    def std(x: Tensor) -> Tensor:
        return x.reshape(4 // n_view, -1).std(dim=1)

    torch.testing.assert_close(std(got), share * std(cond) + (1 - share) * std(x0), rtol=1e-4, atol=0)
    ratio = got.reshape(4 // n_view, -1) / x0.reshape(4 // n_view, -1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-3, atol=1e-5)


def gaussian_prior(mean: float, calls: list | None = None):
    """The exact denoiser of images N(mean, 0.5^2); without text, of N(0, 0.5^2)."""

    def denoise(x, t, text, camera, n_view):
        if calls is not None:
            calls.append((x.shape, t, torch.is_grad_enabled()))
        centre = mean * text.mean(dim=(1, 2))[:, None, None, None]
        alpha, sigma = SD.alpha_sigma(t, x)
        return sigma * (x - alpha * centre) / (alpha**2 * 0.25 + sigma**2)

    return denoise


@losses
def test_prior_is_not_differentiated(function):
    weight = torch.ones(1, requires_grad=True)
    calls: list = []

    def denoise(x, t, text, camera, n_view):
        return weight * gaussian_prior(1.0, calls)(x, t, text, camera, n_view)

    z = normal(0, 2, 4, 2, 2).requires_grad_()
    function(z, denoise, TEXT, None, 2, **at_timestep(300, normal(1, 2, 4, 2, 2)))[0].backward()
    assert weight.grad is None and [grad_enabled for *_, grad_enabled in calls] == [False]


@losses
def test_single_non_finite_values_are_dropped_and_all_nan_gives_nan_loss(function):
    z, noise = normal(0, 2, 4, 4, 2, 2)
    same = at_timestep(300, noise)
    eps = normal(1, 4, 4, 2, 2)
    eps[0, 0, 0, 0] = float("inf")
    eps[1, 0, 0, 0] = float("nan")
    grad = gradient(function, z, constant(eps), TEXT, None, 1, **same)
    assert grad.isfinite().all() and grad[0, 0, 0, 0] == grad[1, 0, 0, 0] == 0
    assert float(grad[2].abs().min()) > 0
    loss, _ = function(z, constant(torch.full_like(z, float("nan"))), TEXT, None, 1, **same)
    assert loss.isnan()


@FIXED
@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 1000))
def test_timesteps_cover_range_including_ends(a, b, seed):
    low, high = sorted((a, b))
    generator = torch.Generator().manual_seed(seed)
    percents = {"min_step_percent": low / 1000 + 1e-6, "max_step_percent": high / 1000 + 1e-6}
    distil = SDS(SDSConfig(**percents, timestep_per="group"), SD)
    t, _, _ = distil.sample_noise(torch.zeros(2000, 1, 1, 1), 1, 0, generator)
    assert (int(t.min()), int(t.max())) == (low, high) and t.dtype == torch.int64


def sampled_timesteps(options: SDSConfig, step: int, n_view: int = 2) -> Tensor:
    calls: list = []
    z = torch.zeros(6, 4, 2, 2)
    distil = SDS(options, SD, max_steps=100)
    generator = seeding.generator(1, step, "t")
    _, logs = distil(z, gaussian_prior(1.0, calls), Condition(TEXT, None, n_view), step, generator)
    [(_, t, _)] = calls
    assert torch.equal(t[:6], t[6:]) and float(logs["t"]) == pytest.approx(float(t.float().mean()))
    assert logs["t_min"] <= int(t.min()) and int(t.max()) <= logs["t_max"]
    return t[:6]


def test_timestep_per_batch_or_group():
    wide = {"min_step_percent": 0.02, "max_step_percent": 0.98}
    assert len(set(sampled_timesteps(SDSConfig(**wide), 0).tolist())) == 1
    by_group = sampled_timesteps(SDSConfig(**wide, timestep_per="group"), 0).reshape(3, 2)
    assert torch.equal(by_group[:, 0], by_group[:, 1]) and len(set(by_group[:, 0].tolist())) == 3
    assert len(set(sampled_timesteps(SDSConfig(**wide, timestep_per="group"), 0, n_view=1).tolist())) == 6


def test_timesteps_and_rescale_follow_their_schedules():
    assert sampled_timesteps(SDSConfig(), 0).tolist() == [980] * 6
    late = sampled_timesteps(SDSConfig(), 99)
    assert 20 <= int(late.min()) and int(late.max()) <= 500
    z = normal(0, 4, 4, 2, 2)
    fixed, moving = (
        Reconstruction(ReconstructionConfig(recon_std_rescale=rescale), SD, 100)(
            z, gaussian_prior(1.0), Condition(TEXT, None, 4), 50, seeding.generator(0, 0, "noise")
        )[0]
        for rescale in (0.25, {"0%": 0.5, "100%": 0.0})
    )
    assert torch.equal(fixed, moving)


def test_bfloat16_latents_get_float32_loss():
    z = normal(0, 2, 4, 2, 2).bfloat16().requires_grad_()
    loss, _ = reconstruction(z, gaussian_prior(1.0), TEXT, None, 2, **at_timestep(300, normal(1, 2, 4, 2, 2)))
    loss.backward()
    assert loss.dtype == torch.float32 and z.grad.dtype == torch.bfloat16 and float(z.grad.abs().sum()) > 0
