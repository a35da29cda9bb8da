"""Arguments of a call as a request with all names resolved, and jobs drawn from requests that no call made."""

import inspect
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from PIL import Image
from tiny_models import pipeline_with_copies
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline
from webui_diffusers.pipelines.arguments import img2img_request, txt2img_request
from webui_diffusers.pipelines.loras import networks_on
from webui_diffusers.pipelines.passes import StepWatch, redraw
from webui_diffusers.pipelines.sampling import SAMPLERS


NAMED = {"prompt": "a red circle", "seed": 3, "sampler": "Euler a", "num_inference_steps": 4}


@pytest.fixture(scope="module")
def pipe(golden: Path) -> WebUITxt2ImgPipeline:
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    pipe.add_lora(golden / "lora" / "kohya_lora.safetensors", "ink")
    return pipe


@pytest.fixture(scope="module")
def over(pipe) -> WebUIImg2ImgPipeline:
    over = WebUIImg2ImgPipeline.from_pipe(pipe)
    over.set_progress_bar_config(disable=True)
    return over


def given(pipe, **arguments) -> dict:
    """All arguments of a call by name, as `__call__` sees them."""
    parameters = inspect.signature(type(pipe).__call__).parameters.values()
    usual = {p.name: p.default for p in parameters if p.name not in ("self", "kwargs")}
    return {**usual, **NAMED, **arguments}


def photo() -> Image.Image:
    return Image.fromarray(np.linspace(0, 255, 64 * 64 * 3).astype(np.uint8).reshape(64, 64, 3))


# 1. Names are resolved once


def test_a_name_becomes_a_row_and_a_label(pipe):
    first = txt2img_request(pipe, given(pipe, sampler="k_dpmpp_2m", schedule="karras")).first
    assert (first.sampler, first.schedule) == (SAMPLERS["DPM++ 2M"], "Karras")
    combined = txt2img_request(pipe, given(pipe, sampler="DPM++ SDE Exponential", schedule="Karras")).first
    assert (combined.sampler, combined.schedule) == (SAMPLERS["DPM++ SDE"], "Exponential")
    stepped = txt2img_request(pipe, given(pipe, sampler=None)).first
    assert (stepped.sampler, stepped.schedule) == (None, None)


def test_the_second_pass_is_the_first_one_but_for_what_is_said(pipe):
    request = txt2img_request(pipe, given(pipe, hires_scale=1.5, num_inference_steps=6))
    first, second = request.first, request.second
    assert (second.sampler, second.steps, second.prompts) == (first.sampler, 6, first.prompts)
    assert second.table is first.table and second.encoder is first.encoder and second.guidance == first.guidance
    assert (first.cells, second.cells, second.asked_size) == ((8, 8), (12, 12), (96, 96))
    assert (first.strength, second.strength, second.first_pass_evaluations) == (None, 0.7, 6)
    other = txt2img_request(
        pipe,
        given(pipe, hires_scale=1.5, hires_sampler="Heun", hires_steps=3, hires_prompt=" b", hires_schedule="Karras"),
    ).second
    assert (other.sampler, other.schedule, other.steps) == (SAMPLERS["Heun"], "Karras", 3)
    assert (other.prompts, other.negatives) == ([" b"], [""])
    assert txt2img_request(pipe, given(pipe)).second is None


def test_a_pass_holds_its_networks_by_the_names_they_were_asked_for_by(pipe):
    request = txt2img_request(
        pipe, given(pipe, prompt="a<lora:ink:0.5>", loras={"ink": 0.2}, hires_scale=2, hires_prompt="b")
    )
    assert [(lora.name, lora.use[1:3]) for lora in request.first.loras] == [("ink", (0.5, 0.5)), ("ink", (0.2, 0.2))]
    assert [(lora.name, lora.use[1:]) for lora in request.second.loras] == [("ink", (0.2, 0.2))]
    assert (request.first.prompts, request.first.written) == (["a"], ["a<lora:ink:0.5><lora:ink:0.2>"])
    assert request.second.written == ["b<lora:ink:0.2>"]


