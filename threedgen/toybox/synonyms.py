"""Synonyms of the words in toybox captions, and search for the known words that are most similar to a word."""

from collections.abc import Collection

from rapidfuzz.distance import OSA

SYNONYMS = {
    "airplane": "aeroplane aircraft airliner plane",
    "astronaut": "cosmonaut spaceman spacewoman",
    "backpack": "rucksack knapsack",
    "ball": "globe orb sphere",
    "bed": "bunk cot",
    "bookshelf": "bookcase",
    "bucket": "pail",
    "bus": "coach minibus",
    "cap": "beanie",
    "cape": "cloak mantle",
    "car": "auto automobile",
    "cat": "kitten kitty pussycat",
    "chair": "seat",
    "church": "chapel",
    "clown": "jester",
    "crown": "diadem tiara",
    "cupcake": "muffin",
    "dog": "doggy hound pup puppy",
    "donut": "doughnut",
    "duck": "duckling",
    "flower": "blossom",
    "frog": "toad",
    "glasses": "eyeglasses goggles spectacles sunglasses",
    "grey": "gray silver",
    "hamburger": "burger cheeseburger",
    "headphones": "earphones headset",
    "helicopter": "chopper",
    "horse": "foal mare pony stallion",
    "house": "cottage home hut",
    "lamp": "lantern",
    "large": "big enormous giant gigantic great huge",
    "lighthouse": "beacon",
    "mushroom": "toadstool",
    "person": "boy child girl guy human kid lady man woman",
    "pig": "hog piglet swine",
    "pine": "fir spruce",
    "pink": "magenta rosy",
    "present": "gift parcel",
    "purple": "lilac violet",
    "rabbit": "bunny hare",
    "red": "crimson scarlet",
    "robot": "android droid",
    "rocket": "spaceship spacecraft",
    "scarf": "shawl",
    "small": "little mini miniature tiny",
    "sofa": "couch settee",
    "table": "desk",
    "tall": "high",
    "television": "monitor telly tv",
    "tent": "teepee tipi",
    "truck": "lorry",
    "turquoise": "aqua cyan teal",
    "turtle": "tortoise",
    "umbrella": "parasol",
    "wizard": "magician sorcerer warlock",
    "with": "carrying featuring has having holding",
    "wearing": "wears",
    "yellow": "golden",
}
"""Dict from known word to its synonyms, separated by spaces. `prompts.read_prompt` replaces a synonym by that word."""
LOOKALIKES = {
    "airplane": "glider jet jetliner jumbo",
    "ball": "basketball beachball football soccer",
    "barn": "farmhouse shed stable",
    "bear": "ape gorilla grizzly koala monkey panda teddy",
    "bed": "crib",
    "boat": "canoe ferry rowboat sailboat ship submarine vessel yacht",
    "bookshelf": "cabinet cupboard shelf wardrobe",
    "bow": "ribbon",
    "bus": "van",
    "cake": "pie tart",
    "candle": "taper",
    "car": "cab cabriolet convertible ferrari hatchback jeep limousine racecar sedan sportscar taxi",
    "castle": "citadel fort fortress palace",
    "cat": "feline leopard lion lynx panther tabby tiger",
    "chair": "armchair bench stool throne",
    "church": "cathedral temple",
    "clock": "alarmclock watch",
    "cow": "bison buffalo bull calf cattle goat lamb ox sheep",
    "dog": "corgi dachshund dalmatian fox husky labrador poodle pug retriever terrier wolf",
    "donut": "bagel",
    "duck": "bird chick chicken goose hen parrot swan",
    "elephant": "mammoth rhino rhinoceros",
    "fish": "dolphin goldfish salmon shark trout whale",
    "flower": "daisy lily rose sunflower tulip",
    "frog": "tadpole",
    "guitar": "banjo cello ukulele violin",
    "hamburger": "sandwich",
    "hammer": "axe mallet",
    "hat": "bonnet fedora",
    "helicopter": "drone",
    "horse": "deer donkey mule unicorn zebra",
    "house": "building cabin mansion villa",
    "knight": "paladin samurai soldier warrior",
    "lamp": "light torch",
    "lighthouse": "tower",
    "mug": "cup glass goblet",
    "mushroom": "fungus",
    "owl": "eagle falcon hawk",
    "penguin": "puffin",
    "person": "princess",
    "pig": "boar",
    "pine": "conifer",
    "pirate": "buccaneer captain",
    "present": "box",
    "pumpkin": "gourd",
    "rabbit": "hamster mouse rat squirrel",
    "robot": "cyborg",
    "snowman": "snowwoman",
    "teapot": "jug kettle pitcher",
    "tent": "wigwam",
    "tree": "birch oak willow",
    "truck": "pickup",
    "wizard": "witch",
}
"""Dict from known word to words for similar objects, separated by spaces. They are suggested, never replaced."""

SYNONYM_OF = {other: known for known, others in SYNONYMS.items() for other in others.split()}
"""Dict from synonym to known word."""
_VOCABULARY_WORD = SYNONYM_OF | {other: known for known, others in LOOKALIKES.items() for other in others.split()}


def also_called(word: str, known: Collection[str]) -> list[str]:
    """Return the known words for `word`: itself, its singular, and the keys of both dicts that list one of them."""
    forms = [word, *(word[: -len(end)] for end in ("s", "es") if word.endswith(end))]
    # a known word is not reduced to its singular: "glasses" would become "glass", a synonym of "mug"
    others = [_VOCABULARY_WORD.get(form, "") for form in (forms[:1] if word in known else forms)]
    return [name for name in [*forms, *others] if name in known]


def similar(word: str, known: Collection[str]) -> list[str]:
    """Return up to three known words similar to a word, most similar first.

    The words of `also_called` come first. Then come known words within one edit, or two edits if `word` has six letters
    or more. An edit adds, removes or replaces a letter, or swaps two adjacent ones. For words of up to three letters,
    only the swap counts.
    """
    max_edits = 1 if len(word) < 6 else 2
    candidates = [name for name in known if len(name) > 2 and (len(word) > 3 or sorted(name) == sorted(word))]
    distances = {name: OSA.distance(word, name, score_cutoff=max_edits) for name in candidates}
    by_spelling = sorted((edits, name) for name, edits in distances.items() if edits <= max_edits)
    return list(dict.fromkeys([*also_called(word, known), *(name for _, name in by_spelling)]))[:3]
