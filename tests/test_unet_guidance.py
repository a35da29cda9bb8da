"""Perturbed-attention guidance and FreeU: diffusers' pictures for the same scheduler, and models left as they were."""

from itertools import chain

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionPAGImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import Attention, AttnProcessor
from peft import LoraConfig
from PIL import Image
from recordings import GOLDEN
from tiny_models import pipeline_with_copies
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline
from webui_diffusers.pipelines.infotext import call_arguments, parse_infotext


CALL = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "np"}
PAG = {"pag_scale": 3.0, "pag_adaptive_scale": 0.0}
FACTORS = {"b1": 1.3, "b2": 1.4, "s1": 0.8, "s2": 0.4}
TOLERANCE = 2e-4  # their three rows go through the UNet in one run, ours in two
DRAWN = {"num_inference_steps": 2, "sampler": "Euler", "seed": 3, "output_type": "latent"}


@pytest.fixture(scope="module")
def theirs():
    return pipeline_with_copies(StableDiffusionPAGPipeline, "tiny-sd")


@pytest.fixture(scope="module")
def ours() -> WebUITxt2ImgPipeline:
    return pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")


def drawn(pipe, scheduler=DDIMScheduler, **arguments):
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    return pipe("a red circle", generator=torch.Generator().manual_seed(3), **{**CALL, **arguments}).images


def processors(pipe) -> list[type]:
    return [type(module.processor) for module in pipe.unet.modules() if isinstance(module, Attention)]


# 1. Table


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler])
def test_pag_draws_the_picture_of_diffusers_pipeline(theirs, ours, scheduler):
    expected = drawn(theirs, scheduler, negative_prompt="dark", **PAG)
    found = drawn(ours, scheduler, negative_prompt="dark", **PAG)
    assert np.abs(found - expected).max() < TOLERANCE
    assert np.abs(found - drawn(ours, scheduler, negative_prompt="dark")).max() > 0.01  # it does something


@pytest.mark.parametrize(
    "arguments",
    [
        {"guidance_scale": 1.0},  # no negative prompt is run
        {"pag_adaptive_scale": 0.003},
        {"pag_adaptive_scale": 0.005},  # gone after the first step
        {"guidance_rescale": 0.7},
        {"num_images_per_prompt": 2},
        {"pag_scale": 0.0},
    ],
    ids=str,
)
def test_pag_has_the_meaning_of_diffusers_arguments(theirs, ours, arguments):
    given = {**PAG, **arguments}
    assert np.abs(drawn(ours, **given) - drawn(theirs, **given)).max() < TOLERANCE


@pytest.mark.parametrize("layers", ["down", ["mid", "up_blocks.1"], "down_blocks.(0|1)"], ids=str)
def test_pag_acts_in_the_layers_that_are_named(theirs, ours, layers):
    expected = drawn(ours, **PAG)
    theirs.set_pag_applied_layers(layers)
    try:
        named = drawn(theirs, **PAG)
    finally:
        theirs.set_pag_applied_layers("mid")
    found = drawn(ours, **PAG, pag_applied_layers=layers)
    assert np.abs(found - named).max() < TOLERANCE
    assert np.abs(found - expected).max() > 1e-3


def test_pag_with_sdxl_over_a_picture_and_under_a_controlnet():
    xl = [pipeline_with_copies(kind, "tiny-sdxl-e2e") for kind in (StableDiffusionXLPAGPipeline, WebUITxt2ImgPipeline)]
    expected, found = (drawn(pipe, EulerDiscreteScheduler, negative_prompt="dark", **PAG) for pipe in xl)
    assert np.abs(found - expected).max() < TOLERANCE
    init = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    over = [
        pipeline_with_copies(kind, "tiny-sd") for kind in (StableDiffusionPAGImg2ImgPipeline, WebUIImg2ImgPipeline)
    ]
    expected, found = (drawn(pipe, image=init, strength=0.8, **PAG) for pipe in over)
    assert np.abs(found - expected).max() < TOLERANCE
    control = ControlNetModel.from_pretrained(GOLDEN / "controlnet" / "models" / "tiny-controlnet")
    under = [
        pipeline_with_copies(kind, "tiny-sd", controlnet=control)
        for kind in (StableDiffusionControlNetPAGPipeline, WebUITxt2ImgPipeline)
    ]
    expected, found = (drawn(pipe, image=init, controlnet_conditioning_scale=1.0, **PAG) for pipe in under)
    assert np.abs(found - expected).max() < TOLERANCE


