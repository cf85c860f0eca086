from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.support.errors import refused
from tests.support.ldm_names import unet_prefixes
from tests.support.task_server import prior_folder
from tests.support.tiny_mvdiffusion import tiny_model
from tests.support.tiny_pipelines import KINDS, lora, pipelines, prior_of, states
from tests.support.tiny_prior import cpu
from threedgen.config import registry
from threedgen.guidance.options import EmbeddingFile, LoraFile
from threedgen.guidance.priors.mvdiffusion.unet import MultiviewUNet
from threedgen.guidance.priors.mvdiffusion.weights import save_blocks
from threedgen.guidance.weights import additions


@pytest.fixture(scope="module")
def pipes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return pipelines(tmp_path_factory.mktemp("sdxl"))


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *((kind, form) for kind in KINDS for form in ("kohya", "diffusers")),
        ("sd15", "kohya without alpha"),
        ("sd15", "kohya with convolutions"),
        ("sd21", "kohya of the text"),
        ("sdxl", "kohya of the text"),
        ("sd15", "kohya of the unet"),
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


@pytest.mark.parametrize("name", ["{}", "base_model.model.unet.{}", "unet.base_model.model.{}", "base_model.model.{}"])
def test_names_of_peft(pipes: Any, tmp_path: Path, name: str) -> None:
    layer, rows = "mid_block.attentions.0.proj_in", lora(pipes["sd21"], "diffusers")
    a, b = (rows[f"unet.{layer}.lora_{side}.weight"] for side in "AB")
    side = "lora_{}.default" if name == "{}" else "lora_{}"
    file = tmp_path / "lora.safetensors"
    save_file({name.format(f"{layer}.{side.format(s)}.weight"): t for s, t in (("A", a), ("B", b))}, file)
    prior = prior_of(pipes["sd21"])
    additions.add(prior, [LoraFile(file=str(file))], [])
    change = (
        prior.unet.mid_block.attentions[0].proj_in.weight - pipes["sd21"].unet.mid_block.attentions[0].proj_in.weight
    )
    torch.testing.assert_close(change, b @ a, atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@pytest.mark.parametrize("side", ["lora_{}.weight", "lora.{}.weight"])
def test_names_with_dots_and_alphas(pipes: Any, tmp_path: Path, kind: str, side: str) -> None:
    """OneTrainer's names: diffusers' layers with kohya's down, up and alpha; and embeddings in the same file."""
    plain, words = lora(pipes[kind], "diffusers"), {"A": "down", "B": "up"}
    tensors = {f"{name[:-13]}{side.format(words[name[-8]])}": t for name, t in plain.items()}
    tensors |= {f"{name[:-14]}.alpha": torch.tensor(2.0) for name in plain if "lora_A" in name}
    save_file(tensors | {"bundle_emb.cat.string_to_param.*": torch.ones(1, 32)}, tmp_path / "lora.safetensors")
    prior, expected = prior_of(pipes[kind]), prior_of(pipes[kind])
    additions.add(prior, [LoraFile(file=str(tmp_path / "lora.safetensors"))], [])
    save_file(plain, tmp_path / "plain.safetensors")
    additions.add(expected, [LoraFile(file=str(tmp_path / "plain.safetensors"), scale=0.5)], [])
    own, theirs = states(prior.networks), states(expected.networks)
    assert max((own[name] - theirs[name]).abs().max().item() for name in own) < 1e-6


def test_names_of_two_styles_in_a_file(pipes: Any, tmp_path: Path) -> None:
    """Attention layers by the processors' names of older diffusers, other layers with dots."""
    plain, mixed = lora(pipes["sd21"], "diffusers"), {}
    for name, tensor in plain.items():
        layer, _, side = name.partition(".lora_")
        word = {"A": "down", "B": "up"}[side[0]]
        block, _, last = layer.removesuffix(".0").rpartition(".")
        if name.startswith("unet") and last in ("to_q", "to_k", "to_v", "to_out"):
            mixed[f"{block}.processor.{last}_lora.{word}.weight"] = tensor
        else:
            mixed[f"{layer}.lora.{word}.weight"] = tensor
    assert 0 < sum(".processor." in name for name in mixed) < len(mixed) == len(plain)
    own = []
    for name, tensors in (("plain", plain), ("mixed", mixed)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
        prior = prior_of(pipes["sd21"])
        additions.add(prior, [LoraFile(file=str(tmp_path / f"{name}.safetensors"))], [])
        own.append(states(prior.networks))
    assert max((own[0][name] - own[1][name]).abs().max().item() for name in own[0]) < 1e-6


def test_block_names_of_sdxl_checkpoints(pipes: Any, tmp_path: Path) -> None:
    """Most LoRAs of SDXL name the UNet's blocks as its single file does."""
    plain, renamed = lora(pipes["sdxl"], "kohya"), {}
    prefixes = {d.replace(".", "_"): s.replace(".", "_") for s, d in unet_prefixes(pipes["sdxl"].unet.config)}
    for name, tensor in plain.items():
        body = name.removeprefix("lora_unet_")
        start = max((block for block in prefixes if body.startswith(block)), key=len, default=None)
        known = start is not None and body != name
        renamed[f"lora_unet_{prefixes[start]}{body.removeprefix(start)}" if known and start else name] = tensor
    assert any("input_blocks_" in name for name in renamed) and len(renamed) == len(plain)
    own = []
    for tensors in (plain, renamed):
        save_file(tensors, tmp_path / "lora.safetensors")
        prior = prior_of(pipes["sdxl"])
        additions.add(prior, [LoraFile(file=str(tmp_path / "lora.safetensors"))], [])
        own.append(states(prior.networks))
    assert all(torch.equal(own[0][name], own[1][name]) for name in own[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_small_dtypes(pipes: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in lora(pipes["sd15"], "kohya").items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    save_file({name: tensor.float() for name, tensor in tensors.items()}, tmp_path / "fp32.safetensors")
    own = []
    for name in ("lora", "fp32"):
        prior = prior_of(pipes["sd15"])
        additions.add(prior, [LoraFile(file=str(tmp_path / f"{name}.safetensors"))], [])
        own.append(states(prior.networks))
    assert max((own[0][name] - own[1][name]).abs().max().item() for name in own[0]) < 2e-3


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_layer_has_its_own_alpha(pipes: Any, tmp_path: Path, kind: str) -> None:
    """scale alpha / rank B A, and 1 for alpha / rank without alpha: diffusers mixes up alphas that differ by layer."""
    tensors, scale = lora(pipes[kind], "kohya of the unet"), 0.8
    for number, name in enumerate([name for name in tensors if name.endswith(".alpha")]):
        tensors[name] = torch.tensor([0.5 + number], dtype=torch.float16)
        if number % 3 == 0:
            del tensors[name]
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "lora.safetensors")
    prior = prior_of(pipes[kind])
    additions.add(prior, [LoraFile(file=str(tmp_path / "lora.safetensors"), scale=scale)], [])
    before, checked = pipes[kind].unet.state_dict(), 0
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
    tensors, outputs = lora(pipes["sd21"], "peft"), []
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    for alpha in (4, 8):
        (tmp_path / "adapter_config.json").write_text(f'{{"r": 4, "lora_alpha": {alpha}}}')
        prior = prior_of(pipes["sd21"])
        additions.add(prior, [LoraFile(file=str(tmp_path))], [])
        outputs.append(
            prior.unet.mid_block.attentions[0].proj_in.weight
            - pipes["sd21"].unet.mid_block.attentions[0].proj_in.weight
        )
    torch.testing.assert_close(outputs[1], 2 * outputs[0])


@pytest.mark.parametrize(
    ("kind", "tensors", "metadata", "values"),
    [
        ("sd15", "sd21", {"ss_base_model_version": "sd_v2"}, ["Stable Diffusion 2.x"]),
        ("sd21", "sdxl", {}, ["SDXL"]),
        ("sd15", {"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (4, 8)}, {}, ["FLUX"]),
        ("sd15", {"unet.down_blocks.0.attn.to_q.lora_A.weight": (4, 8)}, {}, []),
        (
            "sd15",
            {"unet.x.attn2.to_k.lora_A.weight": (4, 2048), "unet.x.attn2.to_k.lora_B.weight": (4, 4)},
            {},
            ["SDXL"],
        ),
        ("sd15", {"lora_unet_mid_block_attn1_to_q.hada_w1_a": (4, 4)}, {}, ["LoHa"]),
        ("sd15", {"lora_unet_mid_block_attn1_to_q.diff": (4, 4)}, {}, ["LyCORIS full"]),
        ("sd15", {"lora_unet_mid_block_attn1_to_q.on_input": (1,)}, {}, ["IA3"]),
        ("sd15", {"unet.x.lora_A.weight": (4, 4), "unet.x.lora_magnitude_vector": (4,)}, {}, ["DoRA"]),
        ("sd15", {"emb_params": (1, 32)}, {}, ["no LoRA", "emb_params"]),
        ("sd15", {"model.diffusion_model.out.2.weight": (4, 4)}, {}, ["no LoRA"]),
    ],
)
def test_lora_of_another_model_is_refused(pipes, tmp_path, kind, tensors, metadata, values) -> None:
    prior = prior_of(pipes[kind])
    before = {name: tensor.clone() for name, tensor in states(prior.networks).items()}
    if isinstance(tensors, str):
        content = lora(pipes[tensors], "kohya")
    else:
        content = {name: torch.ones(shape) for name, shape in tensors.items()}
    save_file(content, tmp_path / "lora.safetensors", metadata)
    with refused("loras.0.file", tmp_path / "lora.safetensors", *values) as caught:
        additions.add(prior, [LoraFile(file=str(tmp_path / "lora.safetensors"))], [])
    assert "\n" not in str(caught.value)
    after = states(prior.networks)
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_flattened_lora_is_refused(pipes: Any, tmp_path: Path) -> None:
    tensors = {name: t.flatten() for name, t in lora(pipes["sd15"], "diffusers").items()}
    save_file(tensors, tmp_path / "lora.safetensors")
    with refused("loras.0.file", tmp_path / "lora.safetensors", "unet.down_blocks"):
        additions.add(prior_of(pipes["sd15"]), [LoraFile(file=str(tmp_path / "lora.safetensors"))], [])


def embedding(path: Path, form: str, rows: Tensor) -> tuple[Path, str]:
    """Write a textual inversion; return its file and its word."""
    if form == "diffusers":
        save_file({"<thing>": rows[0]}, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors"), "<thing>"
    if form == "safetensors":
        save_file({"emb_params": rows}, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors"), path.stem
    if form == "folder":  # of diffusers
        path.mkdir()
        save_file({"<thing>": rows}, path / "learned_embeds.safetensors")
        return path, "<thing>"
    if form == "clip_l":
        save_file({"clip_l": rows}, path.with_suffix(".safetensors"))
        return path.with_suffix(".safetensors"), path.stem
    vectors = nn.ParameterDict({"*": nn.Parameter(rows)}) if form == "old pt" else {"*": rows}
    torch.save({"string_to_token": {"*": 265}, "string_to_param": vectors, "name": "x"}, path.with_suffix(".pt"))
    return path.with_suffix(".pt"), path.stem


@torch.no_grad()
@pytest.mark.parametrize("form", ["diffusers", "folder", "safetensors", "clip_l", "pt", "old pt"])
def test_prompt_can_name_a_textual_inversion(pipes: Any, tmp_path: Path, form: str) -> None:
    pipe, prior = deepcopy(pipes["sd15"]), prior_of(pipes["sd15"])
    rows = torch.randn(1 if form == "diffusers" else 3, 32, generator=cpu())
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
        assert all(
            not torch.equal(new, old) for new, old in zip(found[-1].split(24, -1), plain.split(24, -1), strict=True)
        )
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("kind", "tensors", "base"),
    [
        ("sd15", {"emb_params": (2, 1024)}, "Stable Diffusion 2.x"),
        ("sdxl", {"emb_params": (2, 768)}, "Stable Diffusion 1.x"),
        ("sd15", {"clip_l": (2, 32), "clip_g": (2, 16)}, "SDXL"),
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
