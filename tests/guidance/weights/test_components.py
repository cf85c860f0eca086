"""Priors as files: saved and loaded folders, original checkpoints, and everything that is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from tests.support.ldm_names import to_ldm, unet_prefixes, vae_prefixes
from tests.support.tiny_prior import (
    cpu,
    letter_tokenizer,
    open_clip_names,
    output,
    tiny_prior,
    tiny_text_encoder,
    tiny_unet,
    tiny_vae,
    word_tokenizer,
)
from threedgen.config import ConfigError, registry
from threedgen.guidance.options import MVDreamConfig
from threedgen.guidance.priors import mvdream
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import components, loading, tokens


@pytest.fixture(scope="module")
def prior() -> MVDream:
    return tiny_prior()


@pytest.fixture(scope="module")
def saved(prior: MVDream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior") / "saved"
    prior.save(folder)
    return folder


def copied(folder: Path, target: Path) -> Path:
    """A copy that a test may damage."""
    for file in folder.rglob("*"):
        if file.is_file():
            (target / file.relative_to(folder)).parent.mkdir(parents=True, exist_ok=True)
            (target / file.relative_to(folder)).write_bytes(file.read_bytes())
    return target


def unsummed(folder: Path, target: Path) -> Path:
    """A copy as other tools write it: without check sums."""
    copied(folder, target)
    (target / "SHA256SUMS").unlink()
    return target


def edit_json(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize("make_tokenizer", [word_tokenizer, letter_tokenizer])
def test_a_saved_prior_comes_back(prior: MVDream, tmp_path: Path, make_tokenizer: Any) -> None:
    tokenizer = make_tokenizer()
    encoder = tiny_text_encoder(vocab=100)
    original = MVDream(prior.unet, prior.vae, encoder, tokenizer, dtype="fp32", image_size=32)
    original.save(tmp_path / "x")
    back = MVDream.load(str(tmp_path / "x"), dtype="fp32")
    back.save(tmp_path / "again")
    assert "_name_or_path" not in "".join(path.read_text() for path in tmp_path.glob("again/*/config.json"))
    assert torch.equal(back.schedule.alpha_bar, original.schedule.alpha_bar)
    assert back.image_size == back.trained_size == 16
    for old, new in ((original.unet, back.unet), (original.vae, back.vae), (encoder, back.text_encoder)):
        tensors = new.state_dict()
        assert all(torch.equal(t.half().float(), tensors[name]) for name, t in old.state_dict().items())
        assert not new.training and not any(p.requires_grad for p in new.parameters())
    ids = tokens.token_ids(tokenizer, ["a red dog", "3d hat"], 16)
    assert torch.equal(tokens.token_ids(back.tokenizer, ["a red dog", "3d hat"], 16), ids)
    assert (output(back) - output(original)).abs().max() < 1e-2


def test_stock_diffusers_reads_what_we_save(saved: Path, prior: MVDream) -> None:
    stock = StableDiffusionPipeline.from_pretrained(saved, local_files_only=True).to(torch.float32)
    back = MVDream(stock.unet, stock.vae, stock.text_encoder, stock.tokenizer, dtype="fp32")
    assert (output(back.to("cpu")) - output(prior)).abs().max() < 1e-2


def test_loading_twice_gives_the_same_and_touches_no_random_numbers(saved: Path) -> None:
    state = torch.get_rng_state()
    a, b = (MVDream.load(str(saved), dtype="fp32") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(output(a), output(b))


def test_unusual_schedules_survive_saving(prior: MVDream, tmp_path: Path) -> None:
    schedule = Schedule.linear(T=1200, prediction="v_prediction")
    MVDream(prior.unet, prior.vae, prior.text_encoder, prior.tokenizer, schedule).save(tmp_path / "x")
    back = MVDream.load(str(tmp_path / "x")).schedule
    assert back.prediction == "v_prediction"
    torch.testing.assert_close(back.alpha_bar, schedule.alpha_bar)


def test_saving_replaces_only_a_saved_prior(prior: MVDream, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="holds something else"):
        prior.save(tmp_path / "notes")
    prior.save(tmp_path / "x")
    prior.save(tmp_path / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "x"]


def test_a_weight_too_large_for_float16_is_named(tmp_path: Path) -> None:
    broken = tiny_prior()
    with torch.no_grad():
        broken.unet.conv_out.bias.fill_(1e6)
    with pytest.raises(ConfigError, match="unet: 'conv_out.bias' does not fit into float16"):
        broken.save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_flipped_bytes_of_a_saved_prior_are_noticed(saved: Path, tmp_path: Path) -> None:
    folder = copied(saved, tmp_path / "x")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="SHA-256 is not the one recorded"):
        MVDream.load(str(folder))


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("unet", {"_class_name": "MyUNet"}, "describes a 'MyUNet', not a UNet2DConditionModel"),
        ("unet", {"layers_per_block": 2}, "UNet is of another architecture: .* tensors are missing"),
        ("unet", {"layers_per_block": 10**9}, "layers_per_block is 1000000000"),
        ("unet", {"block_out_channels": "wide"}, "config of the UNet describes no known network"),
        ("vae", {"latent_channels": 8}, "VAE is of another architecture: .* another shape"),
        ("vae", {"block_out_channels": None}, "config of the VAE"),
        ("text_encoder", {"hidden_size": 32}, "text encoder is of another architecture"),
        ("text_encoder", {"model_type": "t5"}, "describes a 't5'"),
        ("text_encoder", {"num_hidden_layers": "x"}, "config of the text encoder"),
    ],
)
def test_a_config_that_lies_is_refused(
    saved: Path, tmp_path: Path, part: str, change: dict[str, Any], sentence: str
) -> None:
    folder = unsummed(saved, tmp_path / "x")
    edit_json(folder / part / "config.json", **change)
    with pytest.raises(ConfigError, match=sentence) as caught:
        MVDream.load(str(folder))
    assert "\n" not in str(caught.value)


def test_an_unknown_schedule_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = unsummed(saved, tmp_path / "x")
    for change in (
        {"beta_schedule": "square"},
        {"prediction_type": "sample"},
        {"num_train_timesteps": "x"},
        {"num_train_timesteps": 5},
    ):
        edit_json(folder / "scheduler" / "scheduler_config.json", **change)
        with pytest.raises(ConfigError, match="scheduler: "):
            MVDream.load(str(folder))


def test_weights_with_nan_are_refused(saved: Path, tmp_path: Path) -> None:
    folder = unsummed(saved, tmp_path / "x")
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_in.bias"][1] = float("nan")
    save_file(tensors, path)
    with pytest.raises(ConfigError, match="VAE are not finite: 'decoder.conv_in.bias'"):
        MVDream.load(str(folder))


def test_a_broken_tokenizer_is_named(saved: Path, tmp_path: Path) -> None:
    folder = unsummed(saved, tmp_path / "x")
    (folder / "tokenizer" / "tokenizer.json").write_text("{")
    with pytest.raises(ConfigError, match="no readable tokenizer"):
        MVDream.load(str(folder))


def test_parts_that_do_not_fit_each_other_are_named(prior: MVDream) -> None:
    with pytest.raises(ConfigError, match="24 features per token .* 32 text features"):
        MVDream(tiny_unet(cross_attention_dim=32), prior.vae, prior.text_encoder, prior.tokenizer)
    with pytest.raises(ConfigError, match="8 channels of the VAE's latents, 4 channels"):
        MVDream(prior.unet, tiny_vae(latent_channels=8), prior.text_encoder, prior.tokenizer)
    with pytest.raises(ConfigError, match="tokenizer has .* words"):
        MVDream(prior.unet, prior.vae, tiny_text_encoder(vocab=10), prior.tokenizer)
    with pytest.raises(ConfigError, match="image_size: 17 is not a multiple of 2"):
        MVDream(prior.unet, prior.vae, prior.text_encoder, prior.tokenizer, image_size=17)


def test_a_2d_model_is_refused_unless_asked_for(saved: Path, tmp_path: Path) -> None:
    plain = tiny_prior(class_embed_type=None, projection_class_embeddings_input_dim=None)
    plain.save(tmp_path / "x")
    with pytest.raises(ConfigError, match="no camera branch"):
        MVDream.load(str(tmp_path / "x"))
    flat = MVDream.load(str(tmp_path / "x"), camera=False)
    assert flat.sample("a red dog", None, steps=2, generator=cpu()).shape == (1, 16, 16, 3)


def test_the_config_builds_the_prior(saved: Path, prior: MVDream) -> None:
    options = registry.config_model("prior", "mvdream")(weights=str(saved), dtype="fp32", image_size=32)
    assert isinstance(options, MVDreamConfig)
    built = mvdream.build(options)
    assert built.image_size == 32 and built.dtype == torch.float32
    assert (output(built) - output(prior)).abs().max() < 1e-2


def original_parts() -> tuple[Any, Any, CLIPTextModel]:
    """Tiny networks for which the head counts of the released models hold (8 per layer; 64 channels)."""
    encoder = tiny_text_encoder(100, hidden_size=64, num_attention_heads=1, hidden_act="gelu", pad_token_id=0)
    unet = tiny_unet(use_linear_projection=False, attention_head_dim=8, cross_attention_dim=64)
    return unet, tiny_vae(), encoder


def original_checkpoint(path: Path, open_clip: bool = True, **more: Tensor) -> Path:
    """The tiny networks as MVDream's own file would hold them."""
    unet, vae, encoder = original_parts()
    text = open_clip_names(encoder) if open_clip else encoder.state_dict()
    inside = "model." if open_clip else "transformer.text_model."
    flat = {"betas": torch.zeros(1000)}
    parts = [("model.diffusion_model.", to_ldm(unet.state_dict(), unet_prefixes(unet.config)))]
    parts += [("first_stage_model.", to_ldm(vae.state_dict(), vae_prefixes(vae.config)))]
    parts += [(f"cond_stage_model.{inside}", text)]
    for prefix, tensors in parts:
        flat |= {prefix + name: tensor for name, tensor in tensors.items()}
    torch.save(flat | more, path)
    return path