def test_options_are_all_there_and_the_argument_wins_over_its_option(pipe):
    options = {"CLIP_stop_at_last_layers": 4, "s_min_uncond": 0.5}
    request = txt2img_request(pipe, given(pipe, webui_options=options))
    assert request.options["emphasis"] == "Original" and request.first.guidance.s_min_uncond == 0.5
    assert request.prompt_settings.CLIP_stop_at_last_layers == 4
    skipped = txt2img_request(pipe, given(pipe, webui_options=options, clip_skip=1))
    assert skipped.prompt_settings.CLIP_stop_at_last_layers == 2


def test_seeds_count_up_and_a_variation_keeps_them(pipe):
    def seeds(**arguments) -> tuple:
        noise = txt2img_request(pipe, given(pipe, num_images_per_prompt=2, **arguments)).noise
        return noise.seeds, noise.subseeds

    assert seeds(seed=7) == ([7, 8], [0, 1])
    assert seeds(seed=7, subseed=20, subseed_strength=0.1) == ([7, 7], [20, 21])
    assert seeds(seed=[5, 1]) == ([5, 1], [0, 1])
    drawn, _ = seeds(seed=-1)
    assert drawn[1] == drawn[0] + 1 and seeds(seed=-1)[0] != drawn
    assert seeds(seed=None, generator=torch.Generator().manual_seed(1))[0] is None


def test_a_request_does_not_change(pipe):
    request = txt2img_request(pipe, given(pipe))
    with pytest.raises(FrozenInstanceError):
        request.first.steps = 3
    with pytest.raises(FrozenInstanceError):
        request.eta = 1.0


# 2. A job without a call


def latents_of(pipe, request) -> torch.Tensor:
    with torch.no_grad(), networks_on(pipe, "webui") as networks:
        torch.manual_seed(11)
        return redraw(pipe, request, networks, StepWatch(pipe)).latents


def test_a_request_changed_by_hand_draws_what_the_call_for_it_draws(over):
    mask = np.zeros((64, 64), np.uint8)
    mask[16:48, 16:48] = 255
    asked = {"image": photo(), "mask_image": mask, "strength": 0.6}
    request = img2img_request(over, given(over, **asked))
    over._begin(request.first.guidance, None)

    def called(**arguments) -> torch.Tensor:
        torch.manual_seed(11)
        return over(**{**NAMED, **asked, **arguments}, output_type="latent").images

    assert torch.equal(latents_of(over, request), called())
    heun = replace(request.first, sampler=SAMPLERS["Heun"], steps=3)
    changed = replace(request, first=heun, noise=replace(request.noise, seeds=[9]))
    assert torch.equal(latents_of(over, changed), called(sampler="Heun", num_inference_steps=3, seed=9))


def test_a_job_without_a_call_switches_its_networks_on_and_off(over):
    over.add_lora(over.networks.entries[0].path, "ink")
    before = [p.clone() for p in over.unet.parameters()]
    request = img2img_request(over, given(over, prompt="a red circle<lora:ink:1>", image=photo()))
    over._begin(request.first.guidance, None)
    plain = latents_of(over, replace(request, first=replace(request.first, loras=[])))
    assert not torch.allclose(latents_of(over, request), plain, atol=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, over.unet.parameters(), strict=True))


# 3. Other latent cells


def test_a_vae_of_other_cells_draws_the_models_own_size_on_both_ways(pipe):
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=2,
    )
    small = WebUITxt2ImgPipeline(**{**pipe.components, "vae": vae}, requires_safety_checker=False)
    small.set_progress_bar_config(disable=True)
    for prompt in ("a red circle", "(a red:1.1) circle"):
        assert small(prompt, num_inference_steps=1, output_type="np").images.shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match="pixels a latent cell"):
        small("a red circle", num_inference_steps=1, hires_scale=2)
    over = WebUIImg2ImgPipeline(**small.components, requires_safety_checker=False)
    over.set_progress_bar_config(disable=True)
    image = over("(a red:1.1) circle", photo(), 0.5, num_inference_steps=2, output_type="np").images
    assert image.shape == (1, 64, 64, 3)
