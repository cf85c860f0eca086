"""Access control of the studio's server: token, Host and Origin of every request, and headers of every response."""

import secrets
import socket
from urllib.parse import unquote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from threedgen.viewer.local import LOCAL_NAMES, REFUSAL, is_local

OWN_POLICY, RUN_POLICY = "frame-ancestors 'self'", "sandbox allow-scripts allow-downloads"
"""Content security policy of the studio's own page, and that of the files of runs."""
HEADERS = {
    "Content-Security-Policy": OWN_POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Access:
    """ASGI middleware that answers with status 403, unless a request has the token and comes from our own page.

    The token is the first part of the path, or in the header `Authorization: Bearer TOKEN`. The header Host is checked
    against DNS rebinding: a foreign site can make its own name resolve to this machine, but the browser sends that
    name.

    Args:
        host: address that the server listens on. If it is local, only `LOCAL_NAMES` are valid in the header Host;
            otherwise also the names of this machine and all IP addresses. Ports are not checked, because ssh tunnels
            change them.
    """

    def __init__(self, app: ASGIApp, token: str, host: str) -> None:
        self.app, self.token = app, token
        self.any_address = host not in LOCAL_NAMES
        self.names = {*LOCAL_NAMES, *((host, socket.gethostname(), socket.getfqdn()) if self.any_address else ())}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers = Headers(scope=scope)
        first, _, rest = scope["path"].removeprefix("/").partition("/")
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        if self._is_token(unquote(first)):
            scope = {**scope, "path": f"/{rest}", "raw_path": None}
        elif scheme.lower() != "bearer" or not self._is_token(bearer.strip()):
            return await _refuse(scope, receive, send)
        if not is_local(headers.getlist("host"), headers.getlist("origin"), self.names, self.any_address):
            return await _refuse(scope, receive, send)

        async def send_protected(message: Message) -> None:
            if message["type"] == "http.response.start":
                sent = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    sent.setdefault(name, value)
            await send(message)

        return await self.app(scope, receive, send_protected)

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode("utf-8", "replace"), self.token.encode())


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await JSONResponse({"error": REFUSAL.strip()}, 403, HEADERS)(scope, receive, send)
