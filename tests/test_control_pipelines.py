"""The component `controlnet` and its arguments: diffusers' pictures with diffusers' arguments, and what is refused."""

import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    MultiControlNetModel,
    PNDMScheduler,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    UNet2DConditionModel,
)
from diffusers.image_processor import VaeImageProcessor
from peft import LoraConfig
from PIL import Image
from recordings import GOLDEN
from tiny_models import pipeline_with_copies
from tiny_union import union_network
from webui_diffusers.loaders.weight_files import WeightFileError
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline


MODELS = GOLDEN / "controlnet" / "models"
SCHEDULERS = (DDIMScheduler, EulerAncestralDiscreteScheduler, PNDMScheduler)


def noise_image(seed: int, size=(64, 64), mode="RGB") -> Image.Image:
    shape = (size[1], size[0], 3) if mode == "RGB" else size[::-1]
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def half_mask() -> Image.Image:
    mask = np.zeros((64, 64), np.uint8)
    mask[:, :32] = 255
    return Image.fromarray(mask)


CONTROL, OTHER, INIT = noise_image(1), noise_image(2), noise_image(3)


def network(name: str = "tiny-controlnet") -> ControlNetModel:
    return ControlNetModel.from_pretrained(MODELS / name)


def loaded(kind: type, model: str, control):
    return pipeline_with_copies(kind, model, controlnet=control)


@pytest.fixture(scope="module")
def sd():
    return loaded(WebUITxt2ImgPipeline, "tiny-sd", network())


@pytest.fixture(scope="module")
def sd_img2img(sd):
    return WebUIImg2ImgPipeline.from_pipe(sd)


@pytest.fixture(scope="module")
def sdxl():
    return loaded(WebUITxt2ImgPipeline, "tiny-sdxl-e2e", network("tiny-controlnet-xl"))


def drawn(pipe, **given):
    return np.asarray(pipe(**given, generator=torch.Generator().manual_seed(5), output_type="np").images)


def stock(kind: type, pipe, **changes):
    """diffusers' own pipeline with the components of ours."""
    made = kind.from_pipe(pipe, **changes)
    made.set_progress_bar_config(disable=True)
    return made


PLAIN = {"prompt": "a red circle", "negative_prompt": "blue", "num_inference_steps": 2}


# --- drop-in


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_txt2img_is_diffusers_own_to_the_last_bit(sd, scheduler):
    sd.scheduler = scheduler.from_config(sd.scheduler.config)
    own = stock(StableDiffusionControlNetPipeline, sd)
    call = {**PLAIN, "num_inference_steps": 3}
    given = {"controlnet_conditioning_scale": 0.7, "control_guidance_start": 0.1, "control_guidance_end": 0.8}
    wanted = drawn(own, **call, image=CONTROL, **given)
    assert np.array_equal(drawn(sd, **call, control_image=CONTROL, **given), wanted)
    assert np.array_equal(drawn(sd, **call, image=CONTROL, **given), wanted)
    assert not np.array_equal(drawn(sd, **call), wanted)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        (StableDiffusionControlNetImg2ImgPipeline, {"strength": 0.6}),
        (StableDiffusionControlNetInpaintPipeline, {"mask_image": half_mask()}),
    ],
    ids=["img2img", "inpaint"],
)
def test_img2img_and_inpainting_are_diffusers_own(sd_img2img, scheduler, kind, more):
    sd_img2img.scheduler = scheduler.from_config(sd_img2img.scheduler.config)
    given = {**PLAIN, **more, "image": INIT, "control_image": CONTROL}
    assert np.array_equal(drawn(sd_img2img, **given), drawn(stock(kind, sd_img2img), **given))


