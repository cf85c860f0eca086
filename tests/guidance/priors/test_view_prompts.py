import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.support.errors import refused
from tests.support.fixed_noise import sds_eps
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_c2w
from threedgen.geometry.rigs import Rig
from threedgen.guidance.guidance import combine, combine_perp_neg, perpendicular
from threedgen.guidance.losses.options import ViewPromptsConfig
from threedgen.guidance.priors.view_prompts import DIRECTIONS, direction, prompts, view_text
from threedgen.guidance.schedule import Schedule

WORDS = ViewPromptsConfig(enabled=True)
PERP = ViewPromptsConfig(enabled=True, perp_neg=True)


def cameras(azimuths: list[float], elevation: float = 10.0) -> Rig:
    """Cameras at azimuths in degrees, which may exceed a full turn."""
    azimuth, ones = torch.tensor(azimuths).deg2rad(), torch.ones(len(azimuths))
    orbit = math.radians(elevation) * ones, azimuth, 2.0 * ones
    c2w = orbit_c2w(*orbit)
    return Rig(Cameras(c2w, Projection.perspective(0.7 * ones, 4, 4), 4, 4), *orbit, c2w[:, :3, 3])


def embeddings() -> Tensor:
    """Text k is (k, k^2), in the order prompt, negative, side, front, back, overhead: (6, 1, 2)."""
    k = torch.arange(6.0)
    return torch.stack([k, k * k], dim=-1)[:, None]


SIDE, FRONT, BACK, OVERHEAD = embeddings()[2:]


def test_prompts_append_view_words() -> None:
    assert prompts("a dog", "ugly", ViewPromptsConfig()) == ["a dog", "ugly"]
    assert prompts("a dog", "", WORDS)[2:] == [f"a dog, {side} view" for side in DIRECTIONS]
    with refused(None, "perp_neg", "enabled=true", kind=ValidationError):
        ViewPromptsConfig(perp_neg=True)


def test_direction_follows_azimuth_and_elevation() -> None:
    rig = cameras([0, 44, 46, 90, 134, 136, 180, -136, -90, -44, 360, 405, 900])
    found = [DIRECTIONS[k] for k in direction(rig, WORDS)]
    assert found == ["front"] * 2 + ["side"] * 3 + ["back"] * 3 + ["side", "front", "front"] + ["side", "back"]
    assert direction(cameras([0, 180], 61), WORDS).tolist() == [3, 3]
    narrow = ViewPromptsConfig(enabled=True, front_within=30, back_within=20)
    assert direction(cameras([31, 29, 161, 159]), narrow).tolist() == [0, 1, 2, 0]


def test_view_text_selects_text_per_camera() -> None:
    off = view_text(embeddings()[:2], cameras([0, 90]), ViewPromptsConfig())
    assert torch.equal(off.text[0], embeddings()[:1]) and torch.equal(off.text[1], embeddings()[1:2])
    on = view_text(embeddings(), cameras([0, 90, 180]), WORDS)
    assert torch.equal(on.text[0], torch.stack([FRONT, SIDE, BACK])) and on.negatives is None
    assert torch.equal(on.text[1], embeddings()[1:2])


@pytest.mark.parametrize(
    ("azimuth", "elevation", "text", "negatives", "weights"),
    [
        (0.0, 10.0, FRONT, (FRONT, SIDE), (0.000, 1.574)),
        (45.0, 10.0, (FRONT + SIDE) / 2, (FRONT, SIDE), (0.689, 0.689)),
        (89.999, 10.0, SIDE, (FRONT, SIDE), (1.574, 0.000)),
        (90.001, 10.0, SIDE, (SIDE, FRONT), (0.000, 1.574)),
        (135.0, 10.0, (SIDE + BACK) / 2, (SIDE, FRONT), (0.173, 1.746)),
        (-135.0, 10.0, (SIDE + BACK) / 2, (SIDE, FRONT), (0.173, 1.746)),
        (180.0, 10.0, BACK, (SIDE, FRONT), (0.394, 1.967)),
        (100.0, 80.0, OVERHEAD, (SIDE, FRONT), (0.0, 0.0)),
    ],
)
def test_perp_neg_texts_and_weights(azimuth, elevation, text, negatives, weights) -> None:
    found = view_text(embeddings(), cameras([azimuth], elevation), PERP)
    torch.testing.assert_close(found.text[0], text[None], atol=1e-3, rtol=0)
    assert found.negatives is not None and torch.equal(found.negatives.text[:, 0], torch.stack(negatives))
    torch.testing.assert_close(found.negatives.weights[:, 0], torch.tensor(weights), atol=1e-3, rtol=0)


def test_combine_perp_neg_uses_perpendicular_component_only() -> None:
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


def test_sds_with_negatives_is_one_call_of_all_texts() -> None:
    sd, calls = Schedule.scaled_linear(), []
    sides = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1))  # not parallel

    def denoise(x: Tensor, t: Tensor, text: Tensor, camera: Tensor | None, n_view: int) -> Tensor:
        calls.append(len(x))
        return torch.einsum("nlk,kchw->nchw", text, sides) + 0.1 * x

    z = torch.zeros(3, 4, 2, 2, requires_grad=True)
    condition = view_text(embeddings(), cameras([30, 90, 170]), PERP)
    noise, t = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0)), torch.tensor([400])
    same = {"schedule": sd, "t": t, "noise": noise, "guidance_scale": 5.0, "weighting": "uniform"}
    loss, _ = sds_eps(z, denoise, condition.text, None, 1, **same, negatives=condition.negatives)
    assert calls == [12]
    (grad,) = torch.autograd.grad(loss, z)
    x = sd.add_noise(z.detach(), noise, t)
    assert condition.negatives is not None
    weights = condition.negatives.weights
    texts = [condition.text[0], condition.text[1].expand(3, -1, -1), *condition.negatives.text]
    cond, uncond, *rest = (denoise(x, t, text, None, 1) for text in texts)
    expected = combine_perp_neg(cond, uncond, rest, weights, 5.0) - noise
    for other in ([1, 0], [0, 0]):
        assert (combine_perp_neg(cond, uncond, rest, weights[other], 5.0) - noise - expected).abs().max() > 0.1
    torch.testing.assert_close(grad, expected / 3, atol=1e-5, rtol=1e-4)
