"""Functions (recipes) that build the parts of procedural people and characters, which stand upright and face +x.

Clothes have the main colour.
"""

from threedgen.toybox.world.builder import Builder
from threedgen.toybox.world.grammar import HEADWEAR, noun
from threedgen.toybox.world.primitives import FRUSTUM

from .animals import chain, face

SKIN = ((0.98, 0.82, 0.7), (0.9, 0.7, 0.54), (0.76, 0.55, 0.4), (0.55, 0.36, 0.24), (0.36, 0.23, 0.16))
HAIR = ((0.12, 0.09, 0.08), (0.32, 0.18, 0.08), (0.6, 0.38, 0.15), (0.9, 0.75, 0.4), (0.65, 0.24, 0.08))
BLACK, WHITE, WOOD, STEEL = (0.06, 0.06, 0.07), (0.96, 0.96, 0.96), (0.42, 0.26, 0.13), (0.66, 0.68, 0.72)
LEATHER = (0.25, 0.15, 0.09)
WEARS = (*HEADWEAR, "scarf", "glasses", "backpack", "cape", "bow", "belt")
BODY = ("scarf", "backpack", "cape", "bow")  # below the head


def arms(b: Builder, hands, radius: float = 0.12, raised: float = 0.35, width: float = 0.33) -> list:
    """Add two arms to a standing figure, with shoulders at z = 1.08. Each is raised with probability ``raised``.

    ``hands`` is the sRGB colour (3,) of the hands, ``radius`` the radius of an arm, and ``width`` half the distance
    between the shoulders. Return a list of the positions (x, y, z) of the right (-y) and the left hand.
    """
    places = []
    for side in (-1, 1):
        up = b.chance(raised)
        spread = b.between(0.2, 0.3)
        end = (0.1, side * (width + spread + 0.04), 1.36) if up else (0.16, side * (width + spread), 0.74)
        b.sphere((0, side * width, 1.08), radius, None, "arms")
        b.limb((0, side * width, 1.08), end, radius, None, "arms", caps=False)
        b.sphere(end, 1.22 * radius, hands, "hands")
        places.append(end)
    return places


def legs(b: Builder, colour=None, boots=LEATHER, size: float = 1.0, label: str = "legs") -> None:
    b.limbs((0, 0.17, 0.58), (0, 0.19, 0.14), 0.165, colour, label, caps=False)
    b.pair((0.07, 0.2, 0.11), (0.25 * size, 0.18 * size, 0.13), boots, "boots")
    b.cylinder((0, 0, 0.58), 0.33, 0.12, colour, label, top=1.06)


def torso(b: Builder, robe: bool = False) -> None:
    if robe:
        b.cylinder((0, 0, 0.6), 0.56, 0.6, top=0.48)
    else:
        b.cylinder((0, 0, 0.91), 0.37, 0.25, top=0.85)
    b.sphere((0, 0, 1.14), (0.3, 0.36, 0.16))
    b.anchor(neck=(0, 1.25, 0.27), back=(-0.33, 0.95, 0.36), waist=(0, 0.68, 0.42 if robe else 0.37))


def head(b: Builder, skin, radius: float = 0.4) -> tuple[float, float, float]:
    """Add a head with eyes and nose on the shoulders of a standing figure. Return the centre (3,) of the head.

    ``skin`` is the sRGB colour (3,) of the head, ``radius`` its radius. Set the anchors (named places for accessories)
    "eyes", "head_top" and "head".
    """
    at = (0.0, 0.0, 1.24 + 0.82 * radius)
    b.sphere(at, radius, skin, "head")
    face(b, at, radius, eye=0.13, spread=0.38, height=0.1)
    b.sphere((0.98 * radius, 0, at[2] - 0.1 * radius), 0.15 * radius, b.shade(skin, 0.85), "nose")
    b.anchor(head_top=(0, at[2] + 0.86 * radius, 0.85 * radius), head=(at[0], at[2], radius))
    return at


