"""Words for the side from which one looks, and Perp-Neg."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.support.fixed_noise import sds_eps
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.geometry.rigs import Rig
from threedgen.guidance.diffusion import Negatives, combine, combine_perp_neg, perpendicular
from threedgen.guidance.distillation.options import ViewPromptsConfig
from threedgen.guidance.priors.view_prompts import DIRECTIONS, direction, prompts, view_text
from threedgen.guidance.schedule import Schedule

WORDS = ViewPromptsConfig(enabled=True)
PERP = ViewPromptsConfig(enabled=True, perp_neg=True)


def cameras(azimuths: list[float], elevation: float = 10.0) -> Rig:
    """Cameras at these azimuths, degrees; they may be beyond a full turn."""
    azimuth, same = torch.tensor(azimuths).deg2rad(), torch.ones(len(azimuths))
    steep, far = math.radians(elevation) * same, 2.0 * same
    c2w = orbit_c2w(steep, azimuth, far)
    return Rig(Cameras(c2w, Projection.perspective(0.7 * same, 4, 4), 4, 4), steep, azimuth, far, c2w[:, :3, 3])


def embeddings() -> Tensor:
    """(6, 1, 2): text k is (k, k^2), in the order prompt, negative, side, front, back, overhead."""
    k = torch.arange(6.0)
    return torch.stack([k, k * k], dim=-1)[:, None]


SIDE, FRONT, BACK, OVERHEAD = embeddings()[2:]


def test_what_is_encoded() -> None:
    assert prompts("a dog", "ugly", ViewPromptsConfig()) == ["a dog", "ugly"]
    assert prompts("a dog", "", WORDS)[2:] == [f"a dog, {side} view" for side in DIRECTIONS]
    other = ViewPromptsConfig(enabled=True, back=" from behind")
    assert prompts("a dog", "", other)[4] == "a dog from behind"


def test_azimuth_and_elevation_choose_the_words() -> None:
    looked = cameras([0, 44, 46, 90, 134, 136, 180, -136, -90, -44, 360, 405, 900])
    found = [DIRECTIONS[k] for k in direction(looked, WORDS)]
    assert found == ["front"] * 2 + ["side"] * 3 + ["back"] * 3 + ["side", "front", "front"] + ["side", "back"]
    assert direction(cameras([0, 180], 61), WORDS).tolist() == [3, 3]
    narrow = ViewPromptsConfig(enabled=True, front_within=30, back_within=20)
    assert direction(cameras([31, 29, 161, 159]), narrow).tolist() == [0, 1, 2, 0]


def test_each_camera_gets_its_text() -> None:
    off = view_text(embeddings()[:2], cameras([0, 90]), ViewPromptsConfig())
    assert torch.equal(off.text[0], embeddings()[:1]) and torch.equal(off.text[1], embeddings()[1:2])
    on = view_text(embeddings(), cameras([0, 90, 180]), WORDS)
    assert torch.equal(on.text[0], torch.stack([FRONT, SIDE, BACK])) and on.negatives is None
    assert torch.equal(on.text[1], embeddings()[1:2])


def test_perp_neg_goes_over_from_side_to_side() -> None:
    said = view_text(embeddings(), cameras([0, 45, 90, 135, 180, -135]), PERP)
    between = [FRONT, (FRONT + SIDE) / 2, SIDE, (SIDE + BACK) / 2, BACK, (SIDE + BACK) / 2]
    torch.testing.assert_close(said.text[0], torch.stack(between))
    assert said.negatives is not None
    front_first = said.negatives.text[:, 0], said.negatives.text[:, 3]
    assert torch.equal(front_first[0], torch.stack([FRONT, SIDE])), "before 90 degrees"
    assert torch.equal(front_first[1], torch.stack([SIDE, FRONT])), "behind"


def test_perp_neg_pushes_away_from_the_front_everywhere_but_there() -> None:
    turn = list(range(0, 181, 5))
    said = view_text(embeddings(), cameras([float(a) for a in turn]), PERP)
    assert said.negatives is not None and said.negatives.weights.shape == (2, len(turn))
    assert (said.negatives.weights >= 0).all()
    fronts = [bool((said.negatives.text[k, i] == FRONT).all()) for i in range(len(turn)) for k in (0, 1)]
    weights = said.negatives.weights.T.flatten()[torch.tensor(fronts)]
    assert float(weights[0]) < 1e-3 and (weights[1:] > weights[:-1]).all() and float(weights[-1]) > 1.9
    just = view_text(embeddings(), cameras([89.99, 90.01]), PERP).negatives
    assert just is not None
    near, far = just.weights[:, 0], just.weights[:, 1]  # front and side; side and front
    torch.testing.assert_close(near, far.flip(0), atol=2e-3, rtol=0)


def test_from_overhead_there_are_no_negatives() -> None:
    said = view_text(embeddings(), cameras([0, 100], 80), PERP)
    assert torch.equal(said.text[0], torch.stack([OVERHEAD, OVERHEAD]))
    assert said.negatives is not None and not said.negatives.weights.any()


def test_only_what_is_perpendicular_to_the_prompt_counts() -> None:
    cond, uncond = torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    other = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(1))
    wanted, weights = cond - uncond, torch.tensor([[0.5, 1.0, 2.0]])
    overlapping = uncond + 3 * wanted
    torch.testing.assert_close(
        combine_perp_neg(cond, uncond, [overlapping], weights, 7.0), combine(cond, uncond, 7.0), atol=1e-4, rtol=0
    )
    across = perpendicular(other, wanted)
    assert (across * wanted).flatten(1).sum(1).abs().max() < 1e-4
    got = combine_perp_neg(cond, uncond, [uncond + other], weights, 7.0)
    torch.testing.assert_close(got, combine(cond, uncond, 7.0) - 7 * weights[0][:, None, None, None] * across)


def test_sds_asks_for_all_texts_in_one_call() -> None:
    sd, calls = Schedule.scaled_linear(), []

    def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
        calls.append(len(x))
        return text.mean((1, 2))[:, None, None, None] * torch.linspace(-1, 1, x[0].numel()).view_as(x[0]) + 0.1 * x

    z = torch.zeros(3, 4, 2, 2, requires_grad=True)
    said = view_text(embeddings(), cameras([30, 90, 170]), PERP)
    noise, t = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([400])
    same = {"schedule": sd, "t": t, "noise": noise, "guidance_scale": 5.0, "weighting": "uniform"}
    loss, _ = sds_eps(z, denoise, said.text, None, 1, **same, negatives=said.negatives)
    assert calls == [12]
    (grad,) = torch.autograd.grad(loss, z)
    x = sd.add_noise(z.detach(), noise, t)
    assert said.negatives is not None
    texts = [said.text[0], said.text[1].expand(3, -1, -1), *said.negatives.text]
    cond, uncond, *rest = (denoise(x, t, text, None, 1) for text in texts)
    expected = combine_perp_neg(cond, uncond, rest, said.negatives.weights, 5.0) - noise
    torch.testing.assert_close(grad, expected / 3, atol=1e-5, rtol=1e-4)
    assert isinstance(said.negatives, Negatives)


def test_perp_neg_needs_the_words() -> None:
    with pytest.raises(ValidationError, match="perp_neg .*enabled=true"):
        ViewPromptsConfig(perp_neg=True)
