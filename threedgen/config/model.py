"""Base class of all config models, and functions that convert a config to YAML and to a hash."""

import hashlib
import json
import re

from pydantic import BaseModel, ConfigDict, model_validator

from threedgen.config import fields, yaml_text
from threedgen.config.errors import key_prefix
from threedgen.config.fields import Tree, plain

SURROGATE = re.compile("[\ud800-\udfff]")  # not valid Unicode
NOT_HASHED = ("out", "about", "needs", "prompt_check")


class Config(BaseModel):
    """Base class of config models (pydantic). Unknown keys, NaN, infinity and changes after creation are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: object) -> object:
        # Fill sections from the default of their field. Pydantic would accept booleans for numbers and text that is
        # not valid Unicode: convert these to text and to bytes, which it refuses.
        if not isinstance(data, dict):
            return data
        result = dict(data)
        for key, value in data.items():
            field = cls.model_fields.get(key)
            if isinstance(value, dict) and field:
                result[key] = fields.with_default(field, value)
            elif isinstance(value, bool) and field and fields.is_number(field):
                result[key] = str(value)
            elif isinstance(value, str) and SURROGATE.search(value):
                result[key] = value.encode("utf-8", "surrogatepass")
        return result

    def check(self) -> None:
        """Raise ConfigError if something that the run needs is missing: a file, a device, an optional package.

        This method is called before a run starts, not when a config is loaded, and must be fast. Subclasses with
        requirements override it. The base class calls `check` of all sections (nested configs).
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name in [name for name, value in values.items() if isinstance(value, dict)]:
            values |= {f"{name}.{key}": one for key, one in values[name].items()}
        for name, section in values.items():
            if isinstance(section, Config):
                with key_prefix(name):
                    section.check()


def dump(config: BaseModel, ascii_only: bool = False) -> str:
    """Return the complete config as YAML, in ASCII if `ascii_only` is True. Loading this text gives the same config."""
    return yaml_text.write(plain(config), ascii_only)


def config_hash(config: BaseModel) -> str:
    """Return the SHA-256 (64 hex digits) of a config without the keys `out`, `about`, `needs` and `prompt_check`.

    These keys (output folder, descriptions, check of the prompt) do not change the results.
    """
    return tree_hash(plain(config))


def tree_hash(tree: Tree) -> str:
    """Return the SHA-256 (64 hex digits) of a config as nested dicts, such as the content of a config.yaml.

    The top-level keys `out`, `about`, `needs` and `prompt_check`, which do not change the results, are left out.
    """
    hashed = {key: value for key, value in tree.items() if key not in NOT_HASHED}
    text = json.dumps(json.loads(json.dumps(hashed)), sort_keys=True, separators=(",", ":"))  # keys become str
    return hashlib.sha256(text.encode("ascii")).hexdigest()
