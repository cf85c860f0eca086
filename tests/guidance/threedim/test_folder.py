"""A trained novel-view model on the disk: what is saved comes back, what is wrong is said, and it samples."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_prior import tiny_prior
from tests.support.tiny_threedim import inputs, poses, tiny_network
from threedgen import config as configs
from threedgen.config import ConfigError, registry
from threedgen.data.srn.options import ToyboxPairsConfig
from threedgen.data.srn.pairs import ToyboxScenes
from threedgen.data.srn.writer import write_instance
from threedgen.evaluation.consistency import run
from threedgen.evaluation.consistency.options import ConsistencyConfig
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Request, Views
from threedgen.guidance.threedim import folder
from threedgen.guidance.threedim.latents import LatentPairs
from threedgen.guidance.threedim.novel_views import ThreeDiMSampler
from threedgen.guidance.threedim.options import CamerasConfig, ThreeDiMSamplerConfig
from threedgen.guidance.threedim.sampler import sample_views
from threedgen.guidance.threedim.xunet import XUNet
from threedgen.run.seeding import generator
from threedgen.systems.novel_view.gap import Pairs, gap_test

CAMERAS = CamerasConfig(elevation=(0.0, 40.0), distance=(2.0, 2.8), focal=1.4)


def latent_pairs(**options: Any) -> LatentPairs:
    prior = tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)
    return LatentPairs(prior, **options).eval()


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder.save(tiny_network(), tmp_path / "model", CAMERAS)
    return tmp_path / "model"


# ---------------------------------------------------------------- to the disk and back


def test_a_network_comes_back(tmp_path: Path) -> None:
    network = tiny_network(poses="relative", prediction="v_prediction").half().float()  # what the file can hold
    folder.save(network, tmp_path / "model", CAMERAS)
    found, cameras = folder.load(str(tmp_path / "model"))
    assert cameras == CAMERAS and found.config == network.config and not found.training
    names = ["SHA256SUMS", "config.json", "model", "model.safetensors"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == names
    with torch.no_grad():
        torch.testing.assert_close(found(*inputs(network)), network(*inputs(network)), rtol=0, atol=0)
    folder.save(tiny_network(), tmp_path / "model")  # a newer one takes its place
    assert folder.load(str(tmp_path / "model"))[1] is None


def test_a_model_on_latents_comes_back(tmp_path: Path) -> None:
    model = latent_pairs(poses="relative")
    folder.save(model, tmp_path / "model", CAMERAS)
    found, cameras = folder.load(str(tmp_path / "model"))
    assert isinstance(found, LatentPairs) and found.poses == "relative" and cameras == CAMERAS
    rgb = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    z, gen = model.from_pictures(rgb), torch.Generator().manual_seed(1)
    c2w, level = poses(4, gen).unflatten(0, (2, 2)), torch.tensor([-3.0, 2.0])
    asked = z[:1].expand(2, -1, -1, -1), z, level, c2w, torch.eye(3).expand(2, 3, 3), torch.tensor([True, False])
    found.prior.dtype = torch.float32
    with torch.no_grad():
        torch.testing.assert_close(found.predict(*asked), model.predict(*asked), rtol=0, atol=2e-2)


def test_too_large_for_float16_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    network = tiny_network()
    with torch.no_grad():
        network.unet.conv_in.weight[0] = 1e6
    with pytest.raises(ConfigError, match="does not fit into float16"):
        folder.save(network, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="something else"):
        folder.save(tiny_network(), tmp_path / "mine")


# ---------------------------------------------------------------- what is wrong is said


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 4
    path.write_bytes(data)


def without_sums(change: Callable[[Path], None]) -> Callable[[Path], None]:
    def both(path: Path) -> None:
        change(path)
        (path.parent / "SHA256SUMS").unlink()

    return both


def other_width(path: Path) -> None:
    told = json.loads(path.read_text())
    told["network"]["channels"] = 16
    path.write_text(json.dumps(told))


def impossible_width(path: Path) -> None:
    told = json.loads(path.read_text())
    told["network"]["channels"] = 7
    path.write_text(json.dumps(told))


def foreign(path: Path) -> None:
    path.write_text('{"_class_name": "UNet2DModel"}')


DAMAGES: list[tuple[str, Callable[[Path], None], str]] = [
    ("model.safetensors", truncate, "damaged"),
    ("model.safetensors", flip, "SHA-256"),
    ("model.safetensors", Path.unlink, "model.safetensors"),
    ("config.json", Path.unlink, "no config.json in it"),
    ("config.json", truncate, "not JSON"),
    ("config.json", without_sums(other_width), "another architecture"),
    ("config.json", without_sums(impossible_width), "multiple of groups"),
    ("config.json", foreign, "describes 'UNet2DModel', not a novel-view model"),
]


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGES)
def test_damage_is_said_in_a_sentence(saved: Path, name: str, damage: Callable[[Path], None], said: str) -> None:
    damage(saved / name)
    with pytest.raises(ConfigError, match=said) as error:
        folder.load(str(saved))
    assert "\n" not in str(error.value)


def test_no_weights_and_foreign_folders_are_said_before_any_work(tmp_path: Path) -> None:
    def said(*overrides: str) -> str:
        config = configs.load("consistency", ["sampler.name=threedim", *overrides])
        with pytest.raises(ConfigError) as error:
            config.sampler.check()
        return str(error.value)

    assert "there is no file or folder '/nowhere'" in said("sampler.weights=/nowhere")
    tiny_prior().save(tmp_path / "prior")
    assert "has a text-to-image prior in it" in said(f"sampler.weights={tmp_path / 'prior'}")
    assert "has no config.json in it" in said(f"sampler.weights={tmp_path}")


def test_the_embedded_model_looks_at_its_condition() -> None:
    """On scenes of a seed that it was not trained on, by more than 4 dB at alpha_bar 0.05."""
    model, cameras = folder.load("embedded")
    assert isinstance(model, XUNet) and model.picture_size == (32, 32) and cameras is not None
    source = ToyboxScenes(ToyboxPairsConfig(scenes=16, views=2, held_out=4), 32, seed=77)
    seen = [source.scene(k) for k in range(16)]
    x, x0 = (model.from_pictures(torch.stack([one.images[place] for one in seen])) for place in (0, 1))
    pairs = Pairs(x, x0, torch.stack([one.at.c2w for one in seen]), torch.stack([one.at.K[0] for one in seen]))
    (gap,) = gap_test(model, pairs, (0.05,), torch.Generator().manual_seed(0), kinds=2)
    assert gap.gap > 4 and gap.true > 19


# ---------------------------------------------------------------- as a sampler


def request(name: str = "one", views: int = 3, size: int = 16, distance: float = 2.4) -> Request:
    at = orbit(views + 1, 0.3, distance, 0.7, size, size)
    images = torch.rand(1, size, size, 3, generator=torch.Generator().manual_seed(3))
    return Request(name, Views(images, at.select([0])), at.select(range(1, views + 1)), tuple(range(1, views + 1)))


def test_it_samples_what_the_chain_does(saved: Path) -> None:
    config = ThreeDiMSamplerConfig(weights=str(saved), steps=3, guidance_scale=1.5, dtype="fp32", device="cpu")
    sampler = registry.build("sampler", config)
    one, other = request(), request("two", views=2)
    first, second = sampler([one, other])
    assert first.shape == (3, 8, 8, 3) and second.shape == (2, 8, 8, 3) and 0 <= first.min() and first.max() <= 1
    network, _ = folder.load(str(saved))
    small, K = one.condition.resized(8), one.target.with_size(8, 8).K[:1]  # type: ignore[union-attr]
    x = 2 * small.images.permute(0, 3, 1, 2)[None] - 1
    rng = [generator(0, 0, "novel views of one")]
    wanted = sample_views(network, x, small.at.c2w[None], one.target.c2w[None], K, rng, steps=3, guidance_scale=1.5)
    torch.testing.assert_close(first, (wanted[0].permute(0, 2, 3, 1) + 1) / 2, rtol=0, atol=1e-5)


def test_a_model_on_latents_samples_pictures(tmp_path: Path) -> None:
    folder.save(latent_pairs(), tmp_path / "model")
    config = ThreeDiMSamplerConfig(weights=str(tmp_path / "model"), steps=2, dtype="fp32", device="cpu")
    (views,) = ThreeDiMSampler(config)([request(size=16)])
    assert views.shape == (3, 16, 16, 3) and torch.isfinite(views).all() and 0 <= views.min() and views.max() <= 1


def test_the_fingerprint_is_of_files_and_settings_not_of_places(saved: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path, **options: Any) -> str:
        return ThreeDiMSampler(ThreeDiMSamplerConfig(weights=str(path), **options)).fingerprint()

    mine = fingerprint(saved)
    assert mine != fingerprint(saved, strategy="first") and mine != fingerprint(saved, steps=9)
    saved.rename(tmp_path / "elsewhere")
    assert mine == fingerprint(tmp_path / "elsewhere")
    folder.save(tiny_network(poses="relative"), tmp_path / "elsewhere", CAMERAS)
    assert mine != fingerprint(tmp_path / "elsewhere")


def test_doubtful_requests_are_said(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    sampler = ThreeDiMSampler(ThreeDiMSamplerConfig(weights=str(saved), steps=1))
    with caplog.at_level(logging.WARNING):
        sampler.warn(request())
        assert not caplog.records
        sampler.warn(request(distance=4.0))
    assert "3 target views are far outside the cameras" in caplog.text and "number 1" in caplog.text
    bare = request()
    with pytest.raises(ConfigError, match="needs a given view"):
        sampler([Request("one", None, bare.target, bare.numbers)])
    zoomed = Cameras(bare.target.c2w, Projection(bare.target.K * torch.tensor([1.2, 1.2, 1.0])[:, None]), 16, 16)
    with pytest.raises(ConfigError, match="several focal lengths"):
        sampler([Request("one", bare.condition, zoomed, bare.numbers)])


def test_the_consistency_score_asks_it_for_the_views_around_the_given_one(saved: Path, tmp_path: Path) -> None:
    at = orbit(6, 0.3, 2.4, 0.7, 16, 16)
    truth = Views(torch.rand(6, 16, 16, 3, generator=torch.Generator().manual_seed(0)), at)
    write_instance(tmp_path / "data" / "cars_test" / "one", truth)
    grid = {"n_levels": 2, "log2_hashmap_size": 8, "base_resolution": 4}
    config = ConsistencyConfig.model_validate(
        {
            "task": "consistency",
            "out": str(tmp_path / "run"),
            "threads": 1,
            "bootstrap": 100,
            "device": "cpu",
            "sampler": {"name": "threedim", "weights": str(saved), "steps": 2, "device": "cpu"},
            "scenes": {"name": "srn", "path": str(tmp_path / "data"), "condition": 2},
            "tsed": {"pairs": 0},
            "protocol": {"name": "subsampled", "steps": 2, "rays": 64, "samples": 12, "width": 8, "encoding": grid},
        }
    )
    (tmp_path / "run").mkdir()
    config.sampler.check()
    assert run.run(config, quiet=True) == 0
    told = json.loads((tmp_path / "run" / "consistency.json").read_text())
    assert told["samplers"] == {"threedim": "threedim"} and set(told["rows"]) == {"threedim", "original"}
    views = tmp_path / "run" / "views" / "threedim"
    assert [path.name for path in views.iterdir()] == ["one.safetensors"]


def test_time_steps_are_those_of_the_noise_level() -> None:
    model = latent_pairs()
    assert torch.allclose(model.timestep(model.levels[[0, 17, 998, 999]]), torch.tensor([0.0, 17, 998, 999]), atol=1e-3)
    half = (model.levels[500] + model.levels[501]) / 2
    assert torch.allclose(model.timestep(half[None]), torch.tensor([500.5]), atol=1e-3)
    assert model.timestep(torch.tensor([20.0, -20.0])).tolist() == [0, 999]
