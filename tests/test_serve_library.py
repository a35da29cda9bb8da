"""A server over a webui's folder: models are found by name, switched, borrowed for a request, and given back."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from recordings import GOLDEN
from safetensors.torch import save_file
from test_single_file import one_file


pytest.importorskip("fastapi", reason="needs the extra [serve]")
httpx = pytest.importorskip("httpx", reason="needs the extra [test]")

from api_server import SMALL, Server, encoded, info_of, pixels_of  # noqa: E402
from tiny_models import pipeline_with_copies  # noqa: E402
from webui_diffusers.loaders import WebUIFolder  # noqa: E402
from webui_diffusers.pipelines.serve import app  # noqa: E402


@pytest.fixture(scope="module")
def webui(tmp_path_factory: pytest.TempPathFactory, tiny_sd: Path) -> Iterator[Path]:
    """Two checkpoints that draw differently, a VAE, a network, an upscaler."""
    root = tmp_path_factory.mktemp("webui")
    for place in ("models/Stable-diffusion/sub", "models/VAE", "models/Lora", "models/ESRGAN"):
        (root / place).mkdir(parents=True)
    file = one_file(pipeline_with_copies(StableDiffusionPipeline, tiny_sd.name))
    save_file(file, root / "models/Stable-diffusion/sub/shapes.safetensors")
    second = {
        key: value * 0.9 if key.endswith("diffusion_model.out.2.weight") else value for key, value in file.items()
    }
    save_file(second, root / "models/Stable-diffusion/wilder.safetensors")
    head = "first_stage_model."
    vae = {key.removeprefix(head): value for key, value in file.items() if key.startswith(head)}
    vae["decoder.conv_out.bias"] = vae["decoder.conv_out.bias"] + 0.2
    save_file(vae, root / "models/VAE/pale.safetensors")
    shutil.copy(GOLDEN / "lora" / "alpha_ne_rank.safetensors", root / "models/Lora/ink.safetensors")
    shutil.copy(GOLDEN / "models" / "tiny-compact-x2.safetensors", root / "models/ESRGAN/2x-Tiny.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WEBUI_DIFFUSERS_CACHE", str(tmp_path_factory.mktemp("cache")))
        # the shipped configuration is of full size
        patch.setattr("webui_diffusers.loaders.checkpoint.load.single_file_config", lambda info: tiny_sd)
        yield root


@pytest.fixture(scope="module")
def http(webui: Path) -> Iterator[Any]:
    running = Server(app(WebUIFolder(webui)))
    with httpx.Client(base_url=running.url, timeout=120) as client:
        yield client
    running.stop()


@pytest.fixture(autouse=True)
def shapes(http: Any) -> None:
    """Every test begins with the same model in hand."""
    assert http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "shapes"}).status_code == 200


def picture(http: Any, kind: str = "txt2img", **fields: Any) -> np.ndarray:
    return pixels_of(http.post(f"/sdapi/v1/{kind}", json={**SMALL, **fields}))[0]


def titles(http: Any) -> dict[str, str]:
    return {row["model_name"]: row["title"] for row in http.get("/sdapi/v1/sd-models").json()}


def test_what_the_folder_has_is_listed(http):
    assert set(titles(http)) == {"shapes", "wilder"}
    assert [row["model_name"] for row in http.get("/sdapi/v1/sd-vae").json()] == ["pale"]
    assert [row["name"] for row in http.get("/sdapi/v1/loras").json()] == ["ink"]
    assert "2x-Tiny" in [row["name"] for row in http.get("/sdapi/v1/upscalers").json()]
    assert http.get("/sdapi/v1/options").json()["sd_model_checkpoint"] in titles(http).values()


def test_models_are_switched_by_title_name_and_whole_options(http):
    known, drawn = titles(http), {}
    for name, asked in (("shapes", known["shapes"]), ("wilder", "wilder"), ("shapes", "shapes")):
        options = {**http.get("/sdapi/v1/options").json(), "sd_model_checkpoint": asked}
        assert http.post("/sdapi/v1/options", json=options).status_code == 200
        assert http.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == known[name]
        drawn.setdefault(name, []).append(picture(http))
    assert np.array_equal(*drawn["shapes"]) and not np.array_equal(drawn["shapes"][0], drawn["wilder"][0])


def test_a_model_is_borrowed_for_a_request_or_kept(http):
    own, asked = picture(http), {"override_settings": {"sd_model_checkpoint": "wilder"}}
    answer = http.post("/sdapi/v1/txt2img", json={**SMALL, **asked})
    other = pixels_of(answer)[0]
    assert info_of(answer)["sd_model_name"] == "wilder" and "Model: wilder" in info_of(answer)["infotexts"][0]
    assert not np.array_equal(own, other) and np.array_equal(own, picture(http))
    assert np.array_equal(other, picture(http, **asked, override_settings_restore_afterwards=False))
    assert np.array_equal(other, picture(http))
    http.post("/sdapi/v1/options", json={"sd_model_checkpoint": "shapes"})
    assert np.array_equal(own, picture(http))


def test_a_vae_is_borrowed_too(http):
    own = picture(http)
    assert not np.array_equal(own, picture(http, override_settings={"sd_vae": "pale"}))
    assert np.array_equal(own, picture(http))


def test_a_model_that_is_not_there_changes_nothing(http):
    own = picture(http)
    for asked in ("nothing", "../../shapes", "/etc/passwd", ""):
        answer = http.post("/sdapi/v1/options", json={"sd_model_checkpoint": asked, "tiling": True})
        assert answer.status_code == 422 and answer.json()["field"] == "sd_model_checkpoint"
    assert not http.get("/sdapi/v1/options").json()["tiling"] and np.array_equal(own, picture(http))


def test_a_model_that_was_let_go_comes_back(http):
    own = picture(http)
    assert http.post("/sdapi/v1/unload-checkpoint").status_code == 200
    assert http.get("/sdapi/v1/loras").json()[0]["name"] == "ink"
    assert np.array_equal(own, picture(http))
    http.post("/sdapi/v1/unload-checkpoint")
    assert http.post("/sdapi/v1/reload-checkpoint").status_code == 200
    assert np.array_equal(own, picture(http))


@pytest.mark.slow
def test_refiner_second_model_and_upscaler_go_by_name(http):
    hires = {"enable_hr": True, "hr_scale": 2, "hr_second_pass_steps": 2, "denoising_strength": 0.7}
    plain = picture(http, **hires, hr_upscaler="2x-Tiny")
    assert plain.shape == (128, 128, 3)
    assert not np.array_equal(plain, picture(http, **hires, hr_upscaler="2x-Tiny", hr_checkpoint_name="wilder"))
    answer = http.post("/sdapi/v1/txt2img", json={**SMALL, "refiner_checkpoint": "wilder", "refiner_switch_at": 0.5})
    assert "Refiner: wilder" in info_of(answer)["infotexts"][0]
    scripts = {"Refiner": {"args": [True, "wilder", 0.5]}}
    assert np.array_equal(picture(http, alwayson_scripts=scripts), pixels_of(answer)[0])
    start = {"init_images": [encoded(Image.new("RGB", (48, 48), "red"))], "script_name": "SD upscale"}
    assert picture(http, "img2img", **start, script_args=["", 16, "2x-Tiny", 2]).shape == (96, 96, 3)
    larger = http.post(
        "/sdapi/v1/extra-single-image", json={"image": start["init_images"][0], "upscaler_1": "2x-Tiny"}
    )
    assert larger.status_code == 200


@pytest.mark.slow
def test_a_plot_goes_over_models(http):
    args = ["Checkpoint name", "", ["shapes", "wilder"], *["Nothing", "", []] * 2, True, True, False, False, 0]
    answer = http.post("/sdapi/v1/txt2img", json={**SMALL, "script_name": "X/Y/Z plot", "script_args": args})
    _, first, second = pixels_of(answer)
    assert not np.array_equal(first, second) and np.array_equal(first, picture(http))


def test_new_files_are_seen_after_a_refresh(http, webui: Path):
    shutil.copy(webui / "models/Lora/ink.safetensors", webui / "models/Lora/late.safetensors")
    assert http.post("/sdapi/v1/refresh-loras").status_code == 200
    assert "late" in [row["name"] for row in http.get("/sdapi/v1/loras").json()]
    tagged = [picture(http, prompt=f"a red circle <lora:{name}:1>") for name in ("late", "ink")]
    assert np.array_equal(*tagged) and not np.array_equal(tagged[0], picture(http))
