"""Every route of the webui's API that there is, one by one, in the shape that its clients know; and the scripts."""

import base64
import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from recordings import GOLDEN


pytest.importorskip("fastapi", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

from api_server import SMALL, Server, decoded, encoded, info_of, pixels_of  # noqa: E402
from diffusers import ControlNetModel  # noqa: E402
from tiny_models import pipeline_with_copies  # noqa: E402
from webui_diffusers.pipelines import WebUITxt2ImgPipeline  # noqa: E402
from webui_diffusers.pipelines.infotext.styles import PromptStyle  # noqa: E402
from webui_diffusers.pipelines.serve import app  # noqa: E402


ROUTES = """
GET /sdapi/v1/options POST /sdapi/v1/options GET /sdapi/v1/cmd-flags GET /sdapi/v1/samplers GET /sdapi/v1/schedulers
GET /sdapi/v1/upscalers GET /sdapi/v1/latent-upscale-modes GET /sdapi/v1/sd-models GET /sdapi/v1/sd-vae
GET /sdapi/v1/loras GET /sdapi/v1/embeddings GET /sdapi/v1/hypernetworks GET /sdapi/v1/face-restorers
GET /sdapi/v1/realesrgan-models GET /sdapi/v1/prompt-styles GET /sdapi/v1/scripts GET /sdapi/v1/script-info
POST /sdapi/v1/refresh-checkpoints POST /sdapi/v1/refresh-vae POST /sdapi/v1/refresh-loras
POST /sdapi/v1/refresh-embeddings POST /sdapi/v1/unload-checkpoint POST /sdapi/v1/reload-checkpoint
GET /sdapi/v1/memory GET /sdapi/v1/server-info GET /sdapi/v1/progress POST /sdapi/v1/interrupt POST /sdapi/v1/skip
POST /sdapi/v1/txt2img POST /sdapi/v1/img2img POST /sdapi/v1/extra-single-image POST /sdapi/v1/extra-batch-images
POST /sdapi/v1/png-info POST /sdapi/v1/interrogate POST /sdapi/v1/train/embedding POST /sdapi/v1/create/hypernetwork
GET /controlnet/version GET /controlnet/model_list GET /controlnet/module_list POST /controlnet/detect
GET /internal/ping
""".split()

# What the rows of a list have, under the webui's names.
ROWS = {
    "samplers": {"name", "aliases", "options"},
    "schedulers": {"name", "label", "aliases", "default_rho", "need_inner_model"},
    "upscalers": {"name", "model_name", "model_path", "model_url", "scale"},
    "latent-upscale-modes": {"name"},
    "sd-models": {"title", "model_name", "hash", "sha256", "filename", "config"},
    "loras": {"name", "alias", "path", "metadata"},
    "face-restorers": {"name", "cmd_dir"},
    "realesrgan-models": {"name", "path", "scale"},
    "prompt-styles": {"name", "prompt", "negative_prompt"},
    "script-info": {"name", "is_alwayson", "is_img2img", "args"},
}


@pytest.fixture(scope="module")
def pipe(tiny_sd: Path) -> WebUITxt2ImgPipeline:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, tiny_sd.name)
    pipe.set_progress_bar_config(disable=True)
    pipe.add_lora(GOLDEN / "lora" / "kohya_lora.safetensors", "ink")
    network = ControlNetModel.from_pretrained(GOLDEN / "controlnet" / "models" / "tiny-controlnet")
    pipe.add_controlnet(network, "tiny-controlnet")
    return pipe