@pytest.mark.parametrize("kind", [StableDiffusionPipeline, StableDiffusionXLPipeline])
def test_freeu_draws_the_picture_of_enable_freeu(kind):
    name = "tiny-sd" if kind is StableDiffusionPipeline else "tiny-sdxl-e2e"
    theirs, ours = (pipeline_with_copies(each, name) for each in (kind, WebUITxt2ImgPipeline))
    plain = drawn(ours)
    theirs.enable_freeu(**FACTORS)
    found = drawn(ours, freeu=FACTORS)
    assert np.abs(found - drawn(theirs)).max() < TOLERANCE
    assert np.abs(found - plain).max() > 1e-3
    assert np.array_equal(drawn(ours), plain)  # for the call alone
    ours.enable_freeu(**FACTORS)
    mine = drawn(ours)
    drawn(ours, freeu=dict.fromkeys(FACTORS, 1.0))
    assert np.array_equal(drawn(ours), mine)  # the user's own stays


# 2. Properties


@pytest.mark.parametrize("prompt", ["a red circle AND a blue square :0.5", "a [red:blue:0.5] circle", "a, " * 60])
@pytest.mark.parametrize("sampler", ["Euler", "DPM++ 2M", "DDIM", "LCM"])
def test_pag_pushes_whatever_the_prompt_and_the_sampler(ours, prompt, sampler):
    given = {**DRAWN, "sampler": sampler}
    pictures = [ours(prompt, **given, pag_scale=scale).images for scale in (0.0, 1e-6, 2.0)]
    assert (pictures[1] - pictures[0]).abs().max() < 1e-4
    assert (pictures[2] - pictures[0]).abs().max() > 1e-3


def test_two_prompts_of_one_text_are_pushed_as_one(ours):
    given = {**DRAWN, "output_type": "np", "pag_scale": 2.0}
    one = ours("a red circle", **given).images
    two = ours("a red circle :0.5 AND a red circle :0.5", **given).images
    assert np.abs(one - two).max() < 1e-4


def test_the_processors_come_back_whatever_happens():
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    pipe.unet.set_attn_processor(AttnProcessor())
    before = processors(pipe)

    def stop(pipe, i, t, tensors):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("a", **DRAWN, pag_scale=2.0, freeu=FACTORS, callback_on_step_end=stop)
    assert processors(pipe) == before
    assert not any(name in vars(block) for block in pipe.unet.up_blocks for name in FACTORS)


def test_pag_goes_with_adapters_of_peft():
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    plain = pipe("a", **DRAWN, pag_scale=2.0).images
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_v", "to_out.0"], init_lora_weights=False), "x")
    adapted = pipe("a", **DRAWN, pag_scale=2.0, cross_attention_kwargs={"scale": 0.5}).images
    assert (adapted - plain).abs().max() > 1e-3
    pipe.unet.delete_adapters("x")
    assert (pipe("a", **DRAWN, pag_scale=2.0).images - plain).abs().max() < 1e-5


def test_the_text_says_what_was_done_and_reads_back(ours):
    given = {"pag_scale": 2.5, "pag_adaptive_scale": 0.001, "freeu": FACTORS, "guidance_rescale": 0.4}
    for layers in ("mid", ["mid", "down_blocks.(0|1)"]):
        text = ours("a", **DRAWN, **given, pag_applied_layers=layers).infotexts[0]
        call = call_arguments(parse_infotext(text))
        assert {name: call[name] for name in given} == given
        assert call.get("pag_applied_layers", "mid") == layers
    assert not {*given} & {*call_arguments(parse_infotext(ours("a", **DRAWN).infotexts[0]))}


# 3. Refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"pag_scale": -1}, "pag_scale"),
        ({"pag_scale": "3"}, "pag_scale"),
        ({"pag_scale": 1.0, "pag_applied_layers": "nowhere"}, "mid_block"),
        ({"pag_scale": 1.0, "pag_applied_layers": "("}, "regular expression"),
        ({"pag_scale": 1.0, "pag_applied_layers": [3]}, "pag_applied_layers"),
        ({"freeu": {"b1": 1.1}}, "b2, s1, s2"),
        ({"freeu": {**FACTORS, "b3": 1.0}}, "b3"),
        ({"freeu": {**FACTORS, "s1": 0}}, "above 0"),
        ({"freeu": True}, "dict"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_before_any_work(ours, arguments, words):
    with pytest.raises(ValueError) as refusal:
        ours("a", **DRAWN, **arguments)
    assert words in str(refusal.value)
    assert not [name for name in chain.from_iterable(vars(block) for block in ours.unet.up_blocks) if name in FACTORS]
