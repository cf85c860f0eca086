from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.errors import refused
from tests.support.parity_files import recorded, tensors
from tests.support.tiny_prior import tiny_prior
from tests.support.tiny_threedim import inputs, poses, tiny_network
from threedgen.config import registry
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Request, Views
from threedgen.guidance.guidance import combine
from threedgen.guidance.novel_view import novel_views as folder
from threedgen.guidance.novel_view import sampler as sampling
from threedgen.guidance.novel_view.novel_views import ThreeDiMSampler
from threedgen.guidance.novel_view.options import CamerasConfig, ThreeDiMSamplerConfig
from threedgen.guidance.novel_view.sampler import Prediction, alpha_sigma, sample_views, target
from threedgen.guidance.novel_view.xunet import LatentPairs, XUNet
from threedgen.run.seeding import generator
from threedgen.systems.novel_view.task import Pairs, gap_test
from threedgen.toybox.data.make_srn import ToyboxScenes
from threedgen.toybox.options import ToyboxPairsConfig

CAMERAS = CamerasConfig(elevation=(0.0, 40.0), distance=(2.0, 2.8), focal=1.4)


def latent_pairs() -> LatentPairs:
    return LatentPairs(tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder.save(tiny_network(), tmp_path / "model", CAMERAS)
    return tmp_path / "model"


def test_saved_network_loads_with_its_cameras(tmp_path: Path) -> None:
    network = tiny_network(prediction="v_prediction").half().float()  # what the file can hold
    folder.save(network, tmp_path / "model", CAMERAS)
    found, cameras = folder.load(str(tmp_path / "model"))
    assert cameras == CAMERAS and found.config == network.config and not found.training
    names = ["SHA256SUMS", "config.json", "model", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == names
    with torch.no_grad():
        torch.testing.assert_close(found(*inputs(network)), network(*inputs(network)), rtol=0, atol=0)
    folder.save(tiny_network(), tmp_path / "model")  # replaces the older one
    assert folder.load(str(tmp_path / "model"))[1] is None


def test_latent_model_is_saved_and_samples_images(tmp_path: Path) -> None:
    model = latent_pairs()
    assert torch.allclose(model.timestep(model.levels[[0, 17, 998, 999]]), torch.tensor([0.0, 17, 998, 999]), atol=1e-3)
    half = (model.levels[500] + model.levels[501]) / 2
    assert torch.allclose(model.timestep(half[None]), torch.tensor([500.5]), atol=1e-3)
    assert model.timestep(torch.tensor([20.0, -20.0])).tolist() == [0, 999]
    folder.save(model, tmp_path / "model", CAMERAS)
    found, cameras = folder.load(str(tmp_path / "model"))
    assert isinstance(found, LatentPairs) and cameras == CAMERAS
    rgb = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    z, gen = model.encode_images(rgb), torch.Generator().manual_seed(1)
    c2w, level = poses(4, gen).unflatten(0, (2, 2)), torch.tensor([-3.0, 2.0])
    batch = z[:1].expand(2, -1, -1, -1), z, level, c2w, torch.eye(3).expand(2, 3, 3), torch.tensor([True, False])
    found.prior.dtype = torch.float32
    with torch.no_grad():
        torch.testing.assert_close(found.predict(*batch), model.predict(*batch), rtol=0, atol=2e-2)
    config = ThreeDiMSamplerConfig(weights=str(tmp_path / "model"), steps=2, dtype="fp32")
    (views,) = ThreeDiMSampler(config)([request()])
    assert views.shape == (3, 16, 16, 3) and torch.isfinite(views).all() and 0 <= views.min() and views.max() <= 1


def test_save_refuses_foreign_folders(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with refused(None, tmp_path / "mine"):
        folder.save(tiny_network(), tmp_path / "mine")


@pytest.mark.parametrize(
    ("name", "change", "values"),
    [
        ("model.safetensors", lambda data: data[:-3] + bytes([data[-3] ^ 4]) + data[-2:], ["SHA"]),
        ("config.json", lambda data: b'{"_class_name": "UNet2DModel"}', ["UNet2DModel"]),
        ("config.json", lambda data: data.replace(b'"channels": 8', b'"channels": 16'), ["3DiM network"]),
        ("config.json", lambda data: data.replace(b'"channels": 8', b'"channels": 7'), [7, "groups"]),
    ],
)
def test_load_refuses_damaged_folders(saved: Path, name: str, change: Any, values: list[Any]) -> None:
    if name == "config.json":
        (saved / "SHA256SUMS").unlink()
    (saved / name).write_bytes(change((saved / name).read_bytes()))
    with refused(None, *values) as caught:
        folder.load(str(saved))
    assert "\n" not in str(caught.value)


def test_embedded_model_uses_its_condition() -> None:
    """On scenes of an unseen seed, by more than 4 dB at alpha_bar 0.05."""
    model, cameras = folder.load("embedded")
    assert isinstance(model, XUNet) and model.image_size == (32, 32) and cameras is not None
    source = ToyboxScenes(ToyboxPairsConfig(scenes=16, views=2, held_out=4), 32, seed=77)
    scenes = [source.scene(k) for k in range(16)]
    x, x0 = (model.encode_images(torch.stack([scene.images[k] for scene in scenes])) for k in (0, 1))
    c2w, K = (torch.stack(part) for part in zip(*((s.cameras.c2w, s.cameras.K[0]) for s in scenes), strict=True))
    (gap,) = gap_test(model, Pairs(x, x0, c2w, K), (0.05,), torch.Generator().manual_seed(0), kinds=2)
    assert gap.gap > 4 and gap.true > 19


def request(name: str = "one", views: int = 3) -> Request:
    rig = orbit(views + 1, 0.3, 2.4, 0.7, 16, 16)
    images = torch.rand(1, 16, 16, 3, generator=torch.Generator().manual_seed(3))
    return Request(name, Views(images, rig.select([0])), rig.select(range(1, views + 1)), tuple(range(1, views + 1)))


def test_sampler_matches_sample_views(saved: Path) -> None:
    config = ThreeDiMSamplerConfig(weights=str(saved), steps=3, guidance_scale=1.5, dtype="fp32")
    sampler = registry.build("sampler", config)
    one, other = request(), request("two", views=2)
    first, second = sampler([one, other])
    assert first.shape == (3, 8, 8, 3) and second.shape == (2, 8, 8, 3) and 0 <= first.min() and first.max() <= 1
    network, _ = folder.load(str(saved))
    small, K = one.condition.resized(8), one.target.with_size(8, 8).K[:1]  # type: ignore[union-attr]
    x, c2w = 2 * small.images.permute(0, 3, 1, 2)[None] - 1, small.cameras.c2w[None]
    rng = [generator(0, 0, "novel views of one")]
    expected = sample_views(network, x, c2w, one.target.c2w[None], K, rng, steps=3, guidance_scale=1.5)
    torch.testing.assert_close(first, (expected[0].permute(0, 2, 3, 1) + 1) / 2, rtol=0, atol=1e-5)


def test_fingerprint_depends_on_files_and_settings_not_on_path(saved: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path, **options: Any) -> str:
        return ThreeDiMSampler(ThreeDiMSamplerConfig(weights=str(path), **options)).fingerprint()

    first = fingerprint(saved)
    assert first != fingerprint(saved, strategy="first") and first != fingerprint(saved, steps=9)
    saved.rename(tmp_path / "elsewhere")
    assert first == fingerprint(tmp_path / "elsewhere")
    folder.save(tiny_network(prediction="v_prediction"), tmp_path / "elsewhere", CAMERAS)
    assert first != fingerprint(tmp_path / "elsewhere")


def test_sampler_refuses_unusable_requests(saved: Path) -> None:
    sampler = ThreeDiMSampler(ThreeDiMSamplerConfig(weights=str(saved), steps=1))
    good = request()
    K = good.target.K * torch.tensor([1.2, 1.2, 1.0])[:, None]
    zoomed = Cameras(good.target.c2w, Projection(K), 16, 16)
    for condition, wanted in ((None, good.target), (good.condition, zoomed)):
        with refused(None, "one"):
            sampler([Request("one", condition, wanted, good.numbers)])


# --- sampling


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
    with torch.autocast("cpu", torch.bfloat16):
        half = sample(generators(3)[1:2])
    assert half.dtype == torch.float32 and half.isfinite().all() and not half.requires_grad


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
    if scale == 0:  # fresh noise is the condition
        noise = model.stacked("x")
        assert noise.std().item() == pytest.approx(1, abs=0.1) and (noise[0] - noise[1]).abs().max() > 0.1


def test_one_step_regression_is_one_call_with_white_noise() -> None:
    model = RecordingModel(conditional=0.7)
    views = sample_views(model, **scenes(targets=3), strategy="first", steps=1)
    assert len(model.calls) == 3
    assert all(call["logsnr"].tolist() == [-20.0, -20.0] for call in model.calls)
    assert model.stacked("z").std().item() == pytest.approx(1, abs=0.1)
    torch.testing.assert_close(views, torch.full_like(views, 0.7))


def relative_error(found: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to max(1, |expected|)."""
    return float(((found - expected).abs() / expected.abs().clamp(min=1)).max())


@recorded("sampler_step")
def test_schedule_and_step_match_recording(path: Path) -> None:
    a = tensors(path)
    for t, levels in ((a["t"], a["logsnr_of_t"]), (a["t_rand"], a["logsnr_of_t_rand"])):
        error = (sampling.logsnr_cosine(t) - levels).abs()
        assert (error < torch.where(t == 1, 5e-3, 1e-4)).all()
    assert relative_error(sampling.add_noise(a["q_x0"], a["q_noise"], a["q_logsnr"]), a["q_zt"]) < 1e-5
    eps = combine(a["eps_cond"], a["eps_uncond"], 1 + a["w"][:, None, None, None])
    steps = zip(a["logsnr"], a["logsnr_next"], a["model_mean"], a["model_variance"], strict=True)
    for level, level_next, mean, variance in steps:
        x0 = sampling.x0_from_output(a["z"], eps, level).clamp(-1, 1)
        found_mean, found_variance = sampling.posterior(a["z"], x0, level, level_next)
        assert relative_error(found_mean, mean) < 1e-5
        assert relative_error(found_variance.flatten(), variance) < 1e-5
    levels = sampling.logsnr_steps(256)
    assert len(levels) == 257 and levels[0] == -20 and levels[-1] == 20 and (levels.diff() > 0).all()
    assert sampling.logsnr_steps(1).tolist() == [-20, 20]