@pytest.fixture(scope="module")
def server(pipe: WebUITxt2ImgPipeline, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    styles = {"warm": PromptStyle("warm", "{prompt}, (red:1.3)", "")}
    running = Server(app(pipe, styles=styles, output_folder=str(tmp_path_factory.mktemp("out"))))
    yield running
    running.stop()


@pytest.fixture
def http(server: Server) -> Iterator[Any]:
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def drawn(http: Any, kind: str = "txt2img", **fields: Any) -> Any:
    return http.post(f"/sdapi/v1/{kind}", json={**SMALL, **fields})


# --- routes


def test_every_route_is_described(http):
    paths = http.get("/openapi.json").json()["paths"]
    missing = [
        f"{method} {path}"
        for method, path in zip(ROUTES[::2], ROUTES[1::2])
        if method.lower() not in paths.get(path, {})
    ]
    assert missing == []
    page = http.get("/docs")
    assert "POST /sdapi/v1/txt2img" in page.text and "override_settings" in page.text
    assert "http://" not in page.text and "https://" not in page.text and "<script" not in page.text


@pytest.mark.parametrize("name", ROWS)
def test_lists_have_the_webuis_rows(http, name):
    rows = http.get(f"/sdapi/v1/{name}").json()
    assert rows and all(set(row) == ROWS[name] for row in rows)


def test_facts_have_the_webuis_names(http):
    assert set(http.get("/sdapi/v1/memory").json()) == {"ram", "cuda"}
    assert set(http.get("/sdapi/v1/memory").json()["ram"]) == {"free", "used", "total"}
    assert set(http.get("/sdapi/v1/embeddings").json()) == {"loaded", "skipped"}
    assert http.get("/sdapi/v1/sd-vae").json() == [] and http.get("/sdapi/v1/hypernetworks").json() == []
    assert http.get("/sdapi/v1/cmd-flags").json()["api"] is True
    assert http.get("/sdapi/v1/server-info").json()["queue"] == 0 and http.get("/internal/ping").json() == {}
    at = http.get("/sdapi/v1/progress").json()
    assert set(at) == {"progress", "eta_relative", "state", "current_image", "textinfo", "current_task"}
    assert {"skipped", "interrupted", "job", "job_count", "job_no", "sampling_step", "sampling_steps"} <= set(
        at["state"]
    )


def test_models_are_let_go_and_come_back(http):
    before = drawn(http).json()["images"]
    for route in ("unload-checkpoint", "reload-checkpoint", "refresh-checkpoints", "refresh-loras", "refresh-vae"):
        assert http.post(f"/sdapi/v1/{route}").status_code == 200
    assert drawn(http).json()["images"] == before


@pytest.mark.parametrize("route", ["interrogate", "create/embedding", "train/embedding", "train/hypernetwork"])
def test_what_is_not_done_says_so_in_a_sentence(http, route):
    answer = http.post(f"/sdapi/v1/{route}", json={"image": "x"})
    assert answer.status_code == 501 and answer.json()["detail"].endswith(".")


def test_skip_goes_on_with_the_next_image(http, server):
    done: list[Any] = []

    def draw() -> None:
        done.append(
            httpx.post(f"{server.url}/sdapi/v1/txt2img", json={**SMALL, "steps": 30, "n_iter": 2}, timeout=120)
        )

    drawing = threading.Thread(target=draw)
    drawing.start()
    while http.get("/sdapi/v1/progress").json()["state"]["sampling_step"] == 0:
        assert drawing.is_alive()
    http.post("/sdapi/v1/skip")
    drawing.join(120)
    info = info_of(done[0])
    assert info["all_seeds"] == [7, 8] and len(done[0].json()["images"]) == 2
    whole = drawn(http, steps=30, seed=8).json()["images"][0]
    assert done[0].json()["images"][1] == whole != done[0].json()["images"][0]


def test_pictures_are_saved_into_the_servers_folder(http, server):
    answer = drawn(http, save_images=True)
    (file,) = Path(server.app.state.shelf.output_folder).iterdir()
    assert np.array_equal(np.asarray(Image.open(file)), pixels_of(answer)[0])
    assert Image.open(file).info["parameters"] == info_of(answer)["infotexts"][0]


def test_null_is_a_fields_default(http):
    nulls = {"hr_prompt": None, "styles": None, "subseed": None, "cfg_scale": None, "override_settings": None}
    assert drawn(http, **nulls).json()["images"] == drawn(http).json()["images"]


def test_settings_that_do_not_fit_are_refused_and_change_nothing(http):
    before = http.get("/sdapi/v1/options").json()
    for name, value in (
        ("CLIP_stop_at_last_layers", "two"), ("s_noise", True), ("tiling", 1), ("samples_format", "../../x"),
        ("randn_source", "DISK"), ("sd_model_checkpoint", "/etc/passwd"), ("sd_vae", "../x"), ("eta_ddim", [1]),
    ):  # fmt: skip
        answer = http.post("/sdapi/v1/options", json={"tiling": True, name: value})
        assert answer.status_code == 422 and name in answer.text, answer.text
    assert http.get("/sdapi/v1/options").json() == before


def test_settings_stay_where_they_are_asked_to(http):
    asked = {"override_settings": {"eta_ddim": 0.25}, "override_settings_restore_afterwards": False}
    try:
        info_of(drawn(http, **asked))
        assert http.get("/sdapi/v1/options").json()["eta_ddim"] == 0.25
    finally:
        http.post("/sdapi/v1/options", json={"eta_ddim": None})
    assert http.get("/sdapi/v1/options").json()["eta_ddim"] == 0.0


@pytest.mark.parametrize("fields", [{"sampler_name": "DPM++ 2M Karras"}, {"sampler_index": "k_dpmpp_2m_ka"}])
def test_samplers_go_by_the_names_that_they_had_before(http, fields):
    fields = {name: value.replace("_ka", " karras") for name, value in fields.items()}
    text = info_of(drawn(http, **fields))["infotexts"][0]
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in text


def test_a_format_is_that_of_the_pictures(http):
    answer = drawn(http, override_settings={"samples_format": "webp"})
    assert decoded(answer.json()["images"][0]).format == "WEBP"
    told = http.post("/sdapi/v1/png-info", json={"image": answer.json()["images"][0]}).json()
    assert told["info"].startswith("a red circle\nSteps: 2") and told["parameters"]["Seed"] == "7"
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("parameters", told["info"])
    chunks.add_text("Software", "a painter")
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=chunks)
    again = http.post("/sdapi/v1/png-info", json={"image": base64.b64encode(file.getvalue()).decode()}).json()
    assert again == {**told, "items": {"Software": "a painter"}}


