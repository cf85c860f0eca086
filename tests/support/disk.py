"""The disk of the tests."""

import os


def never_wait() -> None:
    """Lets this process, and those that it forks, believe that all is on the disk at once. No test cuts the power, and
    on a busy disk the suite would wait for it longer than it computes; that a run asks for it in the right order is
    tested."""
    os.fsync = lambda descriptor: None
