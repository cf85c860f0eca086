"""Views of scenes to evaluate: samples with and without attention between views, and existing views of a folder.

RUN/views/attention/00003.safetensors    views of scene 3, sampled with attention between them
RUN/views/base/00003.safetensors         views of scene 3, sampled independently of each other

The folder of existing views has the files of one scene, or one subfolder per scene, such as runs of the task panorama:

SCENE/cameras.json         cameras (`threedgen.geometry.cameras_file`)
SCENE/0.png, 1.png, ...    images, if cameras.json does not name the files of its views
SCENE/depth/NAME.png       depth map of the image NAME.png (`threedgen.geometry.images.write_depth`)
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from threedgen.config import ConfigError
from threedgen.config.errors import printable
from threedgen.config.plain_file import named_file
from threedgen.data.scene_views import SceneViews
from threedgen.evaluation.runner import cached_views
from threedgen.geometry.cameras_file import CAMERAS_FILE, CamerasFile, read_cameras
from threedgen.geometry.image_file import load_image, read_depth
from threedgen.geometry.views import Views, resize
from threedgen.guidance.options import MIN_OVERLAP
from threedgen.guidance.priors.mvdiffusion.inputs import depth_channels
from threedgen.guidance.priors.mvdiffusion.model import MVDiffusion
from threedgen.guidance.sampling import Size
from threedgen.run.cache import digest, input_digest
from threedgen.run.seeding import generator
from threedgen.train.task import Task

from .options import EvaluateViewsConfig

ATTENTION, BASE = "attention", "base"
KEY = "views"
MAX_MOVE = 1e-3
"""Maximum distance of a camera of a panorama from camera 0, relative to the largest camera distance from the origin."""


class SceneSampler:
    """Sampler of the views of scenes with an MVDiffusion model; it stores the views in the run folder.

    A call takes (kind, number, scene, on_step): whether to use attention between views ("attention" or "base"), index
    and content of the scene, and a function to call before each sampling step. It returns the views (V, H, W, 3),
    uint8. They are read from the run folder if they are stored there, and sampled and stored otherwise. The attribute
    ``given`` is True if the model receives the true view 0 as an input.

    Args:
        task: run of the task "evaluate-views", whose config names the model.
        scenes: text that identifies the list of scenes. It is stored with the views; stored views with another text are
            sampled again.
        first: first scene of the list, used only to check that the model fits.

    Raises:
        ConfigError: if the model cannot sample the views of ``first``, such as a panorama model for a scene with depth.
    """

    def __init__(self, task: Task, scenes: str, first: SceneViews) -> None:
        self.config: EvaluateViewsConfig = task.config
        self.folder, self.scenes = task.folder / "views", scenes
        self.model: MVDiffusion = task.load_prior()
        self._check(first)
        self.given = self.model.extra == "mask"
        networks = self.model.networks
        base = {name: network for name, network in networks.items() if name != "multiview"}
        self.weights = {ATTENTION: digest(networks), BASE: digest(base)}

    def __call__(self, kind: str, number: int, scene: SceneViews, on_step: Callable[[], None]) -> Tensor:
        """Return the views (V, H, W, 3), uint8, of a scene: read from the run folder, or sampled and written to it.

        They are sampled if the file is missing or was written with other inputs of the model (captions, cameras, depth,
        given view), scenes, weights or options.
        ``kind`` is "attention" or "base" (no attention between views); both start from the same noise. ``number`` is
        the index of the scene. ``on_step`` is called before each sampling step and may raise an exception to stop.
        """
        path = self.folder / kind / f"{number:05d}.safetensors"
        sample = partial(self._sample, kind, number, scene, on_step)
        return torch.from_numpy(cached_views(path, self._metadata(kind, number, scene), sample))

    def _sample(self, kind: str, number: int, scene: SceneViews, on_step: Callable[[], None]) -> Tensor:
        c, model = self.config, self.model
        geometry = model.geometry(scene.views.cameras, scene.depth) if kind == ATTENTION else None
        return model.sample_views(
            scene.captions,
            geometry,
            size_of(scene),
            lambda size: (self._extra_channels(scene, size), None),
            steps=c.steps,
            guidance_scale=c.guidance_scale,
            generator=generator(c.seed, number, "views of a scene"),
            on_step=on_step,
            eta=c.eta,
        )

    def _metadata(self, kind: str, number: int, scene: SceneViews) -> dict[str, str]:
        c, p = self.config, self.config.prior
        attention = f"{MIN_OVERLAP} {p.guide_views}" if kind == ATTENTION else ""
        sampling = f"{c.steps} {c.eta:g} {c.guidance_scale:g} {c.seed} {p.draft} {p.hold}"
        views, depth = scene.views, [] if scene.depth is None else [scene.depth]
        tensors = [views.cameras.c2w, views.cameras.K, *depth, *([views.images[0]] if self.given else [])]
        return {
            "weights": self.weights[kind],
            "how": f"{sampling} code {p.dtype} {attention} ",
            "scene": f"{number} of {self.scenes}",
            "inputs": input_digest(tensors, scene.captions),
        }

    def _extra_channels(self, scene: SceneViews, size: Size) -> Tensor | None:
        model = self.model
        if model.extra == "depth" and scene.depth is not None:
            return depth_channels(scene.depth, *(side // model.factor for side in size))
        if model.extra == "mask":
            given = torch.arange(len(scene)) == 0
            return model.masked_extra(resize(scene.views.images, *size), given)
        return None

    def _check(self, scene: SceneViews) -> None:
        model, name, blocks = self.model, self.config.scenes.name, self.config.prior.blocks
        kind, other, example = (
            ("panorama", "depth", "toybox-panorama")
            if scene.depth is None
            else ("depth", "mask", "those of train-mvdiffusion variant=depth")
        )
        if model.multiview is None or model.multiview.kind != kind or model.extra == other:
            raise ConfigError(f"does not fit the {kind} scenes {name}. Use {example}", "prior.blocks", blocks)
        model.check_size(size_of(scene), ("scenes", "scenes"))


def size_of(scene: SceneViews) -> tuple[int, int]:
    return scene.views.cameras.height, scene.views.cameras.width


class FolderScenes:
    """List of the scenes in a folder (a `SceneSource`): images, cameras, and depth maps if ``depth`` is True.

    The method `scene(index)` reads a scene as `SceneViews`. A scene is a cameras.json with images beside it, in the
    folder or in a subfolder; its depth maps are in depth/, also beside it. Scenes without depth are panoramas. The
    constructor raises ConfigError if a file is missing, or if the cameras of a panorama are not at one position.
    """

    def __init__(self, folder: Path, depth: bool) -> None:
        self.folder, self.depth = folder, depth
        found = sorted([*folder.glob(CAMERAS_FILE), *folder.glob(f"*/{CAMERAS_FILE}")])
        if not found:
            raise ConfigError(f"{folder} has no scenes. Give a folder of folders with {CAMERAS_FILE} and images.", KEY)
        self.scenes = [Scene(path, read_cameras(path, KEY)) for path in found]
        for scene in self.scenes:
            scene.check(depth)
        self.n_view = min(len(scene.file.cameras) for scene in self.scenes)

    def __len__(self) -> int:
        return len(self.scenes)

    def describe(self) -> str:
        return str(self.folder)

    def scene(self, index: int) -> SceneViews:
        return self.scenes[index].read(self.depth)


class Scene:
    """Views of one scene in a folder. ``path`` is the file cameras.json of the scene, and ``file`` its parsed content.

    The scene has depth maps (``depth`` True), or it is a panorama (``depth`` False). `check(depth)` raises ConfigError
    if an image or a depth map is missing, or if the cameras of a panorama are not at one position. `read(depth)`
    returns the images, cameras, captions and any depth maps as `SceneViews`. It raises ConfigError if a file is
    unusable.
    """

    def __init__(self, path: Path, file: CamerasFile) -> None:
        self.path, self.file = path, file
        names = file.files or [f"{number}.png" for number in range(len(file.cameras))]
        self.views = [named_file(path.parent, name, KEY) for name in names]
        self.depths = [path.parent / "depth" / f"{view.stem}.png" for view in self.views]

    def check(self, depth: bool) -> None:
        if missing := [file for file in self.views + self.depths * depth if not file.is_file()]:
            raise ConfigError(f"{printable(missing[0])} is missing", KEY)
        position = self.file.cameras.position
        if not depth and (position - position[0]).norm(dim=1).max() > MAX_MOVE * position.norm(dim=1).max():
            raise ConfigError(f"{self.path} has cameras that move, but views without depth must turn in place", KEY)

    def read(self, depth: bool) -> SceneViews:
        at, prompts = self.file.cameras, self.file.prompts or ("",) * len(self.views)
        images = [np.asarray(load_image(file, key=KEY).convert("RGB")) for file in self.views]
        depths = [read_depth(file, KEY) for file in self.depths * depth]
        if wrong := {part.shape[:2] for part in (*images, *depths)} - {(at.height, at.width)}:
            height, width = wrong.pop()
            raise ConfigError(f"{self.path} is for {at.height} x {at.width} pixels, not {height} x {width}", KEY)
        views = Views(torch.from_numpy(np.stack(images)).float() / 255, at)
        return SceneViews(views, prompts, torch.from_numpy(np.stack(depths)) if depth else None)
