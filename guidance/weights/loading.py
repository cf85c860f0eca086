"""Find the files of models: embedded ones, folders, single files, the hub and its cache (no torch here).

`check` is cheap (paths, first bytes), so a long run can call it before it starts. All functions raise ConfigError with
what is missing and how to get it.
"""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from threedgen.config import ConfigError
from threedgen.config.errors import called, keyed, short
from threedgen.config.optional import require
from threedgen.places import folder
from threedgen.run.made_by import made_by

from .files import digest, read_card, read_json, sniff
from .hub import ORIGINALS, RUNS_NOW, absent, cached, hub_file, hub_name, is_hub_id, reachable

Parts = tuple[str, ...]

PARTS: Parts = ("unet", "vae", "text_encoder")
"""Folders of a latent prior in diffusers format."""
COARSE, SECOND = "coarse", "text_encoder_2"
"""Optional folders: coarse predictor, SDXL's second text encoder."""
EMBEDDED = ("toybox-base", "toybox-prior")
"""Folders in weights/: the toybox's 2D model, and the multi-view prior that was tuned from it."""
MATTE = "toybox-matte"
NOVEL_VIEW = {"embedded": "threedim-toybox", "embedded-concat": "threedim-toybox-concat"}
NOVEL_VIEW_CLASSES = ("XUNet", "LatentPairs")
NOVEL_VIEW_TENSORS, NOVEL_VIEW_PRIOR = "model.safetensors", "prior"
CONFIG, TENSORS = "config.json", "diffusion_pytorch_model.safetensors"
SUBJECT_FORMAT = "threedgen personalisation 1"
WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")
CLIP_REPOSITORY = "openai/clip-vit-large-patch14"
"""Vocabulary that all CLIP text encoders of Stable Diffusion share, OpenCLIP's too."""
CLIP_FILES = ("vocab.json", "merges.txt")


def check(weights: str, tokenizer: str | None = None, wanted: Parts = PARTS) -> None:
    """Raise ConfigError if `weights` plainly cannot be loaded; reads no tensor.

    Fetches one small file of a hub id that is not cached.

    Args:
        weights: see `locate`.
        wanted: required parts of a diffusers folder.
    """
    path = local(weights)
    if tokenizer is not None and not Path(tokenizer).expanduser().is_dir() and not is_hub_id(tokenizer):
        raise ConfigError(f"there is no folder {tokenizer!r}", "tokenizer")
    if path is None:
        repo, name = hub_name(weights)
        if name not in ORIGINALS:
            hub_file(repo, name)
            return
        if cached(repo, name) is None and not reachable():
            raise absent(weights)
    elif path.is_dir():
        check_folder(path, wanted)
        return
    else:
        sniff(path)
    check_clip_tokenizer(tokenizer)  # a single file has none


def locate(weights: str, wanted: Parts = PARTS) -> Path:
    """Return the local folder or file of `weights`, after a download into the hub's cache if needed.

    Args:
        weights: a name in `EMBEDDED`, a folder in diffusers format, a single-file checkpoint, the name of an original
            MVDream checkpoint, or a hub id "owner/name".
    """
    if (path := local(weights)) is not None:
        return path
    return hub_file(*hub_name(weights)) if weights in ORIGINALS else hub_folder(weights, wanted)


def local(weights: str) -> Path | None:
    """Return the existing folder or file of `weights`; None if it is on the hub. Raises ConfigError for neither."""
    if weights in EMBEDDED:
        return embedded(weights)
    if (found := existing(weights)) is not None:
        return found
    if weights in ORIGINALS or is_hub_id(weights):
        return None
    if made := made_by(weights):
        raise ConfigError(f"there is no file or folder {weights!r} yet; {made}", "weights")
    name = Path(weights).name
    fetch = f"; `hf download {ORIGINALS[name]} {name}` fetches it from the hub" if name in ORIGINALS else ""
    raise ConfigError(f"there is no file or folder {weights!r}{fetch}; {RUNS_NOW}", "weights")


def embedded(name: str) -> Path:
    """Return a folder of weights that comes with threedgen."""
    path = folder("weights") / name
    if not path.is_dir():
        raise ConfigError(f"this installation lacks the embedded {name}; reinstall threedgen", "weights")
    return path


def existing(weights: str) -> Path | None:
    """Return the file or folder of this name, if it exists. Raises ConfigError for what cannot be a path."""
    try:
        path = Path(weights).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, NUL character, unknown ~user
        raise ConfigError(f"{short(weights)} is not a path", "weights") from None


# --- identity -----------------------------------------------------------------------------------------------------


