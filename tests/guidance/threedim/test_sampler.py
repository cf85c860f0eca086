"""Sampling views one after the other: which view conditions which, noise, guidance, one-step regression."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_threedim import poses, tiny_network
from threedgen.geometry.cameras import Projection
from threedgen.guidance.threedim.logsnr import Prediction, alpha_sigma, target
from threedgen.guidance.threedim.sampler import candidates, guided_x0, sample_views


def generators(scenes: int, seed: int = 0) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(1000 * seed + scene) for scene in range(scenes)]


def scenes(count: int = 2, inputs: int = 1, targets: int = 3, size: int = 4) -> dict[str, Any]:
    """Arguments of ``sample_views``; the x of a pose's place is the number of its view."""
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


class Listener:
    """Predicts what it is told to, and remembers what it was asked."""

    clip: float | None = 1.0

    def __init__(self, prediction: Prediction = "sample", conditional: float = 0.2, dropped: float = 0.0) -> None:
        self.prediction, self.values = prediction, (dropped, conditional)
        self.calls: list[dict[str, Tensor]] = []

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        self.calls.append({"x": x, "z": z, "logsnr": logsnr, "c2w": c2w, "keep": keep})
        return torch.tensor(self.values)[keep.long()][:, None, None, None].expand_as(z)

    def picked(self, scene: int) -> list[int]:
        """The views that conditioned the scene, call by call."""
        return [int(call["c2w"][scene, 0, 0, 3]) for call in self.calls]


# ---------------------------------------------------------------- which view conditions


def test_stochastic_conditioning_draws_at_every_step_from_all_views_that_are_there() -> None:
    model, given = Listener(), scenes(inputs=2, targets=4)
    views = sample_views(model, **given, steps=64)
    assert views.shape == (2, 4, 3, 4, 4)
    for scene in range(2):
        picked = model.picked(scene)
        for made in range(4):
            drawn = picked[64 * made : 64 * (made + 1)]
            assert set(drawn) == set(range(2 + made))
            assert all(64 / (2 + made) * 0.4 < drawn.count(view) for view in range(2 + made))
            assert sum(a != b for a, b in zip(drawn, drawn[1:], strict=False)) > 16
    assert model.picked(0) != model.picked(1)  # each scene draws for itself


