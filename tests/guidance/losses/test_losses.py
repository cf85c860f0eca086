from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file
from torch import Tensor

from tests.support.errors import refused
from tests.support.fixed_noise import reconstruction, sds_eps
from tests.support.parity_files import close, recorded, recorded_network, tensors
from tests.support.task_server import server, tiny_generate
from tests.support.tiny_prior import cpu
from tests.support.toy_run import log
from threedgen.config import load, registry
from threedgen.guidance.guidance import Condition, Negatives
from threedgen.guidance.losses import inversion
from threedgen.guidance.losses.options import SDSConfig
from threedgen.guidance.losses.sds import SDS, Distillation
from threedgen.guidance.priors import latent_diffusion
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.ldm import convert_vae
from threedgen.run import seeding

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
    return torch.randn(*shape, generator=cpu(seed))


def at_timestep(t: int, noise: Tensor) -> dict:
    return {"schedule": SD, "t": torch.tensor([t]), "noise": noise, "guidance_scale": 3.0}


STD = 0.5


def variance(t: Tensor | int, like: Tensor) -> Tensor:
    alpha, sigma = SD.alpha_sigma(t, like)
    return alpha**2 * STD**2 + sigma**2


def gaussian(calls: list | None = None, views: float = 0.0) -> Any:
    """Exact denoiser of N(1, STD^2); without prompt, of N(0, STD^2); `views` is added for joint predictions."""

    def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
        if calls is not None:
            calls.append((x.shape, t, torch.is_grad_enabled()))
        centre = text.mean(dim=(1, 2))[:, None, None, None] + (views if camera is not None else 0)
        alpha, sigma = SD.alpha_sigma(t, x)
        return sigma * (x - alpha * centre) / variance(t, x)

    return denoise


@losses
def test_prior_is_not_differentiated_and_bfloat16_latents_get_float32_loss(function):
    weight, calls = torch.ones(1, requires_grad=True), []
    z = normal(0, 2, 4, 2, 2).bfloat16().requires_grad_()
    same = at_timestep(300, normal(1, 2, 4, 2, 2))
    loss, _ = function(z, lambda *inputs: weight * gaussian(calls)(*inputs), TEXT, None, 2, **same)
    loss.backward()
    assert weight.grad is None and [grad_enabled for *_, grad_enabled in calls] == [False]
    assert loss.dtype == torch.float32 and z.grad.dtype == torch.bfloat16 and float(z.grad.abs().sum()) > 0


@losses
def test_single_non_finite_values_are_dropped_and_all_nan_gives_nan_loss(function):
    z, noise, eps = normal(0, 3, 4, 4, 2, 2)
    z.requires_grad_()
    eps[0, 0, 0, 0] = float("inf")
    eps[1, 0, 0, 0] = float("nan")

    def loss(eps: Tensor) -> Tensor:
        return function(z, lambda *inputs: eps.repeat(2, 1, 1, 1), TEXT, None, 1, **at_timestep(300, noise))[0]

    (grad,) = torch.autograd.grad(loss(eps), z)
    assert grad.isfinite().all() and grad[0, 0, 0, 0] == grad[1, 0, 0, 0] == 0
    assert float(grad[2].abs().min()) > 0
    assert loss(torch.full_like(eps, float("nan"))).isnan()


def sampled_timesteps(options: SDSConfig, step: int, n_view: int = 2) -> Tensor:
    calls: list = []
    z = torch.zeros(6, 4, 2, 2)
    distil = SDS(options, SD, max_steps=100)
    generator = seeding.generator(1, step, "t")
    _, logs = distil(z, gaussian(calls), Condition(TEXT, None, n_view), step, generator)
    [(_, t, _)] = calls
    assert torch.equal(t[:6], t[6:]) and float(logs["t"]) == pytest.approx(float(t.float().mean()))
    assert logs["t_min"] <= int(t.min()) and int(t.max()) <= logs["t_max"]
    return t[:6]


def test_timesteps_follow_their_schedule_per_batch_or_group():
    wide = {"min_step_percent": 0.02, "max_step_percent": 0.98}
    assert len(set(sampled_timesteps(SDSConfig(**wide), 0).tolist())) == 1
    by_group = sampled_timesteps(SDSConfig(**wide, timestep_per="group"), 0).reshape(3, 2)
    assert torch.equal(by_group[:, 0], by_group[:, 1]) and len(set(by_group[:, 0].tolist())) == 3
    assert len(set(sampled_timesteps(SDSConfig(**wide, timestep_per="group"), 0, n_view=1).tolist())) == 6
    assert sampled_timesteps(SDSConfig(), 0).tolist() == [980] * 6
    late = sampled_timesteps(SDSConfig(), 99)
    assert 20 <= int(late.min()) and int(late.max()) <= 500


# --- losses of inversion and of scores: ISM, CSD, SDI, JSD


def build(name: str, **options: Any) -> Any:
    return registry.build("distillation", registry.config_model("distillation", name)(**options), SD, 100)


