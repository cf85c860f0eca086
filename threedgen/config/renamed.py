"""Names that have changed: the old ones work for one more release, with a line that says the new one.

A config model lists its own renamed keys in ``renamed`` (old -> new); ``FILES`` lists renamed configs.
"""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

from pydantic import BaseModel

from threedgen.config import fields, registry
from threedgen.config.errors import ConfigError

logger = logging.getLogger(__name__)

FILES: dict[str, str] = {}
"""Shipped configs, without `.yaml`: old -> new."""


def file(name: str) -> str:
    """The name of a shipped config as it is now."""
    return _current(FILES, name, "config")


def in_tree(model: type[BaseModel], tree: Any, where: str = "") -> Any:
    """The data of a section, of which components are written out, under today's keys.

    where: the file or the like that is named to the user; "": nothing is said. ConfigError for a key under both names.
    """
    if not isinstance(tree, dict):
        return tree
    names, whole = getattr(model, "renamed", {}), {}
    for key, value in tree.items():
        name = _current(names, key, where)
        if name != key and name in tree:
            raise ConfigError(f"{where or 'config'}: {key}: is called {name} now, which is given too; leave out {key}")
        inner = fields.section(model.model_fields[name], value) if name in model.model_fields else None
        whole[name] = value if inner is None else in_tree(inner, value, where)
    return whole


def in_key(model: type[BaseModel], tree: Any, key: tuple[str, ...], where: str) -> tuple[str, ...]:
    """A dotted key under today's names; ``tree`` is the present data, which decides the models of components."""
    name = _current(getattr(model, "renamed", {}), key[0], where)
    field = model.model_fields.get(name)
    value = tree.get(name) if isinstance(tree, dict) else getattr(tree, name, None)
    inner = fields.section(field, value) if field and key[1:] else None
    if field is None or inner is None:
        return (name, *key[1:])
    return (name, *in_key(inner, fields.with_default(field, value), key[1:], where))


def in_run(tree: dict[str, Any]) -> dict[str, Any]:
    """The config of a run that an earlier release may have written, under today's keys."""
    task = tree.get("task")
    return in_tree(registry.config_model("task", task), tree) if task in registry.names("task") else tree


def _current(names: dict[str, str], name: str, where: str) -> str:
    if name in names and where:
        _say(where, name, names[name])
    return names.get(name, name)


@cache
def _say(where: str, old: str, new: str) -> None:
    """Once for each place: a config may be read several times."""
    logger.warning("%s: %s is called %s now; the old name works for one more release", where, old, new)
