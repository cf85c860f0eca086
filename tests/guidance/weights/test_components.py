import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from tests.support.errors import refused, refused_in_one_line
from tests.support.ldm_names import to_ldm, unet_prefixes
from tests.support.tiny_pipelines import single_file
from tests.support.tiny_prior import (
    cpu,
    letter_tokenizer,
    output,
    tiny_prior,
    tiny_text_encoder,
    tiny_unet,
    tiny_vae,
    word_tokenizer,
)
from threedgen.config import registry
from threedgen.guidance.priors import latent_diffusion
from threedgen.guidance.priors.latent_diffusion import LatentDiffusion
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.priors.options import MVDreamConfig
from threedgen.guidance.schedule import Schedule
from threedgen.guidance.weights import components, files, loading, tokens
from threedgen.run.memory import PeakMemory

UNET = "unet/diffusion_pytorch_model.safetensors"
SCHEDULER = "scheduler/scheduler_config.json"


@pytest.fixture(scope="module")
def prior() -> MVDream:
    return tiny_prior()


@pytest.fixture(scope="module")
def saved(prior: MVDream, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prior") / "saved"
    prior.save(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage, without check sums, as other tools write it."""
    copy = shutil.copytree(saved, tmp_path / "x")
    (copy / "SHA256SUMS").unlink()
    return copy


def edit_json(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("tokenizer", "schedule"),
    [(word_tokenizer(), None), (letter_tokenizer(), Schedule.linear(T=1200, prediction="v_prediction"))],
)
def test_saved_prior_loads_unchanged(prior: MVDream, tmp_path: Path, tokenizer: Any, schedule: Any) -> None:
    encoder = tiny_text_encoder(vocab=100)
    original = MVDream(prior.unet, prior.vae, encoder, tokenizer, schedule, dtype="fp32", image_size=32)
    original.save(tmp_path / "x")
    state = torch.get_rng_state()
    back, again = (MVDream.load(str(tmp_path / "x"), dtype="fp32") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), state) and torch.equal(output(back), output(again))
    back.save(tmp_path / "again")
    assert "_name_or_path" not in "".join(path.read_text() for path in tmp_path.glob("again/*/config.json"))
    assert back.schedule.prediction == original.schedule.prediction
    assert torch.equal(back.schedule.alpha_bar, original.schedule.alpha_bar)
    assert back.image_size == 16
    for old, new in ((original.unet, back.unet), (original.vae, back.vae), (encoder, back.text_encoder)):
        tensors = new.state_dict()
        assert all(torch.equal(t.half().float(), tensors[name]) for name, t in old.state_dict().items())
        assert not new.training and not any(p.requires_grad for p in new.parameters())
    ids = tokens.token_ids(tokenizer, ["a red dog", "3d hat"], 16)
    assert torch.equal(tokens.token_ids(back.tokenizer, ["a red dog", "3d hat"], 16), ids)
    assert (output(back) - output(original)).abs().max() < 1e-2


def test_stock_diffusers_loads_saved_prior(saved: Path, prior: MVDream) -> None:
    stock = StableDiffusionPipeline.from_pretrained(saved, local_files_only=True).to(torch.float32)
    back = MVDream(stock.unet, stock.vae, stock.text_encoder, stock.tokenizer, dtype="fp32")
    assert (output(back.to("cpu")) - output(prior)).abs().max() < 1e-2


def test_save_replaces_only_saved_priors_and_refuses_float16_overflow(tmp_path: Path) -> None:
    prior = tiny_prior()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with refused(None, tmp_path / "notes"):
        prior.save(tmp_path / "notes")
    prior.save(tmp_path / "x")
    for name in ("README.md", ".git/config", "coarse/config.json"):
        (tmp_path / "x" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_text(name)
    with open(tmp_path / "x" / files.SUMS, "a", encoding="utf-8") as sums:
        sums.write(f"{'0' * 64}  coarse/config.json\n")  # a network of the old model
    prior.save(tmp_path / "x")
    assert all((tmp_path / "x" / name).read_text() == name for name in ("README.md", ".git/config"))
    assert not (tmp_path / "x" / "coarse").exists()
    files.check_sums(tmp_path / "x")
    with torch.no_grad():
        prior.unet.conv_out.bias.fill_(1e6)
    with refused(None, "unet", "conv_out.bias", "float16"):
        prior.save(tmp_path / "y")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["notes", "x"]


@pytest.mark.parametrize(
    ("file", "change", "values"),
    [
        ("unet/config.json", {"_class_name": "MyUNet"}, ["unet", "MyUNet", "UNet2DConditionModel"]),
        ("unet/config.json", {"_class_name": None}, ["unet", "UNet2DConditionModel"]),
        ("unet/config.json", {"layers_per_block": 10**9}, ["UNet", "layers_per_block", 10**9]),
        ("unet/config.json", {"sample_size": 100_000}, ["sample_size"]),
        ("vae/config.json", {"latent_channels": 8}, ["VAE"]),
        ("vae/config.json", {"block_out_channels": None}, ["VAE"]),
        ("vae/config.json", {"scaling_factor": float("nan")}, ["config.json"]),  # no JSON number
        ("text_encoder/config.json", {"model_type": "t5"}, ["text_encoder", "'t5'"]),
        (SCHEDULER, {"beta_schedule": "square"}, ["scheduler", "square"]),
        (SCHEDULER, {"num_train_timesteps": 5}, ["scheduler", "num_train_timesteps", 5]),
        # files that fit each other, and yet the networks cannot run
        ("unet/config.json", {"norm_eps": "x"}, ["TypeError"]),
        ("unet/config.json", {"mid_block_scale_factor": 0}, ["NaN"]),
        ("text_encoder/config.json", {"eos_token_id": None}, ["AttributeError"]),
        ("tokenizer/tokenizer_config.json", {"model_max_length": "x"}, ["TypeError"]),
    ],
)
def test_load_refuses_wrong_configs(folder: Path, file: str, change: dict[str, Any], values: list[Any]) -> None:
    edit_json(folder / file, **change)
    with refused_in_one_line(None, *values) as caught:
        MVDream.load(str(folder))
    assert len(str(caught.value)) < 400


def test_load_refuses_weights_that_give_nan(folder: Path) -> None:
    tensors = load_file(folder / UNET)
    save_file({name: torch.full_like(t, 6e4) for name, t in tensors.items()}, folder / UNET)
    with refused(None, "NaN"):
        MVDream.load(str(folder))


def test_load_refuses_flipped_bytes(saved: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved, tmp_path / "x")
    data = bytearray((folder / UNET).read_bytes())
    data[-7] ^= 1
    (folder / UNET).write_bytes(data)
    with refused(None, folder / UNET, "SHA256SUMS"):
        MVDream.load(str(folder))


def test_load_refuses_broken_tokenizer_and_token_ids_beyond_text_encoder(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    tree = json.loads(path.read_text())
    tree["model"]["vocab"]["dog"] = 999999
    path.write_text(json.dumps(tree))
    with refused(None, 1000000):
        MVDream.load(str(folder))
    path.write_text("{")
    with refused(None, folder / "tokenizer"):
        MVDream.load(str(folder))


def test_parts_that_do_not_fit_are_refused(prior: MVDream, tmp_path: Path) -> None:
    parts = {name: getattr(prior, name) for name in ("unet", "vae", "text_encoder", "tokenizer")}
    with refused("image_size", 17, 2):
        MVDream(**parts, image_size=17)
    for change in ({"unet": tiny_unet(cross_attention_dim=32)}, {"vae": tiny_vae(latent_channels=8)}):
        MVDream(**parts | change).save(tmp_path / "x")
        with refused("weights", tmp_path / "x"):
            MVDream.load(str(tmp_path / "x"))


def test_mvdream_refuses_2d_weights_which_stable_diffusion_loads(tmp_path: Path) -> None:
    plain = tiny_prior(class_embed_type=None, projection_class_embeddings_input_dim=None)
    plain.save(tmp_path / "x")
    with refused("weights", tmp_path / "x"):
        MVDream.load(str(tmp_path / "x"))
    flat = LatentDiffusion.load(str(tmp_path / "x"))
    assert flat.sample("a red dog", None, steps=2, generator=cpu()).shape == (1, 16, 16, 3)


def original_parts() -> tuple[Any, Any, CLIPTextModel]:
    """Tiny networks with the head counts of the released models (8 per layer; 64 channels)."""
    encoder = tiny_text_encoder(100, hidden_size=64, num_attention_heads=1, hidden_act="gelu", pad_token_id=0)
    unet = tiny_unet(use_linear_projection=False, attention_head_dim=8, cross_attention_dim=64)
    return unet, tiny_vae(), encoder


def original_checkpoint(path: Path, open_clip: bool = True) -> Path:
    unet, vae, encoder = original_parts()
    pipe = SimpleNamespace(unet=unet, vae=vae, text_encoder=encoder)
    torch.save({"betas": torch.zeros(1000)} | single_file("sd21" if open_clip else "sd15", pipe), path)
    return path


@pytest.fixture
def clip_folder(tmp_path: Path) -> str:
    letter_tokenizer().save_pretrained(tmp_path / "clip")
    return str(tmp_path / "clip")


@pytest.mark.parametrize("open_clip", [True, False])
def test_original_checkpoint_loads(tmp_path: Path, clip_folder: str, open_clip: bool) -> None:
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


@pytest.mark.parametrize(("activation", "pad"), [("gelu", "!"), ("quick_gelu", "<|endoftext|>")])
def test_padding_of_another_tokenizer_is_that_of_the_text_encoder(
    prior: MVDream, tmp_path: Path, clip_folder: str, activation: str, pad: str
) -> None:
    encoder = tiny_text_encoder(100, hidden_act=activation)
    MVDream(prior.unet, prior.vae, encoder, letter_tokenizer()).save(tmp_path / "x")
    assert MVDream.load(str(tmp_path / "x"), tokenizer=clip_folder).tokenizer.pad_token == pad


def test_diffusers_folder_with_ldm_names_is_converted(folder: Path) -> None:
    unet = tiny_unet(use_linear_projection=False, attention_head_dim=8)
    ldm = to_ldm(unet.state_dict(), unet_prefixes(unet.config))
    save_file({name: tensor.contiguous() for name, tensor in ldm.items()}, folder / UNET)
    edit_json(folder / "unet" / "config.json", _class_name="MultiViewUNetModel")
    expected = tiny_prior(use_linear_projection=False, attention_head_dim=8)
    assert (output(MVDream.load(str(folder), dtype="fp32")) - output(expected)).abs().max() < 1e-2
    old = "encoder.mid_block.attentions.0.{}.weight"
    assert components.rename_vae_attention(old.format("proj_attn")) == old.format("to_out.0")
    assert components.rename_vae_attention("encoder.conv_in.weight") == "encoder.conv_in.weight"


def test_unet_for_a_gpu_is_loaded_in_half_precision_without_a_copy(saved, tmp_path, clip_folder, monkeypatch) -> None:
    with PeakMemory("cpu") as memory:
        unet = components.build_network("unet", *components.read_network(saved / "unet"), torch.bfloat16)
    assert memory.peak < 4.5 * sum(t.numel() for t in unet.parameters())  # bytes: file and network, both in half
    monkeypatch.setattr(latent_diffusion, "GPUS", {"cpu"})
    options = MVDreamConfig(weights=str(saved), dtype="bf16", image_size=32)
    whole, half = (registry.build("prior", one, "cpu") for one in (options, options.compact()))
    assert (half.unet.dtype, whole.unet.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(output(half), output(whole)) and half.image_size == 32
    assert not options.model_copy(update={"personalisation": "mine.safetensors"}).compact()._compact
    # from a single file
    path = original_checkpoint(tmp_path / "mv.pt")
    torch.save({name: t.bfloat16() for name, t in torch.load(path).items()}, path)
    with PeakMemory("cpu") as memory:
        loaded = components.load_file(path, clip_folder, half=torch.bfloat16)
    networks = loaded.unet, loaded.vae, loaded.text_encoder
    unet, *others = (sum(t.numel() for t in network.parameters()) for network in networks)
    # bytes: the file and the UNet in half, the other networks in float32
    assert memory.peak < 1.1 * (2 * unet + 2 * unet + (2 + 4) * sum(others))
    assert (loaded.unet.dtype, loaded.vae.dtype) == (torch.bfloat16, torch.float32)


def test_embedded_models_load_and_share_vae_and_text_encoder() -> None:
    weights = loading.folder("weights")
    if not (weights / "toybox-base").is_dir():
        pytest.skip("no toybox-base in this checkout")
    for name, kind in (("toybox-base", LatentDiffusion), ("toybox-prior", MVDream)):
        loading.check(name)
        embedded = kind.load(name, dtype="fp32")
        assert (embedded.unet.class_embedding is not None) == (kind is MVDream)
    for part in loading.SHARED_PARTS:
        assert loading.tensor_files(weights / "toybox-base" / part)[0].parent == weights / "toybox-prior" / part
    with refused(None, "vae"):
        loading.tensor_files(weights / "other" / "vae")
