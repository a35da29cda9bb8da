"""What goes wrong, as answers: each says what, what it means, what to do, and names the field where there is one."""

import json
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.responses import JSONResponse

from ...loaders.utils import LOGGER
from .pictures import BadPicture
from .settings import BadRequestField
from .worker import JobCancelled, QueueFull, ServerCloses


RETRY_SECONDS = "5"
SHOWN_PROBLEMS = 20


class JobFailed(RuntimeError):
    """A job ended in an error that nobody expected; `__cause__` is that error."""


class AsciiJSON(JSONResponse):
    """JSON whose texts may hold what UTF-8 cannot, as parts of a broken request do."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=True, allow_nan=False, default=str).encode("ascii")


def tell_errors(made: FastAPI) -> None:
    """Answer our exceptions: 422 a field, 501 what is not installed, 503 a full queue, 500 the rest."""

    @made.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        problems = [
            {"loc": [str(part)[:200] for part in one["loc"]], "msg": str(one["msg"])[:500], "type": one["type"]}
            for one in error.errors()[:SHOWN_PROBLEMS]
        ]
        field = ".".join(problems[0]["loc"][1:]) if problems else ""
        return AsciiJSON({"error": "Bad field", "field": field, "detail": problems}, 422)

    @made.exception_handler(QueueFull)
    async def queue_full(_: Request, error: QueueFull) -> Response:
        detail = f"{error} Ask again in {RETRY_SECONDS} seconds."
        return AsciiJSON({"error": "QueueFull", "detail": detail}, 503, {"Retry-After": RETRY_SECONDS})

    @made.exception_handler(ServerCloses)
    async def closes(_: Request, error: ServerCloses) -> Response:
        return AsciiJSON({"error": "ServerCloses", "detail": str(error)}, 503, {"Retry-After": RETRY_SECONDS})

    @made.exception_handler(JobCancelled)
    async def cancelled(_: Request, error: JobCancelled) -> Response:
        return Response(status_code=499)

    @made.exception_handler(JobFailed)
    async def job_failed(request: Request, error: JobFailed) -> Response:
        return _failed(request, error.__cause__ or error)

    for kind in (BadRequestField, BadPicture):

        @made.exception_handler(kind)
        async def bad_field(_: Request, error: Any) -> Response:
            return AsciiJSON({"error": "Bad field", "field": error.name, "detail": str(error)}, 422)

    for expected in (ValueError, FileNotFoundError):

        @made.exception_handler(expected)
        async def bad_value(_: Request, error: Exception) -> Response:
            return AsciiJSON({"error": type(error).__name__, "detail": str(error)}, 422)

    @made.exception_handler(ImportError)
    async def not_installed(_: Request, error: ImportError) -> Response:
        return AsciiJSON({"error": "Not installed", "detail": str(error)}, 501)

    @made.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        return _failed(request, error)


def _failed(request: Request, error: BaseException) -> Response:
    LOGGER.error("%s %s failed.", request.method, request.url.path, exc_info=error)
    detail = f"{error or type(error).__name__} The server is as it was before; its log has the details."
    return AsciiJSON({"error": type(error).__name__, "detail": detail}, 500)
