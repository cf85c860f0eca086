from pathlib import Path

import pytest

from tests.support.errors import refused
from tests.support.tiny_prior import letter_tokenizer, word_tokenizer
from threedgen import cli
from threedgen.config import load
from threedgen.guidance.weights.tokens import Vocabulary, closed_vocabulary
from threedgen.run.prompts import Reading
from threedgen.toybox.prompts import DETAILS, TOYBOX_WORDS, ToyboxPrompts, read_prompt
from threedgen.toybox.synonyms import FAMILIES, LOOKALIKES, SYNONYM_OF, SYNONYMS, also_called, similar
from threedgen.toybox.world.grammar import NOUNS, find_nouns, noun
from threedgen.toybox.world.open_toybox import OpenToybox

KNOWN = frozenset("a blue bus car cat chair dog grey hat house of red small tree truck turtle".split())


@pytest.fixture(scope="module")
def embedded() -> Vocabulary:
    found = load("mvdream-toybox").vocabulary()
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("prompt", "values"),
    [
        ("a blue corgi", ["'corgi' by dog", "animals (dog, cat, bear,"]),
        ("a ferry, a pickup", ["'ferry' by boat", "'pickup' by truck", "vehicles (car, truck,"]),
        ("justice", ["animals (dog, cat ...), buildings (house, castle ...), vehicles"]),
        ("a photo of a cup", ["'cup' by mug", "household (mug, teapot,"]),
        ("red apples", ["'apples' by apple"]),
        ("a blue hat", ["'a dog with a blue hat'"]),
        ("a dog's blue hat", ["'a dog with a blue hat'"]),
        ("a cup of ice tea", ["'cup' by mug"]),
        ("puss in boots", ["'a person with boots'"]),
        ("no dog", ["animals (dog, cat ...), buildings (house, castle ...), vehicles"]),
    ],
)
def test_check_refuses_prompts_without_known_noun(prompt: str, values: list[str], embedded: Vocabulary) -> None:
    with refused("prompt", *values, "docs/toybox-words.md", "prompt_check=off", repr(prompt)):
        ToyboxPrompts(embedded).check(prompt)


@pytest.mark.parametrize(
    "prompt",
    ["a dog", "Ice Cream!", "an ice-cream", "two ice creams", "a fluffy unicorn beside a tree", "a puppy", "two dogs"],
)
def test_check_accepts_one_known_noun(prompt: str, embedded: Vocabulary) -> None:
    ToyboxPrompts(embedded).check(prompt)


def test_check_ignores_other_vocabularies(embedded: Vocabulary) -> None:
    ToyboxPrompts(None).check("justice")
    ToyboxPrompts(closed_vocabulary(word_tokenizer(["justice", "red"]).backend_tokenizer)).check("justice")
    added = ToyboxPrompts(Vocabulary(embedded.backend, ["[v]", "sks"]))
    for prompt in ("a [V] thing", "an sks thing", "a Sks."):
        added.check(prompt)
    with refused("prompt"):
        added.check("a skshop")
    assert closed_vocabulary(letter_tokenizer().backend_tokenizer) is None and closed_vocabulary(None) is None
    assert ToyboxPrompts(None).notes("a dog and a cat") == []


@pytest.mark.parametrize(
    ("prompt", "names"),
    [
        ("a white dog with a red chair", ["dog and chair"]),
        ("a white dog on a red chair", []),
        ("a dog wearing a hat and a red scarf", ["hat and scarf"]),
        ("a dog with blue ears wearing a hat, and a cat", ["dog and cat", "ears and hat"]),
        ("a palm tree", []),
        ("a table lamp with a blue shade and a red base", ["shade and base"]),
        ("an apple tree", ["apple and tree"]),
        ("a blue dog wearing a red hat", []),
        ("a robot with red eyes", ["robot with eyes"]),
        ("a red mushroom with white spots", ["dots, stem"]),
        ("a house with a red door and a blue roof wearing a hat", ["door and roof and hat", "house with door or hat"]),
        ("a red room with a window, a door and a blue sofa", []),
        ("a unicorn", []),
        ("two red dogs", ["more than one dog"]),
        ("a red dog and a yellow dog", ["more than one dog"]),
        ("a puppy and some balloons", ["dog and balloon", "more than one balloon"]),
        ("a dog. The dog is red", []),
        ("a blue tea-pot", []),
        ("a light house, an icecream", ["lighthouse and ice cream"]),
        ("red light houses", ["more than one lighthouse"]),
    ],
)
def test_notes_warn_of_several_objects_or_details(prompt: str, names: list[str], embedded: Vocabulary) -> None:
    found = ToyboxPrompts(embedded).notes(prompt)
    assert len(found) == len(names) and all(name in note for name, note in zip(names, found, strict=True))


