"""Recipes of all nouns and accessories. Importing this package registers them in a fixed order that random draws depend
on: a change of the order changes every sample."""

# isort: off
from . import accessories, animals, buildings, vehicles, food, furniture, household  # noqa: F401
from . import people, plants, small_animals, towers, toys  # noqa: F401
