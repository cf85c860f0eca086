"""Functions for config models and config values: list the fields of a model, merge values, describe types."""

import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from threedgen.config import registry
from threedgen.config.registry import Component
from threedgen.config.scheduled import Scheduled, is_schedule

Tree: TypeAlias = dict[str, Any]  # config, or section of a config, as plain data (nested dict)
INTERNAL = ("task", "about", "needs", "choices", "plugins")  # keys of config files that are not options

_BOUNDS = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= "}
_LENGTHS = {"min_length": "length >= ", "max_length": "length <= "}
_NAMES = {str: "text", Path: "path", int: "whole number", float: "number", bool: "true or false", type(None): "null"}
_SCHEDULE = get_args(Scheduled)[1]


class Place(NamedTuple):
    """Option or section of a config. A section is a nested config.

    Attributes:
        path: key from the root of the config, such as ("trainer", "max_steps").
        field: pydantic's definition of the option.
        section: config model of a section; None for an option.
        value: value in the config; the default of the field if the config does not set it.
    """

    path: tuple[str, ...]
    field: FieldInfo
    section: type[BaseModel] | None
    value: Any


def walk(model: type[BaseModel], tree: object = None, prefix: tuple[str, ...] = ()) -> Iterator[Place]:
    """Yield all fields of a config model and of its sections (nested configs), each as a `Place`.

    The options of a model come first, in their order. Then each section comes, directly followed by its own fields. For
    example, a model with the options a and c and a section b yields a, c, b, b.x, b.y.

    A `Place` has the key of the field from the root of the config, its definition, the config model of a section (None
    for an option) and the value. The value of an option is the one in `tree`, else its default. The value of a section
    is a nested dict, or a config object, with its values.

    Args:
        model: config model.
        tree: values, as nested dicts or a config object; None: the defaults. The value `name` of a section selects the
            model of this section.
        prefix: key of a section, such as ("trainer",), if `model` is the model of this section: all keys start with it.
            (): `model` is the model of the whole config.
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
    """Return the dotted keys of all options and sections (nested configs) of a config model.

    Examples are "trainer" and "trainer.max_steps". The keys "task", "about" and "needs", which describe the config, are
    left out.

    `tree` has the values, as nested dicts or a config object; None: the defaults. The value `name` of a section selects
    the model of this section, and thus its keys.
    """
    found = [".".join(place.path) for place in walk(model, tree)]
    return [path for path in found if path not in INTERNAL]


def value_in(tree: object, name: str) -> Any:
    """Return the value of the key `name` in a dict, config object or list (index); None if the key is missing."""
    if isinstance(tree, list):
        return tree[int(name)] if name.isdecimal() and int(name) < len(tree) else None
    return tree.get(name) if isinstance(tree, dict) else getattr(tree, name, None)


def component(field: FieldInfo) -> Component | None:
    """Return the `Component` annotation of a field; None for fields without it.

    The annotation marks a section (nested config) whose key `name` selects its config model in the registry.
    """
    return next((mark for mark in (*field.metadata, field.annotation) if isinstance(mark, Component)), None)


def section(field: FieldInfo, value: object = None) -> type[BaseModel] | None:
    """Return the config model of a field that is a section (a nested config); None for other fields.

    `value` is the value of the field; None: the default. If the field allows several models, the key `name` in the
    value selects one:

    - Field with a `Component` annotation: the model of the component that is registered with this name, or of the
      default component if there is no name. None if there is no such component.
    - Field whose type is a union of models: the member that allows this name, or the first member if none does.
    """
    value = with_default(field, value)
    if mark := component(field):
        return mark.model(value)
    models, name = section_models(field), value_in(value, "name")
    return next((kind for kind in models if name in model_names(kind)), models[0] if models else None)


def section_models(field: FieldInfo) -> list[type[BaseModel]]:
    """Return the config models in the type of a field: [A, B] for the type `A | B`, [] for the type float."""
    return [kind for kind in members(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]


def model_names(model: type[BaseModel]) -> tuple[str, ...]:
    """Return the values that the field `name: Literal[...]` of a model allows; () without such a field."""
    field = model.model_fields.get("name")
    return get_args(field.annotation) if field and get_origin(field.annotation) is Literal else ()


def alternatives(field: FieldInfo) -> dict[str, type[BaseModel] | Exception]:
    """Return the config models that a section (nested config) can have: a dict from each allowed `name` to a model.

    If the import of a model fails, the dict has the exception instead of the model. The dict is empty if the field is
    no section, or if the section has one fixed model, without a field `name`.
    """
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
    """Return the value of a field that is a section (nested config), with missing keys filled from the field's default.

    `value` is not changed. The first case that applies counts:

    1. The field is no section or has no default: return `value`.
    2. `value` is None: return the default.
    3. `value` is a dict: return a copy, filled with the keys that only the default sets. Nothing is filled if `value`
       has another "name" than the default, because another component has other options.
    4. Otherwise: return `value`.
    """
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
    """Return config value `below` updated with `above`: dicts are merged key by key, other values taken from `above`.

    Two kinds of dicts in `above` are not merged, but replace the dict in `below`:

    - a schedule {step: number};
    - a dict with another `name` than the dict in `below`. The key `name` selects a component (class or function), the
      other keys are its options, and another component has other options.

    The arguments are not changed.
    """
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    other_name = "name" in above and "name" in below and above["name"] != below["name"]
    if is_schedule(above) or other_name:
        return above
    return below | {key: merge(below.get(key), value) for key, value in above.items()}


def nested(key: tuple[str, ...], value: object) -> Tree:
    """Return nested dicts that contain only `value`: {"a": {"b": value}} for the key ("a", "b")."""
    first, *rest = key
    return {first: nested(tuple(rest), value) if rest else value}


def plain(value: object) -> Any:
    """Convert a config, or any value in one, to dicts, lists, str, numbers, bool and None.

    Tuples and sets become lists. Paths, and objects of any other class, become str.
    """
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
    """Return whether a field takes only text: str, Path or a Literal of texts, and possibly None."""
    kinds = [kind for kind in members(field.annotation) if kind is not type(None)]
    texts = [text for kind in kinds if get_origin(kind) is Literal for text in get_args(kind)]
    plain_kinds = [kind for kind in kinds if get_origin(kind) is not Literal]
    return all(kind in (str, Path) for kind in plain_kinds) and all(isinstance(text, str) for text in texts)


def is_dict(field: FieldInfo) -> bool:
    """Return whether a field takes a dict with arbitrary keys."""
    return any(get_origin(kind) is dict for kind in members(field.annotation))


def is_number(field: FieldInfo) -> bool:
    """Return whether a field takes numbers but no booleans."""
    kinds = members(field.annotation)
    return any(kind in (int, float) for kind in kinds) and bool not in kinds


def type_name(annotation: object, marks: Iterable[object] = ()) -> str:
    """Describe a type annotation for users, such as "whole number >= 1", "auto | numba" or "list of 3: number".

    `marks` is pydantic's metadata of the field, which contains its bounds, such as annotated_types.Ge(1).
    """
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
    bounds, lengths = _limits(marks, _BOUNDS), _limits(marks, _LENGTHS)
    name = f"{name} {bounds}" if bounds else name
    return f"{name}, {lengths}" if lengths else name


def _limits(marks: Iterable[object], signs: Mapping[str, str]) -> str:
    found = [(sign, getattr(mark, key, None)) for mark in marks for key, sign in signs.items()]
    return " and ".join(f"{sign}{_limit(limit)}" for sign, limit in found if limit is not None)


def _limit(limit: float) -> str:
    if isinstance(limit, float):
        return f"{limit:.6g}"
    return f"2^{limit.bit_length() - 1}" if limit >= 2**32 and limit.bit_count() == 1 else str(limit)
