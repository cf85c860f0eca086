"""What an adapter was trained as, and where its file is (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

from threedgen.config.errors import ConfigError
from threedgen.guidance.choices import Arrangement, Control, Layout, Shift
from threedgen.guidance.weights.loading import existing

KINDS = {"layout": Layout, "arrangement": Arrangement, "control": Control, "shift_mode": Shift}


@dataclass(frozen=True)
class Form:
    """What its tensors do not say; by default as the released adapters for six views without a mesh.

    layout, arrangement: of the attention between views, see ``multiview/decoupled.py``.  control: what the guider is
    shown, ``rays`` of the cameras or the ``geometry`` of a mesh.  shift, shift_mode: see ``Schedule.shifted``.
    """

    layout: Layout = "row"
    arrangement: Arrangement = "parallel"
    control: Control = "rays"
    shift: float = 8.0
    shift_mode: Shift = "interpolated"

    @classmethod
    def told(cls, card: Mapping[str, str], **asked: Any) -> Form:
        """As what a file says of itself has it, but for what is ``asked`` for and not None. Raises ConfigError."""
        found: dict[str, Any] = {field.name: card[field.name] for field in fields(cls) if field.name in card}
        for name, kind in KINDS.items():
            if found.get(name, get_args(kind)[0]) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ConfigError(
                    f"the adapter is of an unknown {name} {found[name][:40]!r} (known: {known})", "adapter"
                )
        try:
            found |= {"shift": float(found["shift"])} if "shift" in found else {}
        except ValueError:
            raise ConfigError(f"the adapter's shift {found['shift'][:40]!r} is no number", "adapter") from None
        return replace(cls(**found), **{name: value for name, value in asked.items() if value is not None})

    @property
    def card(self) -> dict[str, str]:
        """The same as texts, for a file."""
        return {name: str(value) for name, value in asdict(self).items()}


def locate(adapter: str) -> Path:
    """The file of an adapter. Raises ConfigError."""
    found = existing(adapter)
    if found is None or not found.is_file():
        raise ConfigError(
            f"there is no file {adapter!r}; the released adapters are on the hub, `hf download huanngzh/mv-adapter`",
            "adapter",
        )
    return found
