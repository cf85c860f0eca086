"""Who does what: files in a folder that all workers share, of one machine or of many. No server, no lock.

    claims/KEY.0001    JSON: who, which attempt it is, in which state, how long it has worked

A job belongs to the newest of its claims. A claim is made by creating its file, which the file system lets only one
worker do; it is alive while its content changes. Whoever sees one stand still creates the next. So nothing is ever
taken away, and two cannot win.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from threedgen.run.folder import write_atomic

WORKING, RELEASED, STUMBLED, REFUSED, FINISHED, FAILED = (
    "working", "released", "stumbled", "refused", "finished", "failed",
)  # fmt: skip
FINAL = (FINISHED, FAILED)
"""Released: stopped by the user, not counted as an attempt. Stumbled: an error that may not come again. Refused: the
method cannot run, as things are. Failed: it is no use."""
LOST_WORKER = 3
"""Exit code of a worker whose parent is gone."""


def place() -> str:
    """The space in which process numbers mean something: host, boot, and process namespace."""
    parts = [socket.gethostname()]
    for path, read in (("/proc/sys/kernel/random/boot_id", Path.read_text), ("/proc/self/ns/pid", os.readlink)):
        try:
            parts.append(str(read(Path(path))).strip())
        except OSError:  # not Linux
            continue
    return "/".join(parts)


@dataclass
class Claims:
    """The claims in ``folder``, as one worker sees them. Times in seconds."""

    folder: Path
    heartbeat: float = 5.0
    lost_after: float = 60.0
    attempts: int = 3
    _place: str = field(default_factory=place)
    _final: dict[str, dict[str, Any]] = field(default_factory=dict)
    _watched: dict[Path, tuple[bytes, float]] = field(default_factory=dict)

    def newest(self) -> dict[str, int]:
        """Key -> number of its newest claim."""
        found: dict[str, int] = {}
        for name in os.listdir(self.folder) if self.folder.is_dir() else ():
            key, _, number = name.rpartition(".")
            if number.isdigit():
                found[key] = max(found.get(key, 0), int(number))
        return found

    def path(self, key: str, number: int) -> Path:
        return self.folder / f"{key}.{number:04d}"

    def told(self, key: str, number: int) -> dict[str, Any]:
        """What a claim says; empty while it is being made. A final one is read once."""
        if key in self._final:
            return self._final[key]
        found = _parse(_read(self.path(key, number)))
        if found.get("state") in FINAL:
            self._final[key] = found
        return found

    def forget(self, key: str) -> None:
        """A finished job whose folder is gone is to be done again."""
        number = self.newest()[key]
        write_atomic(self.path(key, number), json.dumps({"state": RELEASED, "attempt": 0}) + "\n")
        self._final.pop(key, None)

    def take(self, key: str, newest: int) -> Claim | None:
        """A claim of a job whose newest claim has the number ``newest`` (0: none yet); None if it is not to be had."""
        before: dict[str, Any] = self.told(key, newest) if newest else {"state": RELEASED, "attempt": 0}
        state = before.get("state", WORKING)
        if state in FINAL or (state == WORKING and not self.lost(self.path(key, newest))):
            return None
        attempt = int(before.get("attempt", newest)) + (0 if state in (RELEASED, REFUSED) and newest else 1)
        path = self.path(key, newest + 1)
        told = {"state": WORKING, "attempt": max(1, attempt), "worker": f"{self._place}#{os.getpid()}"}
        told |= {"before": float(before.get("before", 0)) + float(before.get("seconds", 0)), "seconds": 0.0, "beat": 0}
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
        except FileExistsError:
            return None
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(json.dumps(told) + "\n")
        reason = before.get("reason") if state == STUMBLED else "its worker was lost"
        claim = Claim(path, self.path(key, newest + 2), told, self.heartbeat)
        if attempt > self.attempts:
            claim.end(FAILED, reason=f"given up after {self.attempts} attempts: {reason}")
            return None
        return claim

    def lost(self, path: Path) -> bool:
        """Is the worker of a claim gone? Its content has not changed for ``lost_after`` by this process's clock, or it
        says that it is a process of this machine, and there is no such process."""
        content, now = _read(path), time.monotonic()
        before, since = self._watched.get(path, (None, now))
        if content != before:
            self._watched[path] = (content, now)
            since = now
        where, _, number = str(_parse(content).get("worker", "")).rpartition("#")
        if where == self._place and number.isdigit() and not alive(int(number)):
            return True
        return now - since > self.lost_after


@dataclass
class Claim:
    """A job that is this worker's. Within ``with claim:`` it shows signs of life.

    ``lost``: another worker has taken the job over, because this one stood still for too long.
    """

    path: Path
    next: Path
    told: dict[str, Any]
    heartbeat: float
    lost: bool = False

    def __enter__(self) -> Claim:
        self._begun, self._over, self._lock = time.monotonic(), threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        parent = multiprocessing.parent_process()
        while not self._over.wait(self.heartbeat):
            if parent is not None and not parent.is_alive():
                os._exit(LOST_WORKER)  # the benchmark was killed: leave the job to its next start
            if self.next.exists():
                self.lost = True
                return
            with self._lock:
                if self.told["state"] == WORKING:
                    self.told |= {"beat": self.told["beat"] + 1, "seconds": self._seconds()}
                    self._write()

    def end(self, state: str, **figures: Any) -> None:
        """The last word about this claim. A lost one has none."""
        begun = getattr(self, "_begun", None)
        with getattr(self, "_lock", threading.Lock()):
            if self.lost or self.next.exists():
                self.lost = True
                return
            self.told |= {"state": state, **figures}
            if begun is not None:
                self.told["seconds"] = self._seconds()
            self._write()

    def _seconds(self) -> float:
        return round(time.monotonic() - self._begun, 3)

    def _write(self) -> None:
        try:
            write_atomic(self.path, json.dumps(self.told, ensure_ascii=False) + "\n")
        except OSError:
            if self.told["state"] != WORKING:
                raise  # a missed heartbeat is made up for by the next one


def alive(number: int) -> bool:
    """Is there a process of this number? Windows has no harmless way to ask, so there it may be."""
    if os.name == "nt":
        return True
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except OSError:  # there is, of another user
        return True
    return True


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _parse(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
