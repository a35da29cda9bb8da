"""The webui's API, asked by an unmodified client and by hand."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recordings import GOLDEN


fastapi = pytest.importorskip("fastapi", reason="needs the extra [serve]")
uvicorn = pytest.importorskip("uvicorn", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")
webuiapi = pytest.importorskip("webuiapi", reason="needs the extra [test]")

from api_server import SMALL, Server, decoded, encoded, info_of  # noqa: E402
from tiny_models import pipeline_with_copies  # noqa: E402
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline  # noqa: E402
from webui_diffusers.pipelines.cli.serve import open_door_refusal  # noqa: E402
from webui_diffusers.pipelines.infotext.styles import PromptStyle  # noqa: E402
from webui_diffusers.pipelines.serve import app  # noqa: E402
from webui_diffusers.pipelines.serve.worker import Job, Worker  # noqa: E402


LORA = GOLDEN / "lora" / "kohya_lora.safetensors"


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> WebUITxt2ImgPipeline:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name)
    pipe.set_progress_bar_config(disable=True)
    pipe.add_lora(LORA, "ink")
    return pipe


@pytest.fixture(scope="module")
def server(pipe: WebUITxt2ImgPipeline) -> Iterator[Server]:
    styles = {"warm": PromptStyle("warm", "{prompt}, (red:1.3)", "")}
    running = Server(app(pipe, styles=styles))
    yield running
    running.stop()


@pytest.fixture
def http(server: Server) -> Iterator[Any]:
    with httpx.Client(base_url=server.url, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def client(server: Server) -> Any:
    return webuiapi.WebUIApi(host="127.0.0.1", port=server.port, sampler="Euler a", steps=2)


# --- an unmodified client


def test_a_client_draws_what_the_pipeline_draws_and_gets_its_text(client, pipe):
    result = client.txt2img(
        prompt="a (red:1.2) circle <lora:ink:0.7>", negative_prompt="blue", seed=5, width=64, height=64, cfg_scale=4
    )
    expected = pipe(
        "a (red:1.2) circle <lora:ink:0.7>",
        negative_prompt="blue",
        seed=5,
        width=64,
        height=64,
        guidance_scale=4.0,
        num_inference_steps=2,
        sampler="Euler a",
    )
    assert np.array_equal(np.asarray(result.image), np.asarray(expected.images[0]))
    assert result.info["infotexts"] == expected.infotexts and result.info["all_seeds"] == [5]
    assert result.image.info["parameters"] == expected.infotexts[0]


def test_a_client_draws_with_hires_fix(client, pipe):
    result = client.txt2img(
        prompt="a star", seed=1, width=64, height=64, enable_hr=True, hr_scale=1.5, hr_upscaler="Latent",
        denoising_strength=0.6, hr_second_pass_steps=2,
    )  # fmt: skip
    assert result.image.size == (96, 96)
    assert "Hires upscale: 1.5" in result.info["infotexts"][0]


def test_a_client_draws_over_a_picture_with_a_mask(client, pipe):
    picture = Image.new("RGB", (64, 64), "white")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (16, 16, 48, 48))
    result = client.img2img(
        images=[picture], mask_image=mask, prompt="a red circle", seed=3, width=64, height=64, mask_blur=2,
        inpainting_fill=1, inpaint_full_res=False, denoising_strength=0.7,
    )  # fmt: skip
    over = WebUIImg2ImgPipeline.from_pipe(pipe)
    over.set_progress_bar_config(disable=True)
    assert result.image.size == (64, 64)
    assert np.asarray(result.image)[0, 0].tolist() == [255, 255, 255]
    assert "Mask blur: 2" in result.info["infotexts"][0] and "Denoising strength: 0.7" in result.info["infotexts"][0]


def test_a_client_enlarges_pictures_and_reads_their_texts(client):
    enlarged = client.extra_single_image(
        image=Image.new("RGB", (16, 12), "red"), upscaler_1="Lanczos", upscaling_resize=3
    )
    assert enlarged.image.size == (48, 36)
    drawn = client.txt2img(prompt="a red circle", seed=7, width=64, height=64)
    assert client.png_info(drawn.image).info.startswith("a red circle\nSteps: 2, Sampler: Euler a")


def test_a_client_reads_and_sets_options_whole_and_singly(client):
    options = client.get_options()
    client.set_options(options)
    client.set_options({"CLIP_stop_at_last_layers": 2})
    try:
        assert client.get_options()["CLIP_stop_at_last_layers"] == 2
        text = client.txt2img(prompt="a", seed=1, width=64, height=64).info["infotexts"][0]
        assert "Clip skip: 2" in text
    finally:
        client.set_options({"CLIP_stop_at_last_layers": 1})
    once = client.txt2img(prompt="a", seed=1, width=64, height=64, override_settings={"CLIP_stop_at_last_layers": 2})
    assert "Clip skip: 2" in once.info["infotexts"][0] and client.get_options()["CLIP_stop_at_last_layers"] == 1


def test_a_client_lists_what_there_is(client):
    assert {"Euler a", "DPM++ 2M"} <= {row["name"] for row in client.get_samplers()}
    assert "Lanczos" in [row["name"] for row in client.get_upscalers()]
    assert "Latent" in [row["name"] for row in client.get_latent_upscale_modes()]
    assert [row["name"] for row in client.get_loras()] == ["ink"]
    assert client.get_prompt_styles()[0]["name"] == "warm"
    assert client.get_sd_models() and client.get_face_restorers() and client.get_memory()


def test_progress_and_interrupt_answer_while_a_picture_is_drawn(client, server):
    done: list[Any] = []
    drawing = threading.Thread(target=lambda: done.append(client.txt2img(prompt="a", steps=400, width=64, height=64)))
    drawing.start()
    other = webuiapi.WebUIApi(host="127.0.0.1", port=server.port)
    seen = 0.0
    while seen == 0.0:
        at = other.get_progress()
        seen = at["progress"]
        assert drawing.is_alive()
    assert 0 < seen < 1 and at["state"]["sampling_steps"] == 400 and at["eta_relative"] >= 0
    other.interrupt()
    drawing.join(60)
    assert done[0].image.size == (64, 64) and other.get_progress()["progress"] == 0


@pytest.mark.parametrize("fails", [False, True])
def test_the_worker_rests_before_a_client_has_its_answer(fails):
    worker, seen, begun = Worker(1), [], threading.Event()

    def work(progress):
        seen.append(worker.progress.job)
        begun.set()
        progress.step = progress.steps = 1
        if fails:
            raise RuntimeError("no")

    job = Job("txt2img", work)
    job.result.add_done_callback(lambda result: seen.append((worker.progress.job, worker.progress.share)))
    worker.submit(job)
    assert begun.wait(10)
    worker.close(10)
    assert seen == ["txt2img", ("", 0.0)] and (job.result.exception(10) is not None) == fails


# --- by hand


def test_batches_have_the_seeds_of_the_webui(http):
    answer = http.post("/sdapi/v1/txt2img", json={**SMALL, "batch_size": 2, "n_iter": 2}).json()
    info = json.loads(answer["info"])
    assert info["all_seeds"] == [7, 8, 9, 10] and len(answer["images"]) == 4
    alone = http.post("/sdapi/v1/txt2img", json={**SMALL, "seed": 9}).json()
    pixels = [np.asarray(decoded(text)).astype(int) for text in (alone["images"][0], answer["images"][2])]
    assert np.abs(pixels[0] - pixels[1]).max() <= 1


def test_schedules_go_by_label_and_by_name(http):
    texts = [
        json.loads(
            http.post("/sdapi/v1/txt2img", json={**SMALL, "sampler_name": "DPM++ 2M", "scheduler": s}).json()["info"]
        )
        for s in ("karras", "Karras")
    ]
    assert texts[0]["infotexts"] == texts[1]["infotexts"] and "Schedule type: Karras" in texts[0]["infotexts"][0]


def test_an_infotext_fills_what_the_request_leaves_out(http):
    text = "a star\nNegative prompt: blue\nSteps: 3, Sampler: Euler, CFG scale: 4, Seed: 11, Size: 64x64"
    answer = http.post("/sdapi/v1/txt2img", json={"infotext": text, "seed": 12, "send_images": False}).json()
    written = json.loads(answer["info"])["infotexts"][0]
    assert answer["images"] == []
    assert written.startswith("a star\nNegative prompt: blue\nSteps: 3, Sampler: Euler") and "Seed: 12" in written


def test_an_infotext_says_what_fields_say_otherwise_and_what_it_cannot_say_is_told(http):
    text = (
        "a star\nSteps: 2, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4, Seed: 11, Size: 64x64, "
        "Seed resize from: 32x48, Clip skip: 2, RNG: CPU, Model hash: 0123456789, Model: elsewhere, "
        "Denoising strength: 0.5, Hires upscale: 2, Hires steps: 3, Hires upscaler: Latent (nearest), "
        'ControlNet 0: "Module: none, Model: tiny, Weight: 1.0", ENSD: 31337, Version: v1.10.1'
    )
    info = info_of(http.post("/sdapi/v1/txt2img", json={"infotext": text}))
    written = info["infotexts"][0]
    for part in text.split("\n")[1].split(", Model hash")[0].split(", "):
        assert part in written, (part, written)
    assert "Hires upscaler: Latent (nearest)" in written and "Hires steps: 3" in written
    assert any("elsewhere 0123456789" in told for told in info["comments"])


def test_styles_are_applied(http):
    answer = http.post("/sdapi/v1/txt2img", json={**SMALL, "styles": ["warm"]}).json()
    assert json.loads(answer["info"])["prompt"] == "a red circle, (red:1.3)"


@pytest.mark.parametrize(
    "route, fields, name",
    [
        ("txt2img", {"no_such_field": 1}, "no_such_field"),
        ("txt2img", {"sampler_name": "Eulr"}, "sampler_name"),
        ("txt2img", {"scheduler": "Karas"}, "scheduler"),
        ("txt2img", {"steps": 0}, "steps"),
        ("txt2img", {"width": 8192, "height": 8192}, "width"),
        ("txt2img", {"styles": ["cold"]}, "styles"),
        ("txt2img", {"override_settings": {"no_such": 1}}, "override_settings.no_such"),
        ("txt2img", {"override_settings": {"sd_model_checkpoint": "/etc/passwd"}}, "sd_model_checkpoint"),
        ("txt2img", {"alwayson_scripts": {"Roop": {"args": [True]}}}, "alwayson_scripts.Roop"),
        ("txt2img", {"script_name": "Outpainting mk2"}, "script_name"),
        ("txt2img", {"enable_hr": True, "hr_upscaler": "attacker/payload"}, "hr_upscaler"),
        ("txt2img", {"enable_hr": True, "hr_upscaler": "/etc/passwd"}, "hr_upscaler"),
        ("txt2img", {"restore_faces": True}, "restore_faces"),
        ("txt2img", {"refiner_checkpoint": "../../x", "refiner_switch_at": 0.8}, "refiner_checkpoint"),
        ("img2img", {}, "init_images"),
        ("img2img", {"init_images": ["http://127.0.0.1/x.png"]}, "init_images[0]"),
        ("img2img", {"init_images": ["/etc/passwd"]}, "init_images[0]"),
        ("img2img", {"init_images": [base64.b64encode(b"no picture").decode()]}, "init_images[0]"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_its_field(http, route, fields, name):
    answer = http.post(f"/sdapi/v1/{route}", json={**SMALL, **fields})
    assert answer.status_code == 422, answer.text
    assert name in answer.text
    assert http.post("/sdapi/v1/txt2img", json=SMALL).status_code == 200


def test_a_failing_job_leaves_the_server_as_it_was(http):
    answer = http.post("/sdapi/v1/txt2img", json={**SMALL, "prompt": "a <lora:nothing:1>"})
    assert answer.status_code in (422, 500) and "nothing" in answer.json()["detail"]
    assert http.post("/sdapi/v1/txt2img", json=SMALL).status_code == 200


def test_what_is_not_done_here_says_so(http):
    assert http.post("/sdapi/v1/interrogate", json={}).status_code == 501
    assert http.get("/internal/ping").json() == {}
    assert "txt2img" in http.get("/openapi.json").text


def test_a_full_queue_answers_503_and_when_to_come_back(pipe):
    running = Server(app(pipe, max_queue=1))
    try:
        answers: list[Any] = []

        def ask() -> None:
            answers.append(httpx.post(f"{running.url}/sdapi/v1/txt2img", json={**SMALL, "steps": 20}, timeout=120))

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        codes = sorted(answer.status_code for answer in answers)
        assert 200 in codes and 503 in codes and set(codes) <= {200, 503}
        assert all("Retry-After" in answer.headers for answer in answers if answer.status_code == 503)
    finally:
        running.stop()


def test_a_client_that_goes_away_has_its_job_dropped(http, server):
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/sdapi/v1/txt2img", json={**SMALL, "steps": 1000}, timeout=1)
    begun = time.monotonic()
    assert http.post("/sdapi/v1/txt2img", json=SMALL).status_code == 200
    assert time.monotonic() - begun < 30


def test_names_and_passwords_are_asked_for(pipe):
    running = Server(app(pipe, auth=["ada:secret"], cors_allow_origins=["https://page.example"]))
    try:
        get = lambda **more: httpx.get(f"{running.url}/sdapi/v1/samplers", **more)  # noqa: E731
        assert get().status_code == 401 and get(auth=("ada", "wrong")).status_code == 401
        assert get(auth=("ada", "secret")).status_code == 200
        client = webuiapi.WebUIApi(host="127.0.0.1", port=running.port)
        client.set_auth("ada", "secret")
        assert client.get_samplers()
        asked = {"Origin": "https://page.example", "Access-Control-Request-Method": "POST"}
        allowed = httpx.options(f"{running.url}/sdapi/v1/txt2img", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://page.example"
        other = httpx.options(f"{running.url}/sdapi/v1/txt2img", headers={**asked, "Origin": "https://other.example"})
        assert "access-control-allow-origin" not in other.headers
    finally:
        running.stop()


def test_the_door_stays_closed_to_other_machines_unless_guarded():
    assert open_door_refusal("127.0.0.1", [], False) is None and open_door_refusal("::1", [], False) is None
    assert "--api-auth" in str(open_door_refusal("0.0.0.0", [], False))
    assert open_door_refusal("0.0.0.0", ["a:b"], False) is None and open_door_refusal("0.0.0.0", [], True) is None
    assert "USER:PASSWORD" in str(open_door_refusal("127.0.0.1", ["nocolon"], False))


def test_a_detailing_pass_and_a_control_unit_come_with_a_request(client, http):
    box = {"bboxes": [[8, 8, 40, 40]], "confidences": [0.9], "masks": None}
    unit = {"ad_model": "given", "detections": [box], "ad_prompt": "a blue square", "ad_denoising_strength": 0.6}
    asked = {**SMALL, "alwayson_scripts": {"ADetailer": {"args": [True, False, unit]}}}
    answer = http.post("/sdapi/v1/txt2img", json=asked)
    assert answer.status_code == 200, answer.text
    assert "ADetailer prompt: a blue square" in json.loads(answer.json()["info"])["infotexts"][0]
    plain = http.post("/sdapi/v1/txt2img", json=SMALL).json()["images"][0]
    assert answer.json()["images"][0] != plain
    for args in ([{"model": "/etc/passwd", "image": encoded(Image.new("RGB", (64, 64)))}], ["no unit"]):
        refused = http.post("/sdapi/v1/txt2img", json={**SMALL, "alwayson_scripts": {"ControlNet": {"args": args}}})
        assert refused.status_code == 422, refused.text
    spying = {"ad_model": "/etc/passwd", "ad_prompt": "a"}
    refused = http.post("/sdapi/v1/txt2img", json={**SMALL, "alwayson_scripts": {"ADetailer": {"args": [spying]}}})
    assert refused.status_code == 422 and "root:" not in refused.text
