from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.parity_files import recorded, tensors
from tests.support.tiny_threedim import poses, tiny_network
from threedgen.geometry.cameras import Projection
from threedgen.guidance.guidance import combine
from threedgen.guidance.novel_view import sampler as ls
from threedgen.guidance.novel_view.sampler import Prediction, alpha_sigma, sample_views, target


def generators(scenes: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + scene) for scene in range(scenes)]


def scenes(count: int = 2, inputs: int = 1, targets: int = 3, size: int = 4) -> dict[str, Any]:
    """Arguments of ``sample_views``; the x coordinate of a camera is the number of its view."""
    gen = torch.Generator().manual_seed(0)
    c2w = poses(count * (inputs + targets), gen).unflatten(0, (count, -1))
    c2w[:, :, 0, 3] = torch.arange(inputs + targets, dtype=torch.float32)
    return {
        "images": torch.rand(count, inputs, 3, size, size, generator=gen) * 2 - 1,
        "c2w": c2w[:, :inputs],
        "targets": c2w[:, inputs:],
        "K": Projection.perspective(torch.full((count,), 0.8), size, size).K,
        "generators": generators(count),
    }


class RecordingModel:
    """Predicts a constant, with and without its condition, and records its calls."""

    clip: float | None = 1.0

    def __init__(self, prediction: Prediction = "sample", conditional: float = 0.2, dropped: float = 0.0) -> None:
        self.prediction, self.values = prediction, (dropped, conditional)
        self.calls: list[dict[str, Tensor]] = []

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, has_condition: Tensor) -> Tensor:
        self.calls.append({"x": x, "z": z, "logsnr": logsnr, "c2w": c2w, "has_condition": has_condition})
        return torch.tensor(self.values)[has_condition.long()][:, None, None, None].expand_as(z)

    def stacked(self, name: str) -> Tensor:
        return torch.stack([call[name] for call in self.calls])

    def conditions(self, scene: int) -> list[int]:
        return [int(call["c2w"][scene, 0, 0, 3]) for call in self.calls]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, lambda n: range(n)),
        ({"strategy": "first"}, lambda n: range(1)),
        ({"strategy": "last", "last": 1}, lambda n: range(n - 1, n)),
        ({"strategy": "last", "last": 3}, lambda n: range(max(0, n - 3), n)),
    ],
)
def test_strategy_samples_conditioning_views_at_every_step(options: dict[str, Any], expected: Any) -> None:
    model, arguments = RecordingModel(), scenes(inputs=2, targets=4)
    views = sample_views(model, **arguments, **options, steps=64)
    assert views.shape == (2, 4, 3, 4, 4)
    images = torch.cat([arguments["images"], views], dim=1)
    all_poses = torch.cat([arguments["c2w"], arguments["targets"]], dim=1)
    for scene in range(2):
        conditions = model.conditions(scene)
        for number, (call, view) in enumerate(zip(model.calls, conditions, strict=True)):
            assert torch.equal(call["x"][scene], images[scene, view])
            assert torch.equal(call["c2w"][scene], all_poses[scene, [view, 2 + number // 64]])
        for done in range(4):
            sampled, known = conditions[64 * done : 64 * (done + 1)], expected(2 + done)
            assert set(sampled) == set(known) and all(sampled.count(view) > 0.4 * 64 / len(known) for view in known)
            assert len(known) == 1 or sum(a != b for a, b in pairwise(sampled)) > 16
    assert (model.conditions(0) == model.conditions(1)) == (len(expected(5)) == 1)


@pytest.mark.parametrize("architecture", ["xunet", "concat"])
def test_scene_depends_on_its_generator_and_not_on_other_scenes(architecture: str) -> None:
    network, arguments = tiny_network(architecture=architecture), scenes(3, size=8, targets=2)

    def sample(generators: list[torch.Generator], scene: slice = slice(1, 2)) -> Tensor:
        parts = {name: value[scene] for name, value in arguments.items()} | {"generators": generators}
        return sample_views(network, **parts, steps=3, guidance_scale=2.0)

    together, single = sample(generators(3), slice(None)), sample(generators(3)[1:2])
    torch.testing.assert_close(single, together[1:2], rtol=0, atol=1e-4)
    assert torch.equal(sample(generators(3)[1:2]), single)
    assert (sample(generators(1, seed=9)) - single).abs().max() > 1e-2
    assert single.abs().max() <= 1


def test_strategy_and_guidance_do_not_change_start_noise() -> None:
    starts = []
    for options in ({}, {"strategy": "first"}, {"strategy": "last", "last": 2, "guidance_scale": 3.0}):
        model = RecordingModel()
        sample_views(model, **scenes() | options, steps=4)
        starts.append(torch.stack([call["z"][:2] for call in model.calls[::4]]))  # of each view's chain
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])
    assert (starts[0][0] - starts[0][1]).abs().max() > 0.1


class Gaussian:
    """The exact model of images N(0.3, 0.5^2), whatever the condition."""

    clip = None

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, has_condition: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(logsnr.double(), z)
        x0 = 0.3 + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (z - 0.3 * alpha)
        return target(x0, (z - alpha * x0) / sigma, logsnr.double(), self.prediction).float()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_sampler_reproduces_distribution_of_exact_model(prediction: Prediction) -> None:
    views = sample_views(Gaussian(prediction), **scenes(2, targets=1, size=48), steps=128)
    assert views.mean().item() == pytest.approx(0.3, abs=0.02)
    assert views.std().item() == pytest.approx(0.5, abs=0.02)


def test_predictions_are_clipped_at_every_step_unless_latents() -> None:
    chains, maxima = [], []
    for value in (3.0, 1.0):
        model = RecordingModel(conditional=value)
        arguments = scenes() | {"progress": lambda done, total, x0: maxima.append(float(x0.max()))}
        views = sample_views(model, **arguments, steps=6)
        assert views.max() == 1
        chains.append(model.stacked("z"))
    assert torch.equal(*chains) and set(maxima) == {1.0}
    latents = RecordingModel(conditional=3.0)
    latents.clip = None
    torch.testing.assert_close(sample_views(latents, **scenes(), steps=4), torch.full((2, 3, 3, 4, 4), 3.0))


@pytest.mark.parametrize(
    ("scale", "conditional", "value"),
    [(1.0, [True, True], 0.2), (0.0, [False, False], 0.1), (4.0, [True, True, False, False], 0.1 + 4 * (0.2 - 0.1))],
)
def test_guidance_scale_determines_calls_and_prediction(scale: float, conditional: list[bool], value: float) -> None:
    model = RecordingModel(conditional=0.2, dropped=0.1)
    views = sample_views(model, **scenes(), steps=4, guidance_scale=scale)
    assert all(call["has_condition"].tolist() == conditional for call in model.calls)
    assert all(torch.equal(call["z"][:2], call["z"][-2:]) for call in model.calls)
    torch.testing.assert_close(views, torch.full_like(views, value))


def test_unconditional_calls_take_fresh_noise_as_condition() -> None:
    model = RecordingModel()
    sample_views(model, **scenes(), steps=4, guidance_scale=0.0)
    conditions = model.stacked("x")
    assert conditions.std().item() == pytest.approx(1, abs=0.1) and (conditions[0] - conditions[1]).abs().max() > 0.1


def test_one_step_regression_is_one_call_with_white_noise() -> None:
    model = RecordingModel(conditional=0.7)
    views = sample_views(model, **scenes(targets=3), strategy="first", steps=1)
    assert len(model.calls) == 3
    assert all(call["logsnr"].tolist() == [-20.0, -20.0] for call in model.calls)
    assert model.stacked("z").std().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(views, torch.full_like(views, 0.7))
    network, outputs = tiny_network(prediction="sample"), list[Tensor]()
    network.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    views = sample_views(network, **scenes(size=8, targets=1), steps=1)
    torch.testing.assert_close(views[:, 0], outputs[0].clamp(-1, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", ["xunet", "concat"])
def test_networks_sample_under_autocast(architecture: str) -> None:
    network = tiny_network(architecture=architecture)
    with torch.autocast("cpu", torch.bfloat16):
        views = sample_views(network, **scenes(size=8), steps=2, guidance_scale=2.0)
    assert views.dtype == torch.float32 and views.isfinite().all() and not views.requires_grad


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to max(1, |expected|)."""
    return float(((found - expected).abs() / expected.abs().clamp(min=1)).max())


@recorded("sampler_step")
def test_schedule_and_step_match_recording(path: Path) -> None:
    a = tensors(path)
    for t, levels in ((a["t"], a["logsnr_of_t"]), (a["t_rand"], a["logsnr_of_t_rand"])):
        error = (ls.logsnr_cosine(t) - levels).abs()
        assert (error < torch.where(t == 1, 5e-3, 1e-4)).all()
    assert relative_error(ls.add_noise(a["q_x0"], a["q_noise"], a["q_logsnr"]), a["q_zt"]) < 1e-5
    eps = combine(a["eps_cond"], a["eps_uncond"], 1 + a["w"][:, None, None, None])
    steps = zip(a["logsnr"], a["logsnr_next"], a["model_mean"], a["model_variance"], strict=True)
    for level, level_next, mean, variance in steps:
        x0 = ls.x0_from_output(a["z"], eps, level).clamp(-1, 1)
        found_mean, found_variance = ls.posterior(a["z"], x0, level, level_next)
        assert relative_error(found_mean, mean) < 1e-5
        assert relative_error(found_variance.flatten(), variance) < 1e-5


def test_logsnr_steps_are_ascending_from_noise() -> None:
    levels = ls.logsnr_steps(256)
    assert len(levels) == 257 and levels[0] == -20 and levels[-1] == 20 and (levels.diff() > 0).all()
    assert ls.logsnr_steps(1).tolist() == [-20, 20]
