"""What a family of configs wants with each name of a section: `choices:` in a file, for all that build on it.

    choices:
      field:
        sdf:
          field: {sphere: 0.5, width: 32}
          loss: {eikonal: 10.0}

Whoever names `sdf` in the place of another field, in a file that builds on this one, on the command line or from
Python, has these values, and no longer those of the other field; what they give themselves lies over them. A later
file's `choices` lie over an earlier one's.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

from threedgen.config.errors import ConfigError, short
from threedgen.config.fields import Layer, merge, value_in

KEY = "choices"

Choices = dict[tuple[str, str], Layer]
"""Section and name -> the data of a config that goes with it, the name in the section included."""


def take_out(layers: list[Layer]) -> tuple[list[Layer], Choices]:
    """The layers without their `choices`, and these. Raises ConfigError for what is no section of sections."""
    rest: list[Layer] = []
    choices: Choices = {}
    for where, tree in layers:
        rest.append(Layer(where, {key: value for key, value in tree.items() if key != KEY}))
        for section, names in _sections(tree.get(KEY, {}), f"{where}: {KEY}").items():
            for name, wanted in _sections(names, f"{where}: {KEY}.{section}").items():
                place = f"{where}: {KEY}.{section}.{name}"
                own = merge(_sections(wanted, place), {section: {"name": name}})
                below = choices.get((section, name), Layer("", {})).tree
                choices[section, name] = Layer(place, merge(below, own))
    return rest, choices


def _sections(value: Any, where: str) -> dict[str, Any]:
    if isinstance(value, dict):
        return {str(key): inner for key, inner in value.items()}
    raise ConfigError(f"{where}: should be a section of `key: value` lines (got {short(value)})")


def put_under(choices: Choices, layers: list[Layer]) -> list[Layer]:
    """The layers, each with what is wanted of the names that it chooses anew under it.

    What was wanted of a name goes where a later layer chooses another one.
    """
    result: list[tuple[str, Layer]] = []  # for whose name each layer is there: that of a section, or of none
    for layer in layers:
        tree: dict[str, Any] = reduce(merge, (kept.tree for _, kept in result), {})
        for section in dict.fromkeys(section for section, _ in choices):
            name = _chosen(tree, layer.tree, section)
            if name is not None:
                result = [pair for pair in result if pair[0] != section]
                result += [(section, own) for key, own in choices.items() if key == (section, name)]
        result.append(("", layer))
    return [layer for _, layer in result]


def _chosen(below: dict[str, Any], above: dict[str, Any], section: str) -> str | None:
    """The name that `above` gives to a section which has another one below."""
    name = value_in(above.get(section), "name")
    return name if name != value_in(below.get(section), "name") else None
