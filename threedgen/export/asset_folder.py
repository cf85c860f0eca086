"""The folder of an asset: what an export wrote there, which the next one may replace, and what is somebody else's.

Imports no torch: who asks for an export is told at once what is in its way.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from threedgen.config.errors import ConfigError
from threedgen.config.plain_file import read_json
from threedgen.run.disk import json_text, replacing
from threedgen.run.folder import clear_unfinished, slug

FOLDER, MANIFEST = "asset", "asset.json"
FILE_NAME = r"\w+(\.glb|\.usdz|_obj\.zip)"
"""What the files of an asset are called."""


def asset_name(text: str) -> str:
    """A name for files and nodes that no file system and no engine minds: letters, digits and '_', 40 at most.

    A text without a Latin letter or digit gets one made from its check sum.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:40].strip("_")
    return name or slug(text).replace("-", "_")


def read_manifest(folder: Path) -> dict[str, Any]:
    """asset.json, which says what an asset's folder holds; {} if there is none that can be read."""
    found = read_json(folder / MANIFEST)
    return found if isinstance(found.get("files", {}), dict) else {}


def own_files(folder: Path) -> set[Path]:
    """The files of an earlier export: of a name that an asset's file has, and still with the content that its
    asset.json tells. Anyone may have written that, and anything may lie beside it."""
    told = read_manifest(folder).get("sha256")
    sums = {n: s for n, s in told.items() if re.fullmatch(FILE_NAME, n)} if isinstance(told, dict) else {}
    found = {folder / name: digest for name, digest in sums.items() if (folder / name).is_file()}
    return {path for path, digest in found.items() if hashlib.sha256(path.read_bytes()).hexdigest() == digest}


def refuse_others(folder: Path, names: Iterable[str]) -> None:
    """Raises ConfigError if one of these files, or asset.json, is there and is not as an export left it."""
    own = own_files(folder) | ({folder / MANIFEST} if "files" in read_manifest(folder) else set())
    for path in (folder / name for name in (*names, MANIFEST)):
        if os.path.lexists(path) and path not in own:
            raise ConfigError(f"{path} is from no export or was changed since; move it, or choose another out=", "out")


def write_files(folder: Path, files: Mapping[str, bytes], told: dict[str, Any]) -> None:
    """Puts files and asset.json, which tells of them, in the place of those of an earlier export. Raises OSError.

    All are on the disk before the first is put in its place, and asset.json comes before what it tells of: whenever
    this is stopped, no file is taken for somebody else's afterwards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    clear_unfinished(folder)
    before = own_files(folder)

    def make_way() -> None:
        for path in before:
            path.unlink(missing_ok=True)

    with ExitStack() as stack:  # the last one that was entered is put in its place first
        for name, data in files.items():
            stack.enter_context(replacing(folder / name)).write(data)
        stack.enter_context(replacing(folder / MANIFEST, make_way)).write(json_text(told).encode("utf-8"))


def clear(folder: Path) -> None:
    """Takes away what an export left in a folder, and the folder if nothing else is in it."""
    with suppress(OSError):
        clear_unfinished(folder)
        for path in own_files(folder):
            path.unlink(missing_ok=True)
        if "files" in read_manifest(folder):
            (folder / MANIFEST).unlink()
        folder.rmdir()
