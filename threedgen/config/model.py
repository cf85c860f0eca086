"""What every config is made of: typed sections that refuse what they do not know, and their form as YAML."""

from __future__ import annotations

import hashlib
import json
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from threedgen.config import fields, yaml_text
from threedgen.config.errors import within
from threedgen.config.fields import plain

NOT_HASHED = ("out", "about", "needs", "prompt_check")


class Config(BaseModel):
    """Base of every config model: unknown keys, infinities and later changes are errors.

    renamed: keys that had another name, old -> new.
    """

    renamed: ClassVar[dict[str, str | None]] = {}

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @model_validator(mode="before")
    @classmethod
    def _prepare(cls, data: Any) -> Any:
        """A section that is given in part keeps the rest of the field's default.

        And what pydantic alone would let pass is refused: true for a number (it reads 1), and text with
        stray bytes, which could not be written to a file.
        """
        if not isinstance(data, dict):
            return data
        result = dict(data)
        for key, value in data.items():
            field = cls.model_fields.get(key)
            if isinstance(value, dict) and field:
                result[key] = fields.with_default(field, value)
            elif isinstance(value, bool) and field and fields.is_number(field):
                raise _key_mistake(key, value, "should be a number, not true or false")
            elif isinstance(value, str) and _readable(value) != value:
                raise _key_mistake(key, _readable(value), "should be text, but holds bytes that are no UTF-8")
        return result

    def check(self) -> None:
        """Is there, outside this config, what a run of it needs (files, a network)?  Raises ConfigError.

        Asked before a run begins, not when a config is only read; cheap, and without torch. A section that
        needs something answers for itself (``def check``); here the sections are asked one after the other,
        and the key of a mistake is completed by the section's name.
        """
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name in [name for name, value in values.items() if isinstance(value, dict)]:
            values |= {f"{name}.{key}": one for key, one in values[name].items()}
        for name, section in values.items():
            if isinstance(section, Config):
                with within(name):
                    section.check()


def _readable(text: str) -> str:
    """The text with `\\udcff` for a stray byte, so that it can be written."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _key_mistake(key: Any, value: Any, problem: str) -> PydanticCustomError:
    """A mistake of one key, raised by the validator of its section; `messages` puts it in its place."""
    context = {"key": _readable(str(key)), "value": value, "problem": problem}
    return PydanticCustomError("key", "{key}: {problem}", context)


def dump(config: BaseModel) -> str:
    """The resolved config as YAML; loading it alone gives the same config."""
    return yaml_text.write(plain(config))


def config_hash(config: BaseModel) -> str:
    """SHA-256 (64 hex digits) of the config without its output folder and descriptions."""
    return tree_hash(plain(config))


def tree_hash(tree: dict[str, Any]) -> str:
    """The hash of a config given as plain data, such as a config.yaml that was read."""
    hashed = {key: value for key, value in tree.items() if key not in NOT_HASHED}
    text = json.dumps(json.loads(json.dumps(hashed)), sort_keys=True, separators=(",", ":"))  # JSON's keys are text
    return hashlib.sha256(text.encode("ascii")).hexdigest()
