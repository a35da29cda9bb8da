"""The webui's HTTP API, /sdapi/v1, over a pipeline of the pack.

Handlers only read requests and wait; everything that touches a model is a job of the one worker. Errors of ours are
422 (a field), 503 (the queue is full) or 500, always with the three facts; no path, URL or Hub id of a request is
opened.
"""

import asyncio
import secrets
from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from ...loaders.utils import LOGGER
from ..infotext.styles import PromptStyle
from .calls import (
    BadRequestField,
    img2img_generation,
    settings_with,
    txt2img_generation,
    with_infotext,
)
from .lists import list_routes
from .pictures import BadPicture
from .requests import (
    ExtrasBatchRequest,
    ExtrasRequest,
    Img2ImgRequest,
    PngInfoRequest,
    Txt2ImgRequest,
)
from .shelf import ModelShelf
from .studio import draw_generation, picture_facts, upscaled_pictures
from .worker import Job, JobCancelled, Progress, QueueFull, Worker


MAX_BODY = 256 * 2**20  # bytes
RETRY_SECONDS = "5"


def app(
    source: Any,
    *,
    auth: Sequence[str] = (),
    cors_allow_origins: Sequence[str] = (),
    max_queue: int = 32,
    styles: Mapping[str, PromptStyle] | None = None,
    output_folder: str | None = None,
) -> FastAPI:
    """The API as an ASGI application, for uvicorn or for another FastAPI app to mount.

    source: a WebUITxt2ImgPipeline, or a library of files (`WebUIFolder`), whose first checkpoint is loaded when the
    first picture is asked for. auth: "user:password" pairs; empty lets everybody in. cors_allow_origins: origins
    whose pages may call; none by default. max_queue: how many requests may wait. output_folder: where `save_images`
    writes; without one it is refused.
    """
    worker, shelf = Worker(max_queue), ModelShelf(source, styles or {}, output_folder)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(worker.close, 600.0)

    made = FastAPI(title="webui-diffusers", version=shelf.version, lifespan=lifespan, docs_url="/docs")
    made.state.worker, made.state.shelf = worker, shelf
    made.add_middleware(BodyLimit, limit=MAX_BODY)
    if cors_allow_origins:
        made.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_allow_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            allow_credentials="*" not in cors_allow_origins,
        )
    _tell_errors(made)
    guard = [Depends(_basic_auth(auth))] if auth else []
    made.include_router(_drawing_routes(worker, shelf), dependencies=guard)
    made.include_router(_state_routes(worker, shelf), dependencies=guard)
    made.include_router(list_routes(worker, shelf), dependencies=guard)
    return made


# --- routes


def _drawing_routes(worker: Worker, shelf: ModelShelf) -> APIRouter:
    routes = APIRouter(prefix="/sdapi/v1")

    @routes.post("/txt2img")
    async def txt2img(asked: Txt2ImgRequest, request: Request) -> dict[str, Any]:
        """Images from a prompt."""
        full = with_infotext(asked, Txt2ImgRequest)
        generation = txt2img_generation(full, shelf.settings, shelf.styles)
        return await _done(worker, request, "txt2img", asked, lambda p: draw_generation(shelf, generation, asked, p))

    @routes.post("/img2img")
    async def img2img(asked: Img2ImgRequest, request: Request) -> dict[str, Any]:
        """Images from images; with a mask, inpainting."""
        full = with_infotext(asked, Img2ImgRequest)
        generation = img2img_generation(full, shelf.settings, shelf.styles)
        return await _done(worker, request, "img2img", asked, lambda p: draw_generation(shelf, generation, asked, p))

    @routes.post("/extra-single-image")
    async def extra_single_image(asked: ExtrasRequest, request: Request) -> dict[str, Any]:
        """An image upscaled, its faces restored."""
        done = await _done(
            worker, request, "extras", asked, lambda p: upscaled_pictures(shelf, asked, [asked.image], ["image"], p)
        )
        return {"html_info": done["html_info"], "image": done["images"][0]}

    @routes.post("/extra-batch-images")
    async def extra_batch_images(asked: ExtrasBatchRequest, request: Request) -> dict[str, Any]:
        """Several images upscaled, their faces restored."""
        images = [item.data for item in asked.imageList]
        names = [f"imageList[{i}].data" for i in range(len(images))]
        return await _done(
            worker, request, "extras", asked, lambda p: upscaled_pictures(shelf, asked, images, names, p)
        )

    @routes.post("/png-info")
    async def png_info(asked: PngInfoRequest) -> dict[str, Any]:
        """The parameters text of an image, and what it says."""
        return await run_in_threadpool(picture_facts, asked.image)

    @routes.post("/interrogate")
    async def interrogate() -> None:
        raise HTTPException(501, "Captions are not made here: describe the picture in `prompt` yourself.")

    return routes


