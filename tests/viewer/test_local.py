"""Access control of local servers."""

import socket

import pytest

from threedgen.viewer.local import HOST, admitted, free_port

FORBIDDEN = [
    ("/", ["localhost"], []),
    ("/index.html", ["localhost"], []),
    ("/kez/", ["localhost"], []),
    ("/%C3%A9/", ["localhost"], []),
    ("/key/", [], []),
    ("/key/", ["localhost", "localhost"], []),
    ("/key/", ["evil.example:8090"], []),
    ("/key/", ["127.0.0.1.evil.example"], []),
    ("/key/", ["[::1"], []),
    ("/key/", ["localhost:8090"], ["http://evil.example"]),
    ("/key/", ["localhost:8090"], ["http://localhost:3000"]),
    ("/key/", ["localhost:8090"], ["https://localhost:8090"]),
    ("/key/", ["localhost:8090"], ["null"]),
]


@pytest.mark.parametrize(("path", "hosts", "origins"), FORBIDDEN)
def test_foreign_requests_are_forbidden(path: str, hosts: list[str], origins: list[str]) -> None:
    assert admitted(path, "key", hosts, origins) is None


@pytest.mark.parametrize("host", ["localhost:9000", "127.0.0.1:9000", "[::1]:9000"])  # any port: ssh tunnels
def test_local_requests_with_the_key_are_admitted(host: str) -> None:
    assert admitted("/key/a/b", "key", [host], [f"http://{host}"]) == "a/b"


def test_free_port_avoids_a_port_in_use() -> None:
    with socket.socket() as other:
        other.bind((HOST, 0))
        other.listen()
        port = other.getsockname()[1]
        assert free_port(port) == 0
    assert free_port(port) == port
