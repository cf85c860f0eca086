"""Single pictures of a prior that knows cameras and is told none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.tiny_prior import cpu, drafting_prior
from threedgen.guidance.diffusion import Schedule
from threedgen.guidance.options import StableDiffusionConfig
from threedgen.guidance.priors import stable_diffusion
from threedgen.guidance.priors.camera_posterior import UnseenCamera, candidates
from threedgen.guidance.priors.mvdream import MVDream, camera_vector

SCHEDULE = Schedule.linear()


class Sides(torch.nn.Module):
    """A draft whose pictures differ from side to side, and between two texts."""

    def forward(self, text: torch.Tensor, camera: torch.Tensor) -> torch.Tensor:
        pictures = torch.randn(len(camera), 4, 8, 8, generator=cpu())
        return pictures + text.mean((1, 2)).reshape(-1, 1, 1, 1)


def unseen(front: float = 0.0) -> UnseenCamera:
    return UnseenCamera(Sides(), camera_vector(candidates()), front)  # type: ignore[arg-type]


def words(value: float, count: int) -> torch.Tensor:
    return torch.full((count, 3, 2), value)


def test_where_all_is_noise_photographers_decide() -> None:
    camera = camera_vector(candidates())
    cos = camera[:, 3] / torch.hypot(camera[:, 3], camera[:, 7])
    x, t = torch.randn(600, 4, 8, 8, generator=cpu()), torch.tensor(SCHEDULE.T - 1)
    for front in (0.0, 2.0):
        seen = unseen(front)(x, t, words(0.0, 600), SCHEDULE).camera
        found = (seen[:, 3] / torch.hypot(seen[:, 3], seen[:, 7])).mean()
        assert float(found) == pytest.approx(float((cos * (front * cos).softmax(0)).sum()), abs=0.08)


@pytest.mark.parametrize("t", [20, 300])
def test_where_something_is_to_be_seen_that_side_is_found(t: int) -> None:
    guess, side = unseen(front=3.0), torch.tensor([0, 7, 12, 40, 71])
    clean = guess.drafts(words(0.0, 1)[0], torch.empty(1, 4, 8, 8))[side]
    noise = torch.randn(clean.shape, generator=cpu(7))
    x = SCHEDULE.add_noise(clean, noise, t)
    found = guess(x, torch.full((5,), t), words(0.0, 5), SCHEDULE)
    assert torch.equal(found.camera, camera_vector(candidates())[side]) and torch.equal(found.draft, clean)


def test_the_branches_of_guidance_look_from_the_side_that_the_first_suggests() -> None:
    guess, t = unseen(), torch.full((6,), 999)
    x = torch.randn(3, 4, 8, 8, generator=cpu())
    text = torch.cat([words(0.0, 3), words(5.0, 3)])
    both = guess(torch.cat([x, x]), t, text, SCHEDULE)
    assert torch.equal(both.camera[:3], both.camera[3:])
    torch.testing.assert_close(both.draft[3:], both.draft[:3] + 5)
    assert len({tuple(row) for row in both.camera[:3].tolist()}) > 1
    again = unseen()(x[1:2], t[:1], text[:1], SCHEDULE)
    assert torch.equal(again.camera, both.camera[1:2])  # asked alone, and by another


@torch.no_grad()
def test_a_prior_with_a_draft_is_told_the_side_that_it_guessed(tmp_path: Path) -> None:
    whole = drafting_prior()
    whole.save(tmp_path)
    options = StableDiffusionConfig(weights=str(tmp_path), dtype="fp32", front=1.0)
    prior, whole = stable_diffusion.build(options), MVDream.load(str(tmp_path), dtype="fp32")
    x, t = torch.randn(4, 4, 8, 8, generator=cpu()), torch.full((4,), 900)
    text = prior.encode_prompt(["a red dog"]).repeat(4, 1, 1)
    said = prior.denoise(x, t, text, camera_vector(candidates()[:4]), 4)
    assert prior.unseen is not None and prior.front == 1.0
    camera = prior.unseen(x, t, text, prior.schedule).camera
    torch.testing.assert_close(said, whole.denoise(x, t, text, camera), atol=1e-5, rtol=0)
    assert not torch.allclose(said, whole.denoise(x, t, text), atol=1e-4)
    large = prior.denoise(torch.randn(1, 4, 16, 16, generator=cpu()), t[:1], text[:1])
    assert large.shape == (1, 4, 16, 16) and large.isfinite().all()
