"""Rotary embedding by places in the world."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_prior import tiny_prior, tiny_unet
from threedgen.geometry.poses import orbit_c2w
from threedgen.guidance.multiview.joined import WORLD_ROTARY, predict
from threedgen.guidance.multiview.rotary import WorldRotary
from threedgen.guidance.priors.mvdream import MVDream, camera_vector

CAMERA: Any = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 16}


def ring(n_view: int = 4, elevation: float = 0.0) -> torch.Tensor:
    azimuth = torch.arange(n_view) * 2 * torch.pi / n_view
    return camera_vector(orbit_c2w(torch.full((n_view,), elevation), azimuth, torch.full((n_view,), 2.5)))


def test_a_pixel_and_its_mirror_image_in_the_opposite_view_have_one_place() -> None:
    rotary = WorldRotary(ring(), 4, torch.device("cpu"))
    cos, sin = (part.unflatten(1, (8, 8)) for part in rotary.table(64, 32))
    for part in (cos, sin):
        assert torch.allclose(part[0], part[2].flip(1), atol=1e-5)
    assert not torch.allclose(sin[0], sin[2], atol=0.1)


def test_products_depend_on_the_distance_of_places() -> None:
    rotary, rng = WorldRotary(None, 1, torch.device("cpu")), torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 32, generator=rng).expand(1, 1, 64, 32) for _ in range(2))
    products = (rotary(q, 1) @ rotary(k, 1).mT)[0, 0].unflatten(0, (8, 8)).unflatten(2, (8, 8))
    assert torch.allclose(products[1, 2, 4, 3], products[2, 4, 5, 5], atol=1e-4)  # both 3 down, 1 to the right
    assert not torch.allclose(products[1, 2, 4, 3], products[1, 2, 4, 2], atol=1e-3)
    assert torch.allclose(rotary(q, 1).norm(dim=-1), q.norm(dim=-1), atol=1e-4)


def test_without_cameras_images_are_seen_from_the_front() -> None:
    x = torch.randn(2, 1, 16, 24)
    front = WorldRotary(ring(1).expand(2, -1), 2, torch.device("cpu"))
    assert torch.allclose(WorldRotary(None, 2, torch.device("cpu"))(x, 1), front(x, 1), atol=1e-5)


def test_a_unet_trains_as_it_samples() -> None:
    unet = tiny_unet(**CAMERA)
    x, t, text = torch.randn(4, 4, 8, 8), torch.tensor([500]), torch.randn(4, 6, 24)
    plain = predict(unet, x, t, text, ring(), 4)
    unet.register_to_config(**{WORLD_ROTARY: True})
    trained = predict(unet, x, t, text, ring(), 4)
    with torch.no_grad():
        sampled = predict(unet, x, t, text, ring(), 4)
    assert trained.requires_grad and torch.allclose(trained, sampled, atol=1e-4)
    assert not torch.allclose(plain, sampled, atol=1e-3)
    assert predict(unet, x, t, text).shape == x.shape


def test_the_entry_is_kept_in_files_without_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prior = tiny_prior(**CAMERA)
    prior.unet.register_to_config(**{WORLD_ROTARY: True})
    prior.save(tmp_path / "prior")
    with caplog.at_level(logging.WARNING):
        again = MVDream.load(str(tmp_path / "prior"))
    assert again.unet.config[WORLD_ROTARY] and WORLD_ROTARY not in caplog.text
