"""Words and YAML become typed, checked configs; every mistake is one line. Nothing here imports torch."""

from .errors import ConfigError, nearest
from .fields import merge, plain
from .layers import COMMAND_LINE, Layer, find, load, merged, shipped, split_override, task_of, validate
from .model import Config, config_hash, dump, tree_hash
from .scheduled import Scheduled, at

__all__ = [
    "COMMAND_LINE",
    "Config",
    "ConfigError",
    "Layer",
    "Scheduled",
    "at",
    "config_hash",
    "dump",
    "find",
    "load",
    "merge",
    "merged",
    "nearest",
    "plain",
    "shipped",
    "split_override",
    "task_of",
    "tree_hash",
    "validate",
]