class Identity(NamedTuple):
    """Path, total size in bytes and SHA-256 of a file, or of the tensor files in a diffusers folder."""

    path: Path
    size: int
    digest: str

    @classmethod
    def of(cls, path: Path, wanted: Parts = PARTS) -> Identity:
        """Read the files; the digest of a folder is that of the lines that sha256sum prints for them."""
        files = [path] if path.is_file() else [f for part in parts(path, wanted) for f in tensor_files(path / part)]
        return cls(path, sum(file.stat().st_size for file in files), digest(path, files))

    def __str__(self) -> str:
        return f"{self.path} ({self.size / 1e9:.2f} GB, SHA-256 {self.digest})"


def identify(weights: str, wanted: Parts = PARTS) -> Identity:
    """Return the identity of `weights`, after a download if needed."""
    return Identity.of(locate(weights, wanted), wanted)


def awaited(weights: str) -> bool:
    """Return whether `weights` is an original checkpoint that is not on this machine yet."""
    return weights in ORIGINALS and local(weights) is None and cached(*hub_name(weights)) is None


def describe(weights: str, wanted: Parts = PARTS) -> str:
    """Return "PATH (SIZE, SHA-256 DIGEST)"; of an original checkpoint that is missing, its download command."""
    if awaited(weights):
        return f"{weights}, not on this machine yet; `hf download {ORIGINALS[weights]} {weights}` fetches it"
    return str(identify(weights, wanted))


# --- folders in diffusers format ------------------------------------------------------------------------------------


def check_folder(path: Path, wanted: Parts = PARTS) -> Path:
    """Return the folder. Raises ConfigError unless every part has a config and readable-looking tensors."""
    for part in parts(path, wanted):
        read_json(path / part / CONFIG)
        for file in tensor_files(path / part):
            sniff(file)
    read_json(path / "scheduler" / "scheduler_config.json")
    if not (path / "tokenizer").is_dir():
        raise ConfigError(f"{path} has no folder 'tokenizer'")
    return path


def parts(path: Path, wanted: Parts = PARTS) -> Parts:
    """Return the parts of a diffusers folder with tensors: `wanted`, then optional ones that it has or names."""
    index = path / "model_index.json"
    second = (read_json(index) if index.is_file() else {}).get(SECOND)
    named = isinstance(second, list) and any(second)  # [library, class], of SDXL, even if the folder is missing
    coarse = (COARSE,) if (path / COARSE).is_dir() else ()
    return (*wanted, *coarse, *((SECOND,) if named or (path / SECOND).is_dir() else ()))


def tensor_files(part: Path) -> list[Path]:
    """Return the files with the tensors of one part of a diffusers folder; an index file lists shards."""
    for suffix in (".safetensors", ".fp16.safetensors", ".bin"):
        for stem in WEIGHT_NAMES:
            if (part / (stem + suffix)).is_file():
                return [part / (stem + suffix)]
            index = part / f"{stem}{suffix}.index.json"
            if index.is_file():
                table = read_json(index).get("weight_map")
                names = list(table.values()) if isinstance(table, dict) else []
                if not names or not all(isinstance(name, str) and re.fullmatch(r"[\w.-]+", name) for name in names):
                    raise ConfigError(f"{index} is damaged: its weight_map does not name files")
                return [part / name for name in sorted(set(names))]
    raise ConfigError(f"{part} has no weights: neither {WEIGHT_NAMES[0]}.safetensors nor model.safetensors")


def hub_folder(repo: str, wanted: Parts = PARTS) -> Path:
    """Return a diffusers folder of the hub; downloads each part once, safetensors if possible."""
    found = cached(repo, "model_index.json")
    if found is not None:
        with suppress(ConfigError):
            return check_folder(found.parent, wanted)
    if not reachable():
        raise absent(repo)
    from huggingface_hub import snapshot_download

    networks = (*wanted, SECOND)
    small = ["model_index.json", "scheduler/*", "tokenizer/*", "tokenizer_2/*", f"{COARSE}/*"]
    small += [f"{part}/{CONFIG}" for part in networks]
    for kind in ("safetensors", "bin"):
        patterns = small + [f"{part}/*model*.{kind}*" for part in networks]
        try:
            path = Path(snapshot_download(repo, allow_patterns=patterns, ignore_patterns=["*fp16*", "*ema*"]))
        except Exception as error:
            raise absent(repo, f"the download failed ({type(error).__name__})") from None
        with suppress(ConfigError):
            return check_folder(path, wanted)
    raise ConfigError(f"{repo!r} on the hub is not a folder in diffusers format with {', '.join(wanted)}", "weights")


