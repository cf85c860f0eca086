"""What is said of a key that there is not: which other choice of its section has it, or what may have been meant."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from pydantic import BaseModel

from threedgen.config import fields, registry
from threedgen.config.errors import did_you_mean, nearest_keys


def unknown(key: tuple[str, ...], model: type[BaseModel], tree: Any) -> str:
    """The mistake, and a hint if there is one. `tree` is the present data, which decides what there is."""
    for place in fields.walk(model, tree):
        inside = key[len(place.path) :]
        if inside and place.section is not None and key[: len(place.path)] == place.path:
            if owners := [name for name, other in _choices(place.field) if ".".join(inside) in fields.paths(other)]:
                return f"unknown key; it is an option of {'.'.join(place.path)}.name={' or '.join(owners)}"
    return f"unknown key{did_you_mean(*nearest_keys('.'.join(key), fields.paths(model, tree)))}"


def _choices(field: Any) -> Iterator[tuple[str, type[BaseModel]]]:
    """The names that a section can have, and the model of each."""
    mark = fields.component(field)
    if mark is None:
        yield from ((name, kind) for kind in fields.section_models(field) for name in fields.model_names(kind))
        return
    for name in mark.only or registry.names(mark.kind):
        with suppress(Exception):  # a plug-in's own: it must not hide the mistake
            yield name, registry.config_model(mark.kind, name)
