"""Config model of the task that trains MV-Adapter (no torch here)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from threedgen.config import Scheduled
from threedgen.config.errors import called
from threedgen.config.registry import Component
from threedgen.config.sections import CheckpointConfig, LearningConfig, RunConfig, TrainerConfig
from threedgen.guidance.choices import Arrangement, Control, Layout, Shift, Timestep

SIDES = 6
"""Views of an object."""
DROPPED = 0.1


class AdapterTrainingConfig(LearningConfig):
    """How an adapter learns (arXiv 2412.03632, section A.2)."""

    batch: int = Field(8, ge=1, description="objects in a step")
    fresh: int = Field(1, ge=0, description="objects of a step that no step saw before; the rest is seen again")
    first: int = Field(64, ge=1, description="objects to begin with")
    half: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of the steps that see views of half the size, for models that draw in both (prior.draft)",
    )
    view_sets: tuple[tuple[int, ...], ...] = Field(
        (),
        description="numbers of views, of which each step draws a set, such as [[0,1,2,3,4,5],[0,2,3,4],[0,2,3],[0,3]];"
        " none: always all six",
    )
    no_text: float = Field(DROPPED, ge=0, le=1, description="share of captions that are left out, for guidance")
    no_image: float | None = Field(
        None, ge=0, le=1, description="share of pictures that are left out; null: 0.1 where it looks at pictures"
    )
    no_both: float | None = Field(
        None, ge=0, le=1, description="share of which both are left out, beside those; null: 0.1, see no_image"
    )
    snr_gamma: float | None = Field(
        5.0, gt=0, description="squared errors weigh min(SNR, this) / SNR (arXiv 2303.09556); null: all alike"
    )
    learning_rate: Scheduled = Field(5e-5)
    bf16: bool = Field(True, description="bfloat16 autocast, where the machine has instructions for it")
    sheet_objects: int = Field(4, ge=0, le=16, description="held-out objects on the sample sheet")
    sheet_steps: int = Field(30, ge=1, le=1000, description="DDIM steps of the sample sheet")
    guidance_scale: float = Field(3.0, ge=0, description="of the sample sheet")

    @model_validator(mode="after")
    def _sets(self) -> AdapterTrainingConfig:
        for views in self.view_sets:
            if not views or len(set(views)) < len(views) or not set(views) <= set(range(SIDES)):
                raise ValueError(f"view_sets are of different numbers from 0 to {SIDES - 1} (got {list(views)})")
        return self


class TrainMVAdapterConfig(RunConfig):
    """Train an adapter, which makes a 2D model draw several views of an object, and the 2D model stays as it is."""

    start: str = Field(min_length=1, description="the 2D model: a diffusers-format folder, or an id on the hub")
    image_size: int | None = Field(None, ge=8, le=2048, description="pixels of a view; null: what it was trained at")
    objects: Annotated[Any, Component("object-source", default="toybox", path_of="meshes")] = Field(
        {}, description="what it learns from: toybox, or a folder of meshes"
    )
    adapter: str | None = Field(
        None, min_length=1, description="the adapter to begin with: a released one, or that of another run"
    )
    branches: tuple[Literal["mv", "ref"], ...] = Field(
        ("mv", "ref"),
        description="attention that is added: mv between the views, ref to a given picture; without mv each view is "
        "drawn by itself, told its place by the guider (an ablation)",
    )
    arrangement: Arrangement = Field("parallel", description="of the branches; serial: one after the other")
    control: Control = Field("rays", description="what it is told of the views: rays of cameras, or geometry of a mesh")
    guider_downscale: int | None = Field(
        None,
        ge=1,
        description="pixels of a side of what is told that make one feature; null: all of those in a view (released "
        "adapters: 8, of SDXL 16), a divisor of it: smaller maps, by fewer weights",
    )
    guider_fine: bool = Field(
        False,
        description="what is told is heard in the first layer too, as fine as latents are; released adapters have none",
    )
    layout: Layout | None = Field(
        None, description="tokens that attend to each other; null: row, of the geometry of a mesh rowcol"
    )
    anywhere: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the objects whose views are turned by any angle and raised by up to 30 degrees; with 0, "
        "as the released ones, an adapter knows six places",
    )
    fov: float = Field(
        0.0, ge=0, le=100, description="of its cameras, degrees; 0: parallel rays, as the released adapters have them"
    )
    shift: float = Field(8.0, ge=1, le=1000, description="so many times less signal to noise than the 2D model")
    shift_mode: Shift = Field("interpolated", description="at all timesteps alike, or growing with them")
    timestep: Timestep = Field(
        "same",
        description="told to the 2D model, which knows less noise at it: the same, as with the released ones; matched: "
        "the one at which it knew as much, so that it need not be taught",
    )
    training: AdapterTrainingConfig = AdapterTrainingConfig()
    trainer: TrainerConfig = TrainerConfig(max_steps=12_000, gradient_clip_val=1.0, val_check_interval=500)
    checkpoint: CheckpointConfig = CheckpointConfig(seconds=60)

    @property
    def tokens(self) -> Layout:
        """The layout."""
        return self.layout or ("row" if self.control == "rays" else "rowcol")

    @property
    def dropouts(self) -> tuple[float, float, float]:
        """Shares of objects that lose their text, their picture, and both."""
        o, default = self.training, DROPPED if "ref" in self.branches else 0.0
        return o.no_text, default if o.no_image is None else o.no_image, default if o.no_both is None else o.no_both

    @model_validator(mode="after")
    def _fit(self) -> TrainMVAdapterConfig:
        o = self.training
        if len(set(self.branches)) < len(self.branches):
            raise ValueError(f"branches {list(self.branches)} should each be named once")
        if "ref" not in self.branches and (o.no_image is not None or o.no_both is not None):
            raise ValueError(
                f"training.no_image and no_both leave out pictures, at which branches {list(self.branches)} never look;"
                " add ref, or leave them out"
            )
        if self.tokens == "rowcol" and self.control != "geometry":
            raise ValueError("layout rowcol is of the six sides of a mesh, control=geometry; of rays take row or full")
        if self.control == "geometry" and self.anywhere:
            raise ValueError("anywhere is of rays; the sides of a mesh, control=geometry, are always the same")
        if self.tokens == "rowcol" and any(views != tuple(range(SIDES)) for views in o.view_sets):
            raise ValueError("training.view_sets should be left out with layout rowcol, which takes all six views")
        return self

    def check(self) -> None:
        from threedgen.guidance.weights import loading, plugins

        with called("start"):
            loading.check(self.start)
        plugins.check("adapter", self.adapter)
        super().check()
