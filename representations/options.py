"""Options of everything in this folder: typed, bounded, free of torch, so that they are checked at once."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from threedgen.config import Config, Scheduled, registry
from threedgen.config.optional import EXTRAS, require
from threedgen.config.sections import Shares


def require_backend(backend: str) -> None:
    """Raises ConfigError for a back end that is not installed."""
    if backend in EXTRAS:
        require(backend, f"backend: {backend}", "choose backend=auto")


# --- encodings of a point --------------------------------------------------------------------------


class HashGridConfig(Config):
    """Multi-resolution hash grid (Mueller et al. 2022, "Instant NGP"), as in tiny-cuda-nn."""

    name: Literal["hashgrid"] = "hashgrid"
    n_levels: int = Field(16, ge=1, le=32, description="number of resolutions")
    n_features: int = Field(2, ge=1, le=8, description="features stored per entry")
    log2_hashmap_size: int = Field(19, ge=4, le=24, description="at most 2**this entries per level")
    base_resolution: int = Field(16, ge=2, le=512, description="resolution of the coarsest level")
    per_level_scale: float = Field(1.447269237440378, ge=1.0, le=4.0, description="growth of the resolution per level")
    backend: Literal["auto", "numba", "torch", "triton", "tinycudann"] = Field(
        "auto",
        description="auto: numba for float32 on a CPU, triton on a GPU where it is installed, else torch; tinycudann: "
        "where it is installed",
    )

    def check(self) -> None:
        require_backend(self.backend)

    @model_validator(mode="after")
    def _finest(self) -> HashGridConfig:
        finest = self.base_resolution * self.per_level_scale ** (self.n_levels - 1)
        if finest > 2**20:  # beyond it float32 cannot tell the cells apart
            largest = (2**20 / self.base_resolution) ** (1 / (self.n_levels - 1))
            raise ValueError(
                f"per_level_scale {self.per_level_scale:g} makes the finest of {self.n_levels} levels "
                f"{finest:.3g} cells wide, more than {2**20}; at most {largest:.3g} would do"
            )
        return self


class FrequencyConfig(Config):
    """Sines and cosines of octaves (Tancik et al. 2020, "Fourier Features"), without the factor pi."""

    name: Literal["frequency"] = "frequency"
    n_octaves: int = Field(4, ge=1, le=16, description="frequencies 1, 2, 4, ..., 2**(n_octaves-1)")


# --- fields ------------------------------------------------------------------------------------------


class FieldConfig(Config):
    """What the config of every field says, beside a ``name`` and the ``radius`` of its cube.

    distance: does the field know the distance to its surface, so that its gradient should have length 1?
    mesh: is it a surface that is rasterised, not a volume that rays are followed through?
    """

    distance: ClassVar[bool] = False
    mesh: ClassVar[bool] = False

    @property
    def volume(self) -> FieldConfig:
        """The field that is asked for colours at points: itself, or the one that paints a mesh."""
        return self


class EncodedFieldConfig(FieldConfig):
    """What fields of an encoding and small networks have."""

    name: str = Field(description="which field")
    radius: float = Field(1.0, gt=0, le=100, description="the field lives in the cube [-radius, radius]^3")
    encoding: Annotated[Any, registry.Component("encoding", default="hashgrid")] = Field(
        {}, description="what turns a point into the input of the MLPs"
    )
    levels: Scheduled | None = Field(
        None, ge=1, description="how many levels of a hash grid count, coarse ones first, by step; null: all"
    )
    width: int = Field(64, ge=1, le=1024, description="neurons of a hidden layer")
    hidden_layers: int = Field(1, ge=1, le=8)
    n_features: int = Field(3, ge=1, le=64, description="features per point, 3 for a colour")

    @model_validator(mode="after")
    def _levels(self) -> EncodedFieldConfig:
        if self.levels is not None and not hasattr(self.encoding, "n_levels"):
            raise ValueError(
                f"levels are those of a hash grid, and the encoding is {self.encoding.name}: set levels=null"
            )
        return self


class NGPConfig(EncodedFieldConfig):
    """Instant-NGP field: an encoding, a small MLP for density and one for features (unshaded colours)."""

    name: Literal["ngp"] = "ngp"
    feature_hidden_layers: int | None = Field(
        None, ge=1, le=8, description="of the MLP for features, if it is another; null: as many"
    )
    shared_mlp: bool = Field(False, description="one MLP with 1 + n_features outputs (faster on a CPU) in place of two")
    density_activation: Literal["softplus", "exp", "relu"] = "softplus"
    density_scale: float = Field(1.0, gt=0, le=1000, description="factor after the activation")
    density_bias: float = Field(0.0, ge=-100, le=100, description="constant added before the activation")
    density_blob: Literal["blob_magic3d", "blob_dreamfusion", "none"] = Field(
        "blob_magic3d", description="bump added before the activation, so that an object starts in the middle"
    )
    density_blob_scale: float = Field(10.0, ge=0, le=1000)
    density_blob_std: float = Field(0.5, gt=0, le=100, description="size of the bump in world units")
    normal: Literal["analytic", "central", "forward"] = Field(
        "analytic", description="gradient of the density, or finite differences with 6 or 3 extra evaluations"
    )
    normal_eps: float = Field(0.01, gt=0, le=1, description="step of the finite differences in world units")


class SDFConfig(EncodedFieldConfig):
    """Signed distance to a surface, seen through NeuS's opacity (Wang et al. 2021): a surface, not a fog."""

    distance: ClassVar[bool] = True

    name: Literal["sdf"] = "sdf"
    sphere: float = Field(0.5, gt=0, le=100, description="radius of the ball that it begins as, in world units")
    log_sharpness: float = Field(
        3.0, ge=0, le=10, description="log of the sharpness s that it begins with; the surface is about 1/s thick"
    )
    cosine: Scheduled = Field(
        {"0%": 0.0, "100%": 1.0},
        ge=0,
        le=1,
        description="how far the angle between ray and surface counts for the opacity; below 1 is softer",
    )
    normal_eps: Literal["cell"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "cell", description="step of the differences for the gradient, world units; cell: of the finest level in use"
    )

    @model_validator(mode="after")
    def _cell(self) -> SDFConfig:
        if self.normal_eps == "cell" and not hasattr(self.encoding, "n_levels"):
            raise ValueError(
                f"normal_eps is a number for the encoding {self.encoding.name}, which has no cells; try 0.01"
            )
        if self.sphere >= self.radius:
            raise ValueError(f"sphere {self.sphere:g} should be smaller than the field's radius {self.radius:g}")
        return self


