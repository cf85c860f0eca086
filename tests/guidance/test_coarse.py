import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.errors import refused
from tests.support.script_poses import script_poses
from tests.support.tiny_prior import coarse_prior, cpu, tiny_coarse, tiny_prior
from threedgen.evaluation.view_use import Objects
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_array
from threedgen.guidance.attention.joined import SEPARATE_LEVELS
from threedgen.guidance.coarse import TEXT_GUIDANCE, CoarsePredictor
from threedgen.guidance.coarse_volume import DEPTHS, DISTANCE, HALF_EXTENT, REACH, shuffle
from threedgen.guidance.completion import KNOWN_VIEWS_TIMESTEP, KnownViews, complete_views, with_known_views
from threedgen.guidance.priors import latent_diffusion
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.view_fusion import ViewFusion
from threedgen.toybox.data.pictures import ViewRings
from threedgen.toybox.world.toybox import Toybox


@torch.no_grad()
def test_embedded_predictor_follows_caption_camera_and_code() -> None:
    """Squared errors for new objects, whose latents have a variance of about 1."""
    prior = MVDream.load("toybox-prior", dtype="fp32")
    objects = Objects.encoded(prior, ViewRings(Toybox(3, "held-out"), 4).render_examples(range(4), prior.image_size))
    z, c2w, plain = objects.z, objects.c2w, prior.encode_prompt(objects.captions)
    text = prior.encode_code(plain, z, c2w)

    def error(text: Tensor, c2w: Tensor) -> float:
        predicted = prior.coarse_latents(text.repeat_interleave(4, 0), c2w.flatten(0, 1), text_guidance=False)
        assert predicted is not None
        return float((predicted.view_as(z) - z).square().mean())

    other_caption, other_code = text.clone(), text.clone()
    other_caption[:, :-1], other_code[:, -1] = text[:, :-1].roll(1, 0), text[:, -1].roll(1, 0)
    assert error(text, c2w) < 0.2 and error(plain, c2w) < 0.4
    assert min(error(text, c2w.roll(1, 1)), error(other_caption, c2w), error(other_code, c2w)) > 0.4
    torch.testing.assert_close(prior.encode_code(plain, z.flip(1), c2w.flip(1)), text, atol=1e-4, rtol=0)
    sampled, others = (prior.sample_code(captions, cpu())[:, -1] for captions in (plain, plain.roll(1, 0)))
    near, far = (torch.cosine_similarity(codes, text[:, -1]) for codes in (sampled, others))
    assert near.min() > 0.5 and far.max() < 0.3


def test_noise_level_is_an_angle() -> None:
    schedule = Schedule(torch.zeros(4), torch.tensor([1.0, 0.5, 0.0, 0.75]), "epsilon")
    torch.testing.assert_close(schedule.noise_level(torch.arange(4)), torch.tensor([0, 0.5, 1, 1 / 3]))


@torch.no_grad()
def test_seed_chooses_one_code_for_all_views_of_a_prompt() -> None:
    prior, c2w = coarse_prior(), script_poses(2)
    text = prior.encode_prompt(["a dog", "a cat"])
    assert text.shape == (2, *prior.text_shape) and not text[:, -1].any()
    rngs = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = prior.sample_code(text, rngs)
    assert torch.equal(both[:, :-1], text[:, :-1]) and both[:, -1].any(1).all()
    torch.testing.assert_close(prior.sample_code(text[1:], torch.Generator().manual_seed(2)), both[1:])
    assert (prior.sample_code(text[1:], torch.Generator().manual_seed(3)) - both[1:]).abs().max() > 1e-3
    prior.coarse.code_width.weight.mul_(10)
    first, second = (prior.sample("a dog", c2w, steps=1, generator=torch.Generator().manual_seed(k)) for k in (1, 2))
    coarse = [prior.coarse_latents(one.expand(2, -1, -1), c2w) for one in (text[:1], both[:1])]
    assert (coarse[0] - coarse[1]).abs().max() > 1e-3 and (first - second).abs().max() > 1e-3
    prior.image_size = 32  # the coarse prediction is smaller
    assert prior.sample("a dog", c2w, steps=1, generator=cpu()).shape == (2, 32, 32, 3)


@torch.no_grad()
def test_predictions_with_a_code_are_guided_away_from_the_empty_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    prior, c2w = coarse_prior(), script_poses(2)
    text = prior.encode_prompt(["a dog"] * 2)
    plain = prior.predict_coarse(text, c2w)
    text = prior.sample_code(text[:1], cpu()).expand(2, -1, -1)
    guided = prior.predict_coarse(text, c2w)
    empty = torch.cat([prior.encode_prompt([""])[:, :-1], text[:1, -1:]], 1).expand(2, -1, -1)
    monkeypatch.setattr(latent_diffusion, "TEXT_GUIDANCE", 0.0)
    single, other = prior.predict_coarse(text, c2w), prior.predict_coarse(empty, c2w)
    torch.testing.assert_close(guided, single + TEXT_GUIDANCE * (single - other))
    torch.testing.assert_close(prior.predict_coarse(prior.encode_prompt(["a dog"] * 2), c2w), plain, msg="no code")
    monkeypatch.undo()
    prior.free_text_encoder()
    torch.testing.assert_close(prior.predict_coarse(text, c2w), guided)


