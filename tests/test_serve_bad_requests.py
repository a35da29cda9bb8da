"""Malformed and hostile requests: each gets an answer that says why, and the server draws as before."""

import base64
import io
import json
import socket
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin


pytest.importorskip("fastapi", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

from api_server import SMALL, Server, encoded, pixels_of  # noqa: E402
from webui_diffusers.pipelines import WebUITxt2ImgPipeline  # noqa: E402
from webui_diffusers.pipelines.serve import app  # noqa: E402


ROUTES = (
    *("/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/extra-single-image", "/sdapi/v1/extra-batch-images"),
    *("/sdapi/v1/png-info", "/sdapi/v1/options", "/controlnet/detect"),
)
NESTED: list[Any] = []
for _ in range(60):
    NESTED = [NESTED]
DOT = encoded(Image.new("RGB", (8, 8), "red"))
OURS = "The server is as it was before; its log has the details."

# What no field expects, and what some expect at the edge of their range. Nothing large is within a range.
NUMBERS = st.sampled_from(
    [-1, 0, 1, 2, 3, 8, 0.5, 1.5, -0.1, 10**9, -(10**9), 10**30, 1e308, float("nan"), float("inf")]
)
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", "None", "Euler", "../../etc/passwd", "/etc/passwd", "http://127.0.0.1/x", "\ud800", "\x00", "{__class__}",
         "<lora:../../x:1>", "[a:b:99999999999]", "(((((", "a AND b:nan", "x|y", DOT, "data:image/png;base64,", "%s%n"]
    ),
)  # fmt: skip
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def pipe(small_sd: Path) -> WebUITxt2ImgPipeline:
    return WebUITxt2ImgPipeline.from_pretrained(small_sd, dtype=torch.float32)


@pytest.fixture(scope="module")
def http(pipe: WebUITxt2ImgPipeline) -> Iterator[Any]:
    running = Server(app(pipe))
    with httpx.Client(base_url=running.url, timeout=600) as client:  # an empty request is a whole picture
        yield client
    running.stop()


def fields_of(description: dict[str, Any], route: str) -> list[str]:
    """The fields that the OpenAPI description gives a route."""
    schema = description["paths"][route]["post"]["requestBody"]["content"]["application/json"]["schema"]
    name = schema.get("$ref", "").rpartition("/")[2]
    return sorted(description["components"]["schemas"].get(name, {}).get("properties", {"tiling": {}, "s_noise": {}}))


def bodies(description: dict[str, Any]) -> st.SearchStrategy[tuple[str, bytes]]:
    """A route and a body: its own fields, some of them anything; or no object, or no JSON."""

    def body_for(route: str) -> st.SearchStrategy[bytes]:
        known = fields_of(description, route)
        wild = st.dictionaries(st.sampled_from([*known, "no_such_field"]), VALUES, min_size=1, max_size=4)
        start = {"steps": 1, "width": 8, "height": 8, "prompt": "a"} if "steps" in known else {}
        start |= {"init_images": [DOT]} if "init_images" in known else {}
        objects = wild.map(lambda own: json.dumps({**start, **own}).encode())
        return st.one_of(objects, objects, objects, VALUES.map(lambda value: json.dumps(value).encode()), st.binary())

    return st.sampled_from(ROUTES).flatmap(lambda route: st.tuples(st.just(route), body_for(route)))


