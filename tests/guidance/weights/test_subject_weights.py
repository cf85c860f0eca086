import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.errors import refused, refused_in_one_line
from tests.support.script_poses import script_poses
from tests.support.tiny_prior import coarse_prior, cpu, letter_tokenizer, tiny_prior, tiny_text_encoder
from threedgen.config import registry
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.priors.options import MVDreamConfig
from threedgen.guidance.priors.pipeline import MVDreamPipeline
from threedgen.guidance.weights import subject_weights
from threedgen.guidance.weights.addition_files import subject_card


def identity(base: MVDream) -> dict[str, str]:
    return {"identifier": "[v]", "base": subject_weights.checksum(base.unet, base.text_encoder)}


def load(folder: Path, file: str | None = "dog.safetensors", base: str = "base") -> MVDream:
    prior = MVDream.load(str(folder / base), dtype="fp32")
    if file is not None:
        subject_weights.apply(prior, folder / file)
    return prior


def tuned_file(path: Path, base: MVDream, size: float = 0.01) -> dict[str, torch.Tensor]:
    """Write a personalisation of ``base`` by random numbers and return the expected UNet tensors."""
    state = base.unet.state_dict()
    tuned = {
        name: value + size * torch.randn(value.shape, generator=cpu(k)) for k, (name, value) in enumerate(state.items())
    }
    card = {"kind": "difference", "prompt": "a [v] dog"} | identity(base)
    subject_weights.write(path, subject_weights.difference(tuned, state), torch.full((24,), 0.5), card)
    return tuned


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    tiny_prior().save(folder / "base")
    tuned_file(folder / "dog.safetensors", load(folder, None))
    return folder


@pytest.fixture
def saved(once: Path, tmp_path: Path) -> Path:
    """A copy with the prior "base" and the file "dog.safetensors" that a test may damage."""
    return Path(shutil.copytree(once, tmp_path / "saved"))


def test_personalisation_adds_difference_to_unet_only(saved: Path) -> None:
    base = load(saved, None)
    wanted = tuned_file(saved / "dog.safetensors", base)
    found = load(saved)
    for name, value in found.unet.state_dict().items():
        assert torch.allclose(value, wanted[name], rtol=0, atol=0.01 * 2**-8 * 5), name
    assert found.identifiers == ["[v]"] and base.identifiers == []
    one, other = (prior.vae.state_dict() for prior in (base, found))
    assert all(torch.equal(one[name], other[name]) for name in one)
    text = ["a red dog", ""]
    assert torch.equal(found.encode_prompt(text), base.encode_prompt(text))
    assert not torch.equal(found.encode_prompt(["a [v] dog"]), base.encode_prompt(["a [v] dog"]))
    assert found.unknown_words("a [v] dgo")[0][0] == "dgo" and not found.unknown_words("a [V] dog")
    # a pipeline and a saved folder keep the identifier
    assert MVDreamPipeline.from_prior(found).prior.identifiers == ["[v]"]
    found.save(saved / "merged")
    merged = MVDream.load(str(saved / "merged"), dtype="fp32")
    assert merged.identifiers == ["[v]"]
    assert torch.allclose(merged.encode_prompt(["a [v] dog"]), found.encode_prompt(["a [v] dog"]), atol=1e-2)


def test_personalisation_strength_scales_difference_not_identifier(saved: Path) -> None:
    weights, file = str(saved / "base"), str(saved / "dog.safetensors")
    options = MVDreamConfig(weights=weights, personalisation=file, personalisation_strength=0.25, dtype="fp32")
    base, whole = load(saved, None), load(saved)
    scaled = registry.build("prior", options)
    for name, before in base.unet.named_parameters():
        there, after = scaled.unet.get_parameter(name), whole.unet.get_parameter(name)
        assert torch.allclose(there - before, 0.25 * (after - before), atol=1e-6), name
    assert torch.equal(scaled.encode_prompt(["a [v] dog"]), whole.encode_prompt(["a [v] dog"]))


