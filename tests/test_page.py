"""The page over HTTP, as the browser uses it: what it serves, reads, draws, and what it refuses."""

import asyncio
import io
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recordings import GOLDEN


pytest.importorskip("gradio", reason="needs the extra [ui]")

from page_client import PageServer, Visitor
from tiny_models import pipeline_with_copies
from webui_diffusers.pipelines import WebUITxt2ImgPipeline, call_arguments, parse_infotext
from webui_diffusers.pipelines.cli import serve as command
from webui_diffusers.pipelines.infotext.files import save_picture
from webui_diffusers.pipelines.serve import app
from webui_diffusers.pipelines.serve.page import Page, SentText, mount_page, page_app
from webui_diffusers.pipelines.serve.shelf import ModelShelf
from webui_diffusers.pipelines.serve.worker import Job


TEXT = (
    "a (red:1.2) circle <lora:ink:0.7>\nNegative prompt: blue\n"
    "Steps: 3, Sampler: Euler a, CFG scale: 5, Seed: 7, Size: 64x64"
)


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> WebUITxt2ImgPipeline:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name)
    pipe.set_progress_bar_config(disable=True)
    pipe.add_lora(GOLDEN / "lora" / "kohya_lora.safetensors", "ink")
    return pipe


@pytest.fixture(scope="module")
def server(pipe: WebUITxt2ImgPipeline) -> Iterator[PageServer]:
    running = PageServer(mount_page(app(pipe, max_queue=2)))
    yield running
    running.stop()


@pytest.fixture
def visitor(server: PageServer) -> Visitor:
    return Visitor(server.url, f"visitor{time.monotonic_ns()}")


@pytest.fixture
def busy(server: PageServer) -> Iterator[threading.Event]:
    """The worker has a job in hand until the event is set."""
    begun, over = threading.Event(), threading.Event()
    server.app.state.worker.submit(Job("other", lambda _: (begun.set(), over.wait(60))))
    assert begun.wait(10)
    yield over
    over.set()


def wait_for(happened, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.02)


# --- what is served


def test_the_page_names_no_other_host_and_loads_its_parts_from_its_own(server, visitor):
    assert set(re.findall(r"(?:https?:)?//([\w.:-]+)", visitor.html)) <= {server.url.removeprefix("http://")}
    parts = re.findall(r'(?:src|href)="([^"]+)"', visitor.html)
    assert len(parts) >= 3
    for part in parts:
        loaded = visitor.http.get(part.removeprefix("."))
        assert loaded.status_code == 200, part
        if "css" in loaded.headers["content-type"]:
            assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)\"']+", loaded.text)
    assert not re.findall(r"url\(\s*[\"']?(?:https?:)?//", visitor.http.get("/theme.css").text)


def test_a_browser_is_told_to_load_nothing_from_elsewhere(visitor):
    policy = visitor.http.get("/").headers["content-security-policy"]
    assert "default-src 'self'" in policy and "http" not in policy and "*" not in policy


def test_what_of_gradio_the_page_does_not_use_is_not_there(visitor):
    for path in (
        "/config",
        "/monitoring",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/runs",
        "/user",
    ):
        assert visitor.http.get(path).status_code == 404, path
    for path in ("/gradio_api/call/draw", "/gradio_api/run/draw", "/gradio_api/component_server", "/login"):
        assert visitor.http.post(path, json={"data": []}).status_code == 404, path
    assert {d["api_visibility"] for d in visitor.config["dependencies"]} == {"private"}
    assert '"named_endpoints":{}' in visitor.html.replace(" ", "")


def test_the_api_stands_beside_the_page(visitor):
    assert visitor.http.get("/docs").status_code == 200
    assert visitor.http.get("/internal/ping").json() == {}
    assert visitor.http.get("/sdapi/v1/nothing").status_code == 404


def test_a_space_has_the_page_and_no_api(pipe):
    running = PageServer(page_app(pipe))
    try:
        alone = Visitor(running.url, "alone")
        assert "a (red" in alone.read(TEXT)["html"]
        for path in ("/docs", "/openapi.json", "/sdapi/v1/options"):
            assert alone.http.get(path).status_code == 404
        assert 'href=\\"docs\\"' not in alone.html
    finally:
        running.stop()