def hair(b: Builder, at, radius: float, colour, long: bool) -> None:
    x, y, z = at
    b.dome((x - 0.04, y, z), 1.1 * radius, colour, "hair", (0, -30, 0))
    b.sphere((x - 0.45 * radius, y, z), (0.72 * radius, 1.02 * radius, 0.8 * radius), colour, "hair")
    if long:
        size = (0.5 * radius, 1.05 * radius, 1.05 * radius)
        b.sphere((x - 0.6 * radius, y, z - 0.6 * radius), size, colour, "hair")


def beard(b: Builder, at, radius: float, colour, length: float = 0.7) -> None:
    x, y, z = at
    size = (0.5 * radius, 0.8 * radius, length * radius)
    b.sphere((x + 0.62 * radius, y, z - (0.2 + 0.7 * length) * radius), size, colour, "beard")


@noun("person", "people", 1.75, parts=("hair", "trousers", "boots", "beard"), wears=WEARS)
def person(b: Builder) -> None:
    skin, tint = b.pick(*SKIN), b.part("hair", b.pick(*HAIR))
    booted = "boots" in b.named_parts
    trousers, boots = b.part("trousers", b.shade(b.colour, 0.65)), b.part("boots", LEATHER)
    legs(b, trousers, boots, 1.2 if booted else 1.0, "trousers")
    if booted:
        b.pair((0, 0.19, 0.24), (0.18, 0.18, 0.14), b.part("boots"), "boots", kind=FRUSTUM, param=1.1)
    elif "trousers" not in b.named_parts and b.chance(0.3):
        b.cylinder((0, 0, 0.52), 0.52, 0.2, None, "skirt", top=0.66)
    torso(b)
    arms(b, skin)
    at = head(b, skin)
    bearded = "beard" in b.named_parts or ("hair" not in b.named_parts and b.chance(0.2))
    hair(b, at, 0.4, tint, long="hair" in b.named_parts or (not bearded and b.chance(0.5)))
    if bearded:
        beard(b, at, 0.4, b.part("beard", tint))


@noun("robot", "people", 1.8, parts=("arms", "legs", "head"), wears=("hat", "crown", "headphones", *BODY))
def robot(b: Builder) -> None:
    limbs, skull = b.part("arms", STEEL), b.part("head")
    for side in (-1, 1):
        b.cylinder((0, side * 0.2, 0.26), 0.11, 0.22, b.part("legs", STEEL), "legs")
        b.box((0.06, side * 0.21, 0.09), (0.24, 0.17, 0.09), b.part("legs", b.shade(STEEL, 0.6)), "legs")
        b.sphere((0, side * 0.46, 1.0), 0.15, limbs, "arms")
        hand = (0.2, side * 0.56, 0.66) if b.chance(0.6) else (0.12, side * 0.64, 1.3)
        b.limb((0, side * 0.5, 1.0), hand, 0.1, limbs, "arms", caps=False)
        b.box(hand, (0.15, 0.13, 0.13), b.shade(limbs, 0.7), "arms")
    wide = b.vary(0.38)
    b.box((0, 0, 0.8), (0.32, wide, 0.36))
    b.box((0.32, 0, 0.84), (0.03, 0.24, 0.18), b.shade(STEEL, 1.6), "panel")
    for k, lamp in enumerate(((0.9, 0.1, 0.1), (0.95, 0.8, 0.1), (0.1, 0.7, 0.2))):
        b.sphere((0.35, 0.15 * (k - 1), 0.86), 0.055, lamp, "panel")
    b.cylinder((0, 0, 1.2), 0.14, 0.08, STEEL, "neck")
    top = b.vary(0.28)
    z = 1.24 + top
    b.box((0, 0, z), (0.32, 0.38, top), skull, "head")
    for side in (-1, 1):
        b.cylinder((0.33, side * 0.18, z + 0.06), 0.11, 0.05, (0.98, 0.95, 0.6), "eyes", (0, 90, 0))
        b.cylinder((0.38, side * 0.18, z + 0.06), 0.05, 0.03, BLACK, "eyes", (0, 90, 0))
        b.cylinder((0, side * 0.4, z), 0.11, 0.07, STEEL, "bolts", (90, 0, 0))
    b.box((0.32, 0, z - 0.15), (0.03, 0.2, 0.045), BLACK, "mouth")
    if not {"hat", "crown", "headphones"} & set(b.named_parts):
        b.cylinder((0, 0, z + top + 0.1), 0.04, 0.1, STEEL, "antenna")
        b.sphere((0, 0, z + top + 0.24), 0.09, (0.9, 0.15, 0.1), "antenna")
    b.anchor(head_top=(0, z + top, 0.34), head=(0, z, 0.38))
    b.anchor(neck=(0, 1.2, 0.28), back=(-0.32, 0.9, 0.4), waist=(0, 0.6, wide))


