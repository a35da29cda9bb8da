"""img2img and inpainting: recorded runs of the webui drawn again, diffusers' pictures where only diffusers' arguments
are used, and what masks, generators and inpainting UNets do."""

from collections.abc import Iterator
from copy import deepcopy
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    UNet2DConditionModel,
)
from PIL import Image, ImageDraw
from recorded_jobs import drawn_and_latents, sampling_arguments
from recordings import GOLDEN, recorded_runs
from safetensors.torch import load_file
from tiny_models import pipeline_around, pipeline_with_copies
from webui_diffusers.pipelines import WebUIImg2ImgPipeline, WebUITxt2ImgPipeline
from webui_diffusers.pipelines.images.fit import RESIZE_MODES
from webui_diffusers.pipelines.images.init_image import MASKED_CONTENTS, batch_rows, pictures_to_start_from
from webui_diffusers.pipelines.infotext import parse_infotext


MODELS = {"sampling": "tiny-sd", "sampling_xl": "tiny-sdxl-e2e"}
LOOSE = ("SDE", "adaptive", "PLMS")  # they amplify the last bits of a UNet
UNSET = {"seed_resize_from_w": 0, "seed_resize_from_h": 0}  # what the SDXL recordings leave out
PLAIN = {"num_inference_steps": 4, "guidance_scale": 6.0, "output_type": "np"}
WEBUI = {"num_inference_steps": 2, "guidance_scale": 6.0, "seed": 1, "sampler": "Euler"}


def runs() -> list:
    """Every recorded img2img run."""
    return [
        pytest.param(folder, run, GOLDEN / folder / "e2e" / f"{run['name']}.safetensors", id=f"{folder}-{run['name']}")
        for folder, count in (("sampling", 19), ("sampling_xl", 1))
        for run in recorded_runs(f"{folder}/e2e.json", "img2img", count)
    ]


@lru_cache(maxsize=2)
def recorded_pipeline(name: str) -> WebUIImg2ImgPipeline:
    return pipeline_with_copies(WebUIImg2ImgPipeline, name)


@pytest.fixture
def ours() -> Iterator[WebUIImg2ImgPipeline]:
    pipe = recorded_pipeline("tiny-sd")
    components = dict(pipe.components)
    yield pipe
    pipe.register_modules(**components)


@pytest.fixture
def theirs(ours: WebUIImg2ImgPipeline) -> StableDiffusionImg2ImgPipeline:
    return stock(StableDiffusionImg2ImgPipeline, ours)


