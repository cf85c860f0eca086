"""The recipes, a file for each family; importing this package registers them all, in the order that decides which noun
a random number means."""

# isort: off
from . import accessories, animals, buildings, vehicles, food, furniture, household  # noqa: F401
from . import people, plants, small_animals, towers, toys  # noqa: F401
