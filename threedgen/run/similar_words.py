"""Search for the words of a closed vocabulary that are most similar to an unknown word, by meaning and spelling."""

from __future__ import annotations

from collections.abc import Collection

from rapidfuzz.distance import OSA

ALSO_CALLED = {
    "airplane": "aeroplane aircraft glider jet jetliner jumbo plane",
    "astronaut": "cosmonaut spaceman spacewoman",
    "ball": "basketball beachball football globe orb soccer sphere",
    "barn": "farmhouse shed stable",
    "bear": "ape gorilla grizzly koala monkey panda teddy",
    "bed": "bunk cot crib",
    "boat": "canoe ferry rowboat sailboat ship submarine vessel yacht",
    "bookshelf": "bookcase cabinet cupboard shelf wardrobe",
    "bow": "ribbon",
    "bucket": "pail",
    "bus": "coach minibus van",
    "cake": "pie tart",
    "candle": "taper",
    "cap": "beanie",
    "cape": "cloak mantle",
    "car": "auto automobile cab cabriolet convertible ferrari hatchback jeep limousine racecar sedan sportscar taxi",
    "castle": "citadel fort fortress palace",
    "cat": "feline kitten kitty leopard lion lynx panther pussycat tabby tiger",
    "chair": "armchair bench seat stool throne",
    "church": "cathedral chapel temple",
    "clock": "alarmclock watch",
    "clown": "jester",
    "cow": "bison buffalo bull calf cattle goat lamb ox sheep",
    "crown": "diadem tiara",
    "cupcake": "muffin",
    "dog": "corgi dachshund dalmatian doggy fox hound husky labrador poodle pug pup puppy retriever terrier wolf",
    "donut": "bagel doughnut",
    "duck": "bird chick chicken duckling goose hen parrot swan",
    "elephant": "mammoth rhino rhinoceros",
    "fish": "dolphin goldfish salmon shark trout whale",
    "flower": "daisy lily rose sunflower tulip",
    "frog": "tadpole toad",
    "glasses": "eyeglasses goggles spectacles sunglasses",
    "grey": "gray silver",
    "guitar": "banjo cello ukulele violin",
    "hamburger": "burger cheeseburger sandwich",
    "hammer": "axe mallet",
    "hat": "bonnet fedora",
    "headphones": "earphones headset",
    "helicopter": "chopper drone",
    "horse": "deer donkey foal mare mule pony stallion unicorn zebra",
    "house": "building cabin cottage home hut mansion villa",
    "knight": "paladin samurai soldier warrior",
    "lamp": "lantern light torch",
    "large": "big enormous giant great huge",
    "lighthouse": "beacon tower",
    "mug": "cup glass goblet",
    "mushroom": "fungus toadstool",
    "owl": "eagle falcon hawk",
    "penguin": "puffin",
    "person": "boy child girl guy human kid lady man princess woman",
    "pig": "boar hog piglet swine",
    "pine": "conifer fir spruce",
    "pink": "magenta rosy",
    "pirate": "buccaneer captain",
    "present": "box gift parcel",
    "pumpkin": "gourd",
    "purple": "lilac violet",
    "rabbit": "bunny hamster hare mouse rat squirrel",
    "red": "crimson scarlet",
    "robot": "android cyborg droid",
    "rocket": "spacecraft spaceship",
    "scarf": "shawl",
    "small": "little mini tiny",
    "snowman": "snowwoman",
    "sofa": "couch settee",
    "table": "desk",
    "teapot": "jug kettle pitcher",
    "television": "monitor tv",
    "tent": "teepee tipi wigwam",
    "tree": "birch oak willow",
    "truck": "lorry pickup",
    "turquoise": "aqua cyan teal",
    "turtle": "tortoise",
    "umbrella": "parasol",
    "wizard": "magician sorcerer warlock witch",
}
"""Vocabulary word -> synonyms, and names of objects for which it is the most similar object of the vocabulary."""

_VOCABULARY_WORD = {other: known for known, others in ALSO_CALLED.items() for other in others.split()}


def also_called(word: str, known: Collection[str]) -> list[str]:
    """Return the known words that equal `word` or its singular, or that are a synonym of either."""
    forms = [word, *(word[: -len(end)] for end in ("s", "es") if word.endswith(end))]
    # a known word is not reduced to its singular: "glasses" would become "glass", a synonym of "mug"
    others = [_VOCABULARY_WORD.get(form, "") for form in (forms[:1] if word in known else forms)]
    return [name for name in [*forms, *others] if name in known]


def similar(word: str, known: Collection[str]) -> list[str]:
    """Return up to three known words similar to a word, most similar first.

    Synonyms come first. Then come words within one edit, or two edits if `word` has six letters or more; an edit may
    also swap two adjacent letters. For words of up to three letters, only a permutation of the letters is similar.
    """
    max_edits = 1 if len(word) < 6 else 2
    candidates = [name for name in known if len(name) > 2 and (len(word) > 3 or sorted(name) == sorted(word))]
    distances = {name: OSA.distance(word, name, score_cutoff=max_edits) for name in candidates}
    by_spelling = sorted((edits, name) for name, edits in distances.items() if edits <= max_edits)
    return list(dict.fromkeys([*also_called(word, known), *(name for _, name in by_spelling)]))[:3]