def test_an_image_processor_of_the_users_prepares_the_picture(sd_img2img):
    given = {"prompt": "a fox", "strength": 0.5, "num_inference_steps": 2, "control_image": CONTROL}
    pixels = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    usual, other = drawn(sd_img2img, image=pixels / 2 + 0.5, **given), drawn(sd_img2img, image=pixels, **given)
    assert not np.allclose(usual, other, atol=1e-2)
    before = sd_img2img.image_processor
    sd_img2img.image_processor = VaeImageProcessor(vae_scale_factor=8, do_normalize=False)
    try:
        assert np.allclose(drawn(sd_img2img, image=pixels, **given), usual, atol=1e-4)
    finally:
        sd_img2img.image_processor = before


def test_guess_mode_and_batches_are_diffusers_own(sd):
    own = stock(StableDiffusionControlNetPipeline, sd)
    given = {**PLAIN, "guess_mode": True, "num_images_per_prompt": 2}
    assert np.array_equal(drawn(sd, **given, control_image=CONTROL), drawn(own, **given, image=CONTROL))


def test_several_networks_are_diffusers_own(sd):
    pipe = WebUITxt2ImgPipeline.from_pipe(sd, controlnet=[network(), network("tiny-controlnet-2")])
    assert isinstance(pipe.controlnet, MultiControlNetModel)
    own = stock(StableDiffusionControlNetPipeline, pipe)
    given = {**PLAIN, "controlnet_conditioning_scale": [0.5, 0.9], "control_guidance_end": [0.6, 1.0]}
    assert np.array_equal(
        drawn(pipe, **given, control_image=[CONTROL, OTHER]), drawn(own, **given, image=[CONTROL, OTHER])
    )


@pytest.mark.parametrize(
    ("ours", "kind", "more"),
    [
        (WebUITxt2ImgPipeline, StableDiffusionXLControlNetPipeline, {}),
        (WebUIImg2ImgPipeline, StableDiffusionXLControlNetImg2ImgPipeline, {"image": INIT, "strength": 0.6}),
        (WebUIImg2ImgPipeline, StableDiffusionXLControlNetInpaintPipeline, {"image": INIT, "mask_image": half_mask()}),
    ],
    ids=["txt2img", "img2img", "inpaint"],
)
def test_sdxl_is_diffusers_own(sdxl, ours, kind, more):
    pipe = sdxl if ours is WebUITxt2ImgPipeline else ours.from_pipe(sdxl)
    name = "image" if ours is WebUITxt2ImgPipeline else "control_image"
    wanted = drawn(stock(kind, pipe), **PLAIN, **more, **{name: CONTROL})
    assert np.array_equal(drawn(pipe, **PLAIN, **more, control_image=CONTROL), wanted)


def test_a_union_network_is_diffusers_own_and_does_its_task_for_units(sdxl):
    pipe = WebUITxt2ImgPipeline.from_pipe(sdxl, controlnet=union_network())
    own = stock(StableDiffusionXLControlNetUnionPipeline, pipe)
    given = {**PLAIN, "control_image": CONTROL, "control_mode": 3}
    assert np.array_equal(drawn(pipe, **given), drawn(own, **given))
    unit = {"image": CONTROL, "resize_mode": "Just Resize", "union_control_type": "lineart"}
    units = latents(pipe, control_units=[unit])
    assert torch.allclose(units, latents(pipe, control_image=CONTROL, control_mode=3), atol=1e-3)
    assert not torch.allclose(units, latents(pipe, control_units=[{**unit, "union_control_type": 0}]), atol=1e-3)
    with pytest.raises(ValueError, match="union_control_type"):
        latents(pipe, control_units=[{"image": CONTROL}])