def test_personalisation_combines_with_a_lora_and_a_textual_inversion(saved: Path) -> None:
    name = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q.weight"
    base, whole = load(saved, None), load(saved)
    out, into = base.unet.get_parameter(name).shape
    a, b = torch.randn(2, into, generator=cpu(1)), torch.randn(out, 2, generator=cpu(2))
    stem = f"unet.{name.removesuffix('.weight')}"
    save_file({f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}, saved / "style.safetensors")
    save_file({"<style>": torch.ones(24)}, saved / "word.safetensors")
    additions = {"loras": [str(saved / "style.safetensors")], "embeddings": [str(saved / "word.safetensors")]}
    options = MVDreamConfig(weights=str(saved / "base"), dtype="fp32", **additions)
    subject = options.model_copy(update={"personalisation": str(saved / "dog.safetensors")})
    found = registry.build("prior", subject)
    torch.testing.assert_close(found.unet.get_parameter(name), whole.unet.get_parameter(name) + b @ a)
    assert found.identifiers == ["[v]"] and found.embedded_words == ("<style>",)
    tuned_file(saved / "dog.safetensors", registry.build("prior", options))  # trained with the additions
    again = registry.build("prior", subject)
    torch.testing.assert_close(again.unet.get_parameter(name), found.unet.get_parameter(name), atol=1e-2, rtol=0)


def test_files_of_another_base_and_of_none_are_refused(saved: Path) -> None:
    other = tiny_prior()
    with torch.no_grad():
        other.unet.conv_in.bias += 1e-2
    other.save(saved / "other")
    with refused_in_one_line("personalisation", saved / "dog.safetensors", "prior.weights"):
        load(saved, base="other")
    save_file({"x": torch.zeros(2)}, saved / "plain.safetensors")
    (saved / "torn.safetensors").write_bytes((saved / "dog.safetensors").read_bytes()[:100])
    for name in ("plain.safetensors", "torn.safetensors", "no", "\0"):
        with refused_in_one_line("personalisation", name.replace("\0", "")):
            MVDreamConfig(weights=str(saved / "base"), personalisation=str(saved / name)).check()
    MVDreamConfig(weights=str(saved / "base"), personalisation=str(saved / "dog.safetensors")).check()


BIAS, WEIGHT = "unet.conv_in.bias", "unet.conv_in.weight"


@pytest.mark.parametrize(
    ("change", "value"),
    [
        (lambda tensors, card: tensors[BIAS].fill_(torch.nan), "dog.safetensors"),
        (lambda tensors, card: tensors.update({BIAS: tensors[BIAS][:3].clone()}), "dog.safetensors"),
        (lambda tensors, card: tensors.update({f"{WEIGHT}.lora_B": tensors[WEIGHT].clone()}), "dog.safetensors"),
        (lambda tensors, card: tensors.pop("identifier"), "dog.safetensors"),
        (lambda tensors, card: card.update(identifier="dog"), "'dog'"),  # a known word
        (lambda tensors, card: card.update(sum="0" * 64), "dog.safetensors"),
    ],
)
def test_load_refuses_damaged_personalisation(saved: Path, change: Any, value: str) -> None:
    path = saved / "dog.safetensors"
    tensors, card = load_file(path), subject_card(path)
    card.pop("sum", None)
    change(tensors, card)
    content = {key: value for key, value in card.items() if key not in ("format", "sum")}
    card = {"sum": subject_weights.content_sum(tensors, content)} | card
    save_file(tensors, path, card)
    with refused("personalisation", value):
        load(saved)


