"""Recipes of all nouns and accessories. Importing this package registers them in a fixed order. Random samples depend
on this order: a change of it changes every sample of the toybox."""

# isort: off
from . import accessories, animals, buildings, vehicles, food, furniture, household  # noqa: F401
from . import people, plants, small_animals, towers, toys  # noqa: F401
