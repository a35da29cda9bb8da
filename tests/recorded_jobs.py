"""Recorded txt2img jobs of the webui, as calls of this pack."""

from functools import lru_cache
from pathlib import Path

import torch
from diffusers import DiffusionPipeline, UNet2DConditionModel
from diffusers.utils import BaseOutput
from recordings import GOLDEN
from webui_diffusers.pipelines.options import WEBUI_OPTIONS


# What the SDXL recordings leave out.
UNSET = {"subseed": 0, "subseed_strength": 0, "seed_resize_from_w": 0, "seed_resize_from_h": 0, "eta": None} | {
    "tiling": False, "hr_second_pass_steps": 0, "hr_sampler_name": None, "hr_scheduler": None, "hr_prompt": "",
    "hr_negative_prompt": "", "hr_resize_x": 0, "hr_resize_y": 0, "enable_hr": False,
}  # fmt: skip


def sampling_arguments(p: dict, options: dict) -> dict:
    """Size, steps, seeds and sampler of a recorded job of any tab. p: its parameters; options: its settings."""
    return {
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
    }


def job_arguments(run: dict) -> dict:
    """The keyword arguments that a recorded job stands for."""
    p, options = {**UNSET, **run["params"]}, run["options"]
    batch = len(run["all_seeds"])
    prompt = p["prompt"] if isinstance(p["prompt"], list) else [p["prompt"]] * batch
    negative = p["negative_prompt"] if isinstance(p["negative_prompt"], list) else [p["negative_prompt"]] * batch
    given = {
        "prompt": prompt,
        "negative_prompt": negative,
        **sampling_arguments(p, options),
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


def drawn_and_latents(pipe: DiffusionPipeline, given: dict) -> tuple[BaseOutput, torch.Tensor]:
    """What a call gives, and the latents that its images were decoded from: the last that the VAE was given."""
    seen: list[torch.Tensor] = []
    with pipe.vae.post_quant_conv.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0])):
        drawn = pipe(**given)
    return drawn, torch.cat(seen[-len(drawn.images) :]) * pipe.vae.config.scaling_factor


def tiny_upscaler(label: str) -> Path:
    return next(path for path in (GOLDEN / "models").iterdir() if label in (path.name, path.stem))


@lru_cache(maxsize=3)
def job_refiner(name: str | None) -> UNet2DConditionModel | None:
    """The recordings' refiners: a real one, and "alt", the base with its last layer turned down."""
    if name is None:
        return None
    if name == "refiner":
        return UNet2DConditionModel.from_pretrained(GOLDEN / "tiny-sdxl-e2e-refiner" / "unet")
    unet = UNet2DConditionModel.from_pretrained(GOLDEN / "tiny-sdxl-e2e" / "unet")
    for parameter in unet.conv_out.parameters():
        parameter.data *= 0.9
    return unet
