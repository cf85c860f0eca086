"""Synonyms of the words in toybox captions, and search for the known words that are most similar to a word."""

from collections.abc import Collection, Mapping, Sequence

from rapidfuzz.distance import OSA

from .world.grammar import COLOURS


def _table(text: str) -> dict[str, str]:
    return dict(entry.strip().split(": ") for entry in " ".join(text.split()).split(";"))


SYNONYMS = _table("""
    airplane: aeroplane aircraft airliner plane; and: & +; astronaut: cosmonaut spaceman spacewoman; backpack:
    rucksack knapsack; ball: basketball beachball football globe orb sphere; bed: bunk cot; bookshelf: bookcase;
    bucket: pail; bus: coach minibus; cape: cloak mantle; car: auto automobile; cat: kitten kitty pussycat; centre:
    center; church: chapel; clown: jester; crown: diadem tiara; cupcake: muffin; dog: doggy hound pup puppy; donut:
    doughnut; duck: duckling; feet: foot; flower: blossom; frog: toad; glasses: eyeglasses goggles spectacles
    sunglasses; grey: gray silver; hamburger: burger cheeseburger; hat: beanie; headphones: earphones headset;
    helicopter: chopper; horse: foal mare pony stallion; house: cottage home hut; is: are; lamp: lantern; large:
    big enormous giant gigantic huge; lighthouse: beacon; mushroom: toadstool; person: boy child children girl guy
    human kid lady man men people woman women; pig: hog piglet swine; pine: fir spruce; pink: magenta rosy;
    present: gift parcel; purple: lilac violet; rabbit: bunny hare; red: crimson scarlet; robot: android droid;
    rocket: rocketship spaceship spacecraft; scarf: shawl; small: little mini miniature tiny; sofa: couch settee;
    table: desk; television: monitor telly tv; tent: teepee tipi; that: which who; truck: lorry; turquoise: aqua
    cyan teal; turtle: tortoise; umbrella: parasol; wearing: wear wears; with: carrying featuring has have having
    holding w/; wizard: magician sorcerer warlock; yellow: gold golden
""")
"""Dict from a known word, which toybox captions contain, to its synonyms, separated by spaces.

`prompts.read_prompt` replaces synonyms in a prompt by the known words."""
LOOKALIKES = _table("""
    airplane: glider jet jetliner jumbo; ball: soccer; barn: farmhouse shed stable; bear: ape gorilla grizzly koala
    monkey panda teddy; bed: crib; blue: indigo navy; boat: canoe ferry rowboat sailboat ship submarine vessel
    yacht; bookshelf: cabinet cupboard shelf wardrobe; bow: ribbon; brown: beige tan; bus: van; cake: pie tart;
    candle: taper; car: cab cabriolet convertible ferrari hatchback jeep limousine racecar sedan sportscar taxi;
    castle: citadel fort fortress palace; cat: feline leopard lion lynx panther tabby tiger; chair: armchair bench
    stool throne; church: cathedral temple; clock: alarmclock watch; cow: bison buffalo bull calf cattle goat lamb
    ox sheep; dog: corgi dachshund dalmatian fox husky labrador poodle pug retriever terrier wolf; donut: bagel;
    duck: bird chick chicken geese goose hen parrot swan; elephant: mammoth rhino rhinoceros; fish: dolphin
    goldfish salmon shark trout whale; flower: daisy lily rose sunflower tulip; frog: tadpole; green: lime olive;
    guitar: banjo cello ukulele violin; hamburger: sandwich; hammer: axe mallet; hat: bonnet fedora; helicopter:
    drone; horse: deer donkey mule unicorn zebra; house: building cabin mansion villa; knight: paladin samurai
    soldier warrior; lamp: light torch; lighthouse: tower; mug: cup glass goblet; mushroom: fungus; owl: eagle
    falcon hawk; penguin: puffin; person: princess; pig: boar; pine: conifer; pirate: buccaneer captain; present:
    box; pumpkin: gourd; rabbit: hamster mice mouse rat squirrel; red: maroon; robot: cyborg; room: bathroom
    bedroom hall kitchen office; snowman: snowwoman; teapot: jug kettle pitcher; tent: wigwam; tree: birch oak
    willow; truck: pickup; wizard: witch
""")
"""Dict from a known word to words for similar objects, separated by spaces.

If a prompt has a word for a similar object, the known word is suggested to the user, but the prompt is not changed."""

