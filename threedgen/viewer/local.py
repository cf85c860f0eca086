"""Who may ask a server of this machine: its own pages, by an address that others do not know."""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

HOST = "127.0.0.1"
NAMES = (HOST, "localhost", "::1")
"""What this machine calls itself in an address."""
REFUSAL = "only by the address that was printed\n"


def admitted(path: str, key: str, hosts: Sequence[str], origins: Sequence[str]) -> str | None:
    """Gives the rest of a path behind /`key`/ for a request that may be answered; None for any other.

    `hosts`, `origins`: all of its headers Host and Origin. Every wrong key takes the same time.
    """
    given, _, rest = path.removeprefix("/").partition("/")
    known = secrets.compare_digest(given.encode("utf-8", "replace"), key.encode())
    return rest if known and of_this_machine(hosts, origins) else None


def of_this_machine(hosts: Sequence[str], origins: Sequence[str]) -> bool:
    """Does a request with these headers Host and Origin come from this machine, and from no other page than ours?

    Host is a name of this machine's own, on any port (of an ssh tunnel): a foreign page can have its own name point
    here, but not bear one of these.
    """
    if len(hosts) != 1:
        return False
    try:
        name = urlsplit(f"//{hosts[0]}").hostname
    except ValueError:
        return False
    return name in NAMES and all(origin == f"http://{hosts[0]}" for origin in origins)


def free_port(port: int) -> int:
    """Gives `port`, or 0, for which the system chooses one, if somebody has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        if os.name == "posix":  # a port that was just given back is free; Windows means something else by it
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return 0
    return port
