"""Registry of components: classes and functions that a config selects by kind and name.

`prior: {name: mvdream}` selects the component of the kind "prior" (diffusion model) with the name "mvdream". The
registry has the import paths of a component's implementation and config model, because a component is imported only
when a config selects it. Modules of config models do not import torch.
"""

import importlib
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, ValidationError
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

from threedgen.config.errors import ConfigError, did_you_mean, nearest


@dataclass(frozen=True)
class Entry:
    """Component (class or function that a config selects by name), as two import paths "module:attribute".

    Attributes:
        implementation: path of the component's class or function.
        config: path of its config model.
    """

    implementation: str
    config: str


# kind, name, implementation, config model; paths below threedgen
_ENTRIES = """\
# function run(config, resume: Path | None, quiet: bool) -> exit code | None; a RunConfig gets its folder before
task  generate           systems.generate.task:run               systems.generate.options:GenerateConfig
task  batch              systems.batch.jobs:run                  systems.batch.options:BatchConfig
task  sample             systems.sample.task:run                   systems.sample.options:SampleConfig
task  train-base         toybox.training.task:run_base       toybox.training.options:TrainBaseConfig
task  train-prior        toybox.training.task:run_prior      toybox.training.options:TrainPriorConfig
task  train-own-prior    toybox.training.task:run_own         toybox.training.options:TrainOwnPriorConfig
task  train-matte        toybox.training.matte:run                 toybox.training.options:TrainMatteConfig
task  train-mvdiffusion  systems.train.mvdiffusion:run           systems.train.options:TrainMVDiffusionConfig
task  train-mvadapter    systems.train.mvadapter:run             systems.train.options:TrainMVAdapterConfig
task  mvdreambooth       systems.dreambooth.task:run             systems.dreambooth.options:MVDreamBoothConfig
task  train-probe        toybox.evaluation.training:run_probe    toybox.evaluation.options:TrainProbeConfig
task  train-identity     toybox.evaluation.identity:run toybox.evaluation.options:TrainIdentityConfig
task  evaluate-prior     toybox.evaluation.prior_score:run       toybox.evaluation.options:EvaluatePriorConfig
task  evaluate-3d        toybox.evaluation.object_score:run      toybox.evaluation.options:Evaluate3DConfig
task  compare-3d         toybox.evaluation.compare:run           toybox.evaluation.options:Compare3DConfig
task  evaluate-subjects  toybox.evaluation.subjects:run     toybox.evaluation.options:EvaluateSubjectsConfig
task  evaluate-own-prior evaluation.prior:run                   evaluation.options:EvaluateOwnPriorConfig
task  evaluate-views     evaluation.views.run:run                evaluation.views.options:EvaluateViewsConfig
task  consistency        evaluation.consistency.run:run          evaluation.consistency.options:ConsistencyConfig
task  janus-meter        evaluation.janus.meter:run              evaluation.janus.options:JanusMeterConfig
task  janus-score        evaluation.janus.benchmark:score        evaluation.janus.options:JanusScoreConfig
task  janus-benchmark    evaluation.janus.benchmark:run          evaluation.janus.options:JanusBenchmarkConfig
task  train-threedim     systems.novel_view.task:run             systems.novel_view.options:TrainThreeDiMConfig
task  image-to-3d        systems.novel_view.image_to_3d:run      systems.novel_view.options:ImageTo3DConfig
task  texture            systems.texture.task:run              systems.texture.options:TextureConfig
task  report             viewer.report:run                       viewer.options:ReportConfig
task  gallery            viewer.gallery:run                      viewer.options:GalleryConfig
task  studio             studio.server:run                       studio.options:StudioConfig
task  export             export.task:run                         export.options:ExportConfig
task  make-srn-toybox    toybox.data.make_srn:run                       toybox.options:MakeSRNToyboxConfig
task  make-toy-rooms     toybox.data.make_rooms:run              toybox.options:MakeToyRoomsConfig
task  make-toybox-assets toybox.data.objects:run_assets        toybox.options:MakeToyboxAssetsConfig
task  make-asset-views   data.assets.make:run                    data.assets.options:MakeAssetViewsConfig
task  toybox-subjects    toybox.data.subjects:run                toybox.options:ToyboxSubjectsConfig
task  toybox-sheet       toybox.data.objects:run_sheet         toybox.options:ToyboxSheetConfig
# text of --dry-run: function (config) -> text; "any": all other tasks
plan  any       train.plan:plan             config.sections:TaskConfig
plan  texture   systems.sample.mesh:plan      systems.sample.options:SamplingConfig
plan  generate  systems.generate.plan:plan  systems.generate.options:GenerateConfig
# memory for --dry-run: function (config, device) -> bytes by phase
memory  sample             systems.memory:measure_sampling_task          systems.sample.options:SampleConfig
memory  texture            systems.memory:measure_sampling_task          systems.texture.options:TextureConfig
memory  train-mvadapter    systems.memory:measure_mvadapter_training     systems.train.options:TrainMVAdapterConfig
memory  train-mvdiffusion  systems.memory:measure_mvdiffusion_training   systems.train.options:TrainMVDiffusionConfig
memory  mvdreambooth       systems.memory:measure_dreambooth             systems.dreambooth.options:MVDreamBoothConfig
memory  train-threedim     systems.memory:measure_threedim_training      systems.novel_view.options:TrainThreeDiMConfig
# how an object is trained: a subclass of GenerateSystem
system  generate  systems.generate.system:GenerateSystem  systems.generate.sections:SystemConfig
# training cameras: threedgen.geometry.rigs.RigSampler
camera  multiview  geometry.rigs:sample_multiview  config.sections:MultiviewCameraConfig
# (options, parameter groups) -> torch optimizer
optimizer  adam   systems.generate.system:adam   systems.generate.sections:OptimizerConfig
optimizer  adamw  systems.generate.system:adamw  systems.generate.sections:OptimizerConfig
# (options, run folder) -> Lightning logger or None
logger  csv          train.loop:csv_logger          config.sections:LoggerConfig
logger  tensorboard  train.loop:tensorboard_logger  config.sections:LoggerConfig
logger  wandb        train.loop:wandb_logger        config.sections:LoggerConfig
# losses of a render, Render -> scalar; the weight is the key of this name in the section `loss`
regulariser  orientation  representations.losses:orientation        systems.generate.sections:LossConfig
regulariser  sparsity     representations.losses:sparsity           systems.generate.sections:LossConfig
regulariser  opaque       representations.losses:opaque             systems.generate.sections:LossConfig
regulariser  z_variance   representations.losses:z_variance         systems.generate.sections:LossConfig
# checks and rewriting of prompts for a prior with a closed vocabulary: threedgen.guidance.weights.tokens.PromptReader
prompt-reader  toybox  toybox.prompts:ToyboxPrompts  config:Config
prior  mvdream           guidance.priors.mvdream:build           guidance.priors.options:MVDreamConfig
prior  imagedream        guidance.priors.imagedream:build      guidance.priors.options:ImageDreamConfig
prior  stable-diffusion  guidance.priors.from_options:build  guidance.priors.options:StableDiffusionConfig
prior  deepfloyd         guidance.priors.deepfloyd:build         guidance.priors.options:DeepFloydConfig
prior  mvdiffusion       guidance.priors.mvdiffusion.model:build        guidance.priors.options:MVDiffusionConfig
prior  mvadapter         guidance.priors.mvadapter.model:build          guidance.priors.options:MVAdapterConfig
distillation sds guidance.losses.sds:SDS guidance.losses.options:SDSConfig
distillation reconstruction guidance.losses.sds:Reconstruction guidance.losses.options:ReconstructionConfig
distillation vsd guidance.losses.vsd:VSD guidance.losses.options:VSDConfig
distillation ism guidance.losses.inversion:ISM guidance.losses.options:ISMConfig
distillation csd guidance.losses.csd:CSD guidance.losses.options:CSDConfig
distillation sdi guidance.losses.inversion:SDI guidance.losses.options:SDIConfig
distillation jsd guidance.losses.jsd:JSD guidance.losses.options:JSDConfig
# side of an object in a view: threedgen.evaluation.janus.meter.ViewClassifier
view-classifier  probe  toybox.evaluation.probe:ProbeSides    toybox.evaluation.options:ProbeSidesConfig
view-classifier  clip   evaluation.janus.meter:CLIPSides   evaluation.janus.options:CLIPSidesConfig
# features of images (V, H, W, 3), uint8: threedgen.evaluation.features.FeatureNetwork
features  probe      toybox.evaluation.probe:ProbeFeatures  toybox.evaluation.options:ProbeFeaturesConfig
features  inception  evaluation.features:InceptionFeatures     evaluation.options:InceptionFeaturesConfig
# objects with one clear front, for Janus rates: threedgen.evaluation.janus.options.FrontObjects
front-objects  toybox  toybox.evaluation.held_out:FrontObjects  toybox.evaluation.options:ToyboxScenesConfig
sampler  mvdream   evaluation.consistency.scenes:MVDreamSampler  evaluation.consistency.options:MVDreamSamplerConfig
sampler mvadapter evaluation.consistency.scenes:MVAdapterSampler evaluation.consistency.options:MVAdapterSamplerConfig
sampler  folder    evaluation.consistency.scenes:FolderSampler   evaluation.consistency.options:FolderSamplerConfig
sampler  threedim  guidance.novel_view.novel_views:ThreeDiMSampler   guidance.novel_view.options:ThreeDiMSamplerConfig
# captioned views of scenes, built with a seed and a split: threedgen.data.scene_views.SceneSource
scene-source  toy-panoramas  toybox.data.room_scenes:RoomPanoramas  toybox.options:RoomPanoramasConfig
scene-source  toy-paths      toybox.data.room_scenes:room_paths     toybox.options:RoomPathsConfig
scene-source  matterport     data.matterport:MatterportPanoramas    data.options:MatterportConfig
scene-source  scannet        data.scannet:build                     data.options:ScanNetConfig
# room for a prompt and a seed: triangles (T, 3, 3), function Cameras -> captions, notes
room  toybox  toybox.data.room_scenes:prompted_room  config:Config
# captioned sides of objects, built with a seed, a split, the control, and whether images are given:
# threedgen.data.object_views.ObjectViews
object-source  toybox  toybox.data.pictures:ToyboxObjects  toybox.options:ToyboxObjectsConfig
object-source  meshes  data.object_views:MeshObjects       data.options:MeshFolderConfig
# views of scenes, built with an image size and a seed: threedgen.data.srn.pairs.PairSource
pair-source  srn     data.srn.pairs:ArchiveScenes      data.srn.options:SRNPairsConfig
pair-source  toybox  toybox.data.make_srn:ToyboxScenes  toybox.options:ToyboxPairsConfig
scenes  toybox   toybox.evaluation.held_out:toybox_scenes  toybox.evaluation.options:ToyboxScenesConfig
scenes  posed    evaluation.consistency.scenes:posed      evaluation.consistency.options:PosedScenesConfig
scenes  srn      evaluation.consistency.scenes:posed      evaluation.consistency.options:PosedScenesConfig
scenes  sampled  evaluation.consistency.scenes:sampled  evaluation.consistency.options:SampledScenesConfig
representation  ngp    representations.field.ngp:NGP     representations.options:NGPConfig
representation  sdf    representations.field.sdf:SDF     representations.options:SDFConfig
representation  dmtet  representations.mesh.dmtet:DMTet  representations.options:DMTetConfig
representation  gaussians  representations.gaussians.field:Gaussians  representations.options:GaussiansConfig
encoding  hashgrid   representations.hashgrid.encoding:HashGrid   representations.options:HashGridConfig
material  none     representations.shading:Material         representations.options:MaterialConfig
material  diffuse  representations.shading:DiffuseMaterial  representations.options:DiffuseMaterialConfig
# further files of a run: (system, folder) -> entries for summary.json
exporter  splats  export.files.splats:write  config:Config
background  solid   representations.field.background:SolidBackground   representations.options:SolidBackgroundConfig
background  neural  representations.field.background:NeuralBackground  representations.options:NeuralBackgroundConfig
"""

