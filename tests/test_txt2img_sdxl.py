"""WebUITxt2ImgPipeline where StableDiffusionXLPipeline stood, and what the webui's story adds for SDXL."""

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionXLPipeline,
    UniPCMultistepScheduler,
)
from webui_diffusers.pipelines import PromptEncoder, WebUITxt2ImgPipeline


SCHEDULERS = [
    PNDMScheduler,
    DDIMScheduler,
    EulerDiscreteScheduler,
    EulerAncestralDiscreteScheduler,
    DPMSolverMultistepScheduler,
    UniPCMultistepScheduler,
]
CALL = {"num_inference_steps": 4, "guidance_scale": 6.0, "output_type": "np"}
EMBEDS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")


def loaded(cls: type, folder: Path, **kwargs) -> DiffusionPipeline:
    if not folder.is_dir():
        pytest.skip(f"no {folder.name} in this folder of recordings")
    pipe = cls.from_pretrained(folder, dtype=torch.float32, **kwargs)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 3) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def theirs(tiny_sdxl: Path) -> StableDiffusionXLPipeline:
    return loaded(StableDiffusionXLPipeline, tiny_sdxl)


@pytest.fixture
def ours(theirs) -> WebUITxt2ImgPipeline:
    """A new pipeline around the same components."""
    pipe = WebUITxt2ImgPipeline(**theirs.components)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(autouse=True)
def same_scheduler(theirs):
    """Tests may give the shared pipeline another scheduler."""
    before = theirs.scheduler
    yield
    theirs.scheduler = before


# ---- diffusers' own pictures


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_diffusers_arguments_alone_give_diffusers_picture(theirs, ours, scheduler):
    pictures = []
    for pipe in (theirs, ours):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        pictures.append(
            pipe(["a red circle", "a blue square"], negative_prompt=["", "dark"], generator=seeded(), **CALL).images
        )
    assert np.array_equal(*pictures)


OWN_ARGUMENTS = [
    {"original_size": (128, 96), "target_size": (80, 64), "crops_coords_top_left": (16, 8)},
    {"negative_original_size": (32, 32), "negative_target_size": (96, 64), "negative_crops_coords_top_left": (8, 0)},
    {"prompt_2": "a green star", "negative_prompt": "dark", "negative_prompt_2": "blurry"},
    {"denoising_end": 0.6, "output_type": "latent"},
    {"guidance_rescale": 0.7},
    {"clip_skip": 1},
    {"num_images_per_prompt": 2, "eta": 0.5},
    {"guidance_scale": 1.0},
    {"timesteps": [900, 600, 300, 1]},
    {"sigmas": [14.0, 5.0, 1.0]},
    {"width": 96, "height": 48},
]


@pytest.mark.parametrize("arguments", OWN_ARGUMENTS, ids=["-".join(a) for a in OWN_ARGUMENTS])
def test_each_argument_of_diffusers_means_what_it_means_there(theirs, ours, arguments):
    given = {"prompt": "a red circle", **CALL, **arguments}
    for pipe in (theirs, ours):
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    expected = np.asarray(theirs(**given, generator=seeded()).images)
    assert np.array_equal(np.asarray(ours(**given, generator=seeded()).images), expected)
    plain = np.asarray(ours("a red circle", **CALL, generator=seeded()).images)
    assert plain.shape != expected.shape or not np.array_equal(plain, expected)


# ---- the same arguments on our road: a prompt with syntax that changes nothing


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_our_loop_around_a_scheduler_is_diffusers_loop(theirs, ours, scheduler):
    noise = torch.randn((1, 4, 8, 8), generator=seeded(1))
    for pipe in (theirs, ours):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    given = {"latents": noise, **CALL, "output_type": "latent"}
    expected = theirs("a red circle", generator=seeded(5), **given).images
    actual = ours("(a red circle:1.0)", generator=seeded(5), **given).images
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("arguments", OWN_ARGUMENTS, ids=["-".join(a) for a in OWN_ARGUMENTS])
def test_each_argument_means_the_same_on_our_road(theirs, ours, arguments):
    if "clip_skip" in arguments:
        pytest.skip("clip skip is read as the webui does on this road")
    given = {**CALL, **arguments, "output_type": "latent"}
    given |= {"generator": seeded()} if "eta" not in given else {"generator": [seeded(3), seeded(4)]}
    for pipe in (theirs, ours):
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    expected = theirs("a red circle", **given).images
    given |= {"generator": seeded()} if "eta" not in given else {"generator": [seeded(3), seeded(4)]}
    torch.testing.assert_close(ours("(a red circle:1.0)", **given).images, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sizes", [{}, *OWN_ARGUMENTS[:3], {"guidance_rescale": 0.7}], ids=str)
def test_euler_by_name_is_diffusers_euler_at_equal_sigmas_and_noise(theirs, ours, sizes):
    theirs.scheduler = EulerDiscreteScheduler.from_config(theirs.scheduler.config, timestep_spacing="linspace")
    noise = torch.randn((1, 4, 8, 8), generator=seeded(1))
    given = {"num_inference_steps": 6, "guidance_scale": 5.0, "output_type": "latent", **sizes}
    expected = theirs("a red circle", latents=noise, **given).images
    theirs.scheduler.set_timesteps(6)
    start = noise * theirs.scheduler.init_noise_sigma / theirs.scheduler.sigmas[0]
    actual = ours("a red circle", latents=start, sampler="Euler", seed=1, **given).images
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


# ---- texts


@pytest.mark.parametrize("negative", [None, "blurry", "a dark night, grainy"])
@pytest.mark.parametrize("prompt", ["a red circle", "", "two red circles, on a field of blue"])
def test_a_plain_prompt_is_encoded_as_diffusers_does(theirs, prompt, negative):
    expected = theirs.encode_prompt(prompt, device="cpu", negative_prompt=negative)
    encoded = PromptEncoder.from_pipe(theirs)(prompt, negative)
    for name, tensor in zip(EMBEDS, expected, strict=True):
        assert torch.equal(encoded[name], tensor), name
