"""txt2img drawn again from the parameters of recorded runs of the webui: noise, schedules, latents, pictures."""

import json
import os
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from webui_diffusers.loaders import load_upscaler
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.options import WEBUI_OPTIONS


GOLDEN = Path(os.environ.get("WEBUI_GOLDENS", Path(__file__).parent / "golden"))

# Brownian trees and adaptive steps amplify the last bits of a UNet; the rest is deterministic (spec of tolerances).
LOOSE = ("SDE", "adaptive", "PLMS")


def runs(folder: str, *files: str) -> list:
    found = []
    for file in files:
        path = GOLDEN / folder / file
        for run in json.loads(path.read_text())["runs"] if path.exists() else []:
            if run["kind"] == "txt2img" and (path.parent / "e2e" / f"{run['name']}.safetensors").exists():
                found.append(pytest.param(folder, run, id=f"{folder}-{run['name']}"))
    return found


@lru_cache(maxsize=4)
def pipeline(name: str, prediction_type: str) -> WebUITxt2ImgPipeline:
    pipe = WebUITxt2ImgPipeline.from_pretrained(GOLDEN / name, torch_dtype=torch.float32)
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(run: dict) -> dict:
    """The keyword arguments that a recorded job stands for."""
    p, options = run["params"], run["options"]
    batch = len(run["all_seeds"])
    prompt = p["prompt"] if isinstance(p["prompt"], list) else [p["prompt"]] * batch
    negative = p["negative_prompt"] if isinstance(p["negative_prompt"], list) else [p["negative_prompt"]] * batch
    given = {
        "prompt": prompt,
        "negative_prompt": negative,
        "width": p["width"],
        "height": p["height"],
        "num_inference_steps": p["steps"],
        "guidance_scale": p["cfg_scale"],
        "seed": p["seed"],
        "subseed": p["subseed"],
        "subseed_strength": p["subseed_strength"],
        "seed_resize": (p["seed_resize_from_w"], p["seed_resize_from_h"]),
        "noise_source": options["randn_source"].lower(),
        "sampler": p["sampler_name"],
        "schedule": p["scheduler"],
        "eta": p["eta"],
        "tiling": p["tiling"],
        "webui_options": {name: value for name, value in options.items() if name in WEBUI_OPTIONS},
        "output_type": "latent",
    }
    if p["enable_hr"]:
        given |= {
            "hires_scale": p["hr_scale"],
            "hires_size": (p["hr_resize_x"], p["hr_resize_y"]),
            "hires_upscaler": p["hr_upscaler"],
            "hires_steps": p["hr_second_pass_steps"],
            "hires_strength": p["denoising_strength"],
            "hires_prompt": p["hr_prompt"],
            "hires_negative_prompt": p["hr_negative_prompt"],
            "hires_sampler": p["hr_sampler_name"],
            "hires_schedule": p["hr_scheduler"],
        }
    return given


@pytest.mark.goldens
@pytest.mark.parametrize("folder, run", runs("sampling", "e2e.json", "e2e_v.json"))
def test_the_picture_is_the_webuis(folder: str, run: dict):
    recorded = load_file(GOLDEN / folder / "e2e" / f"{run['name']}.safetensors")
    pipe = pipeline("tiny-sd", "v_prediction" if run.get("parameterization") == "v" else "epsilon")
    given = arguments(run)
    if str(given.get("hires_upscaler")).startswith("tiny"):
        pipe.attached.upscalers[given["hires_upscaler"]] = load_upscaler(tiny_upscaler(given["hires_upscaler"]))
    torch.manual_seed(run["global_seed_before_run"])
    latents = pipe(**given).images
    expected = recorded["latents"]
    tolerance = 1e-3 if any(word in given["sampler"] for word in LOOSE) else 1e-4
    if run["options"]["sd_noise_schedule"] != "Default":
        tolerance = 1e-3 * expected.abs().max().item()
    torch.testing.assert_close(latents, expected, atol=tolerance, rtol=0)
    torch.manual_seed(run["global_seed_before_run"])
    pixels = pipe(**{**given, "output_type": "np"}).images
    levels = (torch.from_numpy(pixels) * 255).to(torch.uint8).int()
    assert (levels - recorded["images"].int()).abs().max() <= 1


def tiny_upscaler(label: str) -> Path:
    return next(path for path in (GOLDEN / "models").iterdir() if label in (path.name, path.stem))