TABLE: dict[str, dict[str, Entry]] = {"metric": {}}  # kinds without built-in components
"""Nested dict: kind -> name -> `Entry`."""


def register(kind: str, name: str, implementation: str, config: str = "threedgen.config:Config") -> None:
    """Add a component to the registry, or replace it. Plug-ins call this function when they are imported.

    Args:
        kind: kind of component, such as "prior" or "task".
        name: name that selects the component in a config.
        implementation: import path "module:attribute" of the component's class or function.
        config: import path "module:attribute" of the component's config model.
    """
    TABLE.setdefault(kind, {})[name] = Entry(implementation, config)


for _line in _ENTRIES.splitlines():
    if not _line.startswith("#"):
        _kind, _name, _implementation, _model = _line.split()
        register(_kind, _name, f"threedgen.{_implementation}", f"threedgen.{_model}")


def names(kind: str) -> list[str]:
    """Return the names of all components of a kind, such as "prior", in the order of registration.

    A component is a class or function that a config selects by name. Raises KeyError for an unknown kind.
    """
    return list(TABLE[kind])


def entry(kind: str, name: object) -> Entry:
    """Return the registry entry of a component: the import paths of its class or function and of its config model.

    An example is the kind "prior" and the name "mvdream". Raises ConfigError, with a similar name as suggestion, if the
    name is unknown, and KeyError for an unknown kind.
    """
    if not isinstance(name, str) or name not in TABLE[kind]:
        raise ConfigError(_unknown(kind, name), kind, name)
    return TABLE[kind][name]