@pytest.mark.parametrize(
    ("prompt", "made", "missing"),
    [
        ("a monkey eating a banana", "banana", "monkey"),
        ("a mouse as big as an elephant", "elephant", "mouse"),
        ("a princess in a dress in front of a castle", "castle", "princess"),
        ("an ice cream van", "ice cream", "van"),
        ("a lady bird", "person", "bird"),
        ("a school bus", "", ""),
        ("a pencil drawing of a dog", "", ""),
        ("a pirate captain on a ship", "", ""),
        ("a dog statue", "", ""),
        ("a robot stands on a table", "", ""),
        ("in the kitchen, a dog", "", ""),
    ],
)
def test_notes_tell_that_a_lesser_object_is_made(prompt: str, made: str, missing: str, embedded: Vocabulary) -> None:
    found = ToyboxPrompts(embedded).notes(prompt)
    assert len(found) == bool(made) and all(made in note and repr(missing) in note for note in found)


def test_nouns_of_two_words_are_one_object_and_longer_ones_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NOUNS, "coffee table", NOUNS["table"])
    assert find_nouns("a red coffee table") == ["coffee table"]
    assert find_nouns("a table, a Coffee-Table and a table") == ["table", "coffee table"]
    for word in ("chest of drawers", "Sofa", "t-shirt"):
        with refused(None, word, kind=ValueError):
            noun(word, "furniture", 1.0)


def test_scenes_need_one_known_noun(embedded: Vocabulary) -> None:
    for prompt in ("a blue room", "a red window", "a sofa by the sea"):
        ToyboxPrompts(embedded).check(prompt, of_object=False)
        load("mvdiffusion-pano-toybox", [f"prompt={prompt}"]).check()
    for prompt in ("a blue kitchen", "ein Haus am See"):
        with refused("prompt", "prompt_check=off"):
            load("mvdiffusion-pano-toybox", [f"prompt={prompt}"]).check()
    with refused("prompt"):
        load("mvdiffusion-depth-toybox", ["prompt=a blue kitchen"]).check()
    load("mvdiffusion-pano-toybox", ["prompt=a kitchen", "prompt_check=off"]).check()


