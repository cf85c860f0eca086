"""Config models of the task "sample", and of sampling in other tasks. The module does not import torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from threedgen.config import Config, ConfigError
from threedgen.config.plain_file import read_text
from threedgen.config.registry import Component
from threedgen.data.assets.listing import MESH_FORMATS
from threedgen.geometry.image_file import load_image
from threedgen.guidance.options import MatteName
from threedgen.guidance.priors.options import MVAdapterConfig
from threedgen.guidance.weights.other_models import check_image
from threedgen.run.folder import user_path
from threedgen.run.prompts import EXAMPLE_ROOM, normalise_prompt, with_suffix
from threedgen.systems.prompted import PromptedConfig

PRIORS = {
    "orbit": ("mvdream", "stable-diffusion"),
    "angles": ("mvadapter",),
    "panorama": ("mvdiffusion",),
    "sides": ("mvadapter",),
    "path": ("mvdiffusion",),
}
"""Names of the priors that can sample each rig (set of cameras)."""
SAMPLERS = ("mvdream", "stable-diffusion", "mvadapter", "mvdiffusion")
SIDES = ("front", "right", "back", "left", "top", "bottom")  # of an object, in the order of MV-Adapter's views
MAX_PHOTO_ASPECT = 2.5
"""Maximum ratio of width to height of an image that counts as one photo; that of a wide cinema frame is 2.4.

