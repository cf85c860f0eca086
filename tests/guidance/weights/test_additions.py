from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.errors import refused, refused_in_one_line
from tests.support.ldm_names import unet_prefixes
from tests.support.task_server import prior_folder
from tests.support.tiny_mvdiffusion import tiny_model
from tests.support.tiny_pipelines import lora, pipelines, prior_of, states
from tests.support.tiny_prior import cpu
from threedgen.config import registry
from threedgen.guidance.options import EmbeddingFile, LoraFile
from threedgen.guidance.priors.mvdiffusion.unet import MultiviewUNet
from threedgen.guidance.priors.mvdiffusion.weights import save_blocks
from threedgen.guidance.weights import additions, tokens


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return pipelines(tmp_path_factory.mktemp("sdxl"))


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        ("sd15", "kohya"),
        ("sdxl", "kohya"),
        ("sd21", "diffusers"),
        ("sdxl", "diffusers"),
        ("sd15", "kohya without alpha"),
        ("sd15", "kohya with convolutions"),
        ("sdxl", "kohya of the text"),
    ],
)
def test_fused_lora_equals_fusion_of_diffusers(pipes: Any, tmp_path: Path, kind: str, form: str) -> None:
    file, tensors = tmp_path / "lora.safetensors", lora(pipes[kind], form)
    save_file(tensors, file, {"ss_network_dim": "4"})
    prior, before = prior_of(pipes[kind]), states(pipes[kind].components)
    additions.add(prior, [LoraFile(file=str(file), scale=0.8)], [])
    theirs = deepcopy(pipes[kind])
    theirs.load_lora_weights(tensors)
    theirs.fuse_lora(lora_scale=0.8)
    theirs.unload_lora_weights()
    own, expected = states(prior.networks), states(theirs.components)
    assert own.keys() == expected.keys() == before.keys()
    assert max((own[name] - expected[name]).abs().max().item() for name in own) < 1e-7
    changed = [name for name in own if not torch.equal(own[name], before[name])]
    assert len(changed) == len([name for name in tensors if "lora_A" in name or "lora_down" in name])


def fused(pipe: Any, tensors: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """Return the weights of a prior after a LoRA with these tensors was added."""
    save_file(tensors, folder / "lora.safetensors")
    prior = prior_of(pipe)
    additions.add(prior, [LoraFile(file=str(folder / "lora.safetensors"))], [])
    return states(prior.networks)


Names = tuple[dict[str, Tensor], dict[str, Tensor]]
"""A LoRA with known names, and the same one with other names."""


def peft(pipe: Any, form: str, side: str = "lora_{}") -> Names:
    plain = {name: t for name, t in lora(pipe, "diffusers").items() if name.startswith("unet.")}
    stems = {name: name.removeprefix("unet.").partition(".lora_") for name in plain}
    return plain, {form.format(f"{stem[0]}.{side.format(stem[2][0])}.weight"): plain[n] for n, stem in stems.items()}


def one_trainer(pipe: Any, side: str) -> Names:
    """Diffusers' layers with kohya's down, up and alpha; and embeddings in the same file."""
    plain, words = lora(pipe, "diffusers"), {"A": "down", "B": "up"}
    renamed = {f"{name[:-13]}{side.format(words[name[-8]])}": t for name, t in plain.items()}
    renamed |= {f"{name[:-14]}.alpha": torch.tensor(2.0) for name in plain if "lora_A" in name}  # half of the rank
    renamed["bundle_emb.cat.string_to_param.*"] = torch.ones(1, 32)
    return {name: t / 2 if "lora_B" in name else t for name, t in plain.items()}, renamed


def without_unet(pipe: Any) -> Names:
    plain, renamed = one_trainer(pipe, "lora_{}.weight")
    return plain, {name.removeprefix("unet."): tensor for name, tensor in renamed.items()}


def two_styles(pipe: Any) -> Names:
    """Attention layers by the processors' names of older diffusers, other layers with dots."""
    plain, mixed = lora(pipe, "diffusers"), {}
    for name, tensor in plain.items():
        layer, _, side = name.partition(".lora_")
        word = {"A": "down", "B": "up"}[side[0]]
        block, _, last = layer.removesuffix(".0").rpartition(".")
        attention = name.startswith("unet") and last in ("to_q", "to_k", "to_v", "to_out")
        stem = f"{block}.processor.{last}_lora" if attention else f"{layer}.lora"
        mixed[f"{stem}.{word}.weight"] = tensor
    assert 0 < sum(".processor." in name for name in mixed) < len(mixed)
    return plain, mixed


def sdxl_blocks(pipe: Any) -> Names:
    """Most LoRAs of SDXL name the UNet's blocks as its single file does."""
    plain, renamed = lora(pipe, "kohya"), {}
    prefixes = {d.replace(".", "_"): s.replace(".", "_") for s, d in unet_prefixes(pipe.unet.config)}
    for name, tensor in plain.items():
        body = name.removeprefix("lora_unet_")
        start = max((block for block in prefixes if body.startswith(block)), key=len, default=None)
        known = start is not None and body != name
        renamed[f"lora_unet_{prefixes[start]}{body.removeprefix(start)}" if known and start else name] = tensor
    assert any("input_blocks_" in name for name in renamed)
    return plain, renamed


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("sd21", lambda pipe: peft(pipe, "{}", "lora_{}.default")),
        ("sd21", lambda pipe: peft(pipe, "base_model.model.{}")),
        ("sdxl", lambda pipe: one_trainer(pipe, "lora.{}.weight")),
        ("sd15", without_unet),
        ("sd21", two_styles),
        ("sdxl", sdxl_blocks),
    ],
)
def test_other_names_of_a_lora_give_the_same_weights(pipes: Any, tmp_path: Path, kind: str, names: Any) -> None:
    plain, renamed = names(pipes[kind])
    expected, found = (fused(pipes[kind], tensors, tmp_path) for tensors in (plain, renamed))
    assert max((found[name] - expected[name]).abs().max().item() for name in expected) < 1e-6
    assert any(not torch.equal(found[name], tensor) for name, tensor in states(prior_of(pipes[kind]).networks).items())


