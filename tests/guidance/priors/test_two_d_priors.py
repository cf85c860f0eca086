import shutil
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.errors import refused, refused_in_one_line
from tests.support.official import official_checkpoint
from tests.support.script_poses import script_poses
from tests.support.task_server import prior_folder
from tests.support.tiny_methods import folders, if_pipeline, sd_pipeline
from tests.support.tiny_prior import cpu
from threedgen import config
from threedgen.config import optional as extras
from threedgen.guidance.priors import deepfloyd, from_options, latent_diffusion
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.priors.options import DeepFloydConfig, StableDiffusionConfig
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights.meta_networks import meta_networks
from threedgen.systems.meta_prior import MetaPrior, measure_sampling


def sd(**options: Any) -> latent_diffusion.LatentDiffusion:
    return from_options.build(StableDiffusionConfig(weights=str(folders() / "sd"), dtype="fp32", **options))


def pixels(**options: Any) -> deepfloyd.DeepFloyd:
    return deepfloyd.build(DeepFloydConfig(weights=str(folders() / "if"), dtype="fp32", **options))


def test_stable_diffusion_matches_diffusers() -> None:
    prior, theirs = sd(), sd_pipeline()
    x, t = torch.randn(2, 4, 8, 8, generator=cpu()), torch.tensor([100, 900])
    text = prior.encode_prompt(["a red dog", "cat"])
    with torch.no_grad():
        expected = theirs.unet(x, t, text).sample
        torch.testing.assert_close(prior.denoise(x, t, text), expected, atol=1e-5, rtol=0)
        ids = theirs.tokenizer(["a red dog", "cat"], padding="max_length", max_length=16, return_tensors="pt").input_ids
        torch.testing.assert_close(text, theirs.text_encoder(ids)[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(prior.schedule.alpha_bar, theirs.scheduler.alphas_cumprod, atol=1e-6, rtol=0)
    assert not any(p.requires_grad for network in prior.networks.values() for p in network.parameters())

    image = prior.sample("a red dog", None, steps=2, generator=cpu())
    assert image.shape == (1, 16, 16, 3) and image.std() > 0


def test_stable_diffusion_uses_multi_view_weights_in_2d_mode() -> None:
    """Cameras and views are ignored: each image is denoised as by MVDream without a camera."""
    options = StableDiffusionConfig(weights=str(prior_folder()), dtype="fp32")
    prior, whole = from_options.build(options), MVDream.load(str(prior_folder()), dtype="fp32")
    x, t = torch.randn(4, 4, 8, 8, generator=cpu()), torch.full((4,), 500)
    text = prior.encode_prompt(["a red dog"]).repeat(4, 1, 1)
    with torch.no_grad():
        eps = prior.denoise(x, t, text, camera_vector(script_poses(4)), 4)
        assert torch.equal(eps, whole.denoise(x, t, text))
        assert not torch.allclose(eps, whole.denoise(x, t, text, camera_vector(script_poses(4)), 4), atol=1e-3)
        single = torch.cat([prior.denoise(x[k : k + 1], t[:1], text[:1]) for k in range(4)])
    torch.testing.assert_close(eps, single, atol=1e-5, rtol=0)


def test_deepfloyd_matches_diffusers() -> None:
    prior, theirs = pixels(), if_pipeline()
    text = prior.encode_prompt(["A Red dog", ""])
    with torch.no_grad():
        cond, uncond = theirs.encode_prompt("A Red dog", negative_prompt="")
        torch.testing.assert_close(text, torch.cat([cond, uncond]), atol=1e-5, rtol=1e-4)
        x, t = torch.randn(2, 3, 16, 16, generator=cpu()), torch.tensor([100, 900])
        expected = theirs.unet(x, t, text).sample[:, :3]
        found = prior.denoise(x, t, text, camera_vector(script_poses(2)), 2)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(prior.schedule.alpha_bar, theirs.scheduler.alphas_cumprod, atol=1e-6, rtol=0)
    torch.testing.assert_close(prior.schedule.alpha_bar, Schedule.cosine().alpha_bar)
    rgb = torch.rand(1, 16, 16, 3, generator=cpu())  # latents are images
    assert torch.equal(prior.encode_images(rgb), rgb.permute(0, 3, 1, 2) * 2 - 1)
    large = torch.rand(1, 40, 40, 3, generator=cpu()).requires_grad_()
    x = prior.encode_images(large)
    x.square().sum().backward()
    assert x.shape == (1, 3, 16, 16) and large.grad is not None and (large.grad != 0).any()


def test_deepfloyd_holds_its_text_encoder_or_its_unet_but_not_both(monkeypatch: pytest.MonkeyPatch) -> None:
    made, read = list[Any](), deepfloyd.read_text_encoder

    def reading(*args: Any) -> Any:
        encoder = read(*args)
        made.append(weakref.ref(encoder))
        return encoder

    monkeypatch.setattr(deepfloyd, "read_text_encoder", reading)
    prior = pixels()
    prior.encode_prompt(["a dog"])
    assert [encoder() for encoder in made] == [None] and prior._unet is None
    assert prior.unet is prior.networks["unet"]
    assert not any(parameter.requires_grad for parameter in prior.unet.parameters())
    run = config.load("dreamfusion-if", ["prompt=a dog", f"prior.weights={folders() / 'if'}"])
    found = meta_networks(run.prior.weights, run.prior.parts)
    kept = sum(p.numel() for p in prior.unet.parameters())
    assert found.kept == kept < found.parameters and found.vae is None and found.factor == 1
    large = found._replace(parameters=10 * kept)
    assert measure_sampling(MetaPrior(large, run.prior, torch.device("cuda"))).peak == 9 * kept * 2  # in half precision


@pytest.fixture
def if_folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders() / "if", tmp_path / "if"))


