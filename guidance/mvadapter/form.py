"""What an adapter was trained as (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import nan
from typing import Any, get_args

from threedgen.config.errors import ConfigError
from threedgen.guidance.choices import Arrangement, Control, Layout, Shift, Timestep

KINDS = {"layout": Layout, "arrangement": Arrangement, "control": Control, "shift_mode": Shift, "timestep": Timestep}
NUMBERS = {"shift": (1.0, 1000.0), "anywhere": (0.0, 1.0), "fov": (0.0, 100.0)}


@dataclass(frozen=True)
class Form:
    """What its tensors do not say; by default as the released adapters for six views without a mesh.

    layout, arrangement: of the attention between views, see ``multiview/decoupled.py``.  control: what the guider is
    shown, ``rays`` of the cameras or the ``geometry`` of a mesh.  shift, shift_mode: see ``Schedule.shifted``.
    timestep: that which the 2D model is told, the ``same`` number, or ``matched`` to the noise that is there.
    anywhere: the share of objects that it saw from other sides than the released adapters, 0 to 30 degrees high.
    fov: of its cameras, in degrees, vertical; 0: they are orthographic.
    """

    layout: Layout = "row"
    arrangement: Arrangement = "parallel"
    control: Control = "rays"
    shift: float = 8.0
    shift_mode: Shift = "interpolated"
    anywhere: float = 0.0
    fov: float = 0.0
    timestep: Timestep = "same"

    @classmethod
    def from_card(cls, card: Mapping[str, str], **asked: Any) -> Form:
        """As what a file says of itself has it, but for what is ``asked`` for and not None. Raises ConfigError."""
        found: dict[str, Any] = {field.name: card[field.name] for field in fields(cls) if field.name in card}
        for name, kind in KINDS.items():
            if found.get(name, get_args(kind)[0]) not in get_args(kind):
                known = ", ".join(get_args(kind))
                raise ConfigError(
                    f"the adapter is of an unknown {name} {found[name][:40]!r} (known: {known})", "adapter"
                )
        for name in NUMBERS.keys() & found.keys():
            found[name] = _number(name, found[name])
        return replace(cls(**found), **{name: value for name, value in asked.items() if value is not None})

    @property
    def card(self) -> dict[str, str]:
        """The same as texts, for a file."""
        return {name: str(value) for name, value in asdict(self).items()}


def _number(name: str, text: str) -> float:
    """What a file says of ``name``. Raises ConfigError."""
    least, most = NUMBERS[name]
    try:
        number = float(text)
    except ValueError:
        number = nan
    if not least <= number <= most:
        said = f"the adapter's {name} should be a number from {least:g} to {most:g}, and its file says {text[:40]!r}"
        raise ConfigError(said, "adapter")
    return number