def test_every_layer_has_its_own_alpha(pipes: Any, tmp_path: Path) -> None:
    """scale alpha / rank B A, and 1 for alpha / rank without alpha: diffusers mixes up alphas that differ by layer."""
    tensors, scale = lora(pipes["sdxl"], "kohya of the unet"), 0.8
    for number, name in enumerate([name for name in tensors if name.endswith(".alpha")]):
        tensors[name] = torch.tensor([0.5 + number], dtype=torch.float16)
        if number % 3 == 0:
            del tensors[name]
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "lora.safetensors")
    prior = prior_of(pipes["sdxl"])
    additions.add(prior, [LoraFile(file=str(tmp_path / "lora.safetensors"), scale=scale)], [])
    before, checked = pipes["sdxl"].unet.state_dict(), 0
    for name, after in prior.unet.state_dict().items():
        stem = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        if f"{stem}.lora_up.weight" in tensors:
            up, down = (tensors[f"{stem}.lora_{side}.weight"].half().float() for side in ("up", "down"))
            share = tensors[f"{stem}.alpha"].item() / len(down) if f"{stem}.alpha" in tensors else 1
            change = (up.flatten(1) @ down.flatten(1)).reshape(after.shape)
            torch.testing.assert_close(after, before[name] + scale * share * change, atol=1e-6, rtol=0)
            checked += 1
    assert checked == sum(name.endswith("lora_up.weight") for name in tensors)


def test_peft_folder_has_its_alpha(pipes: Any, tmp_path: Path) -> None:
    tensors, layer, outputs = lora(pipes["sd21"], "peft"), "mid_block.attentions.0.proj_in.weight", []
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    for alpha in (4, 8):
        (tmp_path / "adapter_config.json").write_text(f'{{"r": 4, "lora_alpha": {alpha}}}')
        prior = prior_of(pipes["sd21"])
        additions.add(prior, [LoraFile(file=str(tmp_path))], [])
        outputs.append(prior.unet.get_parameter(layer) - pipes["sd21"].unet.get_parameter(layer))
    torch.testing.assert_close(outputs[1], 2 * outputs[0])


def test_lora_that_a_unet_saved_has_its_alpha(pipes: Any, tmp_path: Path) -> None:
    unet, prior = deepcopy(pipes["sd21"].unet), prior_of(pipes["sd21"])
    unet.add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules=["to_q"], init_lora_weights=False))
    unet.save_lora_adapter(tmp_path)
    additions.add(prior, [LoraFile(file=str(tmp_path))], [])
    unet.fuse_lora()
    unet.unload_lora()
    expected = unet.state_dict()
    assert max((tensor - expected[name]).abs().max() for name, tensor in prior.unet.state_dict().items()) < 1e-6


