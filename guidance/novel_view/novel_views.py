"""Trained novel-view models as folders, and their sampler (interface `threedgen.geometry.views.NovelViewSampler`).

FOLDER/config.json          class (XUNet or LatentPairs), options of an X-UNet (`XUNetConfig`), training cameras
FOLDER/model.safetensors    weights in float16, if the model is an X-UNet
FOLDER/prior/               diffusers folder of the prior with the trained UNet, if the model works on latents
FOLDER/SHA256SUMS           checksums of all files
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from threedgen.config import ConfigError, config_hash
from threedgen.geometry.views import Request, Views, resize
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights import files
from threedgen.guidance.weights.loading import CONFIG
from threedgen.guidance.weights.other_models import NOVEL_VIEW_PRIOR, NOVEL_VIEW_TENSORS, novel_view_model
from threedgen.run.disk import write_json
from threedgen.run.dtypes import compute_dtype
from threedgen.run.seeding import generator

from .options import CamerasConfig, ThreeDiMSamplerConfig, XUNetConfig
from .sampler import Progress, sample_views
from .xunet import LatentPairs, XUNet

DECODE_BATCH = 16
INTRINSICS_TOLERANCE = 1e-3  # largest difference, in image heights, between intrinsics that count as equal


class ThreeDiMSampler:
    """Sampler of novel views with a 3DiM model, a diffusion model that denoises a view of a scene, given another view.

    A call takes requests (`Request`), each with input views, T target cameras and a seed. For each request it returns
    the T target views as a tensor (T, H, W, 3) in [0, 1] on the CPU. H and W are the model's image size.

    The target views of a scene are sampled one after the other. By default each denoising step is conditioned on a
    random one of the input views and the views sampled before.
    """

    needs_text, needs_condition, on_disk = False, True, False

    def __init__(self, config: ThreeDiMSamplerConfig, progress: Progress | None = None) -> None:
        self.config, self.progress = config, progress
        model, self.cameras = load(config.weights)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: XUNet | LatentPairs = model.to(self.device)
        self.dtype = compute_dtype(config.dtype, self.device)
        if config.compile:
            self.model.unet.compile()

    def __call__(self, requests: Sequence[Request]) -> list[Tensor]:
        batches: dict[tuple[int, int], list[int]] = {}
        for k, request in enumerate(requests):
            batches.setdefault((len(condition_views(request)), len(request.target)), []).append(k)
        views: dict[int, Tensor] = {}
        for numbers in batches.values():
            views |= dict(zip(numbers, self.sample([requests[k] for k in numbers]), strict=True))
        return [views[k] for k in range(len(requests))]

    def sample(self, requests: Sequence[Request]) -> Tensor:
        """Sample the T target views of each of S requests; return (S, T, H, W, 3) in [0, 1] on the CPU.

        A request has input views, T target cameras and a seed. All requests must have the same number of input views
        and the same T. H and W are the model's image size, to which the input views are resized.
        """
        height, width = self.model.image_size
        images = torch.stack([resize(condition_views(r).images, height, width) for r in requests]).to(self.device)
        x = self.model.encode_images(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        c2w = torch.stack([condition_views(r).cameras.c2w for r in requests]).to(self.device)
        targets = torch.stack([r.target.c2w for r in requests]).to(self.device)
        K = torch.stack([intrinsics(r, height, width) for r in requests]).to(self.device)
        o = self.config
        rngs = [generator(r.seed, 0, f"novel views of {r.scene}") for r in requests]
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            views = sample_views(
                self.model, x, c2w, targets, K, rngs, o.strategy, o.last, o.steps, o.guidance_scale, self.progress
            )
        decoded = torch.cat([self.model.decode_images(part) for part in views.flatten(0, 1).split(DECODE_BATCH)])
        return decoded.float().cpu().unflatten(0, views.shape[:2])

    def fingerprint(self) -> str:
        rest = self.config.model_copy(update={"weights": None, "compile": False})
        return f"{digest(self.config.weights)} {config_hash(rest)}"


def condition_views(request: Request) -> Views:
    if request.condition is None or not len(request.condition):
        raise ConfigError(f"{request.scene} has no input view, which this sampler needs")
    return request.condition


def intrinsics(request: Request, height: int, width: int) -> Tensor:
    """Return the camera intrinsics K (3, 3), in pixels, of the views of a request when resized to `height` x `width`.

    A request has input views and target cameras, which must all have the same intrinsics; else ConfigError is raised.
    """
    both = condition_views(request).cameras.with_size(height, width).K, request.target.with_size(height, width).K
    every = torch.cat(both)
    if (every - every[0]).abs().max() > INTRINSICS_TOLERANCE * height:
        raise ConfigError(f"{request.scene}: its views have several focal lengths or principal points; 3DiM needs one")
    return every[0]


def save(model: XUNet | LatentPairs, folder: Path, cameras: CamerasConfig | None = None) -> None:
    """Write a model, with weights in float16, and its training cameras (None: unknown) to a folder.

    The folder gets config.json, SHA256SUMS, and the weights: model.safetensors (X-UNet) or the diffusers folder prior/
    (LatentPairs). They replace those of an earlier model; other files stay. Raises ConfigError if the folder has files,
    but no config.json, or if a weight overflows in float16.
    """
    metadata: dict[str, object] = {"_class_name": type(model).__name__, "cameras": cameras and cameras.model_dump()}
    with files.replaced_folder(folder, CONFIG) as part:
        if isinstance(model, LatentPairs):
            model.prior.save(part / NOVEL_VIEW_PRIOR)
        else:
            metadata["network"] = model.config.model_dump(mode="json")
            files.save_tensors(model, part / NOVEL_VIEW_TENSORS)
        write_json(part / CONFIG, metadata)


def load(weights: str) -> tuple[XUNet | LatentPairs, CamerasConfig | None]:
    """Load a frozen novel-view model to the CPU; return the model and its training cameras (None if unknown).

    `weights` is the folder of a model, or the name of one that comes with threedgen: "embedded" (an X-UNet, whose input
    and output views attend to each other) or "embedded-concat" (its baseline, which takes the input view as additional
    channels). Raises ConfigError if files are missing or damaged.
    """
    path = novel_view_model(weights)
    files.check_sums(path)
    metadata = files.read_json(path / CONFIG)
    try:
        cameras = None if metadata.get("cameras") is None else CamerasConfig.model_validate(metadata["cameras"])
        config = XUNetConfig.model_validate(metadata.get("network") or {}, extra="ignore")
    except ValidationError as error:
        raise ConfigError(f"{path / CONFIG} is damaged: {error.errors()[0]['msg']}") from None
    if metadata["_class_name"] == "XUNet":
        tensors = files.read_tensors(path / NOVEL_VIEW_TENSORS)
        return files.build_from_tensors(lambda: XUNet(config), tensors, "3DiM network"), cameras
    prior = MVDream.load(str(path / NOVEL_VIEW_PRIOR))
    return LatentPairs(prior).eval().requires_grad_(False), cameras


def digest(weights: str) -> str:
    """Return the SHA-256 of all files of a model, independent of the path of its folder.

    `weights` is the folder of the model, or "embedded" or "embedded-concat", the models that come with threedgen.
    """
    path = novel_view_model(weights)
    return files.digest(path, sorted(f for f in path.rglob("*") if f.is_file()))