def config_model(kind: str, name: object) -> type[BaseModel]:
    """Import and return the config model of a component, such as that of the kind "prior" with the name "mvdream".

    Raises ConfigError if the name is unknown. Modules of config models do not import torch.
    """
    return _load(entry(kind, name).config)


def implementation(kind: str, name: str) -> Any:
    """Import and return the class or function of a component, such as the kind "prior" with the name "mvdream".

    Raises ConfigError if the name is unknown.
    """
    return _load(entry(kind, name).implementation)


def build(kind: str, config: Any, *args: Any, **kwargs: Any) -> Any:
    """Create the component that `config.name` selects: call its class or function with (config, *args, **kwargs).

    `kind` is the kind of component in the registry, such as "prior".
    """
    return implementation(kind, config.name)(config, *args, **kwargs)


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _unknown(kind: str, name: object) -> str:
    guess = nearest(name, names(kind)) if isinstance(name, str) else None
    own = "" if guess else "; one of your own: --plugin FILE.py"
    return f"no {kind} has this name{did_you_mean(guess)} (there are: {', '.join(names(kind)) or 'none'}{own})"


SECTION: Any = {}
"""Default value of config fields with a `Component` annotation. It stands for the default component and options.

The type is Any, not dict, to satisfy mypy.
"""


