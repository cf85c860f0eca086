"""Training settings of an adapter, as stored in the metadata of its file. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields

from pydantic import Field, ValidationError
from pydantic.dataclasses import dataclass

from threedgen.config.errors import ConfigError, short
from threedgen.guidance.choices import Arrangement, Control, Layout, Shift, Timestep


@dataclass(frozen=True)
class Form:
    """Training settings of an adapter that its tensors do not show.

    The defaults are the settings of the released adapters for six views without a mesh.

    Attributes:
        layout: pixels of other views that a pixel attends to, such as the same row (`attention/decoupled.py`).
        arrangement: whether the added attention runs in parallel to the self-attention or after it (same file).
        control: input of the condition guider, "rays" of the cameras or "geometry" of a mesh.
        shift: factor by which the signal-to-noise ratio of the schedule is reduced (`Schedule.shifted`).
        shift_mode: whether all timesteps are shifted equally, or by a factor interpolated from t = 0.
        anywhere: fraction of training objects rendered at random azimuths and at elevations from 0 to 30 degrees.
        fov: vertical field of view of the cameras in degrees; 0: orthographic.
        timestep: timestep that the 2D model receives: the "same" number, or the one "matched" to the noise level.
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
        """Return the settings in the metadata `card` of a file; `overrides` that are not None replace them.

        Raises ConfigError for an unknown value.
        """
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