@pytest.fixture
def clip_folder(tmp_path: Path) -> str:
    letter_tokenizer().save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


@pytest.mark.parametrize("open_clip", [True, False])
def test_an_original_checkpoint_loads(tmp_path: Path, clip_folder: str, open_clip: bool) -> None:
    path = original_checkpoint(tmp_path / "mv.pt", open_clip)
    loaded = MVDream.load(str(path), dtype="fp32", tokenizer=clip_folder)
    unet, vae, encoder = original_parts()
    assert loaded.tokenizer.pad_token_id == (0 if open_clip else loaded.tokenizer.eos_token_id)
    if not open_clip:
        encoder.config.hidden_act = "quick_gelu"
        encoder = CLIPTextModel(encoder.config).eval()
        encoder.load_state_dict(original_parts()[2].state_dict())
    expected = MVDream(unet, vae, encoder, loaded.tokenizer, dtype="fp32")
    torch.testing.assert_close(output(loaded), output(expected))
    assert loaded.image_size == 64  # 32 latents, here of 2 pixels


def test_checkpoints_of_something_else_are_named(tmp_path: Path, clip_folder: str) -> None:
    torch.save({"layer.weight": torch.ones(2)}, tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="no checkpoint of MVDream's kind: it has no tensor named model.diffusion"):
        MVDream.load(str(tmp_path / "x.pt"))
    strange = {"model.diffusion_model.label_emb.0.weight": torch.ones(1)}
    original_checkpoint(tmp_path / "y.pt", **strange)
    with pytest.raises(ConfigError, match="unknown tensor 'label_emb.0.weight' in the UNet"):
        MVDream.load(str(tmp_path / "y.pt"), tokenizer=clip_folder)


