"""WebUITxt2ImgPipeline where StableDiffusionPipeline stood: the same pictures, and all that users do with one."""

from inspect import signature

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
)
from tiny_models import pipeline_around, pipeline_with_copies
from torch._dynamo.eval_frame import OptimizedModule
from webui_diffusers.pipelines import WebUITxt2ImgPipeline


SCHEDULERS = [
    PNDMScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
]
CALL = {"num_inference_steps": 2, "guidance_scale": 6.0, "output_type": "np"}


@pytest.fixture(scope="module")
def theirs() -> StableDiffusionPipeline:
    return pipeline_with_copies(StableDiffusionPipeline, "tiny-sd")


@pytest.fixture
def ours() -> WebUITxt2ImgPipeline:
    """A pipeline of the test's own, on models that all tests share."""
    return pipeline_around(WebUITxt2ImgPipeline, "tiny-sd")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_diffusers_arguments_alone_give_diffusers_picture(theirs, ours, scheduler):
    pictures, texts = [], {"prompt": ["a red circle", "a blue square"], "negative_prompt": ["", "dark"]}
    for pipe in (theirs, ours):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        given = {**texts, **CALL, "num_inference_steps": 4, "generator": torch.Generator().manual_seed(3)}
        pictures.append(pipe(**given))
    assert np.array_equal(pictures[0].images, pictures[1].images)
    assert pictures[1].nsfw_content_detected is None


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_our_loop_around_a_scheduler_is_diffusers_loop(theirs, ours, scheduler):
    """An edit, also one that changes nothing, sends the call through our denoiser."""
    noise = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    for pipe in (theirs, ours):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    given = {**CALL, "num_inference_steps": 4, "latents": noise}
    theirs_at = theirs("a red circle", generator=torch.Generator().manual_seed(5), **given).images
    edited = ours("a red [circle:circle:0.5]", generator=torch.Generator().manual_seed(5), **given).images
    assert np.abs(edited - theirs_at).max() < 1e-4


def test_positions_of_arguments_are_diffusers(ours):
    theirs = pipeline_around(StableDiffusionPipeline, "tiny-sd")
    first = ours("a red circle", 64, 64, 3, generator=torch.Generator().manual_seed(0), output_type="np").images
    second = theirs("a red circle", 64, 64, 3, generator=torch.Generator().manual_seed(0), output_type="np").images
    assert np.array_equal(first, second)


def test_a_tuple_is_returned_where_asked(ours):
    for sampler in (None, "Euler"):
        images, flags = ours("a red circle", num_inference_steps=2, sampler=sampler, return_dict=False)
        assert images[0].size == (64, 64) and flags is None


@pytest.mark.parametrize("sampler", [None, "Euler a"])
@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
def test_output_types(ours, sampler, output_type):
    images = ours(["a", "b"], num_inference_steps=2, seed=1, sampler=sampler, output_type=output_type).images
    shapes = {"np": (2, 64, 64, 3), "pt": (2, 3, 64, 64), "latent": (2, 4, 8, 8)}
    if output_type == "pil":
        assert [image.size for image in images] == [(64, 64)] * 2
    else:
        assert tuple(images.shape) == shapes[output_type]


def test_a_list_of_generators_draws_each_image_alone(ours):
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    both = ours("a red circle", num_images_per_prompt=2, generator=generators, sampler="Euler a", **CALL).images
    alone = ours("a red circle", generator=torch.Generator().manual_seed(2), sampler="Euler a", **CALL).images
    assert np.abs(both[1] - alone[0]).max() < 1e-4


def test_an_image_does_not_depend_on_its_batch(ours):
    both = ours("a red circle", num_images_per_prompt=2, seed=7, sampler="DPM++ SDE", **CALL)
    alone = ours("a red circle", seed=8, sampler="DPM++ SDE", **CALL).images
    assert both.seeds == [7, 8]
    assert np.abs(both.images[1] - alone[0]).max() < 1e-3


def test_a_callback_sees_every_step_and_may_change_the_latents(ours):
    seen = []

    def watch(pipe, i, t, tensors):
        seen.append((i, float(t)))
        return {"latents": torch.zeros_like(tensors["latents"])} if i == 3 else {}

    for sampler in ("Euler", None):
        seen.clear()
        latents = ours("(a:1.1)", num_inference_steps=4, seed=1, sampler=sampler, output_type="latent",
                       callback_on_step_end=watch).images  # fmt: skip
        assert [i for i, _ in seen][:4] == [0, 1, 2, 3] and seen[0][1] > seen[3][1]
        assert sampler is None or not latents.any()


