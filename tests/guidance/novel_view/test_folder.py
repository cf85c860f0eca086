import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.errors import refused
from tests.support.tiny_prior import tiny_prior
from tests.support.tiny_threedim import inputs, poses, tiny_network
from threedgen import config as configs
from threedgen.config import registry
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Request, Views
from threedgen.guidance.novel_view import novel_views as folder
from threedgen.guidance.novel_view.novel_views import ThreeDiMSampler
from threedgen.guidance.novel_view.options import CamerasConfig, ThreeDiMSamplerConfig
from threedgen.guidance.novel_view.sampler import sample_views
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


def test_saved_latent_model_loads(tmp_path: Path) -> None:
    model = latent_pairs()
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


def test_save_refuses_float16_overflow_and_foreign_folders(tmp_path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.unet.conv_in.weight[0] = 1e6
    with refused(None, "unet.conv_in.weight", "float16"):
        folder.save(network, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with refused(None, tmp_path / "mine"):
        folder.save(tiny_network(), tmp_path / "mine")


@pytest.mark.parametrize(
    ("name", "change", "values"),
    [
        ("model.safetensors", None, []),
        ("model.safetensors", lambda data: data[:-9], []),
        ("model.safetensors", lambda data: data[:-3] + bytes([data[-3] ^ 4]) + data[-2:], ["SHA"]),
        ("config.json", None, []),
        ("config.json", lambda data: data[:-9], ["JSON"]),
        ("config.json", lambda data: b'{"_class_name": "UNet2DModel"}', ["UNet2DModel"]),
    ],
)
def test_load_refuses_damaged_folders(saved: Path, name: str, change: Any, values: list[str]) -> None:
    if change is None:
        (saved / name).unlink()
    else:
        (saved / name).write_bytes(change((saved / name).read_bytes()))
    with refused(None, name, *values) as caught:
        folder.load(str(saved))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("channels", "values"), [(16, ["3DiM network"]), (7, ["config.json", 7, "groups"])])
def test_load_refuses_networks_of_another_size(saved: Path, channels: int, values: list[Any]) -> None:
    (saved / "SHA256SUMS").unlink()
    config = json.loads((saved / "config.json").read_text())
    config["network"]["channels"] = channels
    (saved / "config.json").write_text(json.dumps(config))
    with refused(None, *values):
        folder.load(str(saved))


def test_sampler_config_check_refuses_missing_and_foreign_weights(tmp_path: Path) -> None:
    tiny_prior().save(tmp_path / "prior")
    for path in (Path("/nowhere"), tmp_path / "prior", tmp_path):
        config = configs.load("consistency", ["sampler.name=threedim", f"sampler.weights={path}"])
        with refused("weights", path):
            config.sampler.check()


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


def request(name: str = "one", views: int = 3, size: int = 16, distance: float = 2.4) -> Request:
    rig = orbit(views + 1, 0.3, distance, 0.7, size, size)
    images = torch.rand(1, size, size, 3, generator=torch.Generator().manual_seed(3))
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


def test_latent_model_samples_images(tmp_path: Path) -> None:
    folder.save(latent_pairs(), tmp_path / "model")
    config = ThreeDiMSamplerConfig(weights=str(tmp_path / "model"), steps=2, dtype="fp32")
    (views,) = ThreeDiMSampler(config)([request(size=16)])
    assert views.shape == (3, 16, 16, 3) and torch.isfinite(views).all() and 0 <= views.min() and views.max() <= 1


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
    for condition, target in ((None, good.target), (good.condition, zoomed)):
        with refused(None, "one"):
            sampler([Request("one", condition, target, good.numbers)])


def test_latent_timestep_matches_noise_level() -> None:
    model = latent_pairs()
    assert torch.allclose(model.timestep(model.levels[[0, 17, 998, 999]]), torch.tensor([0.0, 17, 998, 999]), atol=1e-3)
    half = (model.levels[500] + model.levels[501]) / 2
    assert torch.allclose(model.timestep(half[None]), torch.tensor([500.5]), atol=1e-3)
    assert model.timestep(torch.tensor([20.0, -20.0])).tolist() == [0, 999]
