"""Storage that fails or is slow: the n-th use of a file or folder below a root, through storage_faults.c."""

import ctypes
import functools
import os
import shutil
import subprocess
from pathlib import Path

from tests.support.kept_folder import made_once

SOURCE = Path(__file__).with_suffix(".c")


@functools.cache
def preloaded() -> dict[str, str]:
    """Return the environment of a process whose storage can fail; {} without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None or not os.path.exists("/proc/self/fd"):
        return {}

    def make(folder: Path) -> None:
        command = [compiler, "-O1", "-w", "-shared", "-fPIC", "-o", str(folder / "faults.so"), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True)

    return {"LD_PRELOAD": str(made_once("storage_faults", make) / "faults.so")}


def inject(root: Path, number: int, error: int = 0, lasting: bool = False, seconds: float = 0) -> None:
    """Let the `number`-th use of what lies below `root` fail with the errno `error`, `lasting`: also all later ones.

    With `seconds` it does not fail, but takes so long. If `error` is negative, the process gets the signal -`error`
    instead. Uses are opened, read, written, synced, renamed, removed, made and listed files and folders. Their number
    is written into the file "uses" beside `root` when the process ends.
    """
    import posix

    library, leave = ctypes.CDLL(None), os._exit
    os.fsync = posix.fsync

    def ends(code: int) -> None:
        (root.parent / "uses").write_text(str(library.storage_uses()))
        leave(code)

    os._exit = ends  # type: ignore[assignment]
    place = os.fsencode(root.resolve())
    library.storage_faults(place, ctypes.c_long(number), error, int(lasting), int(1e6 * seconds))
