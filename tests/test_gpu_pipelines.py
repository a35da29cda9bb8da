"""What stands around the UNet on a CUDA device draws what the CPU draws: upscalers, faces, detail passes, a refiner,
textual inversions, scripts, blocks and the networks of MultiLoraPipeline."""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from recordings import GOLDEN
from safetensors.torch import save_file
from test_blocks import modular
from test_face_restore import PaintedFace, photo
from tiny_models import pipeline_with_copies
from webui_diffusers.loaders.upscaler import load_upscaler
from webui_diffusers.pipelines import (
    DetailerPipeline,
    FaceRestorePipeline,
    MultiLoraPipeline,
    WebUIImg2ImgPipeline,
    WebUITxt2ImgPipeline,
)
from webui_diffusers.pipelines.blocks import WebUISDBlocks, WebUIXLBlocks


pytestmark = pytest.mark.gpu
DEVICE = "cuda"
NEAR = 0.003  # the mean difference of pixels in 0..1; cuDNN's convolutions round to TF32
CALL = {"num_inference_steps": 4, "sampler": "DPM++ 2M", "seed": 5, "output_type": "np"}
PICTURE = Image.effect_mandelbrot((96, 64), (-2, -1.5, 1, 1.5), 50).convert("RGB")
BOX = {"bboxes": [[10, 8, 40, 30]], "confidences": [0.9]}
EDITED = "a (red:1.2) [circle:square:0.5] in [snow|rain]"


def drawn(pipe: Any, *given: Any, **arguments: Any) -> np.ndarray:
    torch.manual_seed(0)
    images = np.asarray(pipe(*given, **{**CALL, **arguments}).images, np.float32)
    assert np.isfinite(images).all()
    return images


def assert_draws_the_same(pipe: Any, *given: Any, near: float = NEAR, **arguments: Any) -> None:
    """First on the CPU, then on the device."""
    wanted = drawn(pipe.to("cpu"), *given, **arguments)
    found = drawn(pipe.to(DEVICE), *given, **arguments)
    assert found.shape == wanted.shape and wanted.std() > 0.01
    assert float(np.abs(found - wanted).mean()) < near


@pytest.fixture(scope="module")
def upscaler():
    return load_upscaler(GOLDEN / "models" / "tiny-compact-x2.safetensors")


def test_an_upscaler_between_two_passes(upscaler):
    pipe, enlarged = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd", upscaler=upscaler), []
    hook = upscaler.register_forward_hook(lambda model, given, made: enlarged.append(made.device.type))
    try:
        assert_draws_the_same(pipe, EDITED, hires_scale=1.5, hires_steps=3, hires_strength=0.6)
    finally:
        hook.remove()
    assert set(enlarged) == {"cpu", DEVICE}


def test_an_upscaler_in_half_precision():
    wanted = load_upscaler("R-ESRGAN AnimeVideo")(pixels := torch.rand(1, 3, 40, 56))
    found = load_upscaler("R-ESRGAN AnimeVideo").to(DEVICE, torch.float16)(pixels.to(DEVICE, torch.float16))
    assert float((found.float().cpu() - wanted).abs().mean()) < 0.005


@pytest.mark.parametrize("flow", ["own", "facexlib"])
def test_a_restored_face(flow):
    pipe = FaceRestorePipeline(PaintedFace())
    pipe.set_progress_bar_config(disable=True)
    pictures = []
    for device in ("cpu", DEVICE):
        out = pipe.to(device)(photo(), flow=flow)
        pictures.append(np.asarray(out.images[0], np.float32))
        assert len(out.boxes[0]) == 1
    assert (pictures[0] != np.asarray(photo())).any() and np.abs(pictures[0] - pictures[1]).mean() < 1


def test_a_detail_pass():
    given = {"detailers": [{"detections": [BOX], "ad_denoising_strength": 0.6}], "output_type": "pil"}
    pipe = pipeline_with_copies(DetailerPipeline, "tiny-sd")
    assert_draws_the_same(pipe, PICTURE, EDITED, near=255 * NEAR, **given)


def test_a_refiner():
    refiner = UNet2DConditionModel.from_pretrained(GOLDEN / "tiny-sdxl-e2e-refiner" / "unet")
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sdxl-e2e", refiner=refiner)
    assert_draws_the_same(pipe, EDITED, refiner_switch_at=0.5)


def test_a_textual_inversion(tmp_path):
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    width = pipe.text_encoder.config.hidden_size
    save_file({"emb_params": torch.randn(3, width)}, tmp_path / "word.safetensors")
    plain = drawn(pipe, "a word in snow")
    pipe.add_embedding(tmp_path / "word.safetensors")
    assert not np.array_equal(drawn(pipe, "a word in snow"), plain)
    assert_draws_the_same(pipe, "a (word:1.3) in snow")


@pytest.mark.parametrize(
    "script",
    [{"sd_upscale": {"upscaler": "R-ESRGAN AnimeVideo", "scale": 2, "overlap": 16}}, {"loopback": {"loops": 2}}],
    ids=["SD upscale", "loopback"],
)
def test_a_script(script):
    pipe = pipeline_with_copies(WebUIImg2ImgPipeline, "tiny-sd")
    given = {"strength": 0.6, "output_type": "pil", "width": 64, "height": 64}
    assert_draws_the_same(pipe, EDITED, image=PICTURE, near=0.01 * 255, **given, **script)


def test_tiling_and_a_vae_that_works_by_tiles():
    pipe = pipeline_with_copies(WebUITxt2ImgPipeline, "tiny-sd")
    assert_draws_the_same(pipe, EDITED, tiling=True)
    pipe.vae.enable_tiling()
    assert_draws_the_same(pipe, EDITED, width=128, height=128)


def test_one_mix_of_networks_for_every_image():
    pipe = pipeline_with_copies(MultiLoraPipeline, "tiny-sd")
    pipe.lora_folder = GOLDEN / "lora"
    arguments = {"loras": [{"alpha_ne_rank": 1.0}, None, {"fp16_lora": 0.7}], "sampler": None, "seed": None}
    arguments = {key: value for key, value in {**CALL, **arguments}.items() if value is not None}
    pictures = []
    for device in ("cpu", DEVICE):
        generators = [torch.Generator().manual_seed(i) for i in range(3)]
        out = pipe.to(device)(["a red circle"] * 3, generator=generators, **arguments)
        pictures.append(np.asarray(out.images))
    assert np.abs(pictures[0] - pictures[1]).mean() < NEAR


@pytest.mark.parametrize(
    ("blocks", "name"), [(WebUIXLBlocks, "tiny-sdxl-e2e"), (WebUISDBlocks, "tiny-sd")], ids=["SDXL", "SD"]
)
def test_blocks(blocks, name):
    pictures = []
    for device in ("cpu", DEVICE):
        whole = modular(blocks(), pipeline_with_copies(WebUITxt2ImgPipeline, name).to(device))
        pictures.append(np.asarray(whole(prompt=EDITED, output="images", **CALL)))
    assert pictures[0].std() > 0.01 and np.abs(pictures[0] - pictures[1]).mean() < NEAR
