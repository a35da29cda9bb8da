"""What well-known clients send to the webui's API, in their order, replayed."""

import base64
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from recordings import GOLDEN


pytest.importorskip("fastapi", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")
webuiapi = pytest.importorskip("webuiapi", reason="needs the extra [test]")

from api_server import Server, decoded, info_of  # noqa: E402
from diffusers import ControlNetModel  # noqa: E402
from tiny_models import pipeline_with_copies  # noqa: E402
from webui_diffusers.pipelines import WebUITxt2ImgPipeline  # noqa: E402
from webui_diffusers.pipelines.serve import app  # noqa: E402


PAGE = "https://ui.example"
PASSWORD = ("ada", "se:cret")


@pytest.fixture(scope="module")
def server(tiny_sd: Path) -> Iterator[Server]:
    """As somebody runs it who lets several clients in: with a password, and a page that may call."""
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name)
    network = ControlNetModel.from_pretrained(GOLDEN / "controlnet" / "models" / "tiny-controlnet")
    pipe.add_controlnet(network, "tiny-controlnet")
    running = Server(app(pipe, auth=[":".join(PASSWORD)], cors_allow_origins=[PAGE]))
    yield running
    running.stop()


@pytest.fixture
def http(server: Server) -> Iterator[Any]:
    with httpx.Client(base_url=server.url, timeout=60, auth=PASSWORD) as client:
        yield client


def test_open_webui_verifies_chooses_a_model_and_draws(server):
    """Its server sends the header itself, takes all options, changes one, and sends all back."""
    header = {"Authorization": "Basic " + base64.b64encode(":".join(PASSWORD).encode()).decode()}
    with httpx.Client(base_url=server.url, timeout=60, headers=header) as client:
        options = client.get("/sdapi/v1/options").json()
        models = [{"id": row["title"], "name": row["model_name"]} for row in client.get("/sdapi/v1/sd-models").json()]
        assert options["sd_model_checkpoint"] in [model["id"] for model in models]
        options["sd_model_checkpoint"] = models[0]["id"]
        assert client.post("/sdapi/v1/options", json=options).status_code == 200
        data = {"prompt": "a red circle", "batch_size": 1, "width": 64, "height": 64, "steps": 2}
        more = {"cfg_scale": 7.0, "sampler_name": "DPM++ 2M", "scheduler": "Karras", "negative_prompt": "blue"}
        answer = client.post("/sdapi/v1/txt2img", json={**data, **more})
    assert decoded(answer.json()["images"][0]).size == (64, 64)
    assert isinstance(answer.json()["info"], str)
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in info_of(answer)["infotexts"][0]


def test_open_webui_is_told_that_its_password_is_wrong(server):
    answer = httpx.get(f"{server.url}/sdapi/v1/options", headers={"Authorization": "Basic YWRhOndyb25n"})
    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Basic")


def test_silly_tavern_fills_its_lists_and_draws(http, server):
    options = http.get("/sdapi/v1/options").json()
    samplers = [row["name"] for row in http.get("/sdapi/v1/samplers").json()]
    schedulers = [row["name"] for row in http.get("/sdapi/v1/schedulers").json()]
    upscalers = [row["name"] for row in http.get("/sdapi/v1/upscalers").json()]
    latent = [row["name"] for row in http.get("/sdapi/v1/latent-upscale-modes").json()]
    models = [row["title"] for row in http.get("/sdapi/v1/sd-models").json()]
    assert [row["model_name"] for row in http.get("/sdapi/v1/sd-vae").json()] == []
    assert options["sd_model_checkpoint"] in models and "Latent" in latent and "None" in upscalers
    assert http.post("/sdapi/v1/options", json={"sd_model_checkpoint": models[0]}).status_code == 200
    at = http.get("/sdapi/v1/progress").json()
    assert at["progress"] == 0 and at["state"]["job_count"] == 0  # which it waits for after the model's change
    asked = {
        "url": server.url, "auth": ":".join(PASSWORD), "prompt": "a star", "negative_prompt": "blue",
        "sampler_name": samplers[samplers.index("Euler a")], "scheduler": schedulers[0], "steps": 2, "cfg_scale": 7,
        "width": 64, "height": 64, "restore_faces": False, "enable_hr": True, "hr_upscaler": latent[0],
        "hr_scale": 1.5, "hr_additional_modules": [], "denoising_strength": 0.7, "hr_second_pass_steps": 0,
        "seed": None, "override_settings": {"CLIP_stop_at_last_layers": 2}, "clip_skip": 2,
        "override_settings_restore_afterwards": True, "save_images": True, "send_images": True,
        "do_not_save_grid": False, "do_not_save_samples": False,
    }  # fmt: skip
    answer = http.post("/sdapi/v1/txt2img", json=asked)
    info = info_of(answer)
    assert decoded(answer.json()["images"][0]).size == (96, 96)
    assert "Clip skip: 2" in info["infotexts"][0] and "Hires upscaler: Latent" in info["infotexts"][0]
    assert "save_images" in info["comments"][0]  # it always asks for it; here there is no folder
    assert "auth" not in answer.json()["parameters"] and PASSWORD[1] not in answer.text