def test_a_condition_is_the_picture_of_its_pose_and_the_target_is_told() -> None:
    model, given = Listener(), scenes(inputs=2, targets=3)
    views = sample_views(model, **given, steps=8)
    known = torch.cat([given["images"], views], dim=1)
    all_poses = torch.cat([given["c2w"], given["targets"]], dim=1)
    for number, call in enumerate(model.calls):
        for scene in range(2):
            view = int(call["c2w"][scene, 0, 0, 3])
            assert torch.equal(call["x"][scene], known[scene, view])
            assert torch.equal(call["c2w"][scene], all_poses[scene, [view, 2 + number // 8]])


def test_first_view_conditions_on_nothing_else() -> None:
    model = Listener()
    sample_views(model, **scenes(inputs=2), strategy="first", steps=16)
    assert set(model.picked(0)) == {0} == set(model.picked(1))


@pytest.mark.parametrize("window", [1, 2])
def test_markovian_conditions_on_the_last_views(window: int) -> None:
    model = Listener()
    sample_views(model, **scenes(inputs=1, targets=4), strategy="last", last=window, steps=32)
    for made in range(4):
        drawn = model.picked(0)[32 * made : 32 * (made + 1)]
        assert set(drawn) == set(range(max(0, 1 + made - window), 1 + made))


def test_strategies_by_name_and_number() -> None:
    assert list(candidates("stochastic", 5)) == [0, 1, 2, 3, 4] and list(candidates("first", 5)) == [0]
    assert list(candidates("last", 1, 2)) == [0] and list(candidates("last", 5, 2)) == [3, 4]
    assert candidates("last", 6, 3) == range(3, 6)


# ---------------------------------------------------------------- noise and repeatability


def test_a_scene_is_the_same_alone_and_among_others_and_differs_by_its_generator() -> None:
    network, given = tiny_network(), scenes(3, size=8, targets=2)
    together = sample_views(network, **given | {"generators": generators(3)}, steps=3, guidance_scale=2.0)
    one = {name: value[1:2] for name, value in given.items()} | {"generators": generators(3)[1:2]}
    alone = sample_views(network, **one, steps=3, guidance_scale=2.0)
    torch.testing.assert_close(alone, together[1:2], rtol=0, atol=1e-4)
    again = sample_views(network, **one | {"generators": generators(3)[1:2]}, steps=3, guidance_scale=2.0)
    assert torch.equal(again, alone)
    other = sample_views(network, **one | {"generators": generators(1, seed=9)}, steps=3, guidance_scale=2.0)
    assert (other - alone).abs().max() > 1e-2
    assert alone.abs().max() <= 1


def test_strategy_and_guidance_do_not_shift_the_noise() -> None:
    starts = []
    for options in ({}, {"strategy": "first"}, {"strategy": "last", "last": 2, "guidance_scale": 3.0}):
        model = Listener()
        sample_views(model, **scenes() | options, steps=4)
        starts.append(torch.stack([call["z"][:2] for call in model.calls[::4]]))  # of each view's chain
    assert torch.equal(starts[0], starts[1]) and torch.equal(starts[0], starts[2])
    assert (starts[0][0] - starts[0][1]).abs().max() > 0.1


class Gaussian:
    """The perfect model of pictures that are normal with mean 0.3 and deviation 0.5, whatever the condition."""

    clip = None

    def __init__(self, prediction: Prediction) -> None:
        self.prediction = prediction

    def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
        alpha, sigma = alpha_sigma(logsnr.double(), z)
        x0 = 0.3 + 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * (z - 0.3 * alpha)
        return target(x0, (z - alpha * x0) / sigma, logsnr.double(), self.prediction).float()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_chain_samples_the_distribution_of_a_perfect_model(prediction: Prediction) -> None:
    views = sample_views(Gaussian(prediction), **scenes(2, targets=1, size=48), steps=128)
    assert views.mean().item() == pytest.approx(0.3, abs=0.02)
    assert views.std().item() == pytest.approx(0.5, abs=0.02)


def test_predicted_pictures_are_clipped_unless_they_are_latents() -> None:
    bold = Listener(conditional=3.0)
    assert sample_views(bold, **scenes(), steps=4).max() == 1
    bold.clip = None
    torch.testing.assert_close(sample_views(bold, **scenes(), steps=4), torch.full((2, 3, 3, 4, 4), 3.0))


def test_the_chain_goes_on_from_the_clipped_prediction() -> None:
    """Not only the last view is bounded: predictions beyond the bound lead the chain as the bound itself does."""
    chains, seen = [], []
    for value in (3.0, 1.0):
        model = Listener(conditional=value)
        sample_views(model, **scenes(), steps=6, progress=lambda done, total, x0: seen.append(float(x0.max())))
        chains.append(torch.stack([call["z"] for call in model.calls]))
    assert torch.equal(*chains) and set(seen) == {1.0}


def test_progress_counts_the_steps_of_all_views() -> None:
    seen: list[tuple[int, int, torch.Size]] = []
    sample_views(Listener(), **scenes(), steps=5, progress=lambda done, total, x0: seen.append((done, total, x0.shape)))
    assert seen == [(done, 15, torch.Size([2, 3, 4, 4])) for done in range(1, 16)]


# ---------------------------------------------------------------- guidance


def test_guidance_of_one_asks_only_for_the_condition_and_of_zero_never_shows_it() -> None:
    for scale, kept in ((1.0, True), (0.0, False)):
        model, given = Listener(), scenes()
        views = sample_views(model, **given, steps=4, guidance_scale=scale)
        assert all(call["keep"].tolist() == [kept] * 2 for call in model.calls)
        torch.testing.assert_close(views, torch.full_like(views, 0.2 if kept else 0.0))
        if not kept:
            conditions = torch.stack([call["x"] for call in model.calls])
            assert conditions.std().item() == pytest.approx(1, abs=0.1)  # noise, and fresh at each step
            assert (conditions[0] - conditions[1]).abs().max() > 0.1


def test_guidance_counts_from_the_unconditional_side() -> None:
    model = Listener(conditional=0.2, dropped=0.1)
    views = sample_views(model, **scenes(), steps=2, guidance_scale=4.0)
    assert model.calls[0]["keep"].tolist() == [True, True, False, False]
    assert torch.equal(model.calls[0]["z"][:2], model.calls[0]["z"][2:])
    torch.testing.assert_close(views, torch.full_like(views, 0.1 + 4 * (0.2 - 0.1)))


def test_guidance_is_the_same_in_every_parameterisation() -> None:
    gen = torch.Generator().manual_seed(0)
    x, blank, z, first, second = torch.randn(5, 2, 3, 4, 4, generator=gen)
    level = torch.tensor(0.7)

    class Two:
        def __init__(self, prediction: Prediction) -> None:
            self.prediction = prediction

        def predict(self, x: Tensor, z: Tensor, logsnr: Tensor, c2w: Tensor, K: Tensor, keep: Tensor) -> Tensor:
            x0, (alpha, sigma) = torch.cat([first, second]), alpha_sigma(logsnr, z)
            return target(x0, (z - alpha * x0) / sigma, logsnr, self.prediction)

    found = [
        guided_x0(Two(p), x, blank, z, level, torch.zeros(2, 2, 4, 4), torch.zeros(2, 3, 3), 3.0)
        for p in ("epsilon", "v_prediction", "sample")
    ]
    for x0 in found:
        torch.testing.assert_close(x0, second + 3 * (first - second), rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- regression


def test_regression_is_one_question_of_white_noise() -> None:
    model = Listener(conditional=0.7)
    views = sample_views(model, **scenes(targets=3), strategy="first", steps=1)
    assert len(model.calls) == 3
    assert all(call["logsnr"].tolist() == [-20.0, -20.0] for call in model.calls)
    assert torch.stack([call["z"] for call in model.calls]).std().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(views, torch.full_like(views, 0.7))


def test_a_regression_network_gives_its_output() -> None:
    network, given = tiny_network(prediction="sample"), scenes(size=8, targets=1)
    outputs: list[Tensor] = []
    network.register_forward_hook(lambda _m, _i, out: outputs.append(out))
    views = sample_views(network, **given, steps=1)
    torch.testing.assert_close(views[:, 0], outputs[0].clamp(-1, 1), rtol=0, atol=1e-5)


# ---------------------------------------------------------------- networks and refusals


def test_both_networks_sample_under_autocast() -> None:
    for architecture in ("xunet", "concat"):
        network = tiny_network(architecture=architecture)
        with torch.autocast("cpu", torch.bfloat16):
            views = sample_views(network, **scenes(size=8), steps=2, guidance_scale=2.0)
        assert views.dtype == torch.float32 and views.isfinite().all() and not views.requires_grad


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"images": torch.zeros(2, 3, 4, 4)}, r"images has the shape \(2, 3, 4, 4\)"),
        ({"images": torch.zeros(2, 0, 3, 4, 4)}, "views >= 1"),
        ({"c2w": torch.zeros(2, 2, 4, 4)}, r"c2w has the shape \(2, 2, 4, 4\); these images need \(2, 1, 4, 4\)"),
        ({"targets": torch.zeros(1, 5, 4, 4)}, "targets has the shape"),
        ({"targets": torch.zeros(2)}, "targets has the shape"),
        ({"K": torch.zeros(3, 3)}, "K has the shape"),
        ({"generators": generators(1)}, "1 generators were given for 2 scenes"),
        ({"generators": generators(1) * 2}, "1 generators were given for 2 scenes"),
        ({"steps": 0}, "steps = 0 is out of range"),
    ],
)
def test_arguments_that_do_not_fit_are_named(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        sample_views(Listener(), **scenes() | change)


def test_no_targets_are_no_views() -> None:
    given = scenes()
    assert sample_views(Listener(), **given | {"targets": given["targets"][:, :0]}).shape == (2, 0, 3, 4, 4)