def _state_routes(worker: Worker, shelf: ModelShelf) -> APIRouter:
    routes = APIRouter()

    @routes.get("/sdapi/v1/progress")
    async def progress(skip_current_image: bool = False) -> dict[str, Any]:
        """How far the job in hand is."""
        at = worker.progress
        image = None if skip_current_image else await run_in_threadpool(shelf.preview, at)
        return {
            "progress": at.share,
            "eta_relative": at.seconds_left,
            "state": at.state(),
            "current_image": image,
            "textinfo": None if at.job else "",
            "current_task": at.task or None,
        }

    @routes.post("/sdapi/v1/interrupt")
    async def interrupt() -> dict[str, Any]:
        """End the job in hand; what is drawn so far is its answer."""
        worker.interrupt()
        return {}

    @routes.post("/sdapi/v1/skip")
    async def skip() -> dict[str, Any]:
        """End the images in hand and go on with the job's next ones."""
        worker.skip()
        return {}

    @routes.get("/sdapi/v1/options")
    async def get_options() -> dict[str, Any]:
        """All settings."""
        return shelf.shown_settings()

    @routes.post("/sdapi/v1/options")
    async def set_options(asked: dict[str, Any], request: Request) -> None:
        """Change settings, one or all that GET gave. Another `sd_model_checkpoint` is loaded before the answer."""
        settings = settings_with(shelf.settings, asked, "options")
        if settings["sd_model_checkpoint"] != shelf.settings["sd_model_checkpoint"]:
            await _job(worker, request, Job("load", lambda _: shelf.load(settings["sd_model_checkpoint"])))
        shelf.settings.update({name: settings[name] for name in asked if name not in ("sd_checkpoint_hash",)})

    @routes.post("/sdapi/v1/unload-checkpoint")
    async def unload(request: Request) -> dict[str, Any]:
        """Take the model off the accelerator and out of memory."""
        await _job(worker, request, Job("unload", lambda _: shelf.unload()))
        return {}

    @routes.post("/sdapi/v1/reload-checkpoint")
    async def reload(request: Request) -> dict[str, Any]:
        """Load the model that `sd_model_checkpoint` names."""
        await _job(worker, request, Job("load", lambda _: shelf.load(shelf.settings["sd_model_checkpoint"])))
        return {}

    @routes.get("/internal/ping")
    async def ping() -> dict[str, Any]:
        """Whether the server answers."""
        return {}

    return routes


# --- waiting for the worker


async def _done(
    worker: Worker, request: Request, name: str, asked: Any, work: Callable[[Progress], dict[str, Any]]
) -> dict[str, Any]:
    return await _job(worker, request, Job(name, work, getattr(asked, "force_task_id", None) or ""))


async def _job(worker: Worker, request: Request, job: Job) -> Any:
    """The result of a job; one whose client has gone is dropped."""
    worker.submit(job)
    result = asyncio.wrap_future(job.result)
    while not result.done():
        await asyncio.wait([result], timeout=0.25)
        if not result.done() and await request.is_disconnected():
            job.cancel()
            raise JobCancelled
    return result.result()


# --- errors


def _tell_errors(made: FastAPI) -> None:
    """Our exceptions as answers, each with what is wrong, what it means, what to do."""

    @made.exception_handler(QueueFull)
    async def queue_full(_: Request, error: QueueFull) -> Response:
        detail = f"{error} Ask again in {RETRY_SECONDS} seconds."
        return JSONResponse({"error": "QueueFull", "detail": detail}, 503, {"Retry-After": RETRY_SECONDS})

    @made.exception_handler(JobCancelled)
    async def cancelled(_: Request, error: JobCancelled) -> Response:
        return Response(status_code=499)

    for kind in (BadRequestField, BadPicture):

        @made.exception_handler(kind)
        async def bad_field(_: Request, error: Any) -> Response:
            return JSONResponse({"error": "Bad field", "field": error.name, "detail": str(error)}, 422)

    for expected in (ValueError, FileNotFoundError):

        @made.exception_handler(expected)
        async def bad_value(_: Request, error: Exception) -> Response:
            return JSONResponse({"error": type(error).__name__, "detail": str(error)}, 422)

    @made.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        LOGGER.error("%s %s failed.", request.method, request.url.path, exc_info=error)
        detail = f"{error} The server is as it was before; its log has the details."
        return JSONResponse({"error": type(error).__name__, "detail": detail}, 500)


def _basic_auth(pairs: Sequence[str]) -> Callable[[Request], None]:
    """HTTP Basic authentication. Names and passwords are compared in constant time, and all of them each time."""
    known = [pair.encode() for pair in pairs]

    def check(request: Request) -> None:
        scheme, _, text = request.headers.get("authorization", "").partition(" ")
        try:
            given = b64decode(text, validate=True) if scheme.lower() == "basic" else b""
        except ValueError:
            given = b""
        matches = [secrets.compare_digest(given, pair) for pair in known]  # all of them, whichever matches
        if not any(matches):
            raise HTTPException(401, "Name and password are wrong or missing.", {"WWW-Authenticate": "Basic"})

    return check


class BodyLimit:
    """ASGI middleware: a body of more than `limit` bytes is refused (413) before it is read whole."""

    def __init__(self, inner: Any, limit: int):
        self.inner, self.limit = inner, limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.inner(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self.limit:
            await self._refuse(scope, receive, send)
            return
        seen = 0

        async def counted() -> Any:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > self.limit:
                raise HTTPException(413, self._too_large())
            return message

        await self.inner(scope, counted, send)

    async def _refuse(self, scope: Any, receive: Any, send: Any) -> None:
        await JSONResponse({"error": "Too large", "detail": self._too_large()}, 413)(scope, receive, send)

    def _too_large(self) -> str:
        return f"The body of the request is larger than {self.limit} bytes. Send smaller pictures."