class DMTetConfig(FieldConfig):
    """A mesh: distances on a tetrahedral grid, coloured by another field (Shen et al. 2021; Magic3D's second stage)."""

    mesh: ClassVar[bool] = True

    name: Literal["dmtet"] = "dmtet"
    resolution: int = Field(64, ge=2, le=256, description="small cubes along an edge, of six tetrahedra each")
    sphere: float = Field(0.5, gt=0, le=100, description="radius of the ball that it begins as, without a stage before")
    level: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="density of the stage before where the surface is; auto: the mean of what is not empty"
    )
    paint: Annotated[Any, registry.Component("representation", default="ngp", only=("ngp", "sdf"))] = Field(
        {}, description="the field that colours it: that of the stage before, with its options"
    )

    @property
    def radius(self) -> float:
        """Of the world that the grid lies in."""
        return self.paint.radius

    @property
    def volume(self) -> FieldConfig:
        return self.paint


# --- backgrounds -------------------------------------------------------------------------------------

Share = Annotated[float, Field(ge=0, le=1)]


class SolidBackgroundConfig(Config):
    """One colour behind everything."""

    name: Literal["solid"] = "solid"
    color: tuple[Share, Share, Share] = Field((0.5, 0.5, 0.5), description="three numbers in [0, 1], or one for a grey")
    random: Literal["none", "grey", "color"] = Field(
        "none", description="in training: a random grey or colour, one for the whole batch"
    )
    random_range: Shares = Field((0.0, 1.0), description="range of the random values")

    @field_validator("color", mode="before")
    @classmethod
    def _grey(cls, value: object) -> object:
        return (value, value, value) if isinstance(value, int | float) else value


class NeuralBackgroundConfig(Config):
    """A small network from direction to colour ("neural environment map")."""

    name: Literal["neural"] = "neural"
    width: int = Field(16, ge=1, le=1024, description="neurons of a hidden layer")
    hidden_layers: int = Field(2, ge=1, le=8)
    random_probability: float = Field(
        0.5, ge=0, le=1, description="in training: how often one random colour replaces it for the whole batch"
    )


# --- volume rendering ---------------------------------------------------------------------------------------


class MarchConfig(Config):
    """Where samples are put on rays, and which of them are worth shading."""

    sampler: Literal["occupancy", "stratified"] = Field(
        "occupancy",
        description="occupancy: a fixed step, empty cells skipped; stratified: equal parts of every chord",
    )
    samples: int = Field(512, ge=1, le=8192, description="samples on the longest chord; stratified: on each")
    shown: int | None = Field(
        None,
        ge=1,
        le=8192,
        description="as samples, in pictures that nothing learns from: long steps draw rings on dense matter; null: as "
        "many",
    )
    bound: Literal["box", "sphere"] = Field("box", description="the cube [-radius, radius]^3 or its ball")
    radius: float = Field(1.0, gt=0, le=100, description="half the side of the cube: the radius of the field")
    near: float = Field(0.0, ge=0, le=100, description="no samples closer to the camera than this")
    jitter: bool = Field(True, description="in training: shift each ray's samples by a random part of a step")
    alpha_threshold: float = Field(
        0.0, ge=0, lt=1, description="do not shade samples more transparent than this (0: shade all)"
    )
    early_stop: float = Field(
        0.0, ge=0, lt=1, description="do not shade samples that less of the light than this reaches (0: all)"
    )
    chunk: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(
        "auto",
        description="samples whose graph is held at a time: a training render with more is made twice, in chunks, with "
        "the same gradient; auto: as many as fit into a quarter of the free memory; null: all",
    )
    backend: Literal["auto", "numba", "torch", "triton", "nerfacc"] = Field(
        "auto",
        description="auto: numba on a CPU, triton on a GPU where it is installed, else torch; nerfacc: where it is "
        "installed",
    )

    def of_pictures(self) -> MarchConfig:
        """The same with the steps of pictures that nothing learns from."""
        return self if self.shown is None else self.model_copy(update={"samples": self.shown})

    def check(self) -> None:
        require_backend(self.backend)


