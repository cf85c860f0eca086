"""Config models of the Janus meter (counter of fronts) and the Janus benchmark, and the plan of the benchmark.

This module does not import torch.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol

from pydantic import Field

from threedgen.config import Config, ConfigError, registry
from threedgen.config.errors import did_you_mean, nearest, short
from threedgen.config.sections import RunConfig
from threedgen.data.assets.listing import MESHES, Asset, Listing, list_assets, mesh_files
from threedgen.evaluation.options import CLIP_WEIGHTS, FRONT_THRESHOLD
from threedgen.run.folder import user_path
from threedgen.run.options import Names, Seeds, WorkersConfig
from threedgen.systems.batch.jobs import Job, check_prompts, job, object_config
from threedgen.systems.prompted import PromptedConfig

if TYPE_CHECKING:
    from threedgen.data.coloured_mesh import ColouredMesh

METHODS = ("mvdream-toybox", "sds-toybox", "dreamfusion-toybox")
ViewClassifier = Annotated[Any, registry.Component("view-classifier", default="probe")]
CAPTIONS = "captions.csv"
NO_PROMPTS = set("asset export final mesh model object output result textured textured_mesh".split())
UNREADABLE = tuple(".3ds .abc .blend .dae .fbx .stl .usd .usda .usdc .usdz .wrl .x3d".split())
"""Suffixes of mesh formats that the meter cannot read."""
WITHOUT_CLIP = "meter.classifier.name=probe needs no CLIP, for assets that look like those of the toybox"
SKIPPED_PARTS = {"export.enabled": False, "preview.enabled": False, "result.turntable.n_view": 8}
"""Config key -> value for the run of an object. The values skip or shorten outputs that the benchmark does not use; it
uses only the mesh."""


class CLIPSidesConfig(Config):
    """Zero-shot classification of the side that a view shows by CLIP, for objects other than toybox objects.

    Options of the view classifier "clip" of the Janus tasks: the folder or hub id of the CLIP weights.
    """

    name: Literal["clip"] = Field("clip", description="zero-shot CLIP, for anything that photos show")
    weights: str = Field(
        CLIP_WEIGHTS, min_length=1, description="folder or hub id; not one that assets were optimised with"
    )

    def check(self) -> None:
        from threedgen.guidance.weights.hub import cached, is_hub_id, reachable
        from threedgen.guidance.weights.loading import existing_path

        local = existing_path(self.weights) is not None or cached(self.weights, "config.json") is not None
        if not local and not (is_hub_id(self.weights) and reachable()):
            raise ConfigError(
                f"CLIP is neither a local folder nor in the hub's cache, and the hub is unreachable: "
                f"{short(self.weights, 200)}. Run `hf download {CLIP_WEIGHTS}` where there is a network; "
                f"{WITHOUT_CLIP}.",
                "weights",
            )


class MeterConfig(Config):
    """Janus meter: ring of cameras around an object, and classifier of the side that each view shows.

    Options of the Janus meter, which counts the fronts of an object: classifier, number and size of the views, and the
    minimum probability of a front.
    """

    classifier: ViewClassifier = Field({}, description="classifier of the side that a view shows")
    n_view: int = Field(8, ge=8, le=360, description="number of evenly spaced views")
    size: int = Field(128, ge=16, le=2048, description="side of a view, pixels")
    threshold: float = Field(FRONT_THRESHOLD, gt=0, lt=1, description="minimum probability of a front")


class TruthConfig(Config):
    """Objects with a known number of fronts, on which the error rates of the Janus meter are measured.

    Options of the test objects. Each object with a front is used twice: unchanged, as an object with one front, and
    with its back half replaced by a copy of its front half, as an object with two fronts. If ``assets`` is null, the
    objects are toybox objects (procedural objects of this package), and toybox objects without a front are added.
    """

    objects: int = Field(300, ge=0, le=100_000, description="objects of each kind to measure the meter's errors on")
    rough: float = Field(0.0, ge=0, le=10, description="strength of smooth noise on surfaces and colours; typical: 1")
    assets: str | None = Field(None, description="folder of meshes that face +z (y up); null: toybox objects")

    def check(self) -> None:
        if self.assets is not None:
            folder_of_assets(self.assets, "assets")
        super().check()


class MeteredConfig(RunConfig):
    """Base class of the options of all Janus tasks: the Janus meter, and objects on which its errors are measured.

    The Janus tasks count the fronts of objects: "janus-meter", "janus-score" and "janus-benchmark".
    """

    meter: MeterConfig = MeterConfig()
    truth: TruthConfig = TruthConfig()


class JanusMeterConfig(MeteredConfig):
    """Error rates of the Janus meter, measured on objects with a known number of fronts.

    Options of the task "janus-meter": the meter, which counts the fronts of an object, and the objects.
    """


class JanusScoreConfig(MeteredConfig):
    """Janus rate of existing meshes.

    Options of the task "janus-score": folder, axes and prompts of the mesh files. The Janus rate is the fraction of
    objects with two or more fronts among those with at least one. The folder may have a captions.csv with the columns
    file, caption, up and turn, for prompts and axes of single files.
    """

    assets: str = Field("", description="folder of GLB, glTF, OBJ, PLY and OFF files; a folder in it is a method")
    up: Literal["y", "z"] = Field("y", description="up axis of the files; y-up files face +z, z-up files +x")
    orientation: Literal["free", "known"] = Field("free", description="free: files may face any way around")
    prompts: dict[str, str] = Field({}, description="prompt of a file by its stem; default: captions.csv, or its name")

    def check(self) -> None:
        if not self.assets.strip():
            raise ConfigError("is missing. Give a folder, such as assets=results.", "assets")
        names = {path.stem for path in asset_files(folder_of_assets(self.assets, "assets"))}
        for name in self.prompts:
            if name not in names:
                guess = did_you_mean(nearest(name, names))
                raise ConfigError(f"no file in {self.assets} is called {short(name)}{guess}", "prompts")
        self.listing()
        super().check()

    def listing(self) -> Listing:
        """Return all mesh files with their prompts and axes, and the lines of captions.csv that are not used."""
        folder = folder_of_assets(self.assets, "assets")
        found = list_assets(folder, CAPTIONS, self.up) if (folder / CAPTIONS).is_file() else Listing((), {})
        described = {asset.file: asset for asset in found.assets}
        prompts, assets = prompts_of([path.relative_to(folder) for path in asset_files(folder)]), list[Asset]()
        for path, prompt in prompts.items():
            asset = described.get(path.as_posix(), Asset(path.as_posix(), prompt, self.up))
            assets.append(replace(asset, caption=self.prompts.get(path.stem) or asset.caption))
        files = {asset.file for asset in assets}
        return Listing(tuple(assets), {line: why for line, why in found.left_out.items() if line not in files})


def folder_of_assets(text: str, key: str) -> Path:
    """Return the folder at the path ``text``. Raises ConfigError (config key ``key``) if it has no mesh files."""
    folder = user_path(text, key)
    if not folder.is_dir() or not asset_files(folder):
        raise ConfigError("should be a folder with GLB, glTF, OBJ, PLY or OFF files", key, text)
    return folder


def asset_files(folder: Path, suffixes: tuple[str, ...] = MESHES) -> list[Path]:
    return sorted(folder / name for name in mesh_files(folder, suffixes))


def prompts_of(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the prompts of mesh files METHOD/a-blue-dog.glb or METHOD/a-blue-dog/model.glb.

    The prompt is the name of the file. It is the name of the folder in METHOD if the file name

    - has no letters, as in METHOD/a-blue-dog/0.glb,
    - is a usual name of any mesh (`NO_PROMPTS`), such as "model", or
    - is that of all mesh files of this folder, and of all those of another prompt's folder.

    ``paths`` are relative to the folder of the methods.
    """
    names = defaultdict[tuple[str, ...], set[str]](set)  # by (METHOD, folder in METHOD)
    inside = [path for path in paths if len(path.parts) > 2]
    for path in inside:
        names[path.parts[:2]].add(path.stem)
    folders = Counter(stem for _, stem in {(place[1], *stems) for place, stems in names.items() if len(stems) == 1})
    found = {path: words_of(path.stem) for path in paths}
    for path in inside:
        is_only_name = len(names[path.parts[:2]]) == 1 and folders[path.stem] > 1
        if is_only_name or path.stem.lower() in NO_PROMPTS or not any(map(str.isalpha, path.stem)):
            found[path] = words_of(path.parts[1])
    return found


