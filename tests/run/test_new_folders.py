import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from threedgen.export.asset_folder import write_files
from threedgen.geometry.images import write_depth, write_mp4, write_png
from threedgen.run import disk
from threedgen.run.cache import BlockCache

PIXELS = np.zeros((16, 16, 3), np.uint8)
WRITERS: dict[str, Callable[[Path], object]] = {
    "png": lambda folder: write_png(folder / "a.png", PIXELS),
    "depth": lambda folder: write_depth(folder / "a.png", np.ones((4, 4))),
    "mp4": lambda folder: write_mp4([PIXELS] * 2, folder / "a.mp4"),
    "asset": lambda folder: write_files(folder, {"a.glb": b"glTF"}, {"files": {"a.glb": 4}}),
    "cache": lambda folder: BlockCache(folder, "a", 2, (3,), np.float32, "source"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_new_folders_are_synced_in_their_parents(tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, sync = [], disk.sync
    monkeypatch.setattr(disk, "sync", lambda path: (synced.append(Path(path)), sync(path)))
    WRITERS[writer](tmp_path / "a" / "b")
    assert {tmp_path, tmp_path / "a", tmp_path / "a" / "b"} <= set(synced)


@pytest.mark.parametrize(
    ("number", "refuses", "expected"),
    [(errno.EINVAL, stat.S_ISDIR, 0), (errno.EIO, stat.S_ISDIR, errno.EIO), (errno.EINVAL, stat.S_ISREG, errno.EINVAL)],
)
def test_only_file_systems_without_sync_of_folders_are_accepted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, refuses: Callable[[int], bool], expected: int
) -> None:
    def fsync(descriptor: int) -> None:
        if refuses(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    found = 0
    try:
        disk.write_json(tmp_path / "a" / "b.json", {})
    except OSError as error:
        found = error.errno or 0
    assert found == expected
