"""The prior as a diffusers pipeline: what diffusers' users expect of one, and the same pictures as ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from PIL import Image

from tests.support.script_poses import script_poses
from tests.support.tiny_prior import coarse_prior, cpu, tiny_prior
from threedgen import folder
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.priors.pipeline import MVDreamPipeline


@pytest.fixture(scope="module", params=[tiny_prior, coarse_prior], ids=["plain", "coarse"])
def prior(request: pytest.FixtureRequest) -> MVDream:
    """With and without a coarse predictor."""
    return request.param()


def draw(pipeline: MVDreamPipeline, prompt: Any = "a red dog", seed: int = 0, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np"} | options
    return pipeline(prompt, generator=cpu(seed), **options).images


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("c2w", [script_poses(4), None], ids=["views", "flat"])
def test_it_draws_what_the_prior_draws(prior: MVDream, c2w: Any, prediction: Any) -> None:
    """Steps that divide 1000, where diffusers' DDIM visits the same timesteps."""
    schedule = type(prior.schedule).scaled_linear(prediction=prediction)
    parts = (prior.unet, prior.vae, prior.text_encoder, prior.tokenizer)
    other = MVDream(*parts, schedule, prior.coarse, dtype="fp32")
    wanted = other.sample(
        "a red dog", c2w, steps=4, guidance_scale=3, negative_prompt="a cat", generator=cpu(), guess_noise=1.0
    )
    views = {"c2w": c2w} if c2w is not None else {"n_view": 0}
    found = draw(other.pipeline(), negative_prompt="a cat", **views)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_views_are_those_of_the_authors_script(prior: MVDream) -> None:
    """Elevation 15 and azimuth 0, their 90, unless told otherwise."""
    pipeline = prior.pipeline()
    np.testing.assert_allclose(draw(pipeline), draw(pipeline, c2w=script_poses(4)), atol=1e-4)
    turned = draw(pipeline, azimuth=90.0, elevation=0.0)
    np.testing.assert_allclose(turned, draw(pipeline, c2w=script_poses(4, 0, 180)), atol=1e-4)
    assert len(draw(pipeline, n_view=2)) == 2


def test_every_form_of_output(prior: MVDream) -> None:
    pipeline = prior.pipeline()
    array = draw(pipeline)
    assert array.shape == (4, 16, 16, 3) and 0 <= array.min() <= array.max() <= 1
    pictures = draw(pipeline, output_type="pil")
    assert isinstance(pictures[0], Image.Image)
    np.testing.assert_allclose(np.asarray(pictures[3]), array[3] * 255, atol=1)
    np.testing.assert_array_equal(draw(pipeline, output_type="pt").permute(0, 2, 3, 1).numpy(), array)
    latents = draw(pipeline, output_type="latent")
    with torch.no_grad():
        np.testing.assert_array_equal(prior.decode_latents(latents).numpy(), array)
    (as_tuple,) = pipeline(
        "a red dog", generator=cpu(), num_inference_steps=4, guidance_scale=3.0, output_type="np", return_dict=False
    )
    np.testing.assert_array_equal(as_tuple, array)


def test_several_prompts_are_drawn_each_by_itself(prior: MVDream) -> None:
    pipeline = prior.pipeline()
    start = torch.randn(8, 4, 8, 8, generator=cpu())
    both = draw(pipeline, ["a red dog", "a blue cat"], latents=start)
    alone = [
        draw(pipeline, prompt, latents=part)
        for prompt, part in zip(("a red dog", "a blue cat"), start.split(4), strict=True)
    ]
    np.testing.assert_allclose(both, np.concatenate(alone), atol=1e-4)


def test_another_scheduler_and_a_callback(prior: MVDream) -> None:
    pipeline, seen = prior.pipeline(), []
    first = draw(pipeline)
    pipeline.scheduler = EulerDiscreteScheduler.from_config(pipeline.scheduler.config)

    def note(pipe: Any, k: int, t: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((k, tuple(tensors["latents"].shape)))
        return tensors if k < 3 else {"latents": torch.zeros_like(tensors["latents"])}

    other = draw(pipeline, output_type="latent", callback_on_step_end=note)
    assert seen == [(k, (4, 4, 8, 8)) for k in range(4)] and not other.any()
    assert np.isfinite(draw(pipeline)).all() and np.abs(draw(pipeline) - first).max() > 1e-6


def test_as_many_steps_as_timesteps(prior: MVDream) -> None:
    """diffusers' grid then ends one behind its own table."""
    pipeline = prior.pipeline()
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, num_train_timesteps=8)
    assert np.isfinite(draw(pipeline, num_inference_steps=8)).all()


