"""Names become objects: kind -> name -> where the implementation and its config model live.

The tables hold only text, so nothing is imported before it is asked for, and a plug-in that fails to import
fails only when a config names it. The models live in modules that do not import torch.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from threedgen.config.errors import ConfigError, did_you_mean, nearest, short


@dataclass(frozen=True)
class Entry:
    """Dotted paths, `module:attribute`, of an implementation and of the pydantic model that configures it."""

    implementation: str
    config: str


_GENERATE = "threedgen.systems.generate"
_SAMPLE = "threedgen.systems.sample"
_BASE = "threedgen.systems.train_base"
_PRIOR = "threedgen.systems.train_prior"
_DREAMBOOTH = "threedgen.systems.dreambooth"
_GUIDANCE = "threedgen.guidance.options"
_DISTILLATION = "threedgen.guidance.distillation"
_REPRESENTATION = "threedgen.representations"
_REPRESENTATIONS = f"{_REPRESENTATION}.options"
_FIELD = f"{_REPRESENTATION}.field"
_ENCODING = f"{_REPRESENTATION}.hashgrid.encoding"
_TOYBOX = "threedgen.data.toybox"
_SCORES = "threedgen.evaluation.toybox"
_EXPORT = "threedgen.export.options"
_SRN = "threedgen.data.srn.options"
_VIEWER = "threedgen.viewer.options"
_CONSISTENCY = "threedgen.evaluation.consistency"
_JANUS = "threedgen.evaluation.janus"
_VIEWS = "threedgen.systems.novel_view"
_PRIORS = "threedgen.guidance.priors"
_THREEDIM = "threedgen.guidance.threedim"

TABLE: dict[str, dict[str, Entry]] = {
    # a task is a function run(config, resume: Path | None, quiet: bool) -> exit code | None;
    # a run gets its folder before it begins if its config model is a RunConfig
    "task": {
        "generate": Entry(f"{_GENERATE}.task:run", f"{_GENERATE}.options:GenerateConfig"),
        "sample": Entry(f"{_SAMPLE}.task:run", f"{_SAMPLE}.options:SampleConfig"),
        "train-base": Entry(f"{_BASE}.task:run", f"{_BASE}.options:TrainBaseConfig"),
        "train-prior": Entry(f"{_PRIOR}.task:run", f"{_PRIOR}.options:TrainPriorConfig"),
        "mvdreambooth": Entry(f"{_DREAMBOOTH}.task:run", f"{_DREAMBOOTH}.options:MVDreamBoothConfig"),
        "train-probe": Entry(f"{_SCORES}.train_probe:run", f"{_SCORES}.options:TrainProbeConfig"),
        "train-identity": Entry(f"{_SCORES}.train_identity:run", f"{_SCORES}.options:TrainIdentityConfig"),
        "evaluate-prior": Entry(f"{_SCORES}.prior_score:run", f"{_SCORES}.options:EvaluatePriorConfig"),
        "evaluate-3d": Entry(f"{_SCORES}.object_score:run", f"{_SCORES}.options:Evaluate3DConfig"),
        "evaluate-subjects": Entry(f"{_SCORES}.subject_score:run", f"{_SCORES}.options:EvaluateSubjectsConfig"),
        "consistency": Entry(f"{_CONSISTENCY}.run:run", f"{_CONSISTENCY}.options:ConsistencyConfig"),
        "janus-meter": Entry(f"{_JANUS}.meter_errors:run", f"{_JANUS}.options:JanusMeterConfig"),
        "janus-score": Entry(f"{_JANUS}.score:run", f"{_JANUS}.options:JanusScoreConfig"),
        "janus-benchmark": Entry(f"{_JANUS}.benchmark:run", f"{_JANUS}.options:JanusBenchmarkConfig"),
        "refine-decoder": Entry(f"{_PRIOR}.refine_decoder:run", f"{_PRIOR}.options:RefineDecoderConfig"),
        "train-threedim": Entry(f"{_VIEWS}.task:run", f"{_VIEWS}.options:TrainThreeDiMConfig"),
        "image-to-3d": Entry(f"{_VIEWS}.image_to_3d:run", f"{_VIEWS}.options:ImageTo3DConfig"),
        "report": Entry("threedgen.viewer.report:run", f"{_VIEWER}:ReportConfig"),
        "gallery": Entry("threedgen.viewer.gallery:run", f"{_VIEWER}:GalleryConfig"),
        "export": Entry("threedgen.export.task:run", f"{_EXPORT}:ExportConfig"),
        "make-srn-toybox": Entry("threedgen.data.srn.make:run", f"{_SRN}:MakeSRNToyboxConfig"),
        "toybox-subjects": Entry(f"{_TOYBOX}.subjects:run", f"{_TOYBOX}.options:ToyboxSubjectsConfig"),
        "toybox-sheet": Entry(f"{_TOYBOX}.sheet:run", f"{_TOYBOX}.options:ToyboxSheetConfig"),
    },
    # what --dry-run says of a task: a function (config) -> text
    "plan": {"generate": Entry(f"{_GENERATE}.plan:plan", f"{_GENERATE}.options:GenerateConfig")},
    "prior": {
        "mvdream": Entry(f"{_PRIORS}.mvdream:build", f"{_GUIDANCE}:MVDreamConfig"),
        "stable-diffusion": Entry(f"{_PRIORS}.stable_diffusion:build", f"{_GUIDANCE}:StableDiffusionConfig"),
        "deepfloyd": Entry(f"{_PRIORS}.deepfloyd:build", f"{_GUIDANCE}:DeepFloydConfig"),
    },
    "distillation": {
        "sds": Entry(f"{_DISTILLATION}.sds:SDS", f"{_GUIDANCE}:SDSConfig"),
        "reconstruction": Entry(f"{_DISTILLATION}.sds:Reconstruction", f"{_GUIDANCE}:ReconstructionConfig"),
        "vsd": Entry(f"{_DISTILLATION}.vsd:VSD", f"{_GUIDANCE}:VSDConfig"),
    },
    # pictures (V, H, W, 3) -> unit vectors (V, D): is it the same subject?
    "identity": {
        "toybox": Entry(f"{_SCORES}.identity:ToyboxIdentity", f"{_SCORES}.options:ToyboxIdentityConfig"),
        "hub": Entry(f"{_SCORES}.identity:HubIdentity", f"{_SCORES}.options:HubIdentityConfig"),
    },
    # which side of an object does a single view show? see threedgen.evaluation.janus.classifiers.ViewClassifier
    "view-classifier": {
        "probe": Entry(f"{_JANUS}.classifiers:ProbeSides", f"{_JANUS}.options:ProbeSidesConfig"),
        "clip": Entry(f"{_JANUS}.classifiers:CLIPSides", f"{_JANUS}.options:CLIPSidesConfig"),
    },
    "sampler": {
        "mvdream": Entry(f"{_CONSISTENCY}.samplers:MVDreamSampler", f"{_CONSISTENCY}.options:MVDreamSamplerConfig"),
        "folder": Entry(f"{_CONSISTENCY}.samplers:FolderSampler", f"{_CONSISTENCY}.options:FolderSamplerConfig"),
        "threedim": Entry(f"{_THREEDIM}.novel_views:ThreeDiMSampler", f"{_THREEDIM}.options:ThreeDiMSamplerConfig"),
    },
    "scenes": {
        "toybox": Entry(f"{_CONSISTENCY}.scenes:toybox", f"{_CONSISTENCY}.options:ToyboxScenesConfig"),
        "srn": Entry(f"{_CONSISTENCY}.scenes:srn", f"{_CONSISTENCY}.options:SRNScenesConfig"),
        "sampled": Entry(f"{_CONSISTENCY}.scenes:sampled", f"{_CONSISTENCY}.options:SampledScenesConfig"),
    },
    "representation": {
        "ngp": Entry(f"{_FIELD}.ngp:NGP", f"{_REPRESENTATIONS}:NGPConfig"),
        "sdf": Entry(f"{_FIELD}.sdf:SDF", f"{_REPRESENTATIONS}:SDFConfig"),
        "dmtet": Entry(f"{_REPRESENTATION}.mesh.dmtet:DMTet", f"{_REPRESENTATIONS}:DMTetConfig"),
    },
    "encoding": {
        "hashgrid": Entry(f"{_ENCODING}:HashGrid", f"{_REPRESENTATIONS}:HashGridConfig"),
        "frequency": Entry(f"{_ENCODING}:Frequency", f"{_REPRESENTATIONS}:FrequencyConfig"),
    },
    "material": {
        "none": Entry(f"{_REPRESENTATION}.shading:NoMaterial", f"{_REPRESENTATIONS}:NoMaterialConfig"),
        "diffuse": Entry(f"{_REPRESENTATION}.shading:DiffuseMaterial", f"{_REPRESENTATIONS}:DiffuseMaterialConfig"),
    },
    "background": {
        "solid": Entry(f"{_FIELD}.background:SolidBackground", f"{_REPRESENTATIONS}:SolidBackgroundConfig"),
        "neural": Entry(f"{_FIELD}.background:NeuralBackground", f"{_REPRESENTATIONS}:NeuralBackgroundConfig"),
    },
}


def register(kind: str, name: str, implementation: str, config: str) -> None:
    """Add (or replace) an entry; a plug-in calls this on import. Paths are `module:attribute`."""
    TABLE.setdefault(kind, {})[name] = Entry(implementation, config)


def names(kind: str) -> list[str]:
    """The registered names of a kind, in the order of the table. Raises KeyError for an unknown kind."""
    return list(TABLE[kind])


def _unknown(kind: str, name: Any) -> str:
    guess = nearest(name, names(kind)) if isinstance(name, str) else None
    return f"no {kind} has this name{did_you_mean(guess)} (there are: {', '.join(names(kind)) or 'none'})"


def entry(kind: str, name: str) -> Entry:
    """The entry of a name. Raises ConfigError with the nearest name."""
    if not isinstance(name, str) or name not in TABLE[kind]:
        raise ConfigError(f"{kind}: {_unknown(kind, name)} (got {short(name)})")
    return TABLE[kind][name]


def _load(path: str) -> Any:
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


def config_model(kind: str, name: str) -> type[BaseModel]:
    """The config model of a name (imports no torch). Raises ConfigError for an unknown name."""
    return _load(entry(kind, name).config)


def implementation(kind: str, name: str) -> Any:
    """The class or function behind a name, imported now. Raises ConfigError for an unknown name."""
    return _load(entry(kind, name).implementation)


def build(kind: str, config: Any, *args: Any, **kwargs: Any) -> Any:
    """Call the implementation that `config.name` chooses: implementation(config, *args, **kwargs)."""
    return implementation(kind, config.name)(config, *args, **kwargs)


@dataclass(frozen=True)
class Component:
    """A section of a config whose `name:` picks the model that checks it, in the registry's table of `kind`.

    Used as `prior: Annotated[Any, Component("prior", default="mvdream")] = Field({}, description="...")`; the
    value of the field is an instance of the chosen model, which must have a field `name`. `default` is taken
    when the section gives no name. `only`: the names that will do here, if not all of them do. A text in the place
    of the section is a name; if it is none, and there is `path_of`, the `path` of the component of that name.
    """

    kind: str
    default: str | None = None
    only: tuple[str, ...] = ()
    path_of: str | None = None

    def section(self, text: str) -> dict[str, str]:
        """What a text in the place of the section means."""
        if self.path_of is None or text in names(self.kind):
            return {"name": text}
        return {"name": self.path_of, "path": text}

    def model(self, value: Any) -> type[BaseModel] | None:
        """The model for a section given as a dict or as a config; None if its name is not known."""
        if isinstance(value, BaseModel):
            return type(value)
        value = self.section(value) if isinstance(value, str) else value
        name = value.get("name", self.default) if isinstance(value, dict) else self.default
        if not isinstance(name, str) or name not in TABLE.get(self.kind, {}):
            return None
        return config_model(self.kind, name)

    def _validate(self, value: Any) -> BaseModel:
        if isinstance(value, BaseModel):
            value = value.model_dump()
        value = self.section(value) if isinstance(value, str) else value
        if not isinstance(value, dict):
            raise PydanticCustomError("component", "should be a section with a name and its options")
        name = value.get("name", self.default)
        model = self.model(value)
        if model is None:
            raise PydanticCustomError("component_name", "{problem}", {"problem": _unknown(self.kind, name)})
        if self.only and name not in self.only:
            problem = f"this {self.kind} cannot do what is asked of it here (one that can: {', '.join(self.only)})"
            raise PydanticCustomError("component_name", "{problem}", {"problem": problem})
        return model.model_validate({**value, "name": name})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        def dump(value: BaseModel, info: core_schema.SerializationInfo) -> dict[str, Any]:
            return value.model_dump(mode=info.mode)

        return core_schema.no_info_plain_validator_function(
            self._validate,
            serialization=core_schema.plain_serializer_function_ser_schema(dump, info_arg=True),
        )
