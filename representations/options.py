"""Config classes of the representations. The module does not import torch, so that a config is validated quickly."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from threedgen.config import Config, Scheduled, registry
from threedgen.config.optional import EXTRAS, require
from threedgen.config.sections import Shares


def require_backend(backend: str) -> None:
    """Raise ConfigError if `backend`, the name of a kernel implementation, needs a package that is not installed."""
    if backend in EXTRAS:
        require(backend, f"backend: {backend}", "choose backend=auto")


BACKEND_HELP = "kernel implementation; auto: numba on a CPU, triton (if installed) on a GPU, else torch"


class HashGridConfig(Config):
    """Multi-resolution hash grid (Mueller et al. 2022, "Instant NGP") with the formulas of tiny-cuda-nn.

    Options of the encoding "hashgrid": number and resolutions of levels, features and entries of a level, kernels.
    """

    name: Literal["hashgrid"] = "hashgrid"
    n_levels: int = Field(16, ge=1, le=32, description="number of resolutions")
    n_features: int = Field(2, ge=1, le=8, description="features per table entry")
    log2_hashmap_size: int = Field(19, ge=4, le=24, description="log2 of the maximum number of entries per level")
    base_resolution: int = Field(16, ge=2, le=512, description="resolution of the coarsest level")
    per_level_scale: float = Field(1.447269237440378, ge=1.0, le=4.0, description="resolution ratio between levels")
    backend: Literal["auto", "numba", "torch", "triton", "tinycudann"] = Field("auto", description=BACKEND_HELP)

    def check(self) -> None:
        require_backend(self.backend)

    @model_validator(mode="after")
    def _finest(self) -> "HashGridConfig":
        finest = self.base_resolution * self.per_level_scale ** (self.n_levels - 1)
        if finest > 2**20:  # float32 cannot resolve smaller cells
            largest = (2**20 / self.base_resolution) ** (1 / (self.n_levels - 1))
            grid = f"{self.n_levels} levels with per_level_scale={self.per_level_scale:g} have up to {finest:.3g} cells"
            raise ValueError(f"{grid} per axis, more than {2**20}. Set per_level_scale to at most {largest:.3g}.")
        return self


class FieldConfig(Config):
    """Base class of the representations' configs. Subclasses add `radius`, half the side of the object's cube.

    Attributes:
        has_normals: True if the renders of this representation have normals.
        splats: True if the object consists of splats (3D Gaussians). It can then start from a point cloud file, and the
            exporter `splats` can write it.
        losses: name -> help text of the losses that only this representation has. Their weights are keys of the section
            `loss`.
    """

    has_normals: ClassVar[bool] = True
    splats: ClassVar[bool] = False
    losses: ClassVar[dict[str, str]] = {}

    name: str = Field(description="representation")

    @property
    def volume(self) -> "FieldConfig":
        """Config of the field that gives colours at points: for a DMTet mesh the option `paint`, else this config."""
        return self

    def check_precision(self, precision: str) -> None:
        """Raise ValueError if the representation cannot be trained with this value of `trainer.precision`.

        This default accepts every value.
        """


Encoding = Annotated[Any, registry.Component("encoding", default="hashgrid")]


class EncodedFieldConfig(FieldConfig):
    """Base class of the configs of fields that are made of a position encoding and small MLPs.

    Options: half the side of the field's cube, position encoding, size of the MLPs, number of output features.
    """

    radius: float = Field(1.0, gt=0, le=100, description="half the side of the field's cube, world units")
    encoding: Encoding = Field({}, description="position encoding")
    levels: Scheduled | None = Field(None, ge=1, description="active hash grid levels, coarse first; null: all")
    width: int = Field(64, ge=1, le=1024, description="units per hidden layer")
    hidden_layers: int = Field(1, ge=1, le=8, description="hidden layers per MLP")
    n_features: int = Field(3, ge=3, le=64, description="output features per point; the first three are for RGB")

    @model_validator(mode="after")
    def _levels(self) -> "EncodedFieldConfig":
        if self.levels is not None and not hasattr(self.encoding, "n_levels"):
            raise ValueError(f"levels needs a hash grid: encoding.name={self.encoding.name}. Set levels=null.")
        return self


class NGPConfig(EncodedFieldConfig):
    """Instant-NGP field: an encoding, a small MLP for density and one for features (colours before shading).

    Options of the representation "ngp": size of the MLPs, the density's activation, and the initial blob of density.
    """

    name: Literal["ngp"] = "ngp"
    feature_hidden_layers: int | None = Field(None, ge=1, le=8, description="of the feature MLP; null: hidden_layers")
    shared_mlp: bool = Field(False, description="one MLP for density and features; faster on a CPU")
    density_activation: Literal["softplus", "exp", "relu"] = "softplus"
    density_scale: float = Field(1.0, gt=0, le=1000, description="factor on the density after the activation")
    density_bias: float = Field(0.0, ge=-100, le=100, description="constant added before the activation")
    density_blob: Literal["blob_magic3d", "blob_dreamfusion", "none"] = Field(
        "blob_magic3d", description="initial blob at the origin, added before the activation"
    )
    density_blob_scale: float = Field(10.0, ge=0, le=1000, description="blob height before the activation")
    density_blob_std: float = Field(0.5, gt=0, le=100, description="size of the blob, world units")


class SDFConfig(EncodedFieldConfig):
    """Signed distance field rendered with NeuS's opacity (Wang et al. 2021): a surface, no semi-transparent density.

    Options of the representation "sdf": radius of the initial ball, the sharpness, and how normals are computed.
    """

    losses: ClassVar[dict[str, str]] = {"eikonal": "weight of the eikonal loss: the distance's gradient has length 1"}

    name: Literal["sdf"] = "sdf"
    sphere: float = Field(0.5, gt=0, le=100, description="radius of the initial ball, world units")
    log_sharpness: float = Field(3.0, ge=0, le=10, description="initial log s; the surface is about 1/s thick")
    lr_sharpness: Scheduled | None = Field(None, ge=0, description="learning rate of log s; null: optimizer.networks")
    cosine: Scheduled = Field({"0%": 0.0, "100%": 1.0}, ge=0, le=1, description="weight of the surface angle (NeuS)")
    normal_eps: Literal["cell"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "cell", description="finite difference step of the gradient, world units; cell: finest active cell"
    )

    @model_validator(mode="after")
    def _cell(self) -> "SDFConfig":
        if self.normal_eps == "cell" and not hasattr(self.encoding, "n_levels"):
            raise ValueError(f"normal_eps=cell needs a hash grid, not {self.encoding.name}. Set normal_eps=0.01.")
        if self.sphere >= self.radius:
            raise ValueError(f"sphere={self.sphere:g} is not smaller than radius={self.radius:g}. Reduce sphere.")
        return self


class DMTetConfig(FieldConfig):
    """DMTet mesh: distances on a tetrahedral grid, coloured by a field (Shen et al. 2021; second stage of Magic3D).

    Options of the representation "dmtet": grid resolution, initial surface, and `paint`, the field that gives colours.
    """

    losses: ClassVar[dict[str, str]] = {
        "normal_consistency": "weight of the difference of normals along the edges of a mesh",
        "laplacian": "weight of the distance of a mesh's vertices to the mean of their neighbours",
    }

    name: Literal["dmtet"] = "dmtet"
    resolution: int = Field(64, ge=2, le=256, description="grid cells per axis, six tetrahedra each")
    sphere: float = Field(0.5, gt=0, le=100, description="radius of the initial ball, world units; stage 1 only")
    level: Literal["auto"] | Annotated[float, Field(gt=0)] = Field(
        "auto", description="density threshold of the previous stage's surface; auto: mean density of non-empty points"
    )
    paint: Annotated[EncodedFieldConfig, registry.Component("representation", default="ngp", only=("ngp", "sdf"))] = (
        registry.SECTION
    )

    @property
    def radius(self) -> float:
        """Half the side of the grid's cube, in world units."""
        return self.paint.radius

    @property
    def volume(self) -> FieldConfig:
        return self.paint


