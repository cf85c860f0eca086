"""Config models of volume rendering: ray marching, occupancy grid, NeRFs that score views; imports no torch."""

from typing import Annotated, Literal

from pydantic import Field

from threedgen.config import Config, Scheduled
from threedgen.representations.options import BACKEND_HELP, Encoding, require_backend


class MarchConfig(Config):
    """Options of ray marching: where samples are placed on rays, and which are skipped before colours are computed."""

    samples: int = Field(512, ge=1, le=8192, description="samples on the longest ray through the bounding volume")
    eval_samples: int | None = Field(
        None, ge=1, le=8192, description="samples in evaluation renders; null: same as samples"
    )
    bound: Literal["box", "sphere"] = Field("box", description="bounding volume: [-radius, radius]^3 or its ball")
    radius: float = Field(1.0, gt=0, le=100, description="half the side of the bound, as field.radius, world units")
    near: float = Field(0.0, ge=0, le=100, description="minimum distance of samples to the camera, world units")
    alpha_threshold: float = Field(0.0, ge=0, lt=1, description="minimum alpha of shaded samples; 0: all samples")
    early_stop: float = Field(0.0, ge=0, lt=1, description="minimum transmittance of shaded samples; 0: all samples")
    chunk: Literal["auto"] | Annotated[int, Field(ge=1)] | None = Field(
        "auto", description="samples per gradient-checkpointed chunk; auto: from free memory; null: one chunk"
    )
    backend: Literal["auto", "numba", "torch", "triton", "nerfacc"] = Field("auto", description=BACKEND_HELP)

    def check(self) -> None:
        require_backend(self.backend)


class OccupancyConfig(Config):
    """Options of the occupancy grid for empty space skipping (Mueller et al. 2022, appendix; nerfacc's update rule)."""

    resolution: int = Field(32, ge=2, le=512, description="cells per axis")
    interval: int = Field(16, ge=1, description="training steps between updates")
    warmup: int = Field(256, ge=0, description="initial steps whose updates evaluate all cells")
    decay: float = Field(0.95, ge=0, lt=1, description="factor per update: cell = max(decay * old value, new value)")
    threshold: float = Field(0.01, ge=0, lt=1, description="minimum density * step of occupied cells, or their mean")


class ProtocolConfig(Config):
    """Options of a NeRF that is fitted to views of a scene, to score the 3D consistency of the views.

    Scores are comparable only under equal options.
    """

    steps: int = Field(1000, ge=1, description="optimiser steps")
    rays: int | None = Field(None, ge=1, description="random pixels per step; null: all pixels of all views")
    samples: int = Field(256, ge=2, le=8192, description="samples per ray on the diameter of the scene's ball")
    width: int = Field(64, ge=1, le=1024, description="units per hidden layer")
    encoding: Encoding = Field({}, description="position encoding")
    learning_rate: Scheduled = Field({0: 0.01, 100: 0.001}, ge=0, description="AdamW learning rate by step")
    orientation: Scheduled = Field(
        # 0 at first: haze has no surface, and the gradients of its normals would dominate those of the colours
        {"0%": 0, "40%": 0, "60%": 0.01},
        ge=0,
        description="weight of the orientation loss (Ref-NeRF)",
    )
    normals: float = Field(1.0, gt=0, le=1, description="fraction of each step's pixels in the orientation loss")
    sparsity: float = Field(0.0, ge=0, description="weight of the sparsity loss on opacity; not in the paper")
    opaque: float = Field(0.0, ge=0, description="weight of the loss on half-transparent rays; not in the paper")
    chunk: int = Field(8192, ge=1, description="pixels rendered at a time; affects only memory")


class PaperProtocolConfig(ProtocolConfig):
    """Protocol of the 3DiM paper: a NeRF trained for 1000 steps on every pixel of every training view; for GPUs.

    Options, with the paper's values, of a NeRF that is fitted to views of a scene to score their 3D consistency.
    """

    name: Literal["paper"] = "paper"


class SubsampledProtocolConfig(ProtocolConfig):
    """Cheaper protocol: a NeRF with a smaller hash grid, trained on random pixels of the training views.

    Options of a NeRF that is fitted to views of a scene to score their 3D consistency. It takes less time than the
    protocol "paper" (`PaperProtocolConfig`), but the scores of the two protocols are not comparable.
    """

    name: Literal["subsampled"] = "subsampled"
    steps: int = Field(1200, ge=1)
    rays: int | None = Field(4096, ge=1, description="random pixels per step; null: all pixels of all views")
    samples: int = Field(96, ge=2, le=8192, description="samples per ray on the diameter of the scene's ball")
    encoding: Encoding = Field(
        {"n_levels": 8, "log2_hashmap_size": 15, "base_resolution": 8, "per_level_scale": 1.5},
        description="position encoding",
    )
    learning_rate: Scheduled = Field({"0%": 0.01, "100%": 0.001}, ge=0, description="AdamW learning rate by step")
    normals: float = Field(0.125, gt=0, le=1, description="fraction of each step's pixels in the orientation loss")


Protocol = Annotated[PaperProtocolConfig | SubsampledProtocolConfig, Field(discriminator="name")]