def test_a_union_network_does_several_tasks_at_once_with_a_sampler_as_without(sdxl):
    pipe = WebUITxt2ImgPipeline.from_pipe(sdxl, controlnet=union_network())
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    given = {"control_image": [CONTROL, OTHER], "control_mode": [3, 1], "controlnet_conditioning_scale": [0.4, 0.9]}
    call = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "latent"}

    def by_hand(text):
        return pipe(text, generator=torch.Generator().manual_seed(5), **call, **given).images

    own = by_hand("a red circle")  # diffusers' own drawing
    assert torch.allclose(by_hand("a red (circle:1.0)"), own, atol=1e-3)
    plain, other = latents(pipe, **given), latents(pipe, **{**given, "control_mode": [3, 2]})
    assert not torch.allclose(plain, other, atol=1e-3)
    assert not torch.allclose(plain, latents(pipe, **{**given, "controlnet_conditioning_scale": 0.4}), atol=1e-3)
    for wrong, message in (
        ({"control_image": CONTROL}, "1 entries for 2 tasks"),
        ({"control_mode": [3, 99]}, "number of a task"),
        ({"control_guidance_end": 0.5}, "all steps"),
    ):
        with pytest.raises(ValueError, match=message):
            latents(pipe, **{**given, **wrong})


# --- with a sampler of the webui


def latents(pipe, **given):
    own = {"prompt": "a (red:1.2) circle", "seed": 7, "sampler": "Euler a", "num_inference_steps": 2}
    return pipe(**{**own, **given}, output_type="latent").images


def test_both_ways_to_ask_agree_where_they_mean_the_same(sd):
    unit = {"image": CONTROL, "resize_mode": "Just Resize", "weight": 0.8}
    wanted = latents(sd, control_units=[unit])
    assert torch.allclose(wanted, latents(sd, control_image=CONTROL, controlnet_conditioning_scale=0.8), atol=1e-3)
    plain = latents(sd)
    assert not torch.allclose(wanted, plain, atol=1e-2)
    assert torch.equal(plain, latents(sd, control_units=[{**unit, "weight": 0}]))


def test_guess_mode_is_diffusers_and_not_the_extensions(sd):
    guessed = latents(sd, control_image=CONTROL, guess_mode=True)
    assert torch.isfinite(guessed).all() and not torch.allclose(guessed, latents(sd, control_image=CONTROL), atol=1e-3)


def test_a_scheduler_steps_under_units_too(sd):
    given = {"sampler": None, "control_units": [{"image": CONTROL}]}
    assert not torch.allclose(latents(sd, **given), latents(sd, sampler=None), atol=1e-2)


def test_hires_takes_a_larger_control_image_for_diffusers_arguments_too(sd):
    given = {"hires_scale": 2, "hires_steps": 2}
    assert latents(sd, **given, control_image=noise_image(4, (128, 128))).shape[-2:] == (16, 16)


def test_each_prompt_may_have_its_own_control_image(sd):
    steps = {"num_inference_steps": 4}
    both = latents(sd, prompt=["a circle", "a square"], control_image=[CONTROL, OTHER], seed=[7, 7], **steps)
    one = latents(sd, prompt="a square", control_image=OTHER, **steps)
    assert torch.allclose(both[1:], one, atol=1e-4)


def test_tiling_loras_callbacks_and_faces_go_with_control(sd):
    steps = []
    given = {"control_units": [{"image": CONTROL}], "tiling": True}
    sd(
        "a circle",
        seed=1,
        sampler="Euler",
        num_inference_steps=2,
        callback_on_step_end=lambda pipe, i, t, tensors: steps.append(i) or {},
        **given,
    )
    assert steps == [0, 1]
    assert {"circular"} != {m.padding_mode for m in sd.controlnet.modules() if isinstance(m, torch.nn.Conv2d)}


def test_layers_that_are_offloaded_draw_the_same(sd):
    own = loaded(WebUITxt2ImgPipeline, "tiny-sd", network())
    given = {"control_units": [{"image": CONTROL, "control_mode": 2}]}
    wanted = latents(sd, **given)
    for model in (own.unet, own.controlnet, own.vae, own.text_encoder):
        cpu_offload(model, torch.device("cpu"))
    assert torch.allclose(latents(own, **given), wanted, atol=1e-5)


