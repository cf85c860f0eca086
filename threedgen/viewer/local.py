"""Access control for web servers on this machine: only local requests whose path starts with a secret are answered."""

import ipaddress
import secrets
import socket
from collections.abc import Collection, Sequence
from urllib.parse import urlsplit

HOST = "127.0.0.1"
LOCAL_NAMES = (HOST, "localhost", "::1")
REFUSAL = "Access denied. Open the address that was printed in the terminal.\n"


def free_port(port: int) -> int:
    """Return `port` if a server on 127.0.0.1 can use it, else 0, which stands for any free port."""
    try:
        socket.create_server((HOST, port)).close()
    except OSError:
        return 0
    return port


def path_after_key(path: str, key: str, hosts: Sequence[str], origins: Sequence[str]) -> str | None:
    """Return the rest of the path of a request after /KEY/; None if the request is forbidden. KEY is the secret `key`.

    It is forbidden if its path does not start with KEY, or if it is not local (`is_local`): it must name this machine
    as its host, and must not come from a foreign page. `hosts` and `origins` are the values of all Host headers and of
    all Origin headers of the request.
    """
    first, _, rest = path.removeprefix("/").partition("/")
    has_key = secrets.compare_digest(first.encode("utf-8", "replace"), key.encode())
    return rest if has_key and is_local(hosts, origins) else None


def is_local(
    hosts: Sequence[str], origins: Sequence[str], names: Collection[str] = LOCAL_NAMES, any_address: bool = False
) -> bool:
    """Return whether a request names this machine as its host, and comes from our own page or from no page.

    Any port is accepted, because ssh tunnels change it. The check of the host name prevents DNS rebinding: a foreign
    site can make its own name resolve to this machine, but the browser then sends the foreign name as Host.

    Args:
        hosts, origins: values of all Host headers (exactly one is allowed) and of all Origin headers of the request.
        names: names (in lower case) and addresses of this machine.
        any_address: whether to accept all IP addresses as Host, for a server that other machines use.
    """
    if len(hosts) != 1:
        return False
    try:
        name = urlsplit(f"//{hosts[0]}").hostname
    except ValueError:
        return False
    known = name in names or any_address and _is_address(name or "")
    return known and all(origin == f"http://{hosts[0]}" for origin in origins)


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False
