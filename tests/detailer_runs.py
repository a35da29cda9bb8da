"""Recorded jobs of goldens/detailer as calls of the pipelines."""

import re
from copy import deepcopy
from functools import lru_cache
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image
from tiny_models import pipeline_with_copies
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline
from webui_diffusers.pipelines.images.fit import RESIZE_MODES
from webui_diffusers.pipelines.images.init_image import MASKED_CONTENTS
from webui_diffusers.pipelines.options import WEBUI_OPTIONS


@lru_cache(maxsize=2)
def tiny_pipeline(cls: type) -> WebUITxt2ImgPipeline | WebUIImg2ImgPipeline:
    return pipeline_with_copies(cls, "tiny-sd")


def picture_of(tensors: dict, key: str) -> Image.Image:
    return Image.open(BytesIO(np.asarray(tensors[f"{key}.png"]).tobytes()))


def job_arguments(run: dict, first: int = 0) -> dict[str, Any]:
    """What txt2img and img2img have in common, for a batch whose images are counted from `first`."""
    p, changed = run["params"], run["options_changed"]
    options = {**changed, **(p.get("override_settings") or {})}
    return {
        "negative_prompt": p["negative_prompt"],
        "num_inference_steps": p["steps"],
        "guidance_scale": p["cfg_scale"],
        "width": p["width"],
        "height": p["height"],
        "seed": p["seed"] if p["subseed_strength"] else p["seed"] + first,
        "subseed": p["subseed"] + first,
        "subseed_strength": p["subseed_strength"],
        "seed_resize": (max(p["seed_resize_from_w"], 0), max(p["seed_resize_from_h"], 0)),
        "noise_source": changed.get("randn_source", "CPU").lower(),
        "sampler": p["sampler_name"],
        "schedule": p["scheduler"],
        "eta": p["eta"],
        "tiling": p["tiling"],
        "webui_options": {name: value for name, value in options.items() if name in WEBUI_OPTIONS},
    }


def hires_arguments(p: dict) -> dict[str, Any]:
    if not p.get("enable_hr"):
        return {}
    return {
        "hires_scale": p["hr_scale"],
        "hires_upscaler": p["hr_upscaler"],
        "hires_steps": p["hr_second_pass_steps"],
        "hires_strength": p["denoising_strength"],
        "hires_prompt": p.get("hr_prompt"),
        "hires_negative_prompt": p.get("hr_negative_prompt"),
        "hires_sampler": p.get("hr_sampler_name"),
        "hires_schedule": p.get("hr_scheduler"),
    }


def init_arguments(run: dict, tensors: dict) -> dict[str, Any]:
    p = run["params"]
    number = len([key for key in tensors if re.fullmatch(r"in_image\.\d\.png", key)])
    given = {
        "image": [picture_of(tensors, f"in_image.{k}") for k in range(number)],
        "strength": p["denoising_strength"],
        "resize_mode": RESIZE_MODES[p.get("resize_mode", 0)],
    }
    if "in_mask.png" in tensors:
        given |= {
            "mask_image": picture_of(tensors, "in_mask"),
            "mask_blur": (p["mask_blur_x"], p["mask_blur_y"]),
            "masked_content": MASKED_CONTENTS[p["inpainting_fill"]],
            "inpaint_area": "masked" if p.get("inpaint_full_res") else "whole",
            "masked_padding": p.get("inpaint_full_res_padding", 32),
            "invert_mask": bool(p.get("inpainting_mask_invert")),
        }
    return given


def add_other_models(pipe: Any) -> None:
    """The stand-ins of the recordings: a UNet and a VAE whose last layer is scaled."""
    unet, vae = deepcopy(pipe.unet), deepcopy(pipe.vae)
    for layer, factor in ((unet.conv_out, 0.9), (vae.decoder.conv_out, 0.8)):
        layer.weight.data *= factor
        layer.bias.data *= factor
    pipe.add_checkpoint({**pipe.components, "unet": unet}, "tiny-sd-b")
    pipe.add_vae(vae, "tiny-vae-b.safetensors")


def check_pictures(images: list, tensors: dict, levels: int = 1) -> None:
    """Each picture is the recorded one within so many levels."""
    for k, image in enumerate(images):
        difference = np.asarray(image).astype(int) - np.asarray(picture_of(tensors, f"image.{k}")).astype(int)
        assert np.abs(difference).max() <= levels, f"picture {k} differs by {np.abs(difference).max()} levels"


def recorded_texts(run: dict) -> list[str]:
    """The texts of a run without the made-up hashes, and without the tag of a network that was not installed."""
    made_up = r"Model hash: 0123456789, |<lora:nothing:[^>]*>| \[9876543210\]"
    return [re.sub(made_up, "", text) for text in run["infotexts"]]