class GaussiansConfig(FieldConfig):
    """Anisotropic 3D Gaussians (Kerbl et al. 2023, "3D Gaussian Splatting"); their number changes in training.

    Options of the representation "gaussians": initial number and opacity, densification, learning rates, kernels.
    """

    has_normals: ClassVar[bool] = False
    splats: ClassVar[bool] = True
    losses: ClassVar[dict[str, str]] = {
        "gaussian_opacity": "weight of the mean opacity of 3D Gaussians",
        "gaussian_scale": "weight of the mean standard deviation of 3D Gaussians, world units",
    }

    name: Literal["gaussians"] = "gaussians"
    radius: float = Field(1.0, gt=0, le=100, description="half the side of the object's cube, world units")
    count: int = Field(
        5000, ge=1, le=10_000_000, description="initial number of Gaussians; not used if start is a point cloud file"
    )
    sphere: float = Field(0.5, gt=0, le=100, description="radius of the initial ball, world units")
    opacity: float = Field(0.1, gt=0, lt=1, description="initial opacity")
    sh_degree: Literal[0, 1] = Field(0, description="degree of the spherical harmonics; 0: one colour per Gaussian")
    max_size: float = Field(0.1, gt=0, le=1, description="largest standard deviation, as a fraction of radius")
    densify: Literal["adaptive", "mcmc", "none"] = Field(
        "adaptive", description="adaptive: clone, split, prune; mcmc: relocation and noise; none: constant number"
    )
    interval: int = Field(100, ge=1, description="steps between densifications")
    densify_range: Shares = Field((0.0, 0.6), description="part of the run with densification, fractions of its steps")
    max_count: int = Field(20_000, ge=1, le=10_000_000, description="maximum number of Gaussians")
    split_gradient: float = Field(
        0.0002,
        gt=0,
        description="adaptive: image position gradient, image spans [-1, 1], above which Gaussians are cloned or split",
    )
    clone_size: float = Field(
        0.01,
        ge=0,
        le=1,
        description="adaptive: largest standard deviation that is cloned, not split; fraction of radius",
    )
    min_opacity: float = Field(
        0.005, gt=0, lt=0.5, description="opacity below which a Gaussian is removed or relocated"
    )
    reset_interval: int | None = Field(
        3000, ge=1, description="adaptive: steps between resets of the opacity to twice min_opacity; null: none"
    )
    noise: float = Field(5e5, ge=0, description="mcmc: position noise, as a multiple of learning rate times covariance")
    lr_means: Scheduled = Field(
        {"0%": 1.6e-4, "100%": 1.6e-6}, ge=0, description="learning rate of positions, world units"
    )
    lr_scales: Scheduled = Field(0.005, ge=0, description="learning rate of log standard deviations")
    lr_quaternions: Scheduled = Field(0.001, ge=0, description="learning rate of rotations")
    lr_opacities: Scheduled = Field(0.05, ge=0, description="learning rate of opacity logits")
    lr_colours: Scheduled = Field(0.0025, ge=0, description="learning rate of spherical harmonics")
    backend: Literal["auto", "numba", "torch", "gsplat"] = Field(
        "auto", description="kernel implementation; auto: numba on a CPU, gsplat (if installed) on a GPU, else torch"
    )

    def check(self) -> None:
        require_backend(self.backend)

    def check_precision(self, precision: str) -> None:
        if precision == "16-mixed" and self.densify == "adaptive":
            problem = "field.densify=adaptive with trainer.precision=16-mixed, whose loss scale changes its threshold"
            raise ValueError(f"{problem}. Set trainer.precision=32-true or field.densify=mcmc")

    @model_validator(mode="after")
    def _sizes(self) -> "GaussiansConfig":
        if self.count > self.max_count:
            raise ValueError(f"count={self.count} is more than max_count={self.max_count}. Set max_count={self.count}.")
        if self.sphere > self.radius:
            raise ValueError(f"sphere={self.sphere:g} is larger than radius={self.radius:g}. Reduce sphere.")
        return self


