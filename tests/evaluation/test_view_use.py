"""Use of the other views, on tiny priors."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.tiny_prior import tiny_prior
from threedgen.evaluation.prior import Objects, view_use, view_use_table
from threedgen.toybox.data.pictures import FourSides
from threedgen.toybox.world.captions import OpenToybox


@pytest.fixture(scope="module")
def prior() -> Any:
    return tiny_prior(class_embed_type="projection", projection_class_embeddings_input_dim=16)


@pytest.fixture(scope="module")
def objects(prior: Any) -> Objects:
    return Objects.encoded(prior, FourSides(OpenToybox(1)).block(range(5), prior.image_size))


def test_ratios_are_one_for_a_prior_that_ignores_other_views(
    prior: Any, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = prior.denoise
    monkeypatch.setattr(prior, "denoise", lambda x, t, text, camera, n_view: real(x, t, text, camera, 1))
    figures = view_use(prior, objects, 0)
    for row in figures["levels"]:
        for name in ("true_over_alone", "wrong_over_alone"):
            assert row[name]["mean"] == pytest.approx(1, abs=1e-4)


def test_true_views_help_a_prior_that_copies_them(
    prior: Any, objects: Objects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copies(x: Tensor, t: Tensor, text: Tensor, camera: Tensor, n_view: int) -> Tensor:
        """The noise if view 0 had the clean latents of view 1, as noise hides them."""
        alpha, sigma = prior.schedule.alpha_sigma(t, x)
        seen = (x / alpha).unflatten(0, (-1, n_view)).roll(-1, 1).flatten(0, 1)
        return (x - alpha * seen) / sigma

    z = torch.randn(objects.z[:, :1].shape, generator=torch.Generator().manual_seed(0))
    same = objects._replace(z=z.expand(-1, 4, -1, -1, -1))
    monkeypatch.setattr(prior, "denoise", copies)
    figures = view_use(prior, same, 0)
    assert figures["clean"]["mean"] < figures["variance"]
    least = figures["levels"][0]
    assert least["true_over_alone"]["mean"] < 0.1 and least["true"]["mean"] < 0.5 * least["wrong"]["mean"]


def test_figures_are_json_and_repeatable(prior: Any, objects: Objects) -> None:
    assert objects.z.shape == (5, 4, *prior.latent_shape) and objects.c2w.shape == (5, 4, 4, 4)
    first, again = (view_use(prior, objects, 3) for _ in range(2))
    assert json.loads(json.dumps(first)) == json.loads(json.dumps(again))
    assert all(f"| {row['t']} |" in view_use_table(first) for row in first["levels"])
