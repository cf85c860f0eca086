"""Text of --list: the shipped configs by purpose. In each group, configs that need no GPU come first."""

from typing import NamedTuple

from threedgen.config import layers
from threedgen.config.errors import ConfigError
from threedgen.config.help import wrapped

GROUPS = {
    "make": "objects, views and scenes from text, images and meshes",
    "look": "at results",
    "train": "models, and make their training data",
    "measure": "results",
}
TASKS = {
    "look": ("report", "gallery", "toybox-sheet"),
    "train": ("train-", "mvdreambooth", "make-", "toybox-subjects"),
    "measure": ("evaluate-", "consistency", "janus-"),
}
"""Group -> prefixes of the names of its tasks; all other tasks belong to the group "make"."""


class Shipped(NamedTuple):
    """Name of a shipped config, its group in `GROUPS`, and its `about` and `needs` texts."""

    name: str
    group: str
    about: str
    needs: str


def group_of(task: str) -> str:
    """Return the key in `GROUPS` that a task belongs to."""
    return next((group for group, names in TASKS.items() if task.startswith(names)), "make")


def read(name: str) -> Shipped:
    """Return the description of a shipped config. If the file cannot be read, the description is the error."""
    try:
        tree = layers.merged(layers.read_layers(layers.find(name)))
    except ConfigError as error:
        return Shipped(name, "make", f"cannot be read: {error}", "another file")
    task = str(tree.get("task", ""))
    return Shipped(name, group_of(task), tree.get("about") or "(no description)", tree.get("needs") or "nothing more")


def list_text(default: str) -> str:
    """Return the text of --list: all shipped configs with descriptions and requirements, the config `default` first."""
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