@pytest.mark.parametrize("name", ["mvdream-toybox", "sds-toybox", "sample-toybox"])
def test_refused_prompt_starts_no_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--config", name, "prompt=a corgi", f"out={tmp_path / 'run'}"]) == 2
    assert "'corgi' by dog" in capsys.readouterr().err and not list(tmp_path.iterdir())
    load(name, ["prompt=a corgi", "prompt_check=off"]).check()


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a puppy", "a dog"),
        ("A photo of a cute puppy, wearing sunglasses", "a dog wearing glasses"),
        ("3D asset of a robot", "a robot"),
        ("a toy of a cute robot", "a toy of a robot"),
        ("an old wooden chair", "a chair"),
        ("a very old orange tree", "an orange tree"),
        ("a big elephant", "a large elephant"),
        ("a fire truck", "a truck"),
        ("a bear with a big sword", "a bear"),
        ("a pirate holding a sword and a flag", "a pirate with a flag"),
        ("a castle made of ice", "a castle"),
        ("an ice cream on a stick", "an ice cream"),
        ("a cat sitting on a blue sofa", "a cat"),
        ("a dog sporting a red hat", "a dog with a red hat"),
        ("please draw a dog", "a dog"),
        ("a knight in shining armour with a blue plume", "a knight with a blue plume"),
        ("a dog that is small and cute", "a dog that is small"),
        ("a dog that is cute and small", "a dog that is small"),
        ("a red and white ball!", "a red and white ball"),
        ("an image of a house on a hill", "a house"),
        ("a photo of [v] dog with a hat", "[v] dog with a hat"),
        ("a dog in a skshop", "a dog"),
        ("Ein Hund", ""),
        ("a cute dog, red", "a dog, red"),
        ("a cute lighthouse with red and white stripes", "a lighthouse with red and white stripes"),
        ("a man in black", "a person in black"),
        ("cute duck wearing a pink scarf and with an orange beak", "duck wearing a pink scarf and with an orange beak"),
        ("a dog not wearing a hat", "a dog"),
        ("a dog that doesn't wear a red hat", "a dog"),
        ("a non-red dog", "a dog"),
        ("a dog with no hat. It is blue", "a dog, blue"),
        ("a car that is not red but blue", "a car that is blue"),
        ("a car without wheels and windows", "a car"),
        ("a penguin that can't fly wearing a red scarf", "a penguin wearing a red scarf"),
        ("a dog that never wears a red hat", "a dog"),
        ("a dog that doesn't like wearing a hat", "a dog"),
        ("can't you make a red car?", "a red car"),
        ("a blue parrot and a red dog", "a red dog"),
        ("a red book on a green table", "a green table"),
        ("a crown on a cat", "a cat with a crown"),
        ("a blue-eyed dog", "a dog"),
        ("a soft, fluffy, white rabbit", "a white rabbit"),
        ("a princess in a pink dress in front of a castle", "a castle"),
        ("a blue room with white curtains and a yellow lamp", "a blue room with a yellow lamp"),
        ("a blue room with a red sofa next to a white table", "a blue room with a red sofa, a white table"),
        ("a teapot in the shape of an elephant", "a teapot"),
        ("a knight on his white horse with a red saddle", "a knight"),
        ("a dog on a skateboard wearing a red helmet", "a dog wearing a red helmet"),
        ("a dog wearing a pair of red glasses", "a dog wearing red glasses"),
        ("a tree full of red apples", "a tree with red apples"),
        ("a car with a red wheel", "a car with red wheels"),
        ("a cake with cherries", "a cake with cherry"),
        ("a car as red as an apple", "a car, red"),
        ("a dog with ears that are red", "a dog with red ears"),
        ("a high quality red_car (shiny)", "a red car"),
        ("a child's toy car", "a toy car"),
        ("a penguin beside a snowman with a red hat", "a penguin"),
        ("a bear on a sofa with a red hat", "a bear with a red hat"),
        ("a cat with two red tails", "a cat with red tail"),
        ("a red room with two windows", "a red room with two windows"),
        ("a car shaped like a banana", "a car"),
        ("a man wearing a beanie", "a person wearing a hat"),
        ("a gold crown on a lime bear", "a bear with a yellow crown"),
        ("a car shaped cake", "a cake"),
        ("a light house", "a lighthouse"),
        ("a foot ball", "a ball"),
        ("a dog with a back pack", "a dog with a backpack"),
        ("a red icecream cone, Ice-Creams", "a red ice cream cone, ice cream"),
    ],
)
def test_read_prompt_uses_known_words_only(prompt: str, text: str, embedded: Vocabulary) -> None:
    assert read_prompt(prompt, embedded.known, ["[v]", "sks"]).text == text


def test_read_prompt_names_what_changed(embedded: Vocabulary) -> None:
    reading = read_prompt("a cute bunny with a cloak without a hat", embedded.known)
    assert reading == Reading("a rabbit with a cape", {"bunny": "rabbit", "cloak": "cape"}, ["cute"], ["hat"])
    reading = read_prompt("a golden statue of a cat on a red sofa with no tusks", embedded.known)
    assert reading == Reading("a cat", {}, ["golden", "statue", "on", "red", "sofa", "tusks"])
    assert [word for word, _ in embedded.unknown("a golden statue on a red sofa")] == ["statue", "on"]


