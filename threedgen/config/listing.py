"""The text of --list: the shipped configs by what one does with them, those that run anywhere first."""

from __future__ import annotations

from typing import NamedTuple

from threedgen.config import layers
from threedgen.config.errors import ConfigError
from threedgen.config.help import wrapped

GROUPS = {
    "make": "objects, views and scenes, from words, pictures and meshes",
    "look": "at what was made",
    "train": "the models, and make what they learn from",
    "measure": "what came of it",
}
TASKS = {
    "look": ("report", "gallery", "toybox-sheet"),
    "train": ("train-", "mvdreambooth", "make-", "toybox-subjects"),
    "measure": ("evaluate-", "consistency", "janus-"),
}
"""Tasks of a group, or what their names begin with; every other task makes something."""


class Shipped(NamedTuple):
    """A shipped config, as far as it can be read."""

    name: str
    group: str
    about: str
    needs: str


def group_of(task: str) -> str:
    """The group of GROUPS in which a task is listed."""
    return next((group for group, names in TASKS.items() if task.startswith(names)), "make")


def read(name: str) -> Shipped:
    """A shipped config. One that cannot be read says so of itself: it must not hide the others."""
    try:
        tree = layers.merged(layers.read_layers(layers.find(name)))
    except ConfigError as error:
        return Shipped(name, "make", f"cannot be read: {error}", "another file")
    task = str(tree.get("task", ""))
    return Shipped(name, group_of(task), tree.get("about") or "(no description)", tree.get("needs") or "nothing more")


def list_text(default: str) -> str:
    """Every shipped config, what it does and what it needs, the default one first."""
    found = [read(name) for name in layers.shipped()]
    found.sort(key=lambda one: (one.name != default, "GPU" in one.needs and "core" not in one.needs, one.name))
    blocks = []
    for group, about in GROUPS.items():
        if members := [one for one in found if one.group == group]:
            heading = wrapped(about, 4, f"{group.upper()} ")
            blocks.append("\n".join([heading, "", *(_entry(one, default) for one in members)]))
    return "\n\n".join(blocks) + "\n"


def _entry(one: Shipped, default: str) -> str:
    mark = "  (the default)" if one.name == default else ""
    return "\n".join([f"  {one.name}{mark}", wrapped(one.about, 6), wrapped(one.needs, 13, "      needs: ")])