def test_serve_says_in_one_line_how_to_get_the_page(pipe, monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    made = app(pipe)
    assert command.with_page(made) == "no page (it needs Gradio: pip install 'webui-diffusers[ui]')"
    assert not any(getattr(route, "path", None) == "" for route in made.routes)
    made.state.worker.close()


# --- reading


def test_a_pasted_text_is_shown_before_anything_is_drawn(visitor):
    shown = visitor.read(TEXT + ", Model: dreamshaper_8, Odd field: 3")
    assert "<dt>Sampler</dt><dd>Euler a</dd>" in shown["html"]
    assert "Missing here" in shown["html"] and "<code>dreamshaper_8</code>" in shown["html"]
    assert "What will differ" in shown["html"] and "Odd field: 3" in shown["html"]
    assert (shown["seed"]["placeholder"], shown["steps"]["placeholder"]) == ("7", "3")
    assert shown["draw"]["value"] == "Draw anyway"


def test_the_text_of_a_picture_takes_its_place_in_the_box(visitor, tmp_path):
    text = TEXT.replace("circle", "Kreis, 円 ⭕")
    for ending in ("png", "jpg", "webp"):
        shown = visitor.read("", save_picture(Image.new("RGB", (8, 8)), tmp_path / f"x.{ending}", text))
        assert shown["box"] == {"text": text, "files": []}
        assert "円 ⭕" in shown["html"]


def test_a_picture_without_a_text_says_so(visitor, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    shown = visitor.read("", tmp_path / "plain.png")
    assert "holds no parameters" in shown["html"] and str(tmp_path) not in shown["html"]


def test_files_of_the_server_are_neither_read_nor_served(visitor, tmp_path):
    secret = save_picture(Image.new("RGB", (8, 8)), tmp_path / "secret.png", TEXT)
    for path in (str(secret), "/etc/hostname", "pyproject.toml"):
        box = {"text": "", "files": [{"path": path, "meta": {"_type": "gradio.FileData"}}]}
        done = [m for m in visitor.events("read", [box, None]) if m["msg"] == "process_completed"]
        assert not done[0]["success"] and "data" not in done[0]["output"], path
        assert visitor.http.get(f"/gradio_api/file={path}").status_code in (403, 404), path
    assert visitor.read(str(secret))["box"] == {"__type__": "update"}, "a pasted path is a prompt"


@pytest.mark.parametrize("address", ["http://{host}/x.png", "HTTPS://example.org/x.png", "file:///etc/hostname"])
def test_addresses_are_not_fetched(visitor, server, address):
    address = address.format(host=server.url.removeprefix("http://"))
    box = {"text": "", "files": [{"path": address, "meta": {"_type": "gradio.FileData"}}]}
    refused = visitor.join("read", [box, None])
    assert refused.status_code == 422 and "not opened" in refused.json()["detail"]
    assert visitor.http.get(f"/gradio_api/file={address}").status_code in (403, 404)
    assert visitor.http.get(f"/gradio_api/proxy={address}").status_code == 404


def test_files_that_are_too_large_are_not_taken(visitor):
    sent = visitor.http.post("/gradio_api/upload", files={"files": ("x.png", bytes(65 * 2**20))})
    assert sent.status_code == 413


# --- drawing


def test_the_picture_is_the_pipelines_and_carries_its_text(visitor, pipe):
    shown = visitor.drawn(TEXT)
    expected = pipe(**call_arguments(parse_infotext(TEXT)))
    first = shown["pictures"]["value"][0]
    picture = Image.open(io.BytesIO(visitor.file(first["image"])))
    assert np.array_equal(np.asarray(picture), np.asarray(expected.images[0]))
    assert picture.info["parameters"] == expected.infotexts[0] == shown["text"]
    assert first["caption"] == "Seed 7, 3 steps, 64 × 64"
    assert visitor.file(shown["download"]) == visitor.file(first["image"])
    assert (shown["status"], shown["draw"]["visible"], shown["stop"]["visible"]) == ("", True, False)


def test_a_second_look_stands_before_the_first(visitor):
    first = visitor.drawn(TEXT)["pictures"]["value"]
    second = visitor.drawn(TEXT, seed=8, steps=2, hires="2×", before=first)["pictures"]["value"]
    assert [shown["caption"] for shown in second] == ["Seed 8, 2 steps, 128 × 128, hires 2×", first[0]["caption"]]
    assert visitor.file(second[1]["image"]) == visitor.file(first[0]["image"])
    selected = {"index": 1, "value": None, "selected": True}
    text, download = visitor.answer("pick", [second], event_data=selected)
    assert "Seed: 7," in text and visitor.file(download) == visitor.file(first[0]["image"])


def test_progress_and_a_preview_are_shown_while_it_is_drawn(visitor):
    seen = [shown["status"] for shown in visitor.draw(TEXT.replace("Steps: 3", "Steps: 40"))]
    assert any(re.search(r"Step \d+ of 40", status) for status in seen)
    assert any('<progress max="1"' in status and "data:image/jpeg;base64," in status for status in seen)


def test_what_cannot_be_drawn_says_why_and_the_next_picture_is_drawn(visitor):
    for text, said in ((TEXT.replace("64x64", "9000x9000"), "pixels"), ("", "nothing to draw")):
        shown = visitor.drawn(text)
        assert "It was not drawn" in shown["status"] and said in shown["status"]
    assert visitor.drawn(TEXT)["text"]


def test_page_and_api_take_turns_in_one_queue(visitor, server, busy):
    order: list[str] = []
    api = threading.Thread(
        target=lambda: (
            visitor.http.post("/sdapi/v1/txt2img", json={"prompt": "x", "steps": 1, "width": 64, "height": 64}),
            order.append("api"),
        )
    )
    api.start()
    wait_for(lambda: server.app.state.worker.waiting == 1)
    statuses = []
    for shown in Visitor(server.url, "later").draw(TEXT):
        statuses.append(shown["status"])
        busy.set()
    order.append("page")
    api.join(60)
    assert order == ["api", "page"]
    assert "Waiting: 2 pictures are drawn before yours." in statuses[0]


def test_a_visitor_waits_for_one_picture_at_a_time(visitor, server, busy):
    first = visitor.draw(TEXT)
    next(first)
    assert Visitor(server.url, visitor.name).join("draw_1", [{"text": TEXT, "files": []}, None, *[None] * 4])
    time.sleep(0.5)
    assert server.app.state.worker.waiting == 1
    busy.set()
    assert list(first)[-1]["text"]


def test_a_full_queue_says_so(visitor, server, busy):
    for _ in range(2):
        server.app.state.worker.submit(Job("other", lambda _: None))
    assert "2 jobs wait already. Try again in a moment." in visitor.drawn(TEXT)["status"]


def test_stop_takes_a_waiting_picture_out_and_ends_one_in_hand_early(visitor, server, busy):
    other = Visitor(server.url, visitor.name)
    waiting = visitor.draw(TEXT)
    next(waiting)
    other.join("stop", [])
    assert "will appear here" in list(waiting)[-1]["status"] and server.app.state.worker.waiting == 0
    busy.set()
    began = time.monotonic()
    for shown in visitor.draw(TEXT.replace("Steps: 3", "Steps: 1000")):
        if "Step " in str(shown["status"]):
            other.join("stop", [])
    assert shown["pictures"]["value"] and time.monotonic() - began < 20


def test_a_visitor_who_goes_away_is_drawn_nothing(server, busy):
    worker = server.app.state.worker
    for _ in Visitor(server.url, "goer").draw(TEXT):
        job = worker._waiting[-1]
        break  # the stream is closed, as by a closed tab
    wait_for(job.result.cancelled)
    assert worker.waiting == 0


def test_a_password_guards_the_page_and_all_its_parts(pipe):
    running = PageServer(mount_page(app(pipe, auth=["me:secret"])))
    try:
        stranger, known = Visitor(running.url, "stranger"), Visitor(running.url, "known", ("me", "secret"))
        for path in ("/", "/theme.css", "/gradio_api/queue/data?session_hash=x", "/gradio_api/file=x", "/docs"):
            refused = stranger.http.get(path)
            assert refused.status_code == 401 and "Basic" in refused.headers["www-authenticate"], path
        for path in ("/gradio_api/queue/join", "/gradio_api/upload"):
            assert stranger.http.post(path, json={}).status_code == 401, path
        assert known.drawn(TEXT)["text"].startswith("a (red:1.2) circle")
    finally:
        running.stop()


def test_a_visitor_has_one_job_even_where_two_clicks_come_at_once(pipe):
    jobs: list[Any] = []

    class Submitted:
        """A worker that never comes to a job."""

        def submit(self, job: Any) -> None:
            jobs.append(job)

        def ahead(self, job: Any) -> int:
            return 0

        def drop(self, job: Any) -> None:
            job.cancel()

    page = Page(Submitted(), ModelShelf(pipe, {}, None))
    box, request = {"text": "a circle\nSteps: 1, Sampler: Euler"}, SimpleNamespace(session_hash="visitor")

    async def click() -> None:
        async for _ in page.draw(box, SentText(), None, None, "", None, request):
            await asyncio.sleep(0.1)
            break

    async def clicks() -> None:
        await asyncio.gather(click(), click())

    asyncio.run(clicks())
    assert len(jobs) == 1
