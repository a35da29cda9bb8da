"""Hires fix: sizes, latent upscalers, and the whole road from first-pass latents to those of the second pass."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from recordings import GOLDEN, OLDER_KERNELS
from safetensors import safe_open
from safetensors.torch import load_file
from webui_diffusers.loaders.upscaler import load_upscaler
from webui_diffusers.pipelines.images.hires import (
    LATENT_UPSCALERS,
    HiresTarget,
    crop_latents,
    enlarge_through_pixels,
    hires_target,
    upscale_latents,
)
from webui_diffusers.pipelines.images.vae import (
    decode_latents,
    encode_pictures,
    latents_to_pixels,
    pixels_to_vae_input,
)


SIZES = [  # width, height, scale, size -> enlarged (w, h), cells cut (left, right, top, bottom), final (w, h)
    ((64, 64, 1.5, None), (96, 96), (0, 0, 0, 0), (96, 96)),
    ((64, 64, 1.3, (0, 0)), (83, 83), (0, 0, 0, 0), (80, 80)),
    ((64, 96, 2.0, (96, 0)), (96, 144), (0, 0, 0, 0), (96, 144)),
    ((64, 96, 2.0, (0, 100)), (66, 100), (0, 0, 0, 0), (64, 96)),
    ((64, 64, 2.0, (112, 80)), (112, 112), (0, 0, 2, 2), (112, 80)),
    ((64, 64, 2.0, (80, 112)), (112, 112), (2, 2, 0, 0), (80, 112)),
    ((64, 64, 2.0, (112, 72)), (112, 112), (0, 0, 2, 3), (112, 72)),
    ((512, 768, 2.0, (1000, 1000)), (1000, 1500), (0, 0, 31, 31), (1000, 1000)),
]


def hires_runs() -> list:
    """Every recorded run with hires fix whose file is there."""
    found = []
    for family, model in (("sampling", "tiny-sd"), ("sampling_xl", "tiny-sdxl-e2e")):
        table = GOLDEN / family / "e2e.json"
        if table.is_file() and (GOLDEN / model / "vae").is_dir():
            for run in json.loads(table.read_text())["runs"]:
                file = GOLDEN / family / "e2e" / f"{run['name']}.safetensors"
                if run["params"].get("enable_hr") and has_tensors(file):
                    found.append(pytest.param(run, file, model, id=f"{family}-{run['name']}"))
    return found


def has_tensors(file: Path) -> bool:
    """Whether the recording is there, with what these tests read of it."""
    if not file.is_file():
        return False
    with safe_open(file, "pt") as tensors:
        return {"firstpass_latents", "hr_init_latent", "latents", "images"} <= set(tensors.keys())


@pytest.fixture(scope="session")
def vaes() -> dict[str, AutoencoderKL]:
    folders = {model: GOLDEN / model / "vae" for model in ("tiny-sd", "tiny-sdxl-e2e")}
    return {
        model: AutoencoderKL.from_pretrained(folder).eval() for model, folder in folders.items() if folder.is_dir()
    }


@pytest.mark.parametrize("asked, enlarged, cut, final", SIZES)
def test_sizes_of_the_second_pass(asked, enlarged, cut, final):
    target = hires_target(*asked)
    assert target[:2] == enlarged
    assert target[2:] == cut
    assert (target.width, target.height) == final


@pytest.mark.goldens
@pytest.mark.parametrize("run, file, model", hires_runs())
def test_first_pass_latents_become_the_second_pass_latents(run, file, model, vaes):
    """One level of one pixel between two VAE builds moves latents by up to 4e-3; without that they agree to 1e-5."""
    params, stored = run["params"], load_file(file)
    target = hires_target(
        params["width"], params["height"], params["hr_scale"], (params["hr_resize_x"], params["hr_resize_y"])
    )
    assert [target.height, target.width] == run["image_size"][1:3]
    if params["hr_upscaler"] in LATENT_UPSCALERS:
        enlarged = upscale_latents(
            stored["firstpass_latents"], params["hr_upscaler"], target.enlarged_height, target.enlarged_width
        )
        tolerance = 1e-5 if OLDER_KERNELS else 0
        torch.testing.assert_close(crop_latents(enlarged, target), stored["hr_init_latent"], atol=tolerance, rtol=0)
        return
    with torch.no_grad():
        got = enlarge_through_pixels(
            vaes[model],
            stored["firstpass_latents"],
            target,
            recorded_upscaler(params["hr_upscaler"]),
            generator=webui_generator(run),
        )
    difference = (got - stored["hr_init_latent"]).abs()
    assert difference.max() < 5e-3
    assert difference.median() < 1e-5 or model_upscaler_file(params["hr_upscaler"]) is not None


@pytest.mark.goldens
@pytest.mark.parametrize("run, file, model", hires_runs())
def test_final_latents_decode_to_the_recorded_picture(run, file, model, vaes):
    if run["params"].get("tiling"):
        pytest.skip("decoded with circular padding, which the pipeline switches on")
    stored = load_file(file)
    difference = np.abs(latents_to_pixels(vaes[model], stored["latents"]).astype(int) - stored["images"].numpy())
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def webui_generator(run: dict) -> torch.Generator:
    """Where the webui's global generator stands when it encodes: at the last picture's seed, unless noise is "NV"."""
    nv = run["options"]["randn_source"] == "NV"
    return torch.Generator().manual_seed(run["global_seed_before_run"] if nv else run["all_seeds"][-1])


def model_upscaler_file(label: str) -> Path | None:
    return next((file for file in (GOLDEN / "models").glob(f"{label}.*")), None)


def recorded_upscaler(label: str):
    file = model_upscaler_file(label)
    return label if file is None else load_upscaler(file)


@given(st.integers(8, 2048), st.integers(8, 2048), st.tuples(st.integers(8, 4096), st.integers(8, 4096)), st.randoms())
def test_an_enlarged_picture_covers_what_was_asked_for(width, height, size, _random):
    target = hires_target(width, height, None, size)
    assert target.enlarged_width >= size[0] - 1 and target.enlarged_height >= size[1] - 1
    assert abs(target.width - size[0]) <= 16 and abs(target.height - size[1]) <= 16


@pytest.mark.parametrize("label", LATENT_UPSCALERS)
def test_latent_upscalers_keep_a_flat_latent(label):
    flat = torch.full((2, 4, 5, 7), 0.75)
    large = upscale_latents(flat, label, 96, 83)
    assert large.shape == (2, 4, 12, 10)
    assert torch.allclose(large, torch.tensor(0.75))


def test_every_latent_upscaler_draws_something_of_its_own():
    latents = torch.randn(1, 4, 9, 8, generator=torch.Generator().manual_seed(0))
    larger = [upscale_latents(latents, label, 120, 88) for label in LATENT_UPSCALERS]
    smaller = [upscale_latents(latents, label, 40, 48) for label in LATENT_UPSCALERS]
    for i in range(len(larger)):
        for j in range(i):
            assert not torch.equal(larger[i], larger[j]) or not torch.equal(smaller[i], smaller[j])


def test_the_larger_half_of_the_crop_is_at_the_end():
    latents = torch.arange(10.0).expand(1, 4, 10, 10)
    assert crop_latents(latents, HiresTarget(80, 80, crop_left=1, crop_right=2))[0, 0, 0].tolist() == [*range(1, 8)]


def test_a_picture_does_not_depend_on_its_neighbours(vaes):
    vae = vaes["tiny-sd"]
    latents = torch.randn(2, 4, 6, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        both = decode_latents(vae, latents)
        assert torch.equal(both[1:], decode_latents(vae, latents[1:]))
    assert both.shape == (2, 3, 48, 64) and both.min() >= 0 and both.max() <= 1


def test_encoding_draws_once_per_picture_from_the_generator(vaes):
    vae = vaes["tiny-sd"]
    pixels = pixels_to_vae_input([np.full((16, 24, 3), level, np.uint8) for level in (30, 200)])
    with torch.no_grad():
        latents = encode_pictures(vae, pixels, torch.Generator().manual_seed(5))
        posterior = vae.encode(pixels[1:]).latent_dist
    generator = torch.Generator().manual_seed(5)
    noise = [torch.randn((1, 4, 2, 3), generator=generator) for _ in range(2)]
    expected = vae.config.scaling_factor * (posterior.mean + posterior.std * noise[1])
    assert torch.allclose(latents[1:], expected, atol=1e-6)


def overflowing_vae(vae: AutoencoderKL, factor: float) -> AutoencoderKL:
    """A float16 copy whose first convolution of the decoder is `factor` times too strong."""
    copy = AutoencoderKL.from_config(vae.config)
    copy.load_state_dict(vae.state_dict())
    with torch.no_grad():
        copy.decoder.conv_in.weight.mul_(factor)
    return copy.to(torch.float16).eval()


@torch.no_grad()
def test_half_precision_overflow_is_drawn_again_in_float32(vaes):
    vae = overflowing_vae(vaes["tiny-sd"], 1e5)
    latents = torch.randn(1, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    scaled = latents / vae.config.scaling_factor
    assert not torch.isfinite(vae.decode(scaled.half()).sample).all()
    pixels = decode_latents(vae, latents)
    assert vae.dtype == torch.float16
    again = (vae.float().decode(scaled).sample + 1) / 2
    assert torch.allclose(pixels, again.clamp(0, 1), atol=1e-5)


@torch.no_grad()
def test_a_broken_vae_is_reported_and_gets_its_dtype_back(vaes):
    vae = overflowing_vae(vaes["tiny-sd"], 1e30)
    with pytest.raises(ValueError, match="NaN or Inf.*float32"):
        decode_latents(vae, torch.ones(1, 4, 4, 4))
    assert vae.dtype == torch.float16


def test_spoilt_latents_are_reported_and_not_drawn_black(vaes):
    with pytest.raises(ValueError, match="contains NaN or Inf: they were produced earlier"):
        decode_latents(vaes["tiny-sd"], torch.full((1, 4, 2, 2), float("nan")))


@pytest.mark.parametrize("scale, size", [(None, None), (0, None), (-1.0, (0, 0)), (0.01, None), (2.0, (-8, 8))])
def test_sizes_that_leave_nothing_are_refused(scale, size):
    with pytest.raises(ValueError, match="scale|size"):
        hires_target(64, 64, scale, size)


def test_an_unknown_latent_upscaler_names_the_known_ones():
    with pytest.raises(ValueError, match=r'"Latents" enlarges no latents.*"Latent \(bicubic\)"'):
        upscale_latents(torch.zeros(1, 4, 2, 2), "Latents", 32, 32)


@pytest.mark.parametrize("pixels", [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 3), np.float32)])
def test_only_8_bit_rgb_goes_into_the_vae(pixels):
    with pytest.raises(ValueError, match="takes 8-bit RGB pictures"):
        pixels_to_vae_input([pixels])