def test_a_peft_adapter_acts_on_the_base_and_leaves_the_network_alone(sd):
    own = loaded(WebUITxt2ImgPipeline, "tiny-sd", network())
    given = {"control_units": [{"image": CONTROL}]}
    before, weights = latents(own, **given), {k: v.clone() for k, v in own.controlnet.state_dict().items()}
    own.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "style")
    assert not torch.allclose(latents(own, **given), before, atol=1e-4)
    own.unet.delete_adapters("style")
    assert torch.allclose(latents(own, **given), before, atol=1e-5)
    assert all(torch.equal(value, weights[key]) for key, value in own.controlnet.state_dict().items())


def test_half_precision_draws_nearly_the_same(sd):
    half = loaded(WebUITxt2ImgPipeline, "tiny-sd", network()).to(torch.bfloat16)
    given = {"control_units": [{"image": CONTROL}], "num_inference_steps": 4}
    assert float((latents(half, **given) - latents(sd, **given)).abs().mean()) < 0.1


def test_what_inpaint_only_leaves_out_is_the_given_image(sd):
    unit = {"image": CONTROL, "mask": half_mask(), "module": "inpaint_only", "resize_mode": "Just Resize"}
    images = sd("a circle", seed=1, sampler="Euler", num_inference_steps=2, control_units=[unit]).images
    assert np.array_equal(np.asarray(images[0])[:, 40:], np.asarray(CONTROL)[:, 40:])
    large = sd("a circle", seed=1, sampler="Euler", num_inference_steps=2, hires_scale=2, control_units=[unit])
    assert large.images[0].size == (128, 128)


def test_a_unit_with_a_comma_in_a_name_loses_its_text(sd):
    sd.add_controlnet(network(), "my, network")
    given = {"seed": 1, "sampler": "Euler", "num_inference_steps": 1}
    text = sd("a circle", control_units=[{"image": CONTROL, "model": "my, network"}], **given).infotexts[0]
    assert "ControlNet 0: , " in text


# --- components, names and files


def test_a_pipeline_is_handed_from_and_to_diffusers_own(sd):
    own = stock(StableDiffusionControlNetPipeline, sd)
    back = WebUITxt2ImgPipeline.from_pipe(own)
    assert back.controlnet is sd.controlnet is own.controlnet
    assert np.array_equal(drawn(back, **PLAIN, image=CONTROL), drawn(own, **PLAIN, image=CONTROL))
    assert WebUIImg2ImgPipeline.from_pipe(sd).controlnet is sd.controlnet


@pytest.mark.parametrize("count", [1, 2])
def test_networks_are_saved_and_loaded_with_the_pipeline(tmp_path, sd, count):
    networks = [network(), network("tiny-controlnet-2")][:count]
    pipe = WebUITxt2ImgPipeline.from_pipe(sd, controlnet=networks if count > 1 else networks[0])
    pipe.save_pretrained(tmp_path)
    again = WebUITxt2ImgPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    again.set_progress_bar_config(disable=True)
    image = [CONTROL, OTHER] if count > 1 else CONTROL
    assert np.array_equal(drawn(pipe, **PLAIN, control_image=image), drawn(again, **PLAIN, control_image=image))


def test_networks_are_known_by_name_file_and_folder(tmp_path, sd):
    pipe = WebUITxt2ImgPipeline.from_pipe(sd, controlnet=None)
    network("tiny-controlnet-2").save_pretrained(tmp_path / "control_tiny_canny")
    unit = {"image": CONTROL}
    with pytest.raises(ValueError, match="add_controlnet"):
        latents(pipe, control_units=[{**unit, "model": "control_tiny_canny"}])
    with pytest.raises(ValueError, match="names no `model`"):
        latents(pipe, control_units=[unit])
    assert pipe.add_controlnet(tmp_path / "control_tiny_canny") == "control_tiny_canny"
    assert pipe.add_controlnet(network("tiny-controlnet-2"), "mine") == "mine"
    wanted = latents(pipe, control_units=[{**unit, "model": "mine"}])
    assert torch.equal(wanted, latents(pipe, control_units=[{**unit, "model": "control_tiny_canny"}]))
    other = WebUITxt2ImgPipeline.from_pipe(sd, controlnet=None)
    other.controlnet_folder = tmp_path
    assert torch.equal(wanted, latents(other, control_units=[{**unit, "model": "control_tiny_canny"}]))
    with pytest.raises(WeightFileError, match="Did you mean 'control_tiny_canny'"):
        latents(other, control_units=[{**unit, "model": "control_tiny_cany"}])


