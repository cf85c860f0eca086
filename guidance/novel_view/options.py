"""Config models of the 3DiM network and its sampler. Imports no torch."""

import os
import shutil
from typing import Literal

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError
from threedgen.guidance.weights.other_models import novel_view_model


class CamerasConfig(Config):
    """Training cameras of a novel-view model; saved beside its weights.

    The settings are the ranges of elevation (degrees) and distance to the origin (world units), and the focal length
    (in image heights).
    """

    elevation: tuple[float, float] = Field(description="lowest and highest elevation, degrees above the horizon")
    distance: tuple[float, float] = Field(description="smallest and largest distance to the origin")
    focal: float = Field(gt=0, description="focal length in image heights")


class SamplingConfig(Config):
    """Options of sampling new views of a scene with a 3DiM model, a diffusion model of a view given another view.

    They set the choice of the given view, the denoising steps and the guidance scale (3DiM, sections 2.2 and 7.3).
    """

    strategy: Literal["stochastic", "first", "last"] = Field(
        "stochastic", description="condition of each denoising step: a random view, the first, or one of the newest"
    )
    last: int = Field(1, ge=1, description="number of newest views for strategy=last")
    steps: int = Field(256, ge=1, le=10_000, description="denoising steps per view; 1 for a one-step regression")
    guidance_scale: float = Field(
        3.0, ge=0, description="classifier-free guidance s of eps_u + s (eps_c - eps_u); 1: none, half the time"
    )


class ThreeDiMSamplerConfig(SamplingConfig):
    """Options of the novel-view sampler that uses a trained 3DiM model, a diffusion model of a view given another view.

    They set the weights, their precision and compilation, and the options of `SamplingConfig`.
    """

    name: Literal["threedim"] = Field("threedim", description="novel views from a given view (3DiM)")
    weights: str = Field(
        "embedded",
        min_length=1,
        description="embedded (toybox cars and chairs, 32 pixels), embedded-concat (its baseline), or RUN/model",
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="precision of the network; auto: bf16 where the device supports it, else fp32"
    )
    compile: bool = Field(
        False, description="torch.compile of the network: a minute's wait, then faster; needs a C++ compiler"
    )

    def check(self) -> None:
        novel_view_model(self.weights)
        if self.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++"))):
            raise ConfigError("there is no C++ compiler here; install g++, or leave compile=false", "compile")


class XUNetConfig(Config):
    """Options of an X-UNet, the network of 3DiM that predicts a view of a scene from another view.

    They set image size, layers, camera encoding and kind of output. The defaults are the paper's (supplementary section
    6), with 471 M parameters.
    """

    architecture: Literal["xunet", "concat"] = Field(
        "xunet",
        description="xunet: views attend to each other in one network; concat: condition as input channels (baseline)",
    )
    image_size: int | tuple[int, int] = Field(
        128, examples=[[128, 96]], description="pixels per side, or height and width"
    )
    channels: int = Field(256, ge=1, le=4096, description="width of the first level")
    channel_mult: tuple[int, ...] = Field((1, 2, 2, 4), description="width of each level in multiples of channels")
    emb_channels: int = Field(1024, ge=4, le=16384, description="width of the embedding of noise level and pose")
    num_res_blocks: int = Field(3, ge=1, le=16, description="blocks per level in the encoder; one more in the decoder")
    attn_resolutions: tuple[int, ...] = Field((8, 16, 32), description="heights of the feature maps with attention")
    attn_heads: int = Field(4, ge=1, le=64, description="attention heads")
    groups: int = Field(32, ge=1, description="groups of the group norms")
    dropout: float = Field(0.1, ge=0, lt=1, description="dropout in the residual blocks")
    origin_degrees: int = Field(15, ge=0, le=24, description="octaves of the encoding of ray origins")
    direction_degrees: int = Field(8, ge=0, le=24, description="octaves of the encoding of ray directions")
    prediction: Literal["epsilon", "v_prediction", "sample"] = Field(
        "epsilon", description="output of the network; sample (the clean view) is for the one-step regression"
    )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images in pixels."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else side

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels at each resolution level of the UNet, from fine to coarse."""
        return tuple(self.channels * factor for factor in self.channel_mult)

    @property
    def level_attention(self) -> tuple[bool, ...]:
        """Whether each level has attention, from fine to coarse; the middle block has it if the coarsest level has."""
        return tuple(self.size[0] >> level in self.attn_resolutions for level in range(len(self.channel_mult)))

    @model_validator(mode="after")
    def _fit(self) -> "XUNetConfig":
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult {list(self.channel_mult)} should have a number from 1 for each level")
        unit = 2 ** (len(self.channel_mult) - 1)
        if any(not 1 <= side <= 4096 or side % unit for side in self.size):
            sides = " x ".join(map(str, self.size))
            raise ValueError(f"image_size {sides} should be a multiple of {unit}, 2 ** (levels - 1), up to 4096")
        if self.emb_channels % 2:
            raise ValueError(f"emb_channels {self.emb_channels} should be even: half are sines, half cosines")
        attending = [width for width, attends in zip(self.widths, self.level_attention, strict=True) if attends]
        every = (self.channels, *self.widths)  # the first layer has `channels` outputs
        for parts, name, widths in ((self.groups, "groups", every), (self.attn_heads, "attn_heads", attending)):
            wrong = [width for width in widths if width % parts]
            if wrong:
                raise ValueError(f"a layer is {wrong[0]} channels wide, which should be a multiple of {name} {parts}")
        return self