def test_saved_and_loaded_by_diffusers_and_by_us(prior: MVDream, tmp_path: Path) -> None:
    wanted = draw(prior.pipeline())
    prior.pipeline().save_pretrained(tmp_path / "pipe")
    back = MVDreamPipeline.from_pretrained(tmp_path / "pipe")
    np.testing.assert_allclose(draw(back), wanted, atol=1e-4)
    np.testing.assert_allclose(draw(MVDream.load(str(tmp_path / "pipe"), dtype="fp32").pipeline()), wanted, atol=1e-4)
    prior.save(tmp_path / "ours")  # in half precision
    ours = MVDreamPipeline.from_pretrained(tmp_path / "ours")
    np.testing.assert_allclose(draw(ours.to(torch.float32)), wanted, atol=0.05)
    single = MVDreamPipeline.from_single_file(str(tmp_path / "ours"))
    np.testing.assert_allclose(draw(single), wanted, atol=0.05)


def test_half_precision_as_in_any_pipeline(prior: MVDream, tmp_path: Path) -> None:
    prior.save(tmp_path / "prior")
    exact = MVDreamPipeline.from_pretrained(tmp_path / "prior", dtype=torch.float32)
    rough = MVDreamPipeline.from_pretrained(tmp_path / "prior", dtype=torch.bfloat16)
    assert rough.prior.dtype == torch.bfloat16 and exact.prior.dtype == torch.float32
    difference = np.abs(draw(rough) - draw(exact)).mean()
    assert 0 < difference < 0.1


def test_parts_are_shared_and_may_be_offloaded(prior: MVDream) -> None:
    """One copy of the weights; the order in which networks take turns on a GPU names all of them."""
    pipeline = prior.pipeline()
    assert pipeline.unet is prior.unet and pipeline.vae is prior.vae
    networks = {name for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    assert set(pipeline.model_cpu_offload_seq.split("->")) - {"coarse"} == networks - {"coarse"}
    assert ("coarse" in networks) == (prior.coarse is not None)


def test_the_embedded_folder_is_a_pipeline() -> None:
    """What diffusers reads there draws what our own reader draws."""
    pipeline = MVDreamPipeline.from_pretrained(folder("weights") / "toybox-prior", dtype=torch.float32)
    ours = MVDream.load("toybox-prior", dtype="fp32")
    wanted = ours.sample("a blue dog", script_poses(4), steps=2, guidance_scale=3, generator=cpu(), guess_noise=1.0)
    found = draw(pipeline, "a blue dog", num_inference_steps=2)
    assert found.shape == (4, ours.image_size, ours.image_size, 3)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-3)


def test_offload_hooks_change_nothing(prior: MVDream) -> None:
    """accelerate's hooks, with the CPU in the place of the GPU; they are set anew after each call."""
    pytest.importorskip("accelerate")
    wanted = draw(prior.pipeline())
    pipeline = coarse_prior().pipeline() if prior.coarse is not None else tiny_prior().pipeline()
    pipeline.enable_model_cpu_offload(device="cpu")
    assert len(pipeline._all_hooks) == (3 if prior.coarse is None else 4)
    for _ in range(2):
        np.testing.assert_array_equal(draw(pipeline), wanted)
    assert all(hasattr(network, "_hf_hook") for network in (pipeline.unet, pipeline.vae, pipeline.text_encoder))


@pytest.mark.gpu
@pytest.mark.parametrize("make", [tiny_prior, coarse_prior])
def test_offloaded_on_a_gpu(make: Callable[[], MVDream]) -> None:
    wanted = draw(make().pipeline())
    pipeline = make().pipeline()
    pipeline.enable_model_cpu_offload()
    np.testing.assert_allclose(draw(pipeline), wanted, atol=1e-2)
    assert pipeline.unet.device.type == "cpu"


@pytest.mark.parametrize("wrong", [{"prompt": []}, {"n_view": -1}, {"output_type": "jpg"}])
def test_nothing_to_draw(prior: MVDream, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="nothing to draw"):
        draw(prior.pipeline(), **{"prompt": "a red dog"} | wrong)