def test_a_picture_without_a_text_says_nothing(http):
    told = http.post("/sdapi/v1/png-info", json={"image": encoded(Image.new("RGB", (8, 8)))}).json()
    assert told == {"info": "", "items": {}, "parameters": {}}


# --- /controlnet


@pytest.mark.parametrize("module", ["none", "invert", "canny", "inpaint_only", "inpaint_global_harmonious"])
def test_preprocessors_are_shown(http, module):
    shape = Image.new("RGB", (64, 48), "black")
    shape.paste("white", (16, 16, 48, 40))
    asked = {"controlnet_module": module, "controlnet_input_images": [encoded(shape)] * 2}
    told = http.post("/controlnet/detect", json={**asked, "controlnet_processor_res": 96}).json()
    pixels = np.asarray(decoded(told["images"][1]))
    given = np.asarray(shape)
    assert told["info"] == "Success" and len(told["images"]) == 2
    if module == "canny":
        assert pixels.shape == (96, 128, 3) and set(np.unique(pixels)) == {0, 255}
    else:
        assert np.array_equal(pixels, 255 - given if module == "invert" else given)


@pytest.mark.parametrize(
    "fields, name",
    [
        ({"controlnet_module": "canni"}, "controlnet_module"),
        ({"controlnet_input_images": []}, "controlnet_input_images"),
        ({"controlnet_input_images": ["/etc/passwd"]}, "controlnet_input_images[0]"),
        ({"no_such": 1}, "no_such"),
    ],
)
def test_what_cannot_be_detected_is_named(http, fields, name):
    usual = {"controlnet_module": "canny", "controlnet_input_images": [encoded(Image.new("RGB", (8, 8)))]}
    answer = http.post("/controlnet/detect", json={**usual, **fields})
    assert answer.status_code == 422 and answer.json()["field"] == name


def test_modules_tell_what_their_numbers_may_be(http):
    told = http.get("/controlnet/module_list?alias_names=false").json()
    assert {"none", "invert", "canny", "inpaint", "inpaint_only"} <= set(told["module_list"])
    names = [slider["name"] for slider in told["module_detail"]["canny"]["sliders"]]
    assert names == ["Resolution", "Threshold A", "Threshold B"]
    assert http.get("/controlnet/model_list").json() == {"model_list": ["tiny-controlnet"]}


def test_units_come_in_every_form_that_clients_send(http):
    """`image` or `input_image`, with or without a head, picture and mask in one; older names; disabled units."""
    shape = Image.new("RGB", (64, 64), "black")
    shape.paste("white", (16, 16, 48, 48))
    plain, text = drawn(http).json()["images"], encoded(shape)
    unit = {"model": "tiny-controlnet", "module": "none", "processor_res": 64}
    forms = [
        {"image": text}, {"input_image": text}, {"image": f"data:image/png;base64,{text}"},
        {"image": {"image": text, "mask": None}}, {"image": text, "mask": None, "lowvram": True, "guidance": 1.0},
        {"image": text, "guessmode": False, "batch_images": "", "input_mode": "simple", "save_detected_map": False},
    ]  # fmt: skip
    answers = [drawn(http, alwayson_scripts={"ControlNet": {"args": [{**unit, **form}]}}) for form in forms]
    pictures = {answer.json()["images"][0] for answer in answers}
    assert len(pictures) == 1 and plain[0] not in pictures
    off = {"ControlNet": {"args": [{**unit, "image": text, "enabled": False}]}, "ADetailer": {"args": [False]}}
    assert drawn(http, alwayson_scripts=off).json()["images"] == plain
    guessed = drawn(http, alwayson_scripts={"controlnet": {"args": [{**unit, "image": text, "guessmode": True}]}})
    assert "ControlNet is more important" in info_of(guessed)["infotexts"][0]


