"""The webui's HTTP API, /sdapi/v1, over a pipeline of the pack.

Handlers only read requests and wait; everything that touches a model is a job of the one worker. Errors of ours are
422 (a field), 503 (the queue is full) or 500, always with the three facts; no path, URL or Hub id of a request is
opened.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from starlette.concurrency import run_in_threadpool

from ...loaders.utils import unknown_choice
from ..infotext.styles import PromptStyle
from .calls import Generation, img2img_generation, txt2img_generation
from .control_routes import control_routes
from .documentation import add_documentation
from .errors import JobFailed, tell_errors
from .guards import BasicAuth, BodyLimit, ForeignPages
from .infotext_field import with_infotext
from .lists import list_routes
from .requests import (
    ExtrasBatchRequest,
    ExtrasRequest,
    GenerationRequest,
    Img2ImgRequest,
    PngInfoRequest,
    Txt2ImgRequest,
)
from .script_jobs import JobPlan
from .script_table import plan_jobs
from .settings import BadRequestField, settings_with
from .shelf import OWN_VAE, ModelShelf
from .studio import draw_generation, picture_facts, upscaled_pictures
from .worker import Job, JobCancelled, Progress, ServerCloses, Worker


MAX_BODY = 256 * 2**20  # bytes
_ANSWERS = (ValueError, FileNotFoundError, ImportError, JobCancelled)  # which have answers of their own


def app(
    source: Any,
    *,
    auth: Sequence[str] = (),
    cors_allow_origins: Sequence[str] = (),
    max_queue: int = 32,
    styles: Mapping[str, PromptStyle] | None = None,
    output_folder: str | None = None,
    hosts: Sequence[str] = (),
) -> FastAPI:
    """The API as an ASGI application, for uvicorn or for another FastAPI app to mount.

    source: a WebUITxt2ImgPipeline, or a library of files (`WebUIFolder`), whose first checkpoint is loaded when the
    first picture is asked for. auth: "user:password" pairs; empty lets everybody in. cors_allow_origins: origins
    whose pages may call; none by default. max_queue: how many requests may wait. output_folder: where `save_images`
    writes; without one the answer says that nothing was saved. hosts: names of the server that requests may call it
    by; empty: any.
    """
    worker, shelf = Worker(max_queue), ModelShelf(source, styles or {}, output_folder)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(worker.close, 600.0)

    made = FastAPI(title="webui-diffusers", version=shelf.version, lifespan=lifespan, docs_url=None, redoc_url=None)
    made.state.worker, made.state.shelf = worker, shelf
    made.add_middleware(BodyLimit, limit=MAX_BODY)
    if auth:
        made.add_middleware(BasicAuth, pairs=auth)
    made.add_middleware(ForeignPages, origins=cors_allow_origins, hosts=hosts)
    if cors_allow_origins:  # the outermost: a browser asks first without a password, and reads refusals too
        made.add_middleware(
            CORSMiddleware,
            allow_origins=list(cors_allow_origins),
            allow_methods=["*"],
            allow_headers=["*"],
            allow_credentials="*" not in cors_allow_origins,
        )
    tell_errors(made)

    async def run(request: Request, name: str, work: Callable[[Progress], Any]) -> Any:
        return await _job(worker, request, Job(name, work))

    for routes in (
        _drawing_routes(worker, shelf),
        _undone_routes(),
        _work_routes(worker, shelf),
        _setting_routes(worker, shelf),
        list_routes(worker, shelf, run),
        control_routes(shelf, run),
    ):
        made.include_router(routes)
    add_documentation(made)
    return made


# --- routes


def _drawing_routes(worker: Worker, shelf: ModelShelf) -> APIRouter:
    routes = APIRouter(prefix="/sdapi/v1")

    async def drawn(asked: GenerationRequest, request: Request) -> dict[str, Any]:
        plan = await run_in_threadpool(_plan, asked, shelf)
        task, name = asked.force_task_id or "", plan.generations[0].kind
        work: Callable[[Progress], Any] = lambda progress: draw_generation(shelf, plan, asked, progress)  # noqa: E731
        return await _job(worker, request, Job(name, work, task))

    @routes.post("/txt2img")
    async def txt2img(asked: Txt2ImgRequest, request: Request) -> dict[str, Any]:
        """Images from a prompt."""
        return await drawn(asked, request)

    @routes.post("/img2img")
    async def img2img(asked: Img2ImgRequest, request: Request) -> dict[str, Any]:
        """Images from images; with a mask, inpainting."""
        return await drawn(asked, request)

    @routes.post("/extra-single-image")
    async def extra_single_image(asked: ExtrasRequest, request: Request) -> dict[str, Any]:
        """An image upscaled, its faces restored."""
        job = Job("extras", lambda progress: upscaled_pictures(shelf, asked, [asked.image], ["image"], progress))
        done = await _job(worker, request, job)
        return {"html_info": done["html_info"], "image": done["images"][0]}

    @routes.post("/extra-batch-images")
    async def extra_batch_images(asked: ExtrasBatchRequest, request: Request) -> dict[str, Any]:
        """Several images upscaled, their faces restored."""
        images = [item.data for item in asked.imageList]
        names = [f"imageList[{i}].data" for i in range(len(images))]
        job = Job("extras", lambda progress: upscaled_pictures(shelf, asked, images, names, progress))
        return await _job(worker, request, job)

    @routes.post("/png-info")
    async def png_info(asked: PngInfoRequest) -> dict[str, Any]:
        """The parameters text of an image, and what it says."""
        return await run_in_threadpool(picture_facts, asked.image)

    return routes


def _plan(asked: GenerationRequest, shelf: ModelShelf) -> JobPlan:
    """What a request draws, its pictures decoded and everything checked that needs no model."""
    read = with_infotext(asked, shelf.checkpoint_of)

    def make(one: GenerationRequest) -> Generation:
        draw = img2img_generation if isinstance(one, Img2ImgRequest) else txt2img_generation
        made = draw(one, shelf.settings, shelf.styles)
        return replace(made, arguments={**read.arguments, **made.arguments}, comments=list(read.comments))

    return plan_jobs(read.request, make, shelf.upscalers())


def _undone_routes() -> APIRouter:
    """What the webui does and this server does not: 501 and a sentence."""
    routes = APIRouter(prefix="/sdapi/v1")
    training = "Nothing is trained here: networks are made with a trainer, and put into the server's folders."
    for path, reason in (
        ("interrogate", "Captions are not made here: describe the picture in `prompt` yourself."),
        ("create/embedding", training),
        ("create/hypernetwork", training),
        ("train/embedding", training),
        ("train/hypernetwork", training),
    ):
        routes.add_api_route(f"/{path}", _undone(reason), methods=["POST"], name=path, description=reason)

    return routes


def _undone(reason: str) -> Callable[[], Any]:
    async def undone() -> None:
        raise HTTPException(501, reason)

    return undone


def _work_routes(worker: Worker, shelf: ModelShelf) -> APIRouter:
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

    @routes.get("/internal/ping")
    async def ping() -> dict[str, Any]:
        """Whether the server answers."""
        return {}

    return routes


def _setting_routes(worker: Worker, shelf: ModelShelf) -> APIRouter:
    routes = APIRouter()

    @routes.get("/sdapi/v1/options")
    async def get_options() -> dict[str, Any]:
        """All settings."""
        return shelf.shown_settings()

    @routes.post("/sdapi/v1/options")
    async def set_options(asked: dict[str, Any], request: Request) -> None:
        """Change settings, one or all that GET gave. Another `sd_model_checkpoint` is loaded before the answer."""
        settings = settings_with(shelf.settings, asked, "options")
        if settings["sd_vae"] not in (*OWN_VAE, *shelf.names("vae")):
            raise BadRequestField("options.sd_vae", unknown_choice("VAE", settings["sd_vae"], shelf.names("vae")))
        if settings["sd_model_checkpoint"] != shelf.settings["sd_model_checkpoint"]:
            await _job(worker, request, Job("load", lambda _: shelf.load(settings["sd_model_checkpoint"])))
        told = ("sd_model_checkpoint", "sd_checkpoint_hash")  # loading has set the one; the other only tells
        shelf.settings.update({name: settings[name] for name in asked if name in settings and name not in told})

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

    return routes


# --- waiting for the worker


async def _job(worker: Worker, request: Request, job: Job) -> Any:
    """The result of a job; one whose client has gone is dropped. Errors that nobody expected are JobFailed.

    Raises QueueFull, and ServerCloses where the server goes down before the job's turn.
    """
    worker.submit(job)
    result = asyncio.wrap_future(job.result)
    while not result.done():
        await asyncio.wait([result], timeout=0.25)
        if not result.done() and await request.is_disconnected():
            worker.drop(job)
            raise JobCancelled
    if result.cancelled():
        raise ServerCloses
    try:
        return result.result()
    except _ANSWERS:
        raise
    except Exception as error:
        raise JobFailed(str(error)) from error