def words_of(name: str) -> str:
    """Return the words of a name, for a prompt: "a blue dog" for "a-blue_dog" and "a_blue_dog@20230801-101010"."""
    name = re.sub(r"@\d{8}-\d{6}$", "", name)  # threestudio adds the time to the names of its folders
    return " ".join(re.split(r"[\s_-]+", name)).strip() or name


class JanusBenchmarkConfig(MeteredConfig, WorkersConfig):
    """Janus rates of text-to-3D methods, on objects made for each prompt, method and seed.

    Options of the task "janus-benchmark": methods (configs that make an object of a prompt), overrides of their
    options, prompts and seeds. The Janus rate is the fraction of objects with two or more fronts among those with at
    least one.
    """

    methods: Names = Field(
        METHODS, min_length=1, description="configs that make an object of a prompt, each with optional overrides"
    )
    overrides: tuple[str, ...] = Field((), description="key=value overrides of all methods")
    prompts: Names = Field((), description="objects with one clear front; []: held-out toybox prompts")
    toybox: int = Field(36, ge=1, le=1000, description="number of held-out toybox prompts if `prompts` is empty")
    seeds: Seeds = Field((0, 1, 2), min_length=1, description="seeds of each prompt and method")

    def plan(self) -> Plan:
        prompts = self.prompts or front_objects().prompts(self.toybox, self.seed)
        return make_plan(self.methods, self.overrides, prompts, self.seeds)

    def notes(self) -> list[str]:
        return [*super().notes(), *self.plan().notes()]

    def check(self) -> None:
        super().check()
        self.plan()


