"""Config models of the 3DiM network and of its sampler; no torch here."""

from __future__ import annotations

import os
import shutil
from typing import Literal

from pydantic import Field, model_validator

from threedgen.config import Config, ConfigError


class CamerasConfig(Config):
    """The cameras that a model was trained with, in the units of their poses; kept beside its weights."""

    elevation: tuple[float, float] = Field(description="lowest and highest, degrees above the horizon")
    distance: tuple[float, float] = Field(description="smallest and largest, to the origin")
    focal: float = Field(gt=0, description="focal length in heights of the picture")


class SamplingConfig(Config):
    """How the views of a scene are sampled one after the other (3DiM, sections 2.2 and 7.3)."""

    strategy: Literal["stochastic", "first", "last"] = Field(
        "stochastic",
        description="which view conditions a denoising step: any that is there, drawn anew each time; always the given "
        "one; one of the newest `last`",
    )
    last: int = Field(1, ge=1, description="for the strategy 'last'")
    steps: int = Field(256, ge=1, le=10_000, description="denoising steps of a view; 1 for a one-step regression")
    guidance_scale: float = Field(
        3.0, ge=0, description="eps_u + s (eps_c - eps_u); 1: none, which takes half the time"
    )


class ThreeDiMSamplerConfig(SamplingConfig):
    """A trained 3DiM model, asked for many views of the scene of a given one."""

    name: Literal["threedim"] = Field("threedim", description="novel views from a given view (3DiM)")
    weights: str = Field(
        "embedded",
        min_length=1,
        description="embedded (toybox cars and chairs, 32 pixels), embedded-concat (the "
        "baseline beside it), the folder of a trained model (RUN/model), or the checkpoint of the public port",
    )
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="precision of the network; auto: bf16 where the machine has instructions for it, else fp32"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    compile: bool = Field(
        False,
        description="let torch.compile fuse the network: a minute's wait, then less time a view; on a CPU it "
        "asks for a C++ compiler",
    )

    def check(self) -> None:
        from .folder import check

        check(self.weights)
        if self.compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "c++", "clang++"))):
            raise ConfigError("there is no C++ compiler here; install g++, or leave compile=false", "compile")


class XUNetConfig(Config):
    """The X-UNet (3DiM, supplementary section 6) and what was trained with it. The defaults are the paper's, 471 M."""

    architecture: Literal["xunet", "concat"] = Field(
        "xunet",
        description="xunet: both views pass through one network and attend to each other; concat: the baseline, "
        "an ordinary UNet that gets the condition as further input channels",
    )
    image_size: int | tuple[int, int] = Field(
        128, examples=[[128, 96]], description="pixels per side, or height and width"
    )
    image_channels: int = Field(3, ge=1, le=64, description="3 for RGB")
    channels: int = Field(256, ge=1, le=4096, description="width of the first level")
    channel_mult: tuple[int, ...] = Field((1, 2, 2, 4), description="width of each level, in multiples of channels")
    emb_channels: int = Field(1024, ge=4, le=16384, description="width of the embedding of noise level and pose")
    num_res_blocks: int = Field(3, ge=1, le=16, description="blocks of a level, going down; one more going up")
    attn_resolutions: tuple[int, ...] = Field(
        (8, 16, 32), description="heights of the feature maps at which there is attention"
    )
    attn_middle: bool | None = Field(None, description="attention of the middle block; none: as the last level")
    attn_heads: int = Field(4, ge=1, le=64)
    groups: int = Field(32, ge=1, description="groups of the group norms")
    dropout: float = Field(0.1, ge=0, lt=1)
    origin_degrees: int = Field(15, ge=0, le=24, description="octaves of the encoding of a ray's origin")
    direction_degrees: int = Field(8, ge=0, le=24, description="octaves of the encoding of a ray's direction")
    use_pos_emb: bool = Field(True, description="a learned map, added to the encoded rays")
    use_ref_pose_emb: bool = Field(True, description="learned vectors that tell condition and target apart")
    resample: Literal["after"] = Field("after", description="a resampling block does so at its end, after its sum")
    poses: Literal["absolute", "relative"] = Field(
        "absolute", description="relative: the network is told the poses as seen from the condition's camera"
    )
    prediction: Literal["epsilon", "v_prediction", "sample"] = Field(
        "epsilon", description="what the network predicts; sample (the clean view) is for the one-step regression"
    )
    dropped_logsnr: float = Field(
        -20.0,
        ge=-20,
        le=20,
        description="noise level that the network is told of a dropped condition, which is pure noise; the public "
        "port trained with 20",
    )
    variant: Literal["canonical", "port"] = Field(
        "canonical",
        description="port: with the deviations of the public PyTorch port, for its weights: no swish after FiLM, "
        "the raw log-SNR embedded, symmetric padding of the pose convolutions, 1e-5 in the group norms",
    )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        side = self.image_size
        return (side, side) if isinstance(side, int) else side

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level."""
        return tuple(self.channels * factor for factor in self.channel_mult)

    @property
    def level_attention(self) -> tuple[bool, ...]:
        """Has the level attention?"""
        return tuple(self.size[0] >> level in self.attn_resolutions for level in range(len(self.channel_mult)))

    @property
    def middle_attention(self) -> bool:
        return self.level_attention[-1] if self.attn_middle is None else self.attn_middle

    @property
    def encoding_channels(self) -> int:
        """Channels of the encoded ray of one view's pixel: value, sines and cosines of its origin and direction."""
        return 6 + 6 * (self.origin_degrees + self.direction_degrees)

    @model_validator(mode="after")
    def _fit(self) -> XUNetConfig:
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult {list(self.channel_mult)} should have a number from 1 for each level")
        unit = 2 ** (len(self.channel_mult) - 1)
        if any(not 1 <= side <= 4096 or side % unit for side in self.size):
            sides = " x ".join(map(str, self.size))
            raise ValueError(f"image_size {sides} should be a multiple of {unit}, 2 ** (levels - 1), up to 4096")
        if self.emb_channels % 2:
            raise ValueError(f"emb_channels {self.emb_channels} should be even: half are sines, half cosines")
        attended = [w for w, here in zip(self.widths, self.level_attention, strict=True) if here]
        attended += [self.widths[-1]] if self.middle_attention else []
        for parts, name, widths in ((self.groups, "groups", self.widths), (self.attn_heads, "attn_heads", attended)):
            wrong = [width for width in widths if width % parts]
            if wrong:
                raise ValueError(f"a level is {wrong[0]} channels wide, which should be a multiple of {name} {parts}")
        return self