def test_interrupting_keeps_what_was_drawn(ours):
    def stop(pipe, i, t, tensors):
        pipe._interrupt = i == 1
        return {}

    images = ours("a", num_inference_steps=3, seed=1, sampler="Euler", hires_scale=2, callback_on_step_end=stop).images
    assert images[0].size == (64, 64)
    assert ours("a", num_inference_steps=2, seed=1, sampler="Euler").images[0].size == (64, 64)


def test_pipelines_are_made_from_each_other(ours, theirs):
    from_theirs = WebUITxt2ImgPipeline.from_pipe(theirs)
    assert from_theirs.unet is theirs.unet and from_theirs.text_encoder_2 is None
    assert StableDiffusionPipeline.from_pipe(ours).unet is ours.unet
    assert StableDiffusionImg2ImgPipeline.from_pipe(ours).vae is ours.vae
    picture = from_theirs("(a red circle:1.2)", seed=1, sampler="Euler", **CALL).images
    assert np.array_equal(picture, ours("(a red circle:1.2)", seed=1, sampler="Euler", **CALL).images)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_nearly_the_same(ours, dtype):
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    pipe.to(dtype)
    given = {
        "seed": 1,
        "sampler": "DPM++ 2M",
        "num_inference_steps": 3,
        "width": 32,
        "height": 32,
        "output_type": "np",
    }
    difference = np.abs(pipe("a (red:1.2) circle", **given).images - ours("a (red:1.2) circle", **given).images)
    assert difference.mean() < (0.01 if dtype == torch.float16 else 0.05)


def test_mixed_dtypes_work(ours):
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    pipe.text_encoder.to(torch.float16)
    given = {"seed": 1, "sampler": "Euler", "num_inference_steps": 2, "output_type": "np"}
    assert np.abs(pipe("a red circle", **given).images - ours("a red circle", **given).images).mean() < 0.01


def test_vae_slicing_and_tiling_and_progress_settings(ours):
    expected = ours("a", seed=1, sampler="Euler", num_inference_steps=2, output_type="np").images
    ours.vae.enable_slicing()
    ours.vae.enable_tiling()
    again = ours("a", seed=1, sampler="Euler", num_inference_steps=2, output_type="np").images
    ours.vae.disable_slicing()
    ours.vae.disable_tiling()
    assert np.allclose(expected, again, atol=1e-5)


def test_given_embeddings_stand_for_a_prompt(ours, theirs):
    embeds, negative = theirs.encode_prompt("a red circle", "cpu", 1, True, "dark")
    given = {"seed": 1, "sampler": "Euler", "num_inference_steps": 2, "output_type": "np"}
    by_embeds = ours(prompt_embeds=embeds, negative_prompt_embeds=negative, **given).images
    assert np.allclose(by_embeds, ours("a red circle", negative_prompt="dark", **given).images, atol=1e-5)
    with pytest.raises(ValueError, match="prompt_embeds"):
        ours("a", prompt_embeds=embeds, **given)


def test_the_components_make_a_pipeline_of_diffusers(ours):
    assert StableDiffusionPipeline(**ours.components).unet is ours.unet
    ours.register_modules(refiner=ours.unet)
    assert ours.components["refiner"] is ours.unet and "upscaler" not in ours.components


