"""Walks the sections and fields of config models, and lays their data over each other: dicts, lists, texts, numbers."""

from __future__ import annotations

import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from threedgen.config.registry import Component
from threedgen.config.scheduled import is_step


def component(field: FieldInfo) -> Component | None:
    """The Component of a field, or None for an ordinary field."""
    return next((mark for mark in (*field.metadata, field.annotation) if isinstance(mark, Component)), None)


def choices(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, or the annotation alone."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def section(field: FieldInfo, value: Any = None) -> type[BaseModel] | None:
    """The model of a field that is a section; of several, the one that the present `value` names."""
    value = with_default(field, value)
    chosen = component(field)
    if chosen:
        return chosen.model(value)
    models = section_models(field)
    name = value_in(value, "name")
    return next((kind for kind in models if name is not None and name in model_names(kind)), next(iter(models), None))


def section_models(field: FieldInfo) -> list[type[BaseModel]]:
    """The models that an ordinary field can hold; more than one if their `name` decides."""
    return [kind for kind in choices(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def with_default(field: FieldInfo, value: Any) -> Any:
    """A section as it will be: what is given (a dict, or None for nothing) over the default of the field.

    A section of another `name` than the default's stands alone.
    """
    if field.is_required() or not (component(field) or section_models(field)):
        return value
    default = field.get_default(call_default_factory=True)
    if value is None:
        return default
    if isinstance(default, BaseModel):
        name = {"name": getattr(default, "name", None)} if "name" in type(default).model_fields else {}
        default = name | default.model_dump(exclude_unset=True)
    return merge(default, value) if isinstance(value, dict) else value


def model_names(model: type[BaseModel]) -> tuple[str, ...]:
    """The values that a model's own `name: Literal[...]` allows."""
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def is_text(field: FieldInfo) -> bool:
    """Does the field hold text only (str, Path, a choice of texts), so that an override is taken raw?"""
    kinds = [choice for choice in choices(field.annotation) if choice is not type(None)]
    return all(
        kind in (str, Path) or (get_origin(kind) is Literal and all(isinstance(a, str) for a in get_args(kind)))
        for kind in kinds
    )


def is_number(field: FieldInfo) -> bool:
    """Does the field take numbers but no booleans?"""
    kinds = choices(field.annotation)
    return any(kind in (int, float) for kind in kinds) and bool not in kinds


class Layer(NamedTuple):
    """Data and where it came from; later layers win."""

    where: str
    tree: dict[str, Any]


class Place(NamedTuple):
    """A field somewhere in a config."""

    path: tuple[str, ...]
    field: FieldInfo
    section: type[BaseModel] | None  # its model, if it is a section
    value: Any  # present data, else the default


def value_in(tree: Any, name: str) -> Any:
    """What a section, given as a dict or as a config, has under a name; None for nothing."""
    return tree.get(name) if isinstance(tree, dict) else getattr(tree, name, None)


def walk(model: type[BaseModel], tree: Any = None, prefix: tuple[str, ...] = ()) -> Iterator[Place]:
    """Every field: what a section holds comes behind it, and sections behind the options beside them.

    `tree` is the present data (nested dicts, or a config), which decides the models of Components.
    """
    found = [(name, field, value_in(tree, name)) for name, field in model.model_fields.items()]
    models = {name: section(field, value) for name, field, value in found}
    for name, field, value in sorted(found, key=lambda one: models[one[0]] is not None):
        inner = models[name]
        if inner is not None:
            value = with_default(field, value)
        elif value is None and not field.is_required():
            value = field.get_default(call_default_factory=True)
        yield Place((*prefix, name), field, inner, value)
        if inner is not None:
            yield from walk(inner, value, (*prefix, name))


INTERNAL = ("task", "about", "needs")
"""Keys of a config's file, which nobody types."""


def paths(model: type[BaseModel], tree: Any = None) -> list[str]:
    """Every key that one may have meant, dotted."""
    found = [".".join(place.path) for place in walk(model, tree)]
    return [path for path in found if path not in INTERNAL]


def merge(below: Any, above: Any) -> Any:
    """`above` over `below`: dicts key by key, anything else replaces.

    Two kinds of dict replace too: a schedule (all keys are steps), and a section with another `name`, whose
    old options belong to the old name.
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    schedule = bool(above) and all(is_step(key) for key in above)
    renamed = "name" in above and "name" in below and above["name"] != below["name"]
    if schedule or renamed:
        return above
    return below | {key: merge(below.get(key), value) for key, value in above.items()}


def put(tree: dict[str, Any], key: tuple[str, ...], value: Any) -> None:
    """Lay `value` over what `tree` has at the dotted `key`; what is no section on the way is replaced."""
    for part in key[:-1]:
        if not isinstance(tree.get(part), dict):
            tree[part] = {}
        tree = tree[part]
    tree[key[-1]] = merge(tree.get(key[-1]), value)


def plain(value: Any) -> Any:
    """A config, or what is in one, as plain data; paths become text."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def shown(value: Any) -> str:
    """Plain data on one line, as it would be typed."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(shown(inner) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) if value != "" else "''"
