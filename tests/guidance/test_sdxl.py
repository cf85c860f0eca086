"""SDXL from a diffusers folder: what its UNet is told, against diffusers' own pipeline, and an adapter on it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_mvadapter import awaken
from tests.support.tiny_prior import cpu
from tests.support.tiny_sdxl import tiny_sdxl
from threedgen.config import ConfigError
from threedgen.guidance.diffusion import Conditions
from threedgen.guidance.distillation.options import SDSConfig
from threedgen.guidance.distillation.sds import SDS
from threedgen.guidance.mvadapter.cameras import RAY_VIEWS, views
from threedgen.guidance.mvadapter.model import MVAdapter
from threedgen.guidance.mvadapter.network import AdaptedUNet
from threedgen.guidance.mvadapter.weights import save_adapter
from threedgen.guidance.options import MVAdapterConfig

PROMPTS = ["a red car", "a cat"]
C2W = views(RAY_VIEWS[:3], 16, 16).c2w


@pytest.fixture(scope="module")
def pipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("sdxl") / "base"
    return folder, tiny_sdxl(folder)


def load(folder: Path) -> MVAdapter:
    return MVAdapter.load(str(folder), dtype="fp32", camera=False)


@torch.no_grad()
def test_the_unet_is_told_what_diffusers_tells_it(pipe: tuple[Path, Any]) -> None:
    folder, theirs = pipe
    ours = load(folder)
    text = ours.encode_prompt(PROMPTS)
    assert text.shape[1:] == ours.text_shape == (17, 40)
    words, _, summary, _ = theirs.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    torch.testing.assert_close(text[:, :-1], words)
    x, t = torch.randn(2, 4, 8, 12, generator=cpu()), torch.tensor([300, 700])
    size = (16, 24)
    sizes = torch.tensor([[*size, 0, 0, *size]] * 2)
    added = {"text_embeds": summary, "time_ids": sizes}
    expected = theirs.unet(x, t, words, added_cond_kwargs=added).sample
    torch.testing.assert_close(ours.denoise(x, t, text), expected, atol=1e-5, rtol=1e-5)
    added["time_ids"] = sizes.flip(1)
    assert (theirs.unet(x, t, words, added_cond_kwargs=added).sample - expected).abs().max() > 1e-4


def test_an_adapter_draws_and_judges_by_it(pipe: tuple[Path, Any], tmp_path: Path) -> None:
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
    picture = torch.rand(16, 16, 3, generator=cpu(1))
    assert loaded.draw(PROMPTS[0], control, picture, (16, 24), steps=1, generator=cpu()).shape == (3, 16, 24, 3)
    z = x.clone().requires_grad_()
    SDS(SDSConfig(), loaded.schedule, 100)(z, loaded.denoise, Conditions(text, control, 3), 0, cpu())[0].backward()
    assert z.grad is not None and z.grad.abs().sum() > 0
    loaded.release()
    assert loaded.denoise(x, t, text[0].expand(3, -1, -1), control, 3).shape == x.shape


def test_its_vae_does_not_encode_in_half_precision(pipe: tuple[Path, Any]) -> None:
    model = load(pipe[0])
    model.dtype = torch.float16
    with model.encoding():
        assert not torch.is_autocast_enabled("cpu")
    with model.autocast():
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("lost", ["text_encoder_2", "tokenizer_2"])
def test_half_of_it_is_refused(pipe: tuple[Path, Any], tmp_path: Path, lost: str) -> None:
    folder = tmp_path / "half"
    shutil.copytree(pipe[0], folder)
    shutil.rmtree(folder / lost)
    with pytest.raises(ConfigError, match=lost):
        load(folder)
    if lost == "text_encoder_2":
        with pytest.raises(ConfigError, match=lost):
            MVAdapterConfig(weights=str(folder)).check()
        (folder / "model_index.json").unlink()
        with pytest.raises(ConfigError, match="a UNet of SDXL and two text encoders belong together"):
            load(folder)
    with pytest.raises(ConfigError, match="not written"):
        load(pipe[0]).save(tmp_path / "copy")
