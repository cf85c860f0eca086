"""Stable Diffusion and DeepFloyd IF as priors, from folders in the official format."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.official import official_checkpoint
from tests.support.script_poses import script_poses
from tests.support.task_server import prior_folder
from tests.support.tiny_methods import folders, if_pipeline, sd_pipeline
from tests.support.tiny_prior import cpu
from threedgen import config
from threedgen.config import ConfigError
from threedgen.config import optional as extras
from threedgen.guidance.diffusion import Conditions
from threedgen.guidance.distillation.options import VSDConfig
from threedgen.guidance.distillation.vsd import VSD
from threedgen.guidance.options import DeepFloydConfig, StableDiffusionConfig
from threedgen.guidance.priors import deepfloyd, stable_diffusion
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.meta_networks import meta_networks


def sd(**options: Any) -> stable_diffusion.StableDiffusion:
    return stable_diffusion.build(StableDiffusionConfig(weights=str(folders() / "sd"), dtype="fp32", **options))


def pixels(**options: Any) -> deepfloyd.DeepFloyd:
    return deepfloyd.build(DeepFloydConfig(weights=str(folders() / "if"), dtype="fp32", **options))


# ---------------------------------------------------------------- Stable Diffusion


def test_stable_diffusion_is_diffusers_own_network() -> None:
    prior, theirs = sd(), sd_pipeline()
    x, t = torch.randn(2, 4, 8, 8, generator=cpu()), torch.tensor([100, 900])
    text = prior.encode_prompt(["a red dog", "cat"])
    with torch.no_grad():
        wanted = theirs.unet(x, t, text).sample
        torch.testing.assert_close(prior.denoise(x, t, text), wanted, atol=1e-5, rtol=0)
        ids = theirs.tokenizer(["a red dog", "cat"], padding="max_length", max_length=16, return_tensors="pt").input_ids
        torch.testing.assert_close(text, theirs.text_encoder(ids)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(prior.schedule.alpha_bar, theirs.scheduler.alphas_cumprod, atol=1e-6, rtol=0)
    assert not any(p.requires_grad for network in prior.networks.values() for p in network.parameters())


def test_it_draws_single_pictures() -> None:
    prior = sd()
    drawn = prior.sample("a red dog", None, steps=2, generator=cpu())
    assert drawn.shape == (1, 16, 16, 3) and drawn.std() > 0
    call = {"n_view": 0, "num_inference_steps": 2, "output_type": "np", "guidance_scale": 3.0}
    assert prior.pipeline()("a red dog", "", **call, generator=cpu()).images.shape == (1, 16, 16, 3)


def test_a_multi_view_prior_plays_it_in_its_2d_mode() -> None:
    """Whatever cameras and views are told: each picture is alone, as MVDream's network judges it without a camera."""
    options = StableDiffusionConfig(weights=str(prior_folder()), dtype="fp32")
    prior, whole = stable_diffusion.build(options), MVDream.load(str(prior_folder()), dtype="fp32")
    x, t = torch.randn(4, 4, 8, 8, generator=cpu()), torch.full((4,), 500)
    text = prior.encode_prompt(["a red dog"]).repeat(4, 1, 1)
    with torch.no_grad():
        told = prior.denoise(x, t, text, camera_vector(script_poses(4)), 4)
        assert torch.equal(told, whole.denoise(x, t, text))
        assert not torch.allclose(told, whole.denoise(x, t, text, camera_vector(script_poses(4)), 4), atol=1e-3)
        alone = torch.cat([prior.denoise(x[k : k + 1], t[:1], text[:1]) for k in range(4)])
    torch.testing.assert_close(told, alone, atol=1e-5, rtol=0)


