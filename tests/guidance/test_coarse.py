import json
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
from tests.support.tiny_prior import TEXT_WIDTH, coarse_prior, cpu, tiny_coarse, tiny_prior
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.poses import orbit_array
from threedgen.guidance import object_code
from threedgen.guidance.attention.joined import SEPARATE_LEVELS
from threedgen.guidance.coarse import TEXT_GUIDANCE, CoarsePredictor, camera_harmonics
from threedgen.guidance.coarse_volume import DEPTHS, DISTANCE, HALF_EXTENT, REACH, shuffle
from threedgen.guidance.completion import KNOWN_VIEWS_TIMESTEP, KnownViews, complete_views, with_known_views
from threedgen.guidance.object_code import CodeSampler
from threedgen.guidance.priors import latent_diffusion
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.view_fusion import ViewFusion


@torch.no_grad()
def test_each_image_depends_on_its_own_text_camera_and_code() -> None:
    coarse, text = tiny_coarse(), torch.randn(3, 5, TEXT_WIDTH, generator=cpu())
    camera, code = camera_vector(script_poses(3)), torch.randn(3, TEXT_WIDTH, generator=cpu(1))
    whole, plain = coarse(text, camera, code), coarse(text, camera)
    assert whole.shape == (3, 4, 8, 8)
    single = torch.cat([coarse(text[i : i + 1], camera[i : i + 1], code[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(whole, single)
    moved = (text.roll(1, 0), camera, code), (text, camera.roll(1, 0), code), (text, camera, code.roll(1, 0))
    for other in (*(coarse(*inputs) for inputs in moved), coarse(text, None, code), plain):
        assert ((other - whole).flatten(1).abs().amax(1) > 1e-3).all()
    torch.testing.assert_close(coarse(text, camera, torch.zeros_like(code)), plain, msg="zeros are no code")
    torch.testing.assert_close(*coarse(text[:1].repeat(2, 1, 1), None), msg="without a camera images are equal")


@torch.no_grad()
def test_code_is_encoded_from_views_in_any_order_and_number() -> None:
    coarse, z, camera = (tiny_coarse(), torch.randn(2, 3, 4, 8, 8, generator=cpu()), camera_vector(script_poses(6)))
    camera = camera.unflatten(0, (2, 3))
    code = coarse.encode(z, camera)
    torch.testing.assert_close(code.square().mean(1), torch.ones(2))
    torch.testing.assert_close(coarse.encode(z.flip(1), camera.flip(1)), code, atol=1e-5, rtol=1e-4)
    assert (coarse.encode(z.flip(1), camera) - code).abs().max() > 1e-3, "a view belongs to its camera"
    assert coarse.encode(z[:, :1], camera[:, :1]).shape == (2, TEXT_WIDTH)


@torch.no_grad()
def test_fitted_codes_predict_known_views_better() -> None:
    coarse, text, camera = tiny_coarse(), torch.randn(2, 5, TEXT_WIDTH, generator=cpu()), camera_vector(script_poses(6))
    coarse.code_width.weight.mul_(10)
    camera, codes = camera.unflatten(0, (2, 3)), torch.randn(2, TEXT_WIDTH, generator=cpu(1))
    z = coarse(text.repeat_interleave(3, 0), camera.flatten(0, 1), codes.repeat_interleave(3, 0)).unflatten(0, (2, 3))

    def errors(code: torch.Tensor) -> torch.Tensor:
        words, codes = (x.repeat_interleave(3, 0) for x in (text, code))
        return (coarse(words, camera.flatten(0, 1), codes).view_as(z) - z).square().flatten(1).mean(1)

    start = torch.randn(2, TEXT_WIDTH, generator=cpu(2))
    found = coarse.fit_code(start, text, z[:, :2], camera[:, :2])
    assert (errors(found) < 0.8 * errors(start)).all()
    alone = coarse.fit_code(start[1:], text[1:], z[1:, :2], camera[1:, :2])
    torch.testing.assert_close(alone, found[1:], atol=1e-4, rtol=1e-3, msg="objects are separate")
    assert all(parameter.grad is None for parameter in coarse.parameters())


def test_noise_level_is_an_angle() -> None:
    schedule = Schedule(torch.zeros(4), torch.tensor([1.0, 0.5, 0.0, 0.75]), "epsilon")
    torch.testing.assert_close(schedule.noise_level(torch.arange(4)), torch.tensor([0, 0.5, 1, 1 / 3]))


def test_sampled_codes_follow_the_caption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_code, "GUIDANCE", 1.0)  # the empty prompt is not trained
    torch.manual_seed(0)
    sampler, text = CodeSampler(8, 8), torch.eye(8)[:2, None] * 3
    targets = torch.tensor([[1.0, -1.0] * 4, [1.0] * 4 + [-1.0] * 4])
    optimizer = torch.optim.Adam(sampler.parameters(), 3e-3)
    for _ in range(150):
        row, noise, t = torch.randint(2, (32,)), torch.randn(32, 8), torch.rand(32)
        velocity = sampler(torch.lerp(noise, targets[row], t[:, None]), t, sampler.encode_text(text[row]))
        optimizer.zero_grad()
        (velocity - targets[row] + noise).square().mean().backward()
        optimizer.step()
    texts, empty = text.repeat_interleave(32, 0), torch.zeros(1, 1, 8)
    samples = sampler.sample(texts, empty, torch.randn(64, 8, generator=cpu())).unflatten(0, (2, 32))
    assert (samples.mean(1) - targets).abs().max() < 0.4


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
    views = torch.randn(1, 2, 4, 8, 8, generator=cpu())
    assert torch.equal(
        prior.encode_code(text[:1], views, c2w[None])[:, -1], prior.coarse.encode(views, camera_vector(c2w)[None])
    )


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


@pytest.mark.parametrize("elevation", [-30.0, 0.0, 45.0])
def test_camera_harmonics_turn_with_the_azimuth(elevation: float) -> None:
    """A quarter turn multiplies the k-th pair by i^k; the distance has no effect."""
    poses = script_poses(4, elevation)
    found = camera_harmonics(camera_vector(poses))
    numbers = torch.complex(found[:, :4], found[:, 4:8])
    turned = numbers * torch.tensor([1j, -1, -1j, 1])
    torch.testing.assert_close(turned, numbers.roll(-1, 0), atol=1e-5, rtol=0)
    poses[:, :3, 3] *= 7
    torch.testing.assert_close(camera_harmonics(camera_vector(poses)), found)


@pytest.mark.parametrize(
    "options", [{"size": 6, "channels": (8, 8, 8), "blocks": (0, 1, 1)}, {"blocks": (1,)}, {"volume": (8, 8, 8)}]
)
def test_coarse_predictor_refuses_sizes_that_do_not_fit(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        tiny_coarse(**options)


def test_load_refuses_changed_or_missing_coarse_predictor(tmp_path: Path) -> None:
    coarse_prior().save(tmp_path)
    (tmp_path / "SHA256SUMS").unlink()
    config = tmp_path / "coarse" / "config.json"
    entries = json.loads(config.read_text())
    for change, values in (({"width": 64}, ["coarse predictor"]), ({"_class_name": "Sketch"}, ["coarse", "Sketch"])):
        config.write_text(json.dumps(entries | change))
        with refused(None, *values):
            MVDream.load(str(tmp_path))
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


@torch.no_grad()
def test_views_of_an_object_are_those_of_separate_calls() -> None:
    coarse, camera = trained(size=SIDE, volume=(8, 8, 8)), camera_vector(poses(0, 90, 180, 270))
    text = torch.randn(2, 5, TEXT_WIDTH, generator=cpu()).repeat_interleave(2, 0)
    code = torch.randn(2, TEXT_WIDTH, generator=cpu()).repeat_interleave(2, 0)
    together = coarse(text, camera, code, 2)
    assert together.shape == (4, 4, SIDE, SIDE)
    torch.testing.assert_close(together, coarse(text, camera, code))
    for other in (coarse(text, camera, -code), coarse(text.flip(0), camera, code), coarse(text, camera.flip(0), code)):
        assert ((other - together).flatten(1).abs().amax(1) > 1e-4).all()
    alone = coarse(text, None, code, 2)
    torch.testing.assert_close(alone[0], alone[1], msg="without a camera, views are equal")


@torch.no_grad()
def test_loaded_predictor_samples_its_volume_at_the_same_points(tmp_path: Path) -> None:
    coarse, camera = trained(volume=(8, 8)), camera_vector(poses(0, 90, 180, 270))
    coarse_prior(coarse).save(tmp_path / "prior")
    loaded = MVDream.load(tmp_path / "prior").coarse
    text, code = torch.randn(4, 5, TEXT_WIDTH, generator=cpu()), torch.randn(4, TEXT_WIDTH, generator=cpu())
    assert torch.equal(loaded.volume.points(camera), coarse.volume.points(camera))
    torch.testing.assert_close(loaded(text, camera, code), coarse(text, camera, code), atol=0.01, rtol=0.01)


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


@pytest.mark.parametrize("azimuth", [0, 90, 180, 270])
def test_opaque_features_hide_those_behind_them(azimuth: float) -> None:
    features, camera = trained(size=SIDE, volume=(8, 8, 8)).volume, camera_vector(poses(azimuth, elevation=0))[None]
    volume = torch.zeros(1, 9, SIDE, SIDE, SIDE)
    middle = slice(SIDE // 2 - 2, SIDE // 2 + 2)
    volume[:, -1, middle, middle, middle] = 20  # an opaque cube
    volume.requires_grad_()
    centre = features.project(volume, camera)[..., SIDE // 2, SIDE // 2].square().sum()
    (grad,) = torch.autograd.grad(centre, volume)
    seen = grad[0, :-1].abs().sum((0, 3))  # over features and z
    rows = seen if azimuth % 180 == 0 else seen.T
    rows = rows.sum(1) if azimuth < 180 else rows.sum(1).flip(0)
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
def test_new_fusion_or_volume_changes_no_prediction() -> None:
    before, after = tiny_coarse(), tiny_coarse()
    after.add_fusion(8)
    prior, wide = coarse_prior(before), coarse_prior(after)
    text, camera = prior.encode_prompt(["cat"]).expand(2, -1, -1), camera_vector(script_poses(2))
    x, t = torch.randn(2, 4, 8, 8, generator=cpu()), torch.tensor([500, 10])
    assert torch.equal(wide.predict(x, t, text, camera, 2), prior.predict(x, t, text, camera, 2))
    kept = after.fusion
    after.add_fusion(8)
    assert after.fusion is kept and after.config["fusion"] == 8
    after.add_volume([8, 8])
    assert torch.equal(before(text, camera), after(text, camera)) and after.config["volume"] == (8, 8)
    kept = after.volume
    after.add_volume((8, 8))
    assert after.volume is kept


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
