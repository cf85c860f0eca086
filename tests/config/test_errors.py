import errno
import os

import pytest

from threedgen.config.errors import ConfigError, FileError, OutOfMemory, as_expected_error, storage_error


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "kind", "storage"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), FileError, True),
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), None, False),
        (raised_from(ConfigError("unreadable"), OSError(errno.EROFS, "read-only")), ConfigError, True),
        (RuntimeError("DefaultCPUAllocator: Error code 12 (Cannot allocate memory)"), OutOfMemory, False),
        (raised_from(OSError("no library"), OSError("failed to map segment from shared object")), OutOfMemory, False),
    ],
)
def test_expected_errors_are_told_from_bugs(error: Exception, kind: type[Exception] | None, storage: bool) -> None:
    assert type(as_expected_error(error)) is (kind or type(None)) and bool(storage_error(error)) == storage
