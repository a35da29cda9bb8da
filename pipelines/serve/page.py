"""The page at `/` (extra `[ui]`): a text or a picture in, what it says, the picture again, and a second look at it.

box  ->  PageReading, shown at once  ->  Draw: a job in the worker's one queue  ->  pictures with their texts
"""

import asyncio
import random
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gradio
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from ..infotext.files import PICTURE_FORMATS, read_infotext, save_picture
from ..infotext.read import parse_infotext
from .calls import LARGEST_SEED
from .guards import BodyLimit
from .page_door import PageDoor
from .page_draw import (
    HIRES_AS_WRITTEN,
    HIRES_OFF,
    HIRES_SCALES,
    PageChanges,
    draw_page_pictures,
    page_generation,
)
from .page_html import NOTHING_DRAWN, NOTHING_READ, problem_html, progress_html, reading_html
from .page_style import (
    API_LINK,
    BOX_LABEL,
    EXAMPLE,
    FOOT,
    HEAD,
    LOOK_AT_STATUS,
    NAME_BOX,
    PAGE_STYLE,
    PLACEHOLDER,
)
from .page_text import MAX_PICTURE, PageReading, read_page_text, text_of_picture
from .requests import MAX_STEPS, MAX_TEXT
from .shelf import ModelShelf
from .worker import Job, QueueFull, Worker


SHOWN_PICTURES = 24  # of one visitor
WATCH_SECONDS = 0.4
AS_WRITTEN = "as written"  # what an empty control means
KEPT_SECONDS = 24 * 3600  # pictures in Gradio's folder


class SentText(NamedTuple):
    """The text in the box as it was read last, with what reading its picture told."""

    text: str = ""
    notes: tuple[str, ...] = ()


def mount_page(made: FastAPI) -> FastAPI:
    """Put the page at `/` of an application that `app` made; its other routes stay before it."""
    blocks = page_blocks(made.state.worker, made.state.shelf, made.openapi_url is not None)
    gradio.mount_gradio_app(
        made,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_PICTURE,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        theme=_theme(),
        css=PAGE_STYLE,
        js=NAME_BOX,
    )
    blocks.has_launched = True  # without it Gradio would take any path of this machine as a picture that was sent
    mounted = made.router.routes[-1]
    mounted.app = PageDoor(mounted.app)
    return made


