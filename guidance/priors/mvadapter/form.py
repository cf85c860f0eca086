"""Training settings of an adapter (no torch here)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from threedgen.config.errors import ConfigError, short
from threedgen.guidance.choices import Arrangement, Control, Layout, Shift, Timestep


@dataclass(frozen=True)
class Form:
    """Settings that are not in an adapter's tensors; defaults: the released adapters for six views without a mesh.

    Attributes:
        layout, arrangement: of the attention between views, see `attention/decoupled.py`.
        control: input of the guider, rays of the cameras or geometry of a mesh.
        shift, shift_mode: see `Schedule.shifted`.
        anywhere: fraction of training objects with other azimuths than the released adapters, at elevations 0 to 30.
        fov: vertical field of view of its cameras in degrees; 0: orthographic.
        timestep: time step of the 2D model, the same number, or matched to the noise level.
    """

    layout: Layout = "row"
    arrangement: Arrangement = "parallel"
    control: Control = "rays"
    shift: float = Field(default=8.0, ge=1, le=1000, allow_inf_nan=False)
    shift_mode: Shift = "interpolated"
    anywhere: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    fov: float = Field(default=0.0, ge=0, le=100, allow_inf_nan=False)
    timestep: Timestep = "same"

    @classmethod
    def from_card(cls, card: Mapping[str, str], **overrides: object) -> Form:
        """Return the settings in the metadata of a file, with `overrides` that are not None. Raises ConfigError."""
        settings: dict[str, object] = {field.name: card[field.name] for field in fields(cls) if field.name in card}
        settings |= {name: value for name, value in overrides.items() if value is not None}
        try:
            return cls(**settings)  # type: ignore[arg-type]
        except ValidationError as error:
            first = error.errors()[0]
            problem = f"the setting {first['loc'][0]}={short(first['input'], 40)} of the adapter's file is unknown"
            raise ConfigError(f"{problem}: {first['msg']}", "adapter") from None

    @property
    def card(self) -> dict[str, str]:
        """The settings as strings, for the metadata of a file."""
        return {name: str(value) for name, value in asdict(self).items()}
