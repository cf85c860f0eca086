"""Config sections of the task `generate`. The module does not import torch."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field, create_model

from threedgen.config import Config, ConfigError, Scheduled, registry, sections
from threedgen.config.registry import Component
from threedgen.run.disk import Tree


class SystemConfig(Config):
    """Config section of the default system, which trains in the phases warm start, distillation and refinement.

    A system is the LightningModule with the training step of the task "generate". The default one has no options; a
    plug-in system adds its own in a subclass.
    """

    name: str = "generate"


class OptimizerConfig(Config):
    """Options of the optimizer, with one learning rate for each group of parameters.

    Section `optimizer` of the task "generate".
    """

    name: str = Field(description="optimizer")
    encoding: Scheduled = Field(0.01, ge=0, description="learning rate of the field's encoding")
    networks: Scheduled = Field(0.001, ge=0, description="learning rate of the field's networks")
    geometry: Scheduled | None = Field(
        None, ge=0, description="learning rate of a mesh's shape, 0: fixed shape; null: same as networks"
    )
    background: Scheduled = Field(0.001, ge=0, description="learning rate of the background")
    distillation: Scheduled = Field(1e-4, ge=0, description="learning rate of the parameters of the loss (vsd)")


class LossConfig(Config):
    """Weights of the loss terms, as numbers or as schedules over the steps.

    Section `loss` of the task "generate". In the phase of distillation, the loss is the weighted sum of these terms.
    """

    distillation: Scheduled = Field(1.0, ge=0, description="weight of the distillation loss")
    orientation: Scheduled = Field(0.0, ge=0, description="weight of the orientation loss (Ref-NeRF); needs normals")
    sparsity: Scheduled = Field(
        0.0, ge=0, description="weight of the sparsity loss on the opacity, against semi-transparent density"
    )
    opaque: Scheduled = Field(0.0, ge=0, description="weight of the entropy of the opacity, against half-transparency")
    z_variance: Scheduled = Field(
        0.0, ge=0, description="weight of the depth variance along rays, against semi-transparent density"
    )

    def check_representation(self, name: str) -> None:
        """Raise ValueError if a loss term has a nonzero weight, but the representation `name` does not have this term.

        Some terms, such as "eikonal", exist only for the representations that add them.
        """
        for term in type(self).model_fields:
            value = getattr(self, term)
            owners = [owner for owner, losses in representation_losses().items() if term in losses]
            if value != 0 and owners and name not in owners:
                problem = f"loss.{term}={value} is no loss of field.name={name}"
                raise ValueError(f"{problem}. Set loss.{term}=0 or field.name={' or '.join(owners)}")

    def __reduce__(self) -> "tuple[Callable[[Tree], LossConfig], tuple[Tree]]":
        return _loss_config, (self.model_dump(),)  # pickle does not find the classes that `_loss_model` makes


@dataclass(frozen=True)
class LossWeights(Component):
    """Annotation of the config section `loss`, which adds weights of registered loss terms to those of `LossConfig`.

    It is written as `loss: Annotated[LossConfig, LossWeights()]`. The fields of `LossConfig` are the weights of the
    loss terms that always exist. Further terms come from registered components: each "regulariser" is one, and a
    representation can have its own, such as "eikonal". When pydantic validates a config, the section becomes an
    instance of a subclass of `LossConfig` with one more field for each further term, whose default is 0. A weight of 0
    that only plug-ins declare is not dumped: a plug-in that a run does not use must not change the run's config.
    """

    kind: str = "regulariser"

    def model(self, value: object) -> type[LossConfig]:
        weights = {name: f"weight of the regulariser {name}" for name in registry.names("regulariser")}
        built_in = set[str]()
        for name, losses in representation_losses().items():
            weights |= losses
            if registry.entry("representation", name).config.startswith("threedgen."):
                built_in |= losses.keys()
        extra = [name for name in weights if name not in LossConfig.model_fields]
        return _loss_model(tuple((name, weights[name], name in built_in) for name in extra))

    def _validate(self, value: object) -> LossConfig:
        return self.model(value).model_validate(value.model_dump() if isinstance(value, BaseModel) else value)


def representation_losses() -> dict[str, dict[str, str]]:
    """Return the loss terms of each registered representation: {representation: {term: help text}}."""
    found = {}
    for name in registry.names("representation"):
        with suppress(Exception):  # a broken plug-in fails only if a config names it
            found[name] = getattr(registry.config_model("representation", name), "losses", {})
    return found


def _loss_config(values: Tree) -> LossConfig:
    return LossWeights()._validate(values)


@cache
def _loss_model(weights: tuple[tuple[str, str, bool], ...]) -> type[LossConfig]:
    fields = {
        name: (Scheduled, Field(0.0, ge=0, description=text, exclude_if=None if built_in else lambda value: value == 0))
        for name, text, built_in in weights
    }
    return create_model("LossConfig", __base__=LossConfig, __doc__=LossConfig.__doc__, **fields)  # type: ignore[call-overload]


class FitConfig(Config):
    """Options of the fit of the object to images, in the warm start and in refinement.

    Section `fit` of the task "generate".
    """

    rays: int = Field(4096, ge=1, description="random pixels per step; meshes: about as many, in whole images")
    distortion: Scheduled = Field(
        0.0, ge=0, description="weight of the distortion loss (Mip-NeRF 360); volumes rendered in one chunk only"
    )
    matte: str | None = Field(
        None,
        min_length=1,
        description="foreground network: toybox-matte, or RUN/matte of train-toybox-matte; null: by border colour",
    )


Sharpen = Annotated[
    float, Field(ge=0, le=4, description="amount of the unsharp mask on the brightness; its blur is 1/64 of the side")
]


class WarmStartConfig(Config):
    """Options of the warm start: before distillation, the field is fitted to views that the prior samples.

    Section `warm_start` of the task "generate". The field is the representation of the object.
    """

    share: float = Field(0.0, ge=0, le=1, description="fraction of trainer.max_steps; 0: none; multi-view priors only")
    groups: int = Field(
        1, ge=1, le=64, description="groups of camera.n_view views; all but the first are conditioned on its views"
    )
    guidance_scale: float = Field(2.0, ge=0, description="classifier-free guidance scale of the completed groups")
    sharpen: Sharpen = 0.0


class RefineConfig(Config):
    """Options of the final rounds in which the prior resamples views by img2img and the object is fitted to them.

    Section `refine` of the task "generate".
    """

    strengths: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(
        (), description="img2img noise strength of each round; []: no refinement"
    )
    share: float = Field(0.2, gt=0, le=1, description="fraction of trainer.max_steps per round")
    groups: int = Field(6, ge=1, le=64, description="groups of camera.n_view views")
    steps: int = Field(25, ge=1, le=1000, description="DDIM steps at strength 1; fewer in proportion below")
    guidance_scale: float = Field(3.0, ge=0, description="classifier-free guidance scale")
    sharpen: Sharpen = 0.0


Azimuth = Annotated[float, Field(ge=-360, le=360)]


class PreviewConfig(Config):
    """Options of the views that the prior samples from the prompt at the beginning of a run.

    Section `preview` of the task "generate".
    """

    enabled: bool = Field(True, description="sample them; a warm start always does")
    steps: int = Field(30, ge=1, le=1000, description="DDIM steps from noise; fewer from a coarse prediction")
    guidance_scale: float = Field(5.0, ge=0, description="classifier-free guidance scale")
    elevation: float = Field(15.0, ge=-90, le=90, description="camera elevation, degrees")
    distance: float = Field(2.6, gt=0, description="distance of preview and refinement cameras, world units")
    fov: float = Field(40.0, gt=0, lt=180, description="field of view of preview and refinement cameras, degrees")
    azimuth: Azimuth | Annotated[tuple[Azimuth, ...], Field(min_length=2, max_length=64)] = Field(
        0.0, description="azimuth of the first view, or a list of that of each; degrees, 0 is the front"
    )


def registered(kind: str) -> AfterValidator:
    """Return a pydantic validator for a tuple of names: each must be a registered component of the kind `kind`."""

    def check(names: tuple[str, ...]) -> tuple[str, ...]:
        for name in names:
            try:
                registry.entry(kind, name)
            except ConfigError as error:
                raise ValueError(error.problem) from None
        return names

    return AfterValidator(check)


class ResultConfig(Config):
    """Options of the files that are written at the end of a run.

    Section `result` of the tasks "generate" and "image-to-3d".
    """

    turntable: sections.OrbitCameraConfig = Field(
        sections.OrbitCameraConfig(n_view=60, distance=2.6, height=256, width=256),
        description="cameras of turntable.mp4",
    )
    fps: int = Field(20, ge=1, le=120, description="frames per second of turntable.mp4")
    mesh_resolution: int = Field(128, ge=16, le=512, description="grid points per axis of marching cubes")
    exporters: Annotated[tuple[str, ...], registered("exporter")] = Field(
        (), description="plug-ins that write further files, by name; task generate only"
    )
