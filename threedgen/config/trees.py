"""Configs as plain data: dicts, lists, texts, numbers, booleans and None, laid over each other."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel

from threedgen.config.schedule import is_step


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


def text_keys(value: Any) -> Any:
    """Plain data with every key as text, as JSON has it."""
    if isinstance(value, dict):
        return {str(key): text_keys(inner) for key, inner in value.items()}
    return [text_keys(inner) for inner in value] if isinstance(value, list) else value


def shown(value: Any) -> str:
    """Plain data on one line, as it would be typed."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {shown(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(shown(inner) for inner in value) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) if value != "" else "''"