def test_silly_tavern_interrupts_what_it_no_longer_waits_for(http, server):
    other = httpx.Client(base_url=server.url, timeout=60, auth=PASSWORD)
    asked = {"prompt": "a", "steps": 1000, "width": 64, "height": 64}
    done: list[Any] = []
    drawing = threading.Thread(target=lambda: done.append(other.post("/sdapi/v1/txt2img", json=asked)))
    drawing.start()
    while http.get("/sdapi/v1/progress").json()["progress"] == 0:
        assert drawing.is_alive()
    seen = http.get("/sdapi/v1/progress").json()
    assert decoded(seen["current_image"]).size[0] > 0
    assert http.get("/sdapi/v1/progress?skip_current_image=true").json()["current_image"] is None
    http.post("/sdapi/v1/interrupt")
    drawing.join(30)
    assert done[0].status_code == 200 and len(done[0].json()["images"]) == 1


def test_a_page_that_may_call_is_let_in_by_its_preflight(server):
    """stable-ui runs in a browser, which asks without a password whether it may send what it wants to."""
    with httpx.Client(base_url=server.url, timeout=60, headers={"Origin": PAGE}) as browser:
        asks = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type",
        }
        allowed = browser.options("/sdapi/v1/txt2img", headers=asks)
        assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == PAGE
        assert "content-type" in allowed.headers["access-control-allow-headers"].lower()
        asked = {"prompt": "a", "steps": 1, "width": 64, "height": 64, "seed": 1, "sampler_name": "Euler"}
        drawn = browser.post("/sdapi/v1/txt2img", json=asked, auth=PASSWORD)
        assert drawn.status_code == 200 and drawn.headers["access-control-allow-origin"] == PAGE
        refused = browser.post("/sdapi/v1/txt2img", json={"steps": 0}, auth=PASSWORD)
        assert refused.status_code == 422 and refused.headers["access-control-allow-origin"] == PAGE


def test_other_pages_can_neither_read_nor_do_anything(server):
    with httpx.Client(base_url=server.url, timeout=60, headers={"Origin": "https://evil.example"}) as browser:
        read = browser.get("/sdapi/v1/options", auth=PASSWORD)
        assert "access-control-allow-origin" not in read.headers
        assert browser.post("/sdapi/v1/interrupt", auth=PASSWORD).status_code == 403
        assert browser.post("/sdapi/v1/interrupt", auth=PASSWORD, headers={"Origin": "null"}).status_code == 403
        own = browser.post("/sdapi/v1/interrupt", auth=PASSWORD, headers={"Origin": server.url})
        assert own.status_code == 200