def gradient(loss: Distillation, z: Tensor, denoise: Any, condition: Condition, seed: int = 0) -> Tensor:
    """Return B times the gradient of the loss with respect to `z`."""
    z = z.clone().requires_grad_()
    value, _ = loss(z, denoise, condition, 50, cpu(seed))
    value.backward()
    assert z.grad is not None
    return len(z) * z.grad.float()


def at(loss: Any, t: int, noise: Tensor | None = None) -> Any:
    sample = loss.sample_noise
    loss.sample_noise = lambda *args: (torch.tensor([t]), sample(*args)[1] if noise is None else noise, {})
    return loss


# --- recordings of the released code


def replay_direction(name: str, r: dict[str, Tensor], tolerance: float, **options: Any) -> None:
    loss = at(build(name, **options), int(r["t"]), r["noise"])
    prompt, negative, empty = r["text"].split(1)
    loss.empty_text = empty if name == "csd" else None
    camera = r.get("camera")
    condition = Condition((prompt, negative), camera, 1 if camera is None else len(camera))
    seed = next(k for k in range(9999) if torch.randint(100, (1,), generator=cpu(k)) == r.get("delta", 0))
    close(gradient(loss, r["z"], recorded_network(r), condition, seed), r["direction"], tolerance)


@recorded("ism_")
def test_ism_matches_recording(path: Any) -> None:
    r = tensors(path)
    replay_direction(
        "ism", r, 1e-4, **{name: int(r[name]) for name in ("interval", "inversion_interval", "inversion_steps")}
    )


@recorded("csd_")
def test_csd_matches_recording(path: Any) -> None:
    r = tensors(path)
    replay_direction("csd", r, 1e-5, negative_weight=float(r["negative_weight"]))


@recorded("sdi_")
def test_sdi_matches_recording(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    r = tensors(path)
    noises: Iterator[Tensor] = iter(r["noises"][1:])  # the released code begins with a step that changes nothing
    monkeypatch.setattr(inversion, "fresh_noise", lambda like, generator: next(noises))
    replay_direction("sdi", r, 1e-4, inversion_eta=float(r["eta"]))


@recorded("jsd_")
def test_jsd_matches_recording(path: Any) -> None:
    r = tensors(path)
    replay_direction("jsd", r, 1e-4, view_weight=5)
    replay_direction("jsd", r | {"direction": r["plain"]}, 1e-5, view_weight=0)


VIEWS = 2
CAMERA = torch.zeros(VIEWS, 16)


def latents() -> Tensor:
    return normal(3, VIEWS, 4, 2, 2)


# --- conditions


@pytest.mark.parametrize("name", ["ism", "csd", "sdi", "jsd"])
def test_all_conditions_together(name: str) -> None:
    """A timestep per group, Perp-Neg, an unconditional branch of single views, half precision."""
    calls: list[tuple[int, bool]] = []

    def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
        assert len(x) == len(t) == len(text) and x.dtype == torch.float32 and not torch.is_grad_enabled()
        assert n_view == 1 or torch.equal(t[::n_view], t[1::n_view])
        calls.append((n_view, camera is None))
        side = text[:, 0, 0, None, None, None] * torch.arange(4.0)[:, None, None]  # not parallel to the rest
        return gaussian()(x, t, text, camera, n_view) + side

    loss = build(name, timestep_per="group", min_step_percent=0.1, max_step_percent=0.9)
    negatives = Negatives(torch.rand(2, 4, 2, 3, generator=cpu()), torch.ones(2, 4))
    condition = Condition(TEXT, CAMERA.repeat(2, 1), VIEWS, negatives, single_view_uncond=True)
    z = latents().repeat(2, 1, 1, 1).bfloat16()
    found = gradient(loss, z, denoise, condition)
    assert found.isfinite().all() and found.abs().sum() > 0 and {(VIEWS, False), (1, True)} == set(calls)
    assert torch.equal(found, gradient(loss, z, denoise, condition))
    assert not torch.equal(found, gradient(loss, z, denoise, replace(condition, negatives=None)))


def test_jsd_refuses_a_single_view_prior() -> None:
    words = ["prompt=a dog", "distillation.name=jsd"]
    load("mvdream-toybox", words).check()
    for more in (["prior.name=stable-diffusion"], ["camera.n_view=1", "warm_start.share=0", "refine.strengths=[]"]):
        with refused("distillation.name", "jsd", "mvdream"):
            load("mvdream-toybox", [*words, *more]).check()


def test_csd_run_encodes_the_empty_prompt_beside_a_negative_one(tmp_path: Path) -> None:
    tiny = str(tiny_generate(tmp_path / "tiny"))
    words = ["--config", tiny, "distillation.name=csd", "negative_prompt=a green cat", "trainer.max_steps=2"]
    short = ["warm_start.share=0", "refine.strengths=[]", "preview.enabled=false", "export.enabled=false", "out=run"]
    assert server().run(tmp_path, words=[*words, *short]) == 0, log(tmp_path)
    (text,) = load_file(tmp_path / "run" / "text.safetensors").values()
    assert len(text) == 3 and not torch.equal(text[1], text[2])