class OccupancyConfig(Config):
    """Grid of cells that may hold matter (Mueller et al. 2022, appendix; nerfacc's update rule)."""

    resolution: int = Field(32, ge=2, le=512, description="cells along a side of the cube")
    interval: int = Field(16, ge=1, description="steps between updates")
    warmup: int = Field(256, ge=0, description="before this step every cell is looked at, later some of them")
    fraction: float = Field(0.25, gt=0, le=1, description="part of the cells looked at after the warm-up")
    decay: float = Field(0.95, ge=0, lt=1, description="a cell keeps the larger of decay * old and new value")
    threshold: float = Field(
        0.01, ge=0, lt=1, description="a cell is full if density * step exceeds min(this, the mean cell)"
    )


# --- materials ----------------------------------------------------------------------------------------------


class NoMaterialConfig(Config):
    """The field's features are the colour: no light, no normals."""

    name: Literal["none"] = "none"


class DiffuseMaterialConfig(Config):
    """Albedo, lit by a point light and from everywhere (Poole et al. 2022, "DreamFusion", section 3.1)."""

    name: Literal["diffuse"] = "diffuse"
    ambient_only_steps: int = Field(5000, ge=0, description="before this step nothing is lit")
    diffuse_probability: float = Field(0.75, ge=0, le=1, description="later: how often a step is lit")
    textureless_probability: float = Field(0.5, ge=0, le=1, description="how often what is lit is white")
    soft_shading: bool = Field(
        True, description="in training: diffuse light u, ambient light 1 - u with a random u for each step"
    )
    ambient: float = Field(1.0, ge=0, le=10, description="light from everywhere, without soft shading")
    diffuse: float = Field(0.0, ge=0, le=10, description="light of the point, without soft shading")


# --- fits to views ------------------------------------------------------------------------------------------------


class ProtocolConfig(Config):
    """How a field is fitted to views: scores can be compared only if all of this is the same."""

    steps: int = Field(1000, ge=1)
    rays: int | None = Field(None, ge=1, description="pixels of a step, drawn from all views; null: every pixel")
    samples: int = Field(256, ge=2, le=8192, description="on the diameter of the ball in which the scene is")
    width: int = Field(64, ge=1, le=1024)
    density_layers: int = Field(1, ge=1, le=8, description="hidden layers of the MLP for density")
    colour_layers: int = Field(2, ge=1, le=8, description="hidden layers of the MLP for colour")
    encoding: Annotated[Any, registry.Component("encoding", default="hashgrid")] = Field({})
    learning_rate: Scheduled = Field({0: 0.01, 100: 0.001}, ge=0)
    weight_decay: float = Field(0.1, ge=0, description="of AdamW")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")
    distortion: float = Field(0.01, ge=0, description="weight of Mip-NeRF 360's loss; the paper does not say it")
    orientation: Scheduled = Field(
        {"0%": 0, "40%": 0, "60%": 0.01},
        ge=0,
        description="weight of Ref-NeRF's loss; the paper does not say it. Not from the beginning: fog has no surface, "
        "and the gradients of its normals would drown those of the colours",
    )
    normals: float = Field(1.0, gt=0, le=1, description="share of the pixels of a step that this loss looks at")
    sparsity: float = Field(0.0, ge=0, description="weight of a loss of all matter in sight; not in the paper")
    opaque: float = Field(0.0, ge=0, description="weight of a loss of matter half in sight; not in the paper")
    chunk: int = Field(8192, ge=1, description="pixels rendered at a time, which only takes memory")


class PaperProtocolConfig(ProtocolConfig):
    """3DiM's own: every pixel of every training view in each of 1000 steps. For GPUs."""

    name: Literal["paper"] = "paper"


class SubsampledProtocolConfig(ProtocolConfig):
    """For small machines: random pixels and a smaller grid. Its scores compare with each other only."""

    name: Literal["subsampled"] = "subsampled"
    steps: int = Field(1200, ge=1)
    rays: int | None = Field(4096, ge=1, description="pixels of a step, drawn from all views; null: every pixel")
    samples: int = Field(96, ge=2, le=8192, description="on the diameter of the ball in which the scene is")
    encoding: Annotated[Any, registry.Component("encoding", default="hashgrid")] = Field(
        {"n_levels": 8, "log2_hashmap_size": 15, "base_resolution": 8, "per_level_scale": 1.5}
    )
    learning_rate: Scheduled = Field({"0%": 0.01, "100%": 0.001}, ge=0)
    normals: float = Field(0.125, gt=0, le=1, description="share of the pixels of a step that orientation looks at")