def test_webuiapi_sends_units_passes_and_detects(server):
    """An unmodified client, with the objects that it has for the two extensions."""
    client = webuiapi.WebUIApi(host="127.0.0.1", port=server.port, sampler="Euler a", steps=2)
    client.set_auth(*PASSWORD)
    assert client.has_adetailer and client.controlnet_version() == 3
    assert client.controlnet_model_list() == ["tiny-controlnet"]
    assert {"none", "canny"} <= set(client.controlnet_module_list())
    shape = Image.new("RGB", (64, 64), "black")
    shape.paste("white", (16, 16, 48, 48))
    edges = client.controlnet_detect([shape], module="canny", processor_res=64, threshold_a=100, threshold_b=200)
    assert set(np.unique(np.asarray(edges.image))) == {0, 255} and edges.info == "Success"
    unit = webuiapi.ControlNetUnit(image=shape, module="canny", model="tiny-controlnet", weight=1.2, processor_res=64)
    small = {"prompt": "a red circle", "seed": 5, "width": 64, "height": 64}
    plain, controlled = client.txt2img(**small), client.txt2img(**small, controlnet_units=[unit])
    assert 'ControlNet 0: "Module: canny, Model: tiny-controlnet, Weight: 1.2' in controlled.info["infotexts"][0]
    assert np.any(np.asarray(plain.image) != np.asarray(controlled.image))
    assert len(plain.images) == 1 and len(controlled.images) == 2  # what the unit was shown comes behind
    assert np.array_equal(np.asarray(controlled.images[1].convert("RGB")), np.asarray(edges.image.convert("RGB")))
    silent = {"control_net_no_detectmap": True}
    assert len(client.txt2img(**small, controlnet_units=[unit], override_settings=silent).images) == 1
    passes = [webuiapi.ADetailer(ad_model="face", ad_prompt="a smile", ad_mask_k_largest=1)]
    text = client.txt2img(**small, adetailer=passes).info["infotexts"][0]
    assert "ADetailer prompt: a smile" in text and "ADetailer mask only top k: 1" in text


NODE = """
const { StableDiffusionApi } = require("a1111-webui-api");
const sharp = require("sharp");
const [, , port, user, password] = process.argv;
(async () => {
  const api = new StableDiffusionApi({ host: "127.0.0.1", port: Number(port), defaultSampler: "Euler a" });
  api.setAuth(user, password);
  const size = { width: 64, height: 64, steps: 2, seed: 5 };
  const drawn = await api.txt2img({ prompt: "a red circle", ...size });
  const over = await api.img2img({ init_images: [drawn.image], prompt: "a star", ...size });
  const text = await api.pngInfo(sharp(Buffer.from(drawn.response.data.images[0], "base64")).withMetadata());
  const larger = await api.extraSingle({ image: drawn.image, upscaler_1: "Lanczos", upscaling_resize: 2 });
  const options = await api.getOptions();
  await api.setOptions(options);
  const { width } = await larger.image.metadata();
  console.log(JSON.stringify({
    drawn: JSON.parse(drawn.info).infotexts, over: JSON.parse(over.info).infotexts, width,
    fields: Object.keys(text.response.data), samplers: (await api.getSamplers()).length,
    model: options.sd_model_checkpoint, modules: await api.ControlNet.getModules(),
  }));
})().catch((error) => {
  console.error(error.response ? JSON.stringify(error.response.data) : error);
  process.exit(1);
});
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="needs node and npm")
def test_a_client_from_npm_draws(server, tmp_path: Path):
    # A picture library that needs no compiler and nothing but npm.
    wanted = {"dependencies": {"a1111-webui-api": "1.9.30001"}, "overrides": {"sharp": "0.33.5"}}
    (tmp_path / "package.json").write_text(json.dumps(wanted), encoding="utf-8")
    install = ["npm", "install", "--no-audit", "--no-fund"]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install the client here: {done.stderr[-300:]}")
    (tmp_path / "client.js").write_text(NODE, encoding="utf-8")
    run = ["node", "client.js", str(server.port), *PASSWORD]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout)
    assert told["drawn"][0].startswith("a red circle\nSteps: 2, Sampler: Euler a") and told["width"] == 128
    assert "Denoising strength: 0.75" in told["over"][0] and told["samplers"] > 20 and "canny" in told["modules"]
    assert told["fields"] == ["info", "items", "parameters"]