Channel = Annotated[float, Field(ge=0, le=1)]


class SolidBackgroundConfig(Config):
    """Background of one colour, fixed or random per training batch.

    Options of the background "solid": the colour, and the kind and range of random colours.
    """

    name: Literal["solid"] = "solid"
    color: tuple[Channel, Channel, Channel] = Field((0.5, 0.5, 0.5), description="RGB in [0, 1]; one number: grey")
    random: Literal["none", "grey", "color"] = Field("none", description="random grey or colour per training batch")
    random_range: Shares = Field((0.0, 1.0), description="range of the random values, in [0, 1]")

    @field_validator("color", mode="before")
    @classmethod
    def _grey(cls, value: object) -> object:
        return (value, value, value) if isinstance(value, int | float) else value


class NeuralBackgroundConfig(Config):
    """Neural environment map: a small MLP from ray direction to colour.

    Options of the background "neural": probability that a training batch has one random colour instead.
    """

    name: Literal["neural"] = "neural"
    random_probability: float = Field(0.5, ge=0, le=1, description="probability of one random colour per batch")


class MaterialConfig(Config):
    """Unlit material: the colour is the sigmoid of the field's features.

    Options of the material "none", and base class of the options of the other materials.
    """

    name: str = Field(description="material")


class DiffuseMaterialConfig(MaterialConfig):
    """Albedo lit by a point light and an ambient light (Poole et al. 2022, "DreamFusion", section 3.1).

    Options of the material "diffuse": which training steps are lit, and the intensities of the lights.
    """

    name: Literal["diffuse"] = "diffuse"
    ambient_only_steps: int = Field(5000, ge=0, description="first step with lighting; earlier steps render the albedo")
    diffuse_probability: float = Field(0.75, ge=0, le=1, description="probability that a training step is lit")
    textureless_probability: float = Field(0.5, ge=0, le=1, description="probability of white albedo in a lit step")
    soft_shading: bool = Field(True, description="diffuse light u and ambient light 1 - u, random u per training step")
    ambient: float = Field(1.0, ge=0, le=10, description="ambient light without soft_shading")
    diffuse: float = Field(0.0, ge=0, le=10, description="point light without soft_shading")