def stock(kind: type, pipe: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline of diffusers' around the models of one of ours."""
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
    made = kind(**{name: pipe.components[name] for name in names}, safety_checker=None, feature_extractor=None)
    made.set_progress_bar_config(disable=True)
    return made


def photo(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def box_mask(box: tuple[int, int, int, int], width: int = 64, height: int = 64) -> Image.Image:
    """White inside the box; right and bottom are outside of it."""
    mask = Image.new("L", (width, height))
    ImageDraw.Draw(mask).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill=255)
    return mask


def seeded(number: int) -> torch.Generator:
    return torch.Generator().manual_seed(number)


def sharp_vae(vae: AutoencoderKL) -> AutoencoderKL:
    """A copy that encodes a picture the same way each time, nearly, as the VAEs of Stable Diffusion do."""
    vae, channels = deepcopy(vae), vae.config.latent_channels
    vae.quant_conv.weight.data[channels:] = 0
    vae.quant_conv.bias.data[channels:] = -30
    return vae


# --- recorded runs


def arguments(run: dict, stored: dict) -> dict:
    """The keyword arguments that a recorded job stands for."""
    p, options, batch = {**UNSET, **run["params"]}, run["options"], len(run["all_seeds"])
    given = {
        "prompt": [p["prompt"]] * batch,
        "negative_prompt": p["negative_prompt"],
        "image": [Image.fromarray(levels.numpy()) for levels in stored["in_image"]],
        "strength": p["denoising_strength"],
        "resize_mode": RESIZE_MODES[p["resize_mode"]],
        **sampling_arguments(p, options),
    }
    if "in_mask" in stored:
        given |= {
            "mask_image": Image.fromarray(stored["in_mask"].numpy()),
            "mask_blur": (p["mask_blur_x"], p["mask_blur_y"]),
            "masked_content": MASKED_CONTENTS[p["inpainting_fill"]],
            "inpaint_area": "masked" if p["inpaint_full_res"] else "whole",
            "masked_padding": p["inpaint_full_res_padding"],
            "invert_mask": bool(p["inpainting_mask_invert"]),
            "soft_mask": not p["mask_round"],
        }
    return given


@pytest.mark.goldens
@pytest.mark.parametrize("folder, run, file", runs())
def test_the_picture_is_the_webuis(folder: str, run: dict, file: Path):
    stored, pipe = load_file(file), recorded_pipeline(MODELS[folder])
    given = arguments(run, stored)
    torch.manual_seed(run["global_seed_before_run"])
    drawn, latents = drawn_and_latents(pipe, given)
    tolerance = 1e-3 if any(word in given["sampler"] for word in LOOSE) else 1e-4
    torch.testing.assert_close(latents, stored["latents"], atol=tolerance, rtol=0)
    pictures = np.stack([np.asarray(picture) for picture in drawn.images])
    assert np.abs(pictures.astype(int) - stored["images"].numpy()).max() <= 1
    fields = parse_infotext(drawn.infotexts[0])
    assert {label: fields.get(label) for label in run["infotext_extra"]} == {
        label: str(value) for label, value in run["infotext_extra"].items()
    }


# --- in the place of diffusers' pipelines


@pytest.mark.parametrize(
    "scheduler", [PNDMScheduler, DDIMScheduler, EulerDiscreteScheduler, EulerAncestralDiscreteScheduler]
)
def test_diffusers_arguments_alone_give_diffusers_picture(theirs, ours, scheduler):
    pictures = []
    for pipe in (theirs, ours):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
        images = [photo(seed=1), photo(seed=2)]
        pictures.append(pipe(["a red circle", "dark"], images, 0.6, generator=seeded(3), **PLAIN))
    assert np.array_equal(pictures[0].images, pictures[1].images)
    assert pictures[1].nsfw_content_detected is None


def test_sdxl_is_diffusers_too():
    theirs = pipeline_around(StableDiffusionXLImg2ImgPipeline, "tiny-sdxl-e2e", add_watermarker=False)
    ours = recorded_pipeline("tiny-sdxl-e2e")
    for given in (
        {"strength": 0.6, "negative_prompt": "dark"},
        {"crops_coords_top_left": (8, 0), "guidance_rescale": 0.5},
        {"denoising_start": 0.4, "denoising_end": 0.9, "output_type": "latent"},
    ):
        pictures = [
            pipe("a red circle", image=photo(), generator=seeded(2), **{**PLAIN, **given}).images
            for pipe in (theirs, ours)
        ]
        assert np.array_equal(*pictures)


def test_positions_of_arguments_and_kinds_of_images_are_diffusers(theirs, ours):
    levels = np.asarray(photo()).astype(np.float32) / 255
    tensor = torch.from_numpy(levels).permute(2, 0, 1)[None]
    latents = torch.randn((1, 4, 8, 8), generator=seeded(9))
    for image in (photo(66, 70), levels[None], tensor, latents):
        first, second = (
            pipe("a red circle", image, 0.5, 4, generator=seeded(0), output_type="np").images
            for pipe in (theirs, ours)
        )
        assert np.array_equal(first, second)


OURS = "a red [circle:circle:0.5]"  # an edit that changes nothing sends a call through our denoiser


def test_a_scheduler_takes_the_timesteps_that_are_named(theirs, ours):
    given = {**PLAIN, "image": photo(), "strength": 0.7, "timesteps": [900, 700, 500, 300, 100]}
    for pipe in (theirs, ours):
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    expected = theirs("a red circle", generator=seeded(5), **given).images
    assert np.abs(ours(OURS, generator=seeded(5), **given).images - expected).max() < 1e-4


@pytest.mark.parametrize("scheduler", [PNDMScheduler, DDIMScheduler, EulerAncestralDiscreteScheduler])
def test_our_loop_around_a_scheduler_is_diffusers_loop(theirs, ours, scheduler):
    for pipe in (theirs, ours):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    given = {**PLAIN, "image": photo(), "strength": 0.7}
    expected = theirs(["a red circle", "dark"], generator=seeded(5), **given).images
    assert np.abs(ours([OURS, "dark"], generator=seeded(5), **given).images - expected).max() < 1e-4


def test_transparent_pictures_are_laid_on_a_colour_before_diffusers_sees_them(ours):
    transparent = photo().convert("RGBA")
    transparent.putalpha(box_mask((0, 0, 32, 64)))
    flat = Image.new("RGB", (64, 64), "white")
    flat.paste(transparent, mask=transparent)
    for given in ({}, {"sampler": "Euler", "seed": 1}):
        first, second = (ours("a", i, 0.5, generator=seeded(1), **PLAIN, **given).images for i in (transparent, flat))
        assert np.array_equal(first, second)


def test_pipelines_are_made_from_each_other(ours, theirs):
    made = WebUIImg2ImgPipeline.from_pipe(pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd"))
    given = {**WEBUI, "image": photo(), "output_type": "np", "generator": seeded(1)}
    expected = ours("(a red circle:1.2)", **given).images
    given["generator"].manual_seed(1)
    assert np.array_equal(made("(a red circle:1.2)", **given).images, expected)
    assert WebUITxt2ImgPipeline.from_pipe(made).unet is made.unet
    assert WebUIImg2ImgPipeline.from_pipe(theirs).vae is theirs.vae


# --- the noise of the VAE's encoding


def test_the_encodings_noise_is_torchs_global_or_the_generators(ours):
    def draw(generator: torch.Generator | None = None) -> torch.Tensor:
        return ours("a", photo(), 0.5, **WEBUI, generator=generator, output_type="latent").images

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert torch.equal(draw(), first) and not torch.equal(first, second)
    before = torch.get_rng_state()
    assert torch.equal(draw(seeded(3)), first)  # the same stream of numbers, from another place
    assert torch.equal(torch.get_rng_state(), before)


def test_images_that_share_a_picture_are_encoded_each_and_stay_independent(ours):
    generators = [seeded(5), seeded(6)]
    given = {**WEBUI, "num_inference_steps": 4, "output_type": "latent"}
    both = ours("a", photo(), 0.5, **given, num_images_per_prompt=2, generator=generators)
    alone = ours("a", photo(), 0.5, **{**given, "seed": 2}, generator=seeded(6)).images
    assert both.seeds == [1, 2]
    assert (both.images[1] - alone[0]).abs().max() < 1e-4


def test_batch_rows_pair_pictures_with_prompts():
    assert batch_rows(2, 2, 3) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="3 pictures for 2 prompts"):
        batch_rows(3, 2, 2)


def test_one_prompt_may_be_drawn_over_many_pictures(ours):
    given = {**WEBUI, "strength": 0.5, "output_type": "np"}
    images = ours("a", [photo(seed=1), photo(seed=2)], generator=[seeded(1), seeded(2)], **given).images
    alone = ours("a", photo(seed=2), generator=seeded(2), **{**given, "seed": 2}).images
    assert len(images) == 2 and np.abs(images[1] - alone[0]).max() < 1e-4


# --- strength and sizes


@pytest.mark.parametrize("sampler", ["Euler a", "DPM++ 2M", "DDIM", "PLMS", "Restart", "LCM", "DPM++ SDE"])
def test_a_strength_of_0_still_runs_the_last_step(ours, sampler):
    """As in the webui: int(0 * steps) + 1 steps, at the least noise there is. The picture hardly changes."""
    latents = torch.randn((1, 4, 8, 8), generator=seeded(4))
    given = {**WEBUI, "sampler": sampler, "strength": 0.0, "image": latents, "output_type": "latent"}
    drawn = ours("a", **{**given, "num_inference_steps": 40}).images
    assert 0 < (drawn - latents).abs().max() < 1.5
    kept = ours("a", **given, webui_options={"img2img_fix_steps": True}).images
    assert torch.equal(kept, latents)
    assert torch.equal(ours("(a:1.1)", **{**given, "sampler": None}).images, latents)


@pytest.mark.parametrize("mode", RESIZE_MODES)
def test_every_resize_mode_gives_the_size_asked_for(ours, mode):
    images = ours("a", photo(96, 64), 0.5, **WEBUI, width=64, height=80, resize_mode=mode).images
    assert images[0].size == (64, 80)


def test_the_size_is_the_pictures_in_whole_cells(ours):
    assert ours("a", photo(75, 90), 0.5, **WEBUI).images[0].size == (72, 88)


# --- masks


@pytest.mark.parametrize("area", ["whole", "masked"])
@pytest.mark.parametrize("content", MASKED_CONTENTS)
def test_what_the_mask_leaves_out_keeps_every_bit(ours, area, content):
    image, mask = photo(96, 64), box_mask((24, 16, 56, 48), 96, 64)
    given = {"mask_image": mask, "mask_blur": 2, "masked_content": content, "inpaint_area": area, "masked_padding": 8}
    drawn = np.asarray(ours("a red circle", image, 0.9, **WEBUI, **given).images[0]).astype(int)
    kept = np.asarray(image).astype(int)
    assert drawn.shape == kept.shape
    assert (drawn[:8] == kept[:8]).all() and (drawn[:, 64:] == kept[:, 64:]).all()
    assert np.abs(drawn[20:44, 28:52] - kept[20:44, 28:52]).mean() > 4


def test_an_inverted_mask_is_the_inverse_mask(ours):
    mask = box_mask((16, 16, 48, 48))
    inverse = Image.eval(mask, lambda level: 255 - level)
    first, second = (
        ours("a", photo(), 0.7, **WEBUI, generator=seeded(1), mask_image=m, invert_mask=inverted, output_type="latent")
        for m, inverted in ((mask, True), (inverse, False))
    )
    assert torch.equal(first.images, second.images)


def test_a_transparent_mask_and_arrays_are_masks_too(ours):
    mask = box_mask((16, 16, 48, 48))
    drawn = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    drawn.putalpha(mask)
    levels = np.asarray(mask)
    kinds = [mask, drawn, levels, levels.astype(np.float32) / 255, levels > 0, torch.from_numpy(levels)[None] / 255]
    latents = [
        ours("a", photo(), 0.7, **WEBUI, generator=seeded(1), mask_image=kind, output_type="latent").images
        for kind in kinds
    ]
    assert all(torch.equal(one, latents[0]) for one in latents[1:])


def test_an_empty_mask_makes_only_masked_plain_img2img(ours):
    given = {**WEBUI, "strength": 0.6, "output_type": "np"}
    plain = ours("a", photo(), generator=seeded(1), **given).images
    empty = Image.new("L", (64, 64))
    masked = ours("a", photo(), generator=seeded(1), mask_image=empty, inpaint_area="masked", **given).images
    assert np.array_equal(plain, masked)
    whole = ours("a", photo(), generator=seeded(1), mask_image=empty, **given).images
    assert np.array_equal((whole[0] * 255).round(), np.asarray(photo()))


@pytest.mark.parametrize("area", ["whole", "masked"])
def test_a_mask_of_another_size_is_brought_to_the_pictures(ours, area):
    small, large = box_mask((16, 16, 48, 48)), box_mask((32, 32, 96, 96), 128, 128)
    given = {**WEBUI, "strength": 0.7, "inpaint_area": area, "mask_blur": 0, "output_type": "latent"}
    first, second = (ours("a", photo(), generator=seeded(1), mask_image=m, **given).images for m in (small, large))
    assert (first - second).abs().max() < 0.05


def test_masks_work_with_resize_mode_latent(ours):
    given = {**WEBUI, "mask_image": box_mask((16, 16, 48, 48)), "masked_content": "fill", "resize_mode": "latent"}
    assert ours("a", photo(), 0.7, **given, width=96, height=80).images[0].size == (96, 80)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("sampler", [None, "Euler"])
def test_output_types_of_a_masked_batch(ours, output_type, sampler):
    given = {**WEBUI, "sampler": sampler, "mask_image": box_mask((16, 16, 48, 48)), "output_type": output_type}
    images = ours(["a", "b"], photo(), 0.5, **given).images
    if output_type == "pil":
        assert [image.size for image in images] == [(64, 64)] * 2
    else:
        shapes = {"np": (2, 64, 64, 3), "pt": (2, 3, 64, 64), "latent": (2, 4, 8, 8)}
        assert tuple(images.shape) == shapes[output_type]


def test_the_overlay_and_the_colours_are_options(ours):
    given = {**WEBUI, "strength": 0.8, "mask_image": box_mask((16, 16, 48, 48)), "output_type": "np"}
    pictures = [
        ours("a", photo(), generator=seeded(1), webui_options=options, **given).images
        for options in ({}, {"overlay_inpaint": False}, {"img2img_color_correction": True})
    ]
    outside = [np.abs(picture[0, :8, :8] * 255 - np.asarray(photo())[:8, :8]).max() for picture in pictures]
    assert outside[0] < 0.5 < outside[1] and outside[2] < 0.5
    assert not np.array_equal(pictures[0], pictures[2])


@pytest.mark.parametrize("scheduler", [DDIMScheduler, EulerDiscreteScheduler])
def test_a_mask_with_a_scheduler_is_diffusers_inpainting(ours, scheduler):
    theirs = stock(StableDiffusionInpaintPipeline, ours)
    for pipe in (theirs, ours):
        pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    given = {"image": photo(), "mask_image": box_mask((16, 8, 48, 40)), "strength": 0.7, "num_inference_steps": 6}
    given |= {"guidance_scale": 6.0, "output_type": "latent"}
    expected = theirs("a red circle", generator=seeded(1), **given).images
    drawn = ours("a red circle", generator=seeded(1), mask_blur=0, **given).images
    assert (drawn - expected).abs().max() < 1e-3


# --- UNets made for inpainting


def inpainting_unet(unet: UNet2DConditionModel, seed: int | None) -> UNet2DConditionModel:
    """The UNet with five more channels, which it does not hear (None), or hears by random weights."""
    wide = UNet2DConditionModel.from_config({**unet.config, "in_channels": 9})
    weights = unet.state_dict()
    first = weights["conv_in.weight"]
    extra = torch.zeros(first.shape[0], 5, 3, 3)
    if seed is not None:
        extra = torch.randn(extra.shape, generator=seeded(seed)) * 0.05
    weights["conv_in.weight"] = torch.cat([first, extra], dim=1)
    wide.load_state_dict(weights)
    return wide.eval()


def heard_channels(pipe: DiffusionPipeline, **given) -> torch.Tensor:
    """What the UNet is shown beside the latent of the first row of its first run."""
    seen = []
    hook = pipe.unet.conv_in.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][0, 4:].clone()))
    pipe(**given)
    hook.remove()
    assert all(torch.equal(one, seen[0]) for one in seen)
    return seen[0]


