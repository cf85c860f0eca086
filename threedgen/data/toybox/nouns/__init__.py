"""The recipes, a file for each family; importing this package registers them all, in a fixed order."""

from . import (  # noqa: F401
    accessories,
    animals,
    buildings,
    flying,
    food,
    furniture,
    household,
    people,
    plants,
    small_animals,
    towers,
    toys,
    vehicles,
)
