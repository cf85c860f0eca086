"""The recipes, a file for each family; importing this package registers them all.  Their order decides which noun a
random number means: new ones go to the end."""

# isort: off
from . import accessories, animals, buildings, vehicles, food, furniture, household  # noqa: F401
from . import people, plants, small_animals, towers, toys  # noqa: F401