# --- scripts


def test_scripts_are_told_with_their_arguments(http):
    names = http.get("/sdapi/v1/scripts").json()
    assert {"adetailer", "controlnet", "refiner", "prompt matrix", "x/y/z plot"} <= set(names["txt2img"])
    assert {"loopback", "sd upscale", "soft inpainting"} <= set(names["img2img"]) - set(names["txt2img"])
    rows = {(row["name"], row["is_img2img"]): row for row in http.get("/sdapi/v1/script-info").json()}
    assert set(rows) == {(name, kind == "img2img") for kind, own in names.items() for name in own}
    kinds = rows["x/y/z plot", False]["args"][0]["choices"]
    assert kinds[:5] == ["Nothing", "Seed", "Var. seed", "Var. strength", "Steps"] and "Hires steps" in kinds
    assert "Hires steps" not in rows["x/y/z plot", True]["args"][0]["choices"]


def test_a_matrix_is_a_sheet_and_every_combination(http):
    args = [False, True, "positive", "comma", 0]
    answer = drawn(http, prompt="a circle|red|big", script_name="Prompt matrix", script_args=args, batch_size=2)
    info, pictures = info_of(answer), pixels_of(answer)
    assert info["all_prompts"] == ["a circle", "a circle, red", "a circle, big", "a circle, red, big"]
    assert info["all_seeds"] == [7, 8, 9, 10] and info["index_of_first_image"] == 1 and len(pictures) == 5
    assert pictures[0].shape[0] > 128 and pictures[0].shape[1] > 128
    alone = pixels_of(drawn(http, prompt="a circle, big", seed=9))[0]
    assert np.abs(alone - pictures[3]).max() <= 1


def test_lines_are_jobs_of_their_own(http):
    lines = '--prompt "a star" --steps 3 --cfg_scale 4\n\na moon\n--prompt sun --negative_prompt "blue sky" --seed 3'
    args = [True, False, "end", lines]
    answer = drawn(http, prompt="yellow", script_name="prompts from file or textbox", script_args=args)
    texts = info_of(answer)["infotexts"]
    assert [text.split("\n")[0] for text in texts] == ["yellow a star", "yellow a moon", "yellow sun"]
    assert "Steps: 3" in texts[0] and "CFG scale: 4" in texts[0] and "Negative prompt: blue sky" in texts[2]
    assert info_of(answer)["all_seeds"] == [7, 8, 3]
    alone = pixels_of(drawn(http, prompt="yellow a moon", seed=8))[0]
    assert np.array_equal(alone, pixels_of(answer)[1])


PLOT_END = [True, True, False, False, False, False, False, 2, False]


def test_a_plot_is_a_sheet_and_its_cells(http):
    axes = ["Steps", "1-3 (+2)", [], "Sampler", "", ["Euler a", "DPM++ 2M"], "Prompt S/R", "red,blue", []]
    answer = drawn(http, script_name="X/Y/Z plot", script_args=axes + PLOT_END)
    texts, pictures = info_of(answer)["infotexts"], pixels_of(answer)
    assert len(pictures) == 9 and len(texts) == 9 and info_of(answer)["index_of_first_image"] == 1
    assert "Steps: 3, Sampler: DPM++ 2M" in texts[8] and texts[8].startswith("a blue circle")
    alone = pixels_of(drawn(http, prompt="a blue circle", steps=3, sampler_name="DPM++ 2M"))[0]
    assert np.array_equal(alone, pictures[8])
    assert pictures[0].shape[0] > 4 * 64 and pictures[0].shape[1] > 2 * 64


