"""Find models that are not priors: foreground mattes and novel-view models; imports no torch."""

from pathlib import Path

from threedgen.config import ConfigError
from threedgen.config.errors import short
from threedgen.config.optional import require

from .files import read_json, weight_format
from .hub import folder_hint
from .loading import CONFIG, TENSORS, check_folder, embedded, existing_path

MATTE, REMBG, GRABCUT = "toybox-matte", "rembg", "grabcut"
NOVEL_VIEW = {"embedded": "threedim-toybox", "embedded-concat": "threedim-toybox-concat"}
NOVEL_VIEW_CLASSES = ("XUNet", "LatentPairs")
NOVEL_VIEW_TENSORS, NOVEL_VIEW_PRIOR = "model.safetensors", "prior"


def matte_folder(weights: str) -> Path:
    """Return the folder of a matte network, from the name "toybox-matte" or a path; no tensor is read.

    A matte network predicts the opacity of the object in an image. Raises ConfigError if there is no such folder, or it
    has another network.
    """
    path = embedded(MATTE) if weights == MATTE else existing_path(weights)
    if path is None or not (path / CONFIG).is_file():
        sources = f"take {REMBG}, {GRABCUT}, {MATTE}, or the folder RUN/matte of a train-toybox-matte run"
        raise ConfigError(f"there is no matte {short(weights, 300)}; {sources}{folder_hint(weights)}", "matte")
    class_name(path, ("Matte",), "a matte", "matte")
    weight_format(path / TENSORS)
    return path


def check_matte(remover: str) -> None:
    """Raise ConfigError if the background remover `remover` is not available.

    `remover` is "rembg" or "grabcut" (OpenCV), whose package must be installed, or a matte network: "toybox-matte" or
    the path of its folder.
    """
    modules = {REMBG: ("rembg", "onnxruntime"), GRABCUT: ("cv2",)}.get(remover, ())
    if not modules:
        matte_folder(remover)
    for module in modules:
        require(module, f"matte: {remover}", "take an image with a transparent or plain background")


def check_image(path: Path, matte: str | None) -> None:
    """Raise ConfigError if an image cannot be read or its object cannot be cut out.

    `matte` is the background remover, which must be available: "rembg", "grabcut", or the name or folder of a network
    that predicts opacity, such as "toybox-matte". None: the image must have a transparent or plain background.
    """
    from threedgen.geometry.image_file import load_image, read_foreground  # NumPy, which --help does without

    if matte is None:
        read_foreground(str(path))
    else:
        load_image(path, key="image")
        check_matte(matte)


def class_name(path: Path, known: tuple[str, ...], what: str, key: str = "weights") -> str:
    """Return the class name of the network in the folder `path`, from the entry _class_name in its config.

    Raises ConfigError for the config key `key` if the name is not in `known`. `what` describes the expected content in
    the message, such as "a matte".
    """
    name = read_json(path / CONFIG).get("_class_name")
    if name not in known:
        raise ConfigError(f"{path / CONFIG} describes {short(name)}, not {what}", key)
    return str(name)


def novel_view_model(weights: str) -> Path:
    """Return the folder of a novel-view model, which predicts a view of a scene from another view and both poses.

    `weights` is a path, or the name of a model that comes with threedgen: "embedded" (an X-UNet, as in 3DiM) or
    "embedded-concat" (the two views as channels of one input). No tensor is read. Raises ConfigError if it is missing.
    """
    path = embedded(NOVEL_VIEW[weights]) if weights in NOVEL_VIEW else existing_path(weights)
    if path is None or not (path / CONFIG).is_file():
        problem = f"there is no novel-view model {short(weights, 300)}: a folder with {CONFIG}"
        raise ConfigError(f"{problem}{folder_hint(weights)}", "weights")
    if class_name(path, NOVEL_VIEW_CLASSES, "a novel-view model") == "LatentPairs":
        check_folder(path / NOVEL_VIEW_PRIOR)
    else:
        weight_format(path / NOVEL_VIEW_TENSORS)
    return path
