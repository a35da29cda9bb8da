"""The circle: a recorded run written as a parameters text, read back, and drawn again from that text alone."""

from functools import lru_cache

import numpy as np
import pytest
import torch
from recordings import GOLDEN, recorded_runs
from safetensors.torch import load_file
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders import load_upscaler
from webui_diffusers.pipelines import WebUITxt2ImgPipeline
from webui_diffusers.pipelines.infotext import call_arguments, parse_infotext
from webui_diffusers.pipelines.infotext.fields import CALL_FIELDS
from webui_diffusers.pipelines.infotext.from_call import call_infotexts
from webui_diffusers.pipelines.options import WEBUI_OPTIONS


# Settings that the webui's texts have a field for; a picture drawn with another one cannot be had from its text.
TOLD = {field.argument.partition(".")[2] for field in CALL_FIELDS.values()} | {"randn_source", *WEBUI_OPTIONS} - {
    "enable_quantization",
    "uni_pc_variant",
    "uni_pc_skip_type",
    "uni_pc_order",
    "uni_pc_lower_order_final",
    "comma_padding_backtrack",
    "use_old_karras_scheduler_sigmas",
}

# Every kind of field once; all recordings are drawn where another folder of them is named.
REPOSITORYS_OWN = (GOLDEN / "done").exists()  # conftest.py put it together
FEW = """
s_euler_a s_dpmpp_2m sch_dpmpp_2m_beta batch2_nv_dpmpp_2s_a subseed seed_resize ensd_euler_a eta_opt_ddim churn_euler
clipskip2 and_weights ngms_all opt_rho_sigmas hr_px_lanczos hr_resize_crop hr_other_sampler_prompt tiling_hr
v_4_dpmpp_2m_zsnr
""".split()


def runs(few: bool) -> list:
    found = []
    for table, count in (("e2e", 76), ("e2e_v", 5)):
        for run in recorded_runs(f"sampling/{table}.json", "txt2img", count):
            told = set(run["options_changed"]) <= TOLD
            wanted = not few or run["name"] in FEW
            if wanted and told and not batch_decides(run):
                found.append(pytest.param(run, id=run["name"]))
    return found


def batch_decides(run: dict) -> bool:
    """Whether the images of a batch are others than the same images alone, as they are in the webui with the step
    sizes of DPM adaptive, with prompts of different length, and with the VAE's noise of a hires pass over pixels,
    which begins where the batch's last seed left the generator."""
    p = run["params"]
    over_pixels = p["enable_hr"] and not p["hr_upscaler"].startswith("Latent")
    return len(run["all_seeds"]) > 1 and (
        p["sampler_name"] == "DPM adaptive" or isinstance(p["prompt"], list) or over_pixels
    )


@lru_cache(maxsize=2)
def pipeline(prediction_type: str) -> WebUITxt2ImgPipeline:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    pipe.scheduler.register_to_config(prediction_type=prediction_type)
    for path in (GOLDEN / "models").iterdir() if (GOLDEN / "models").is_dir() else ():
        if path.stem.startswith(("tiny-compact", "tiny-rrdb")):
            pipe.attached.upscalers[path.stem] = load_upscaler(path)
    return pipe


def recorded_call(run: dict) -> dict:
    """The call that a recorded job stands for, all arguments spelled out."""
    p, options = run["params"], run["options"]
    call = {
        "prompt": p["prompt"] if isinstance(p["prompt"], list) else [p["prompt"]] * len(run["all_seeds"]),
        "negative_prompt": p["negative_prompt"],
        "width": p["width"],
        "height": p["height"],
        "num_inference_steps": p["steps"],
        "guidance_scale": p["cfg_scale"],
        "subseed_strength": p["subseed_strength"],
        "seed_resize": (p["seed_resize_from_w"], p["seed_resize_from_h"]),
        "noise_source": options["randn_source"].lower(),
        "sampler": p["sampler_name"],
        "schedule": p["scheduler"],
        "eta": p["eta"],
        "tiling": p["tiling"] or options["tiling"],
        "webui_options": {name: value for name, value in options.items() if name in WEBUI_OPTIONS},
    }
    if p["enable_hr"]:
        call |= {
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
    return call


@pytest.mark.goldens
@pytest.mark.parametrize("run", runs(few=REPOSITORYS_OWN))
def test_a_recorded_picture_is_drawn_again_from_its_text_alone(run: dict):
    pipe = pipeline("v_prediction" if run.get("parameterization") == "v" else "epsilon")
    recorded = load_file(GOLDEN / "sampling" / "e2e" / f"{run['name']}.safetensors")["images"]
    texts = call_infotexts(recorded_call(run), run["all_seeds"], run["all_subseeds"])
    assert len(texts) == len(recorded)
    for text, expected in zip(texts, recorded):
        torch.manual_seed(run["global_seed_before_run"])
        picture = np.array(pipe(**call_arguments(parse_infotext(text))).images[0])
        assert np.abs(picture.astype(int) - expected.numpy().astype(int)).max() <= 1, text


@pytest.mark.goldens
@pytest.mark.parametrize("run", runs(few=False))
def test_a_text_has_the_fields_that_the_webui_wrote(run: dict):
    fields = parse_infotext(call_infotexts(recorded_call(run), run["all_seeds"], run["all_subseeds"])[0])
    for label, value in run["infotext_extra"].items():
        if label == "Hires resize":
            assert f"{fields['Hires resize-1']}x{fields['Hires resize-2']}" == value
        else:
            assert fields[label] == str(value), label