def test_an_inpainting_unet_is_shown_what_diffusers_shows_it(ours):
    ours.register_modules(unet=inpainting_unet(ours.unet, 1), vae=sharp_vae(ours.vae))
    theirs = stock(StableDiffusionInpaintPipeline, ours)
    given = {"prompt": "a", "image": photo(), "mask_image": box_mask((16, 8, 48, 40)), "strength": 0.7}
    given |= {"num_inference_steps": 3, "generator": seeded(1)}
    expected = heard_channels(theirs, **given)
    for sampler in ("Euler", None):
        assert (heard_channels(ours, **given, sampler=sampler, mask_blur=0) - expected).abs().max() < 1e-4


def test_an_inpainting_unet_that_does_not_listen_draws_as_a_plain_one(ours):
    ours.register_modules(vae=sharp_vae(ours.vae))
    given = {**WEBUI, "num_inference_steps": 4, "prompt": "a", "image": photo(), "strength": 0.7}
    given["output_type"] = "latent"
    for mask in (None, box_mask((16, 8, 48, 40))):
        plain = ours(**given, mask_image=mask).images
        unet = ours.unet
        ours.register_modules(unet=inpainting_unet(unet, None))
        assert (ours(**given, mask_image=mask).images - plain).abs().max() < 1e-4
        ours.register_modules(unet=unet)


