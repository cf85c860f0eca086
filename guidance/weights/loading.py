"""Finding the files of a prior: shipped with threedgen, in a folder, in one file, on the hub or in the hub's cache.

``check`` is cheap (paths, first bytes, no torch), so that a long run can ask before it starts. All functions
raise ConfigError, one sentence that says what is missing and how to get it.
"""

from __future__ import annotations

import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlparse

from threedgen import folder
from threedgen.config import ConfigError
from threedgen.config.errors import AbsentWeights, short
from threedgen.config.optional import require
from threedgen.guidance.options import COARSE, PARTS, SECOND
from threedgen.run.made_by import made_by

from .files import digest, read_json, sniff

Parts = tuple[str, ...]

EMBEDDED = ("toybox-base", "toybox-prior")
"""Folders in weights/: the 2D model of the toybox, and the multi-view prior that was tuned from it."""
ORIGINALS = {"sd-v2.1-base-4view.pt": "MVDream/MVDream", "sd-v1.5-4view.pt": "MVDream/MVDream"}
MATTE = "toybox-matte"
"""Folder in weights/: the network that tells things from the grey behind them."""
CONFIG, TENSORS = "config.json", "diffusion_pytorch_model.safetensors"
SUBJECT_FORMAT = "threedgen personalisation 1"
FORMER_PART = "draft"
FORMER_BASE = "a72120cb1e2159806c0ca1e82f68cd76c9a61628f658078e940d544c7e2e905b"
"""By what the toybox prior of the release before is known: a folder in its own, and the check sum of what subject
weights are added to."""
RUNS_NOW = "the config mvdream-toybox, with prior.weights=embedded, runs without a download"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
WEIGHT_NAMES = ("diffusion_pytorch_model", "model", "pytorch_model")


def check(weights: str, tokenizer: str | None = None, wanted: Parts = PARTS) -> None:
    """Raises ConfigError when ``weights`` (see ``locate``) plainly cannot be loaded; reads no tensor.

    ``wanted``: the parts of a diffusers folder that have to be there, here and below. Of an id on the hub that is
    not in the local cache, one small file is fetched.
    """
    from .tokens import check_clip_tokenizer

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
    check_clip_tokenizer(tokenizer)  # a single file holds none


def subject_card(path: Path | str) -> dict[str, str]:
    """Reads what the file of subject weights says of itself; no tensor is read."""
    from safetensors import SafetensorError, safe_open

    make = "an mvdreambooth run leaves one behind, RUN/personalisation.safetensors"
    try:
        path = Path(path).expanduser()
        if not path.is_file():
            raise ConfigError(f"there is no file {str(path)[:120]!r}; {make}", "personalisation")
        with safe_open(path, "np") as file:
            card = file.metadata() or {}
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = str(error).split("\n")[0][:80]
        raise ConfigError(f"{str(path)[:120]!r} cannot be read ({reason}); {make}", "personalisation") from None
    if card.get("format") != SUBJECT_FORMAT:
        raise ConfigError(f"{path} is not of the format {SUBJECT_FORMAT!r}; {make}", "personalisation")
    if card.get("base") == FORMER_BASE:
        raise ConfigError(
            f"{path} was tuned from the toybox prior of an earlier release, which this one replaces: teach the subject "
            "anew from its photos, by the config mvdreambooth-toybox",
            "personalisation",
        )
    return card


def locate(weights: str, wanted: Parts = PARTS) -> Path:
    """The local folder or file that ``weights`` names; what is only on the hub is downloaded into the hub's cache.

    ``weights``: a name in ``EMBEDDED``, a folder in diffusers format, a single-file checkpoint, the bare name of an
    original MVDream checkpoint, or a hub id "owner/name".
    """
    if (path := local(weights)) is not None:
        return path
    return hub_file(*hub_name(weights)) if weights in ORIGINALS else hub_folder(weights, wanted)


def awaited(weights: str) -> bool:
    """Is it one of the released checkpoints, and not on this machine yet?"""
    return weights in ORIGINALS and local(weights) is None and cached(*hub_name(weights)) is None