def test_a_single_file_knows_the_size_of_its_pictures(tmp_path: Path) -> None:
    """Stable Diffusion's files have no camera branch, and pictures of 512 pixels; MVDream's have 256."""
    path = official_checkpoint(tmp_path, "sd15")
    options = {"dtype": "fp32", "tokenizer": str(tmp_path / "clip")}
    assert stable_diffusion.build(StableDiffusionConfig(weights=str(path), **options)).image_size == 256
    kept = {n: v for n, v in torch.load(path).items() if "camera_embed" not in n}
    torch.save(kept, tmp_path / "v1-5-pruned.ckpt")
    found = stable_diffusion.build(StableDiffusionConfig(weights=str(tmp_path / "v1-5-pruned.ckpt"), **options))
    assert found.image_size == 512 and found.unet.class_embedding is None
    assert meta_networks(str(tmp_path / "v1-5-pruned.ckpt")).unet.config["sample_size"] == 64
    with pytest.raises(ConfigError, match="no camera branch"):
        MVDream.load(str(tmp_path / "v1-5-pruned.ckpt"), tokenizer=str(tmp_path / "clip"))


# ---------------------------------------------------------------- DeepFloyd


def test_deepfloyd_is_diffusers_own_network() -> None:
    prior, theirs = pixels(), if_pipeline()
    text = prior.encode_prompt(["A Red dog", ""])
    with torch.no_grad():
        cond, uncond = theirs.encode_prompt("A Red dog", negative_prompt="")
        torch.testing.assert_close(text, torch.cat([cond, uncond]), atol=1e-5, rtol=1e-4)
        x, t = torch.randn(2, 3, 16, 16, generator=cpu()), torch.tensor([100, 900])
        wanted = theirs.unet(x, t, text).sample[:, :3]
        found = prior.denoise(x, t, text, camera_vector(script_poses(2)), 2)
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(prior.schedule.alpha_bar, theirs.scheduler.alphas_cumprod, atol=1e-6, rtol=0)
    torch.testing.assert_close(prior.schedule.alpha_bar, Schedule.cosine().alpha_bar)


def test_its_latents_are_the_pictures() -> None:
    prior, rgb = pixels(), torch.rand(1, 16, 16, 3, generator=cpu()).requires_grad_()
    x = prior.encode_images(rgb)
    assert torch.equal(x, rgb.permute(0, 3, 1, 2) * 2 - 1)
    large = torch.rand(1, 40, 40, 3, generator=cpu()).requires_grad_()
    prior.encode_images(large).square().sum().backward()
    assert prior.encode_images(large).shape == (1, 3, 16, 16) and large.grad is not None and (large.grad != 0).any()


def test_words_beyond_the_text_encoder_are_named(caplog: pytest.LogCaptureFixture) -> None:
    prior = pixels()
    with caplog.at_level("INFO", logger="threedgen"):
        prior.encode_prompt(["a dog " * 40])
    assert "these words have no effect" in caplog.text
    assert prior.tokens_cut("a dog") == "" and prior.unknown_words("a dog") == []


def test_half_precision_keeps_the_weights_so() -> None:
    prior = pixels().__class__(
        if_pipeline().unet, folders() / "if" / "text_encoder", pixels().tokenizer, Schedule.cosine(), dtype="bf16"
    )
    assert prior.unet.dtype == torch.bfloat16
    x, t = torch.randn(1, 3, 16, 16, generator=cpu()), torch.tensor([500])
    text = prior.encode_prompt(["a dog"])
    with torch.no_grad():
        found, exact = prior.denoise(x, t, text), pixels().denoise(x, t, text)
    assert found.dtype == torch.float32 and (found - exact).abs().max() < 0.1 * exact.std()


def test_vsd_copies_a_prior_on_pixels_too() -> None:
    prior = pixels()
    distil = VSD(VSDConfig(pose_dropout=0.0), prior.schedule, 100, prior, cpu())
    x = torch.zeros(2, 3, 16, 16, requires_grad=True)
    text = prior.encode_prompt(["a dog", ""])
    given = Conditions((text[:1], text[1:]), c2w=script_poses(2))
    loss, _ = distil(x, prior.denoise, given, 0, cpu())
    loss.backward()
    ups: list[Tensor | None] = [p.grad for name, p in distil.named_parameters() if "up" in name]
    assert x.grad is not None and x.grad.abs().max() > 0
    assert ups and any(grad is not None and grad.abs().max() > 0 for grad in ups)


