"""Pictures and masks of img2img and inpainting, from what the user gives to what the VAE sees, and back."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from recordings import GOLDEN
from safetensors import safe_open
from safetensors.torch import load_file
from webui_diffusers.pipelines.images.color_match import match_colors
from webui_diffusers.pipelines.images.fit import (
    RESIZE_MODES,
    fill_masked,
    fit_picture,
    flatten_picture,
    resize_latents,
)
from webui_diffusers.pipelines.images.masks import (
    MaskArea,
    composite_overlay,
    doubled_mask,
    latent_masks,
    masked_area,
    overlay_picture,
    prepare_mask,
)
from webui_diffusers.pipelines.images.opencv import blur_mask, lab_to_rgb, mask_blur_taps, rgb_to_lab
from webui_diffusers.pipelines.images.vae import encode_pictures, latents_to_pixels, pixels_to_vae_input


CONTENT_FILL, CONTENT_ORIGINAL, CONTENT_NOISE, CONTENT_NOTHING = range(4)
AREAS = [  # box of the mask, picture, job, padding -> area
    ((40, 40, 80, 60), (160, 128), (64, 64), 8, (32, 22, 88, 78)),
    ((0, 0, 10, 50), (160, 128), (64, 64), 0, (0, 0, 50, 50)),
    ((100, 100, 160, 110), (160, 128), (64, 64), 0, (100, 68, 160, 128)),
    ((0, 10, 160, 20), (160, 128), (64, 64), 0, (0, 0, 160, 128)),
    ((70, 20, 75, 90), (160, 128), (96, 64), 16, (0, 4, 153, 106)),
]


def img2img_runs() -> list:
    """Every recorded img2img run whose file is there; "tiling" runs through a VAE with other padding."""
    found = []
    for family, model in (("sampling", "tiny-sd"), ("sampling_xl", "tiny-sdxl-e2e")):
        table = GOLDEN / family / "e2e.json"
        if table.is_file() and (GOLDEN / model / "vae").is_dir():
            for run in json.loads(table.read_text())["runs"]:
                file = GOLDEN / family / "e2e" / f"{run['name']}.safetensors"
                if run["kind"] == "img2img" and has_tensors(file) and not run["params"].get("tiling"):
                    found.append(pytest.param(run, file, model, id=f"{family}-{run['name']}"))
    return found


def has_tensors(file: Path) -> bool:
    """Whether the recording is there with its pictures; some are kept for their latents alone."""
    if not file.is_file():
        return False
    with safe_open(file, "pt") as tensors:
        return {"in_image", "images", "vae_enc_sample"} <= set(tensors.keys())


@pytest.fixture(scope="session")
def vaes() -> dict[str, AutoencoderKL]:
    folders = {model: GOLDEN / model / "vae" for model in ("tiny-sd", "tiny-sdxl-e2e")}
    return {
        model: AutoencoderKL.from_pretrained(folder).eval() for model, folder in folders.items() if folder.is_dir()
    }


def prepared(run: dict, stored: dict) -> tuple:
    """(pictures, mask, overlays, area): the road of masks.py down to the VAE."""
    p, options = run["params"], run["options"]
    width, height, mode = p["width"], p["height"], RESIZE_MODES[p["resize_mode"]]
    pictures = [
        flatten_picture(Image.fromarray(levels.numpy()), options.get("img2img_background_color", "#ffffff"))
        for levels in stored["in_image"]
    ]
    mask = area = None
    overlays: list[Image.Image] = []
    if "in_mask" in stored:
        mask = prepare_mask(
            Image.fromarray(stored["in_mask"].numpy()),
            invert=bool(p["inpainting_mask_invert"]),
            blur=(p["mask_blur_x"], p["mask_blur_y"]),
            soft=not p["mask_round"],
        )
        if p["inpaint_full_res"]:
            area = masked_area(mask, (width, height), p["inpaint_full_res_padding"])
            mask = None if area is None else mask
    if area is not None:
        overlays = [overlay_picture(picture, mask) for picture in pictures]
        pictures = [fit_picture(picture.crop(area), width, height, "fill") for picture in pictures]
        mask = fit_picture(mask.crop(area), width, height, "fill")
    elif mode != "latent":
        pictures = [fit_picture(picture, width, height, mode) for picture in pictures]
    if mask is not None and area is None:
        mask = fit_picture(mask, width, height, mode)
        overlays = [overlay_picture(picture, doubled_mask(mask)) for picture in pictures]
    if mask is not None and p["inpainting_fill"] != CONTENT_ORIGINAL:
        pictures = [fill_masked(picture, mask) for picture in pictures]
    count = p["batch_size"]
    return (pictures * count)[:count], mask, (overlays * count)[:count], area


@torch.no_grad()
@pytest.mark.goldens
@pytest.mark.parametrize("run, file, model", img2img_runs())
def test_pictures_and_masks_become_the_recorded_latents(run, file, model, vaes):
    p, stored, vae = run["params"], load_file(file), vaes[model]
    pictures, mask, _, _ = prepared(run, stored)
    generator = torch.Generator().manual_seed(run["global_seed_before_run"])
    latents = encode_pictures(vae, pixels_to_vae_input(pictures), generator)
    samples = torch.cat([stored[key] for key in ("vae_enc_sample", "vae_enc_sample.2") if key in stored])
    assert torch.allclose(latents, samples, atol=1e-5)
    if RESIZE_MODES[p["resize_mode"]] == "latent":
        latents = resize_latents(latents, p["width"], p["height"])
    if mask is not None:
        keep, change = latent_masks(mask, latents, soft=not p["mask_round"])
        assert torch.equal(keep, stored["latent_mask_keep"]) and torch.equal(change, stored["latent_mask_change"])
        if p["inpainting_fill"] == CONTENT_NOISE:
            latents = latents * keep + stored["noise"] * change
        if p["inpainting_fill"] == CONTENT_NOTHING:
            latents = latents * keep
        if "sampled" in stored:
            assert torch.allclose(stored["sampled"] * change + latents * keep, stored["latents"], atol=1e-5)
    assert torch.allclose(latents, stored["init_latent"], atol=1e-5)


@torch.no_grad()
@pytest.mark.goldens
@pytest.mark.parametrize("run, file, model", img2img_runs())
def test_final_latents_become_the_recorded_pictures(run, file, model, vaes):
    stored = load_file(file)
    encoded, _, overlays, area = prepared(run, stored)
    pictures = [Image.fromarray(levels) for levels in latents_to_pixels(vaes[model], stored["latents"])]
    if run["options"].get("img2img_color_correction"):
        pictures = [match_colors(picture, reference) for picture, reference in zip(pictures, encoded)]
    if overlays and run["options"].get("overlay_inpaint", True):
        pictures = [composite_overlay(picture, overlay, area) for picture, overlay in zip(pictures, overlays)]
    difference = np.abs(np.stack([np.asarray(p).astype(int) for p in pictures]) - stored["images"].numpy())
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


@pytest.mark.parametrize("box, picture, job, padding, area", AREAS)
def test_the_area_around_a_mask(box, picture, job, padding, area):
    mask = Image.new("L", picture)
    mask.paste(255, box)
    assert masked_area(mask, job, padding) == area


def test_a_black_mask_has_no_area():
    assert masked_area(Image.new("L", (40, 30)), (64, 64), 8) is None


def test_a_blurred_point_is_opencvs():
    """cv2.GaussianBlur of one white pixel, kernel (21, 1), sigma 4; OpenCV 4.11 and 5.0."""
    row = np.zeros((1, 41), np.uint8)
    row[0, 20] = 255
    half = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 4, 5, 9, 11, 16, 19, 23, 25]
    assert blur_mask(row, 4, 0)[0].tolist() == [*half, 26, *half[::-1]]
    assert np.array_equal(blur_mask(row.T, 0, 4), blur_mask(row, 4, 0).T)


def test_blurred_masks_equal_opencvs():
    cv2 = pytest.importorskip("cv2", reason="parity with OpenCV needs opencv-python")
    blurs, shapes = (0.1, 0.3, 0.5, 1, 1.3, 2.5, 4, 6, 16, 33, 64), ((40, 64), (7, 5), (1, 9), (90, 130))
    for blur, shape in itertools.product(blurs, shapes):
        size = 2 * int(2.5 * blur + 0.5) + 1
        mask = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)
        assert np.array_equal(blur_mask(mask, blur, 0), cv2.GaussianBlur(mask, (size, 1), blur))
        assert np.array_equal(blur_mask(mask, 0, blur), cv2.GaussianBlur(mask, (1, size), blur))


@given(st.floats(0.05, 80))
def test_blur_taps_add_up_to_one_and_fall_off(blur):
    taps = mask_blur_taps(blur)
    assert sum(taps) == 256 and taps == taps[::-1] and len(taps) % 2 == 1
    assert len(taps) == 2 * int(2.5 * blur + 0.5) + 1
    assert min(taps) >= 0 and max(taps) - taps[len(taps) // 2] <= 2


def test_a_drawn_mask_is_its_alpha_and_an_opaque_one_its_grey():
    drawn = Image.new("RGBA", (3, 1))
    for x, alpha in enumerate((128, 129, 200)):
        drawn.putpixel((x, 0), (9, 9, 9, alpha))
    assert [*prepare_mask(drawn, blur=(0, 0)).tobytes()] == [0, 255, 255]
    assert [*prepare_mask(drawn, blur=(0, 0), soft=True).tobytes()] == [128, 129, 200]
    assert [*prepare_mask(drawn, blur=(0, 0), invert=True).tobytes()] == [255, 0, 0]
    opaque = Image.new("RGBA", (2, 1), (250, 250, 250, 255))
    assert [*prepare_mask(opaque, blur=(0, 0)).tobytes()] == [250, 250]


def test_half_of_a_latent_cell_is_kept():
    mask = Image.new("L", (32, 16))
    mask.paste(255, (8, 0, 24, 16))
    keep, change = latent_masks(mask, torch.zeros(1, 4, 2, 4))
    assert keep.shape == (4, 2, 4) and torch.equal(keep + change, torch.ones(4, 2, 4))
    assert set(change.unique().tolist()) == {0.0, 1.0}
    soft = latent_masks(mask, torch.zeros(1, 4, 2, 4), soft=True)
    assert 0 < soft.change[0, 0, 1] < 1


SIZES = st.tuples(st.integers(1, 90), st.integers(1, 90))


@settings(max_examples=60, deadline=None)
@given(SIZES, st.tuples(st.integers(1, 12), st.integers(1, 12)), st.sampled_from(RESIZE_MODES))
def test_every_mode_fits_every_picture_to_the_size(size, cells, mode):
    width, height = cells[0] * 8, cells[1] * 8
    try:
        fitted = fit_picture(Image.new("RGB", size, (10, 200, 90)), width, height, mode)
    except ValueError as error:  # a line so thin that it would be resized to no pixels at all
        assert "too narrow" in str(error)
        return
    assert fitted.size == (width, height)
    assert fitted.getpixel((width // 2, height // 2)) == (10, 200, 90)


def test_what_lies_beside_a_fitted_picture_is_its_edge():
    picture = Image.new("RGB", (40, 20), (200, 0, 0))
    picture.paste((0, 0, 200), (0, 10, 40, 20))
    fitted = fit_picture(picture, 40, 40, "fill")
    assert fitted.getpixel((20, 2)) == (200, 0, 0) and fitted.getpixel((20, 38)) == (0, 0, 200)
    cropped = fit_picture(picture, 40, 40, "crop")
    assert cropped.getpixel((1, 1))[0] > 150 and cropped.getpixel((1, 38))[2] > 150


@given(SIZES, st.data())
def test_an_area_lies_in_the_picture_and_holds_the_mask(size, data):
    width, height = size
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    right, bottom = data.draw(st.integers(left + 1, width)), data.draw(st.integers(top + 1, height))
    mask = Image.new("L", size)
    mask.paste(255, (left, top, right, bottom))
    job = (data.draw(st.integers(1, 8)) * 8, data.draw(st.integers(1, 8)) * 8)
    area = masked_area(mask, job, data.draw(st.integers(0, 40)))
    assert 0 <= area.left <= left and right <= area.right <= width
    assert 0 <= area.top <= top and bottom <= area.bottom <= height


def test_outside_of_the_mask_the_original_comes_back():
    rng = np.random.default_rng(0)
    original, drawn = (Image.fromarray(rng.integers(0, 256, (48, 64, 3)).astype(np.uint8)) for _ in range(2))
    mask = Image.new("L", (64, 48))
    mask.paste(255, (16, 16, 48, 32))
    result = np.asarray(composite_overlay(drawn, overlay_picture(original, mask)))
    inside = np.asarray(mask) > 0
    assert np.array_equal(result[~inside], np.asarray(original)[~inside])
    assert np.array_equal(result[inside], np.asarray(drawn)[inside])
    area = MaskArea(16, 16, 48, 32)
    result = np.asarray(composite_overlay(Image.new("RGB", (64, 32), "lime"), overlay_picture(original, mask), area))
    assert np.array_equal(result[~inside], np.asarray(original)[~inside])
    assert (result[inside] == (0, 255, 0)).all()


def test_a_hole_is_filled_with_the_colours_around_it():
    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    ImageDraw.Draw(picture).rectangle((24, 24, 40, 40), fill="blue")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (20, 20, 44, 44))
    filled = np.asarray(fill_masked(picture, mask)).astype(int)
    assert np.abs(filled - (200, 30, 30)).max() <= 4


def test_transparency_shows_the_background_as_far_as_it_goes():
    picture = Image.new("RGBA", (2, 1), (100, 50, 0, 0))
    picture.putpixel((1, 0), (100, 50, 0, 128))
    flat = flatten_picture(picture, "#0000ff")
    assert flat.getpixel((0, 0)) == (0, 0, 255)
    assert flat.getpixel((1, 0)) == (50, 25, 127)
    gray = Image.new("LA", (1, 1), (10, 0))
    assert flatten_picture(gray).getpixel((0, 0)) == (255, 255, 255)
    assert flatten_picture(Image.new("CMYK", (1, 1))).getpixel((0, 0)) == (255, 255, 255)


def test_pictures_of_other_kinds_become_rgb():
    deep = Image.fromarray(np.array([[0, 0x80FF, 0xFFFF]], np.uint16))
    assert [deep_level[0] for deep_level in np.asarray(flatten_picture(deep))[0]] == [0, 0x80, 0xFF]
    palette = Image.new("RGB", (2, 1), (9, 90, 200)).quantize(4)
    assert flatten_picture(palette).getpixel((0, 0)) == (9, 90, 200)
    turned = Image.new("RGB", (4, 2))
    turned.getexif()[274] = 6
    assert flatten_picture(turned).size == (2, 4)


def test_lab_and_back_is_the_same_colour():
    """8-bit LAB has fewer colours than sRGB: most come back within a few levels."""
    levels = np.random.default_rng(2).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    difference = np.abs(lab_to_rgb(rgb_to_lab(levels)).astype(int) - levels)
    assert difference.max() <= 24 and difference.mean() < 2
    grays = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, -1)
    assert np.abs(lab_to_rgb(rgb_to_lab(grays)).astype(int) - grays).max() <= 2


def test_matched_colours_keep_the_pictures_own_luminosity():
    rng = np.random.default_rng(4)
    picture = Image.fromarray(rng.integers(60, 200, (32, 40, 3)).astype(np.uint8))
    warm = Image.fromarray((rng.integers(60, 200, (24, 24, 1)) + (40, 0, -40)).astype(np.uint8))
    matched = match_colors(picture, warm)
    weights = (0.299, 0.587, 0.114)
    assert np.abs(np.asarray(matched) @ weights - np.asarray(picture) @ weights).max() < 2
    red, _, blue = np.asarray(matched).reshape(-1, 3).mean(0)
    assert red - blue > 40


def test_matched_colours_are_opencvs_scikit_images_and_blendmodes():
    cv2 = pytest.importorskip("cv2", reason="parity needs opencv-python, scikit-image and blendmodes")
    exposure = pytest.importorskip("skimage.exposure", reason="parity needs scikit-image")
    blend = pytest.importorskip("blendmodes.blend", reason="parity needs blendmodes")
    rng = np.random.default_rng(5)
    small = [Image.fromarray(rng.integers(0, 256, (9, 12, 3)).astype(np.uint8)) for _ in range(2)]
    picture, reference = (p.resize((96, 72), Image.Resampling.BICUBIC) for p in small)
    lab, wanted = (cv2.cvtColor(np.asarray(p), cv2.COLOR_RGB2LAB) for p in (picture, reference))
    matched = exposure.match_histograms(lab, wanted, channel_axis=2)
    colors = Image.fromarray(cv2.cvtColor(matched, cv2.COLOR_LAB2RGB).astype("uint8"))
    expected = blend.blendLayers(colors, picture, blend.BlendType.LUMINOSITY).convert("RGB")
    difference = np.abs(np.asarray(match_colors(picture, reference)).astype(int) - np.asarray(expected))
    assert (difference > 1).mean() < 1e-3 and (difference > 0).mean() < 0.05


def test_wrong_arguments_are_refused_by_name():
    with pytest.raises(ValueError, match="`resize_mode` is 'squeeze', which is none of \"stretch\""):
        fit_picture(Image.new("RGB", (8, 8)), 8, 8, "squeeze")
    with pytest.raises(ValueError, match="`mask_blur` must be 0 or more"):
        prepare_mask(Image.new("L", (8, 8)), blur=(-1, 4))
    with pytest.raises(ValueError, match="too narrow"):
        fit_picture(Image.new("RGB", (400, 1)), 64, 64, "fill")