def describe(weights: str, wanted: Parts = PARTS) -> str:
    """`PATH (SIZE, SHA-256 DIGEST)` of ``weights``; of a released checkpoint that is not here it is said only that, and
    how to get it."""
    if awaited(weights):
        return f"{weights}, not on this machine yet; `hf download {ORIGINALS[weights]} {weights}` fetches it"
    return str(identify(weights, wanted))


class Identity(NamedTuple):
    """Which files these are: where, how many bytes in all, and their SHA-256."""

    path: Path
    size: int
    digest: str

    @classmethod
    def of(cls, path: Path, wanted: Parts = PARTS) -> Identity:
        """Reads a file, or the files of tensors in a diffusers folder, whose digest is that of the lines which
        sha256sum prints for them, part by part."""
        files = [path] if path.is_file() else [f for part in parts(path, wanted) for f in tensor_files(path / part)]
        return cls(path, sum(file.stat().st_size for file in files), digest(path, files))

    def __str__(self) -> str:
        return f"{self.path} ({self.size / 1e9:.2f} GB, SHA-256 {self.digest})"


def identify(weights: str, wanted: Parts = PARTS) -> Identity:
    """Reads the files of ``weights``, which are fetched first if they are only on the hub."""
    return Identity.of(locate(weights, wanted), wanted)


def local(weights: str) -> Path | None:
    """The existing folder or file, None for something on the hub, ConfigError for anything else."""
    if weights in EMBEDDED:
        path = folder("weights") / weights
        if not path.is_dir():
            raise ConfigError(f"this installation lacks the embedded {weights}; reinstall threedgen", "weights")
        return path
    if (found := existing(weights)) is not None:
        return found
    if weights in ORIGINALS or is_hub_id(weights):
        return None
    if made := made_by(weights):
        raise ConfigError(f"there is no file or folder {weights!r} yet; {made}", "weights")
    name = Path(weights).name
    fetch = f"; `hf download {ORIGINALS[name]} {name}` fetches it from the hub" if name in ORIGINALS else ""
    raise ConfigError(f"there is no file or folder {weights!r}{fetch}; {RUNS_NOW}", "weights")


def matte(weights: str) -> Path:
    """The folder of a network that tells things from what is behind them: the embedded one, or its path.

    Raises ConfigError; reads no tensor.
    """
    path = folder("weights") / MATTE if weights == MATTE else existing(weights)
    if path is None or not (path / CONFIG).is_file():
        places = f"take {MATTE}, or the folder RUN/matte of a train-toybox-matte run"
        raise ConfigError(f"there is no matte {short(weights)}; {places}", "matte")
    if (name := read_json(path / CONFIG).get("_class_name")) != "Matte":
        raise ConfigError(f"{path / CONFIG} describes {short(name)}, not a matte", "matte")
    sniff(path / TENSORS)
    return path


def existing(weights: str) -> Path | None:
    """The file or folder of this name, if there is one. Raises ConfigError for what can be no path."""
    try:
        path = Path(weights).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, an unknown ~user
        raise ConfigError(f"{short(weights)} is not a path", "weights") from None


def is_hub_id(name: str) -> bool:
    """Is it of the form owner/name, and not rather the path of a file?"""
    form = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII)
    wrong = re.search(r"--|\.\.|[.-]$|[.-]/", name) or name.endswith(WEIGHT_SUFFIXES)
    return bool(form) and len(name) <= 96 and not wrong


def hub_name(weights: str) -> tuple[str, str]:
    """(repository, file that must be there) on the hub."""
    return (ORIGINALS[weights], weights) if weights in ORIGINALS else (weights, "model_index.json")