def page_app(source: Any, *, max_queue: int = 32) -> FastAPI:
    """The page alone, without the API, as a Space shows it to everybody.

    source: a WebUITxt2ImgPipeline, or a library of files (`WebUIFolder`). max_queue: how many visitors may wait.
    """
    worker = Worker(max_queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(worker.close, 60.0)

    made = FastAPI(title="webui-diffusers", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    made.state.worker, made.state.shelf = worker, ModelShelf(source, {}, None)
    made.add_middleware(BodyLimit, limit=2 * MAX_PICTURE)
    return mount_page(made)


def _theme() -> Any:
    """Gradio's soft theme in the system's own fonts, with plain labels."""
    fonts = {"font": ("system-ui", "sans-serif"), "font_mono": ("ui-monospace", "monospace")}
    plain = {"background_fill": "transparent", "text_color": "*body_text_color", "padding": "0"}
    plain |= {"background_fill_dark": "transparent", "text_color_dark": "*body_text_color"}
    return gradio.themes.Soft(primary_hue="indigo", neutral_hue="slate", **fonts).set(
        body_text_color_subdued="*neutral_500",
        input_border_width="1px",
        input_border_color="*neutral_300",
        checkbox_border_color="*neutral_400",
        input_border_color_dark="*neutral_600",
        input_shadow="none",
        button_secondary_border_color="*border_color_primary",
        **{f"block_title_{name}": value for name, value in plain.items()},
    )


def page_blocks(worker: Worker, shelf: ModelShelf, has_api: bool) -> gradio.Blocks:
    """The page's components and what happens when they are used. has_api: whether it may name the API."""
    page = Page(worker, shelf)
    with gradio.Blocks(
        title="webui-diffusers", analytics_enabled=False, delete_cache=(KEPT_SECONDS // 24, KEPT_SECONDS)
    ) as blocks:
        sent = gradio.State(SentText())
        gradio.HTML(HEAD)
        with gradio.Row(elem_id="columns"):
            with gradio.Column(scale=5, min_width=320):
                box = _box()
                with gradio.Row(elem_id="actions"):
                    draw = gradio.Button("Draw", variant="primary", scale=3, min_width=0, elem_id="draw")
                    stop = gradio.Button("Stop", variant="stop", visible=False, scale=3, min_width=0, elem_id="stop")
                    example = gradio.Button("Example", scale=1, min_width=0, elem_id="example")
                reading = gradio.HTML(NOTHING_READ, elem_id="reading")
            with gradio.Column(scale=6, min_width=320):
                status = gradio.HTML(NOTHING_DRAWN, elem_id="status")
                pictures = _gallery()
                with gradio.Column(visible=False, elem_id="result") as result:
                    changes = _second_look()
                    text = gradio.Textbox(
                        label="Its text", lines=4, max_lines=10, interactive=False, buttons=["copy"], elem_id="text"
                    )
                    with gradio.Row():
                        download = gradio.DownloadButton("Download PNG", min_width=0, elem_id="download")
                        use = gradio.Button("Edit this text", min_width=0, elem_id="use")
        gradio.HTML(FOOT.format(API_LINK if has_api else ""))

        usual = {"show_progress": "hidden", "api_visibility": "private", "concurrency_limit": None}
        controls = [changes.seed, changes.steps, changes.hires]
        read = {"inputs": [box, sent], "outputs": [box, sent, reading, *controls, draw], "trigger_mode": "always_last"}
        box.change(page.read, **read, **usual)
        shown = [status, pictures, text, download, result, draw, stop]
        for trigger in (draw.click, box.submit, changes.draw.click):
            trigger(
                page.draw, [box, sent, *controls, pictures], shown, trigger_mode="once", js=LOOK_AT_STATUS, **usual
            )
        stop.click(page.stop, None, None, **usual)
        example.click(lambda: {"text": EXAMPLE, "files": []}, None, box, **usual)
        changes.new_seed.click(lambda: random.randint(0, LARGEST_SEED), None, changes.seed, **usual)
        pictures.select(page.pick, pictures, [text, download], **usual)
        use.click(lambda text: {"text": text, "files": []}, text, box, **usual)
        blocks.unload(page.leave)
    blocks.queue(api_open=False, default_concurrency_limit=None)
    return blocks


def _box() -> gradio.MultimodalTextbox:
    return gradio.MultimodalTextbox(
        label=BOX_LABEL,
        placeholder=PLACEHOLDER,
        file_types=[*PICTURE_FORMATS, ".txt"],
        sources=["upload"],
        lines=5,
        max_lines=14,
        max_plain_text_length=MAX_TEXT,
        submit_btn=False,
        autofocus=True,
        elem_id="box",
    )


def _gallery() -> gradio.Gallery:
    return gradio.Gallery(
        label="Pictures",
        show_label=False,
        visible=False,
        preview=True,
        object_fit="contain",
        height="min(520px, 105vw)",
        columns=4,
        interactive=False,
        buttons=["download", "fullscreen"],
        elem_id="pictures",
    )


class SecondLook(NamedTuple):
    """The controls that change one thing, and the button that draws it."""

    seed: gradio.Number
    steps: gradio.Number
    hires: gradio.Radio
    new_seed: gradio.Button
    draw: gradio.Button


def _second_look() -> SecondLook:
    with gradio.Column(elem_id="changes"):
        gradio.HTML("<h2>A second look, with one thing changed</h2>")
        with gradio.Row():
            seed = gradio.Number(label="Seed", precision=0, placeholder=AS_WRITTEN, minimum=0, min_width=110)
            steps = gradio.Number(
                label="Steps", precision=0, placeholder=AS_WRITTEN, minimum=1, maximum=MAX_STEPS, min_width=80
            )
        hires = gradio.Radio([HIRES_AS_WRITTEN, HIRES_OFF, *HIRES_SCALES], value=HIRES_AS_WRITTEN, label="Hires fix")
        with gradio.Row():
            new_seed = gradio.Button("New seed", min_width=0, elem_id="new-seed")
            draw = gradio.Button("Draw again", variant="primary", min_width=0, elem_id="draw-again")
    return SecondLook(seed, steps, hires, new_seed, draw)


class Page:
    """What the page's events do."""

    def __init__(self, worker: Worker, shelf: ModelShelf):
        self.worker, self.shelf = worker, shelf
        self._jobs: dict[str, Job] = {}  # of each visitor, the one in the queue

    async def read(self, box: dict[str, Any] | None, sent: SentText) -> tuple[Any, ...]:
        """Show what the box says. A picture's text takes the picture's place in the box."""
        sent, reading, is_new = await self._reading(box, sent)
        changed = gradio.update() if not is_new else {"text": sent.text, "files": []}
        call = reading.call
        hints = [
            {"placeholder": str(call[name]) if call.get(name, -1) >= 0 else AS_WRITTEN}
            for name in ("seed", "num_inference_steps")
        ]
        label = "Draw anyway" if reading.missing else "Draw"
        return (
            changed,
            sent,
            reading_html(reading),
            *(gradio.update(value=None, **hint) for hint in hints),
            gradio.update(value=HIRES_AS_WRITTEN),
            gradio.update(value=label),
        )

    async def draw(
        self,
        box: dict[str, Any] | None,
        sent: SentText,
        seed: float | None,
        steps: float | None,
        hires: str,
        before: list[tuple[str, str | None]] | None,
        request: gradio.Request,
    ) -> AsyncIterator[dict[Any, Any] | tuple[Any, ...]]:
        """Draw in the worker's queue, showing how far it is; the new picture goes before the earlier ones."""
        visitor = str(request.session_hash)
        _, reading, _ = await self._reading(box, sent)
        if visitor in self._jobs:  # one at a time for everybody; asked here, where nobody else comes between
            yield _shown()
            return
        try:
            changes = PageChanges(seed, steps, hires or HIRES_AS_WRITTEN)
            generation = page_generation(reading, changes, self.shelf.settings)
            job = Job("txt2img", lambda progress: draw_page_pictures(self.shelf, generation, progress))
            self.worker.submit(job)
        except (ValueError, RuntimeError) as error:
            wait = " Try again in a moment." if isinstance(error, QueueFull) else ""
            yield _shown(status=problem_html(f"{error}{wait}"))
            return
        self._jobs[visitor] = job
        try:
            async for shown in self._watched(job):
                yield shown
        finally:  # also where the visitor has gone
            self._jobs.pop(visitor, None)
            if not job.result.done():
                self.worker.drop(job)
        if job.result.cancelled():
            yield _shown(status=NOTHING_DRAWN, idle=True)
            return
        error = job.result.exception()
        if error is not None:
            yield _shown(status=problem_html(str(error) or type(error).__name__), idle=True)
            return
        with tempfile.TemporaryDirectory(prefix="webui-diffusers-") as folder:  # Gradio keeps a copy
            new = [await run_in_threadpool(_saved, folder, *drawn) for drawn in job.result.result()]
            texts = [written for _, written in job.result.result()]
            everything = [*new, *(before or [])][:SHOWN_PICTURES]
            yield _shown(
                status="",
                pictures=gradio.update(value=everything, visible=True, selected_index=0),
                text=texts[0] if texts else gradio.skip(),
                download=new[0][0] if new else gradio.skip(),
                result=gradio.update(visible=True),
                idle=True,
            )

    async def _watched(self, job: Job) -> AsyncIterator[tuple[Any, ...]]:
        """What to show while a job waits and runs, until it is done."""
        done, seen, preview = asyncio.wrap_future(job.result), 0, None
        done.add_done_callback(lambda future: future.cancelled() or future.exception())  # told by the job itself
        while not done.done():
            if job.progress.step != seen:
                seen = job.progress.step
                preview = await run_in_threadpool(self.shelf.preview, job.progress) or preview
            yield _shown(status=progress_html(job, self.worker.ahead(job), preview), idle=False)
            await asyncio.wait([done], timeout=WATCH_SECONDS)

    def stop(self, request: gradio.Request) -> None:
        """End the visitor's own job after its step, or take it out of the queue."""
        job = self._jobs.get(str(request.session_hash))
        if job is None:
            return
        if job.result.running():
            job.progress.interrupted = True
        else:
            self.worker.drop(job)

    def leave(self, request: gradio.Request) -> None:
        """The page was closed: nobody waits for its job."""
        job = self._jobs.pop(str(request.session_hash), None)
        if job is not None:
            self.worker.drop(job)

    def pick(self, pictures: list[tuple[str, str | None]], chosen: gradio.SelectData) -> tuple[str, str]:
        """The text of the picture that was selected, and its file."""
        path = pictures[chosen.index][0]
        return str(read_infotext(path)), path

    async def _reading(self, box: dict[str, Any] | None, sent: SentText) -> tuple[SentText, PageReading, bool]:
        """The box as it was sent, what it says, and whether its text came out of a picture just now."""
        text, files = (box or {}).get("text") or "", (box or {}).get("files") or []
        if files:
            try:
                found = await run_in_threadpool(text_of_picture, files[-1])
            except ValueError as error:
                return SentText(text), PageReading(text, refusal=str(error)), True
            sent = SentText(str(found), tuple(found.notes))
        elif text != sent.text:
            sent = SentText(text)
        reading = await run_in_threadpool(read_page_text, sent.text, sent.notes, self.shelf)
        return sent, reading, bool(files)


def _shown(
    *,
    status: Any = None,
    pictures: Any = None,
    text: Any = None,
    download: Any = None,
    result: Any = None,
    idle: bool | None = None,
) -> tuple[Any, ...]:
    """The outputs of drawing; None leaves one as it is. idle: whether Draw or Stop is shown."""
    values = [gradio.skip() if value is None else value for value in (status, pictures, text, download, result)]
    buttons = [gradio.skip()] * 2 if idle is None else [gradio.update(visible=idle), gradio.update(visible=not idle)]
    return (*values, *buttons)


def _saved(folder: str, picture: Any, written: str) -> tuple[str, str]:
    """A PNG with its text in the folder, and what is said under it."""
    fields = parse_infotext(written)
    path = Path(folder, f"{fields.get('Seed', 'picture')}.png")
    save_picture(picture, path, written, flush=False)
    scale = str(fields.get("Hires upscale") or "").removesuffix(".0")
    hires = f", hires {scale}×" if scale else ""
    caption = f"Seed {fields.get('Seed')}, {fields.get('Steps')} steps, {picture.width} × {picture.height}{hires}"
    return str(path), caption
