import pytest
import torch
from torch import Tensor, nn

from tests.support.script_poses import script_poses
from tests.support.tiny_prior import coarse_prior, cpu, tiny_coarse, tiny_prior
from threedgen.guidance.attention.joined import SEPARATE_LEVELS, camera_vector
from threedgen.guidance.completion import KNOWN_VIEWS_TIMESTEP, KnownViews, complete_views, with_known_views
from threedgen.guidance.view_fusion import ViewFusion

VIEWS = 3


def trained_fusion() -> ViewFusion:
    """A tiny network with effect, as after training."""
    torch.manual_seed(1)
    fusion = ViewFusion(4, 8, 8).eval()
    nn.init.normal_(fusion.out.weight, std=0.3)
    for block in (*fusion.at_full, *fusion.at_half, fusion.at_quarter):
        nn.init.normal_(block.modulation.weight, std=0.1)
    return fusion


def inputs(objects: int = 2) -> dict[str, Tensor]:
    gen, shape = cpu(), (objects, VIEWS, 4, 8, 8)
    camera = camera_vector(script_poses(objects * VIEWS)).unflatten(0, (objects, VIEWS))
    level = torch.rand(shape[:2], generator=gen)
    return {
        "x": torch.randn(shape, generator=gen),
        "level": level,
        "camera": camera,
        "coarse": torch.randn(shape, generator=gen),
    }


@torch.no_grad()
def test_untrained_fusion_keeps_coarse_predictions() -> None:
    given = inputs()
    assert torch.equal(ViewFusion(4, 8, 8)(**given), given["coarse"])


@torch.no_grad()
def test_order_of_views_and_other_objects_do_not_count() -> None:
    fusion, given = trained_fusion(), inputs()
    whole = fusion(**given)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(fusion(**{k: x[:, order] for k, x in given.items()}), whole[:, order])
    torch.testing.assert_close(fusion(**{k: x[:1] for k, x in given.items()}), whole[:1])


@torch.no_grad()
@pytest.mark.parametrize("name", ["x", "level", "camera", "coarse"])
def test_prediction_for_a_view_depends_on_another_view_but_not_on_its_coarse_prediction(name: str) -> None:
    fusion, given = trained_fusion(), inputs(1)
    other = given[name].clone()
    other[:, 2] = other[:, 1]
    change = fusion(**(given | {name: other})) - fusion(**given)
    assert (change[:, 0].abs().max() > 1e-3) == (name != "coarse") and change[:, 2].abs().max() > 1e-3


@torch.no_grad()
def test_prior_improves_coarse_predictions_object_by_object() -> None:
    coarse = tiny_coarse(fusion=8)
    nn.init.normal_(coarse.fusion.out.weight, std=0.3)
    prior, camera = coarse_prior(coarse), camera_vector(script_poses(4))
    x, t = torch.randn(4, 4, 8, 8, generator=cpu()), torch.tensor([500, 10, 999, 300])
    start = torch.randn(4, 4, 8, 8, generator=cpu(1))
    views = (y.unflatten(0, (2, 2)) for y in (x, prior.schedule.noise_level(t), camera, start))
    found = prior.fuse_views(start, x, t, camera, n_view=2)
    torch.testing.assert_close(found, coarse.fusion(*views).flatten(0, 1))
    text = prior.encode_prompt(["cat"]).expand(4, -1, -1)
    whole = prior.predict(x, t, text, camera, n_view=2)
    noisier = torch.cat([x[:3], x[3:] + 1])
    change = (prior.fuse_views(start, noisier, t, camera, n_view=2) - found).flatten(1).abs().amax(1)
    assert change[2] > 1e-4 and not change[:2].any(), "the other view of the object changes, other objects do not"
    changed = prior.predict(noisier, t, text, camera, n_view=2)
    torch.testing.assert_close(changed[:2], whole[:2])
    prior.unet.to(torch.bfloat16)
    prior.dtype, prior.half_weights = torch.bfloat16, True
    half = prior.network(x, t, text, camera, n_view=2)
    assert half.dtype is torch.float32 and (half - whole).abs().max() < 0.1 * whole.abs().max()
    small = torch.zeros(4, 4, 12, 12)
    assert torch.equal(prior.fuse_views(start, small, t, camera, 2), start)
    assert torch.equal(prior.fuse_views(start, x, t, None, 2), start)
    assert torch.equal(coarse_prior().fuse_views(start, x, t, camera, 2), start)


@torch.no_grad()
def test_predictor_with_a_new_fusion_predicts_as_before() -> None:
    before, after = tiny_coarse(), tiny_coarse()
    after.add_fusion(8)
    prior, wide = coarse_prior(before), coarse_prior(after)
    text, camera = prior.encode_prompt(["cat"]).expand(2, -1, -1), camera_vector(script_poses(2))
    x, t = torch.randn(2, 4, 8, 8, generator=cpu()), torch.tensor([500, 10])
    assert torch.equal(wide.predict(x, t, text, camera, 2), prior.predict(x, t, text, camera, 2))
    kept = after.fusion
    after.add_fusion(8)
    assert after.fusion is kept and after.config["fusion"] == 8


def noise(count: int, seed: int) -> Tensor:
    return torch.randn(count, 4, 8, 8, generator=cpu(seed))


def test_new_views_attend_to_known_views_of_their_object() -> None:
    prior = tiny_prior()
    poses, known, new = script_poses(5), noise(4, 0), noise(6, 1)  # two objects, two known and three new views
    camera, texts = prior.camera(poses), prior.encode_prompt(["a red dog", "a blue cat"])
    text, t = texts.repeat_interleave(3, 0), torch.full((6,), 700)
    companions = KnownViews(known, camera[:2].repeat(2, 1))
    with torch.no_grad():
        found = with_known_views(prior.denoise, companions, 2)(new, t, text, camera[2:].repeat(2, 1), 3)
        for k in range(2):
            x = torch.cat([known[2 * k : 2 * k + 2], new[3 * k : 3 * k + 3]])
            levels = torch.tensor([KNOWN_VIEWS_TIMESTEP] * 2 + [700] * 3)
            direct = prior.denoise(x, levels, texts[k : k + 1].expand(5, -1, -1), camera, 5)
            torch.testing.assert_close(found[3 * k : 3 * k + 3], direct[2:], rtol=0, atol=1e-5)
        alone = with_known_views(prior.denoise, companions, 2)(new, t, text, None, 1)
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


def test_prior_with_object_codes_completes_views() -> None:
    prior, poses = coarse_prior(), script_poses(6)
    assert prior.completes_views and not tiny_prior().completes_views
    views = torch.rand(1, 16, 16, 3, generator=cpu(0))
    text = prior.encode_prompt(["a red dog", ""]).split(1)
    first, other = (
        complete_views(prior, text, known, poses[:1], poses[1:], 5, 2.0, generator=cpu())
        for known in (views, 1 - views)
    )
    assert first.shape == (5, 16, 16, 3) and (first - other).abs().max() > 1e-6
