"""A field fitted to views: its bounds, its pixels, that it is repeated, and that views that disagree cost."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.support.photographs import SIZE, TINY, photographs
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.images import psnr
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Views
from threedgen.representations.fit import Bounds, _parts, border_colour, fit
from threedgen.representations.options import PaperProtocolConfig, SubsampledProtocolConfig


def test_bounds_and_background() -> None:
    bounds = Bounds.of(photographs().at)
    assert (bounds.radius, bounds.near) == (pytest.approx(1.3, abs=1e-4), pytest.approx(0.975, abs=1e-4))
    assert bounds.span * bounds.radius == pytest.approx(1.5 * 2.6 - 0.375 * 2.6, abs=1e-4)


def test_a_narrow_angle_from_afar_makes_the_ball_small() -> None:
    fov = float(np.deg2rad(4))
    far = orbit(4, 0.2, 1.1 / float(np.tan(fov / 2)), fov, 8, 8)
    bounds, distance = Bounds.of(far), float(far.position.norm(dim=-1).max())
    assert bounds.radius == pytest.approx(1.1 * 2**0.5, rel=1e-3)
    assert distance - bounds.radius > bounds.near > distance - 1.5 * bounds.radius
    assert bounds.far == pytest.approx(distance + bounds.radius)
    assert border_colour(photographs()).tolist() == [1, 1, 1]


def score_of(views: Views) -> float:
    """PSNR of held-out views, as the task measures it, without its files."""
    held = [3, 9, 15, 20]
    rest = [k for k in range(len(views)) if k not in held]
    field = fit(views.select(rest), Bounds.of(views.at), SubsampledProtocolConfig.model_validate(TINY), 0)
    seen = field.pictures(views.at.select(held)).numpy()
    return float(np.mean([psnr(a, b) for a, b in zip(views.images[held].numpy(), seen, strict=True)]))


def test_the_score_falls_when_views_disagree() -> None:
    """Ground truth, cameras that are said to be elsewhere, every third view of another object."""
    truth = photographs()
    mixed = truth.images.clone()
    mixed[1::3] = photographs(index=8).images[1::3]
    good, turned, swapped = score_of(truth), score_of(photographs(turn=10)), score_of(Views(mixed, truth.at))
    assert good > 23 and good > turned + 1.5 and good > swapped + 1.5


def test_a_fit_is_repeated_to_the_bit_and_knows_no_units() -> None:
    views = photographs()
    options = SubsampledProtocolConfig.model_validate(TINY | {"steps": 5, "orientation": 0.01, "rays": 64})
    one, two = (fit(views, Bounds.of(views.at), options, 0).pictures(views.at.select([0])) for _ in range(2))
    assert (
        torch.isfinite(one).all()
        and torch.equal(one, two)
        and not torch.equal(one, fit(views, Bounds.of(views.at), options, 1).pictures(views.at.select([0])))
    )
    big = views.at.c2w.clone()
    big[:, :3, 3] *= 8  # a power of two, so that nothing is rounded
    large = Views(views.images, Cameras(big, Projection(views.at.K), SIZE, SIZE))
    again = fit(large, Bounds.of(large.at), options, 0).pictures(large.at.select([0]))
    assert torch.allclose(one, again, atol=1e-5)


@pytest.mark.parametrize("name", ["paper", "subsampled"])
def test_the_pixels_of_a_step(name: str) -> None:
    """The paper's: each once, all with normals. Subsampled: some of them, a share with normals. In small parts."""
    options = {"paper": PaperProtocolConfig, "subsampled": SubsampledProtocolConfig}[name](chunk=300)
    parts = list(_parts(options, 10_000, True, torch.Generator().manual_seed(0)))
    assert not any(normals for _, normals, _ in _parts(options, 10_000, False, torch.Generator().manual_seed(0)))
    pixels = torch.cat([part for part, _, _ in parts])
    assert max(len(part) for part, _, _ in parts) == 300 and sum(share for *_, share in parts) == pytest.approx(1)
    asked = sum(len(part) for part, normals, _ in parts if normals)
    if name == "paper":
        assert torch.equal(pixels.sort().values, torch.arange(10_000)) and asked == 10_000
        assert options.steps == 1000 and options.learning_rate == {0: 0.01, 100: 0.001}
    else:
        assert len(pixels) == 4096 and asked == 512 and pixels.max() < 10_000
