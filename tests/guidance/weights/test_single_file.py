import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.support.errors import refused
from tests.support.tiny_pipelines import released, single_file
from tests.support.tiny_prior import cpu, letter_tokenizer
from tests.support.tiny_sdxl import tiny_sdxl
from threedgen.guidance.priors.from_options import build
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.options import StableDiffusionConfig
from threedgen.guidance.weights import loading
from threedgen.guidance.weights.families import traits
from threedgen.guidance.weights.meta_networks import meta_networks


@pytest.fixture(scope="module")
def tensors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """Tiny checkpoints without a camera branch, by kind."""
    made = released(tmp_path_factory.mktemp("files"))
    return {kind: single_file(kind, pipe) for kind, pipe in made.items()}


def prior(path: Path, content: dict[str, Tensor], **options: Any) -> Any:
    save_file({name: tensor.clone() for name, tensor in content.items()}, path)
    letter_tokenizer().save_pretrained(path.parent / "clip")
    config = StableDiffusionConfig(weights=str(path), tokenizer=str(path.parent / "clip"), dtype="fp32", **options)
    config.check()
    return build(config)


@pytest.mark.parametrize(
    ("name", "metadata", "prediction", "size"),
    [
        ("dreams", {}, None, None),
        ("dreams-vpred", {}, "v_prediction", None),
        ("512-base-ema", {}, "epsilon", None),
        ("v2-1_512-ema-pruned", {}, "epsilon", None),
        ("768-v-ema", {}, "v_prediction", None),
        ("v2-1_768-ema-pruned", {}, "v_prediction", None),
        ("sd_xl_base_1.0", {}, "epsilon", None),
        ("noobaiXL_vPred10", {}, "v_prediction", None),
        ("mine", {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction", None),
        ("mine", {"modelspec.prediction_type": "v", "modelspec.resolution": "640x512"}, "v_prediction", 640),
        ("768-v", {"modelspec.prediction_type": "epsilon"}, "epsilon", None),
        ("mine", {"modelspec.resolution": "0x70000"}, None, None),
    ],
)
def test_traits_follow_from_metadata_and_name(name: str, metadata: Any, prediction: Any, size: Any) -> None:
    assert traits(Path(f"/models/{name}.safetensors"), [], metadata, sd2=True) == (prediction, size)
    assert traits(Path(f"{name}.ckpt"), ["v_pred"], metadata, sd2=True) == ("v_prediction", size)


@pytest.mark.parametrize(
    ("kind", "name", "prediction", "latents"),
    [
        ("sd15", "photoreal_768_v2", "epsilon", 64),
        ("sd15", "mine-vpred", "v_prediction", 64),
        ("sd21", "768-v-ema", "v_prediction", 96),
        ("sdxl", "xl-base", "epsilon", 128),
    ],
)
def test_file_loads_with_its_prediction_and_size(tensors, tmp_path, caplog, kind, name, prediction, latents) -> None:
    found = prior(tmp_path / f"{name}.safetensors", tensors[kind])
    assert found.schedule.prediction == prediction and found.image_size == latents * found.factor
    assert meta_networks(str(tmp_path / f"{name}.safetensors")).unet.config["sample_size"] == latents
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_undeclared_prediction_is_epsilon_with_a_warning_unless_set(tensors: Any, tmp_path: Path, caplog: Any) -> None:
    found = prior(tmp_path / "mine.safetensors", tensors["sd21"])
    assert found.schedule.prediction == "epsilon" and found.image_size == 64 * found.factor
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    assert "prior.prediction=v" in record.getMessage()
    caplog.clear()
    found = prior(tmp_path / "mine.safetensors", tensors["sd21"], prediction="v")
    assert found.schedule.prediction == "v_prediction" and found.image_size == 96 * found.factor and not caplog.records
    content = tensors["sd21"] | {n: torch.zeros(0) for n in ("v_pred", "ztsnr")}
    zero = prior(tmp_path / "zero.safetensors", content)
    assert zero.schedule.alpha_bar[-1] < 1e-6 < found.schedule.alpha_bar[-1] and not caplog.records
    noise = prior(tmp_path / "zero.safetensors", content, prediction="epsilon")
    assert noise.schedule.alpha_bar[-1] > 1e-6, "the noise of pure noise says nothing about the image"
    caplog.clear()
    found = prior(tmp_path / "768-v.safetensors", tensors["sd21"], prediction="epsilon")
    assert found.schedule.prediction == "epsilon" and caplog.records  # contradicts the name


@torch.no_grad()
def test_sdxl_file_is_the_folder(tensors: Any, tmp_path: Path) -> None:
    found = prior(tmp_path / "sd_xl_base.safetensors", tensors["sdxl"])
    tiny_sdxl(tmp_path / "folder", released=True)
    folder = LatentDiffusion.load(str(tmp_path / "folder"), dtype="fp32")
    text, x = found.encode_prompt(["a red car"]), torch.randn(1, 4, 8, 8, generator=cpu())
    torch.testing.assert_close(text, folder.encode_prompt(["a red car"]))
    torch.testing.assert_close(*(one.denoise(x, torch.tensor([500]), text) for one in (found, folder)))
    assert found.scaling_factor == 0.13025
    lost = {name: tensor for name, tensor in tensors["sdxl"].items() if not name.startswith("conditioner.embedders.1")}
    with refused("weights", "second text encoder"):
        prior(tmp_path / "x.safetensors", lost)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("double_blocks.0.img_attn.norm.key_norm.scale", "FLUX"),
        ("conditioner.embedders.0.model.ln_final.bias", "refiner"),
        ("lora_unet_mid_block_attentions_0.lora_down.weight", "prior.loras"),
        ("down_blocks.0.resnets.0.conv1.weight", "diffusers"),
    ],
)
def test_other_families_are_named(tmp_path: Path, name: str, family: str) -> None:
    save_file({name: torch.ones(2)}, tmp_path / "other.safetensors")
    torch.save({"state_dict": {name: torch.ones(2)}, "epoch": 1}, tmp_path / "other.ckpt")
    for read, path in ((loading.check, "other.safetensors"), (LatentDiffusion.load, "other.ckpt")):
        with refused("weights", tmp_path / path, family):
            read(str(tmp_path / path))


def test_camera_branch_is_read_from_tensor_names(tmp_path: Path) -> None:
    names = ["model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.camera_embed.0.weight"]
    for count in (1, 2):
        save_file({name: torch.ones(2) for name in names[:count]}, tmp_path / "file.safetensors")
        assert loading.has_camera_branch(str(tmp_path / "file.safetensors")) == (count == 2)
