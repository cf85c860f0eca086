"""A trained novel-view model as a folder, and back. torch is imported only to read and write tensors.

FOLDER/config.json          which model it is, its sizes, the cameras of its training
FOLDER/model.safetensors    the weights of an X-UNet, float16
FOLDER/prior/               instead of them: the prior with the trained UNet, a diffusers folder
FOLDER/SHA256SUMS
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from threedgen import folder as project_folder
from threedgen.config import ConfigError
from threedgen.config.errors import short
from threedgen.guidance.weights import files, loading
from threedgen.run.disk import write_json

from .options import CamerasConfig, XUNetConfig

if TYPE_CHECKING:
    from .latents import LatentPairs
    from .xunet import XUNet

CONFIG, TENSORS, PRIOR = "config.json", "model.safetensors", "prior"
KINDS = ("XUNet", "LatentPairs")
EMBEDDED = {"embedded": "threedim-toybox", "embedded-concat": "threedim-toybox-concat"}
"""What a name in the place of a path means: a folder of weights in this installation."""


def save(model: Any, folder: Path, cameras: CamerasConfig | None = None) -> None:
    """Writes an ``XUNet`` or ``LatentPairs`` in float16, whole or not at all; ``cameras``: of its training.

    Raises ConfigError if ``folder`` holds something else, or a weight does not fit into float16.
    """
    metadata: dict[str, Any] = {"_class_name": type(model).__name__, "cameras": cameras and cameras.model_dump()}
    with files.whole_folder(folder, CONFIG) as part:
        if metadata["_class_name"] == "LatentPairs":
            metadata["poses"] = model.poses
            model.prior.save(part / PRIOR)
        else:
            metadata["network"] = model.config.model_dump(mode="json")
            files.save_tensors(model, part / TENSORS)
        write_json(part / CONFIG, metadata)


def check(weights: str) -> Path:
    """The path that ``weights`` names. Raises ConfigError if it plainly cannot be loaded; reads no tensor."""
    own = EMBEDDED.get(weights)
    path = loading.existing(str(project_folder("weights") / own) if own else weights)
    if path is None and own:
        raise ConfigError("this installation lacks the embedded novel-view model; reinstall threedgen", "weights")
    if path is None:
        raise ConfigError(f"there is no file or folder {short(weights)}", "weights")
    if path.is_file():
        files.sniff(path)
    elif kind(path) == "LatentPairs":
        loading.check_folder(path / PRIOR)
    else:
        files.sniff(path / TENSORS)
    return path


def kind(path: Path) -> str:
    """Which model a folder holds. Raises ConfigError for a folder of another kind."""
    if not (path / CONFIG).is_file():
        other = "a text-to-image prior" if (path / "model_index.json").is_file() else f"no {CONFIG}"
        raise ConfigError(f"{path} has {other} in it, not a novel-view model", "weights")
    name = files.read_json(path / CONFIG).get("_class_name")
    if name not in KINDS:
        raise ConfigError(f"{path / CONFIG} describes {short(name)}, not a novel-view model", "weights")
    return str(name)


def load(weights: str) -> tuple[XUNet | LatentPairs, CamerasConfig | None]:
    """A frozen model on the CPU, and the cameras of its training if they are known.

    ``weights``: a name in ``EMBEDDED``, a folder that ``save`` wrote, or a checkpoint of the public PyTorch port.
    Raises ConfigError.
    """
    path = check(weights)
    if path.is_file():
        from .port import load_port

        return load_port(path), None
    files.check_sums(path)
    metadata = files.read_json(path / CONFIG)
    try:
        cameras = None if metadata.get("cameras") is None else CamerasConfig.model_validate(metadata["cameras"])
        network = XUNetConfig.model_validate(metadata.get("network") or {})
    except ValidationError as error:
        raise ConfigError(f"{path / CONFIG} is damaged: {error.errors()[0]['msg']}") from None
    if metadata["_class_name"] == "XUNet":
        from .xunet import XUNet

        return files.fill(lambda: XUNet(network), files.read_tensors(path / TENSORS), "3DiM network"), cameras
    from threedgen.guidance.priors.mvdream import MVDream

    from .latents import LatentPairs

    if metadata.get("poses") not in ("absolute", "relative"):
        raise ConfigError(f"{path / CONFIG} is damaged: its poses are neither absolute nor relative")
    return LatentPairs(MVDream.load(str(path / PRIOR)), metadata["poses"]).eval().requires_grad_(False), cameras


def digest(weights: str) -> str:
    """SHA-256 of the files, whatever their place."""
    path = check(weights)
    return files.digest(path, sorted(f for f in path.rglob("*") if f.is_file()))
