"""Find model files: embedded, local, on the hub or in the hub's cache; imports no torch.

Functions that need a file raise ConfigError if it is missing, with a message that names the file and how to get it.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from threedgen.config import ConfigError
from threedgen.config.command import install
from threedgen.config.errors import short
from threedgen.config.optional import require
from threedgen.places import folder
from threedgen.run.folder import existing_folder, how_to_make

from . import hub
from .families import check_family
from .files import digest, read_header, read_json, weight_format

Parts = tuple[str, ...]

PARTS: Parts = ("unet", "vae", "text_encoder")
"""Sub-folders with networks that a latent prior in diffusers format must have."""
COARSE, SECOND, IMAGE_ENCODER = "coarse", "text_encoder_2", "image_encoder"
"""Other sub-folders: coarse predictor, SDXL's second text encoder, CLIP's image encoder of ImageDream."""
EMBEDDED = BASE, PRIOR = "toybox-base", "toybox-prior"
"""Folders in weights/: the 2D model of toybox images, and the multi-view prior that was fine-tuned from it."""
SHARED_PARTS = "vae", "text_encoder"
"""Networks that are equal in both embedded models, so that only toybox-prior has their tensors."""
CONFIG, TENSORS = "config.json", "diffusion_pytorch_model.safetensors"
PEFT_STEM, PEFT_CONFIG = "adapter_model", "adapter_config.json"  # of a LoRA that peft wrote
NO_CAMERA = (
    "is a 2D model, without MVDream's camera branch. Set prior.name=stable-diffusion too, as --config sds-sd does; "
    "LoRAs of Stable Diffusion 1.5 also fit --config mvdream-sd15"
)
"""Text of the error for a 2D model as the weights of a multi-view prior."""
WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")


def check(weights: str, tokenizer: str | None = None, required_parts: Parts = PARTS) -> None:
    """Raise ConfigError if the weights of a prior are missing or evidently unreadable; reads no tensors.

    For a hub id that is not cached, only model_index.json is downloaded.

    Args:
        weights: name of weights that come with threedgen ("toybox-base" or "toybox-prior"), path, file name of an
            original MVDream or ImageDream checkpoint, or hub id "owner/name" or "owner/name@revision".
        tokenizer: folder or hub id; None: the tokenizer of the weights, or CLIP's for a single file.
        required_parts: names of the sub-folders, such as "unet", that a diffusers folder must have.
    """
    path = local_path(weights)
    if tokenizer is not None and not hub.is_hub_id(tokenizer):
        existing_folder(tokenizer, "tokenizer")
    if path is None:
        repo, name = hub.hub_name(weights)
        if name not in hub.ORIGINALS:
            hub.hub_file(repo, name)
            return
        if hub.cached(repo, name) is None and not hub.reachable():
            raise hub.absent(weights)
    elif path.is_dir():
        check_folder(path, required_parts)
        return
    elif names := read_header(path)[0]:
        check_family(path, names)
    check_clip_tokenizer(tokenizer)  # a single file has none


def locate(weights: str, required_parts: Parts = PARTS) -> Path:
    """Return the local folder or file of `weights`; download it into the hub's cache if needed.

    Args:
        weights: name of weights that come with threedgen ("toybox-base" or "toybox-prior"), a folder in diffusers
            format, a single-file checkpoint, the file name of an original MVDream or ImageDream checkpoint, or a hub id
            "owner/name" or "owner/name@revision".
        required_parts: names of the sub-folders, such as "unet", that a diffusers folder must have.
    """
    if (path := local_path(weights)) is not None:
        return path
    return hub.hub_file(*hub.hub_name(weights)) if weights in hub.ORIGINALS else hub_folder(weights, required_parts)


def local_path(weights: str) -> Path | None:
    """Return the local folder or file of `weights`; None if they have to come from the hub or its cache.

    - "toybox-base" or "toybox-prior", which come with threedgen: their folder.
    - An existing path: this path.
    - A hub id, or the file name of an original MVDream or ImageDream checkpoint: None.
    - Otherwise: ConfigError.
    """
    if weights in EMBEDDED:
        return embedded(weights)
    if (found := existing_path(weights)) is not None:
        return found
    if weights in hub.ORIGINALS or hub.is_hub_id(weights):
        return None
    if made := how_to_make(weights):
        raise ConfigError(f"there is no file or folder {short(weights, 300)} yet; {made}", "weights")
    name = Path(weights).name
    fetch = f"; `hf download {hub.ORIGINALS[name]} {name}` fetches it from the hub" if name in hub.ORIGINALS else ""
    raise ConfigError(f"there is no file or folder {short(weights, 300)}{fetch}; {hub.RUNS_NOW}", "weights")


def embedded(name: str, key: str = "weights") -> Path:
    """Return the path of the weights `name` that come with threedgen, such as "toybox-prior".

    The package contains those of the default config; its optional extra "weights" installs the others. Raises
    ConfigError for the config key `key` if they are missing.
    """
    path = folder("weights") / name
    if not path.exists():
        raise ConfigError(f"this installation lacks the embedded {name}: {install('weights')}", key)
    return path


def existing_path(weights: str) -> Path | None:
    """Return the path `weights` if a file or folder exists there, else None. Raises ConfigError for an invalid path."""
    try:
        path = Path(weights).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, NUL character, unknown ~user
        raise ConfigError(f"{short(weights, 300)} is not a path", "weights") from None


def is_sdxl(weights: str) -> bool:
    """Return whether `weights` (name, path or hub id) belong to SDXL.

    The first case that applies decides:

    - Local or cached diffusers folder: whether it has the network text_encoder_2.
    - Local or cached single file: whether a tensor's name starts with "conditioner.".
    - No readable local files: whether `weights` contains "xl", in upper or lower case.
    """
    with suppress(ConfigError):
        path = local_path(weights)
        index = hub.cached(*hub.hub_name(weights)) if path is None else None
        found = path if index is None else index.parent
        if found is not None and found.is_dir():
            return SECOND in network_folders(found)
        if found is not None and (names := read_header(found)[0]):
            return any(name.startswith("conditioner.") for name in names)
    return "xl" in weights.lower()


def has_camera_branch(weights: str) -> bool:
    """Return whether the UNet of `weights` has MVDream's camera branch, by its tensor names; reads no tensors.

    True if the weights are not on this machine, or the names cannot be read.
    """
    if (path := local_path(weights)) is None:
        return True
    files = tensor_files(path / "unet") if path.is_dir() else [path]
    names = [name for file in files for name in read_header(file)[0]]
    return not names or any("camera_embed." in name or "class_embedding." in name for name in names)


class Identity(NamedTuple):
    """Path, size in bytes and SHA-256 of weights, for the log of a run.

    For a diffusers folder, the size is the sum over its tensor files, and one SHA-256 covers all of them. `configs` is
    the SHA-256 of the files beside them that change results: configs, tokenizers, noise schedule; "" if there are none.
    """

    path: Path
    size: int
    digest: str
    configs: str = ""

    @classmethod
    def of(cls, path: Path, required_parts: Parts = PARTS) -> "Identity":
        """Compute size and SHA-256 of the file `path`, or of the tensor files of a diffusers folder `path`.

        `required_parts` are the required sub-folders of a diffusers folder; tensor files of optional networks also
        count.
        """
        if path.is_file():
            place, files, names = path.parent, [path], [PEFT_CONFIG] if path.stem == PEFT_STEM else []
        else:
            parts = network_folders(path, required_parts)
            place, files = path, [f for part in parts for f in tensor_files(path / part)]
            names = ["scheduler/scheduler_config.json", "tokenizer*/[!.]*", *(f"{part}/{CONFIG}" for part in parts)]
        configs = sorted(file for name in names for file in place.glob(name) if file.is_file())
        size = sum(file.stat().st_size for file in files)
        return cls(path, size, digest(path, files), digest(place, configs) if configs else "")

    def __str__(self) -> str:
        return f"{self.path} ({self.size / 1e9:.2f} GB, SHA-256 {self.digest})"


def identify(weights: str, required_parts: Parts = PARTS) -> Identity:
    """Return path, size in bytes and SHA-256 of `weights` (name, path or hub id), after a download if needed.

    `required_parts` are the required sub-folders of a diffusers folder.
    """
    return Identity.of(locate(weights, required_parts), required_parts)


def is_missing_original(weights: str) -> bool:
    """Return whether `weights` is the name of an original MVDream or ImageDream checkpoint, not downloaded yet."""
    return weights in hub.ORIGINALS and local_path(weights) is None and hub.cached(*hub.hub_name(weights)) is None


def describe(weights: str, required_parts: Parts = PARTS) -> str:
    """Return the text "PATH (SIZE, SHA-256 DIGEST)" about `weights` (name, path or hub id), downloaded if needed.

    `required_parts` are the required sub-folders of a diffusers folder. An original MVDream or ImageDream checkpoint is
    not downloaded; if it is missing, the text has the download command.
    """
    if is_missing_original(weights):
        return f"{weights}, not on this machine yet; `hf download {hub.ORIGINALS[weights]} {weights}` fetches it"
    return str(identify(weights, required_parts))


def check_folder(path: Path, required_parts: Parts = PARTS) -> Path:
    """Return `path`. Raises ConfigError if it is no diffusers folder with the networks `required_parts`.

    The folder must have a scheduler, a tokenizer, and config and tensor files of the required networks and of the
    optional networks that it has, such as "text_encoder_2". No tensors are read.
    """
    if IMAGE_ENCODER in required_parts and not (path / IMAGE_ENCODER).is_dir():
        problem = f"{path} has no folder {IMAGE_ENCODER!r}, so it holds no weights of ImageDream"
        raise ConfigError(f"{problem}; choose prior.name=mvdream", "weights")
    for part in network_folders(path, required_parts):
        read_json(path / part / CONFIG)
        for file in tensor_files(path / part):
            weight_format(file)
    read_json(path / "scheduler" / "scheduler_config.json")
    if not (path / "tokenizer").is_dir():
        raise ConfigError(f"{path} has no folder 'tokenizer'")
    return path


def network_folders(path: Path, required_parts: Parts = PARTS) -> Parts:
    """Return the sub-folders of a diffusers folder that have tensors: `required_parts` and optional ones.

    The optional ones are "coarse" (predicts latents from text and camera in one pass), if it exists, and
    "text_encoder_2" (SDXL's second text encoder), if it exists or model_index.json names it.
    """
    index = path / "model_index.json"
    second = (read_json(index) if index.is_file() else {}).get(SECOND)
    named = isinstance(second, list) and any(second)  # SDXL: [library, class], even if the sub-folder is missing
    coarse = (COARSE,) if (path / COARSE).is_dir() else ()
    return (*required_parts, *coarse, *((SECOND,) if named or (path / SECOND).is_dir() else ()))


def tensor_files(part: Path) -> list[Path]:
    """Return the tensor files in the sub-folder `part` of a diffusers folder: one file, or the shards of an index file.

    For VAE and text encoder of toybox-base, the files are those of toybox-prior: both models come with threedgen and
    share these networks. Raises ConfigError if there are no tensor files.
    """
    for suffix in (".safetensors", ".fp16.safetensors", ".bin"):
        for stem in WEIGHT_NAMES:
            if (part / (stem + suffix)).is_file():
                return [part / (stem + suffix)]
            half = suffix.startswith(".fp16")
            index = part / (f"{stem}.safetensors.index.fp16.json" if half else f"{stem}{suffix}.index.json")
            if index.is_file():
                table = read_json(index).get("weight_map")
                names = list(table.values()) if isinstance(table, dict) else []
                if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names):
                    raise ConfigError(f"{index} is damaged: its weight_map does not name files")
                return [part / name for name in sorted(set(names))]
    if part.name in SHARED_PARTS and part.parent.resolve() == (folder("weights") / BASE).resolve():
        return tensor_files(embedded(PRIOR) / part.name)
    raise ConfigError(f"{part} has no weights: neither {WEIGHT_NAMES[0]}.safetensors nor model.safetensors")


def hub_folder(repo: str, required_parts: Parts = PARTS) -> Path:
    """Return the local copy of a diffusers folder on the hub; download missing files.

    The copy has the networks `required_parts`. Safetensors files are preferred to .bin files, and float32 files to
    float16 files.
    """
    found = hub.cached(repo, "model_index.json")
    if found is not None:
        with suppress(ConfigError):
            return check_folder(found.parent, required_parts)
    if repo in hub.MIRRORS or not hub.reachable():
        raise hub.absent(repo)
    from huggingface_hub import snapshot_download

    name, revision = hub.split_revision(repo)
    networks = (*required_parts, SECOND)
    small = ["model_index.json", "scheduler/*", "tokenizer/*", "tokenizer_2/*", f"{COARSE}/*"]
    small += [f"{part}/{CONFIG}" for part in networks]
    for kind, others in (("*.safetensors*", "*fp16*"), ("*.bin*", "*fp16*"), ("*fp16*", "*.bin*")):
        patterns = small + [f"{part}/*model{kind}" for part in networks]
        try:
            path = Path(
                snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=[others, "*ema*"])
            )
        except Exception as error:
            raise hub.absent(repo, f"the download failed ({type(error).__name__})") from None
        with suppress(ConfigError):
            return check_folder(path, required_parts)
    raise ConfigError(
        f"{short(repo, 300)} on the hub is not a folder in diffusers format with {', '.join(required_parts)}", "weights"
    )


def t5_tokenizer(path: Path) -> Path:
    """Return `path`, the folder of a T5 tokenizer.

    Raises ConfigError if the tokenizer needs the package sentencepiece and this is not installed.
    """
    if not any((path / inside / "tokenizer.json").is_file() for inside in ("tokenizer", ".")):
        require("sentencepiece", "tokenizer: a spiece.model", "put the tokenizer.json of any T5 beside it")
    return path


def tokenizer_folder(path: Path) -> Path:
    return path / "tokenizer" if (path / "tokenizer").is_dir() else path


def check_clip_tokenizer(source: str | None) -> None:
    """Raise ConfigError if CLIP's tokenizer cannot be found; nothing is downloaded.

    `source` is a folder or hub id; None: CLIP's default repository on the hub. A tokenizer on the hub that is not
    cached counts as found if the hub can be reached.
    """
    path = None if source is None else Path(source).expanduser()
    if path is None or not path.is_dir():
        hub.clip_folders(source or hub.CLIP_REPOSITORY)
        return
    path = tokenizer_folder(path)
    if not (path / "tokenizer_config.json").is_file() and not all((path / name).is_file() for name in hub.CLIP_FILES):
        raise ConfigError(
            f"{path} holds no tokenizer: neither tokenizer_config.json nor {hub.CLIP_FILES[0]}", "tokenizer"
        )
