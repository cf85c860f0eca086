import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.errors import refused
from tests.support.tiny_mvadapter import awaken
from tests.support.tiny_prior import cpu
from tests.support.tiny_sdxl import tiny_sdxl
from threedgen.guidance.guidance import Condition
from threedgen.guidance.losses.options import SDSConfig
from threedgen.guidance.losses.sds import SDS
from threedgen.guidance.priors.mvadapter.inputs import RAY_VIEWS, cameras_from_angles
from threedgen.guidance.priors.mvadapter.model import MVAdapter
from threedgen.guidance.priors.mvadapter.network import AdaptedUNet
from threedgen.guidance.priors.mvadapter.weights import save_adapter
from threedgen.guidance.priors.options import MVAdapterConfig
from threedgen.guidance.priors.pipeline import MVDreamPipeline

PROMPTS = ["a red car", "a cat"]
C2W = cameras_from_angles(RAY_VIEWS[:3], 16, 16).c2w


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("sdxl") / "base"
    return folder, tiny_sdxl(folder)


def load(folder: Path) -> MVAdapter:
    return MVAdapter.load(str(folder), dtype="fp32")


@torch.no_grad()
def test_unet_gets_added_conditioning_of_diffusers(pipe: tuple[Path, Any]) -> None:
    folder, theirs = pipe
    ours = load(folder)
    text = ours.encode_prompt(PROMPTS)
    assert text.shape[1:] == ours.text_shape == (17, 40)
    text_embeds, _, pooled, _ = theirs.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    torch.testing.assert_close(text[:, :-1], text_embeds)
    x, t = torch.randn(2, 4, 8, 12, generator=cpu()), torch.tensor([300, 700])
    size = (16, 24)
    sizes = torch.tensor([[*size, 0, 0, *size]] * 2)
    added = {"text_embeds": pooled, "time_ids": sizes}
    expected = theirs.unet(x, t, text_embeds, added_cond_kwargs=added).sample
    torch.testing.assert_close(ours.denoise(x, t, text), expected, atol=1e-5, rtol=1e-5)
    added["time_ids"] = sizes.flip(1)
    assert (theirs.unet(x, t, text_embeds, added_cond_kwargs=added).sample - expected).abs().max() > 1e-4
    ours.dtype = torch.float16
    with ours.autocast():
        assert torch.is_autocast_enabled("cpu")
    with ours.encoding():  # the VAE
        assert not torch.is_autocast_enabled("cpu")


def test_pipeline_of_mvdream_refuses_sdxl(pipe: tuple[Path, Any]) -> None:
    theirs = pipe[1]
    with refused("weights", "SDXL"):
        MVDreamPipeline(theirs.unet, theirs.vae, theirs.text_encoder, theirs.tokenizer, theirs.scheduler)


def test_adapter_on_sdxl_samples_and_distils(pipe: tuple[Path, Any], tmp_path: Path) -> None:
    folder, _ = pipe
    model = load(folder)
    text = model.encode_prompt([PROMPTS[0], ""]).split(1)
    x, t, control = torch.randn(3, 4, 8, 8, generator=cpu()), torch.full((3,), 500), model.camera(C2W)
    with torch.no_grad():
        base = model.denoise(x, t, text[0].expand(3, -1, -1))
        network = AdaptedUNet(model.unet, model.factor)
        guider, network.guider = network.guider, None
        fresh = model.with_network(network).denoise(x, t, text[0].expand(3, -1, -1), control, 3)
    assert torch.equal(fresh, base)
    network.guider = guider
    awaken(network)
    save_adapter(tmp_path / "adapter.safetensors", network)
    loaded = load(folder).with_adapter(tmp_path / "adapter.safetensors")
    image = torch.rand(16, 16, 3, generator=cpu(1))
    assert loaded.sample_views(PROMPTS[0], control, image, (16, 24), steps=1, generator=cpu()).shape == (3, 16, 24, 3)
    z = x.clone().requires_grad_()
    SDS(SDSConfig(), loaded.schedule, 100)(z, loaded.denoise, Condition(text, control, 3), 0, cpu())[0].backward()
    assert z.grad is not None and z.grad.abs().sum() > 0


@pytest.mark.parametrize("lost", ["text_encoder_2", "tokenizer_2"])
def test_load_refuses_missing_second_text_encoder_and_save(pipe: tuple[Path, Any], tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "half"
    shutil.copytree(pipe[0], folder)
    shutil.rmtree(folder / lost)
    with refused(None, lost):
        load(folder)
    if lost == "text_encoder_2":
        with refused(None, lost):
            MVAdapterConfig(weights=str(folder)).check()
        (folder / "model_index.json").unlink()
        with refused("weights"):
            load(folder)
    with refused(None, "SDXL"):
        load(pipe[0]).save(tmp_path / "copy")