def test_its_size_is_known_from_its_shapes() -> None:
    found = meta_networks(str(folders() / "if"), DeepFloydConfig.parts)
    assert found.vae is None and found.factor == 1
    assert found.kept == sum(p.numel() for p in if_pipeline().unet.parameters()) < found.parameters


# ---------------------------------------------------------------- what is wrong with a folder


def refused(call: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        call()
    assert "\n" not in str(caught.value)


def broken(tmp_path: Path, name: str = "if") -> Path:
    shutil.copytree(folders() / name, tmp_path / name)
    return tmp_path / name


def build_if(path: Path, **options: Any) -> None:
    made = DeepFloydConfig(weights=str(path), dtype="fp32", **options)
    made.check()
    deepfloyd.build(made).encode_prompt(["a dog"])


def test_stable_diffusion_in_the_place_of_deepfloyd_is_said(tmp_path: Path) -> None:
    refused(lambda: build_if(folders() / "sd", tokenizer=str(folders() / "if")), "no first stage on pixels.*4 channels")
    refused(lambda: build_if(official_checkpoint(tmp_path, "sd15"), tokenizer=str(folders() / "if")), "single file")
    refused(lambda: StableDiffusionConfig(weights=str(folders() / "if")).check(), "vae")


def test_missing_parts_are_said(tmp_path: Path) -> None:
    path = broken(tmp_path)
    refused(lambda: build_if(path, tokenizer="google/t5"), "tokenizer: there is no folder 'google/t5'")
    shutil.rmtree(path / "text_encoder")
    refused(lambda: build_if(path), "text_encoder.*config.json cannot be read")


def test_a_text_encoder_that_lacks_tensors_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = broken(tmp_path)
    file = path / "text_encoder" / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "wi_0" not in n}, file, {"format": "pt"})
    refused(lambda: build_if(path), r"lacks 2 tensors of a T5 encoder")
    file.write_bytes(b"not a file of tensors at all" * 10)
    refused(lambda: build_if(path), "text_encoder")


def test_a_vocabulary_that_needs_a_package_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda module: False)
    path = broken(tmp_path)
    (path / "tokenizer" / "tokenizer.json").unlink()
    refused(lambda: build_if(path), r"sentencepiece: pip install .*\[deepfloyd\]")


def test_who_cannot_do_what_is_asked_is_not_taken() -> None:
    for name, words in [
        ("sample-toybox", ["prior.name=deepfloyd"]),
        ("sample-toybox", ["prior.name=stable-diffusion"]),
        ("mvdreambooth-toybox", ["prior.name=stable-diffusion"]),
        ("evaluate-toybox-prior", ["prior.name=deepfloyd"]),
    ]:
        refused(lambda name=name, words=words: config.load(name, words), "prior|n_view")
    assert config.load("sample-toybox", ["prior.name=stable-diffusion", "n_view=0"]).n_view == 0
    single = config.load("mvdream-toybox", ["prior.name=stable-diffusion"])
    assert single.warm_steps == 0 < config.load("mvdream-toybox").warm_steps  # it samples no views to be fitted to


@pytest.mark.parametrize("make", [sd, pixels, lambda: MVDream.load(str(prior_folder()), dtype="fp32")])
def test_the_shape_of_a_text_is_known_before_it_is_encoded(make: Any) -> None:
    prior = make()
    for prompts in (["a red dog"], ["cat", "a red dog, front view"]):
        assert prior.encode_prompt(prompts).shape == (len(prompts), *prior.text_shape)
    assert prior.text_shape[0] == prior.max_tokens and prior.text_shape[1] > 1
