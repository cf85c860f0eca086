"""Storage that fails: the n-th use of a file or folder below a root raises an OSError."""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.listdir", "os.scandir")


def inject(root: Path, number: int, error: int, lasting: bool = False, seconds: float = 0) -> None:
    """Let the `number`-th use of what lies below `root` fail with the errno `error`, `lasting`: also all later ones.

    With `seconds` it does not fail, but takes so long. Uses are opened, renamed, removed, made and listed paths, and
    syncs. The number of uses is written into the file "uses" beside `root` when the process ends.
    """
    place, uses = str(root.resolve()), [0]

    def use() -> None:
        uses[0] += 1
        if uses[0] == number or (lasting and uses[0] > number):
            if not seconds:
                raise OSError(error, os.strerror(error))
            time.sleep(seconds)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and isinstance(arguments[0], str | os.PathLike):
            path = os.path.abspath(os.fspath(arguments[0]))
            if path.startswith(place + os.sep) and not path.endswith("log.txt"):
                use()

    def fsync(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").startswith(place + os.sep):
            use()

    sys.addaudithook(hook)
    os.fsync = fsync
    _at_end(lambda: (root.parent / "uses").write_text(str(uses[0])))


def _at_end(action: Callable[[], object]) -> None:
    leave = os._exit

    def ends(code: int) -> None:
        action()
        leave(code)

    os._exit = ends  # type: ignore[assignment]