@pytest.mark.parametrize("count", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_malformed_requests_get_answers_that_say_why(http, pipe, count):
    """Never a 500 without our sentence, never none at all; afterwards the weights and the pictures are as before."""
    before = pixels_of(http.post("/sdapi/v1/txt2img", json=SMALL))[0]
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    usual = http.get("/sdapi/v1/options").json()
    seen: dict[int, int] = {}
    unexpected: list[str] = []

    @settings(
        max_examples=count, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(bodies(http.get("/openapi.json").json()))
    def send(asked: tuple[str, bytes]) -> None:
        route, body = asked
        answer = http.post(route, content=body, headers={"Content-Type": "application/json"})
        seen[answer.status_code] = seen.get(answer.status_code, 0) + 1
        assert answer.status_code in (200, 400, 422, 500, 501), answer.text
        told = answer.json()
        if answer.status_code != 200:
            assert told["detail"], (route, body, answer.text)
        if answer.status_code == 500:
            assert told["detail"].endswith(OURS), (route, body, answer.text)
            unexpected.append(f"{route} {body[:300]!r}: {told['detail'][:200]}")
        if answer.status_code == 200 and route.endswith("options"):
            http.post(route, json=usual)

    send()
    print(seen, *unexpected, sep="\n")
    assert seen[422] > count // 2 and not unexpected
    assert http.get("/sdapi/v1/options").json() == usual
    assert np.array_equal(pixels_of(http.post("/sdapi/v1/txt2img", json=SMALL))[0], before)
    assert all(torch.equal(value, weights[name]) for name, value in pipe.unet.state_dict().items())


# --- one by one


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of few bytes whose head says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def saved(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, kind, **options)
    return file.getvalue()


def text_bomb() -> bytes:
    """A PNG whose compressed text is 80 MB."""
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "a" * 80_000_000, zip=True)
    return saved("PNG", pnginfo=texts)


HOSTILE = {
    "larger than memory": png_claiming(60_000, 60_000),
    "larger than allowed": png_claiming(5000, 5000),
    "a long strip": saved("PNG")[:8] + png_claiming(8000, 1)[8:],
    "cut off": saved("PNG")[:45],
    "a program for Ghostscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n(/etc/passwd) run\nshowpage\n",
    "a script": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pictures_are_refused_by_their_field(http, name):
    picture = base64.b64encode(HOSTILE[name]).decode()
    asked = {**SMALL, "init_images": [picture]}
    answer = http.post("/sdapi/v1/img2img", json=asked)
    assert answer.status_code == 422 and answer.json()["field"] == "init_images[0]", answer.text
    assert http.post("/sdapi/v1/extra-single-image", json={"image": picture}).status_code == 422
    told = http.post("/sdapi/v1/png-info", json={"image": picture})
    assert told.status_code in (200, 422) and "root:" not in told.text


def test_a_text_that_unpacks_to_more_than_memory_is_not_unpacked(http):
    answer = http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(text_bomb()).decode()})
    assert answer.status_code in (200, 422) and len(answer.content) < 2**21


def test_a_body_is_refused_before_it_is_read(http):
    with socket.create_connection((http.base_url.host, http.base_url.port), timeout=30) as raw:
        raw.sendall(b"POST /sdapi/v1/png-info HTTP/1.1\r\nHost: x\r\nContent-Length: 1099511627776\r\n\r\n")
        assert b" 413 " in raw.recv(65536)


def test_a_body_without_a_length_is_cut_off(pipe):
    from webui_diffusers.pipelines.serve import application

    limit, application.MAX_BODY = application.MAX_BODY, 1000
    running = Server(app(pipe))
    application.MAX_BODY = limit
    try:
        chunks = (b"x" * 300 for _ in range(10))
        answer = httpx.post(
            f"{running.url}/sdapi/v1/png-info", content=chunks, headers={"Content-Type": "application/json"}
        )
        assert answer.status_code == 413
    finally:
        running.stop()


