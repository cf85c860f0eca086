"""Another choice of a section's `name` on the command line: what both choices mean alike stays as the config has it.

    --config mvdream-toybox field.name=sdf      the hash grid and the width are those of the toybox still

Between files, and for a section that is given whole (`field={name: sdf}`), another name stands alone: `fields.merge`.
"""

from __future__ import annotations

import logging
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from threedgen.config import fields

logger = logging.getLogger(__name__)


def swapped(model: type[BaseModel], tree: Any, names: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The sections that `names` (nested data with nothing but names) swaps, each with what stays of the present `tree`.

    One line is said for each.
    """
    result: dict[str, Any] = {}
    for key, inner in names.items():
        field = model.model_fields.get(key)
        if field is None or not isinstance(inner, dict):
            continue
        present = fields.with_default(field, fields.value_in(tree, key))
        old, new = fields.section(field, present), fields.section(field, fields.merge(present, inner))
        if old is None or new is None or not isinstance(present, dict):
            continue
        if new is not old:
            kept = {name: value for name, value in present.items() if name != "name" and _alike(old, new, name)}
            if len(present) > ("name" in present):  # else there was nothing to lose
                _say(f"{prefix}{key}", inner["name"], kept)
            result[key] = kept | {"name": inner["name"]}
            present = result[key]
        if more := swapped(new, present, inner, f"{prefix}{key}."):
            result[key] = fields.merge(result.get(key, {}), more)
    return result


def _alike(old: type[BaseModel], new: type[BaseModel], name: str) -> bool:
    """Do both models have this key, and begin from the same value? Else it means, or wants, another thing."""
    return name in new.model_fields and _default(old.model_fields[name]) == _default(new.model_fields[name])


def _default(field: FieldInfo) -> Any:
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _say(section: str, name: str, kept: dict[str, Any]) -> None:
    stay = f"{', '.join(kept)} stay as the config has them, other options" if kept else "options"
    logger.warning("%s.name=%s: %s of this section are the defaults of %s", section, name, stay, name)
