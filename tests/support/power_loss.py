"""Power loss: what a disk may hold when the power fails after any step of a run.

`record` notes each change of names and each sync of this process. Only data that was synced survives. The names survive
either all (the journal was written just before) or as far as their folder was synced.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

Names = dict[int, dict[str, int]]  # inode of a folder -> {name: inode}
State = dict[str, str | None]  # path in the folder -> SHA-256 of the content; None for a folder


class Recorder:
    """The states that the disk may be in below `root`, as lines of the file states.jsonl of the folder `out`."""

    def __init__(self, root: Path, out: Path) -> None:
        self.root, self.out = root, out
        self.synced_data: dict[int, str] = {}
        self.synced_names: Names = {root.stat().st_ino: {}}
        self.held: dict[int, int] = {}  # inode -> a descriptor, so that no other file gets the number
        self.known: set[str] = set()
        out.mkdir()
        self.empty = self._keep(b"")
        for path in (root, *root.rglob("*")):  # what was there before is on the disk
            self._survives(path, path.stat().st_ino)

    def _keep(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.out / digest).write_bytes(data)
        return digest

    def synced(self, descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if self.root not in (path, *path.parents):
            return
        inode = os.fstat(descriptor).st_ino
        if inode not in self.held:
            self.held[inode] = os.dup(descriptor)
        self._survives(path, inode)

    def _survives(self, path: Path, inode: int) -> None:
        if path.is_dir():
            self.synced_names[inode] = {child.name: child.stat().st_ino for child in path.iterdir()}
        else:
            self.synced_data[inode] = self._keep(path.read_bytes())

    def note(self) -> None:
        live: Names = {}
        for folder, _, _ in os.walk(self.root):
            live[os.stat(folder).st_ino] = {child.name: child.stat().st_ino for child in Path(folder).iterdir()}
        for names in (live, self.synced_names):
            state: State = {}
            self._walk(names, live, self.root.stat().st_ino, "", state)
            line = json.dumps(state, sort_keys=True)
            if line not in self.known:
                self.known.add(line)
                with open(self.out / "states.jsonl", "a") as file:
                    file.write(line + "\n")

    def _walk(self, names: Names, live: Names, folder: int, prefix: str, state: State) -> None:
        for name, inode in names.get(folder, {}).items():
            path = f"{prefix}{name}"
            if inode in names or inode in live:
                state[path] = None
                self._walk(names, live, inode, f"{path}/", state)
            else:
                state[path] = self.synced_data.get(inode, self.empty)


def record(root: Path, out: Path) -> None:
    """Let this process write to `out` what a power loss would leave of the folder `root`."""
    recorder = Recorder(root.resolve(), out)

    def noted(name: str) -> Callable[..., Any]:
        real = getattr(os, name)

        def changed(*args: Any, **kwargs: Any) -> Any:
            recorder.note()  # before
            result = real(*args, **kwargs)
            recorder.note()
            return result

        return changed

    for name in ("replace", "rename", "unlink", "remove", "mkdir", "rmdir"):
        setattr(os, name, noted(name))

    def fsync(descriptor: int) -> None:
        recorder.note()
        recorder.synced(descriptor)
        recorder.note()

    os.fsync = fsync


def states(out: Path) -> list[State]:
    return [json.loads(line) for line in (out / "states.jsonl").read_text().splitlines()]


def restore(state: State, out: Path, folder: Path) -> None:
    """Write the files of a state that was recorded in `out` into an empty folder."""
    for name, digest in sorted(state.items()):
        if digest is None:
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes((out / digest).read_bytes())
