"""Recipes of all nouns and accessories, registered by the import of this package.

A recipe is a function that adds the solids of an object or an accessory to a `Builder`.

The order of the imports determines the order of the nouns, so a change of it changes every random sample of the toybox.
"""

# isort: off
from . import accessories, animals, buildings, vehicles, food, furniture, household  # noqa: F401
from . import people, plants, small_animals, towers, toys  # noqa: F401
