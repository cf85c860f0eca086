from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.support.errors import refused
from tests.support.parity_files import close, recorded, recorded_network, tensors
from tests.support.task_server import server, tiny_generate
from tests.support.toy_run import log
from threedgen.config import load, registry
from threedgen.guidance.guidance import Condition, Negatives
from threedgen.guidance.losses import inversion
from threedgen.guidance.losses.sds import Distillation
from threedgen.guidance.schedule import Schedule

SD = Schedule.scaled_linear()
NAMES = ("ism", "csd", "sdi", "jsd")
losses = pytest.mark.parametrize("name", NAMES)


def build(name: str, **options: Any) -> Any:
    return registry.build("distillation", registry.config_model("distillation", name)(**options), SD, 100)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def gradient(
    loss: Distillation, z: Tensor, denoise: Any, condition: Condition, seed: int = 0, step: int = 50
) -> Tensor:
    """Return B times the gradient of the loss with respect to `z`."""
    z = z.clone().requires_grad_()
    value, _ = loss(z, denoise, condition, step, seeded(seed))
    value.backward()
    assert z.grad is not None
    return len(z) * z.grad.float()


def at(loss: Any, t: int, noise: Tensor | None = None) -> Any:
    sample = loss.sample_noise
    loss.sample_noise = lambda *args: (torch.tensor([t]), sample(*args)[1] if noise is None else noise, {})
    return loss


# --- recordings of the released code


def replay(name: str, r: dict[str, Tensor], tolerance: float, **options: Any) -> None:
    loss = at(build(name, **options), int(r["t"]), r["noise"])
    prompt, negative, empty = r["text"].split(1)
    loss.empty_text = empty if name == "csd" else None
    camera = r.get("camera")
    condition = Condition((prompt, negative), camera, 1 if camera is None else len(camera))
    seed = next(k for k in range(9999) if torch.randint(100, (1,), generator=seeded(k)) == r.get("delta", 0))
    close(gradient(loss, r["z"], recorded_network(r), condition, seed), r["direction"], tolerance)


@recorded("ism_")
def test_ism_matches_recording(path: Any) -> None:
    r = tensors(path)
    numbers = {name: int(r[name]) for name in ("interval", "inversion_interval", "inversion_steps")}
    replay("ism", r, 1e-4, **numbers)


@recorded("csd_")
def test_csd_matches_recording(path: Any) -> None:
    r = tensors(path)
    replay("csd", r, 1e-5, negative_weight=float(r["negative_weight"]))


@recorded("sdi_")
def test_sdi_matches_recording(path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    r = tensors(path)
    noises: Iterator[Tensor] = iter(r["noises"][1:])  # the released code begins with a step that changes nothing
    monkeypatch.setattr(inversion, "fresh_noise", lambda like, generator: next(noises))
    replay("sdi", r, 1e-4, inversion_eta=float(r["eta"]))


@recorded("jsd_")
def test_jsd_matches_recording(path: Any) -> None:
    r = tensors(path)
    replay("jsd", r, 1e-4, view_weight=5)
    replay("jsd", r | {"direction": r["plain"]}, 1e-5, view_weight=0)


# --- images N(mean, STD^2): the score, and with it DDIM inversion, is known

STD = 0.5
TEXT = (torch.full((1, 2, 3), 1.0), torch.zeros(1, 2, 3))
VIEWS = 2
CAMERA = torch.zeros(VIEWS, 16)


def gaussian(mean: float, uncond: float = 0.0, views: float = 0.0) -> Any:
    """Exact denoiser of N(mean, STD^2); without prompt, of N(uncond, STD^2); `views` is added for joint predictions."""

    def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
        share = text.mean(dim=(1, 2))[:, None, None, None]
        centre = uncond + (mean - uncond) * share + (views if camera is not None else 0)
        alpha, sigma = SD.alpha_sigma(t, x)
        return sigma * (x - alpha * centre) / variance(t, x)

    return denoise


def variance(t: Tensor | int, like: Tensor) -> Tensor:
    alpha, sigma = SD.alpha_sigma(t, like)
    return alpha**2 * STD**2 + sigma**2


def latents() -> Tensor:
    return torch.randn(VIEWS, 4, 2, 2, generator=seeded(3))


def test_jsd_adds_the_difference_between_joint_and_single_prediction() -> None:
    z, t, noise, joint = latents(), 300, torch.randn(VIEWS, 4, 2, 2, generator=seeded(8)), 0.7
    alpha, sigma = SD.alpha_sigma(t, z)
    options = {"guidance_scale": 1, "view_guidance_scale": 1, "recon_std_rescale": 0}
    loss = at(build("jsd", view_weight=4, **options), t, noise)
    eps = sigma * (alpha * z + sigma * noise - alpha) / variance(t, z)
    gap = -(1.0 + joint) * sigma**2 / variance(t, z)  # mean without prompt and cameras minus joint mean
    expected = sigma**2 * (eps + sigma * 4 / VIEWS * gap / alpha - noise)
    close(gradient(loss, z, gaussian(1.0, views=joint), Condition(TEXT, CAMERA, VIEWS)), expected, 1e-4)


# --- conditions


@losses
def test_all_conditions_together(name: str) -> None:
    """A timestep per group, Perp-Neg, an unconditional branch of single views, half precision."""
    calls: list[tuple[int, bool]] = []

    def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
        assert len(x) == len(t) == len(text) and x.dtype == torch.float32 and not torch.is_grad_enabled()
        assert n_view == 1 or torch.equal(t[::n_view], t[1::n_view])
        calls.append((n_view, camera is None))
        side = text[:, 0, 0, None, None, None] * torch.arange(4.0)[:, None, None]  # not parallel to the rest
        return gaussian(1.0)(x, t, text, camera, n_view) + side

    loss = build(name, timestep_per="group", min_step_percent=0.1, max_step_percent=0.9)
    negatives = Negatives(torch.rand(2, 4, 2, 3, generator=seeded()), torch.ones(2, 4))
    condition = Condition(TEXT, CAMERA.repeat(2, 1), VIEWS, negatives, single_view_uncond=True)
    z = latents().repeat(2, 1, 1, 1).bfloat16()
    found = gradient(loss, z, denoise, condition)
    assert found.isfinite().all() and found.abs().sum() > 0 and {(VIEWS, False), (1, True)} == set(calls)
    assert torch.equal(found, gradient(loss, z, denoise, condition))
    assert not torch.equal(found, gradient(loss, z, denoise, replace(condition, negatives=None)))


@pytest.mark.parametrize("name, images", [("ism", 2 + 3 + 1), ("csd", 2), ("sdi", 2 + 2 * 7), ("jsd", 4)])
def test_images_that_the_unet_denoises_for_each_view(name: str, images: int) -> None:
    """At t = 650, as docs/losses.md says."""
    calls: list[int] = []

    def denoise(x: Tensor, *args: Any) -> Tensor:
        calls.append(len(x))
        return gaussian(1.0)(x, *args)

    gradient(at(build(name), 650), latents(), denoise, Condition(TEXT, CAMERA, VIEWS))
    assert sum(calls) == images * VIEWS


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