FAMILIES = {
    "animals": "ant alligator bat beaver bee beetle bug butterfly camel caterpillar centipede cobra crab crocodile "
    "dinosaur dragon dragonfly flamingo giraffe hedgehog hippo hippopotamus iguana insect jellyfish kangaroo ladybug "
    "lizard llama lobster mole moose moth octopus ostrich otter peacock pelican pigeon porcupine raccoon scorpion "
    "seal shrimp skunk sloth slug snail snake spider squid starfish stegosaurus turkey walrus wasp worm",
    "buildings": "bridge bungalow factory garage gate hospital hotel igloo mill museum pagoda pyramid school shop "
    "skyscraper statue",
    "vehicles": "ambulance bicycle bike bulldozer caravan carriage cart crane excavator forklift "
    "kayak locomotive moped motorbike motorcycle raft scooter shuttle sled sledge skateboard sleigh tram "
    "tricycle trolley ufo unicycle wagon zeppelin",
    "food": "avocado berry biscuit bread broccoli cheese cherry chocolate coconut cookie corn croissant egg grape "
    "hotdog kiwi lemon lollipop mango melon noodles onion orange pancake peach pepper pineapple pizza potato "
    "pretzel salad sausage soup spaghetti steak strawberry sushi tomato waffle watermelon",
    "furniture": "bathtub chandelier chest closet commode door drawer dresser fridge mattress mirror ottoman oven "
    "piano pillow refrigerator sink stand stove toilet window",
    "household": "basket blender bowl broom brush camera computer fan fork hairdryer iron key keyboard knife "
    "ladder laptop mop pan pencil pen phone plate pliers pot printer radio razor saw scissors screwdriver shovel "
    "smartphone spoon spatula telephone toaster toothbrush vase washer wrench",
    "people": "alien angel ballerina baby butcher chef cowboy cook dancer doctor elf fairy farmer fireman ghost king "
    "mermaid monster mummy ninja nurse officer policeman prince queen santa sailor scarecrow skeleton superhero "
    "teacher troll vampire viking zombie",
    "plants": "bamboo bush cypress dandelion fern grass hedge ivy moss orchid reed seaweed shrub vine",
    "toys": "blocks boomerang chess doll dollhouse domino frisbee harp kite lego marble puppet "
    "puzzle racket saxophone skate spinner swing trampoline trumpet xylophone yoyo",
}
"""Dict from a family of nouns, such as "animals", to nouns of this family that the toybox lacks, separated by spaces.

If a prompt has such a noun, known nouns of its family are suggested to the user."""
PLURAL_ENDINGS = {"s": "", "es": "", "ies": "y", "ves": "f"}  # and what the singular has instead
MIN_LETTERS = 5  # minimum length of words in which a wrong letter is tolerated (colours: one less)
CORRECT = set("back beard place planet plant scary three track while write".split())
"""Unknown words that differ in one letter from a known one and are no typing errors."""

SYNONYM_OF = {other: known for known, others in SYNONYMS.items() for other in others.split()}
"""Dict from a synonym to the known word that replaces the synonym."""
_FAMILY_OF = {other: family for family, others in FAMILIES.items() for other in others.split()}
_VOCABULARY_WORD = SYNONYM_OF | {other: known for known, others in LOOKALIKES.items() for other in others.split()}


def forms(word: str) -> list[str]:
    """Return a word, then its possible singulars, then its plural: "cherries", "cherrie", "cherri", "cherry", ..."""
    cut = [word.removesuffix(end) + new for end, new in PLURAL_ENDINGS.items() if word.endswith(end)]
    return [word, *(form for form in cut if len(form) > 2), *([f"{word}s"] if len(word) > 2 else [])]


def known_form(word: str, known: Collection[str]) -> str | None:
    """Return `word` if it is in `known`, else its singular, plural or synonym that is in `known`, else None."""
    return next((name for form in forms(word) for name in (form, SYNONYM_OF.get(form, "")) if name in known), None)


def also_called(word: str, known: Collection[str]) -> list[str]:
    """Return the words of `known` that can replace `word`: itself, its singular, a synonym, or a similar object.

    For example, "dog" can replace "puppy" (synonym) and "poodle" (similar object). The list can be empty.
    """
    # a known word is not reduced to its singular: "glasses" would become "glass", a synonym of "mug"
    others = [_VOCABULARY_WORD.get(form, "") for form in ([word] if word in known else forms(word))]
    return [name for name in [*forms(word), *others] if name in known]


def is_object(word: str, noun: str) -> bool:
    """Return whether `word` names another object than `noun` and than those similar to it, by the tables here."""
    known = [form for form in forms(word) if form in _VOCABULARY_WORD or form in _FAMILY_OF]
    return known != [] and "statue" not in known and noun not in [_VOCABULARY_WORD.get(form) for form in known]


def similar(word: str, known: Collection[str], families: Mapping[str, Sequence[str]] | None = None) -> list[str]:
    """Return up to three of the `known` words that could replace an unknown word, best first. The list can be empty.

    The order is:
    1. Synonyms and similar objects (`also_called`).
    2. Words that differ by a likely typing error from `word`, or have a synonym that does: two adjacent letters are
       swapped, or in a word of five or more letters (four for a colour) one letter but the first is wrong, missing or
       added. A word of the tables in this module, such as "snail", is none.
    3. Only if 1 and 2 give nothing: known nouns of the same family (group of nouns, such as "animals"). The table
       `FAMILIES` has the families of nouns that the toybox lacks, such as "camel". `families` maps each family to its
       known nouns; None: this step is left out.
    """
    found = [*also_called(word, known), *_misspelt(word, known)]
    if not found and families:
        family = next((_FAMILY_OF[form] for form in forms(word) if form in _FAMILY_OF), "")
        found = [noun for noun in families.get(family, ()) if noun in known]
    return [name for name in dict.fromkeys(found) if name != word][:3]


def _misspelt(word: str, known: Collection[str]) -> list[str]:
    if word in CORRECT or any(form in _VOCABULARY_WORD or form in _FAMILY_OF for form in forms(word)):
        return []

    def is_meant(name: str) -> bool:
        if len(word) < 3 or OSA.distance(word, name, score_cutoff=1) > 1:
            return False
        wrong_letter = len(name) > 3 and len(word) >= MIN_LETTERS - (name in COLOURS) and word[0] == name[0]
        return wrong_letter or sorted(word) == sorted(name)  # sorted: two letters are swapped

    meant = SYNONYM_OF | {name: name for name in known}
    return sorted({name for right, name in meant.items() if name in known and is_meant(right)})
