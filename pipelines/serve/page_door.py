"""What of Gradio's routes may be asked for: what the page itself uses, and no address of another machine in it."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote

from starlette.responses import JSONResponse


# The page itself, its scripts and styles, sending and reading of events, pictures in both directions.
OPEN_PATHS = re.compile(
    r"/|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/(assets|static)/[\w./-]+"
    r"|/gradio_api/(queue/(join|data)|upload|upload_progress|file=.+|heartbeat/\w+|cancel|reset|startup-events)/?"
)
# Nothing from elsewhere, whatever a text says. Gradio's scripts are partly inline, partly made of strings.
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; media-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
_ADVERTISING = re.compile(r"\s*<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*>")
_EXAMPLES = re.compile(r"https://(?:raw\.githubusercontent\.com|github\.com)/gradio-app/[^\"\\<\s]*")
_TITLE = (
    "<title>webui-diffusers</title><noscript>This page needs JavaScript. The API is described at /docs.</noscript>"
)


class PageDoor:
    """ASGI: lets through to Gradio what the page needs; everything else is 404, addresses as pictures 422."""

    def __init__(self, inner: Any):
        self.inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        path = unquote(scope["path"])
        if not OPEN_PATHS.fullmatch(path) or "://" in path or "//" in path or ".." in path:
            await JSONResponse({"detail": "Not Found"}, 404)(scope, receive, send)
            return
        if scope["method"] == "POST" and path.startswith("/gradio_api/queue/join"):
            messages = [message async for message in _whole_body(receive)]
            if _names_address(b"".join(message.get("body", b"") for message in messages)):
                detail = "A picture is an address here. Addresses are not opened; send the picture itself."
                await JSONResponse({"error": "Bad field", "field": "path", "detail": detail}, 422)(
                    scope, receive, send
                )
                return
            receive = _again(messages, receive)
        answer = _CleanHTML(send) if path == "/" else _WithHeaders(send)
        await self.inner(scope, receive, answer)


async def _whole_body(receive: Any) -> Any:
    """The messages of a request's body. The application's limit on bodies counts them."""
    while True:
        message = await receive()
        yield message
        if not message.get("more_body"):
            return


def _again(messages: list[Any], receive: Any) -> Any:
    """`receive` that gives these messages first."""
    left = iter(messages)

    async def replayed() -> Any:
        for message in left:
            return message
        return await receive()

    return replayed


def _names_address(body: bytes) -> bool:
    """Whether a `path` or `url` anywhere in a JSON body is an address: Gradio would fetch it."""
    try:
        sent = json.loads(body)
    except (ValueError, RecursionError):
        return False  # Gradio refuses it
    return any(re.match(r"\s*[a-z][a-z0-9+.-]*:", value, re.I) for value in _paths(sent))


def _paths(sent: Any) -> Iterator[str]:
    waiting = [sent]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(value.get("path"), str):
                yield value["path"]
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


class _WithHeaders:
    """`send` that adds the page's headers."""

    def __init__(self, send: Any):
        self.send = send

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], *_HEADERS]}
        await self.send(message)


class _CleanHTML(_WithHeaders):
    """`send` that takes Gradio's references to other hosts out of the page."""

    def __init__(self, send: Any):
        super().__init__(send)
        self.start: Any = None
        self.body = b""

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            self.start = message
            return
        if message["type"] != "http.response.body":
            await self.send(message)
            return
        self.body += message.get("body", b"")
        if message.get("more_body"):
            return
        headers = dict(self.start["headers"])
        if headers.get(b"content-type", b"").startswith(b"text/html") and b"content-encoding" not in headers:
            text = _EXAMPLES.sub("", _ADVERTISING.sub("", self.body.decode("utf-8")))
            self.body = text.replace("</head>", f"{_TITLE}</head>", 1).encode("utf-8")
        headers[b"content-length"] = str(len(self.body)).encode()
        await super().__call__({**self.start, "headers": list(headers.items())})
        await self.send({"type": "http.response.body", "body": self.body})
