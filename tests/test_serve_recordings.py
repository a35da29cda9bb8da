"""Jobs recorded of the webui, sent as JSON through the API: the recorded pictures come back."""

import json
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from recordings import GOLDEN, recorded_json, recorded_runs
from safetensors.torch import load_file


pytest.importorskip("fastapi", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

from api_server import Server, encoded, info_of, pixels_of  # noqa: E402
from diffusers import ControlNetModel  # noqa: E402
from tiny_models import pipeline_with_copies  # noqa: E402
from webui_diffusers.loaders import load_upscaler  # noqa: E402
from webui_diffusers.pipelines import WebUITxt2ImgPipeline, call_arguments, parse_infotext  # noqa: E402
from webui_diffusers.pipelines.serve import app  # noqa: E402


# One run of each kind of work is in the fast suite; all of them run with --slow.
FAST = {
    *("s_euler_a", "subseed", "hr_other_sampler_prompt", "i2i_two_images", "inp_fullres", "two_windows"),
    *("ad_default_two", "ad_skip_img2img", "sdup_lanczos"),
}


def marked(run: dict) -> Any:
    return pytest.param(run, id=run["name"], marks=() if run["name"] in FAST else pytest.mark.slow)


def single_texts(runs: list[dict]) -> list[dict]:
    """Those whose images have one prompt: a request has no more."""
    return [run for run in runs if all(isinstance(run["params"][n], str) for n in ("prompt", "negative_prompt"))]


TXT2IMG = single_texts(recorded_runs("sampling/e2e.json", "txt2img", 76))
IMG2IMG = single_texts(recorded_runs("sampling/e2e.json", "img2img", 19))
CONTROL = [
    run
    for run in single_texts(recorded_json("controlnet/runs.json", "runs", 90))
    if run["model"] == "tiny-sd"
    and {unit["model"] for unit in run["units"]} <= {"tiny-controlnet", "tiny-controlnet-2"}
    and "images" in load_file(GOLDEN / "controlnet" / "runs" / f"{run['name']}.safetensors")
]
DETAILED = [
    run
    for run in recorded_json("detailer/adetailer.json", "runs", 18)
    if len(run["ad"]["tabs"]) == 1 and run["params"]["n_iter"] == 1
    and not run["styles"] and not run["soft_inpainting"]
    and not {"face_restoration_model"} & set(run["options_changed"])
    and not {"ad_checkpoint", "ad_vae"} & set(run["ad"]["tabs"][0])
    and run["detections"] and not any(one["masks"] for one in run["detections"])
    and (GOLDEN / "detailer" / "adetailer" / f"{run['name']}.safetensors").exists()
]  # fmt: skip
SCRIPTS = [
    run
    for run in recorded_json("detailer/scripts.json", "runs", 4)
    if run["kind"] in ("sd_upscale", "loopback")
    and (GOLDEN / "detailer" / "scripts" / f"{run['name']}.safetensors").exists()
]


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> WebUITxt2ImgPipeline:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name)
    for name in ("tiny-controlnet", "tiny-controlnet-2"):
        pipe.add_controlnet(ControlNetModel.from_pretrained(GOLDEN / "controlnet" / "models" / name), name)
    for name in ("tiny-compact-x2.safetensors", "tiny-rrdb-x4.pth"):
        pipe.attached.upscalers[name.split(".")[0]] = load_upscaler(GOLDEN / "models" / name)
    return pipe


@pytest.fixture(scope="module")
def http(pipe: WebUITxt2ImgPipeline) -> Iterator[Any]:
    running = Server(app(pipe))
    with httpx.Client(base_url=running.url, timeout=120) as client:
        yield client
    running.stop()


def sent(http: Any, kind: str, run: dict, fields: dict[str, Any], options: dict[str, Any]) -> Any:
    """The answer to a recorded job. What draws at random begins where the recording began."""
    known = http.get("/sdapi/v1/options").json()
    settings = {name: value for name, value in options.items() if name in known}
    torch.manual_seed(run["global_seed_before_run"])
    return http.post(f"/sdapi/v1/{kind}", json={**fields, "override_settings": {"randn_source": "CPU", **settings}})


def check(answer: Any, expected: list[np.ndarray], levels: int = 1) -> None:
    drawn = pixels_of(answer)
    assert len(drawn) >= len(expected)
    for one, recorded in zip(drawn, expected):
        assert one.shape == recorded.shape and np.abs(one - recorded.astype(int)).max() <= levels


