"""Handlers of Ctrl-C and SIGTERM: the first Ctrl-C stops after the current step, the second at once."""

import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

STOP_CODES = (130, 143)  # exit codes of a task that was stopped by Ctrl-C or SIGTERM
Handler = Callable[[int, FrameType | None], object] | int | None
STOP_NOTE = "stopping after this step (Ctrl-C again: at once)"
WATCH_STDIN = "THREEDGEN_WATCH_STDIN"
"""Environment variable that a parent process sets for a child process that should end when the parent dies.

The parent keeps a pipe to the child's stdin open. When the parent dies, the pipe closes; see `end_with_parent`.
"""
GRACE_SECONDS = 20.0  # for a checkpoint


class Stopped(SystemExit):
    """Exception that ends a task early with an exit code: 130 after Ctrl-C, 143 after SIGTERM, others for failures.

    After 130 and 143 the task can be resumed.
    """


class Interrupts:
    """Context in which the first SIGINT (Ctrl-C) sets `stop` to True and the next one raises KeyboardInterrupt.

        with Interrupts() as interrupts:
            while not interrupts.stop:
                step()

    After a call of `catch_sigterm`, SIGTERM sets `terminated` to True instead of ending the process. `note` is the text
    that the first Ctrl-C prints. The same context may be entered several times, nested. Outside the main thread, where
    Python allows no signal handlers, the context does nothing.
    """

    def __init__(self, note: str = STOP_NOTE) -> None:
        self.note = note
        self.stop = self.terminated = False
        self._depth = 0
        self._before: dict[int, tuple[Handler, Handler]] = {}  # signal -> (our handler, previous handler)

    def __enter__(self) -> "Interrupts":
        self._depth += 1
        if self._depth == 1:
            self._take(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        while self._depth == 0 and self._before:
            number, (own, before) = self._before.popitem()
            if number == signal.SIGINT or signal.getsignal(number) == own:  # Lightning may have restored SIGTERM
                signal.signal(number, before)

    def raise_if_stopped(self) -> None:
        if self.stop:
            raise Stopped(STOP_CODES[0])

    def catch_sigterm(self) -> None:
        self._take(signal.SIGTERM, self._terminate)

    def _take(self, number: int, handler: Handler) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before.setdefault(number, (handler, signal.signal(number, handler)))

    def _terminate(self, number: int, frame: FrameType | None) -> None:
        self.terminated = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.stop:
            raise KeyboardInterrupt
        self.stop = True
        with suppress(OSError):  # closed stderr
            # print and logging are not reentrant in a signal handler
            os.write(2, f"\n{self.note}\n".encode())


def end_with_parent() -> None:
    """Start a thread that ends this process when its parent process dies.

    The parent asks for this by the environment variable THREEDGEN_WATCH_STDIN (without it, nothing is started), and
    holds a pipe to this process's stdin. When the pipe closes, the thread sends SIGTERM to this process, and ends it
    without cleanup 20 s later (GRACE_SECONDS).
    """

    def wait(pipe: int) -> None:
        with suppress(OSError):
            while os.read(pipe, 1):
                pass
        if os.name == "posix":
            os.kill(os.getpid(), signal.SIGTERM)  # unlike raise_signal, wakes the main thread
        else:
            signal.raise_signal(signal.SIGTERM)  # on Windows, os.kill calls no handler
        time.sleep(GRACE_SECONDS)
        os._exit(128 + signal.SIGTERM)

    if os.environ.pop(WATCH_STDIN, ""):  # not for processes that this one starts
        pipe = os.dup(0)  # on Windows, libraries that ask for the type of stdin at import would wait for the read
        with open(os.devnull, "rb") as null:
            os.dup2(null.fileno(), 0)
        threading.Thread(target=wait, args=(pipe,), daemon=True).start()
