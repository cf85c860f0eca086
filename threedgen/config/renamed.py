"""Names that have changed: the old ones work for one more release, with a line that says the new one.

A config model lists its own renamed keys in ``renamed`` (old -> new, or None for what has no effect any more).
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from threedgen.config import fields, registry
from threedgen.config.errors import ConfigError

logger = logging.getLogger(__name__)


class Gone(KeyError):
    """A key that has no effect any more."""


def in_tree(model: type[BaseModel], tree: Any, where: str = "") -> Any:
    """The data of a section under today's keys, each component that is given as a text written out.

    where: the file or the like that is named to the user; "": nothing is said. ConfigError for a key under both names.
    """
    if not isinstance(tree, dict):
        return tree
    names, whole = getattr(model, "renamed", {}), {}
    for key, value in tree.items():
        name = _current(names, key, where)
        if name is None:
            continue
        if name != key and name in tree:
            raise ConfigError(f"{where or 'config'}: {key}: is called {name} now, which is given too; leave out {key}")
        field = model.model_fields.get(name)
        mark = fields.component(field) if field else None
        value = mark.section(value) if mark and isinstance(value, str) else value
        inner = fields.section(field, value) if field else None
        whole[name] = value if inner is None else in_tree(inner, value, where)
    return whole


def locate(
    model: type[BaseModel], tree: Any, key: tuple[str, ...], where: str = ""
) -> tuple[tuple[str, ...], FieldInfo | None]:
    """A dotted key under today's names and its field, None for a key inside a free dict. KeyError if there is none.

    ``tree`` is the present data, which decides the models of components; ``where`` as for `in_tree`.
    """
    name = _current(getattr(model, "renamed", {}), key[0], where)
    if name is None:
        raise Gone(".".join(key))
    field = model.model_fields[name]
    if len(key) == 1:
        return (name,), field
    value = fields.value_in(tree, name)
    inner = fields.section(field, value)
    if inner is not None:
        rest, found = locate(inner, fields.with_default(field, value), key[1:], where)
        return (name, *rest), found
    free = any(get_origin(choice) is dict for choice in fields.choices(field.annotation))
    if free or fields.component(field):  # a component of an unknown name: the check of the whole names the nearest
        return (name, *key[1:]), None
    raise KeyError(".".join(key))


def in_run(tree: dict[str, Any]) -> dict[str, Any]:
    """The config of a run that an earlier release may have written, under today's keys."""
    task = tree.get("task")
    return in_tree(registry.config_model("task", task), tree) if task in registry.names("task") else tree


def _current(names: dict[str, str | None], name: str, where: str) -> str | None:
    if name in names and where:
        _say(where, name, names[name])
    return names.get(name, name)


@cache
def _say(where: str, old: str, new: str | None) -> None:
    """Once for each place: a config may be read several times."""
    said = "has no effect any more" if new is None else f"is called {new} now; the old name works for one more release"
    logger.warning("%s: %s %s", where, old, said)
