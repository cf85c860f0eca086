"""Config model of the task that draws views by an adapter (no torch here)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, model_validator

from threedgen.systems.texture_object.options import DrawingConfig, ThingConfig

Azimuth = Annotated[float, Field(ge=-360, le=360)]
Elevation = Annotated[float, Field(ge=-89.99, le=89.99)]


class AdapterViewsConfig(ThingConfig, DrawingConfig):
    """Draw views of a thing from words or a picture, of a free shape or of that of a mesh."""

    sides: ClassVar[tuple[str, str]] = ("height", "width")

    views: tuple[tuple[Azimuth, Elevation], ...] | None = Field(
        None,
        min_length=1,
        max_length=64,
        examples=[[[0, 15], [90, 15]]],
        description="[azimuth, elevation] of each, degrees; azimuth 0 is the front, 90 its right; null: the six that "
        "released adapters were trained for",
    )
    height: int | None = Field(None, ge=16, le=2048, description="pixels; null: as the 2D model was trained")
    width: int | None = Field(None, ge=16, le=2048, description="pixels; null: as the 2D model was trained")

    @model_validator(mode="after")
    def _shape(self) -> AdapterViewsConfig:
        for name in ("front", "up"):
            if self.mesh is None and getattr(self, name) != "auto":
                raise ValueError(f"{name} is of a mesh, and there is none; give mesh=FILE with it")
        return self

    def check(self) -> None:
        self.check_drawing("rays" if self.mesh is None else "geometry")
        if self.mesh is not None:
            self.check_thing()
        super().check()