@pytest.mark.parametrize(
    "fields, name",
    [
        ({"alwayson_scripts": {"ADetailer": {"args": [{"ad_model": "/etc/passwd"}]}}}, "ad_model"),
        ({"alwayson_scripts": {"ADetailer": {"args": [{"model": "/etc/passwd"}]}}}, "ad_model"),
        ({"alwayson_scripts": {"ADetailer": {"args": [
            {"ad_model": "face", "ad_use_checkpoint": True, "ad_checkpoint": "/etc/hostname"}]}}}, "ad_checkpoint"),
        ({"alwayson_scripts": {"ADetailer": {"args": [
            {"ad_model": "face", "ad_use_vae": True, "ad_vae": "/etc/hostname"}]}}}, "ad_vae"),
        ({"alwayson_scripts": {"ADetailer": {"args": [{"ad_model": "face", "ad_dilate_erode": 10**6}]}}}, "dilate"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"model": "/etc/hostname", "image": DOT}]}}}, "model"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"model": "x", "image": "/etc/hostname"}]}}}, "args[0].image"),
        ({"alwayson_scripts": {"ControlNet": {"args": [{"model": "x", "image": 5}]}}}, "args[0].image"),
        ({"alwayson_scripts": {"Refiner": {"args": [True, "../../x", 0.8]}}}, "refiner_checkpoint"),
        ({"enable_hr": True, "hr_checkpoint_name": "/etc/hostname"}, "hires_model"),
        ({"enable_hr": True, "hr_scale": 1000}, "hr_scale"),
        ({"enable_hr": True, "hr_resize_x": 8000, "hr_resize_y": 8000}, "hr_resize_x"),
        ({"batch_size": 64, "width": 4096, "height": 4096}, "batch_size"),
        ({"override_settings": {"face_restoration_model": "/etc/passwd"}}, "face_restoration_model"),
        ({"override_settings": {"samples_format": "/../x"}}, "samples_format"),
        ({"infotext": "a\nSteps: 2, Sampler: Euler, Seed: 1, Size: 64x64, Denoising strength: 0.5, "
                      "Hires upscale: 2, Hires upscaler: /etc/passwd"}, "hr_upscaler"),
        ({"script_args": [float("1e400")]}, "script_args"),
        ({"comments": {"a": NESTED}}, "comments"),
    ],
)  # fmt: skip
def test_no_name_of_a_request_is_opened_as_a_path(http, fields, name):
    answer = http.post(
        "/sdapi/v1/txt2img", content=json.dumps({**SMALL, **fields}), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 422 and name in answer.text and "root:" not in answer.text, answer.text


def test_headers_are_not_taken_from_requests(http):
    answer = http.post(
        "/sdapi/v1/txt2img", json={**SMALL, "force_task_id": "x\r\nX-Evil: 1", "sampler_name": "a\r\nb"}
    )
    assert answer.status_code == 422 and "X-Evil" not in answer.headers


def test_paths_lead_nowhere_else(http):
    for path in (
        "/../../etc/passwd",
        "/sdapi/v1/%2e%2e/%2e%2e/etc/passwd",
        "/docs/../../etc/passwd",
        "/file=/etc/passwd",
    ):
        answer = http.get(path)
        assert answer.status_code == 404 and "root:" not in answer.text


def test_names_of_other_machines_are_not_answered_on_a_closed_server(pipe):
    """A page of another site whose name was bent to this machine's address (DNS rebinding)."""
    running = Server(app(pipe, hosts=["localhost", "127.0.0.1", "::1"]))
    try:
        get = lambda host: httpx.get(f"{running.url}/sdapi/v1/options", headers={"Host": host})  # noqa: E731
        assert get(f"localhost:{running.port}").status_code == 200 and get("[::1]:7860").status_code == 200
        for host in ("evil.example", "evil.example:7860", "localhost.evil.example", "", "[bad"):
            assert get(host).status_code in (400, 403), host
    finally:
        running.stop()


def test_everything_is_behind_the_password(pipe):
    running = Server(app(pipe, auth=["ada:secret", "bob:other"]))
    try:
        with httpx.Client(base_url=running.url) as client:
            paths = client.get("/openapi.json", auth=("bob", "other")).json()["paths"]
            for path, methods in {
                **paths,
                "/docs": {"get": 1},
                "/openapi.json": {"get": 1},
                "/no": {"get": 1},
            }.items():
                for method in methods:
                    assert client.request(method, path).status_code == 401, path
            for wrong in ("Basic !!", "Bearer ada:secret", "Basic", "Basic YWRhOnNlY3JldDE=", "Basic OnNlY3JldA=="):
                assert client.get("/docs", headers={"Authorization": wrong}).status_code == 401, wrong
    finally:
        running.stop()
