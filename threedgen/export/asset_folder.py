"""Folder of an exported asset: list, check and replace the files of an earlier export. This module imports no torch."""

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from threedgen.config.errors import ConfigError, short
from threedgen.config.plain_file import read_json
from threedgen.run.disk import Tree, atomic_file, json_text, make_folder, sync_file
from threedgen.run.folder import remove_temporary_files, slug

FOLDER, MANIFEST = "asset", "asset.json"
SET = "set.glb"  # all assets of a batch in one file
GODOT_HINT = r"_(noimp|(conv)?col(only)?|navmesh|occ(only)?|rigid|vehicle|wheel|alpha|vcol)[\d_]*$"
"""Regular expression for ends of node and material names by which Godot changes the object, whatever their case."""
FILE_NAME = r"\w+(\.glb|\.usdz|_obj\.zip)"  # regular expression that matches the file names of assets


def asset_name(text: str) -> str:
    """Convert a text to a name for files and glTF nodes: at most 40 ASCII letters, digits and `_`.

    Each run of other characters becomes one `_`. A text without ASCII letters and digits gets a name with a
    checksum of the text. If Godot would take the end of the name as an import hint, as in "a_ferris_wheel", which
    becomes a wheel of a vehicle, `_asset` is appended.
    """
    name = re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")[:40].strip("_")
    if re.search(GODOT_HINT, name, re.IGNORECASE):
        name = f"{name[:34].strip('_')}_asset"
    return name or slug(text).replace("-", "_")


def read_manifest(folder: Path) -> Tree:
    """Return the content of asset.json in the folder; an empty dict if the file is missing or invalid."""
    found = read_json(folder / MANIFEST)
    return found if all(isinstance(found.get(key, {}), dict) for key in ("files", "options")) else {}


def exported_files(folder: Path) -> set[Path]:
    """Return the paths of the files in the folder that an earlier export wrote and that are unchanged since.

    These are the files whose SHA-256 is equal to the one in asset.json.
    """
    listed = read_manifest(folder).get("sha256")
    sums = {n: s for n, s in listed.items() if re.fullmatch(FILE_NAME, n)} if isinstance(listed, dict) else {}
    existing = {folder / name: digest for name, digest in sums.items() if (folder / name).is_file()}
    return {path for path, digest in existing.items() if hashlib.sha256(path.read_bytes()).hexdigest() == digest}


def check_overwrite(folder: Path, names: Iterable[str], run: str | None = None) -> None:
    """Raise ConfigError if an export of files with these `names` would overwrite a file of the user or of another run.

    An existing file with one of the names, or asset.json, counts as a file of the user unless an export wrote it and it
    is unchanged. The files belong to another run if asset.json has an entry `run` other than `run`. None: any run.
    """
    other = read_manifest(folder).get("run", run)
    if run is not None and other != run:
        raise ConfigError(f"{folder} has the asset of the run {short(other)}. Delete it, or set another out", "out")
    own = exported_files(folder) | ({folder / MANIFEST} if "files" in read_manifest(folder) else set())
    for path in (folder / name for name in (*names, MANIFEST)):
        if os.path.lexists(path) and path not in own:
            raise ConfigError(f"{path} was not written by an export or has changed. Move it, or set another out", "out")


def write_files(folder: Path, files: Mapping[str, bytes], manifest: Tree) -> None:
    """Write the files of an asset and asset.json to `folder`, and delete the files of an earlier export.

    Earlier files that were changed since are not deleted. The order of the steps is such that asset.json lists all
    files of an export in `folder` even after an interruption, so that the next export may replace them:

    1. Write all data under temporary names.
    2. Delete the earlier files.
    3. Rename the new asset.json, which replaces the old one.
    4. Rename the other new files, which it lists.

    Args:
        files: file name -> content.
        manifest: content of asset.json. Its entry `sha256` maps each file name to the SHA-256 of the content, in hex.
    """
    make_folder(folder)
    remove_temporary_files(folder)
    previous = exported_files(folder)

    def delete_previous() -> None:
        for path in previous:
            path.unlink(missing_ok=True)

    with ExitStack() as stack:  # files are renamed in reverse order of entry
        for name, data in files.items():
            file = stack.enter_context(atomic_file(folder / name))
            file.write(data)
            sync_file(file)  # if the disk is full, before the earlier files are deleted
        stack.enter_context(atomic_file(folder / MANIFEST, delete_previous)).write(json_text(manifest).encode("utf-8"))


def clear(folder: Path) -> None:
    """Delete asset.json and the files of an earlier export, which it lists, from `folder`; then the folder if empty.

    Files that were changed after the export are kept: their SHA-256 is not the one in asset.json. File system errors
    are ignored.
    """
    with suppress(OSError):
        remove_temporary_files(folder)
        for path in exported_files(folder):
            path.unlink(missing_ok=True)
        if "files" in read_manifest(folder):
            (folder / MANIFEST).unlink()
        folder.rmdir()
