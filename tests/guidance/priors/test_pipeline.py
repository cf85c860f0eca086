from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.fork_server import Server, log
from tests.support.marks import unix
from tests.support.script_poses import script_poses
from tests.support.tiny_prior import coarse_prior, cpu, tiny_prior
from threedgen.guidance.cuda_graph import GraphedCalls
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.priors.pipeline import MVDreamPipeline


@pytest.fixture(scope="module", params=[tiny_prior, coarse_prior], ids=["plain", "coarse"])
def prior(request: pytest.FixtureRequest) -> MVDream:
    return request.param()


def sample(pipeline: MVDreamPipeline, prompt: Any = "a red dog", seed: int = 0, **options: Any) -> np.ndarray:
    pipeline.set_progress_bar_config(disable=True)
    defaults = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np", "generator": cpu(seed)}
    return pipeline(prompt, **defaults | options).images


@pytest.mark.parametrize(
    ("c2w", "prediction"),
    [(script_poses(4), "epsilon"), (script_poses(4), "v_prediction"), (None, "epsilon")],
    ids=["views", "views by v", "flat"],
)
def test_pipeline_matches_prior_samples(prior: MVDream, c2w: Any, prediction: Any) -> None:
    schedule = type(prior.schedule).scaled_linear(prediction=prediction)
    parts = (prior.unet, prior.vae, prior.text_encoder, prior.tokenizer)
    other = MVDream(*parts, schedule, prior.coarse, dtype="fp32")
    options = {"steps": 4, "guidance_scale": 3, "negative_prompt": "a cat", "init_strength": 1.0}
    expected = other.sample("a red dog", c2w, **options, generator=cpu())
    views = {"c2w": c2w} if c2w is not None else {"n_view": 0}
    other.graph = GraphedCalls()
    found = sample(MVDreamPipeline.from_prior(other), negative_prompt="a cat", **views)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    assert other.graph is None  # it would replay with weights that the pipeline moved
    other.guide_views = True
    separate = other.sample("a red dog", c2w, **options, generator=cpu()).numpy()
    assert np.allclose(separate, expected, atol=1e-4) == (c2w is None)
    found = sample(MVDreamPipeline.from_prior(other), negative_prompt="a cat", **views)
    np.testing.assert_allclose(found, separate, atol=1e-4)


def test_default_views_are_those_of_mvdream_script(prior: MVDream) -> None:
    """Elevation 15 and azimuth 0, which the script of MVDream calls azimuth 90."""
    pipeline = MVDreamPipeline.from_prior(prior)
    np.testing.assert_allclose(sample(pipeline), sample(pipeline, c2w=script_poses(4)), atol=1e-4)
    rotated = sample(pipeline, azimuth=90.0, elevation=0.0)
    np.testing.assert_allclose(rotated, sample(pipeline, c2w=script_poses(4, 0, 180)), atol=1e-4)
    assert len(sample(pipeline, n_view=2)) == 2


def test_output_types_and_several_prompts_agree(prior: MVDream) -> None:
    pipeline = MVDreamPipeline.from_prior(prior)
    array = sample(pipeline)
    assert array.shape == (4, 16, 16, 3) and 0 <= array.min() <= array.max() <= 1
    images = sample(pipeline, output_type="pil")
    assert isinstance(images[0], Image.Image)
    np.testing.assert_allclose(np.asarray(images[3]), array[3] * 255, atol=1)
    np.testing.assert_array_equal(sample(pipeline, output_type="pt").permute(0, 2, 3, 1).numpy(), array)
    options = {"num_inference_steps": 4, "guidance_scale": 3.0, "output_type": "np", "return_dict": False}
    np.testing.assert_array_equal(pipeline("a red dog", generator=cpu(), **options)[0], array)
    # several prompts
    prompts = ["a red dog", "a blue cat"]
    both = sample(pipeline, prompts, generator=[cpu(0), cpu(1)])
    single = [sample(pipeline, prompt, seed) for seed, prompt in enumerate(prompts)]
    np.testing.assert_allclose(both, np.concatenate(single), atol=1e-4)


def test_saved_pipelines_and_priors_load_in_both(prior: MVDream, tmp_path: Path) -> None:
    expected = sample(MVDreamPipeline.from_prior(prior))
    MVDreamPipeline.from_prior(prior).save_pretrained(tmp_path / "pipe")
    back = MVDreamPipeline.from_pretrained(tmp_path / "pipe")
    np.testing.assert_allclose(sample(back), expected, atol=1e-4)
    loaded = MVDream.load(str(tmp_path / "pipe"), dtype="fp32")
    np.testing.assert_allclose(sample(MVDreamPipeline.from_prior(loaded)), expected, atol=1e-4)
    prior.save(tmp_path / "ours")  # in half precision
    ours = MVDreamPipeline.from_pretrained(tmp_path / "ours")
    np.testing.assert_allclose(sample(ours.to(torch.float32)), expected, atol=0.05)
    assert MVDreamPipeline.from_pretrained(tmp_path / "ours", dtype=torch.bfloat16).prior.dtype == torch.bfloat16
    single = MVDreamPipeline.from_single_file(str(tmp_path / "ours"))
    np.testing.assert_allclose(sample(single), expected, atol=0.05)


@unix
def test_cpu_offload_mixes_no_devices(tmp_path: Path) -> None:
    """On the simulated GPU of tests/support/card.py, with and without object codes."""
    pytest.importorskip("accelerate")
    assert Server("tests.support.card_runs:offload").run(tmp_path) == 0, log(tmp_path)[-3000:]


@pytest.mark.gpu
@pytest.mark.parametrize("make", [tiny_prior, coarse_prior])
def test_gpu_offload_keeps_images(make: Callable[[], MVDream]) -> None:
    expected = sample(MVDreamPipeline.from_prior(make()))
    pipeline = MVDreamPipeline.from_prior(make())
    pipeline.enable_model_cpu_offload()
    np.testing.assert_allclose(sample(pipeline), expected, atol=1e-2)
    assert pipeline.unet.device.type == "cpu"
