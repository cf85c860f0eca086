"""Functions on config models and their values: list fields, merge values, describe types."""

import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from threedgen.config import registry
from threedgen.config.registry import Component
from threedgen.config.scheduled import Scheduled, is_step

Tree: TypeAlias = dict[str, Any]
"""Config, or section of a config, as plain data (nested dict)."""
INTERNAL = ("task", "about", "needs", "choices", "plugins")
"""Keys of config files that are not options."""

_BOUNDS = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= ", "min_length": "length >= ", "max_length": "length <= "}
_NAMES = {str: "text", Path: "path", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
_SCHEDULE = get_args(Scheduled)[1]


class Place(NamedTuple):
    """Field of a config model, with its key in the whole config (`path`) and its value."""

    path: tuple[str, ...]
    field: FieldInfo
    section: type[BaseModel] | None  # model, if the field is a section
    value: Any  # value in the config, or the default


def walk(model: type[BaseModel], tree: object = None, prefix: tuple[str, ...] = ()) -> Iterator[Place]:
    """Yield all fields of a config model and, recursively, of its sections. Sections come after the other fields.

    Args:
        tree: values as nested dicts or a config object; None: defaults. The `name` in a section selects its model.
        prefix: key of the section that `model` belongs to.
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


def paths(model: type[BaseModel], tree: object = None) -> list[str]:
    """Return the dotted keys of all options and sections of a config model with values `tree` (None: defaults)."""
    found = [".".join(place.path) for place in walk(model, tree)]
    return [path for path in found if path not in INTERNAL]


def value_in(tree: object, name: str) -> Any:
    """Return the value of a key in a dict or a config object. Return None if the key is missing."""
    return tree.get(name) if isinstance(tree, dict) else getattr(tree, name, None)


def component(field: FieldInfo) -> Component | None:
    """Return the `Component` annotation of a field, which selects the field's model from the registry, or None."""
    return next((mark for mark in (*field.metadata, field.annotation) if isinstance(mark, Component)), None)


def section(field: FieldInfo, value: object = None) -> type[BaseModel] | None:
    """Return the config model of a section with this value (None: the default); None for a field that is no section.
    For a field with a `Component` annotation, None is also returned if `name` in the value is not registered."""
    value = with_default(field, value)
    if mark := component(field):
        return mark.model(value)
    models, name = section_models(field), value_in(value, "name")
    return next((kind for kind in models if name in model_names(kind)), models[0] if models else None)


def section_models(field: FieldInfo) -> list[type[BaseModel]]:
    """Return the config models in the type of a field. If there are several, the `name` in the section selects one."""
    return [kind for kind in members(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def model_names(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the names that select a model: the values of its field `name: Literal[...]`; () without such a field."""
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def alternatives(field: FieldInfo) -> dict[str, type[BaseModel] | Exception]:
    """Return a dict from each allowed name of a section to its config model, or to the exception of a failed import."""
    mark = component(field)
    if mark is None:
        return {name: model for model in section_models(field) for name in model_names(model)}
    return {name: _model_or_error(mark.kind, name) for name in mark.only or registry.names(mark.kind)}


def _model_or_error(kind: str, name: str) -> type[BaseModel] | Exception:
    try:
        return registry.config_model(kind, name)
    except Exception as error:
        return error


def with_default(field: FieldInfo, value: object) -> Any:
    """Merge the given keys of a section (a dict, or None) over the default value of the section's field. If the given
    `name` differs from the default `name`, the given section replaces the default."""
    if field.is_required() or not (component(field) or section_models(field)):
        return value
    default = field.get_default(call_default_factory=True)
    if value is None:
        return default
    if isinstance(default, BaseModel):
        name = {"name": value_in(default, "name")} if "name" in type(default).model_fields else {}
        default = name | default.model_dump(exclude_unset=True)
    return merge(default, value) if isinstance(value, dict) else value


def merge(below: object, above: object) -> Any:
    """Merge `above` over `below`: dicts key by key; any other value of `above` replaces the value of `below`.

    Two kinds of dicts also replace `below`: schedules (all keys are steps), and sections with another `name`.
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    schedule = bool(above) and all(is_step(key) for key in above)
    other_name = "name" in above and "name" in below and above["name"] != below["name"]
    if schedule or other_name:
        return above
    return below | {key: merge(below.get(key), value) for key, value in above.items()}


def nested(key: tuple[str, ...], value: object) -> Tree:
    """Return the nested dict with one value: `{"a": {"b": value}}` for the key ("a", "b")."""
    first, *rest = key
    return {first: nested(tuple(rest), value) if rest else value}


def plain(value: object) -> Any:
    """Convert a config or a value in it to plain data: dicts, lists, str, numbers, bool and None. Paths become str."""
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(inner) for inner in value]
    return value if value is None or isinstance(value, (str, bool, int, float)) else str(value)


def members(annotation: object) -> tuple[Any, ...]:
    """Return the members of a union type. Return `(annotation,)` for any other type."""
    return get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)


def is_text(field: FieldInfo) -> bool:
    """Return whether a field takes only text (str, Path or string literals). Its overrides are not parsed as YAML."""
    kinds = [kind for kind in members(field.annotation) if kind is not type(None)]
    return all(kind in (str, Path) or _is_text_literal(kind) for kind in kinds)


def _is_text_literal(kind: object) -> bool:
    return get_origin(kind) is Literal and all(isinstance(text, str) for text in get_args(kind))


def is_dict(field: FieldInfo) -> bool:
    """Return whether a field takes a dict with arbitrary keys."""
    return any(get_origin(kind) is dict for kind in members(field.annotation))


def is_number(field: FieldInfo) -> bool:
    """Return whether a field takes numbers but no booleans."""
    kinds = members(field.annotation)
    return any(kind in (int, float) for kind in kinds) and bool not in kinds


def type_name(annotation: object, marks: Iterable[object] = ()) -> str:
    """Describe a type and its bounds, from `marks`: `whole number >= 1`, `auto | numba`, `list of 3: number`."""
    origin, inner = get_origin(annotation), get_args(annotation)
    marks = [part for mark in marks for part in (mark.metadata if isinstance(mark, FieldInfo) else [mark])]
    if origin is Annotated:
        return type_name(inner[0], [*inner[1:], *marks])
    if _SCHEDULE in marks:
        name = "number or schedule"
    elif origin is Literal:
        name = " | ".join(map(str, inner))
    elif len(members(annotation)) > 1:
        name = " | ".join(dict.fromkeys(map(type_name, inner)))
    elif origin is dict:
        name = "section of key: value"
    elif origin in (tuple, list):
        kinds = dict.fromkeys(type_name(kind) for kind in inner if kind is not Ellipsis)
        name = f"list{'' if Ellipsis in inner or origin is list else f' of {len(inner)}'}: {', '.join(kinds)}"
    else:
        name = _NAMES.get(annotation, "section") if isinstance(annotation, type) else "section"
    limits = [(sign, getattr(mark, key, None)) for mark in marks for key, sign in _BOUNDS.items()]
    numbers = [(sign, f"{limit:.6g}" if isinstance(limit, float) else limit) for sign, limit in limits]
    return " ".join([name, *(f"{sign}{limit}" for sign, limit in numbers if limit is not None)])
