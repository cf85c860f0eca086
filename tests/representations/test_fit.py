import numpy as np
import pytest
import torch

from tests.support.photographs import SIZE, TINY, photographs
from threedgen.geometry.cameras import Cameras, Projection
from threedgen.geometry.rigs import orbit
from threedgen.geometry.views import Views
from threedgen.representations.fit import Bounds, _pixel_batches, border_colour, fit
from threedgen.representations.volume.options import PaperProtocolConfig, SubsampledProtocolConfig


def test_bounds_follow_the_paper_and_background_is_white() -> None:
    bounds = Bounds.from_cameras(photographs().cameras)
    assert (bounds.radius, bounds.near) == (pytest.approx(1.3, abs=1e-4), pytest.approx(0.975, abs=1e-4))
    assert bounds.span * bounds.radius == pytest.approx(1.5 * 2.6 - 0.375 * 2.6, abs=1e-4)
    assert border_colour(photographs()).tolist() == [1, 1, 1]


def test_bounds_of_narrow_views_cover_the_visible_ball() -> None:
    fov = float(np.deg2rad(4))
    far = orbit(4, 0.2, 1.1 / float(np.tan(fov / 2)), fov, 8, 8)
    bounds, distance = Bounds.from_cameras(far), float(far.position.norm(dim=-1).max())
    assert bounds.radius == pytest.approx(1.1 * 2**0.5, rel=1e-3)
    assert distance - bounds.radius > bounds.near > distance - 1.5 * bounds.radius
    assert bounds.far == pytest.approx(distance + bounds.radius)


def test_fit_is_reproducible_and_independent_of_units() -> None:
    options = SubsampledProtocolConfig.model_validate(TINY | {"steps": 5, "orientation": 0.01, "rays": 64})

    def image(views: Views, seed: int = 0) -> torch.Tensor:
        return fit(views, Bounds.from_cameras(views.cameras), options, seed).render_images(views.cameras.select([0]))

    views = photographs()
    first = image(views)
    assert torch.isfinite(first).all() and torch.equal(first, image(views)) and not torch.equal(first, image(views, 1))
    c2w = views.cameras.c2w.clone()
    c2w[:, :3, 3] *= 8  # a power of two: no rounding
    scaled = Views(views.images, Cameras(c2w, Projection(views.cameras.K), SIZE, SIZE))
    assert torch.allclose(first, image(scaled), atol=1e-5)


@pytest.mark.parametrize("kind", [PaperProtocolConfig, SubsampledProtocolConfig])
def test_pixel_batches_cover_the_step_in_chunks(kind: type[PaperProtocolConfig | SubsampledProtocolConfig]) -> None:
    """paper: each pixel once, all with normals. subsampled: random pixels, a fraction with normals."""
    options = kind(chunk=300)
    parts = list(_pixel_batches(options, 10_000, True, torch.Generator().manual_seed(0)))
    pixels = torch.cat([part for part, _, _ in parts])
    assert max(len(part) for part, _, _ in parts) == 300 and sum(fraction for *_, fraction in parts) == pytest.approx(1)
    with_normals = sum(len(part) for part, normals, _ in parts if normals)
    if kind is PaperProtocolConfig:
        assert torch.equal(pixels.sort().values, torch.arange(10_000)) and with_normals == 10_000
    else:
        assert len(pixels) == 4096 and with_normals == 512 and pixels.max() < 10_000