def build_if(path: Path, **options: Any) -> None:
    config = DeepFloydConfig(weights=str(path), dtype="fp32", **options)
    config.check()
    deepfloyd.build(config).encode_prompt(["a dog"])


def test_config_refuses_weights_of_the_other_model(tmp_path: Path) -> None:
    tokenizer = str(folders() / "if")
    with refused("weights", folders() / "sd", 4, 3, "prior.name=stable-diffusion"):
        build_if(folders() / "sd", tokenizer=tokenizer)
    with refused("weights"):
        build_if(official_checkpoint(tmp_path, "sd15"), tokenizer=tokenizer)
    with refused(None, "vae"):
        StableDiffusionConfig(weights=tokenizer).check()


def test_build_refuses_missing_and_damaged_parts(if_folder: Path) -> None:
    with refused("tokenizer", "google/t5"):
        build_if(if_folder, tokenizer="google/t5")
    file = if_folder / "text_encoder" / "model.safetensors"
    save_file({n: t for n, t in load_file(file).items() if "wi_0" not in n}, file, {"format": "pt"})
    with refused("weights", "text_encoder", 2, "wi_0"):
        build_if(if_folder)
    file.write_bytes(b"not a file of tensors at all" * 10)
    with refused_in_one_line(None, "text_encoder"):
        build_if(if_folder)
    shutil.rmtree(if_folder / "text_encoder")
    with refused(None, if_folder / "text_encoder" / "config.json"):
        build_if(if_folder)


def test_vocabulary_that_needs_sentencepiece_names_its_installation(if_folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(extras, "installed", lambda module: False)
    (if_folder / "tokenizer" / "tokenizer.json").unlink()
    with refused(None, "sentencepiece", "pip install", "[deepfloyd]"):
        build_if(if_folder)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "pytorch_model.bin"])
def test_deepfloyd_reads_other_files_of_its_text_encoder(if_folder: Path, name: str) -> None:
    file = if_folder / "text_encoder" / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    if "fp16" in name:
        save_file({n: t.half() for n, t in tensors.items()}, file.with_name(name), {"format": "pt"})
    else:
        torch.save(tensors, file.with_name(name))
    found = deepfloyd.build(DeepFloydConfig(weights=str(if_folder), dtype="fp32")).encode_prompt(["a dog"])
    torch.testing.assert_close(found, pixels().encode_prompt(["a dog"]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("make", [sd, pixels, lambda: MVDream.load(str(prior_folder()), dtype="fp32")])
def test_text_shape_is_known_and_words_cut_off_are_logged(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    prior, prompt = make(), "a dog " * 40
    assert prior.text_shape[0] == prior.max_tokens and prior.text_shape[1] > 1
    for prompts in (["a red dog"], ["cat", "a red dog, front view"]):
        assert prior.encode_prompt(prompts).shape == (len(prompts), *prior.text_shape)
    caplog.clear()
    with caplog.at_level("INFO", logger="threedgen"):
        prior.encode_prompt(["a dog"])
        prior.encode_prompt([prompt])
    (record,) = (record for record in caplog.records if record.name.startswith("threedgen"))
    assert record.args == (prior.tokens_cut(prompt),) != ("",) and prior.tokens_cut("a dog") == ""
