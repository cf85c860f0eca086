"""Views that the prior samples before the object is optimised."""

from pathlib import Path

import pytest
import torch

from tests.support.tiny_prior import tiny_prior
from threedgen import config
from threedgen.guidance.attention.joined import SEPARATE_LEVELS
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.systems.generate.views import sample_views

SHORT = ("preview.steps=2", "preview.elevation=20", "preview.azimuth=30", "warm_start.share=0.5", "warm_start.groups=3")


@pytest.fixture
def prior() -> MVDream:
    prior = tiny_prior()
    prior.unet.register_to_config(**{SEPARATE_LEVELS: True})
    return prior


def test_groups_are_completed_from_the_first(prior: MVDream, tmp_path: Path) -> None:
    options = config.load("mvdream-toybox", [*SHORT, "prompt=a red dog"])
    views, cameras = sample_views(options, prior, "a red dog", tmp_path, quiet=True)
    assert views is not None and cameras is not None
    assert views.shape == (12, 16, 16, 3) and len(cameras) == 12
    x, y, z = cameras.position.T
    azimuth, elevation = torch.atan2(y, x).rad2deg() % 360, torch.asin(z / cameras.position.norm(dim=1)).rad2deg()
    torch.testing.assert_close(azimuth.sort().values, torch.arange(12) * 30.0, atol=1e-3, rtol=0)
    torch.testing.assert_close(azimuth[:4], torch.tensor([30.0, 120, 210, 300]), atol=1e-3, rtol=0)
    torch.testing.assert_close(elevation[:4], torch.full((4,), 20.0), atol=1e-3, rtol=0)
    assert elevation[4:].min() > -1e-3 and elevation[4:].max() < 30
    one = config.load("mvdream-toybox", [*SHORT, "warm_start.groups=1"])
    (tmp_path / "one").mkdir()
    first, _ = sample_views(one, prior, "a red dog", tmp_path / "one", quiet=True)
    assert first is not None
    torch.testing.assert_close(first, views[:4])
    again, _ = sample_views(options, prior, "another prompt", tmp_path, quiet=True)
    assert again is not None and torch.equal(again, views), "a resumed run reads them"


def test_prior_that_cannot_complete_samples_one_group(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = config.load("mvdream-toybox", [*SHORT, "prompt=a red dog"])
    views, cameras = sample_views(options, tiny_prior(), "a red dog", tmp_path, quiet=True)
    assert views is not None and cameras is not None and len(views) == len(cameras) == 4
    assert "warm_start.groups=3" in caplog.text
