"""Files of weights that extend a 2D model: MVDiffusion's attention blocks, MV-Adapter's adapters; imports no torch."""

from pathlib import Path
from typing import Literal

from threedgen.config.errors import ConfigError, errors_name_key, short
from threedgen.run.folder import how_to_make

from .addition_files import hub_place
from .files import weight_format
from .hub import cached, hub_file, reachable
from .loading import Identity, embedded, existing_path

Key = Literal["blocks", "adapter"]
FILES: dict[Key, dict[str, str]] = {
    "blocks": {f"toybox-{name}": f"toybox-mvdiffusion/{name}" for name in ("panorama", "outpaint", "depth")},
    "adapter": {f"toybox-{name}": f"toybox-mvadapter/{name}" for name in ("rays", "geometry")},
}
"""Embedded weight files: {config key: {name: path in weights/, without suffix}}. Their 2D model is "toybox-base"."""
SOURCES: dict[Key, str] = {
    "blocks": "train-mvdiffusion leaves one, RUN/blocks.safetensors, and the released ones (pano.ckpt, "
    "pano_outpaint.ckpt, depth_gen.ckpt) are linked on github.com/Tangshitao/MVDiffusion",
    "adapter": "train-mvadapter leaves one, RUN/adapter.safetensors, and the released ones are on the hub, "
    "`hf download huanngzh/mv-adapter`",
}


def choices_help(key: Key, others: str) -> str:
    """Return a comma-separated list for a help text: weight files that come with threedgen, then `others`.

    `key` is the config key of the files, "blocks" (MVDiffusion) or "adapter" (MV-Adapter). `others` is text that
    describes the other values of the key, such as "a released adapter".
    """
    return ", ".join([*FILES[key], others])


def locate(key: Key, name: str) -> Path:
    """Return the path of a weight file. Raises ConfigError for the config key `key` if it is missing.

    `key` is "blocks" (MVDiffusion) or "adapter" (MV-Adapter). `name` is the name of a file that comes with threedgen,
    such as "toybox-panorama", a path, or "owner/name/FILE" on the hub, which is downloaded.
    """
    file = FILES[key].get(name)
    found = existing_path(name) if file is None else embedded(f"{file}.safetensors", key)
    if found is None and (place := hub_place(name)) and not how_to_make(name) and (cached(*place) or reachable()):
        with errors_name_key(key):
            found = hub_file(*place)
    if found is None or not found.is_file():
        made = how_to_make(name)
        remedy = made or f"embedded are {', '.join(FILES[key])}; {SOURCES[key]}"
        raise ConfigError(f"there is no file {short(name, 300)}{' yet' if made else ''}; {remedy}", key)
    return found


def check(key: Key, name: str | None) -> None:
    """Raise ConfigError if the weight file `name` is missing or unreadable. If `name` is None, do nothing.

    `key` is the config key of the file, "blocks" (MVDiffusion) or "adapter" (MV-Adapter). For a file on the hub,
    "owner/name/FILE", only the local cache is checked. If the file is not cached, it counts as missing when the hub
    cannot be reached, and as present otherwise, because `locate` can download it.
    """
    place = None if name is None else hub_place(name)
    if name is not None and (place is None or cached(*place) or how_to_make(name) or not reachable()):
        weight_format(locate(key, name))


def identify(key: Key, name: str | None) -> dict[str, Identity]:
    """Return {key: identity}, with path, size in bytes and SHA-256 of the weight file `name`; {} if `name` is None.

    `key` is the config key of the file, "blocks" (MVDiffusion) or "adapter" (MV-Adapter). Raises ConfigError if the
    file is missing.
    """
    return {} if name is None else {key: Identity.of(locate(key, name))}
