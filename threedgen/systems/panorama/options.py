"""Config models of the task that draws panoramas (no torch here)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.plain_file import read_bytes
from threedgen.config.registry import Component
from threedgen.run.folder import user_path
from threedgen.run.prompts import EXAMPLE_ROOM, normalise_prompt
from threedgen.systems.prompted import WordedConfig

MOST_TEXT = 1 << 20
"""Bytes of a file of prompts."""
TYPICAL = (
    "a phone's main camera spans about 67 degrees held sideways and 53 upright, its wide-angle camera about 105, "
    "a 50 mm lens on full frame 40"
)


def lines_of(value: Any) -> Any:
    """The lines of a file of prompts, without empty ones, if it is the name of a file."""
    if not isinstance(value, str):
        return value
    try:
        text = read_bytes(Path(value).expanduser(), MOST_TEXT).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("should be a file of text in UTF-8") from None
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not a path"
        raise ValueError(f"should be a file with a line for each view, and cannot be read ({reason})") from None
    lines = tuple(line for line in map(str.strip, text.splitlines()) if line)
    if not lines:
        raise ValueError("is an empty file, and should have a line for each view")
    return lines


def check_ring(views: int, fov: float, name: str) -> None:
    """Raises ValueError, with the name of the option, for so many views of ``fov`` degrees all around that do not
    overlap."""
    if (step := 360 / views) >= fov:
        raise ValueError(
            f"{name} {views}: views of {fov:g} degrees, one every {step:g} degrees, do not overlap; take "
            f"{name}={int(360 // fov) + 1} or more, or a wider fov"
        )


class FilmConfig(Config):
    """The film of one turn to the right, beginning at the first view."""

    frames: int = Field(720, ge=1, le=10_000, description="pictures of the turn")
    fps: int = Field(60, ge=1, le=120, description="of them in a second")
    fov: float = Field(60.0, gt=1, le=120, description="degrees from left to right")
    height: int = Field(450, ge=16, le=4096, description="pixels")
    width: int = Field(600, ge=16, le=4096, description="pixels")


class PanoramaConfig(WordedConfig):
    """Draw a panorama from text, or around a picture."""

    prompt: str = Field("", description="what all views show; taken as it is")
    prompts: Annotated[tuple[str, ...], BeforeValidator(lines_of)] = Field(
        (), description="instead: a file with a line for each view, each view to the right of the one before"
    )
    prefix: str = Field("", description="put before every prompt, as the released weights were trained")
    negative_prompt: str = ""
    prior: Annotated[Any, Component("prior", default="mvdiffusion", only=("mvdiffusion",))] = Field(
        {}, description="who draws"
    )
    image: str | None = Field(
        None, min_length=1, description="picture around which the panorama is drawn; it is straight ahead in view 0"
    )
    image_fov: float | None = Field(
        None, gt=1, le=150, description=f"degrees that the picture spans from left to right: {TYPICAL}"
    )
    mask: Literal["code", "paper"] = Field(
        "code",
        description="how the model is told what is given: ones where it paints, around it grey, as released weights "
        "have it; or ones where it is given, around it black, as the paper says",
    )
    views: int = Field(8, ge=1, le=64, description="all around, evenly; weights know the number that they learnt from")
    fov: float = Field(90.0, ge=10, le=150, description="degrees that a view spans, from left to right and up")
    size: int = Field(512, ge=16, le=2048, description="pixels of a view's side")
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    eta: float = Field(0.0, ge=0, le=1, description="fresh noise of a step: 0 none, 1 as much as DDPM's")
    guidance_scale: float = Field(9.0, ge=0)
    synchronise: int = Field(
        0,
        ge=0,
        le=100,
        description="times that each view takes over what others see straighter, and is drawn again from some noise "
        "(prior.draft, else 0.3, and less each time), so that they agree",
    )
    height: int = Field(
        2048, ge=32, le=8192, description="pixels from pole to pole of the panorama, whose rows without gaps are kept"
    )
    film: FilmConfig = FilmConfig()

    @model_validator(mode="after")
    def _closed(self) -> PanoramaConfig:
        if self.views == 1:
            raise ValueError("views 1: a single view is no panorama; the task sample draws one picture (n_view=0)")
        check_ring(self.views, self.fov, "views")
        return self

    def texts(self) -> list[str]:
        """The prompts of the views, with the prefix. Raises ConfigError."""
        if self.prompt.strip() and self.prompts:
            raise ConfigError("give either prompt= for all views or prompts= with a line for each", "prompts")
        if not self.prompts:
            return [self.prefix + normalise_prompt(self.prompt, example=EXAMPLE_ROOM)] * self.views
        if len(self.prompts) != self.views:
            raise ConfigError(
                f"has {len(self.prompts)} lines and there are {self.views} views: give a line for each, or one text "
                "for all as prompt=",
                "prompts",
            )
        return [self.prefix + normalise_prompt(line, "prompts") for line in self.prompts]

    def check(self) -> None:
        self.texts()
        if self.image is None and self.image_fov is not None:
            raise ConfigError("is of a picture, and none is given; give image= with it", "image_fov")
        if self.image is not None:
            self._check_image(self.image)
        super().check()

    def _check_image(self, image: str) -> None:
        from threedgen.geometry.picture_file import load_image

        load_image(user_path(image, "image"), key="image")
        if self.image_fov is None:
            raise ConfigError(
                f"is missing: say how many degrees the picture spans from left to right, such as 67; {TYPICAL}",
                "image_fov",
            )
