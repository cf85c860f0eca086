"""Words and YAML become typed, checked configs; every mistake is one line. Nothing here imports torch."""

# ruff: noqa: F401

from .errors import ConfigError, nearest
from .fields import merge, plain
from .layers import COMMAND_LINE, Layer, find, load, merged, shipped, split_override, task_of, validate
from .model import Config, config_hash, dump, tree_hash
from .scheduled import Scheduled, at
