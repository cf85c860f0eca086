"""Completion of views beside known ones."""

import torch
from torch import Tensor

from tests.support.script_poses import script_poses
from tests.support.tiny_prior import coarse_prior, cpu, tiny_prior
from threedgen.guidance.attention.joined import SEPARATE_LEVELS
from threedgen.guidance.completion import COMPANION_STEP, Companions, complete_views, with_companions


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=cpu(seed))


def test_new_views_attend_to_known_views_of_their_object() -> None:
    prior = tiny_prior()
    poses, known, new = script_poses(5), noise(4, 0), noise(6, 1)  # two objects, two known and three new views
    camera, texts = prior.camera(poses), prior.encode_prompt(["a red dog", "a blue cat"])
    text, t = texts.repeat_interleave(3, 0), torch.full((6,), 700)
    companions = Companions(known, camera[:2].repeat(2, 1))
    with torch.no_grad():
        found = with_companions(prior.denoise, companions, 2)(new, t, text, camera[2:].repeat(2, 1), 3)
        for k in range(2):
            x = torch.cat([known[2 * k : 2 * k + 2], new[3 * k : 3 * k + 3]])
            levels = torch.tensor([COMPANION_STEP] * 2 + [700] * 3)
            direct = prior.denoise(x, levels, texts[k : k + 1].expand(5, -1, -1), camera, 5)
            torch.testing.assert_close(found[3 * k : 3 * k + 3], direct[2:], rtol=0, atol=1e-5)
        alone = with_companions(prior.denoise, companions, 2)(new, t, text, None, 1)
        torch.testing.assert_close(alone, prior.denoise(new, t, text, None, 1))


def test_completed_views_depend_on_known_views_and_seed() -> None:
    prior, poses = tiny_prior(), script_poses(6)
    prior.unet.register_to_config(**{SEPARATE_LEVELS: True})
    views = torch.rand(2, 16, 16, 3, generator=cpu(0))

    def completed(views: Tensor, seed: int = 0, known: Tensor = poses[:2]) -> Tensor:
        text = prior.encode_prompt(["a red dog", ""]).split(1)
        return complete_views(prior, text, views, known, poses[2:], 3, 2.0, generator=cpu(seed))

    first = completed(views)
    assert first.shape == (4, 16, 16, 3) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, completed(views))
    others = (completed(1 - views), completed(views, seed=1), completed(views, known=poses[3:5]))
    assert all((first - other).abs().max() > 1e-6 for other in others)


def test_weights_tell_whether_views_can_be_completed() -> None:
    prior = tiny_prior()
    assert not prior.completes_views
    prior.unet.register_to_config(**{SEPARATE_LEVELS: True})
    assert prior.completes_views and coarse_prior().completes_views


def test_prior_with_object_codes_completes_views() -> None:
    prior, poses = coarse_prior(), script_poses(6)
    views = torch.rand(1, 16, 16, 3, generator=cpu(0))
    text = prior.encode_prompt(["a red dog", ""]).split(1)
    first, other = (
        complete_views(prior, text, known, poses[:1], poses[1:], 5, 2.0, generator=cpu())
        for known in (views, 1 - views)
    )
    assert first.shape == (5, 16, 16, 3) and (first - other).abs().max() > 1e-6