def test_encode_prompt_is_diffusers(ours, theirs):
    for a, b in zip(ours.encode_prompt("a", "cpu", 1, True), theirs.encode_prompt("a", "cpu", 1, True), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_unet_can_be_compiled(ours, traced):
    """A compiled UNet is an object of another class around it, whether torch traces it (12 seconds) or not."""
    expected = ours("a", seed=1, sampler="Euler", num_inference_steps=2, output_type="np").images
    ours.unet = torch.compile(ours.unet, backend="eager") if traced else OptimizedModule(ours.unet, lambda call: call)
    assert np.allclose(ours("a", seed=1, sampler="Euler", num_inference_steps=2, output_type="np").images, expected)


def test_the_global_generator_stays_where_it_is(ours):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    ours("a", seed=1, sampler="DPM++ SDE", num_inference_steps=2, hires_scale=1.5, hires_upscaler="None")
    assert torch.equal(torch.get_rng_state(), before)


REFUSED = [
    ({"sampler": "Eulr"}, "Euler"),
    ({"sampler": "Euler", "schedule": "Karas"}, "Karras"),
    ({"schedule": "Karras"}, "sampler"),
    ({"webui_options": {"emphasys": 1}}, "emphasis"),
    ({"noise_source": "gpuu", "seed": 1}, "gpu"),
    ({"width": 65}, "multiples of 8"),
    ({"width": 65, "seed": 1}, "multiples of 8"),
    ({"width": 7, "sampler": "Euler"}, "at least 8"),
    ({"hires_scale": 2, "hires_schedule": "Karras", "seed": 1}, "needs a sampler"),
    ({"prompt": "(a:1.2.3)"}, "1.2.3"),
    ({"prompt": ["a", "b"], "negative_prompt": ["x", "y " * 90], "sampler": "Euler"}, "chunks"),
    ({"prompt": ["a", "b"], "negative_prompt": ["x"], "sampler": "Euler"}, "negative_prompt"),
    ({"prompt": [], "sampler": "Euler"}, "empty"),
    ({"prompt": "<lora:nobody>"}, "nobody"),
    ({"loras": {"nobody": 1.0}}, "nobody"),
    ({"lora_backend": "webuii", "seed": 1}, "webui"),
    ({"sampler": "Euler", "num_inference_steps": 0}, "at least 1"),
    ({"hires_scale": 2, "hires_strength": 1.5}, "hires_strength"),
    ({"hires_scale": 2, "hires_upscaler": "no such file.pth"}, "no such file"),
    ({"refiner_switch_at": 0.8}, "refiner"),
    ({"seed": [1, 2, 3], "sampler": "Euler"}, "seed"),
    ({"sampelr": "Euler"}, "sampler"),
    ({"hires_scale": 2, "hires_sampler": "Eulr", "sampler": "Euler"}, "Euler"),
]


@pytest.mark.parametrize("arguments, told", REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_cannot_be_drawn_is_refused_before_any_work(ours, arguments, told):
    ran = []
    with ours.unet.register_forward_pre_hook(lambda *_: ran.append(1)), pytest.raises(ValueError, match=told):
        ours(**{"prompt": "a", "num_inference_steps": 2, **arguments})
    assert not ran
    assert len(
        ours("a", num_inference_steps=1, sampler="Euler", seed=1, width=32, height=32, output_type="latent").images
    )


@pytest.mark.parametrize(
    "prompt", ["", " ", "(" * 500, "a " * 10_000, "[[[a:b", "((((a", "a]]))", "\\", "a:1:2:3", "|"]
)
def test_strange_prompts_are_drawn(ours, prompt):
    assert ours(prompt, num_inference_steps=1, sampler="Euler", seed=1, width=32, height=32).images


def test_a_unet_for_inpainting_is_told_that_all_is_to_be_painted():
    """With zero weights on the extra channels it draws as the plain one; a UNet of another kind is refused."""
    ours = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    plain = ours("a red circle", seed=1, sampler="Euler", **CALL).images
    for channels in (9, 8):
        wide = torch.nn.Conv2d(channels, ours.unet.conv_in.out_channels, 3, padding=1)
        wide.weight.data.zero_()
        wide.weight.data[:, :4] = ours.unet.conv_in.weight.data[:, :4]
        wide.bias.data = ours.unet.conv_in.bias.data
        ours.unet.conv_in = wide
        ours.unet.register_to_config(in_channels=channels)
        if channels == 9:
            assert np.allclose(ours("a red circle", seed=1, sampler="Euler", **CALL).images, plain, atol=1e-4)
        else:
            with pytest.raises(ValueError, match="8 channels"):
                ours("a red circle", seed=1, sampler="Euler", **CALL)


def test_what_is_attached_goes_along_from_pipe_to_pipe(ours):
    ours.attached.embeddings_folder = "embeddings"
    assert WebUITxt2ImgPipeline.from_pipe(ours).attached is ours.attached


@pytest.mark.parametrize(
    "kind, name", [(StableDiffusionPipeline, "tiny-sd"), (StableDiffusionXLPipeline, "tiny-sdxl-e2e")]
)
def test_methods_and_callback_tensors_are_those_of_the_kind_of_model(kind, name):
    pipe = pipeline_around(WebUITxt2ImgPipeline, name)
    stock = kind(**{name: part for name, part in pipe.components.items() if name in signature(kind).parameters})
    assert signature(pipe.encode_prompt) == signature(stock.encode_prompt)
    assert pipe._callback_tensor_inputs == stock._callback_tensor_inputs
    seen = []

    def callback(pipe, step, timestep, tensors):
        seen.append({name: tensor is not None for name, tensor in tensors.items()})
        return tensors

    for more in ({}, {"sampler": "Euler", "seed": 1}):
        names = list(stock._callback_tensor_inputs)
        pipe(
            "a star",
            num_inference_steps=1,
            callback_on_step_end=callback,
            output_type="latent",
            **more,
            callback_on_step_end_tensor_inputs=names,
        )
    assert seen == [dict.fromkeys(names, True)] * 2