@noun("snowman", "people", 1.6, parts=("arms", "nose"), wears=(*HEADWEAR, "scarf", "glasses", "bow", "belt"))
def snowman(b: Builder) -> None:
    low, mid, top = b.vary(0.6, 0.05), b.vary(0.44, 0.05), b.vary(0.34, 0.05)
    z1 = 0.85 * low
    z2 = z1 + 0.8 * low + 0.5 * mid
    z3 = z2 + 0.72 * mid + 0.75 * top
    for z, r in ((z1, low), (z2, mid), (z3, top)):
        b.sphere((0, 0, z), r)
    for side in (-1, 1):
        b.sphere((0.88 * top, side * 0.36 * top, z3 + 0.3 * top), 0.22 * top, BLACK, "eyes")
        hand = (0.1, side * (mid + 0.42), z2 + b.between(0.0, 0.4))
        b.limb((0, side * 0.8 * mid, z2 + 0.1), hand, 0.07, b.part("arms", WOOD), "arms", caps=False)
        for lift in (-0.1, 0.12):
            chain(b, (hand, (0.12, hand[1] + side * 0.1, hand[2] + lift)), 0.05, b.part("arms", WOOD), "arms")
    b.cone((top + 0.24, 0, z3 - 0.04), 0.19, 0.34, b.part("nose", (0.97, 0.5, 0.08)), "nose", (0, 90, 0))
    for lift in (0.35, -0.1, -0.55):
        b.sphere((mid * (1 - 0.5 * lift**2), 0, z2 + lift * mid), 0.085, BLACK, "buttons")
    b.anchor(head_top=(0, z3 + 0.85 * top, 0.85 * top), head=(0, z3, top))
    b.anchor(eyes=(0.93 * top, z3 + 0.3 * top, 0.86 * top))
    b.anchor(neck=(0, z2 + 0.86 * mid, 0.31), back=(-low, z1 + 0.25 * low, low), waist=(0, z1 + 0.25 * low, 0.97 * low))


@noun("knight", "people", 1.8, parts=("plume", "shield"), wears=("cape", "scarf", "belt"))
def knight(b: Builder) -> None:
    legs(b, b.shade(b.colour, 0.8), b.shade(b.colour, 0.6))
    torso(b)
    right, left = arms(b, b.shade(b.colour, 0.6), raised=0.0)
    b.pair((0, 0.36, 1.13), 0.19, b.shade(b.colour, 1.4), "armour")
    b.cylinder((0, 0, 1.5), 0.35, 0.28, top=0.97, label="head")
    b.dome((0, 0, 1.77), (0.345, 0.345, 0.2), label="head")
    b.box((0.3, 0, 1.58), (0.07, 0.27, 0.06), BLACK, "visor")
    b.box((0.3, 0, 1.42), (0.09, 0.05, 0.17), b.shade(b.colour, 1.5), "visor")
    plume = b.part("plume", (0.85, 0.12, 0.12))
    b.sphere((-0.12, 0, 2.02), (0.32, 0.11, 0.2), plume, "plume", (0, -15, 0))
    b.sphere((-0.38, 0, 1.82), (0.14, 0.1, 0.3), plume, "plume", (0, 15, 0))
    b.box((right[0] + 0.02, right[1] - 0.04, 1.2), (0.035, 0.07, 0.46), b.shade(STEEL, 1.5), "sword")
    b.box((right[0] + 0.02, right[1] - 0.04, 0.84), (0.05, 0.18, 0.045), WOOD, "sword")
    shield = b.part("shield", b.shade(b.colour, 0.55))
    x, y = left[0] + 0.16, left[1] - 0.02
    if b.chance(0.5):
        b.cylinder((x, y, 0.78), 0.36, 0.05, shield, "shield", (0, 90, 15))
    else:
        b.box((x, y, 0.88), (0.05, 0.29, 0.26), shield, "shield")
        b.prism((x, y, 0.48), (0.29, 0.05, 0.14), shield, "shield", (180, 0, 90))
    b.sphere((x + 0.05, y, 0.8), 0.1, (0.93, 0.75, 0.2), "shield")


