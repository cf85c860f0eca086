import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from threedgen.run import disk


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