def cached(repo: str, name: str) -> Path | None:
    """A file of the hub that is already on this machine."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(repo, name)
    except ValueError:  # the hub's own rules for ids
        return None
    return Path(found) if isinstance(found, str) else None


def reachable() -> bool:
    """May the hub be asked? Its own library would retry for half a minute to find out that it cannot."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    try:
        socket.getaddrinfo(urlparse(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return True


def absent(weights: str, why: str = "the hub cannot be reached") -> ConfigError:
    """Says what is missing, how to get it, and what runs without it."""
    (repo, name), original = hub_name(weights), weights in ORIGINALS
    what, file = (f"{name} of {repo}", f" {name}") if original else (repo, "")
    kind = AbsentWeights if original else ConfigError
    return kind(
        f"{weights!r} is neither a file or folder here nor in the hub's cache, and {why}; where "
        f"there is a network, `hf download {repo}{file}` fetches {what}, then give its path; {RUNS_NOW}",
        "weights",
    )


def hub_file(repo: str, name: str) -> Path:
    """A file of the hub, from the cache if it is there."""
    if (found := cached(repo, name)) is not None:
        return found
    weights = name if name in ORIGINALS else repo
    if not reachable():
        raise absent(weights)
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repo, name))
    except Exception as error:  # a dozen kinds: no such repository or file, gated, connection, disk
        raise absent(weights, f"the download failed ({type(error).__name__})") from None


def hub_folder(repo: str, needed: Parts = PARTS) -> Path:
    """A diffusers folder of the hub: only what is read here, no second copies in other formats or precisions."""
    found = cached(repo, "model_index.json")
    if found is not None:
        with suppress(ConfigError):
            return check_folder(found.parent, needed)
    if not reachable():
        raise absent(repo)
    from huggingface_hub import snapshot_download

    wanted = ["model_index.json", "scheduler/*", "tokenizer/*", "tokenizer_2/*", f"{COARSE}/*"]
    needed = (*needed, SECOND)  # of those that have it
    wanted += [f"{part}/config.json" for part in needed]
    for kind in ("safetensors", "bin"):
        files = wanted + [f"{part}/*model*.{kind}*" for part in needed]
        try:
            path = Path(snapshot_download(repo, allow_patterns=files, ignore_patterns=["*fp16*", "*ema*"]))
        except Exception as error:
            raise absent(repo, f"the download failed ({type(error).__name__})") from None
        with suppress(ConfigError):
            return check_folder(path, needed[:-1])
    raise ConfigError(f"{repo!r} on the hub is not a folder in diffusers format with {', '.join(needed)}", "weights")


def check_folder(path: Path, wanted: Parts = PARTS) -> Path:
    """Returns the folder. Raises ConfigError unless every part has a config and readable-looking tensors."""
    if (path / FORMER_PART).is_dir():
        raise ConfigError(
            f"{path} is a toybox prior of an earlier release, which had a network more: use it with that release, or "
            "train one anew, by the configs train-toybox-base and train-toybox-prior",
            "weights",
        )
    for part in parts(path, wanted):
        read_json(path / part / "config.json")
        for file in tensor_files(path / part):
            sniff(file)
    read_json(path / "scheduler" / "scheduler_config.json")
    if not (path / "tokenizer").is_dir():
        raise ConfigError(f"{path} has no folder 'tokenizer'")
    return path


def t5_tokenizer(path: Path) -> Path:
    """Returns the folder. Raises ConfigError if its tokenizer needs a package to be read that is not installed."""
    if not any((path / inside / "tokenizer.json").is_file() for inside in ("tokenizer", ".")):
        require("sentencepiece", "tokenizer: a spiece.model", "put the tokenizer.json of any T5 beside it")
    return path


def parts(path: Path, wanted: Parts = PARTS) -> Parts:
    """Lists the parts of a diffusers folder that hold tensors; some have a coarse predictor or second text encoder."""
    index = path / "model_index.json"
    named = read_json(index) if index.is_file() else {}
    coarse = (COARSE,) if (path / COARSE).is_dir() else ()
    second = named.get(SECOND)  # of SDXL: a class and where it is from, also if the folder is not there
    told = isinstance(second, list) and any(second)
    return (*wanted, *coarse, *((SECOND,) if told or (path / SECOND).is_dir() else ()))


def tensor_files(part: Path) -> list[Path]:
    """The files with the tensors of one part of a diffusers folder; an index file lists shards."""
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