@noun("wizard", "people", 1.8, parts=("hat", "beard"), wears=("cape", "belt", "backpack"))
def wizard(b: Builder) -> None:
    skin = b.pick(*SKIN)
    torso(b, robe=True)
    x, y, _ = b.pick(*arms(b, skin, radius=0.14, raised=0.0))
    at = head(b, skin)
    beard(b, at, 0.4, b.part("beard", (0.88, 0.88, 0.88)), b.vary(1.35))
    cloth = b.part("hat", b.shade(b.colour, 0.7))
    tall = b.vary(0.42)
    b.cylinder((0, 0, 1.78), 0.58, 0.045, cloth, "hat")
    b.cone((-0.05, 0, 1.8 + tall), 0.38, tall, cloth, "hat", (0, -6, 0))
    b.cylinder((-0.01, 0, 1.87), 0.37, 0.06, (0.95, 0.8, 0.2), "hat", top=0.9)
    b.cylinder((x + 0.08, y, 0.76), 0.05, 0.72, WOOD, "staff")
    b.sphere((x + 0.08, y, 1.56), 0.14, b.pick((0.3, 0.9, 0.95), (0.95, 0.85, 0.2), (0.9, 0.3, 0.8)), "staff")


@noun("astronaut", "people", 1.9, parts=("visor", "backpack", "boots"), wears=("scarf", "belt", "crown", "headphones"))
def astronaut(b: Builder) -> None:
    legs(b, None, b.part("boots", b.shade(b.colour, 0.5)), 1.25)
    torso(b)
    b.sphere((0, 0, 0.84), (0.37, 0.42, 0.42))
    arms(b, b.shade(b.colour, 0.5), radius=0.16, raised=0.4, width=0.36)
    z = 1.62
    b.sphere((0, 0, z), 0.46, label="head")
    b.sphere((0.17, 0, z), (0.35, 0.37, 0.31), b.part("visor", b.pick((0.06, 0.07, 0.12), (0.9, 0.62, 0.12))), "visor")
    if "scarf" not in b.named_parts:
        b.torus((0, 0, 1.25), 0.36, 0.08, b.shade(b.colour, 0.6), "collar")
    pack = b.part("backpack", b.shade(STEEL, 1.5))
    b.box((-0.5, 0, 0.98), (0.17, 0.36, 0.38), pack, "backpack")
    b.limbs((-0.62, 0.2, 0.75), (-0.62, 0.2, 1.25), 0.12, b.shade(pack, 0.75), "backpack")
    b.box((0.34, 0, 0.9), (0.07, 0.18, 0.12), WHITE, "panel")
    for y, lamp in ((0.07, (0.9, 0.1, 0.1)), (-0.07, (0.1, 0.3, 0.9))):
        b.sphere((0.42, y, 0.92), 0.05, lamp, "panel")
    b.anchor(head_top=(0, z + 0.38, 0.4), head=(0, z, 0.46), neck=(0, 1.2, 0.34), waist=(0, 0.7, 0.42))