PROJECTION = "unet.mid_block.attentions.0.proj_in"


@pytest.mark.parametrize(
    ("kind", "tensors", "values"),
    [
        ("sd15", "sd21", ["Stable Diffusion 2.x"]),
        ("sd15", {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (4, 8)}, ["FLUX"]),
        ("sd15", {"unet.down_blocks.0.attn.to_q.lora_A.weight": (4, 8)}, []),
        ("sd15", {"lora_unet_mid_block_attn1_to_q.hada_w1_a": (4, 4)}, ["LoHa"]),
        ("sd15", {"unet.x.lora_A.weight": (4, 4), "unet.x.lora_magnitude_vector": (4,)}, ["DoRA"]),
        ("sd15", {"emb_params": (1, 32)}, ["no LoRA", "emb_params"]),
        ("sd15", {f"{PROJECTION}.lora_A.weight": (128,), f"{PROJECTION}.lora_B.weight": (128,)}, ["unet.mid_block"]),
    ],
)
def test_lora_of_another_model_is_refused(pipes, tmp_path, kind, tensors, values) -> None:
    prior = prior_of(pipes[kind])
    before = {name: tensor.clone() for name, tensor in states(prior.networks).items()}
    if isinstance(tensors, str):
        content = lora(pipes[tensors], "kohya")
    else:
        content = {name: torch.ones(shape) for name, shape in tensors.items()}
    save_file(content, tmp_path / "lora.safetensors", {"ss_base_model_version": "sd_v2"} if tensors == "sd21" else {})
    with refused_in_one_line("loras.0.file", tmp_path / "lora.safetensors", *values):
        additions.add(prior, [LoraFile(file=str(tmp_path / "lora.safetensors"))], [])
    after = states(prior.networks)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def embedding(path: Path, form: str, rows: Tensor) -> tuple[Path, str]:
    """Write a textual inversion; return its file and its word."""
    file = path.with_suffix(".pt" if form.endswith("pt") else ".safetensors")
    if form == "folder":  # of diffusers
        path.mkdir()
        save_file({"<thing>": rows}, path / "learned_embeds.safetensors")
        return path, "<thing>"
    if form.endswith("pt"):
        vectors = nn.ParameterDict({"*": nn.Parameter(rows)}) if form == "old pt" else {"*": rows}
        torch.save({"string_to_token": {"*": 265}, "string_to_param": vectors, "name": "x"}, file)
        return file, path.stem
    save_file({form: rows[0] if form == "<thing>" else rows}, file)
    return file, form if form == "<thing>" else path.stem


@torch.no_grad()
@pytest.mark.parametrize("form", ["<thing>", "folder", "emb_params", "clip_l", "pt", "old pt"])
def test_prompt_can_name_a_textual_inversion(pipes: Any, tmp_path: Path, form: str) -> None:
    pipe, prior = deepcopy(pipes["sd15"]), prior_of(pipes["sd15"])
    rows = torch.randn(1 if form == "<thing>" else 3, 32, generator=cpu())
    file, word = embedding(tmp_path / "mystyle", form, rows)
    before = prior.encode_prompt(["a red car"])
    additions.add(prior, [], [EmbeddingFile(file=str(file))])
    pipe.load_textual_inversion({word: rows}, token=word)
    expected = pipe.encode_prompt(f"a {word} car", "cpu", 1, False)[0]
    torch.testing.assert_close(prior.encode_prompt([f"a {word} car"]), expected)
    assert torch.equal(prior.encode_prompt([f"A {word.upper()} car"]), prior.encode_prompt([f"a {word} car"]))
    assert torch.equal(prior.encode_prompt(["a red car"]), before) and prior.identifiers == []
    with refused("embeddings.0.token", word):
        additions.add(prior, [], [EmbeddingFile(file=str(file))])


def embeddings(folder: Path, **counts: int) -> list[EmbeddingFile]:
    """Write textual inversions for Stable Diffusion 1.5, given their words and numbers of vectors."""
    for word, count in counts.items():
        save_file({"emb_params": torch.randn(count, 32, generator=cpu())}, folder / f"{word}.safetensors")
    return [EmbeddingFile(file=str(folder / f"{word}.safetensors")) for word in counts]