def test_a_checkpoint_without_camera_is_named(tmp_path: Path, clip_folder: str) -> None:
    path = original_checkpoint(tmp_path / "x.pt")
    flat = {name: t for name, t in torch.load(path).items() if "camera_embed" not in name}
    torch.save(flat, path)
    with pytest.raises(ConfigError, match="no camera branch"):
        MVDream.load(str(path), tokenizer=clip_folder)


def test_a_checkpoint_without_any_tokenizer_says_what_to_do(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    path = original_checkpoint(tmp_path / "x.pt")
    with pytest.raises(ConfigError, match="holds no tokenizer.*set tokenizer: FOLDER"):
        MVDream.load(str(path))


def test_a_port_that_keeps_ldms_names_is_converted(saved: Path, tmp_path: Path) -> None:
    folder = unsummed(saved, tmp_path / "x")
    unet = tiny_unet(use_linear_projection=False, attention_head_dim=8)
    ldm = to_ldm(unet.state_dict(), unet_prefixes(unet.config))
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in ldm.items()}, file)
    edit_json(folder / "unet" / "config.json", _class_name="MultiViewUNetModel")
    expected = tiny_prior(use_linear_projection=False, attention_head_dim=8)
    assert (output(MVDream.load(str(folder), dtype="fp32")) - output(expected)).abs().max() < 1e-2


