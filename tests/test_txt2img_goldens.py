"""txt2img drawn again from the parameters of recorded runs of the webui: noise, schedules, latents, pictures."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from recordings import GOLDEN, recorded_runs
from safetensors.torch import load_file
from webui_diffusers.loaders import load_upscaler
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.images.seamless import seamless_tiling
from webui_diffusers.pipelines.images.vae import latents_to_pixels
from webui_diffusers.pipelines.options import WEBUI_OPTIONS


# Brownian trees and adaptive steps amplify the last bits of a UNet; the rest is deterministic (spec of tolerances).
LOOSE = ("SDE", "adaptive", "PLMS")
PIXEL_UPSCALERS = ("None", "Lanczos", "Nearest")


# What the SDXL recordings leave out.
UNSET = {"subseed": 0, "subseed_strength": 0, "seed_resize_from_w": 0, "seed_resize_from_h": 0, "eta": None} | {
    "tiling": False, "hr_second_pass_steps": 0, "hr_sampler_name": None, "hr_scheduler": None, "hr_prompt": "",
    "hr_negative_prompt": "", "hr_resize_x": 0, "hr_resize_y": 0, "enable_hr": False,
}  # fmt: skip


def runs(folder: str, **tables: int) -> list:
    """Every txt2img run of the tables of a folder, which have so many."""
    return [
        pytest.param(folder, run, id=f"{folder}-{run['name']}")
        for table, count in tables.items()
        for run in recorded_runs(f"{folder}/{table}.json", "txt2img", count)
    ]


@lru_cache(maxsize=4)
def pipeline(name: str, prediction_type: str) -> WebUITxt2ImgPipeline:
    pipe = WebUITxt2ImgPipeline.from_pretrained(GOLDEN / name, dtype=torch.float32)
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def arguments(run: dict) -> dict:
    """The keyword arguments that a recorded job stands for."""
    p, options = {**UNSET, **run["params"]}, run["options"]
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
    if p.get("refiner_checkpoint"):
        given["refiner_switch_at"] = p["refiner_switch_at"]
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
@pytest.mark.parametrize("folder, run", runs("sampling", e2e=76, e2e_v=5) + runs("sampling_xl", e2e=47))
def test_the_picture_is_the_webuis(folder: str, run: dict):
    recorded = load_file(GOLDEN / folder / "e2e" / f"{run['name']}.safetensors")
    name = "tiny-sd" if folder == "sampling" else "tiny-sdxl-e2e"
    pipe = pipeline(name, "v_prediction" if run.get("parameterization") == "v" else "epsilon")
    given = arguments(run)
    if str(given.get("hires_upscaler")).startswith("tiny"):
        pipe.attached.upscalers[given["hires_upscaler"]] = load_upscaler(tiny_upscaler(given["hires_upscaler"]))
    pipe.register_modules(refiner=refiner(run["params"].get("refiner_checkpoint")))
    torch.manual_seed(run["global_seed_before_run"])
    latents = pipe(**given).images
    expected = recorded["latents"]
    tolerance, levels_off = 1e-3 if any(word in given["sampler"] for word in LOOSE) else 1e-4, 1
    if folder == "sampling_xl" and str(given.get("hires_upscaler")) in PIXEL_UPSCALERS:
        # The recordings' second text encoder was open_clip's: 5e-7 in `pooled` may flip an 8-bit level between passes.
        tolerance, levels_off = 5e-3, 2
    if run["options"].get("sd_noise_schedule", "Default") != "Default" or run.get("parameterization") == "v":
        tolerance = 1e-3 * expected.abs().max().item()
    torch.testing.assert_close(latents, expected, atol=tolerance, rtol=0)
    with seamless_tiling(*([pipe.vae] if given["tiling"] else [])):
        levels = torch.from_numpy(latents_to_pixels(pipe.vae, latents)).int()
    assert (levels - recorded["images"].int()).abs().max() <= levels_off


def tiny_upscaler(label: str) -> Path:
    return next(path for path in (GOLDEN / "models").iterdir() if label in (path.name, path.stem))


@lru_cache(maxsize=3)
def refiner(name: str | None) -> UNet2DConditionModel | None:
    """The recordings' refiners: a real one, and "alt", the base with its last layer turned down."""
    if name is None:
        return None
    if name == "refiner":
        return UNet2DConditionModel.from_pretrained(GOLDEN / "tiny-sdxl-e2e-refiner" / "unet", dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(GOLDEN / "tiny-sdxl-e2e" / "unet", dtype=torch.float32)
    for parameter in unet.conv_out.parameters():
        parameter.data *= 0.9
    return unet
