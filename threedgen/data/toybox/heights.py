"""Typical heights of toybox nouns in metres, used to export assets at real-world scale.

The height is that of the whole object, including ears of animals, pots of plants and headboards of beds.
"""

from . import nouns  # noqa: F401  (fills NOUNS)
from .grammar import article, find_nouns

HEIGHTS: dict[str, float] = {
    # animals
    "bear": 1.5, "cat": 0.35, "cow": 1.5, "dog": 0.5, "duck": 0.4, "elephant": 3.0, "fish": 0.2, "frog": 0.1,
    "horse": 1.7, "owl": 0.3, "penguin": 0.8, "pig": 0.8, "rabbit": 0.3, "turtle": 0.3,
    # buildings
    "barn": 8.0, "castle": 20.0, "church": 20.0, "house": 6.0, "lighthouse": 25.0, "tent": 2.0, "windmill": 15.0,
    # food
    "apple": 0.08, "banana": 0.15, "cake": 0.15, "carrot": 0.2, "cupcake": 0.08, "donut": 0.04, "hamburger": 0.08,
    "ice cream": 0.18, "pear": 0.1, "pumpkin": 0.3,
    # furniture
    "bed": 1.0, "bookshelf": 2.0, "chair": 0.9, "clock": 0.3, "lamp": 0.5, "sofa": 0.9, "table": 0.75,
    # household
    "bottle": 0.3, "bucket": 0.35, "candle": 0.2, "hammer": 0.3, "mug": 0.1, "teapot": 0.2, "television": 0.7,
    "umbrella": 1.0,
    # people
    "astronaut": 1.9, "clown": 1.8, "knight": 1.8, "person": 1.75, "pirate": 1.8, "robot": 1.8, "snowman": 1.6,
    "wizard": 1.8,
    # plants
    "cactus": 1.0, "flower": 0.4, "mushroom": 0.1, "palm": 8.0, "pine": 10.0, "tree": 8.0,
    # toys
    "ball": 0.22, "balloon": 0.4, "dice": 0.016, "drum": 0.4, "guitar": 1.0, "present": 0.3,
    # vehicles
    "airplane": 4.0, "boat": 4.0, "bus": 3.2, "car": 1.5, "helicopter": 3.5, "rocket": 30.0, "tank": 2.4,
    "tractor": 2.8, "train": 4.0, "truck": 3.0,
}  # fmt: skip


def usual_height(text: str) -> tuple[str, float] | None:
    """Return the first toybox noun in a text, with its article, and its height in metres, such as ("a dog", 0.5).
    Returns None if the text has no toybox noun."""
    return next(((f"{article(noun)} {noun}", HEIGHTS[noun]) for noun in find_nouns(text)), None)
