"""Who may call, and with how much: ASGI middlewares before all routes, the page and the documentation too."""

import secrets
from base64 import b64decode
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from fastapi import HTTPException

from .errors import AsciiJSON


READING_METHODS = ("GET", "HEAD", "OPTIONS")


class BodyLimit:
    """A body of more than `limit` bytes is refused (413) before it is read whole."""

    def __init__(self, app: Any, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.limit:
            await AsciiJSON({"error": "Too large", "detail": self._too_large()}, 413)(scope, receive, send)
            return
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, self._too_large())
            return message

        await self.app(scope, counted, send)

    def _too_large(self) -> str:
        return f"The body of the request is larger than {self.limit} bytes. Send smaller pictures."


class BasicAuth:
    """HTTP Basic authentication by "user:password" pairs, compared in constant time and all of them each time."""

    def __init__(self, app: Any, pairs: Sequence[str]):
        self.app, self.pairs = app, [pair.encode() for pair in pairs]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan" or self._knows(dict(scope["headers"]).get(b"authorization", b"")):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            headers = {"WWW-Authenticate": 'Basic realm="webui-diffusers", charset="UTF-8"'}
            await AsciiJSON({"detail": "Name and password are wrong or missing."}, 401, headers)(scope, receive, send)

    def _knows(self, header: bytes) -> bool:
        scheme, _, text = header.partition(b" ")
        try:
            given = b64decode(text.strip(), validate=True) if scheme.lower() == b"basic" else b""
        except ValueError:
            given = b""
        matches = [secrets.compare_digest(given, pair) for pair in self.pairs]  # all of them, whichever matches
        return any(matches)


class ForeignPages:
    """Pages of other sites, which any browser on this machine may have open, cannot make the server do anything.

    A request that does something is refused (403) where its `Origin` is neither the server's own nor among `origins`
    ("*": all); with `hosts`, also one that calls the server by another name, as after DNS rebinding.
    """

    def __init__(self, app: Any, origins: Sequence[str] = (), hosts: Sequence[str] = ()):
        self.app, self.origins, self.hosts = app, set(origins), {host.lower() for host in hosts}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        refusal = None if scope["type"] == "lifespan" else self._refusal(scope)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await AsciiJSON({"error": "Forbidden", "detail": refusal}, 403)(scope, receive, send)

    def _refusal(self, scope: Any) -> str | None:
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "")
        if self.hosts and _host_name(f"//{host}") not in self.hosts:
            return (
                f"`Host: {host[:100]}`: this server answers on this machine's own names alone. Start it with "
                "--api-auth, or with --i-know where a proxy in front of it guards it."
            )
        origin = headers.get(b"origin")
        reads = scope["type"] == "http" and scope["method"] in READING_METHODS
        if origin is None or reads or {origin, "*"} & self.origins or _place(origin) == host.lower():
            return None
        return (
            f"`Origin: {origin[:100]}`: pages of other sites may not call this server. Name this one with "
            "--cors-allow-origins if it may."
        )


def _host_name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


def _place(origin: str) -> str:
    """Host and port of an origin; "" where it has none ("null")."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