@dataclass(frozen=True)
class Component:
    """Annotation of a config field that is a section (nested config). Its key `name` selects a registered component.

    Used as `prior: Annotated[Any, Component("prior", default="mvdream")] = Field({}, description="...")`. The value of
    the field is an instance of the component's config model, which must have a field `name`.

    Attributes:
        kind: kind of component in the registry, such as "prior".
        default: name of the component if the section has no `name`; None: the section must have a `name`.
        only: allowed names; (): all names of the kind.
        component_for_paths: name of a component with an option `path`. The user may then write a path in place of the
            section: `prior: a/b` means `prior: {name: COMPONENT_FOR_PATHS, path: a/b}`. Registered names keep their
            meaning. None: no paths.
    """

    kind: str
    default: str | None = None
    only: tuple[str, ...] = ()
    component_for_paths: str | None = None

    def section(self, text: str) -> dict[str, str]:
        """Convert the short form of a section, such as "mvdream" in `prior: mvdream`, to the dict {"name": text}.

        If `component_for_paths` names a component (one with an option `path`), a text that is not a registered name is
        a path: the result is {"name": self.component_for_paths, "path": text}.
        """
        if self.component_for_paths is None or text in names(self.kind):
            return {"name": text}
        return {"name": self.component_for_paths, "path": text}

    def model(self, value: object) -> type[BaseModel] | None:
        """Return the config model for the value of a section: a dict, a config object or a name.

        A value without a name gives the model of the default component. Returns None if the name is not registered, or
        if there is neither a name nor a default.
        """
        if isinstance(value, BaseModel):
            return type(value)
        value = self.section(value) if isinstance(value, str) else value
        name = value.get("name", self.default) if isinstance(value, dict) else self.default
        known = isinstance(name, str) and name in TABLE.get(self.kind, {})
        return config_model(self.kind, name) if known else None

    def _validate(self, value: object) -> BaseModel:
        if isinstance(value, BaseModel):
            value = value.model_dump()
        value = self.section(value) if isinstance(value, str) else value
        if not isinstance(value, dict):
            raise PydanticCustomError("component", "should be a section with a name and its options")
        name = value.get("name", self.default)
        model = self.model(value)
        if model is None:
            raise self._name_error(name, _unknown(self.kind, name))
        if self.only and name not in self.only:
            raise self._name_error(name, f"this {self.kind} is not supported here (supported: {', '.join(self.only)})")
        if "name" not in model.model_fields:  # not given to `register`, or a mistake in it
            problem = f"its config model {model.__name__} has no field `name`. Add the field, or register another model"
            raise self._name_error(name, problem)
        return model.model_validate({**value, "name": name})

    def _name_error(self, name: object, problem: str) -> ValidationError:
        error = PydanticCustomError("component", "{problem}", {"problem": problem})
        return ValidationError.from_exception_data(self.kind, [InitErrorDetails(type=error, loc=("name",), input=name)])

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        def dump(value: BaseModel, info: core_schema.SerializationInfo) -> dict[str, object]:
            return value.model_dump(mode=info.mode)

        return core_schema.no_info_plain_validator_function(
            self._validate, serialization=core_schema.plain_serializer_function_ser_schema(dump, info_arg=True)
        )