def test_a_plot_goes_by_numbers_of_types_and_without_its_cells(http):
    """As the README of webuiapi writes it: numbers of types, fourteen arguments, switches as texts."""
    args = [6, "4,8", "", 0, "", "", 0, "", "", "True", "False", "False", "False", 0]
    answer = drawn(http, script_name="X/Y/Z Plot", script_args=args)
    assert len(pixels_of(answer)) == 1 and info_of(answer)["infotexts"][0].count("CFG scale: 4") == 1


def test_seeds_of_a_plot_vary_where_they_are_asked_to(http):
    args = ["Steps", "1,2", [], "CFG Scale", "3,4", [], "Nothing", "", [], True, True, False, False, True, True]
    info = info_of(drawn(http, script_name="x/y/z plot", script_args=[*args, False, 0, False]))
    assert info["all_seeds"] == [7, 8, 9, 10]


@pytest.mark.parametrize(
    "script, args, name",
    [
        ("X/Y/Z plot", ["Sampler", "Eulr", [], *["Nothing", "", []] * 2, *PLOT_END], "script_args"),
        ("X/Y/Z plot", ["Styles", "warm", [], *["Nothing", "", []] * 2, *PLOT_END], "script_args[0]"),
        ("X/Y/Z plot", ["Steps", "5000", [], *["Nothing", "", []] * 2, *PLOT_END], "steps"),
        ("X/Y/Z plot", ["Seed", "1-900", [], *["Nothing", "", []] * 2, *PLOT_END], "script_args"),
        ("X/Y/Z plot", ["Face restore", "/etc/passwd", [], *["Nothing", "", []] * 2, *PLOT_END], "restore_faces"),
        ("X/Y/Z plot", ["Hires upscaler", "/etc/passwd", [], *["Nothing", "", []] * 2, *PLOT_END], "hr_upscaler"),
        ("X/Y/Z plot", ["VAE", "../../x", [], *["Nothing", "", []] * 2, *PLOT_END], "sd_vae"),
        ("X/Y/Z plot", ["Checkpoint name", "x/y", [], *["Nothing", "", []] * 2, *PLOT_END], "sd_model_checkpoint"),
        ("X/Y/Z plot", [99], "script_args[0]"),
        ("Prompt matrix", ["maybe"], "script_args[0]"),
        ("Prompts from file or textbox", [False, False, "start", "--outpath_samples /tmp"], "script_args[3]"),
        ("Prompts from file or textbox", [False, False, "start", "--steps many"], "script_args[3]"),
        ("Prompts from file or textbox", [False, False, "start", ""], "script_args[3]"),
        ("Loopback", [2, 0.5, "Linear", "CLIP"], "script_name"),
    ],
)
def test_what_a_script_cannot_do_is_named(http, script, args, name):
    answer = drawn(http, script_name=script, script_args=args)
    assert answer.status_code == 422 and name in answer.json()["field"], answer.text


@pytest.mark.parametrize(
    "script, args, name",
    [
        ("SD upscale", ["", 16, "/etc/passwd", 2], "script_args[2]"),
        ("SD upscale", ["", 16, "attacker/payload", 2], "script_args[2]"),
        ("SD upscale", ["", 16, "None", 100], "script_args[3]"),
        ("Loopback", [10_000], "script_args[0]"),
        ("Loopback", [2, 0.5, "Linear", "CLIP"], "script_args[3]"),
    ],
)
def test_what_a_script_of_img2img_cannot_do_is_named(http, script, args, name):
    picture = encoded(Image.new("RGB", (64, 64), "red"))
    answer = drawn(http, "img2img", init_images=[picture], script_name=script, script_args=args)
    assert answer.status_code == 422 and answer.json()["field"] == name, answer.text


def test_a_pass_that_skips_img2img_begins_with_the_picture(http):
    """In txt2img there is nothing to skip: SillyTavern sends the switch all the same."""
    box = {"bboxes": [[8, 8, 40, 40]], "confidences": [0.9], "masks": None}
    args = [True, True, {"ad_model": "face", "detections": [box], "ad_prompt": "a blue square"}]
    scripts = {"ADetailer": {"args": args}}
    assert drawn(http, alwayson_scripts=scripts).status_code == 200
    picture = Image.new("RGB", (64, 64), "red")
    over = pixels_of(drawn(http, "img2img", init_images=[encoded(picture)], alwayson_scripts=scripts))[0]
    change = np.abs(over - [255, 0, 0]).max(axis=2)
    assert change[48:, 48:].max() <= 1 < change[12:36, 12:36].max()
