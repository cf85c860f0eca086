"""Saving and loading of trained novel-view models as folders.

FOLDER/config.json          class of the model, its sizes, the training cameras
FOLDER/model.safetensors    weights in float16, if the model is an X-UNet
FOLDER/prior/               diffusers folder of the prior with the trained UNet, if the model works on latents
FOLDER/SHA256SUMS           checksums of all files
"""

from pathlib import Path

from pydantic import ValidationError

from threedgen.config import ConfigError
from threedgen.guidance.priors.mvdream import MVDream
from threedgen.guidance.weights import files
from threedgen.guidance.weights.loading import CONFIG, NOVEL_VIEW_PRIOR, NOVEL_VIEW_TENSORS, novel_view_model
from threedgen.run.disk import write_json

from .latents import LatentPairs
from .options import CamerasConfig, XUNetConfig
from .xunet import XUNet


def save(model: XUNet | LatentPairs, folder: Path, cameras: CamerasConfig | None = None) -> None:
    """Write a model in float16 and the description of its training cameras. A failed write leaves no partial folder.

    Raises:
        ConfigError: `folder` contains other files, or a weight does not fit into float16.
    """
    metadata: dict[str, object] = {"_class_name": type(model).__name__, "cameras": cameras and cameras.model_dump()}
    with files.whole_folder(folder, CONFIG) as part:
        if isinstance(model, LatentPairs):
            metadata["poses"] = model.poses
            model.prior.save(part / NOVEL_VIEW_PRIOR)
        else:
            metadata["network"] = model.config.model_dump(mode="json")
            files.save_tensors(model, part / NOVEL_VIEW_TENSORS)
        write_json(part / CONFIG, metadata)


def load(weights: str) -> tuple[XUNet | LatentPairs, CamerasConfig | None]:
    """Load a frozen model on the CPU, and the description of its training cameras (None if unknown).

    Args:
        weights: name of an embedded model, or path of a folder from `save`.

    Raises:
        ConfigError: a file is missing or damaged.
    """
    path = novel_view_model(weights)
    files.check_sums(path)
    metadata = files.read_json(path / CONFIG)
    try:
        cameras = None if metadata.get("cameras") is None else CamerasConfig.model_validate(metadata["cameras"])
        config = XUNetConfig.model_validate(metadata.get("network") or {})
    except ValidationError as error:
        raise ConfigError(f"{path / CONFIG} is damaged: {error.errors()[0]['msg']}") from None
    if metadata["_class_name"] == "XUNet":
        tensors = files.read_tensors(path / NOVEL_VIEW_TENSORS)
        return files.fill(lambda: XUNet(config), tensors, "3DiM network"), cameras
    if metadata.get("poses") not in ("absolute", "relative"):
        raise ConfigError(f"{path / CONFIG} is damaged: its poses are neither absolute nor relative")
    prior = MVDream.load(str(path / NOVEL_VIEW_PRIOR))
    return LatentPairs(prior, metadata["poses"]).eval().requires_grad_(False), cameras


def digest(weights: str) -> str:
    """Return the SHA-256 of the files of a model. It does not depend on the path of the folder."""
    path = novel_view_model(weights)
    return files.digest(path, sorted(f for f in path.rglob("*") if f.is_file()))