@noun("clown", "people", 1.8, parts=("hair", "shoes"), wears=("hat", "crown", *BODY, "belt"))
def clown(b: Builder) -> None:
    tint = b.part("hair", b.pick((0.95, 0.35, 0.05), (0.1, 0.65, 0.2), (0.85, 0.1, 0.1), (0.5, 0.2, 0.7)))
    shoes = b.part("shoes", b.shade(b.colour, 0.45))
    b.limbs((0, 0.17, 0.5), (0, 0.2, 0.16), 0.18, None, "legs", caps=False)
    b.pair((0.16, 0.23, 0.12), (0.4, 0.19, 0.14), shoes, "shoes")
    torso(b)
    b.sphere((0, 0, 0.8), (0.4, 0.42, 0.42))
    arms(b, WHITE, radius=0.14, raised=0.6)
    at = head(b, (0.99, 0.93, 0.87))
    for side in (-1, 1):
        b.sphere((-0.08, side * 0.42, at[2] + 0.1), b.vary(0.25), tint, "hair")
    b.sphere((-0.25, 0, at[2] + 0.12), 0.3, tint, "hair")
    b.sphere((0.44, 0, at[2] - 0.05), b.vary(0.14), (0.9, 0.08, 0.08), "nose")
    b.sphere((0.34, 0, at[2] - 0.2), (0.09, 0.2, 0.06), (0.8, 0.05, 0.08), "mouth")
    if not {"scarf", "cape", "bow"} & set(b.named_parts):
        b.torus((0, 0, 1.23), 0.42, 0.1, WHITE, "ruff")
    if not {"hat", "crown"} & set(b.named_parts):  # a small party hat
        b.cone((0, 0.1, at[2] + 0.55), 0.19, 0.24, None, "cone", (-14, 0, 0))
        b.sphere((0, 0.17, at[2] + 0.8), 0.08, WHITE, "cone")
    for z in (0.68, 0.96):
        b.sphere((0.39, 0, z), 0.085, (0.97, 0.85, 0.1), "buttons")
    b.anchor(waist=(0, 0.62, 0.4))


@noun("pirate", "people", 1.8, parts=("hat", "beard"), wears=("belt", "scarf", "cape", "backpack"))
def pirate(b: Builder) -> None:
    skin = b.pick(*SKIN)
    trousers = b.shade(b.colour, 0.6)
    b.limb((0, 0.17, 0.5), (0, 0.19, 0.14), 0.165, trousers, "legs", caps=False)
    b.sphere((0.07, 0.2, 0.11), (0.25, 0.18, 0.13), LEATHER, "boots")
    b.limb((0, -0.17, 0.5), (0, -0.18, 0.38), 0.165, trousers, "legs", caps=False)
    b.cylinder((0, -0.18, 0.17), 0.075, 0.17, WOOD, "wooden leg", top=1.3)
    torso(b)
    b.cylinder((0, 0, 0.48), 0.46, 0.23, top=0.78)
    x, y, z = arms(b, skin, raised=0.3)[1]
    b.torus((x + 0.1, y + 0.02, z - 0.1), 0.14, 0.04, b.shade(STEEL, 1.3), "hook", (90, 0, 20))
    at = head(b, skin)
    tint = b.part("beard", b.pick((0.12, 0.09, 0.08), (0.32, 0.18, 0.08), (0.7, 0.3, 0.08)))
    beard(b, at, 0.4, tint, b.vary(0.85))
    b.cylinder((0.36, 0.15, at[2] + 0.05), 0.13, 0.06, BLACK, "patch", (0, 90, 20))
    felt = b.part("hat", (0.09, 0.09, 0.1))
    z = at[2] + 0.3
    b.dome((0, 0, z), (0.4, 0.4, 0.33), felt, "hat")
    for side in (-1, 1):  # the brim, turned up in front and behind
        b.sphere((side * 0.2, 0, z + 0.08), (0.16, 0.62, 0.21), felt, "hat", (0, side * -14, 0))
    bone = WHITE if felt.mean() < 0.75 else BLACK
    b.sphere((0.35, 0, z + 0.12), (0.05, 0.11, 0.1), bone, "skull")
    for slant in (-35, 35):
        b.box((0.35, 0, z + 0.03), (0.03, 0.2, 0.03), bone, "skull", (slant, 0, 0))
