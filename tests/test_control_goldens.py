"""Whole jobs under ControlNet units, against those recorded of the webui's extension: final latents and images."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from PIL import Image
from recorded_jobs import drawn_and_latents
from recordings import GOLDEN, recorded_json
from safetensors.torch import load_file
from tiny_models import pipeline_with_copies
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline


FOLDER = GOLDEN / "controlnet"
RUNS = recorded_json("controlnet/runs.json", "runs", 90)
PICTURES = {name: value.numpy() for name, value in load_file(FOLDER / "pictures.safetensors").items()}
RESIZE_MODES = ("stretch", "crop", "fill", "latent")
MASKED_CONTENTS = ("fill", "original", "latent noise", "latent nothing")
OTHER_UNETS = {"tiny-unet-13": "tiny-sd", "tiny-unet-xl-10": "tiny-sdxl-e2e"}
# One run of each kind of work is in the fast suite; all of them run with --slow.
FAST = {
    "mode_b_w1.0",
    "mode_c_w1.7",
    "win_DPMpp_SDE_0.35_1.0",
    "win_UniPC_0.2_0.8",
    "win_PLMS_0.5_0.5",
    "two_balanced_control",
    "batch3_prompts_p",
    "uneven_negative_c",
    "and_c",
    "ngms_all_batch2_c",
    "batch_cond_uncond_off_c",
    "editing_b",
    "hr_both_c",
    "hr_both_c_firstconds",
    "hr_canny_b",
    "hr_scale1",
    "hr_crop_resize_xy",
    "i2i_init_as_control_resize2",
    "inp_masked_own_crop_othersize",
    "in_scribble_mask",
    "advanced_weighting",
    "region_mask",
    "shuffle_gap",
    "inpaint_only_t2i",
    "inpaint_harmonious_i2i",
    "separate_two_units_batch2",
    "xl_hr_c",
}


def picture(name: str) -> Image.Image:
    return Image.fromarray(PICTURES[name])


@pytest.fixture(scope="module")
def pipes():
    made = {}

    def pipe_for(model: str, kind: str):
        if (model, kind) in made:
            return made[model, kind]
        if kind == "img2img":
            pipe = WebUIImg2ImgPipeline.from_pipe(pipe_for(model, "txt2img"))
        else:
            parts = {}
            if model in OTHER_UNETS:
                parts["unet"] = UNet2DConditionModel.from_pretrained(FOLDER / "models" / model)
            pipe = pipeline_with_copies(WebUITxt2ImgPipeline, OTHER_UNETS.get(model, model), **parts)
            for name in control_names(model):
                source = name.removesuffix("-shuffle")
                pipe.add_controlnet(ControlNetModel.from_pretrained(FOLDER / "models" / source), name)
        made[model, kind] = pipe
        return pipe

    return pipe_for


def control_names(model: str) -> set[str]:
    return {unit["model"] for run in RUNS if run["model"] == model for unit in run["units"]}


def call_of(run: dict) -> dict:
    """A recorded job as arguments of the call."""
    params, options = run["params"], dict(run["options_changed"])
    if "s_min_uncond" in params:
        options["s_min_uncond"] = params["s_min_uncond"]
    if run["each_unit_for_each_image"]:
        options["each_unit_for_each_image"] = True
    units = [dict(unit) for unit in run["units"]]
    for unit in units:
        for key in ("image", "mask", "effective_region_mask"):
            if unit.get(key):
                unit[key] = picture(unit[key])
    given = {
        "prompt": params["prompt"],
        "negative_prompt": params["negative_prompt"],
        "seed": run["all_seeds"],
        "sampler": params["sampler_name"],
        "num_inference_steps": params["steps"],
        "guidance_scale": params["cfg_scale"],
        "width": params["width"],
        "height": params["height"],
        "noise_source": "cpu",
        "webui_options": options,
        "control_units": units,
    }
    if "subseed_strength" in params:
        given |= {"subseed": run["all_subseeds"], "subseed_strength": params["subseed_strength"]}
    if isinstance(params["prompt"], str):
        given["num_images_per_prompt"] = params.get("batch_size", 1)
    if params.get("enable_hr"):
        size = (params.get("hr_resize_x", 0), params.get("hr_resize_y", 0))
        given |= {
            "hires_scale": None if any(size) else params["hr_scale"],
            "hires_size": size if any(size) else None,
            "hires_upscaler": params["hr_upscaler"],
            "hires_steps": params["hr_second_pass_steps"],
            "hires_strength": params["denoising_strength"],
            "hires_sampler": params.get("hr_sampler_name"),
        }
    if run["kind"] == "img2img":
        given |= {
            "image": picture(run["init_image"]),
            "strength": params["denoising_strength"],
            "resize_mode": RESIZE_MODES[params["resize_mode"]],
        }
    if run.get("init_mask"):
        given |= {
            "mask_image": picture(run["init_mask"]),
            "mask_blur": (params.get("mask_blur_x", 4), params.get("mask_blur_y", 4)),
            "masked_content": MASKED_CONTENTS[params["inpainting_fill"]],
            "inpaint_area": "masked" if params["inpaint_full_res"] else "whole",
            "masked_padding": params.get("inpaint_full_res_padding", 32),
            "invert_mask": bool(params.get("inpainting_mask_invert", 0)),
        }
    return given


def tolerance(run: dict) -> float:
    if run["params"]["sampler_name"] == "DPM adaptive":
        return 5e-2
    if run["model"] in OTHER_UNETS:
        return 1e-3
    return 1e-3 if "SDE" in run["params"]["sampler_name"] or run["params"]["sampler_name"] == "PLMS" else 1e-4


def marked(run: dict):
    return pytest.param(run, id=run["name"], marks=() if run["name"] in FAST else pytest.mark.slow)


@pytest.mark.goldens
@pytest.mark.parametrize("run", [marked(run) for run in RUNS])
def test_a_recorded_job_comes_out(run, pipes):
    path = Path(FOLDER / "runs" / f"{run['name']}.safetensors")
    recorded, pipe, given = load_file(path), pipes(run["model"], run["kind"]), call_of(run)
    torch.manual_seed(run["global_seed_before_run"])
    if "images" in recorded:
        drawn, latents = drawn_and_latents(pipe, {**given, "output_type": "np"})
        difference = np.abs((drawn.images * 255).round() - recorded["images"].numpy().astype(np.float64))
        assert difference.max() <= (4 if tolerance(run) > 1e-2 else 1)
        assert_units_were_shown(run, drawn.control_images or [])
    else:
        latents = pipe(**given, output_type="latent").images
    assert float((latents - recorded["latents"]).abs().max()) <= tolerance(run)


def assert_units_were_shown(run: dict, shown: list[Image.Image]) -> None:
    """What the webui hands back behind the images: of each unit the second pass's hint, then the first's."""
    assert [[each.height, each.width] for each in shown] == run["returned_images"][run["image_size"][0] :]
    names = [hints[key] for hints in run["hints"].values() for key in ("hint_hr", "hint") if key in hints]
    for each, recorded in zip(shown, (PICTURES[name] for name in names), strict=True):
        if recorded.shape[2:] != (4,):  # with a mask
            assert np.abs(np.asarray(each, np.float32) - np.atleast_3d(recorded)).max() <= 1


@pytest.mark.parametrize("name", ["mode_p_w0.3", "two_windows", "hr_both_b", "in_canny_64"])
def test_the_text_tells_the_units_as_recorded(name, pipes):
    run = next(run for run in RUNS if run["name"] == name)
    text = pipes(run["model"], run["kind"])(**call_of(run)).infotexts[0]
    assert fields_from_rng(text) == fields_from_rng(run["infotext"])


def fields_from_rng(text: str) -> str:
    return text[text.index(", RNG: CPU") :]
