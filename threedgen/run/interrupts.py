"""Ctrl-C, twice: the first asks the work to stop at its next good moment, the second leaves at once; SIGTERM."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

STOPPED = (130, 143)
"""Exit codes of a task that obeyed Ctrl-C or SIGTERM."""
AFTER_STEP = "stopping after this step (Ctrl-C again leaves at once)"


class Stopped(SystemExit):
    """Raised, with the exit code, by work that ended before its time; after one of STOPPED it can go on later."""


class Interrupts:
    """While entered, the first SIGINT only sets `stop`; the next raises KeyboardInterrupt.

    SIGTERM ends the process as always, but for a while it can be made to set `terminated` (obey_sigterm).

        with Interrupts() as interrupts:
            while not interrupts.stop:
                step()

    Used around a whole command, so that what follows the training (pictures, mesh) is still done after the
    first Ctrl-C; `note` tells the user what will be, and may be changed meanwhile. May be entered again inside
    itself. Outside the main thread, where Python lets nobody set handlers, it does nothing.
    """

    def __init__(self, note: str = AFTER_STEP) -> None:
        self.note = note
        self.stop = self.terminated = False
        self._depth = 0
        self._before: dict[int, tuple[Any, Any]] = {}  # signal: our handler and that of before

    def __enter__(self) -> Interrupts:
        self._depth += 1
        if self._depth == 1:
            self._take(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        while self._depth == 0 and self._before:
            number, (own, before) = self._before.popitem()
            if number == signal.SIGINT or signal.getsignal(number) == own:  # Lightning gives its own SIGTERM back
                signal.signal(number, before)

    def heed(self) -> None:
        """Raises Stopped after Ctrl-C."""
        if self.stop:
            raise Stopped(STOPPED[0])

    def obey_sigterm(self) -> None:
        """Lets SIGTERM only set `terminated` from now on, until the end."""
        self._take(signal.SIGTERM, self._terminate)

    def _take(self, number: int, handler: Any) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before.setdefault(number, (handler, signal.signal(number, handler)))

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
        with suppress(OSError):  # no terminal left to tell
            # not print or logging: a handler may interrupt either in the middle
            os.write(2, f"\n{self.note}\n".encode())
