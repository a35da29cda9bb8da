"""`padding_mask_crop`: diffusers' area around a mask, with and without a control image, a sampler, a ControlNet."""

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image
from recordings import GOLDEN
from tiny_models import pipeline_with_copies
from webui_diffusers.pipelines import WebUIImg2ImgPipeline


SIZE = (96, 80)
PLAIN = {"prompt": "a red circle", "negative_prompt": "blue", "num_inference_steps": 2, "strength": 0.8}
WEBUI = {**PLAIN, "seed": 3, "sampler": "Euler", "width": 64, "height": 64}


def noise_image(seed: int, size=SIZE) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


def square_mask() -> Image.Image:
    mask = np.zeros(SIZE[::-1], np.uint8)
    mask[20:40, 50:70] = 255
    return Image.fromarray(mask)


INIT, CONTROL, MASKED = noise_image(1), noise_image(2), {"image": noise_image(1), "mask_image": square_mask()}


def loaded(model: str, network: str):
    control = ControlNetModel.from_pretrained(GOLDEN / "controlnet" / "models" / network)
    return pipeline_with_copies(WebUIImg2ImgPipeline, model, controlnet=control)


@pytest.fixture(scope="module")
def sd():
    return loaded("tiny-sd", "tiny-controlnet")


@pytest.fixture(scope="module")
def sdxl():
    return loaded("tiny-sdxl-e2e", "tiny-controlnet-xl")


def drawn(pipe, **given):
    return np.asarray(pipe(**given, generator=torch.Generator().manual_seed(5)).images[0])


def stock(kind: type, pipe):
    own = kind.from_pipe(pipe)
    own.set_progress_bar_config(disable=True)
    return own


@pytest.mark.parametrize(
    ("base", "kind", "more"),
    [
        ("sd", StableDiffusionInpaintPipeline, {"width": 64, "height": 64}),
        ("sd", StableDiffusionControlNetInpaintPipeline, {"control_image": CONTROL}),
        ("sdxl", StableDiffusionXLInpaintPipeline, {}),
        ("sdxl", StableDiffusionXLControlNetInpaintPipeline, {"control_image": CONTROL, "width": 64, "height": 64}),
    ],
    ids=["sd", "sd-control", "sdxl", "sdxl-control"],
)
def test_with_diffusers_arguments_alone_it_is_diffusers_own(base, kind, more, request):
    pipe = request.getfixturevalue(base)
    given = {**PLAIN, **MASKED, **more, "padding_mask_crop": 8}
    assert np.array_equal(drawn(pipe, **given), drawn(stock(kind, pipe), **given))


def test_the_defaults_are_those_of_diffusers_inpainting(sd):
    given = {**PLAIN, **MASKED, "padding_mask_crop": 8}
    del given["strength"]  # 1.0 there, and 0.8 in img2img
    assert np.array_equal(drawn(sd, **given), drawn(stock(StableDiffusionInpaintPipeline, sd), **given))
    text = sd(**given, width=64, height=64, generator=torch.Generator().manual_seed(5)).infotexts[0]
    assert "Size: 64x64" in text and "Denoising strength: 1.0" in text
    assert "Inpaint area: Only masked, Masked area padding: 8" in text


@pytest.mark.parametrize("more", [{}, {"control_image": CONTROL}, {"control_units": [{"image": CONTROL}]}])
def test_with_a_sampler_it_is_the_masked_area_around_an_unblurred_mask(sd, more):
    given = {**WEBUI, **MASKED, **more}
    cropped = drawn(sd, **given, padding_mask_crop=8)
    area = {"inpaint_area": "masked", "masked_padding": 8}
    assert np.array_equal(cropped, drawn(sd, **given, **area, mask_blur=0))
    assert np.array_equal(drawn(sd, **given, padding_mask_crop=8, mask_blur=4), drawn(sd, **given, **area))
    assert np.array_equal(np.delete(cropped, np.s_[50:70], 1), np.delete(np.asarray(INIT), np.s_[50:70], 1))


def test_the_control_image_is_cut_like_the_image(sd):
    given = {**WEBUI, **MASKED, "padding_mask_crop": 8}
    whole = drawn(sd, **given, control_image=CONTROL)
    left, top, right, bottom = 42, 12, 78, 48  # 20 pixels and 8 around them: a square already
    cut = Image.new("RGB", SIZE)
    cut.paste(CONTROL.crop((left, top, right, bottom)), (left, top))
    assert np.array_equal(whole, drawn(sd, **given, control_image=cut))
    assert np.array_equal(whole, drawn(sd, **given, control_image=np.asarray(CONTROL)[None]))
    assert not np.array_equal(whole, drawn(sd, **given, control_image=noise_image(4)))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"image": INIT, "padding_mask_crop": 8}, "without a `mask_image`"),
        ({**MASKED, "padding_mask_crop": 8, "masked_padding": 4}, "say the same"),
        ({**MASKED, "padding_mask_crop": -1, "sampler": "Euler"}, "must be 0 or more"),
        ({**MASKED, "padding_mask_crop": 1.5}, "`padding_mask_crop` must be a whole number"),
        ({**MASKED, "padding_mask_crop": 8, "sampler": "Euler", "control_image": noise_image(5, (64, 64))}, "64x64"),
    ],
)
def test_what_cannot_be_cropped_is_refused(sd, given, message):
    with pytest.raises(ValueError, match=message):
        sd("a circle", **given)
