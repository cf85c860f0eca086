from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.errors import refused
from tests.support.tiny_mvadapter import adapted_model
from tests.support.tiny_mvadapter import tiny_model as tiny_adapter_model
from tests.support.tiny_mvdiffusion import ring, tiny_model
from tests.support.tiny_prior import coarse_prior, cpu
from threedgen.geometry.views import resize
from threedgen.guidance import sampling
from threedgen.guidance.priors.mvadapter.inputs import RAY_VIEWS, cameras_from_angles
from threedgen.guidance.priors.mvdiffusion.inputs import depth_channels
from threedgen.guidance.priors.mvdiffusion.weights import widened
from threedgen.guidance.sampling import InitLatents, ViewSync, img2img_strengths, total_steps, upscale


def test_strengths_fall_over_synchronisation_rounds() -> None:
    assert img2img_strengths(None) == [] and img2img_strengths(0.4) == [0.4] == img2img_strengths(0.4, 1)
    assert total_steps(30, 0.3, 0, InitLatents(torch.zeros(1), 0.2)) == 6 == total_steps(30, None) // 5
    assert total_steps(30, 0.3, 3, InitLatents(torch.zeros(1), 0.2)) == 6 + 9 + 6 + 3
    assert img2img_strengths(0.3, 3) == pytest.approx([0.3, 0.2, 0.1]) == img2img_strengths(None, 3)


Sample = Callable[..., Tensor]


def panorama() -> tuple[Any, Sample]:
    model = tiny_model()
    options = {"guidance_scale": 1, "generator": cpu()}  # one network call per step
    return model, lambda **more: model.sample_views(["a red dog"] * 8, ring(8, 32), (32, 32), **options, **more)


def adapter() -> tuple[Any, Sample]:
    model = adapted_model()
    control = model.camera(cameras_from_angles(RAY_VIEWS[:3], 32, 32).c2w)
    return model, lambda **more: model.sample_views("a red dog", control, size=(32, 32), generator=cpu(), **more)


@pytest.mark.parametrize("kind", [panorama, adapter])
def test_strength_determines_steps_at_full_size(kind: Any, monkeypatch: Any) -> None:
    sizes = list[int]()
    model, sample = kind()
    network = type(model).denoise_views if kind is panorama else type(model).denoise

    def record(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        sizes.append(x.shape[-1] * self.factor)
        return network(self, x, *args, **kwargs)

    monkeypatch.setattr(type(model), network.__name__, record)
    samples = []
    for model.draft, full in ((0.05, 1), (1.0, 4)):  # at least one step at full size
        sizes.clear()
        samples.append(sample(steps=4))
        assert sizes == [16] * 4 + [32] * full and len(sizes) == total_steps(4, model.draft)
        assert samples[-1].shape[1:] == (32, 32, 3)
    assert (samples[0] - samples[1]).abs().max() > 1e-3


@pytest.mark.parametrize("draft", [None, 0.5])
def test_synchronised_views_are_resampled_with_fresh_noise(draft: float | None) -> None:
    model, sample = adapter()
    model.draft, rounds, steps = draft, list[Tensor](), list[int]()

    def grey(images: Tensor) -> Tensor:
        rounds.append(images)
        return torch.full_like(images, 0.5)

    samples = sample(steps=4, sync=ViewSync(3, grey), on_step=lambda: steps.append(1))
    assert [images.shape for images in rounds] == [samples.shape] * 3
    assert len(steps) == total_steps(4, draft, 3)
    assert (rounds[1] - rounds[2]).abs().max() > 1e-4


def test_noise_and_extra_channels_are_computed_at_both_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, noises, channels = tiny_model(), list[int](), list[tuple[int, int]]()
    model.unet, model.draft = widened(model.unet, 1), 0.5

    def record(like: Tensor, generator: Any, real: Any = sampling.fresh_noise) -> Tensor:
        noises.append(like.shape[-1])
        return real(like, generator)

    def known(size: tuple[int, int]) -> tuple[Tensor, None]:
        channels.append(size)
        return depth_channels(torch.ones(8, 32, 32), *(side // model.factor for side in size)), None

    monkeypatch.setattr(sampling, "fresh_noise", record)
    options: Any = {"steps": 4, "guidance_scale": 1, "eta": 1.0, "generator": cpu()}
    samples = model.sample_views(["a red dog"] * 8, None, (32, 32), known, **options)
    assert noises == [16 // model.factor] * (1 + 4) + [32 // model.factor] * (1 + 2)  # start noise and steps
    assert channels == [(16, 16), (32, 32)] and samples.isfinite().all()


def test_draft_is_upscaled() -> None:
    smooth = resize(torch.rand(1, 3, 3, 3, generator=cpu()), 24, 24)
    torch.testing.assert_close(resize(upscale(smooth, (48, 48)), 24, 24), smooth, atol=0.02, rtol=0)


def test_draft_refuses_coarse_priors_and_sizes_that_cannot_be_halved() -> None:
    with refused("draft"):
        coarse_prior().with_draft(0.5)
    model = tiny_adapter_model()
    model.image_size = 3 * model.size_multiple
    with refused("draft", model.image_size):
        model.with_draft(0.5)