def test_old_names_of_the_vaes_attention_are_read() -> None:
    old = "encoder.mid_block.attentions.0.proj_attn.weight"
    assert components.old_vae_name(old) == "encoder.mid_block.attentions.0.to_out.0.weight"
    assert components.old_vae_name("encoder.conv_in.weight") == "encoder.conv_in.weight"


def test_the_embedded_models_if_they_are_there() -> None:
    for name, multiview in (("toybox-base", False), ("toybox-prior", True)):
        if not (loading.folder("weights") / name).is_dir():
            pytest.skip(f"no {name} in this checkout")
        loading.check(name)
        embedded = MVDream.load(name, dtype="fp32", camera=multiview)
        assert (embedded.unet.class_embedding is not None) == multiview
        assert tokens.unknown_words(embedded.tokenizer, "zzgrblx")[0][0] == "zzgrblx"


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("vae", "scaling_factor", "0"),
        ("vae", "scaling_factor", "NaN"),
        ("unet", "norm_eps", "NaN"),
        ("unet", "norm_eps", "-1"),
        ("unet", "sample_size", "100000"),
        ("text_encoder", "layer_norm_eps", "1e999"),
        ("text_encoder", "num_labels", "1000000000"),
    ],
)
def test_numbers_that_would_draw_nothing_are_refused(saved: Path, tmp_path: Path, part: str, key: str, value: str):
    folder = unsummed(saved, tmp_path / "x")
    path = folder / part / "config.json"
    config = json.loads(path.read_text()) | {key: "HERE"}
    path.write_text(json.dumps(config).replace('"HERE"', value))
    with pytest.raises(ConfigError, match="damaged"):
        MVDream.load(str(folder))


@pytest.mark.parametrize(
    ("file", "change", "said"),
    [
        ("unet/config.json", {"norm_eps": "x"}, "cannot draw (TypeError: group_norm"),
        ("unet/config.json", {"freq_shift": "a"}, "cannot draw (TypeError: "),
        ("unet/config.json", {"mid_block_scale_factor": 0}, "draws NaN: its weights or configs are damaged"),
        ("vae/config.json", {"scaling_factor": None}, "cannot draw (TypeError: "),
        ("vae/config.json", {"norm_num_groups": 4, "act_fn": 3}, "config of the VAE describes no known network"),
        ("text_encoder/config.json", {"eos_token_id": None}, "cannot draw (AttributeError: "),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "x"}, "cannot draw (TypeError: "),
    ],
)
def test_what_fits_and_yet_cannot_draw_is_noticed_at_the_door(
    saved: Path, tmp_path: Path, file: str, change: dict[str, Any], said: str
) -> None:
    folder = unsummed(saved, tmp_path / "x")
    edit_json(folder / file, **change)
    with pytest.raises(ConfigError, match=re.escape(said)) as caught:
        MVDream.load(str(folder))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_finite_weights_that_draw_nan_are_refused(saved: Path, tmp_path: Path, part: str) -> None:
    folder = unsummed(saved, tmp_path / "x")
    (path,) = (folder / part).glob("*.safetensors")
    save_file({name: torch.full_like(value, 6e4) for name, value in load_file(path).items()}, path)
    with pytest.raises(ConfigError, match="draws NaN"):
        MVDream.load(str(folder))


def test_a_word_beyond_the_text_encoder_is_refused(saved: Path, tmp_path: Path) -> None:
    """However few words there are: it is their numbers that are looked up."""
    folder = unsummed(saved, tmp_path / "x")
    path = folder / "tokenizer" / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["vocab"]["dog"] = 999999
    path.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match="the tokenizer has 1000000 words, the text encoder only"):
        MVDream.load(str(folder))


@pytest.mark.parametrize("schedule", [Schedule.scaled_linear(T=500), Schedule.linear(T=500).shifted(6.0)])
def test_another_scheduler_takes_the_noise_over(schedule: Schedule) -> None:
    other: Any = DDPMScheduler.from_config(components.scheduler(schedule).config)
    torch.testing.assert_close(other.alphas_cumprod, schedule.alpha_bar, rtol=1e-4, atol=0)