def test_a_component_is_known_by_the_folder_it_came_from(sd):
    unit = {"image": CONTROL, "model": "tiny-controlnet"}
    assert torch.equal(latents(sd, control_units=[unit]), latents(sd, control_units=[{"image": CONTROL}]))


# --- refused before any work


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"control_units": [{}]}, r"control_units\[0\]` has no `image`"),
        ({"control_units": [{"image": CONTROL, "model": "None"}]}, "does nothing without a network"),
        ({"control_units": [{"image": CONTROL}, {"image": CONTROL}]}, r"control_units\[1\]` names no `model`"),
        ({"control_units": [{"image": [CONTROL, OTHER]}]}, "holds 2 images"),
        ({"control_units": [{"image": "photo.png"}]}, "load_image"),
        ({"control_units": [{"image": CONTROL, "module": "cany"}]}, "Did you mean 'canny'"),
        ({"control_units": [{"image": CONTROL, "advanced_weighting": [1.0]}]}, "1 factors.*7 residuals"),
        ({"control_units": [{"image": CONTROL}], "control_image": CONTROL}, "in one way"),
        ({"control_image": CONTROL, "image": CONTROL}, "both given"),
        ({"control_image": CONTROL, "controlnet_conditioning_scale": [1.0, 1.0]}, "2 entries for 1"),
        (
            {"control_image": CONTROL, "control_guidance_start": 0.9, "control_guidance_end": 0.1},
            "shares of the steps",
        ),
        ({"control_image": CONTROL, "control_mode": 1}, "union"),
        ({"control_image": [CONTROL, OTHER, INIT]}, "3 images for 1 prompts"),
        ({"guess_mode": True}, "without a `control_image`"),
        ({"control_unit": []}, "Did you mean 'control_units'"),
    ],
)
def test_bad_input_is_refused_before_any_work(sd, given, message, monkeypatch):
    monkeypatch.setattr(type(sd.unet), "forward", lambda *args, **kwargs: pytest.fail("the UNet was run"))
    with pytest.raises(ValueError, match=message):
        latents(sd, **given)


def test_an_openpose_unit_says_what_it_needs(sd):
    with pytest.raises((ImportError, OSError), match="controlnet|openpose"):
        latents(sd, control_units=[{"image": CONTROL, "module": "openpose"}])


def test_a_network_for_another_base_is_refused(sd):
    other = WebUITxt2ImgPipeline.from_pipe(sd, controlnet=network("tiny-controlnet-xl"))
    for asked in ({"control_image": CONTROL}, {"control_units": [{"image": CONTROL}]}):
        with pytest.raises(WeightFileError, match="another model"):
            latents(other, **asked)
    with pytest.raises(WeightFileError, match="another model"):
        sd.add_controlnet(MODELS / "tiny-controlnet-xl")


def test_units_without_their_own_image_need_init_images_as_pixels(sd_img2img):
    with pytest.raises(ValueError, match="only as pixels"):
        sd_img2img(
            "a circle", image=torch.zeros(1, 4, 8, 8), seed=1, sampler="Euler", strength=0.5, control_units=[{}]
        )


def test_the_unet_is_left_as_it_was(sd):
    before = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in sd.unet.modules()]
    latents(sd, control_units=[{"image": CONTROL}], width=72, height=88)
    after = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in sd.unet.modules()]
    assert before == after
    assert isinstance(sd.unet, UNet2DConditionModel)