def test_textual_inversions_may_begin_with_each_other(pipes: Any, tmp_path: Path) -> None:
    """A prompt names the longer one; a word that could be a vector of another is refused."""
    for words in (["bad-hands", "bad-hands-5"], ["bad-hands-5", "bad-hands"]):
        prior = prior_of(pipes["sd15"])
        additions.add(prior, [], embeddings(tmp_path, **dict.fromkeys(words, 2)))
        found = tokens.with_all_vectors(prior.tokenizer, "ugly, bad-hands-5, BAD-HANDS")
        assert found == "ugly, bad-hands-5 bad-hands-5_1, BAD-HANDS bad-hands_1"
    for counts in ({"hero": 1, "hero_1": 1}, {"hero_1": 1, "hero": 1}, {"hero_2": 1, "hero": 3}):
        with refused("embeddings.1.token", list(counts)[1]):
            additions.add(prior_of(pipes["sd15"]), [], embeddings(tmp_path, **counts))
    prior = prior_of(pipes["sd15"])
    additions.add(prior, [], embeddings(tmp_path, hero=1, hero_2=1))
    assert tokens.with_all_vectors(prior.tokenizer, "a hero") == "a hero"


@torch.no_grad()
def test_textual_inversion_of_sdxl_has_vectors_for_both_encoders(pipes: Any, tmp_path: Path) -> None:
    file, widths = tmp_path / "ti.safetensors", {"clip_l": 24, "clip_g": 16}
    save_file({name: torch.randn(2, width, generator=cpu()) for name, width in widths.items()}, file)
    found = []
    for end in (81, 2):  # 2 is in the config of the released text encoder
        prior = prior_of(pipes["sdxl"])
        prior.second.network.text_model.eos_token_id = end
        plain = prior.encode_prompt(["thing"])
        additions.add(prior, [], [EmbeddingFile(file=str(file), token="thing")])
        found.append(prior.encode_prompt(["thing"]))
        pairs = zip(found[-1].split(24, -1), plain.split(24, -1), strict=True)
        assert not any(torch.equal(new, old) for new, old in pairs)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("kind", "tensors", "base"),
    [
        ("sd15", {"emb_params": (2, 1024)}, "Stable Diffusion 2.x"),
        ("sd15", {"clip_l": (2, 32), "clip_g": (2, 16)}, "SDXL"),
        ("sdxl", {"<cat-toy>": (2, 24)}, "clip_g"),
        ("sd15", {"layer.weight": (2, 2), "layer.bias": (2,)}, "no textual inversion"),
    ],
)
def test_textual_inversion_of_another_model_is_refused(pipes, tmp_path, kind, tensors, base) -> None:
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, tmp_path / "ti.safetensors")
    with refused("embeddings.0.file", tmp_path / "ti.safetensors", base):
        additions.add(prior_of(pipes[kind]), [], [EmbeddingFile(file=str(tmp_path / "ti.safetensors"), token="<ti>")])


def test_every_latent_prior_takes_loras(tmp_path: Path) -> None:
    """MVDiffusion's after its blocks, whose file may hold a whole UNet."""
    model, multiview = tiny_model(), prior_folder()
    model.save(tmp_path / "base")
    save_blocks(tmp_path / "blocks.safetensors", MultiviewUNet(model.unet), None)
    layer = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    stored = load_file(multiview / "unet" / "diffusion_pytorch_model.safetensors")[f"{layer}.weight"].float()
    a, b = torch.randn(2, stored.shape[1], generator=cpu()), torch.randn(len(stored), 2, generator=cpu())
    save_file({f"unet.{layer}.lora_A.weight": a, f"unet.{layer}.lora_B.weight": b}, tmp_path / "lora.safetensors")
    more = {"loras": [{"file": str(tmp_path / "lora.safetensors"), "scale": 0.5}], "dtype": "fp32"}
    base, plain = {"weights": str(tmp_path / "base")}, model.unet.get_submodule(layer).weight.half().float()
    for name, options, before in (
        ("mvadapter", base, plain),
        ("mvdiffusion", base | {"blocks": str(tmp_path / "blocks.safetensors")}, plain),
        ("mvdream", {"weights": str(multiview)}, stored),
    ):
        config = registry.config_model("prior", name)(**options, **more)
        config.check()
        found = registry.build("prior", config, "cpu").unet.get_submodule(layer).weight
        torch.testing.assert_close(found - before, 0.5 * b @ a, atol=1e-5, rtol=0)