# --- other models -------------------------------------------------------------------------------------------------


def matte(weights: str) -> Path:
    """Return the folder of a matte network: `MATTE`, or a path; reads no tensor."""
    path = embedded(MATTE) if weights == MATTE else existing(weights)
    if path is None or not (path / CONFIG).is_file():
        sources = f"take {MATTE}, or the folder RUN/matte of a train-toybox-matte run"
        raise ConfigError(f"there is no matte {short(weights)}; {sources}", "matte")
    class_name(path, ("Matte",), "a matte", "matte")
    sniff(path / TENSORS)
    return path


def class_name(path: Path, known: tuple[str, ...], what: str, key: str = "weights") -> str:
    """Return the class that a folder's config describes. Raises ConfigError for an unknown one."""
    name = read_json(path / CONFIG).get("_class_name")
    if name not in known:
        raise ConfigError(f"{path / CONFIG} describes {short(name)}, not {what}", key)
    return str(name)


def novel_view_model(weights: str) -> Path:
    """Return the folder of a novel-view model: a name in `NOVEL_VIEW`, or a path; reads no tensor."""
    path = embedded(NOVEL_VIEW[weights]) if weights in NOVEL_VIEW else existing(weights)
    if path is None:
        raise ConfigError(f"there is no file or folder {short(weights)}", "weights")
    if not (path / CONFIG).is_file():
        other = "a text-to-image prior" if (path / "model_index.json").is_file() else f"no {CONFIG}"
        raise ConfigError(f"{path} has {other} in it, not a novel-view model", "weights")
    if class_name(path, NOVEL_VIEW_CLASSES, "a novel-view model") == "LatentPairs":
        check_folder(path / NOVEL_VIEW_PRIOR)
    else:
        sniff(path / NOVEL_VIEW_TENSORS)
    return path


def subject_card(path: Path | str) -> dict[str, str]:
    """Return the metadata of a file of subject weights; reads no tensor."""
    source = "an mvdreambooth run leaves one behind, RUN/personalisation.safetensors"
    with keyed("personalisation"), called("personalisation"):
        found = existing(str(path))
        if found is None:
            raise ConfigError(f"there is no file {short(str(path))}; {source}")
        card = read_card(found, SUBJECT_FORMAT)
        if not card:
            raise ConfigError(f"{found} is not of the format {SUBJECT_FORMAT!r}; {source}")
    return card


# --- tokenizers ---------------------------------------------------------------------------------------------------


def t5_tokenizer(path: Path) -> Path:
    """Return the folder. Raises ConfigError if its tokenizer needs a package that is not installed."""
    if not any((path / inside / "tokenizer.json").is_file() for inside in ("tokenizer", ".")):
        require("sentencepiece", "tokenizer: a spiece.model", "put the tokenizer.json of any T5 beside it")
    return path


def tokenizer_folder(path: Path) -> Path:
    """Return `path`, or its sub-folder "tokenizer" if there is one."""
    return path / "tokenizer" if (path / "tokenizer").is_dir() else path


def check_clip_tokenizer(source: str | None) -> None:
    """Raise ConfigError if `tokens.clip_tokenizer` plainly cannot succeed; fetches nothing."""
    path = None if source is None else Path(source).expanduser()
    if path is None or not path.is_dir():
        clip_folders(source or CLIP_REPOSITORY)
        return
    path = tokenizer_folder(path)
    if not (path / "tokenizer_config.json").is_file() and not all((path / name).is_file() for name in CLIP_FILES):
        raise ConfigError(f"{path} holds no tokenizer: neither tokenizer_config.json nor {CLIP_FILES[0]}", "tokenizer")


def clip_folders(repo: str) -> list[str]:
    """Return folders of a repository that may have CLIP's tokenizer, or the one that is cached."""
    folders = ["", "tokenizer/"]
    here = [inside for inside in folders if all(cached(repo, inside + name) for name in CLIP_FILES)]
    if not here and not reachable():
        raise ConfigError(
            f"this checkpoint holds no tokenizer, and {repo} is not in the hub's cache nor can the hub be reached; "
            f"copy CLIP's vocab.json and merges.txt into a folder and set tokenizer: FOLDER; {RUNS_NOW}",
            "tokenizer",
        )
    return here or folders


def clip_files(repo: str) -> Path:
    """Return the folder of a repository's CLIP tokenizer, after a download if needed."""
    problem = ConfigError("")
    for inside in clip_folders(repo):
        try:
            return [hub_file(repo, inside + name) for name in CLIP_FILES][0].parent
        except ConfigError as error:
            problem = error
    raise problem