@pytest.mark.goldens
@pytest.mark.parametrize("run", [marked(run) for run in TXT2IMG])
def test_a_recorded_txt2img_job_comes_out(http, pipe, run):
    stored = load_file(GOLDEN / "sampling" / "e2e" / f"{run['name']}.safetensors")
    answer = sent(http, "txt2img", run, run["params"], run["options"])
    check(answer, list(stored["images"].numpy()))
    info = info_of(answer)
    assert info["all_seeds"] == run["all_seeds"]
    if run["options_changed"] or len(run["all_seeds"]) > 1:
        return
    torch.manual_seed(run["global_seed_before_run"])
    again = pipe(**call_arguments(parse_infotext(info["infotexts"][0])))
    assert np.array_equal(np.asarray(again.images[0]), pixels_of(answer)[0])


def with_pictures(run: dict, pictures: list[Image.Image], mask: Image.Image | None) -> dict[str, Any]:
    fields = {**run["params"], "init_images": [encoded(picture) for picture in pictures]}
    return fields if mask is None else {**fields, "mask": encoded(mask)}


@pytest.mark.goldens
@pytest.mark.parametrize("run", [marked(run) for run in IMG2IMG])
def test_a_recorded_img2img_job_comes_out(http, run):
    stored = load_file(GOLDEN / "sampling" / "e2e" / f"{run['name']}.safetensors")
    pictures = [Image.fromarray(levels.numpy()) for levels in stored["in_image"]]
    mask = Image.fromarray(stored["in_mask"].numpy()) if "in_mask" in stored else None
    answer = sent(http, "img2img", run, with_pictures(run, pictures, mask), run["options"])
    check(answer, list(stored["images"].numpy()))


@pytest.mark.goldens
@pytest.mark.parametrize("run", [marked(run) for run in CONTROL])
def test_a_recorded_job_under_units_comes_out(http, run):
    stored = load_file(GOLDEN / "controlnet" / "runs" / f"{run['name']}.safetensors")
    pictures = load_file(GOLDEN / "controlnet" / "pictures.safetensors")

    def base64_of(name: str) -> str:
        return encoded(Image.fromarray(pictures[name].numpy()))

    keys = ("image", "mask", "effective_region_mask")
    units = [
        {key: base64_of(value) if key in keys and value else value for key, value in unit.items()}
        for unit in run["units"]
    ]
    fields = {**run["params"], "alwayson_scripts": {"ControlNet": {"args": units}}}
    if run["kind"] == "img2img":
        fields["init_images"] = [base64_of(run["init_image"])]
    if run.get("init_mask"):
        fields["mask"] = base64_of(run["init_mask"])
    options = dict(run["options_changed"])
    if run["each_unit_for_each_image"]:
        options["each_unit_for_each_image"] = True
    answer = sent(http, run["kind"], run, fields, options)
    check(answer, list(stored["images"].numpy()))


def stored_pictures(folder: str, run: dict, name: str) -> list[Image.Image]:
    tensors = load_file(GOLDEN / "detailer" / folder / f"{run['name']}.safetensors")
    keys = sorted(key for key in tensors if key.startswith(f"{name}.") and key.endswith(".png"))
    return [Image.open(BytesIO(tensors[key].numpy().tobytes())) for key in keys]


@pytest.mark.goldens
@pytest.mark.parametrize("run", [marked(run) for run in DETAILED])
def test_a_recorded_job_with_a_detailing_pass_comes_out(http, run):
    switches = [run["ad"]["enable"], run["ad"]["skip_img2img"]]
    tab = {**run["ad"]["tabs"][0], "detections": run["detections"][: run["params"]["batch_size"]]}
    args = [*switches, tab]
    fields = {**run["params"], "alwayson_scripts": {"ADetailer": {"args": args}}}
    if run["kind"] == "img2img":
        mask = (stored_pictures("adetailer", run, "in_mask") or [None])[0]
        fields |= with_pictures({"params": fields}, stored_pictures("adetailer", run, "in_image"), mask)
    own = run["params"].get("override_settings") or {}
    answer = sent(http, run["kind"], run, fields, {**run["options_changed"], **own})
    levels = 4 if run["options_changed"].get("img2img_color_correction") else 1
    check(answer, [np.asarray(p.convert("RGB")) for p in stored_pictures("adetailer", run, "image")], levels)


@pytest.mark.goldens
@pytest.mark.parametrize("run", [marked(run) for run in SCRIPTS])
def test_a_recorded_script_comes_out(http, run):
    pictures = stored_pictures("scripts", run, "in_image")
    titles = {"sd_upscale": "SD upscale", "loopback": "Loopback"}
    script = {"script_name": titles[run["kind"]], "script_args": run["script_args"]}
    mask = (stored_pictures("scripts", run, "in_mask") or [None])[0]
    answer = sent(http, "img2img", run, {**with_pictures(run, pictures, mask), **script}, run["options_changed"])
    check(answer, [np.asarray(p.convert("RGB")) for p in stored_pictures("scripts", run, "image")])
    assert json.loads(answer.json()["info"])["all_seeds"][0] == run["processed_seed"]
