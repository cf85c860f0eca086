"""The file of a personalised prior: its identifier, what it adds to which base, and what it must leave alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.script_poses import script_poses
from tests.support.tiny_prior import coarse_prior, cpu, letter_tokenizer, tiny_prior, tiny_text_encoder, tiny_unet
from threedgen.config import ConfigError, registry
from threedgen.guidance.options import MVDreamConfig
from threedgen.guidance.priors.mvdream import MVDream, camera_vector
from threedgen.guidance.weights import loading, subject_weights, tokens
from threedgen.guidance.weights.loading import subject_card
from threedgen.run.prompts import warn_about


def tuned_file(path: Path, base: MVDream, size: float = 0.01) -> dict[str, torch.Tensor]:
    """A personalisation of ``base`` by random numbers; returns what the UNet should be after it."""
    state = base.unet.state_dict()
    tuned = {
        name: value + size * torch.randn(value.shape, generator=cpu(k)) for k, (name, value) in enumerate(state.items())
    }
    card = {
        "kind": "difference",
        "identifier": "[v]",
        "prompt": "a [v] dog",
        "base": subject_weights.checksum(base.unet, base.text_encoder),
    }
    subject_weights.write(path, subject_weights.difference(tuned, state), torch.full((24,), 0.5), card)
    return tuned


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subject")
    tiny_prior().save(folder / "base")
    tuned_file(folder / "dog.safetensors", MVDream.load(str(folder / "base"), dtype="fp32"))
    return folder


@pytest.fixture
def saved(once: Path, tmp_path: Path) -> Path:
    """A folder with the prior "base" and the file "dog.safetensors", which a test may damage."""
    return Path(shutil.copytree(once, tmp_path / "saved"))


def test_the_difference_is_added_and_nothing_else_changes(saved: Path) -> None:
    base = MVDream.load(str(saved / "base"), dtype="fp32")
    wanted = tuned_file(saved / "dog.safetensors", base)
    found = MVDream.load(str(saved / "base"), dtype="fp32", personalisation=str(saved / "dog.safetensors"))
    for name, value in found.unet.state_dict().items():
        assert torch.allclose(value, wanted[name], rtol=0, atol=0.01 * 2**-8 * 5), name
    assert found.identifiers == ["[v]"] and base.identifiers == []
    one, other = (prior.vae.state_dict() for prior in (base, found))
    assert all(torch.equal(one[name], other[name]) for name in one)
    text = ["a red dog", ""]
    assert torch.equal(found.encode_prompt(text), base.encode_prompt(text))
    assert not torch.equal(found.encode_prompt(["a [v] dog"]), base.encode_prompt(["a [v] dog"]))
    assert found.unknown_words("a [v] dgo")[0][0] == "dgo" and not found.unknown_words("a [V] dog")


def test_less_of_it_is_that_share_of_the_difference(saved: Path) -> None:
    weights, file = str(saved / "base"), str(saved / "dog.safetensors")
    options = MVDreamConfig(weights=weights, personalisation=file, personalisation_strength=0.25, dtype="fp32")
    base, whole = MVDream.load(weights, dtype="fp32"), MVDream.load(weights, dtype="fp32", personalisation=file)
    some = registry.build("prior", options)
    for name, before in base.unet.named_parameters():
        there, after = some.unet.get_parameter(name), whole.unet.get_parameter(name)
        assert torch.allclose(there - before, 0.25 * (after - before), atol=1e-6), name
    assert torch.equal(some.encode_prompt(["a [v] dog"]), whole.encode_prompt(["a [v] dog"])), "the word is whole"
    with pytest.raises(ValueError, match="personalisation_strength=0.25 has no effect without personalisation=FILE"):
        MVDreamConfig(weights=weights, personalisation_strength=0.25)


def test_it_is_refused_on_another_base(saved: Path) -> None:
    other = tiny_prior()
    with torch.no_grad():
        other.unet.conv_in.bias += 1e-2
    other.save(saved / "other")
    with pytest.raises(ConfigError, match="was tuned from other weights.*set prior.weights") as caught:
        MVDream.load(str(saved / "other"), personalisation=str(saved / "dog.safetensors"))
    assert "\n" not in str(caught.value)


def test_what_is_no_personalisation_is_one_sentence_before_anything_is_loaded(saved: Path) -> None:
    plain, torn = saved / "plain.safetensors", saved / "torn.safetensors"
    save_file({"x": torch.zeros(2)}, plain)
    torn.write_bytes((saved / "dog.safetensors").read_bytes()[:100])
    for path, said in (
        (plain, "is not of the format"),
        (torn, "cannot be read"),
        (saved / "no", "there is no file"),
        ("\0", "cannot be read|there is no file"),
    ):
        with pytest.raises(ConfigError, match=said) as caught:
            MVDreamConfig(weights=str(saved / "base"), personalisation=str(path)).check()
        assert str(caught.value).startswith("personalisation:") and "\n" not in str(caught.value)
    MVDreamConfig(weights=str(saved / "base"), personalisation=str(saved / "dog.safetensors")).check()


def test_that_of_an_earlier_toybox_prior_is_named(tmp_path: Path) -> None:
    card = {"kind": "difference", "identifier": "[v]", "base": loading.FORMER_BASE}
    subject_weights.write(tmp_path / "dog.safetensors", {}, torch.zeros(24), card)
    with pytest.raises(ConfigError, match="toybox prior of an earlier release.*anew from its photos"):
        subject_card(tmp_path / "dog.safetensors")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        *((damage, "is damaged: its tensors") for damage in ("nan", "name", "shape", "no identifier", "half a term")),
        ("no word", "personalisation: should be one word"),
        ("a known word", "personalisation: 'dog' is a word"),
        ("another sum", "is damaged: its check sum"),
        ("no sum", "has no check sum"),
    ],
)
def test_damaged_tensors_are_refused(saved: Path, damage: str, said: str) -> None:
    path = saved / "dog.safetensors"
    card, tensors = subject_card(path), load_file(path)
    if damage == "nan":
        tensors["unet.conv_in.bias"] = tensors["unet.conv_in.bias"] * float("nan")
    elif damage == "name":
        tensors["unet.conv_in.bain"] = tensors["unet.conv_in.bias"].clone()
    elif damage == "shape":
        tensors["unet.conv_in.bias"] = tensors["unet.conv_in.bias"][:3].clone()
    elif damage == "half a term":
        tensors["unet.conv_in.weight.lora_B"] = tensors["unet.conv_in.weight"].clone()
    elif damage == "no identifier":
        del tensors["identifier"]
    card |= {"no word": {"identifier": ""}, "a known word": {"identifier": "dog"}}.get(damage, {})
    told = {key: value for key, value in card.items() if key not in ("format", "sum")}
    card["sum"] = "0" * 64 if damage == "another sum" else subject_weights.content_sum(tensors, told)
    if damage == "no sum":
        del card["sum"]
    save_file(tensors, path, card)
    with pytest.raises(ConfigError, match=said):
        MVDream.load(str(saved / "base"), personalisation=str(path))


def test_low_rank_terms_are_added(saved: Path) -> None:
    base = MVDream.load(str(saved / "base"), dtype="fp32")
    name = next(n for n, _ in base.unet.named_parameters() if n.endswith("attn1.to_q.weight"))
    weight = base.unet.get_parameter(name).clone()
    a, b = torch.randn(2, weight.shape[1], generator=cpu(1)), torch.randn(weight.shape[0], 2, generator=cpu(2))
    inner = name.removesuffix(".weight")
    terms = subject_weights.low_rank([inner], [a], [b])
    card = {
        "kind": "lora",
        "identifier": "[v]",
        "scale": "0.5",
        "base": subject_weights.checksum(base.unet, base.text_encoder),
    }
    subject_weights.write(saved / "lora.safetensors", terms, torch.zeros(24), card)
    found = MVDream.load(str(saved / "base"), dtype="fp32", personalisation=str(saved / "lora.safetensors"))
    assert torch.allclose(found.unet.get_parameter(name), weight + 0.5 * b @ a, atol=1e-6)
    others = {n: p for n, p in base.unet.named_parameters() if n != name}
    assert all(torch.equal(p, found.unet.get_parameter(n)) for n, p in others.items())


def test_the_coarse_predictor_reads_the_prompt_without_the_identifier() -> None:
    prior = coarse_prior()
    x, t = torch.randn(4, 4, 8, 8, generator=cpu()), torch.full((4,), 500)
    seen: list[torch.Tensor] = []
    prior.unet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][:, 4:]))

    def predicted(prompt: str) -> torch.Tensor:
        with torch.no_grad():
            text = prior.encode_prompt([prompt]).repeat(4, 1, 1)
            answer = prior.denoise(x, t, text, camera_vector(script_poses(4)), 4)
        assert answer.shape == x.shape and text.shape[1:] == prior.text_shape
        return seen[-1]

    before, other = predicted("a red dog"), predicted("a blue cat")
    subject_weights.add_word(prior.tokenizer, prior.text_encoder, "[v]", like="dog")
    assert torch.equal(predicted("a [v] red dog"), before) and torch.equal(predicted("a red dog"), before)
    assert not torch.equal(before, other)
    both = prior.encode_prompt(["a [v] dog"])
    assert both.shape[1] == 2 * prior.max_tokens
    assert not torch.equal(*both.chunk(2, 1)), "the UNet reads the identifier"
    assert prior.guess(both.repeat(4, 1, 1), script_poses(4)) is None, "it would be any of its class"


def test_a_pipeline_and_a_saved_folder_know_the_identifier(saved: Path) -> None:
    found = MVDream.load(str(saved / "base"), dtype="fp32", personalisation=str(saved / "dog.safetensors"))
    assert found.pipeline().prior.identifiers == ["[v]"]
    found.save(saved / "merged")
    merged = MVDream.load(str(saved / "merged"), dtype="fp32")
    assert merged.identifiers == ["[v]"]
    assert torch.allclose(merged.encode_prompt(["a [v] dog"]), found.encode_prompt(["a [v] dog"]), atol=1e-2)


@pytest.mark.parametrize("tokenizer", ["words", "letters"])
def test_a_new_word_in_both_kinds_of_tokenizer(tokenizer: str) -> None:
    prior = tiny_prior()
    words = prior.tokenizer if tokenizer == "words" else letter_tokenizer()
    encoder = tiny_text_encoder(100)
    old = encoder.get_input_embeddings().weight.detach().clone()
    number = subject_weights.add_word(words, encoder, "[v]", like="dog")
    ids = words("dog", add_special_tokens=False).input_ids
    table = encoder.get_input_embeddings().weight
    assert torch.allclose(table[number], old[ids].mean(0)) and torch.equal(table[:number], old[:number])
    assert not table.requires_grad and tokens.added_words(words) == ["[v]"]
    assert words("a [v] dog", add_special_tokens=False).input_ids.count(number) == 1


def test_an_identifier_that_is_a_word_is_refused() -> None:
    for tokenizer, known in ((tiny_prior().tokenizer, "Dog"), (letter_tokenizer(), "a")):
        with pytest.raises(ConfigError, match="identifier: .*knows already"):
            subject_weights.check_identifier(tokenizer, known)
        for fresh in ("[v]", "sks"):
            subject_weights.check_identifier(tokenizer, fresh)


def test_the_checksum_is_of_weights_and_not_of_files(tmp_path: Path) -> None:
    prior = tiny_prior()
    prior.save(tmp_path / "one")
    one = MVDream.load(str(tmp_path / "one"), dtype="fp32")
    one.save(tmp_path / "two")
    two = MVDream.load(str(tmp_path / "two"), dtype="bf16")
    sums = {subject_weights.checksum(p.unet, p.text_encoder) for p in (one, two)}
    other = subject_weights.checksum(tiny_unet(layers_per_block=2), one.text_encoder)
    assert len(sums) == 1 and other not in sums


def test_a_prompt_without_the_identifier_is_told(saved: Path) -> None:
    found = MVDream.load(str(saved / "base"), dtype="fp32", personalisation=str(saved / "dog.safetensors"))
    (note,) = warn_about("a red dog", found)
    assert "[v]" in note and warn_about("a [v] dog with a hat", found) == []