def test_coarse_predictor_takes_prompt_without_identifier() -> None:
    prior = coarse_prior()
    x, t = torch.randn(4, 4, 8, 8, generator=cpu()), torch.full((4,), 500)
    coarse: list[torch.Tensor] = []
    prior.unet.register_forward_pre_hook(lambda module, inputs: coarse.append(inputs[0][:, 4:]))

    def predicted(prompt: str) -> torch.Tensor:
        with torch.no_grad():
            text = prior.encode_prompt([prompt]).repeat(4, 1, 1)
            eps = prior.denoise(x, t, text, camera_vector(script_poses(4)), 4)
        assert eps.shape == x.shape and text.shape[1:] == prior.text_shape
        return coarse[-1]

    before, other = predicted("a red dog"), predicted("a blue cat")
    subject_weights.add_word(prior.tokenizer, prior.text_encoder, "[v]", like="dog")
    assert torch.equal(predicted("a [v] red dog"), before) and torch.equal(predicted("a red dog"), before)
    assert not torch.equal(before, other)
    both = prior.encode_prompt(["a [v] dog"])
    assert both.shape[1:] == prior.text_shape
    words, coarse_words, _ = prior.split_text(both)
    assert words.shape == coarse_words.shape and not torch.equal(words, coarse_words), "the UNet gets the identifier"
    assert prior.coarse_latents(both.repeat(4, 1, 1), script_poses(4)) is None
    assert torch.equal(prior.sample_code(both, cpu()), both), "a code of another object"


@torch.no_grad()
def test_prompts_with_the_word_start_from_the_code_of_the_subject(tmp_path: Path) -> None:
    coarse_prior().save(tmp_path / "base")
    base, prompts = load(tmp_path, None), ["a [v] red dog", "a red dog", "a [v] dog"]
    card, word = {"kind": "difference", "prompt": "a [v] dog"} | identity(base), torch.full((24,), 0.5)
    caption = base.encode_prompt(["a dog"])[0]
    caption[-1] = 3.0
    for k, stored in enumerate((caption, -caption, caption[1:])):
        subject_weights.write(tmp_path / f"{k}.safetensors", {}, word, card, stored)
    one, other = (load(tmp_path, f"{k}.safetensors") for k in (0, 1))
    one.save(tmp_path / "merged")
    one, other, merged, plain = (
        prior.sample_code(prior.encode_prompt(prompts), [cpu(1), cpu(2), cpu(3)])[:, -1]
        for prior in (one, other, load(tmp_path, None, "merged"), base)
    )
    assert torch.equal(one[1], plain[1]) and one[0].mean() > 1 and other[0].mean() < -1
    assert torch.equal(one[2], caption[-1]), "the caption of the photos has the code of the photos"
    torch.testing.assert_close(merged, one, atol=1e-2, rtol=0)
    pipeline = MVDreamPipeline.from_pretrained(str(tmp_path / "merged"), dtype=torch.bfloat16)
    subject = pipeline.prior.encode_prompt(prompts)
    assert pipeline.prior.sample_code(subject, cpu(1))[0, -1].mean() > 1
    near = subject[:1].clone()
    near[:, -1] = -3  # an edited object of the subject
    assert pipeline.prior.sample_code(subject[:1], cpu(1), near)[0, -1].mean() < -1
    subject_weights.add_word(pipeline.prior.tokenizer, pipeline.prior.text_encoder, "[w]")
    assert not pipeline.prior.uses_coarse_predictor, "whose code is it?"
    with refused("personalisation", "2.safetensors"):
        load(tmp_path, "2.safetensors")
    tiny_prior().save(tmp_path / "plain")
    card |= identity(load(tmp_path, None, "plain"))
    subject_weights.write(tmp_path / "3.safetensors", {}, word, card, caption)
    with refused("personalisation", "3.safetensors"):
        load(tmp_path, "3.safetensors", "plain")


def test_added_word_starts_as_the_mean_of_similar_words() -> None:
    words, encoder = letter_tokenizer(), tiny_text_encoder(100)
    old = encoder.get_input_embeddings().weight.detach().clone()
    number = subject_weights.add_word(words, encoder, "[v]", like="dog")
    ids = words("dog", add_special_tokens=False).input_ids
    table = encoder.get_input_embeddings().weight
    assert torch.allclose(table[number], old[ids].mean(0)) and torch.equal(table[:number], old[:number])
