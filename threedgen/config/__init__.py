"""Configs: YAML files and command-line overrides are merged and checked by pydantic models.

This package does not import torch, so that --help and mistakes in a config are shown at once.
"""

# ruff: noqa: F401

from .errors import ConfigError, nearest
from .fields import Tree, merge, plain
from .layers import COMMAND_LINE, find, load, merged, read_layers, shipped, split_override, task_of, validate
from .messages import Layer
from .model import Config, config_hash, dump, tree_hash
from .scheduled import Scheduled, at