def test_an_inpainting_unet_without_a_mask_is_told_to_draw_everything(ours):
    ours.register_modules(unet=inpainting_unet(ours.unet, 1), vae=sharp_vae(ours.vae))
    given = {**WEBUI, "prompt": "a", "image": photo(), "strength": 0.7}
    shown = heard_channels(ours, **given)
    assert (shown[0] == 1).all() and tuple(shown.shape) == (5, 8, 8)
    open_eyed = heard_channels(ours, **given, webui_options={"inpainting_mask_weight": 0.0})
    assert not torch.equal(shown[1:], open_eyed[1:])  # the option shows the picture all the same


# --- during a call


def test_a_callback_sees_every_step_and_may_stop(ours):
    seen = []

    def stop(pipe, i, t, tensors):
        seen.append(tensors["latents"].clone())
        pipe._interrupt = i == 1
        return {}

    given = {**WEBUI, "num_inference_steps": 10, "output_type": "latent"}
    latents = ours("a", photo(), 0.8, **given, callback_on_step_end=stop).images
    assert len(seen) == 2 and torch.equal(latents, seen[1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_draws_nearly_the_same(ours, dtype):
    half = pipeline_with_copies(WebUIImg2ImgPipeline, "tiny-sd").to(dtype)
    given = {**WEBUI, "strength": 0.6, "mask_image": box_mask((8, 8, 24, 24), 32, 32), "output_type": "np"}
    first, second = (
        pipe("a (red:1.2) circle", photo(32, 32), generator=seeded(1), **given).images for pipe in (ours, half)
    )
    assert np.abs(first - second).mean() < 0.05


def test_tuples_and_networks_reports_are_as_in_txt2img(ours):
    images, flags = ours("a", photo(), 0.5, **WEBUI, return_dict=False)
    assert images[0].size == (64, 64) and flags is None
    assert ours.network_report() == "No networks were in use."


# --- errors

REFUSED = [
    ({"resize_mode": "strech"}, "stretch"),
    ({"masked_content": "latent nois"}, "latent noise"),
    ({"inpaint_area": "mask"}, "masked"),
    ({"strength": 1.5}, "strength"),
    ({"strength": -0.1}, "strength"),
    ({"strength": float("nan")}, "strength"),
    ({"mask_blur": -1}, "mask_blur"),
    ({"mask_blur": (1, 2, 3)}, "mask_blur"),
    ({"masked_padding": -1}, "masked_padding"),
    ({"image": None}, "image"),
    ({"image": []}, "empty"),
    ({"image": "photo.png"}, "open"),
    ({"image": np.zeros((64, 64, 5), np.uint8)}, "channels"),
    ({"image": np.full((64, 64, 3), 7.0)}, "from 0 to 1"),
    ({"image": torch.full((3, 64, 64), -1.0)}, "from 0 to 1"),
    ({"image": [photo(), photo(), photo()], "prompt": ["a", "b"]}, "3 pictures"),
    ({"mask_image": [Image.new("L", (64, 64))] * 2}, "one mask"),
    ({"mask_image": "mask.png"}, "mask_image"),
    ({"image": torch.zeros(1, 4, 8, 8), "mask_image": Image.new("L", (64, 64))}, "latents"),
    ({"image": torch.zeros(1, 4, 8, 8), "width": 128}, "cells"),
    ({"image": [photo(), photo(72)], "prompt": ["a", "b"], "resize_mode": "latent"}, "one for all"),
    (
        {"image": [photo(), photo(72)], "prompt": ["a", "b"], "mask_image": box_mask((9, 9, 30, 30)),
         "inpaint_area": "masked"},
        "one size",
    ),
    ({"width": 65, "sampler": None}, "multiples of 8"),
    ({"timesteps": [900, 500, 100]}, "timesteps"),
    ({"denoising_start": 0.5}, "denoising_start"),
    ({"latents": torch.zeros(1, 4, 8, 8)}, "latents"),
    ({"prompt_2": "b"}, "prompt_2"),
    ({"sampler": "Eulr"}, "Euler"),
    ({"mask_imag": photo()}, "mask_image"),
    ({"webui_options": {"img2img_fix_step": True}}, "img2img_fix_steps"),
    ({"prompt": "<lora:nobody>"}, "nobody"),
    ({"refiner_switch_at": 0.8}, "refiner"),
]  # fmt: skip


@pytest.mark.parametrize("arguments, told", REFUSED, ids=[str(i) for i in range(len(REFUSED))])
def test_what_cannot_be_drawn_is_refused_before_any_work(ours, arguments, told):
    ran = []
    hooks = [m.register_forward_pre_hook(lambda *_: ran.append(1)) for m in (ours.unet, ours.vae.encoder)]
    with pytest.raises(ValueError, match=told):
        ours(**{"prompt": "a", "image": photo(), "strength": 0.5, **WEBUI, **arguments})
    for hook in hooks:
        hook.remove()
    assert not ran


def test_a_unet_for_other_tasks_is_refused(ours):
    ours.register_modules(unet=UNet2DConditionModel.from_config({**ours.unet.config, "in_channels": 5}))
    with pytest.raises(ValueError, match="5 channels"):
        ours("a", photo(), 0.5, **WEBUI)


def test_pictures_survive_the_way_in():
    levels = np.asarray(photo(24, 16))
    floats = levels.astype(np.float32) / 255
    tensor = torch.from_numpy(floats).permute(2, 0, 1)
    for image in (levels, levels[None], [levels], floats, tensor, tensor[None], [tensor], Image.fromarray(levels)):
        (picture,) = pictures_to_start_from(image, "image")
        assert np.array_equal(np.asarray(picture), levels)
