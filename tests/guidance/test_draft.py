"""Drawing in two sizes: the second goes on from the first, in every model that draws."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.script_poses import script_poses
from tests.support.tiny_mvadapter import adapted_model
from tests.support.tiny_mvadapter import tiny_model as tiny_adapter_model
from tests.support.tiny_mvdiffusion import ring, tiny_model
from tests.support.tiny_prior import coarse_prior, cpu, tiny_prior
from threedgen.config import ConfigError
from threedgen.geometry.views import resize
from threedgen.guidance import diffusion
from threedgen.guidance.draft import Begun, Synchronised, enlarged, in_both_sizes, steps_in_all, strengths
from threedgen.guidance.mvadapter.cameras import RAY_VIEWS, views
from threedgen.guidance.mvdiffusion.difference import widened
from threedgen.guidance.mvdiffusion.inputs import depth_channels


class Painter:
    """Encodes a picture as itself."""

    factor = unit = 1
    latent_shape, device = (3, 8, 8), "cpu"

    def __init__(self, draft: float | None) -> None:
        self.draft = draft

    def encode_views(self, pictures: Tensor) -> Tensor:
        return pictures.permute(0, 3, 1, 2)

    def decode_latents(self, z: Tensor) -> Tensor:
        return z.permute(0, 2, 3, 1)


@pytest.mark.parametrize("size", [(8, 8), (6, 16)])
def test_the_second_drawing_is_told_the_first_enlarged(size: tuple[int, int]) -> None:
    asked: list[tuple[tuple[int, int], Begun | None]] = []

    def draw(size: tuple[int, int], noise: Tensor, begun: Begun | None) -> Tensor:
        asked.append((size, begun))
        assert noise.shape == (2, 3, *size)
        return torch.linspace(0, 1, size[0])[:, None].expand_as(noise) if begun is None else begun.latents

    drawn = in_both_sizes(Painter(0.4), 2, size, draw)
    (small, nothing), (whole, begun) = asked
    assert small == (size[0] // 2, size[1] // 2) and nothing is None and whole == size
    assert begun is not None and begun.strength == 0.4 and drawn.shape == (2, *size, 3)
    assert (drawn.diff(dim=1) >= 0).all() and drawn.min() >= 0 and drawn.max() <= 1
    asked.clear()
    in_both_sizes(Painter(None), 2, size, draw)
    assert asked == [(size, None)]


def test_an_enlarged_picture_shrinks_to_what_it_was() -> None:
    smooth = resize(torch.rand(1, 3, 3, 3, generator=cpu()), 24, 24)
    torch.testing.assert_close(resize(enlarged(smooth, (48, 48)), 24, 24), smooth, atol=0.02, rtol=0)


def test_what_was_brought_to_agree_is_drawn_again_from_less_and_less_noise() -> None:
    assert strengths(None) == [] and strengths(0.4) == [0.4] == strengths(0.4, 1)
    assert steps_in_all(30, 0.3, 0, Begun(torch.zeros(1), 0.2)) == 6 == steps_in_all(30, None) // 5
    assert steps_in_all(30, 0.3, 3, Begun(torch.zeros(1), 0.2)) == 6 + 9 + 6 + 3
    assert strengths(0.3, 3) == pytest.approx([0.3, 0.2, 0.1]) == strengths(None, 3)


Draw = Callable[..., Tensor]


def panorama() -> tuple[Any, Draw]:
    model = tiny_model()
    told = {"guidance_scale": 1, "generator": cpu()}  # so that the network is asked once in a step
    return model, lambda **how: model.draw(["a red dog"] * 8, ring(8, 32), (32, 32), **told, **how)


def adapter() -> tuple[Any, Draw]:
    model = adapted_model()
    control = model.camera(views(RAY_VIEWS[:3], 32, 32).c2w)
    return model, lambda **how: model.draw("a red dog", control, size=(32, 32), generator=cpu(), **how)


@pytest.mark.parametrize("kind", [panorama, adapter])
def test_the_noise_says_how_many_steps_are_made_at_full_size(kind: Any, monkeypatch: Any) -> None:
    sizes = list[int]()
    model, draw = kind()
    model.draft = 0.05
    network = type(model).denoise_views if kind is panorama else type(model).denoise

    def noted(self: Any, x: Tensor, *what: Any, **more: Any) -> Tensor:
        sizes.append(x.shape[-1] * self.factor)
        return network(self, x, *what, **more)

    monkeypatch.setattr(type(model), network.__name__, noted)
    little = draw(steps=4)
    assert sizes == [16] * 4 + [32], "one step at least is made at full size"
    assert little.shape[1:] == (32, 32, 3) and len(sizes) == steps_in_all(4, 0.05)
    model.draft = 1.0
    much = draw(steps=4)
    assert sizes[5:] == [16] * 4 + [32] * 4 and len(sizes[5:]) == steps_in_all(4, 1.0)
    assert (much - little).abs().max() > 1e-3


@pytest.mark.parametrize("draft", [None, 0.5])
def test_views_that_are_brought_to_agree_are_drawn_again(draft: float | None) -> None:
    model, draw = adapter()
    model.draft, seen, steps = draft, list[Tensor](), list[int]()

    def grey(pictures: Tensor) -> Tensor:
        seen.append(pictures)
        return torch.full_like(pictures, 0.5)

    found = draw(steps=4, synchronised=Synchronised(3, grey), on_step=lambda: steps.append(1))
    assert [pictures.shape for pictures in seen] == [found.shape] * 3
    assert len(steps) == steps_in_all(4, draft, 3)
    assert (seen[1] - seen[2]).abs().max() > 1e-4, "each time from other noise"


def test_fresh_noise_of_the_steps_is_drawn_in_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = list[int]()

    def noted(like: Tensor, generator: Any, real: Any = diffusion.fresh_noise) -> Tensor:
        sizes.append(like.shape[-1])
        return real(like, generator)

    monkeypatch.setattr(diffusion, "fresh_noise", noted)
    model, draw = panorama()
    model.draft = 0.5
    draw(steps=4, eta=1.0)
    assert sizes == [16 // model.factor] * 4 + [32 // model.factor] * 2


def test_what_is_known_is_asked_for_in_each_size() -> None:
    model = tiny_model()
    model.unet = widened(model.unet, 1)
    model.draft, asked = 0.5, list[tuple[int, int]]()

    def known(size: tuple[int, int]) -> tuple[Tensor, None]:
        asked.append(size)
        return depth_channels(torch.ones(8, 32, 32), *(side // model.factor for side in size)), None

    drawn = model.draw(["a red dog"] * 8, None, (32, 32), known, steps=2, generator=cpu())
    assert asked == [(16, 16), (32, 32)] and drawn.isfinite().all()


def test_a_2d_prior_draws_so_too() -> None:
    model = tiny_adapter_model()
    model.image_size = 32
    plain = model.sample("a red dog", None, steps=2, generator=cpu())
    drafted = model.with_draft(0.5).sample("a red dog", None, steps=2, generator=cpu())
    assert drafted.shape == plain.shape == (1, 32, 32, 3) and not torch.equal(drafted, plain)


def test_a_multi_view_prior_draws_so_too() -> None:
    model, c2w = tiny_prior(), script_poses(4)
    drafted = model.with_draft(0.5).sample("a red dog", c2w, steps=2, generator=cpu())
    assert drafted.shape == (4, 16, 16, 3) and drafted.isfinite().all()
    with pytest.raises(ConfigError, match="coarse prediction"):
        coarse_prior().with_draft(0.5)


def test_sizes_that_cannot_be_halved_are_told_before() -> None:
    model = tiny_adapter_model()
    model.image_size = 3 * model.unit
    with pytest.raises(ConfigError, match="multiples of"):
        model.with_draft(0.5)