def test_read_prompt_keeps_training_captions(embedded: Vocabulary) -> None:
    world = OpenToybox(3)
    captions = [world.asset(index).caption for index in range(60)]
    assert [read_prompt(caption, embedded.known) for caption in captions] == [Reading(caption) for caption in captions]


@pytest.mark.parametrize("end", [" on a blue sofa", ", low poly", " with a red sword that is tall", ". No belt!"])
def test_read_prompt_leaves_out_what_follows_a_caption(end: str, embedded: Vocabulary) -> None:
    captions = [OpenToybox(4).asset(index).caption.removeprefix("of ") for index in range(60)]
    captions = [caption for caption in captions if "," not in caption]
    assert [read_prompt(caption + end, embedded.known).text for caption in captions] == captions


@pytest.mark.parametrize(
    ("prompt", "height"),
    [
        ("a blue dog wearing a red hat", ("a dog", 0.5)),
        ("an Astronaut on a horse", ("an astronaut", 1.9)),
        ("a photo of two spaceships without a car", ("a rocket", 30.0)),
        ("a nebula", None),
        ("an apple tree", ("a tree", 8)),
        ("a small table lamp", ("a lamp", 0.5)),
        ("an elephant-shaped teapot", ("a teapot", 0.2)),
    ],
)
def test_usual_height_reads_synonyms(prompt: str, height: tuple[str, float] | None) -> None:
    assert ToyboxPrompts(None).usual_height(prompt) == height


def test_synonyms_are_outside_the_vocabulary_and_belong_to_one_word_each(embedded: Vocabulary) -> None:
    assert embedded.known.isdisjoint(SYNONYM_OF)
    assert embedded.known.issuperset({*SYNONYMS, *LOOKALIKES})
    others = " ".join([*SYNONYMS.values(), *LOOKALIKES.values(), *FAMILIES.values()]).split()
    assert len(others) == len(set(others))


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("corgi", "dog"), ("kitten", "cat"), ("automobile", "car"), ("foxes", "dog"), ("chairs", "chair"),
        ("buses", "bus"), ("tiny", "small"), ("dgo", "dog"), ("chiar", "chair"), ("gray", "grey"),
        ("turttle", "turtle"), ("red", ""), ("justice", ""), ("fluffy", ""), ("on", ""), ("hot-dog", ""), ("hose", ""),
        ("snail", ""), ("d" * 10_000, ""),
    ],
)  # fmt: skip
def test_similar_starts_with_the_expected_word(word: str, expected: str) -> None:
    assert similar(word, KNOWN)[:1] == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("word", "family"), [("snail", "animals"), ("bicycles", "vehicles"), ("pizza", "food"), ("queen", "people")]
)
def test_similar_suggests_nouns_of_the_same_family(embedded: Vocabulary, word: str, family: str) -> None:
    found = ToyboxPrompts(embedded).similar(word)
    assert len(found) == 3 and {NOUNS[noun].family for noun in found} == {family}


def test_every_known_word_is_of_an_object_a_detail_or_a_room(embedded: Vocabulary) -> None:
    assert embedded.known - TOYBOX_WORDS - DETAILS == {"room"}


def test_similar_corrects_typing_errors(embedded: Vocabulary) -> None:
    meant = {"yelow": "yellow", "whit": "white", "rabit": "rabbit", "kiten": "cat", "sunglases": "glasses"}
    assert {word: similar(word, embedded.known) for word in meant} == {word: [name] for word, name in meant.items()}
    assert not any(similar(word, embedded.known) for word in ("three", "snail", "back", "hose", "fluffy"))


def test_similar_colours(embedded: Vocabulary) -> None:
    found = {word: similar(word, embedded.known)[:1] for word in ("navy", "maroon", "beige", "lime")}
    assert found == {"navy": ["blue"], "maroon": ["red"], "beige": ["brown"], "lime": ["green"]}


def test_also_called_of_known_words() -> None:
    assert also_called("stool", {*KNOWN, "stool"}) == ["stool", "chair"] and also_called("dog", KNOWN) == ["dog"]