class FrontObjects(Protocol):
    """Source of prompts and meshes of objects with one clear front.

    The Janus tasks use the implementation "toybox" of the kind "front-objects" in the registry (list of components by
    kind and name). It has three methods:

    - `prompts(count, seed)` returns a list of random prompts of such objects.
    - `without_front(prompts)` returns those of the given prompts whose object has no front: a dict from prompt to noun.
    - `meshes(seed, first, count, front)` yields ``count`` pairs (prompt, mesh) of random objects, with or without a
      front. The objects of each class, such as "dog", are numbered from ``first`` on; another number is another object.
    """

    def prompts(self, count: int, seed: int) -> list[str]:
        """Return ``count`` random prompts of objects with a clear front.

        They are held out: no training data of the package has them. Raises ConfigError if there are too few.
        """

    def without_front(self, prompts: Sequence[str]) -> dict[str, str]:
        """Return those of ``prompts`` whose object has no front, each mapped to the object's noun, such as "ball"."""

    def meshes(self, seed: int, first: int, count: int, front: bool = True) -> Iterator[tuple[str, ColouredMesh]]:
        """Yield (prompt, mesh) of ``count`` random objects with a front, or without a front if ``front`` is False.

        World axes of the meshes: z up, front +x. The objects have several classes, such as "dog", which take turns. The
        objects of each class are numbered ``first``, ``first`` + 1, ... Seed, class and number determine the shape.
        """


def front_objects() -> FrontObjects:
    objects: FrontObjects = registry.implementation("front-objects", "toybox")()
    return objects


@dataclass(frozen=True)
class Plan:
    """Plan of a Janus benchmark. A method is the name of a config, optionally followed by overrides "key=value".

    Attributes:
        jobs: objects to make (method, prompt, seed, config), ordered by seed, then prompt, then method.
        prompts: prompts that have jobs.
        refused: methods that cannot run; method -> reason.
        left_out: prompts without jobs, because their object has no front; prompt -> reason.
        toybox: whether all methods make toybox objects (procedural objects of this package); if not, error rates
            measured on toybox objects do not apply.
    """

    jobs: list[Job]
    prompts: list[str]
    refused: dict[str, str]
    left_out: dict[str, str]
    toybox: bool

    def notes(self) -> list[str]:
        prompts = [f"left out: {prompt!r}, {reason}" for prompt, reason in self.left_out.items()]
        return prompts + [f"left out: {method} ({reason})" for method, reason in self.refused.items()]


def make_plan(methods: Sequence[str], overrides: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]) -> Plan:
    """Plan the jobs of a benchmark, ordered by seed, prompt, method, so that an unfinished run compares all methods.

    A method is the name of a config, optionally followed by overrides "key=value". ``overrides`` are overrides of all
    methods. Prompts of objects without a front are left out. A method is left out if something that it needs is
    missing, such as a file of weights (its valid config fails `Config.check`).

    Raises:
        ConfigError: if the config of a method is invalid, or is of a task that does not make an object from a prompt;
            if a prompt names an object that the diffusion model of a method does not know; or if no prompt is left.
    """
    nouns = front_objects().without_front(prompts)
    left_out = {prompt: f"a {noun} has no front" for prompt, noun in nouns.items()}
    kept = [prompt for prompt in prompts if prompt not in left_out]
    if not kept:
        raise ConfigError("No object has a front. Name some that do, such as a dog.", "prompts", ", ".join(prompts))
    shared = overrides, kept[0], "methods", "the benchmark", SKIPPED_PARTS
    bases = {method: object_config(method, *shared) for method in methods}
    check_prompts(bases, kept)
    refused: dict[str, str] = {}
    for method, base in bases.items():
        try:
            base.check()
        except ConfigError as error:
            refused[method] = str(error)
    order = itertools.product(seeds, kept, bases.items())
    jobs = [job(method, base, prompt, seed) for seed, prompt, (method, base) in order if method not in refused]
    kept_bases = [base for method, base in bases.items() if method not in refused]
    toybox = all(isinstance(base, PromptedConfig) and base.vocabulary() is not None for base in kept_bases)
    return Plan(jobs, kept, refused, left_out, toybox)