def test_load_refuses_missing_coarse_predictor(tmp_path: Path) -> None:
    coarse_prior().save(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    shutil.rmtree(tmp_path / "coarse")
    with refused(None, 4, 8):
        MVDream.load(str(tmp_path))


# --- the volume of features

SIDE = 16


def trained(**options: Any) -> CoarsePredictor:
    """A tiny predictor whose volume has an effect, as after training."""
    coarse = tiny_coarse(**options)
    for layer in coarse.volume.out:
        nn.init.normal_(layer.weight)
    return coarse


def poses(*azimuths: float, elevation: float = 20.0) -> torch.Tensor:
    angles = np.deg2rad(azimuths)
    return torch.from_numpy(orbit_array(np.full(len(angles), np.deg2rad(elevation)), angles, DISTANCE)).float()


def test_prior_computes_one_volume_per_object(monkeypatch: pytest.MonkeyPatch) -> None:
    coarse = trained(volume=(8, 8))
    prior, c2w, counts, volume = coarse_prior(coarse), poses(0, 90, 180, 270), list[int](), coarse.volume.volume

    def counted(mixed: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        counts.append(len(text))
        return volume(mixed, text)

    monkeypatch.setattr(coarse.volume, "volume", counted)
    text = prior.encode_prompt(["a red dog", "a blue cat"]).repeat_interleave(2, 0)
    found = prior.predict_coarse(text, c2w)
    single = torch.cat([prior.predict_coarse(text[k : k + 1], c2w[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(found, single)
    prior.predict_coarse(text[:3], c2w[:3])
    assert counts == [2, 1, 1, 1, 1, 3]


def test_samples_lie_on_the_rays_of_the_pixels_from_near_to_far() -> None:
    volume, c2w = trained(size=SIDE, volume=(8, 8, 8)).volume, poses(30, 200, elevation=-10)
    points = REACH * volume.points(camera_vector(c2w))
    focal = 0.5 * SIDE * DISTANCE / HALF_EXTENT
    K = torch.tensor([[focal, 0, SIDE / 2], [0, focal, SIDE / 2], [0, 0, 1]]).expand(2, 3, 3)
    origins, directions = Cameras(c2w, Projection(K), SIDE, SIDE).rays()
    offsets = points - origins[:, None]
    distance = offsets.norm(dim=-1)
    along = directions / directions.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(offsets / distance[..., None], along[:, None].expand_as(offsets), atol=1e-5, rtol=0)
    assert (distance.diff(dim=1) > 0).all() and points.shape[1] == DEPTHS
    assert points.norm(dim=-1).min() < 0.15, "the rays meet the object"


@pytest.mark.parametrize("azimuth", [0, 90])
def test_opaque_features_hide_those_behind_them(azimuth: float) -> None:
    features, camera = trained(size=SIDE, volume=(8, 8, 8)).volume, camera_vector(poses(azimuth, elevation=0))[None]
    volume = torch.zeros(1, 9, SIDE, SIDE, SIDE)
    middle = slice(SIDE // 2 - 2, SIDE // 2 + 2)
    volume[:, -1, middle, middle, middle] = 20  # an opaque cube
    volume.requires_grad_()
    centre = features.project(volume, camera)[..., SIDE // 2, SIDE // 2].square().sum()
    (grad,) = torch.autograd.grad(centre, volume)
    seen = grad[0, :-1].abs().sum((0, 3))  # over features and z
    rows = seen.sum(1 if azimuth == 0 else 0)
    front, back = rows[SIDE // 2 :].sum(), rows[: SIDE // 2].sum()
    assert front > 3 * back > 0


def test_shuffle_moves_eight_channels_to_a_cube() -> None:
    x = torch.arange(8.0).reshape(1, 8, 1, 1, 1)
    torch.testing.assert_close(shuffle(x)[0, 0], torch.arange(8.0).reshape(2, 2, 2))
    assert shuffle(torch.zeros(2, 24, 3, 3, 3)).shape == (2, 3, 6, 6, 6)


# --- fusion and completion of views

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
    x, coarse = torch.randn(2, *shape, generator=gen)
    camera = camera_vector(script_poses(objects * VIEWS)).unflatten(0, (objects, VIEWS))
    return {"x": x, "level": torch.rand(shape[:2], generator=gen), "camera": camera, "coarse": coarse}


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
    prior.unet.to(torch.bfloat16)
    prior.dtype, prior.half_weights = torch.bfloat16, True
    half = prior.network(x, t, text, camera, n_view=2)
    assert half.dtype is torch.float32 and (half - whole).abs().max() < 0.1 * whole.abs().max()
    small = torch.zeros(4, 4, 12, 12)
    assert torch.equal(prior.fuse_views(start, small, t, camera, 2), start)
    assert torch.equal(prior.fuse_views(start, x, t, None, 2), start)
    assert torch.equal(coarse_prior().fuse_views(start, x, t, camera, 2), start)


def test_new_views_attend_to_known_views_of_their_object() -> None:
    prior = tiny_prior()
    poses = script_poses(5)  # of two objects, two known and three new views
    known, new = torch.randn(10, 4, 8, 8, generator=cpu()).split([4, 6])
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


@pytest.mark.parametrize("make", [tiny_prior, coarse_prior])
def test_completed_views_depend_on_known_views_and_seed(make: Callable[[], MVDream]) -> None:
    prior, poses = make(), script_poses(6)
    if make is tiny_prior:  # no object codes
        assert not prior.completes_views
        prior.unet.register_to_config(**{SEPARATE_LEVELS: True})
    assert prior.completes_views
    views = torch.rand(2, 16, 16, 3, generator=cpu(0))

    def completed(views: Tensor, seed: int = 0, known: Tensor = poses[:2]) -> Tensor:
        text = prior.encode_prompt(["a red dog", ""]).split(1)
        return complete_views(prior, text, views, known, poses[2:], 3, 2.0, generator=cpu(seed))

    first = completed(views)
    assert first.shape == (4, 16, 16, 3) and first.min() >= 0 and first.max() <= 1
    assert torch.equal(first, completed(views))
    others = (completed(1 - views), completed(views, seed=1), completed(views, known=poses[3:5]))
    assert all((first - other).abs().max() > 1e-6 for other in others)