Wider images are mostly panoramas of phones, which are cylindrical, and would be distorted as a perspective image.
"""
Axis = Literal["auto", "+x", "-x", "+y", "-y", "+z", "-z"]
Scale = Annotated[float, Field(ge=0)]
Angles = tuple[Annotated[float, Field(ge=-360, le=360)], Annotated[float, Field(ge=-89.99, le=89.99)]]


def read_lines(value: object) -> object:
    """Validate an option that is a list of texts or the path of a text file: replace a path by the lines of the file.

    A string is a path; the result is a tuple of the lines, without empty lines and comments (#). Other values are
    returned unchanged. Raises ValueError if the file has no other lines or cannot be read.
    """
    if not isinstance(value, str):
        return value
    try:
        text = read_text(user_path(value, "prompts"))
    except ConfigError as error:
        raise ValueError(error.problem) from None
    lines = tuple(line for line in map(str.strip, text.splitlines()) if line and line[0] != "#")
    if not lines:
        raise ValueError("is an empty file, and should have one line per view")
    return lines


Lines = Annotated[tuple[str, ...], BeforeValidator(read_lines)]


def check_ring(views: int, fov: float, name: str) -> None:
    """Raise ValueError if `views` views with a field of view of `fov` degrees do not overlap in a full circle.

    `name` is the option with the number of views, for the message.
    """
    if 360 / views >= fov:
        raise ValueError(f"{name} {views}: views of {fov:g} degrees do not overlap. Try {name}={int(360 // fov) + 1}")


class SamplingConfig(PromptedConfig):
    """Base class of the options of tasks that sample views: conditions (text, image, mesh), steps and guidance.

    Examples are the options of the tasks "sample" and "texture". Subclasses add the option `rig`, the set of cameras,
    and call `check_rig` to reject options that have no effect with the chosen rig.
    """

    prior: Annotated[Any, Component("prior", "mvdream", SAMPLERS)] = Field({}, description="diffusion prior")
    prompts: Lines = Field((), description="one prompt per view of a scene, instead of prompt: text file, or list")
    negative_prompt: str = Field("", description="negative prompt of classifier-free guidance")
    image: str | None = Field(None, min_length=1, description="image file that the samples are conditioned on")
    matte: MatteName = None
    image_prompt: str = Field("", description="prompt of a run with image and without prompt")
    mesh: str | None = Field(None, description=f"mesh file of the object or scene ({', '.join(MESH_FORMATS)})")
    up: Axis = Field("auto", description="up axis of the mesh file; auto: +y for GLB, glTF, OBJ, else +z")
    front: Axis = Field("auto", description="front axis of the mesh file; auto: +z; with z up -y, scenes +x")
    budget: int = Field(
        100_000, ge=4, le=2_000_000, description="objects with more triangles are simplified to this number"
    )
    steps: int = Field(50, ge=1, le=1000, description="DDIM steps")
    eta: float = Field(0.0, ge=0, le=1, description="DDIM noise per step: 0 none, 1 like DDPM")
    guidance_scale: Scale | None = Field(
        None,
        description="classifier-free guidance scale; null: MVDream 5, MVDiffusion 9, MV-Adapter 7, with an image 3",
    )
    synchronise: int = Field(
        0, ge=0, le=100, description="rounds of view synchronisation: merge the views, then resample each by img2img"
    )

    @model_validator(mode="after")
    def _choose_adapter(self) -> Self:
        if isinstance(self.prior, MVAdapterConfig):
            self.__dict__["prior"] = self.prior.with_adapter_file(self.image is not None, self.mesh is not None)
        return self

    def check_rig(self, rig: str, **keys: str) -> None:
        """Raise ValueError if the prior is not for this rig (set of cameras), or an option has no effect with the rig.

        Args:
            rig: name of the rig, such as "orbit". `PRIORS` has the priors of each rig.
            keys: options that only some rigs use. The keywords are names of rigs; a value has the names of the options
                that this rig uses, separated by blanks. Options that are listed for other rigs, but not for `rig`, must
                have their defaults. For example, with orbit="samples prefix", angles="mesh", the option `mesh` has no
                effect with the rig "orbit".
        """
        if self.prior is not None and self.prior.name not in PRIORS[rig]:
            usable = " or ".join(PRIORS[rig])
            raise ValueError(f"prior.name {self.prior.name} cannot sample rig.name {rig}. Choose prior.name={usable}")
        taken = keys.get(rig, "").split()
        for key in sorted({key for names in keys.values() for key in names.split()} - set(taken)):
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has no effect with rig.name={rig}. Remove it")

    @property
    def of_object(self) -> bool:
        return self.prior is None or self.prior.name != "mvdiffusion"

    def guidance(self, default: float) -> float:
        return default if self.guidance_scale is None else self.guidance_scale

    def object_text(self) -> str:
        """Return the prompt, or `image_prompt` if there is an image but no prompt.

        Raises ConfigError if there is neither an image nor a prompt.
        """
        by_image = self.image is not None and not self.prompt.strip()
        return self.image_prompt if by_image else normalise_prompt(self.prompt)

    def scene_texts(self) -> list[str]:
        """Return a list with one prompt for all views, or with one prompt per view.

        Raises ConfigError if there is no prompt, or if both `prompt` and `prompts` are set.
        """
        if self.prompt.strip() and self.prompts:
            raise ConfigError("give either prompt= for all views or prompts= with one line per view", "prompts")
        lines = [normalise_prompt(line, "prompts") for line in self.prompts]
        return lines or [normalise_prompt(self.prompt, example=EXAMPLE_ROOM)]

    def view_texts(self, count: int) -> list[str]:
        """Return ``count`` prompts, one per view: the option `prompts`; if this is empty, ``count`` times `prompt`.

        Raises ConfigError if `prompts` has another number of texts than ``count``.
        """
        texts = self.texts() * (1 if self.prompts else count)
        if len(texts) != count:
            raise ConfigError(f"has {len(texts)} lines for {count} cameras. Or give prompt= for all", "prompts")
        return texts

    def check_adapter(self, control: Literal["rays", "geometry"]) -> None:
        """Check the inputs of a run with MV-Adapter. Raise ConfigError if one is missing or unusable.

        - The run needs a prompt or, in the option `image`, an image file that the views are conditioned on.
        - The image must be readable. Without the option `matte`, its background must be plain or transparent.
        - The option `prior.image`, an image for text to 3D, must not be set.
        - A run with an image, or with `control` "geometry", needs an adapter file (`prior.adapter`): layers added to
          the 2D model. Other runs do not: without it, the 2D model samples each view separately from the prompt.
        - The prompt, if any, must name an object that the prior knows.

        `control` is what describes the views to the adapter: camera rays ("rays") or mesh geometry ("geometry").
        """
        self.object_text()
        if self.prior.image is not None:
            raise ConfigError("is for text to 3D. Give the image as image=FILE", "prior.image")
        condition = "mesh" if control == "geometry" else "image" if self.image is not None else ""
        if condition and self.prior.adapter is None:
            raise ConfigError(f"is missing: the 2D model alone takes no {condition}. Give a file", "prior.adapter")
        if self.image is not None:
            check_image(user_path(self.image, "image"), self.matte)
        if self.prompt.strip():
            self.check_prompt()

    def check_mesh(self) -> None:
        """Raise ConfigError if the mesh file is missing or has an unknown format."""
        path = user_path(str(self.mesh), "mesh")
        if path.suffix.lower() not in MESH_FORMATS:
            raise ConfigError(f"should be a file in one of the formats {', '.join(MESH_FORMATS)}", "mesh", str(path))
        if not path.is_file():
            raise ConfigError("file not found", "mesh", str(path))


class OrbitConfig(Config):
    """Options of evenly spaced views around an object at one elevation, for the task "sample".

    They are the number of views, the elevation, and the azimuth of the first view.
    """

    name: Literal["orbit"] = Field("orbit", description="evenly spaced views around an object")
    n_view: int = Field(4, ge=0, le=64, description="views of one object; 0: one image of the 2D model")
    elevation: float = Field(15.0, ge=-90, le=90, description="degrees")
    azimuth: float = Field(0.0, ge=-360, le=360, description="degrees, of the first view; 0 is the front")


class AnglesConfig(Config):
    """Options of views of an object at given angles, for the task "sample".

    They are the azimuth and elevation of each view, and the image size. The views are sampled by MV-Adapter.
    """

    name: Literal["angles"] = Field("angles", description="views of an object at given angles")
    views: Annotated[tuple[Angles, ...], Field(min_length=1, max_length=64)] | None = Field(
        None, examples=[[[0, 15]]], description="[azimuth, elevation] per view; null: the six of released adapters"
    )
    height: int | None = Field(None, ge=16, le=2048, description="pixels; null: image size of the 2D model")
    width: int | None = Field(None, ge=16, le=2048, description="pixels; null: image size of the 2D model")


class FilmConfig(Config):
    """Options of the video of a panorama, for the task "sample": number of frames, field of view, image size.

    The camera turns once to the right, from the direction of the first view of the panorama.
    """

    frames: int = Field(720, ge=1, le=10_000, description="frames of the turn")
    fps: int = Field(60, ge=1, le=120, description="frames per second")
    fov: float = Field(60.0, gt=1, le=120, description="horizontal field of view, degrees")
    height: int = Field(450, ge=16, le=4096, description="pixels")
    width: int = Field(600, ge=16, le=4096, description="pixels")


class PanoramaConfig(Config):
    """Options of a panorama: views all around one place, sampled from text or around an image, for the task "sample".

    They are the number, the field of view and the size of the views, the field of view of the given image, the height
    of the stitched image, and the video.
    """

    name: Literal["panorama"] = Field("panorama", description="views all around one place")
    views: int = Field(8, ge=2, le=64, description="views, evenly spaced; weights are trained for one number")
    fov: float = Field(90.0, ge=10, le=150, description="field of view of a view, degrees")
    size: int = Field(512, ge=16, le=2048, description="side of a view in pixels")
    image_fov: float | None = Field(None, gt=1, le=150, description="horizontal field of view of the image, degrees")
    height: int = Field(2048, ge=32, le=8192, description="pixels of panorama.png from pole to pole, before cropping")
    film: FilmConfig = FilmConfig()

    @model_validator(mode="after")
    def _closed(self) -> "PanoramaConfig":
        check_ring(self.views, self.fov, "views")
        return self


class SampleConfig(SamplingConfig):
    """Sampling of views of an object, or of a panorama, from a prior.

    Options of the task "sample".
    """

    prefix: str = Field("", description="text before every prompt")
    suffix: str = Field("", description="text after every prompt without 3d, such as ', 3d asset' for MVDream")
    samples: int = Field(1, ge=1, le=64, description="number of objects, one row each")
    rig: Annotated[OrbitConfig | AnglesConfig | PanoramaConfig, Field(discriminator="name")] = OrbitConfig()

    @model_validator(mode="after")
    def _consistent(self) -> "SampleConfig":
        self.check_rig(
            self.rig.name,
            orbit="samples prefix suffix",
            angles="image image_prompt mesh front up budget",
            panorama="prompts prefix suffix image synchronise",
        )
        if isinstance(self.rig, OrbitConfig) and self.rig.n_view and not self.prior.multiview:
            problem = f"rig.n_view {self.rig.n_view}: the prior {self.prior.name} takes no cameras"
            raise ValueError(f"{problem}. Try rig.n_view=0 with samples=4")
        return self

    def texts(self) -> list[str]:
        return [self.prompt] if self.of_object else [self.with_affixes(text) for text in self.scene_texts()]

    def with_affixes(self, text: str) -> str:
        return with_suffix(self.prefix + text, self.suffix)

    def check(self) -> None:
        if isinstance(self.rig, OrbitConfig):
            normalise_prompt(self.prompt)
            self.check_prompt()
        elif isinstance(self.rig, AnglesConfig):
            self.check_adapter("rays" if self.mesh is None else "geometry")
            if self.mesh is not None:
                self.check_mesh()
        else:
            self.view_texts(self.rig.views)
            self.check_prompt()
            if self.image is not None:
                image = load_image(user_path(self.image, "image"), key="image")
                if image.width > MAX_PHOTO_ASPECT * image.height:
                    problem = f"{image.width} x {image.height} pixels are a stitched panorama, not one photo"
                    advice = "Crop its middle, at most twice as wide as high, and set rig.image_fov to that of the crop"
                    raise ConfigError(f"{problem}. {advice}", "image", self.image)
                if self.rig.image_fov is None:
                    example = "67 for a phone's main camera held sideways, 53 upright"
                    raise ConfigError(f"is missing. Give degrees, such as {example}", "rig.image_fov")
        super().check()
